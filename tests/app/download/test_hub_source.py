"""A plain file whose answers break off: what comes next is requested again while patience lasts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest

from tests.fakes import FakeResponse
from xetserve.app.download import hub_source as hub_source_module
from xetserve.app.download.hub_source import HubSource
from xetserve.errors import BrokenStream, UpstreamDenied, UpstreamError, UpstreamRefused
from xetserve.http.messages import Headers
from xetserve.upstream.hub.client import FileEntry, HubClient
from xetserve.upstream.retry import RetryPolicy

CONTENT = bytes(range(256)) * 4000
SIZE = len(CONTENT)


class Answer(FakeResponse):
    """The bytes from `start` on, which break off at cut_at, a position in the answer."""

    def __init__(
        self, status: int, start: int, end: int = SIZE, *, cut_at: int | None = None, tag: str = ""
    ) -> None:
        super().__init__(CONTENT[start:end], 100_000, cut_at)
        self.status = status
        self.content_length = end - start
        fields = [("ETag", tag)] if tag else []
        if status == 206:
            fields.append(("Content-Range", f"bytes {start}-{end - 1}/{SIZE}"))
        self.headers = Headers(fields)

    async def receive_into(self, view: memoryview, timeout: float | None) -> int:
        try:
            return await super().receive_into(view, timeout)
        except UpstreamError:
            raise BrokenStream("reset") from None


class Hub:
    """Gives answers one after the other, the last again and again; counts what is open."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self.asked: list[tuple[str | None, bool]] = []
        self.num_open = 0
        self._answers = list(answers)

    @asynccontextmanager
    async def open_plain(
        self,
        entry: FileEntry,
        token: str | None,
        byte_range: str | None = None,
        *,
        patient: bool = True,
    ) -> AsyncIterator[Answer]:
        self.asked.append((byte_range, patient))
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        self.num_open += 1
        try:
            yield answer
        finally:
            self.num_open -= 1


def make_entry(size: int | None) -> FileEntry:
    class Entry:
        pass

    entry = Entry()
    entry.size = size  # type: ignore[attr-defined]
    return cast(FileEntry, entry)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    policy: Callable[..., RetryPolicy] = lambda **limits: RetryPolicy(0.001, 0.002, **limits)
    monkeypatch.setattr(hub_source_module, "RetryPolicy", policy)


async def read(
    hub: Hub, byte_range: str | None, start: int, end: int | None, *, patience: float = 60.0
) -> bytes:
    got, buffer = bytearray(), memoryview(bytearray(70_000))
    entry = make_entry(SIZE if end is not None else None)
    async with HubSource(cast(HubClient, hub), entry, "token", start, end) as source:
        await source.open(byte_range)
        source.patience = patience
        while count := await source.receive_into(buffer, 1.0):
            got += buffer[:count]
    assert hub.num_open == 0
    return bytes(got)


async def test_a_whole_file_goes_on_at_the_missing_byte(caplog: pytest.LogCaptureFixture) -> None:
    gone = UpstreamError("cannot connect")
    hub = Hub(Answer(200, 0, cut_at=300_000), gone, gone, gone, Answer(206, 300_000))
    assert await read(hub, None, 0, SIZE) == CONTENT
    rest = (f"bytes=300000-{SIZE - 1}", False)
    assert hub.asked == [(None, True), *[rest] * 4]
    # However often it was tried, it is told twice.
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [("trying again" in line, "goes on" in line) for line in told] == [
        (True, False),
        (False, True),
    ]


async def test_a_single_failure_is_not_worth_a_line(caplog: pytest.LogCaptureFixture) -> None:
    hub = Hub(Answer(200, 0, cut_at=300_000), Answer(206, 300_000))
    assert await read(hub, None, 0, SIZE) == CONTENT
    assert caplog.records == []


async def test_a_part_goes_on_and_breaks_off_again() -> None:
    hub = Hub(
        Answer(206, 5, 900_000, cut_at=95),
        Answer(206, 100, 900_000, cut_at=100_000),
        Answer(206, 100_100, 900_000),
    )
    assert await read(hub, "bytes=5-899999", 5, 900_000) == CONTENT[5:900_000]
    assert hub.asked[1:] == [("bytes=100-899999", False), ("bytes=100100-899999", False)]


async def test_a_size_that_nobody_knows() -> None:
    hub = Hub(Answer(200, 0, cut_at=300_000), Answer(206, 300_000))
    assert await read(hub, None, 0, None) == CONTENT
    assert hub.asked[1:] == [("bytes=300000-", False)]


async def test_a_hub_that_sends_the_whole_again() -> None:
    hub = Hub(Answer(200, 0, cut_at=300_001), Answer(200, 0))
    assert await read(hub, None, 0, SIZE) == CONTENT


async def test_a_file_that_has_changed_is_not_completed() -> None:
    hub = Hub(Answer(200, 0, cut_at=5, tag='"a"'), Answer(206, 5, tag='"b"'))
    with pytest.raises(UpstreamRefused, match="has changed"):
        await read(hub, None, 0, SIZE)


@pytest.mark.parametrize(
    "answer", [Answer(206, 6), Answer(206, 5, 100), Answer(416, 0)], ids=["later", "less", "none"]
)
async def test_another_part_than_requested_is_refused(answer: Answer) -> None:
    with pytest.raises(UpstreamRefused, match="did not send the rest"):
        await read(Hub(Answer(200, 0, cut_at=5), answer), None, 0, SIZE)


async def test_what_waiting_does_not_help_ends_it() -> None:
    hub = Hub(Answer(200, 0, cut_at=5), UpstreamDenied("no", status=403))
    with pytest.raises(UpstreamDenied):
        await read(hub, None, 0, SIZE)


@pytest.mark.parametrize("patience", [0.0, 0.01])
async def test_patience_ends(patience: float) -> None:
    hub = Hub(Answer(200, 0, cut_at=5), UpstreamError("cannot connect"))
    with pytest.raises((UpstreamError, BrokenStream)):
        await read(hub, None, 0, SIZE, patience=patience)


async def test_a_later_part_waits_for_its_first_answer() -> None:
    hub = Hub(UpstreamError("cannot connect"), UpstreamError("again"), Answer(206, 7, 9))
    async with HubSource(cast(HubClient, hub), make_entry(SIZE), None, 7, 9) as source:
        source.patience = 60.0
        assert (await source.open("bytes=7-8")).status == 206
    assert [patient for _, patient in hub.asked] == [False] * 3
