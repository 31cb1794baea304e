"""A disk cache in a folder, and what its counters have counted in a test."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.pipeline.cache.cache_site import Counts, Site, be_patient, count_bytes, make_site
from xetserve.metrics import catalogue as metrics

_count_bytes = pytest.fixture(autouse=True)(count_bytes)
_be_patient = pytest.fixture(autouse=True)(be_patient)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    async with make_site(tmp_path / "cache") as made:
        yield made


@pytest.fixture
def counts() -> Callable[[], Counts]:
    counters = (
        metrics.CACHE_HITS,
        metrics.CACHE_MISSES,
        metrics.CACHE_DAMAGED,
        metrics.CACHE_EVICTIONS,
    )
    before = [counter.total for counter in counters]
    return lambda: Counts(*(c.total - b for c, b in zip(counters, before, strict=True)))


@pytest.fixture
def abandoned() -> Callable[[], dict[str, float]]:
    before = {cause: count for (cause,), count in metrics.CACHE_ABANDONED.values.items()}
    return lambda: {
        cause: count - before.get(cause, 0)
        for (cause,), count in metrics.CACHE_ABANDONED.values.items()
        if count > before.get(cause, 0)
    }
