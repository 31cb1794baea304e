"""Plain files beside the cache: only what has its hash is given, and nobody waits for a disk."""

import asyncio
import hashlib
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes import FakeCas, FakeFile
from tests.pipeline.cache.cache_site import start_swept
from tests.waiting import wait_until
from xetserve.pipeline.cache import blob_file, blobs
from xetserve.pipeline.cache.blob_file import BLOCK_SIZE, BlobKey
from xetserve.pipeline.cache.blobs import BlobCache, LostError
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.upstream.hub.client import FileEntry

CONTENT = random.Random(7).randbytes(3_000_000)
PIECE = 250_000


def git_key(content: bytes) -> BlobKey:
    digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    return BlobKey("git", digest, len(content))


def sha256_key(content: bytes) -> BlobKey:
    return BlobKey("sha256", hashlib.sha256(content).hexdigest(), len(content))


KEYS = [git_key(CONTENT), sha256_key(CONTENT)]


@asynccontextmanager
async def open_blob_cache(folder: Path, max_size: int = 1 << 40) -> AsyncIterator[BlobCache]:
    cache = DiskCache(FakeCas(FakeFile([])), folder, max_size=max_size, min_free=0)
    await start_swept(cache)
    try:
        yield BlobCache(cache)
    finally:
        await cache.aclose()
        num_open = len([fd for fd in os.listdir("/proc/self/fd") if points_into(fd, folder)])
        assert num_open == 0


def points_into(fd: str, folder: Path) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{fd}").startswith(str(folder))
    except FileNotFoundError:
        return False


