"""Reading a file through the pipeline, from a CAS in memory."""

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from contextlib import aclosing

import pytest

from tests.fakes import FakeAccess, FakeCas, FakeFile, FakeXorb
from tests.pipeline.reading import (
    CONTENT,
    FILE,
    POLICY,
    SIZE,
    assert_released,
    damage_twice,
    fragmented_file,
    make_chunks,
    make_engine,
    make_reader,
    read_all,
    simple_file,
)
from tests.waiting import PATIENCE
from xetserve.errors import IntegrityError, UpstreamError, UrlExpired
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.fetch import fetch as fetch_module
from xetserve.pipeline.fetch.chunk_waiters import WOKEN_AT_ONCE
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.verify.verifier import Verifier
from xetserve.upstream.cas.source import Access
from xetserve.xet.reconstruction import ByteRange, ChunkRange, FetchInfo, Reconstruction, Term


@pytest.mark.parametrize("trims", [True, False], ids=["trimmed", "untrimmed"])
@pytest.mark.parametrize("knows_size", [True, False], ids=["size known", "size unknown"])
@pytest.mark.parametrize("piece", [1 << 20, 1000], ids=["large reads", "small reads"])
@pytest.mark.parametrize("limit", [1 << 27, 0], ids=["budget", "no budget"])
@pytest.mark.parametrize("make", [simple_file, fragmented_file])
async def test_a_whole_file_comes_out_verified(
    make: Callable[[], FakeFile],
    limit: int,
    piece: int,
    knows_size: bool,
    trims: bool,
) -> None:
    file = make()
    cas = FakeCas(file, piece=piece, trims=trims)
    budget = ByteBudget(limit)
    reader = make_reader(cas, budget, size=len(file.content) if knows_size else None)
    assert hashlib.sha256(await read_all(reader)).digest() == hashlib.sha256(file.content).digest()
    assert reader.is_verified
    assert_released(cas, budget)


@pytest.mark.parametrize("trims", [True, False], ids=["trimmed", "untrimmed"])
async def test_any_range_gives_exactly_its_bytes(trims: bool) -> None:
    file = fragmented_file()
    content = file.content
    source = random.Random(3)
    for _ in range(25):
        start = source.randrange(len(content))
        end = source.randrange(start + 1, len(content) + 1)
        cas, budget = FakeCas(file, trims=trims), ByteBudget(1 << 27)
        reader = make_reader(cas, budget, start=start, end=end, size=len(content))
        assert await read_all(reader) == content[start:end]
        assert_released(cas, budget)


async def test_a_damaged_chunk_never_looks_complete() -> None:
    file = simple_file()
    wrong = bytes(32)
    budget = ByteBudget(1 << 27)
    cas = FakeCas(file)
    reader = make_reader(cas, budget, size=len(file.content), file_hash=wrong)
    got = bytearray()
    with pytest.raises(IntegrityError, match="the chunks make file"):
        await read_all(reader, got)
    assert len(got) < len(file.content)
    assert_released(cas, budget)


