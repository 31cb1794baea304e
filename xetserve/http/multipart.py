"""multipart/byteranges (RFC 9110, 14.6): what stands around the parts, and how long the whole
is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from xetserve.http.ranges import Span, format_content_range


@dataclass(frozen=True, slots=True)
class ByteRanges:
    """The frame of one multipart answer.

    media_type: of the file, repeated with every part.
    size: of the file in bytes; None: it is not known.
    boundary: must not occur in the content; a random one of 24 characters or more does not.
    """

    spans: Sequence[Span]
    size: int | None
    media_type: str
    boundary: str

    @property
    def content_type(self) -> str:
        """The Content-Type of the answer."""
        return f"multipart/byteranges; boundary={self.boundary}"

    def make_part_head(self, number: int) -> bytes:
        """Return what precedes the bytes of a part."""
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
        """Return what follows the last part."""
        return f"\r\n--{self.boundary}--\r\n".encode("latin-1")

    @property
    def length(self) -> int:
        """Bytes in the whole body."""
        heads = sum(len(self.make_part_head(number)) for number in range(len(self.spans)))
        return heads + sum(span.size for span in self.spans) + len(self.make_tail())
