"""The Compose files, as far as they can be read without Compose."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from xetserve.config.load import load_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["compose.yaml", "xetserve/share/scale/compose.yaml"])
def test_web_pages_read_nothing_by_default(name: str) -> None:
    services: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())["services"]
    ours = [each["environment"] for each in services.values() if "build" in each]
    assert ours
    assert {each["XETSERVE_CORS"] for each in ours} == {"${XETSERVE_CORS:-off}"}


def test_the_balancer_and_its_instances_can_share_an_environment() -> None:
    """One .env file, or one ConfigMap, may be for both."""
    scale = ROOT / "xetserve/share/scale"
    names = set(re.findall(r"\$\{(\w+)", (scale / "haproxy.cfg").read_text()))
    assert names > {"LB_ONE", "LB_TWO", "LB_THREE", "LB_BIND"}
    balancer = yaml.safe_load((scale / "compose.yaml").read_text())["services"]["haproxy"]
    assert set(balancer["environment"]) < names
    load_config({}, dict.fromkeys(names, "one:8080"))
