"""The Compose files, as far as they can be read without Compose."""

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["compose.yaml", "xetserve/share/scale/compose.yaml"])
def test_web_pages_read_nothing_by_default(name: str) -> None:
    services: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())["services"]
    ours = [each["environment"] for each in services.values() if "build" in each]
    assert ours
    assert {each["XETSERVE_CORS"] for each in ours} == {"${XETSERVE_CORS:-off}"}
