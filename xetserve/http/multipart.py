"""multipart/byteranges (RFC 9110, 14.6): the framing of the parts, and the length of the body."""

from collections.abc import Sequence
from dataclasses import dataclass

from xetserve.http.ranges import Span, format_content_range


@dataclass(frozen=True, slots=True)
class ByteRanges:
    """The framing of one multipart response.

    media_type: of the file, repeated in every part.
    size: of the file in bytes; None: unknown.
    boundary: must not occur in the content; use at least 24 random characters.
    """

    spans: Sequence[Span]
    size: int | None
    media_type: str
    boundary: str

    @property
    def content_type(self) -> str:
        """Return the Content-Type of the response."""
        return f"multipart/byteranges; boundary={self.boundary}"

    def make_part_head(self, number: int) -> bytes:
        """Return the delimiter and fields before the bytes of part number, counted from 0."""
        lines = (
            "" if number else None,
            f"--{self.boundary}",
            f"Content-Type: {self.media_type}",
            f"Content-Range: {format_content_range(self.spans[number], self.size)}",
            "",
            "",
        )
        return "\r\n".join(line for line in lines if line is not None).encode("latin-1")

    def make_tail(self) -> bytes:
        """Return the closing delimiter behind the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode("latin-1")

    @property
    def length(self) -> int:
        """Return the length of the whole body in bytes."""
        heads = sum(len(self.make_part_head(number)) for number in range(len(self.spans)))
        return heads + sum(span.size for span in self.spans) + len(self.make_tail())
