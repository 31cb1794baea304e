"""Looking at all of a cache: what is right stays, what is damaged is found, whatever it is."""

import os
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pipeline.cache.filled import MARK, META, files, fill, is_served, make_said, make_store
from tests.pipeline.reading import FILE
from xetserve.cachetools.verify import Checker, Report, count_contents
from xetserve.pipeline.cache.entry import EntryKey, Indexer, Standing, make_entry_name
from xetserve.pipeline.cache.store import prepare_folder
from xetserve.xet.compression import Scheme
from xetserve.xet.reconstruction import ByteRange, ChunkRange
from xetserve.xet.xorb import pack_chunk


def check(folder: Path, *, removes: bool = True) -> Report:
    return Checker(make_store(folder), removes=removes).run()


def test_everything_is_counted(folder: Path) -> None:
    contents = count_contents(folder)
    assert contents.entries.num == len(list(folder.glob("??/*/*.xc"))) > 0
    assert (contents.num_xorbs, contents.ledgers.num, contents.plain.num) == (1, 1, 1)
    assert (contents.meta.num, contents.meta.size, contents.writing.num) == (
        2,
        len(make_said(META)) + len(MARK[1]),
        0,
    )
    assert contents.size == make_store(folder).quota.get_usage()
    assert contents.entries.oldest is not None
    assert contents.entries.newest is not None
    assert contents.entries.oldest <= contents.entries.newest <= time.time()


async def test_what_is_right_stays(folder: Path) -> None:
    sizes: list[int] = []
    report = Checker(make_store(folder), removes=True, on_bytes=sizes.append).run()
    assert report.damaged == {}
    assert (report.num_xorbs, report.num_proven, report.num_ledgers, report.num_plain) == (
        1,
        1,
        1,
        1,
    )
    assert report.num_entries == count_contents(folder).entries.num
    assert report.size == count_contents(folder).size >= sum(sizes) > report.size * 9 // 10
    assert await is_served(folder)


def flips(path: Path) -> Iterator[int]:
    """Places in a file: its ends, and between."""
    size = path.stat().st_size
    yield from {0, 5, size // 3, size // 2, size - 60, size - 1}


async def test_every_flipped_byte_is_found(folder: Path) -> None:
    for path in files(folder):
        data = path.read_bytes()
        for at in flips(path):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
            report = check(folder, removes=False)
            assert list(report.damaged) == [str(path.relative_to(folder))], at
            assert path.exists()
        path.write_bytes(data)
    assert check(folder).damaged == {}


@pytest.mark.parametrize("how", ["cut", "empty", "grown", "swapped"])
async def test_damaged_files_are_removed_and_fetched_again(folder: Path, how: str) -> None:
    paths = files(folder)
    for path in paths:
        data = path.read_bytes()
        changed = {"cut": data[:-1], "empty": b"", "grown": data + b"x", "swapped": data[::-1]}
        path.write_bytes(changed[how])
    report = check(folder)
    assert len(report.damaged) == len(paths)
    assert report.size == 0
    assert files(folder) == []
    await fill(folder)
    assert await is_served(folder)


def chunks_of(path: Path) -> tuple[int, int]:
    """Start (inclusive) and end (exclusive) of the chunks in an entry, by its name."""
    start, end, _ = path.name.split("-")
    return int(start), int(end)


@pytest.mark.parametrize("is_whole", [True, False], ids=["the xorb is whole", "a part of it"])
def test_entries_that_contradict_each_other(folder: Path, is_whole: bool) -> None:
    # A well-made entry, of another chunk: nothing but another entry can tell.
    (xorb, _) = FILE.runs[0]
    record = pack_chunk(b"another one" * 100, Scheme.NONE)
    key = EntryKey(xorb.xorb_hash, ChunkRange(3, 4), ByteRange(7, 7 + len(record)))
    indexer = Indexer(key)
    indexer.feed(memoryview(record))
    parent = next(folder.glob("??/*"))
    entries = sorted(parent.iterdir(), key=chunks_of)
    first = next(path for path in entries if chunks_of(path)[1] > 3)
    lie = parent / make_entry_name(key.chunks, b"liesliar")
    lie.write_bytes(record + indexer.make_index().pack())
    if not is_whole:
        entries.pop().unlink()
        # As if neither had been proven.
        entries = [path.rename(Standing.UNPROVEN.rename(str(path))) for path in entries]
        first = Path(Standing.UNPROVEN.rename(str(first)))
    report = check(folder)
    assert set(report.damaged.values()) == {"chunk 3 differs from that of another entry"}
    gone = [first, lie] if not is_whole else [lie]
    assert sorted(report.damaged) == sorted(str(path.relative_to(folder)) for path in gone)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in entries if path not in gone)
    assert report.num_proven == is_whole


async def test_what_goes_meanwhile_is_no_damage(folder: Path) -> None:
    first, *_ = files(folder)
    names = [path.name for path in files(folder)]

    def vanish(_: int) -> None:
        for path in files(folder):
            path.unlink()

    report = Checker(make_store(folder), removes=True, on_bytes=vanish).run()
    assert report.damaged == {}
    assert names
    assert not first.exists()


def test_no_more_is_read_of_an_entry_than_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name can promise an index of gigabytes."""
    folder = tmp_path / "ab" / ("ab" * 32)
    folder.mkdir(parents=True)
    entry = folder / f"0-999999999-{'0' * 16}.xc"
    entry.write_bytes(bytes(500))
    sizes: list[int] = []
    pread = os.pread

    def note(fd: int, size: int, at: int) -> bytes:
        sizes.append(size)
        return pread(fd, size, at)

    monkeypatch.setattr(os, "pread", note)
    store = make_store(tmp_path)
    assert list(Checker(store, removes=False).run().damaged.values()) == [
        "500 bytes, fewer than the size of its index"
    ]
    key = EntryKey(bytes.fromhex("ab" * 32), ChunkRange(0, 5), ByteRange(0, 100))
    prepare_folder(tmp_path)
    tracemalloc.start()
    assert store.find(key) == (None, 1)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert max(sizes) <= 500
    assert not entry.exists()
