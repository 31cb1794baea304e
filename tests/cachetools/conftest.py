"""What all tests of offline work on a cache folder have in common."""

import pytest

from tests.pipeline.cache.cache_site import count_bytes

_count_bytes = pytest.fixture(autouse=True)(count_bytes)
