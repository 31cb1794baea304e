"""The life of a reader as a body: started, read, closed, in whatever order its owner leaves."""

import asyncio

import pytest

from tests.fakes import FakeAccess
from tests.pipeline.packed_reading import Side
from tests.pipeline.reading import CONTENT, FILE, SIZE
from xetserve.errors import UpstreamDenied
from xetserve.pipeline.blocks import BlockReader
from xetserve.pipeline.tally import Tally
from xetserve.xet.reconstruction import FetchInfo


class Stage:
    """A reader, and what it has told when it was closed."""

    def __init__(self, kind: str) -> None:
        self.side = Side()
        self.told: list[tuple[Tally, bool]] = []
        self.kind = kind

    async def open(self) -> BlockReader:
        engine = self.side.engine
        if self.kind == "file":
            return engine.read(FakeAccess(), FILE.file_hash, size=SIZE, on_close=self._on_close)
        (grant,) = await self.side.grant()
        return engine.read_packed(grant, grant.ranges[0], on_close=self._on_close)

    def _on_close(self, tally: Tally, is_verified: bool) -> None:
        self.told.append((tally, is_verified))

    @property
    def content(self) -> bytes:
        xorb, chunks = FILE.runs[0]
        return CONTENT if self.kind == "file" else xorb.packed(xorb.byte_range(chunks))


@pytest.fixture(params=["file", "packed"])
def stage(request: pytest.FixtureRequest) -> Stage:
    return Stage(request.param)


async def drain(reader: BlockReader) -> bytes:
    content = bytearray()
    async for block in reader:
        content += b"".join(block)
    return bytes(content)


@pytest.mark.parametrize("starts", [True, False], ids=["started", "at once"])
async def test_a_reader_is_an_iterator_of_blocks(stage: Stage, starts: bool) -> None:
    reader = await stage.open()
    if starts:
        await reader.start()
    assert await drain(reader) == stage.content
    stage.side.assert_released()  # at the end, not only when it is closed
    assert await drain(reader) == b""
    assert stage.told == []
    for _ in range(2):
        await reader.aclose()
    assert stage.told == [(reader.tally, True)]
    assert reader.tally.upstream_bytes > 0


async def test_a_failure_before_the_first_block_is_raised_by_start(stage: Stage) -> None:
    def deny(number: int, info: FetchInfo, data: bytes) -> tuple[bytes, int | None]:
        raise UpstreamDenied("no", status=403)

    stage.side.cas.on_data = deny
    reader = await stage.open()
    with pytest.raises(UpstreamDenied):
        await reader.start()
    stage.side.assert_released()
    assert await drain(reader) == b""
    await reader.aclose()


@pytest.mark.parametrize("num_blocks", [0, 1, 3])
async def test_closed_after_the_start_it_gives_all_back(stage: Stage, num_blocks: int) -> None:
    reader = await stage.open()
    await reader.start()
    for _ in range(num_blocks):
        await anext(reader)
    assert stage.side.budget.num_readers == 1
    await reader.aclose()
    stage.side.assert_released()
    assert stage.told == [(reader.tally, False)]
    assert await drain(reader) == b""


async def test_one_that_was_never_started_asks_for_nothing(stage: Stage) -> None:
    reader = await stage.open()
    num_asked = len(stage.side.cas.asked)  # for the grant
    await reader.aclose()
    assert await drain(reader) == b""
    assert (len(stage.side.cas.asked), stage.side.cas.fetched) == (num_asked, [])
    stage.side.assert_released()


async def test_one_that_is_cancelled_while_it_starts_gives_all_back(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger of the file is slow to come from the disk."""
    has_begun = asyncio.Event()

    async def wait(*_: object) -> None:
        has_begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr("xetserve.pipeline.verify.verifier.recall", wait)
    reader = await stage.open()
    task = asyncio.create_task(reader.start())
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)  # cancelled tasks end in the next turn
    stage.side.assert_released()


async def test_a_block_is_good_until_the_next_one_is_asked_for(stage: Stage) -> None:
    reader = await stage.open()
    content = bytearray()
    async for block in reader:
        for _ in range(5):  # turns in which others might write over it
            await asyncio.sleep(0)
        content += b"".join(block)
    assert content == stage.content
