"""Ledgers beside the cache: proven once, known to whoever reads the file later."""

from pathlib import Path

import pytest

from tests.fakes import FakeAccess, FakeCas
from tests.pipeline.cache.cached_file import entries, ledgers, running
from tests.pipeline.reading import CONTENT, FILE, SIZE, damaged, read_all
from xetserve.errors import IntegrityError
from xetserve.pipeline.verify.ledger_file import parse_ledger
from xetserve.xet.reconstruction import FetchInfo
from xetserve.xet.xorb import CHUNK_HEADER_SIZE


def size_of(folder: Path) -> int:
    """Bytes of what is kept."""
    return sum(path.stat().st_size for path in entries(folder) + ledgers(folder))


@pytest.mark.parametrize("parts", [1, 3], ids=["whole", "in parts"])
async def test_a_file_that_was_proven_is_known_after_a_restart(tmp_path: Path, parts: int) -> None:
    async with running(tmp_path) as process:
        step = -(-SIZE // parts)
        for start in range(0, SIZE, step):
            await process.read(start, min(SIZE, start + step))
    assert len(ledgers(tmp_path)) == 1
    async with running(tmp_path) as process:
        assert await process.read(SIZE // 2, SIZE // 2 + 10)
        assert process.cache.disk_workers.store.quota.get_usage() == size_of(tmp_path)


async def test_parts_alone_leave_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        assert not await process.read(SIZE // 3, SIZE)
    assert ledgers(tmp_path) == []


async def test_another_process_knows_at_once(tmp_path: Path) -> None:
    async with running(tmp_path) as one, running(tmp_path) as other:
        assert not await one.read(0, SIZE // 2)
        assert await other.read()
        await other.cache.settle()
        # What this one has noted itself was compared with nothing, and does not stand in the way.
        assert await one.read(100, 200)


@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
async def test_a_reader_that_began_before_is_held_against_what_came_later(
    tmp_path: Path, is_right: bool
) -> None:
    cas = FakeCas(FILE) if is_right else damaged()
    async with running(tmp_path / "other") as other, running(tmp_path / "one", cas) as one:
        early = one.engine.read(FakeAccess(), FILE.file_hash, start=9, size=SIZE)
        got = bytearray().join(await anext(early))
        assert await other.read()
        await other.cache.settle()
        (path,) = ledgers(tmp_path / "other")
        chunks = parse_ledger(path.read_bytes(), FILE.file_hash)
        one.engine.ledgers.get(FILE.file_hash).adopt(chunks)
        if is_right:
            await read_all(early, got)
            assert got == CONTENT[9:]
            assert early.is_verified
        else:
            with pytest.raises(IntegrityError):
                await read_all(early, got)
            assert len(got) < len(CONTENT) - 9


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "large", "folder"])
async def test_a_damaged_one_is_none(tmp_path: Path, how: str) -> None:
    async with running(tmp_path) as process:
        await process.read()
    (path,) = ledgers(tmp_path)
    data = bytearray(path.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    elif how == "cut":
        del data[-1]
    elif how == "empty":
        data.clear()
    elif how == "large":
        data += bytes(10_000_000)
    path.write_bytes(data)
    if how == "folder":
        path.unlink()
        path.mkdir()
    async with running(tmp_path) as process:
        assert not await process.read(5, 10)
        if how != "folder":
            assert ledgers(tmp_path) == []
            assert await process.read()
            await process.cache.settle()
            assert await process.read(5, 10)


async def test_what_comes_wrong_is_seen_in_the_part_that_has_it(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        await process.read()
    for entry in entries(tmp_path):
        entry.unlink()

    def damage(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        at = CHUNK_HEADER_SIZE + 3
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], None

    async with running(tmp_path, FakeCas(FILE, on_data=damage)) as process:
        with pytest.raises(IntegrityError, match="chunk 0 is not the file's"):
            await process.read(0, 10)
    assert len(ledgers(tmp_path)) == 1  # it was right


async def test_a_full_cache_keeps_its_quota(tmp_path: Path) -> None:
    async with running(tmp_path) as process:
        process.cache.disk_workers.store.quota.max_size = 1000
        assert await process.read()
    assert ledgers(tmp_path) == []


async def test_a_disk_that_refuses_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as process:

        def refuse(*arguments: object) -> None:
            raise PermissionError(13, "no")

        monkeypatch.setattr(process.cache.disk_workers.store, "place", refuse)
        assert await process.read()
    assert ledgers(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []
