"""The frame of multipart answers, read back by Python's own MIME parser."""

import email.message
import email.parser
import email.policy

from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.http.multipart import ByteRanges
from xetserve.http.ranges import Span, parse_content_range

CONTENT = bytes(range(256)) * 2
BOUNDARY = "0123456789abcdef" * 2


def make_body(frame: ByteRanges) -> bytes:
    parts = [
        frame.make_part_head(number) + CONTENT[span.start : span.end]
        for number, span in enumerate(frame.spans)
    ]
    return b"".join(parts) + frame.make_tail()


def read_parts(content_type: str, body: bytes) -> list[tuple[email.message.Message, bytes]]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    # Content may hold line ends of every kind: the parser has to take it as it is.
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + body)
    assert not message.defects
    boundary = message.get_boundary()
    assert boundary is not None
    parts = body.split(f"--{boundary}".encode())
    assert parts[-1] == b"--\r\n"
    found = []
    for part in parts[1:-1]:
        fields, _, data = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        assert data.endswith(b"\r\n")
        found.append((email.message_from_bytes(fields), data[:-2]))
    return found


def test_two_parts() -> None:
    frame = ByteRanges([Span(5, 7), Span(0, 1)], 512, "text/plain", "xyz")
    assert make_body(frame) == (
        b"--xyz\r\nContent-Type: text/plain\r\nContent-Range: bytes 5-6/512\r\n\r\n\x05\x06"
        b"\r\n--xyz\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-0/512\r\n\r\n\x00"
        b"\r\n--xyz--\r\n"
    )
    assert frame.content_type == "multipart/byteranges; boundary=xyz"


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.integers(1, 12)).map(lambda p: Span(p[0], p[0] + p[1])),
        min_size=1,
        max_size=8,
    )
)
def test_every_part_says_what_it_is_and_the_length_is_exact(spans: list[Span]) -> None:
    frame = ByteRanges(spans, 512, "application/octet-stream", BOUNDARY)
    body = make_body(frame)
    assert len(body) == frame.length
    parts = read_parts(frame.content_type, body)
    assert len(parts) == len(spans)
    for (fields, data), span in zip(parts, spans, strict=True):
        assert fields["Content-Type"] == "application/octet-stream"
        assert parse_content_range(fields["Content-Range"]) == (span, 512)
        assert data == CONTENT[span.start : span.end]
