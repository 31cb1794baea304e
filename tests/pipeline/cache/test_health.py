"""What the cache says about itself, and when."""

import errno
import logging
from pathlib import Path

import pytest

from tests.fakes import FakeCas, FakeFile
from xetserve.metrics.catalogue import CACHE_TROUBLE
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.cache.health import USEFUL_SIZE, CacheHealth
from xetserve.pipeline.cache.quota import MIN_ROOM, Quota
from xetserve.pipeline.cache.store import prepare_folder


def list_troubles() -> list[str]:
    return [cause for cause in ("disk", "full", "small") if CACHE_TROUBLE.get(cause)]


def test_each_change_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health = CacheHealth(tmp_path)
    health.note(None)
    for _ in range(3):
        health.note(OSError(errno.ENOSPC, "No space left on device"))
    assert list_troubles() == ["full"]
    health.note(OSError(errno.EROFS, "Read-only file system"))
    assert list_troubles() == ["disk"]
    for _ in range(3):
        health.note(None)
    assert list_troubles() == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "No space left on device" in caplog.messages[0]


def test_one_worker_speaks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    health = CacheHealth(tmp_path, speaks=False)
    health.note(TimeoutError())
    health.note_size(USEFUL_SIZE - 1)
    assert caplog.messages == []
    assert list_troubles() == ["disk", "small"]
    health.note(None)
    health.note_size(USEFUL_SIZE)
    assert list_troubles() == []


async def test_room_is_found_when_it_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cache = DiskCache(FakeCas(FakeFile([])), tmp_path, max_size=1 << 30, min_free=1000)
    free = MIN_ROOM
    monkeypatch.setattr(Quota, "get_free", lambda _: free)
    prepare_folder(tmp_path)
    with pytest.raises(OSError, match="cache_min_free is 1"):
        await cache.check()
    # Files of the cache can be evicted, so they are room.
    (tmp_path / "usage").write_text("1000")
    await cache.check()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    await cache.aclose()