@pytest.fixture(params=["small", "large"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How CONTENT is kept."""
    if request.param == "large":
        monkeypatch.setattr(blob_file, "MAX_SMALL_SIZE", 1_000_000)
    return str(request.param)


@pytest.fixture
async def blob_cache(tmp_path: Path, kind: str) -> AsyncIterator[BlobCache]:
    async with open_blob_cache(tmp_path) as made:
        yield made


async def storing(
    blob_cache: BlobCache, key: BlobKey, content: bytes = CONTENT
) -> AsyncGenerator[bytes, None]:
    """Pass content on and store it, as a body does: in memory that is used again."""
    writer = blob_cache.open_writer(key)
    buffer = bytearray(PIECE)
    try:
        for at in range(0, len(content), PIECE):
            piece = content[at : at + PIECE]
            buffer[: len(piece)] = piece
            await writer.write([memoryview(buffer)[: len(piece)]])
            yield piece
            await writer.finish()
    finally:
        writer.close()


async def keep(blob_cache: BlobCache, key: BlobKey, content: bytes = CONTENT) -> bytes:
    return b"".join([piece async for piece in storing(blob_cache, key, content)])


async def read(blob_cache: BlobCache, key: BlobKey, start: int = 0, end: int = -1) -> bytes | None:
    stored = await blob_cache.open(key, start, key.size if end < 0 else end)
    if stored is None:
        return None
    async with stored:
        got = bytearray()
        buffer = memoryview(bytearray(100_000))
        while count := await stored.receive_into(buffer, 5.0):
            got += buffer[:count]
        return bytes(got)


def files(folder: Path) -> list[Path]:
    return [path for subfolder in ("plain", "large") for path in folder.glob(f"{subfolder}/*/*")]


@pytest.mark.parametrize("key", KEYS, ids=["git", "lfs"])
async def test_what_was_read_once_is_here(
    blob_cache: BlobCache, tmp_path: Path, key: BlobKey, kind: str
) -> None:
    assert await read(blob_cache, key) is None
    assert await keep(blob_cache, key) == CONTENT
    assert await read(blob_cache, key) == CONTENT
    assert await read(blob_cache, key, 5, 2_000_000) == CONTENT[5:2_000_000]
    async with open_blob_cache(tmp_path) as other:
        assert await read(other, key) == CONTENT
    assert await read(blob_cache, KEYS[key.kind == "git"]) is None
    assert blob_cache._store.quota.get_usage() == key.stored_size
    assert await blob_cache.has(key)
    assert key.subfolder == ("large" if kind == "large" else "plain")
    assert [path.stat().st_size for path in files(tmp_path)] == [key.stored_size]


@pytest.mark.parametrize("how", ["flip", "cut", "grow", "empty"])
async def test_a_damaged_one_is_not_here_any_more(
    blob_cache: BlobCache, tmp_path: Path, how: str
) -> None:
    await keep(blob_cache, KEYS[0])
    assert await read(blob_cache, KEYS[0], 7, 9) == CONTENT[7:9]
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[-1] ^= 1
    elif how == "cut":
        del data[-1]
    elif how == "grow":
        data += b"x"
    else:
        data.clear()
    path.write_bytes(data)
    assert await read(blob_cache, KEYS[0], 7, 9) is None
    assert files(tmp_path) == []
    assert await keep(blob_cache, KEYS[0]) == CONTENT
    assert await read(blob_cache, KEYS[0]) == CONTENT


@pytest.mark.parametrize("size", [1, PIECE, len(CONTENT) - 1])
async def test_what_broke_off_is_not_kept(blob_cache: BlobCache, tmp_path: Path, size: int) -> None:
    assert await keep(blob_cache, KEYS[0], CONTENT[:size]) == CONTENT[:size]
    await asyncio.to_thread(wait_until_empty, tmp_path / "tmp")
    assert files(tmp_path) == []
    await asyncio.to_thread(wait_until_unused, blob_cache)


async def test_a_body_that_was_left_is_not_kept(blob_cache: BlobCache, tmp_path: Path) -> None:
    blocks = storing(blob_cache, KEYS[0])
    await anext(blocks)
    await blocks.aclose()
    await asyncio.to_thread(wait_until_empty, tmp_path / "tmp")
    assert files(tmp_path) == []


def wait_until_empty(folder: Path) -> None:
    """Wait for what a thread does in its own time."""
    wait_until(lambda: not any(folder.iterdir()))


def wait_until_unused(blob_cache: BlobCache) -> None:
    """Wait until nothing is accounted for: that follows the file's removal."""
    wait_until(lambda: not blob_cache._store.quota.get_usage())


async def test_what_is_longer_than_it_says_is_not_kept(
    blob_cache: BlobCache, tmp_path: Path
) -> None:
    assert await keep(blob_cache, KEYS[0], CONTENT + b"more") == CONTENT + b"more"
    assert (
        await read(blob_cache, KEYS[0]) is not None
    )  # all of it had come, and was compared, before
    small = BlobKey("git", "a" * 40, 10)
    assert await keep(blob_cache, small) == CONTENT
    assert await read(blob_cache, small) is None


async def test_one_that_would_push_out_others_is_not_kept(tmp_path: Path, kind: str) -> None:
    size = KEYS[0].stored_size
    async with open_blob_cache(tmp_path, 2 * size) as blob_cache:
        assert blob_cache.can_keep(len(CONTENT))
    async with open_blob_cache(tmp_path, 2 * size - 1) as blob_cache:
        assert not blob_cache.can_keep(len(CONTENT))


async def test_damage_in_a_large_one_is_found_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blob_file, "MAX_SMALL_SIZE", 1_000_000)
    key = KEYS[1]
    async with open_blob_cache(tmp_path) as blob_cache:
        await keep(blob_cache, key)
        (path,) = files(tmp_path)
        data = bytearray(path.read_bytes())
        data[2 * BLOCK_SIZE] ^= 1
        path.write_bytes(data)
        assert await read(blob_cache, key, BLOCK_SIZE - 1, 2 * BLOCK_SIZE) is not None
        assert await read(blob_cache, key, 3 * BLOCK_SIZE) == CONTENT[3 * BLOCK_SIZE :]
        stored = await blob_cache.open(key, BLOCK_SIZE + 5, key.size)
        assert stored is not None
        async with stored:
            buffer = memoryview(bytearray(BLOCK_SIZE))
            count = await stored.receive_into(buffer, 5.0)
            assert buffer[:count] == CONTENT[BLOCK_SIZE + 5 : 2 * BLOCK_SIZE]
            with pytest.raises(LostError, match="damaged in block 2"):
                await stored.receive_into(buffer, 5.0)
            assert stored.position == 2 * BLOCK_SIZE
        assert files(tmp_path) == []
        assert blob_cache._store.quota.get_usage() == 0
        assert not await blob_cache.has(key)


async def test_two_at_once(blob_cache: BlobCache, tmp_path: Path) -> None:
    one, other = await asyncio.gather(keep(blob_cache, KEYS[1]), keep(blob_cache, KEYS[1]))
    assert one == other == CONTENT
    assert await read(blob_cache, KEYS[1]) == CONTENT
    assert len(files(tmp_path)) == 1
    assert blob_cache._store.quota.get_usage() == KEYS[1].stored_size
    # One that leaves takes nothing from the other.
    blob_cache._store.remove(str(files(tmp_path)[0]))
    left = storing(blob_cache, KEYS[1])
    await anext(left)
    assert await keep(blob_cache, KEYS[1]) == CONTENT
    await left.aclose()
    await asyncio.to_thread(wait_until_empty, tmp_path / "tmp")
    assert await read(blob_cache, KEYS[1]) == CONTENT


async def test_the_quota_is_kept(tmp_path: Path) -> None:
    limit = 1_000_000
    async with open_blob_cache(tmp_path, limit) as blob_cache:
        for number in range(30):
            content = CONTENT[number : number + 90_000]
            await keep(blob_cache, git_key(content), content)
            assert sum(path.stat().st_size for path in files(tmp_path)) <= limit
        assert await read(blob_cache, git_key(content)) == content


@pytest.mark.parametrize("name", ["create", "write", "place"])
async def test_a_disk_that_refuses_costs_nothing(
    blob_cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(blob_cache._store, name, refuse)
    assert await keep(blob_cache, KEYS[0]) == CONTENT
    assert await read(blob_cache, KEYS[0]) is None
    await asyncio.to_thread(wait_until_empty, tmp_path / "tmp")


async def test_a_disk_that_hangs_costs_little(
    blob_cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keep(blob_cache, KEYS[0])
    loop = asyncio.get_running_loop()
    hanging = asyncio.Event()

    def hang(*arguments: object) -> None:
        asyncio.run_coroutine_threadsafe(hanging.wait(), loop).result()

    with monkeypatch.context() as patch:
        patch.setattr(blobs, "DISK_TIMEOUT", 0.01)
        patch.setattr(blobs, "check_plain", hang)
        patch.setattr(blobs, "check_trailer", hang)
        assert await read(blob_cache, KEYS[0]) is None
        assert blob_cache.cache.is_resting
        patch.setattr(blob_cache.cache, "_resume_time", 0.0)
        patch.setattr(blob_cache._store, "write", hang)
        assert await keep(blob_cache, KEYS[1]) == CONTENT
        hanging.set()
    blob_cache.cache._resume_time = 0.0
    assert await read(blob_cache, KEYS[0]) == CONTENT


ENTRY = FileEntry(3, None, None, None, None, None, None, None, None)  # type: ignore[arg-type]


@given(st.text(max_size=50), st.none() | st.integers(0, 10))
def test_an_etag_that_is_no_hash_names_nothing(etag: str, size: int | None) -> None:
    entry = FileEntry(size, etag, None, None, None, None, None, None, ENTRY.url)
    assert BlobKey.of(entry) is None
