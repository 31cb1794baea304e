"""What all tests of offline work on a cache folder have in common."""

from pathlib import Path

import pytest

from tests.pipeline.cache.cache_site import be_patient, count_bytes
from tests.pipeline.cache.filled import fill

_count_bytes = pytest.fixture(autouse=True)(count_bytes)
_be_patient = pytest.fixture(autouse=True)(be_patient)


@pytest.fixture
async def folder(tmp_path: Path) -> Path:
    """A cache folder with something of every kind in it."""
    await fill(tmp_path / "cache")
    return tmp_path / "cache"
