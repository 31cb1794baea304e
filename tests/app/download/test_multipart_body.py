"""Several parts of a file in one body: each is opened in its turn, and closed."""

import pytest

from tests.bodies import CountedBody
from tests.multiparts import read_parts
from xetserve.app.download.content import Opened
from xetserve.app.download.multipart_body import MultipartBody
from xetserve.errors import IntegrityError, UpstreamRefused
from xetserve.http.multipart import ByteRanges
from xetserve.http.ranges import Span

FILE = bytes(range(100))
SPANS = [Span(0, 10), Span(20, 25), Span(99, 100)]
FRAME = ByteRanges(SPANS, len(FILE), "application/octet-stream", "x" * 24)


class Parts:
    """A content in memory that has its parts counted.

    extra: bytes that a part has beyond what it should have.
    gives_whole: the whole comes in place of a part.
    """

    def __init__(self, *, extra: int = 0, gives_whole: bool = False) -> None:
        self._extra = extra
        self._gives_whole = gives_whole
        self.bodies: list[CountedBody] = []

    async def open(self, span: Span | None, *, has_begun: bool = False) -> Opened:
        assert span is not None
        assert has_begun is bool(self.bodies)
        data = FILE[span.start : span.end + self._extra]
        self.bodies.append(CountedBody(data[:4], data[4:]))
        return Opened(self.bodies[-1], None if self._gives_whole else span, len(data))

    async def start(self) -> MultipartBody:
        return MultipartBody(FRAME, self, (await self.open(SPANS[0])).body)


async def test_all_parts_in_order() -> None:
    parts = Parts()
    body = await parts.start()
    data = b"".join([b"".join(block) async for block in body])
    assert len(data) == FRAME.length
    assert [part for _, part in read_parts(FRAME.content_type, data)] == [
        FILE[span.start : span.end] for span in SPANS
    ]
    assert [each.num_closed for each in parts.bodies] == [1, 1, 1]


@pytest.mark.parametrize("num_taken", range(8))
async def test_closing_closes_the_part_that_is_open(num_taken: int) -> None:
    parts = Parts()
    body = await parts.start()
    for _ in range(num_taken):
        await anext(body, None)
    await body.aclose()
    assert all(each.num_closed for each in parts.bodies)
    assert [block async for block in body] == []


@pytest.mark.parametrize(("extra", "message"), [(-1, "1 bytes short"), (1, "longer")])
async def test_a_part_of_another_size_breaks_the_body(extra: int, message: str) -> None:
    parts = Parts(extra=extra)
    body = await parts.start()
    with pytest.raises(IntegrityError, match=message):
        [block async for block in body]
    await body.aclose()
    assert all(each.num_closed for each in parts.bodies)


async def test_the_whole_in_place_of_a_part_breaks_the_body() -> None:
    parts = Parts(gives_whole=True)
    body = await parts.start()
    with pytest.raises(UpstreamRefused):
        [block async for block in body]
    await body.aclose()
    assert [each.num_closed for each in parts.bodies] == [1, 1]
