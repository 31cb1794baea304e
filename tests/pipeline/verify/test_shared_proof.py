"""Parts of a file that several workers give out prove each other, and what is wrong is cut by one
of them.

A worker here is what it has in memory; they share what forked ones share.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

from tests.fakes import FakeCas
from tests.pipeline.packed_reading import Damage, Side
from tests.pipeline.reading import FILE, SIZE, make_engine, open_reader, read_all
from xetserve.errors import IntegrityError
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.reader import FileReader
from xetserve.pipeline.verify.worker_bus import PLACE_SIZE, WorkerBus
from xetserve.xet.grants import Grant

CONTENT = FILE.content


class Worker(Side):
    """One of several."""

    def __init__(self, places: Sequence[memoryview], number: int, cas: FakeCas) -> None:
        super().__init__()
        self.cas = cas
        self.engine = make_engine(cas, self.budget, worker_bus=WorkerBus(places, number))

    def open_plain(self, start: int = 0, end: int | None = None) -> FileReader:
        return open_reader(self.engine, FILE, start, end)

    async def read_plain(self, start: int = 0, end: int | None = None) -> FileReader:
        reader = self.open_plain(start, end)
        assert await read_all(reader) == CONTENT[start : SIZE if end is None else end]
        return reader

    def was_cut(self) -> bool:
        return self.engine.ledgers.was_cut(FILE.file_hash, time.monotonic())

    @property
    def is_proven(self) -> bool:
        return self.engine.ledgers.get(FILE.file_hash).is_proven


class Workers:
    """All of a server, in front of one CAS."""

    def __init__(self, count: int = 3) -> None:
        self.places = [memoryview(bytearray(PLACE_SIZE)) for _ in range(count)]
        self.cas = FakeCas(FILE)
        self.all = [self.start(number) for number in range(count)]

    def start(self, number: int) -> Worker:
        return Worker(self.places, number, self.cas)

    async def parts(self, count: int) -> list[Grant]:
        """Grants for parts of the file that are about the same size."""
        cuts = [SIZE * number // count for number in range(count + 1)]
        return [
            grant for start, end in pairwise(cuts) for grant in await self.all[0].grant(start, end)
        ]

    def assert_released(self) -> None:
        for worker in self.all:
            worker.assert_released()


@pytest.fixture
def workers() -> Workers:
    return Workers()


async def test_parts_from_several_workers_prove_the_file(workers: Workers) -> None:
    one, two, three = workers.all
    parts = await workers.parts(3)
    assert not (await one.read(parts[0])).is_verified
    assert not (await two.read(parts[2])).is_verified
    assert (await three.read(parts[1])).is_verified
    # It is proven for all, and checked chunk by chunk.
    workers.cas.on_data = Damage(3)
    for worker in workers.all:
        with pytest.raises(IntegrityError, match="chunk 3 is not the file's"):
            await read_all(worker.open(parts[0]))
        assert worker.is_proven
        assert not worker.was_cut()
    workers.cas.on_data = None
    for worker in workers.all:
        assert (await worker.read(parts[0])).is_verified
        assert (await worker.read_plain(5, 9)).is_verified
    workers.assert_released()


@pytest.mark.parametrize("number", [0, 1])
async def test_the_last_of_the_parts_is_cut_wherever_it_is(workers: Workers, number: int) -> None:
    parts = await workers.parts(3)
    workers.cas.on_data = Damage(3)
    await read_all(workers.all[0].open(parts[0]))  # wrong, but nobody can know
    await read_all(workers.all[1].open(parts[1]))
    came = bytearray()
    with pytest.raises(IntegrityError, match="all parts together"):
        await read_all(workers.all[number].open(parts[2]), came)
    assert len(came) < parts[2].ranges[0].byte_range.size
    assert all(worker.was_cut() for worker in workers.all)
    # The one that found it has all that may be wrong forgotten, whoever has fetched it.
    ((_, chunks),) = workers.cas.forgotten
    assert all(chunks.contains(part.ranges[0].chunks) for part in parts)
    workers.cas.on_data = None
    for worker, part in zip(workers.all, parts, strict=True):
        reader = await worker.read(part)
    assert reader.is_verified
    workers.assert_released()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("is_plain", [False, True], ids=["packed", "plain"])
async def test_parts_at_the_same_time(workers: Workers, seed: int, is_plain: bool) -> None:
    """In whatever order they come: one of them fails, of a wrong file."""
    source = random.Random(seed)
    workers.cas.on_data = Damage(source.randrange(0, 60, 3))  # of the raw ones
    parts = await workers.parts(8)
    cuts = sorted(source.sample(range(1, SIZE), 7))

    async def read(number: int) -> bytes:
        worker = source.choice(workers.all)
        if is_plain:
            reader = worker.open_plain([0, *cuts][number], [*cuts, SIZE][number])
            return await read_all(reader)
        return await read_all(worker.open(parts[number]))

    order = source.sample(range(8), 8)
    done = await asyncio.gather(*map(read, order), return_exceptions=True)
    failed = [answer for answer in done if isinstance(answer, BaseException)]
    assert failed
    assert all(isinstance(exc, IntegrityError) for exc in failed)
    assert all(worker.was_cut() for worker in workers.all) or is_plain
    workers.cas.on_data = None
    for worker in workers.all:
        assert (await worker.read_plain()).is_verified
        assert (await worker.read(parts[4])).is_verified
    workers.assert_released()


@pytest.mark.parametrize("seed", range(10))
async def test_a_good_file_comes_whole_whoever_gives_which_part(
    workers: Workers, seed: int
) -> None:
    """Whole reads, parts and packed ranges of it at the same time are in nobody's way."""
    source = random.Random(seed)
    parts = await workers.parts(8)

    async def read(part: Grant | None) -> bool:
        for _ in range(source.randrange(5)):
            await asyncio.sleep(0)
        worker = source.choice(workers.all)
        if part is not None:
            return (await worker.read(part)).is_verified
        start = source.choice([0, source.randrange(SIZE)])
        return (await worker.read_plain(start)).is_verified

    order = [*parts, *parts, None, None, None]
    source.shuffle(order)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(part)) for part in order]
    assert any(task.result() for task in tasks)
    for worker in workers.all:
        assert (await worker.read(parts[0])).is_verified
        assert not worker.was_cut()
        assert worker.is_proven
    assert workers.cas.forgotten == []
    workers.assert_released()


