"""A stored file whose disk gives up: the Hub goes on exactly there, or the body is cut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import cast

import pytest

from tests.fakes import FakeResponse
from xetserve.app.download.blob_reader import BlobReader
from xetserve.errors import UpstreamError, UpstreamOffline
from xetserve.http.messages import Headers, Record
from xetserve.pipeline.cache.blobs import LostError, StoredBlob
from xetserve.upstream.hub.client import FileEntry, HubClient

CONTENT = bytes(range(256)) * 4000
END = 900_000


class Stored:
    """A stored file that can be read up to a position."""

    def __init__(self, start: int, lost_at: int) -> None:
        self.position = start
        self.num_closed = 0
        self._lost_at = lost_at

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.num_closed += 1

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        if self.position >= self._lost_at:
            raise LostError("damaged")
        count = min(len(view), self._lost_at - self.position, END - self.position)
        view[:count] = CONTENT[self.position : self.position + count]
        self.position += count
        return count


class Answer(FakeResponse):
    def __init__(self, status: int, fields: list[tuple[str, str]], data: bytes) -> None:
        super().__init__(data, 100_000)
        self.status = status
        self.headers = Headers(fields)


class Hub:
    """Gives one answer, and counts what is open."""

    def __init__(self, answer: Answer | UpstreamError) -> None:
        self.asked: list[str | None] = []
        self.num_open = 0
        self._answer = answer

    @asynccontextmanager
    async def open_plain(
        self,
        entry: FileEntry,
        token: str | None,
        byte_range: str | None = None,
        *,
        patient: bool = True,
    ) -> AsyncIterator[Answer]:
        self.asked.append(byte_range)
        if isinstance(self._answer, UpstreamError):
            raise self._answer
        self.num_open += 1
        try:
            yield self._answer
        finally:
            self.num_open -= 1


async def read(hub: Hub, start: int, lost_at: int, record: Record | None = None) -> bytes:
    stored = Stored(start, lost_at)
    got = bytearray()
    buffer = memoryview(bytearray(70_000))
    reader = BlobReader(
        cast(HubClient, hub),
        cast(FileEntry, None),
        "token",
        cast(StoredBlob, stored),
        END,
        record or Record(),
    )
    try:
        async with reader:
            while count := await reader.receive_into(buffer, 1.0):
                got += buffer[:count]
    finally:
        assert stored.num_closed == 1
        assert hub.num_open == 0
    return bytes(got)


def part(start: int) -> Answer:
    value = f"bytes {start}-{END - 1}/{len(CONTENT)}"
    return Answer(206, [("Content-Range", value)], CONTENT[start:END])


async def test_nobody_is_asked_while_the_disk_gives_it() -> None:
    hub = Hub(part(0))
    assert await read(hub, 5, END + 1) == CONTENT[5:END]
    assert hub.asked == []


@pytest.mark.parametrize("lost_at", [5, 6, 500_000, END - 1])
async def test_the_hub_goes_on(lost_at: int) -> None:
    hub = Hub(part(lost_at))
    record = Record()
    record.cache_bytes = END - 5
    assert await read(hub, 5, lost_at, record) == CONTENT[5:END]
    assert hub.asked == [f"bytes={lost_at}-{END - 1}"]
    assert record.cache_bytes == lost_at - 5


async def test_a_hub_that_gives_all_of_it() -> None:
    hub = Hub(Answer(200, [], CONTENT[:END]))
    assert await read(hub, 5, 600_001) == CONTENT[5:END]


@pytest.mark.parametrize(
    "answer",
    [
        part(99),
        Answer(206, [], CONTENT[100:END]),
        Answer(206, [("Content-Range", "bytes 100-200/1024000")], CONTENT[100:201]),
        Answer(200, [("Content-Encoding", "gzip")], CONTENT[:END]),
        Answer(416, [], b""),
        Answer(200, [], CONTENT[:50]),
        UpstreamOffline("offline"),
    ],
    ids=["elsewhere", "no range", "less", "coded", "none", "short", "offline"],
)
async def test_a_hub_that_gives_something_else(answer: Answer | UpstreamError) -> None:
    with pytest.raises(UpstreamError):
        await read(Hub(answer), 5, 100)