async def test_an_expired_url_is_asked_for_again_once_for_all_steps() -> None:
    file = fragmented_file()

    def expire(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        if "/1/" in info.url:
            raise UrlExpired("403")
        return data, None

    cas, budget = FakeCas(file, on_data=expire), ByteBudget(1 << 27)
    assert await read_all(make_reader(cas, budget, size=len(file.content))) == file.content
    assert cas.asked.count(cas.asked[0]) == 2
    assert_released(cas, budget)


async def test_a_url_that_stays_forbidden_fails() -> None:
    def forbid(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        raise UrlExpired("403")

    cas, budget = FakeCas(simple_file(), on_data=forbid), ByteBudget(1 << 27)
    with pytest.raises(UrlExpired):
        await read_all(make_reader(cas, budget))
    assert_released(cas, budget)


async def test_a_body_that_breaks_off_goes_on_where_it_was() -> None:
    file = simple_file(200)

    def cut(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        return data, (number * len(data) // 5 if number % 5 else None)

    cas, budget = FakeCas(file, piece=5000, on_data=cut), ByteBudget(1 << 27)
    assert await read_all(make_reader(cas, budget, size=len(file.content))) == file.content
    assert_released(cas, budget)


@pytest.mark.parametrize("damage", ["cut", "damaged"])
async def test_a_large_range_goes_on_at_the_chunk_that_failed(
    damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch_module, "MIN_RESUMED", 1)
    file = simple_file(200)

    def fail(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        if len(cas.fetched) > 1:
            return data, None
        half = len(data) // 2
        return data[:half] + b"\xff" * (len(data) - half), half if damage == "cut" else None

    cas, budget = FakeCas(file, piece=5000, on_data=fail), ByteBudget(1 << 27)
    assert await read_all(make_reader(cas, budget, size=len(file.content))) == file.content
    first, second = cas.fetched[:2]
    assert first.chunks.start < second.chunks.start < second.chunks.end == first.chunks.end
    assert second.byte_range.size < 0.6 * first.byte_range.size
    assert_released(cas, budget)


async def test_an_undecodable_chunk_is_fetched_again() -> None:
    file = simple_file()
    cas, budget = FakeCas(file, on_data=damage_twice(file)), ByteBudget(1 << 27)
    assert await read_all(make_reader(cas, budget, size=len(file.content))) == file.content
    assert_released(cas, budget)


@pytest.mark.parametrize("delta", [-1, 1, -70000, 70000])
async def test_a_wrong_term_length_is_an_integrity_error(delta: int) -> None:
    file = simple_file()

    def lie(answer: Reconstruction) -> Reconstruction:
        term = answer.terms[0]
        return answer._replace(terms=(term._replace(decoded_size=term.decoded_size + delta),))

    cas, budget = FakeCas(file, on_plan=lie), ByteBudget(1 << 27)
    with pytest.raises((IntegrityError, UpstreamError)):
        await read_all(make_reader(cas, budget, size=len(file.content)))
    assert_released(cas, budget)


@pytest.mark.parametrize("piece", [1 << 20, 1000], ids=["large reads", "small reads"])
async def test_a_part_is_judged_before_its_last_bytes_leave(
    piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though chunks behind them, which came with the same answer, are still to arrive."""

    async def refuse(verifier: Verifier, size: int | None) -> None:
        raise IntegrityError("judged")

    monkeypatch.setattr(Verifier, "finish", refuse)
    file = simple_file()
    size = len(file.content)
    cas, budget = FakeCas(file, piece=piece, trims=False), ByteBudget(1 << 27)
    got = bytearray()
    with pytest.raises(IntegrityError, match="judged"):
        await read_all(make_reader(cas, budget, end=size // 2, size=size), got)
    assert len(got) < size // 2
    assert_released(cas, budget)


async def test_leaving_in_the_middle_releases_everything() -> None:
    for num_blocks in range(6):
        file = fragmented_file()
        cas, budget = FakeCas(file, piece=3000), ByteBudget(1 << 27)
        reader = make_reader(cas, budget, size=len(file.content))
        for _ in range(num_blocks):
            await anext(reader)
        await reader.aclose()
        assert_released(cas, budget)


async def test_a_reader_that_is_not_asked_fetches_nothing_more() -> None:
    file = simple_file(400)
    cas, budget = FakeCas(file, piece=5000), ByteBudget(1 << 27)
    async with aclosing(make_reader(cas, budget, size=len(file.content))) as reader:
        await anext(reader)
        for _ in range(10_000):  # turns of the loop, not time
            await asyncio.sleep(0)
        fetched = sum(info.byte_range.size for info in cas.fetched)
        assert fetched < 4 * 1024 * 1024
        assert budget.held <= 4 * 1024 * 1024
    assert_released(cas, budget)


async def test_a_read_that_is_cancelled_at_any_turn_leaves_nothing_behind() -> None:
    file = fragmented_file()
    for num_turns in range(0, 400, 7):
        cas, budget = FakeCas(file, piece=100_000), ByteBudget(1 << 27)
        task = asyncio.ensure_future(read_all(make_reader(cas, budget, size=len(file.content))))
        for _ in range(num_turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait((task,))
        for _ in range(3):  # cancelled tasks end in the next turns
            await asyncio.sleep(0)
        assert_released(cas, budget)


class HugeCas(FakeCas):
    """A file of 2**40 bytes: one xorb of zeros over and over."""

    CHUNK = 131072
    CHUNKS = 512

    def _plan(self, asked: ByteRange) -> Reconstruction:
        xorb = self.file.runs[0][0]
        size = self.CHUNK * self.CHUNKS
        terms = []
        offset = asked.start % size
        position = asked.start - offset
        while position < asked.end:
            terms.append((xorb.xorb_hash, ChunkRange(0, self.CHUNKS), size))
            position += size
        info = FetchInfo(
            ChunkRange(0, self.CHUNKS),
            xorb.byte_range(ChunkRange(0, self.CHUNKS)),
            f"http://data.test/0/{xorb.xorb_hash.hex()[:8]}/0",
        )
        return Reconstruction(offset, tuple(Term(*t) for t in terms), {xorb.xorb_hash: (info,)})


async def test_positions_beyond_4_gib_are_right() -> None:
    chunks = [bytes([index % 251]) * HugeCas.CHUNK for index in range(HugeCas.CHUNKS)]
    file = FakeFile([(FakeXorb.make(chunks), ChunkRange(0, HugeCas.CHUNKS))])
    cas, budget = HugeCas(file), ByteBudget(1 << 27)
    content = file.content
    start = 5 * 2**30 + 12345
    reader = make_reader(cas, budget, start=start, end=start + 100_000_000, size=2**40)
    expected = hashlib.sha256()
    at = start
    while at < start + 100_000_000:
        inside = at % len(content)
        part = content[inside : inside + start + 100_000_000 - at]
        expected.update(part)
        at += len(part)
    assert hashlib.sha256(await read_all(reader)).digest() == expected.digest()
    assert_released(cas, budget)


def test_chunk_generator_makes_what_the_tests_rely_on() -> None:
    chunks: Sequence[bytes] = make_chunks(9)
    assert len(chunks) == 9
    assert all(chunks)


async def test_those_who_wait_for_the_same_chunk_go_on_a_few_at_a_time() -> None:
    """All of a thousand in one turn of the loop would hold up everybody else."""
    cas, budget = FakeCas(simple_file(1)), ByteBudget(1 << 27)
    engine = make_engine(cas, budget)
    num_done = 0

    async def read() -> None:
        nonlocal num_done
        size = len(cas.file.content)
        reader = engine.read(FakeAccess(), cas.file.file_hash, size=size)
        async with aclosing(reader):
            await anext(reader)
            num_done += 1
            async for _ in reader:
                pass

    tasks = [asyncio.ensure_future(read()) for _ in range(100)]
    counts = []
    while not all(task.done() for task in tasks):
        before = num_done
        await asyncio.sleep(0)
        counts.append(num_done - before)
    assert sum(counts) == 100
    assert len(cas.fetched) == 1
    assert max(counts) <= WOKEN_AT_ONCE
    await asyncio.gather(*tasks)
    assert_released(cas, budget)


class Unreachable(FakeCas):
    """A CAS that fails the first questions."""

    num_failures = 2

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        if self.num_failures:
            self.num_failures -= 1
            raise UpstreamError("the CAS does not answer")
        return await super().fetch_reconstruction(access, file_hash, byte_range)


@pytest.mark.parametrize("has_begun", [True, False])
async def test_only_a_later_part_of_a_body_waits_before_its_first_block(
    has_begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    cas, budget = Unreachable(FILE), ByteBudget(1 << 27)
    limits = ReadLimits(stall_timeout=PATIENCE, gap_timeout=PATIENCE, outage_patience=PATIENCE)
    engine = Engine(cas, budget, policy=POLICY, limits=limits)
    async with aclosing(engine.read(FakeAccess(), FILE.file_hash, start=5, size=SIZE)) as reader:
        if not has_begun:
            with pytest.raises(UpstreamError, match="does not answer"):
                await reader.start()
            assert caplog.messages == []
            return
        await reader.start(has_begun=True)
        assert b"".join([b"".join(block) async for block in reader]) == CONTENT[5:]
    begin, end = caplog.messages
    assert "trying again for up to" in begin
    assert "goes on after" in end
    assert_released(cas, budget)