async def test_a_whole_read_that_fails_has_all_forget(workers: Workers) -> None:
    one, two, three = workers.all
    workers.cas.on_data = Damage(3)
    await read_all(two.open((await workers.parts(3))[0]))  # they have the wrong chunk, too
    with pytest.raises(IntegrityError):
        await read_all(one.open_plain())
    workers.cas.on_data = None
    began = time.monotonic()
    for worker, part in zip((two, three, two), await workers.parts(3), strict=True):
        reader = await worker.read(part)
    assert reader.is_verified
    assert not one.engine.ledgers.was_cut_since(FILE.file_hash, began)


async def test_what_has_left_counts_though_the_rest_never_came(workers: Workers) -> None:
    """A client goes on elsewhere while the first worker has not heard yet that it has left."""
    one, two, _ = workers.all
    workers.cas.on_data = Damage(0)
    reader = one.open_plain(0, SIZE - 1)
    first = b"".join(await anext(reader))
    with pytest.raises(IntegrityError):
        await read_all(two.open_plain(len(first)))
    assert two.was_cut()
    await reader.aclose()
    workers.assert_released()


async def test_a_worker_that_died_has_told_what_it_gave_out(workers: Workers) -> None:
    parts = await workers.parts(2)
    workers.cas.on_data = Damage(3)
    await read_all(workers.all[0].open(parts[0]))
    workers.all[0] = workers.start(0)
    with pytest.raises(IntegrityError, match="all parts together"):
        await read_all(workers.all[0].open(parts[1]))


async def test_a_part_that_has_begun_is_held_against_what_others_have_read(
    workers: Workers,
) -> None:
    one, two, three = workers.all
    workers.cas.on_data = Damage(0)
    reader, came = one.open_plain(0, SIZE - 1), bytearray()
    came += b"".join(await anext(reader))
    workers.cas.on_data = None
    await two.read_plain()
    with pytest.raises(IntegrityError, match="two different chunks"):
        await read_all(reader, came)
    assert len(came) < SIZE - 1
    assert (await three.read_plain()).is_verified
    assert not three.engine.ledgers.was_cut_since(FILE.file_hash, time.monotonic())
    for worker in workers.all:
        assert (await worker.read_plain(5, 9)).is_verified
    workers.assert_released()


async def test_who_alone_does_not_know_a_file_is_told(workers: Workers) -> None:
    """As when its ledger had to go for others."""
    parts = await workers.parts(2)
    await workers.all[0].read_plain()
    other = workers.all[1]
    assert (await other.read(parts[0])).is_verified
    other.engine.ledgers._begun.pop(FILE.file_hash)
    other.engine.ledgers._proven.pop(FILE.file_hash)
    workers.cas.on_data = Damage(3)
    with pytest.raises(IntegrityError, match="chunk 3 is not the file's"):
        await read_all(other.open(parts[0]))


async def test_nothing_is_told_of_a_proven_file(workers: Workers) -> None:
    await workers.all[0].read_plain()
    for worker in workers.all:
        await worker.read_plain(5, 10)
    before = [bytes(place) for place in workers.places]
    for worker in workers.all:
        for part in await workers.parts(4):
            await worker.read(part)
        await worker.read_plain()
    assert [bytes(place) for place in workers.places] == before


async def test_one_worker_has_nobody_to_tell() -> None:
    engine = make_engine(FakeCas(FILE), ByteBudget(1 << 27))
    assert not engine.ledgers.is_shared
