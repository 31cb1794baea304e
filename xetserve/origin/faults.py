"""Faults on request, for tests: failures of a real Hub, CAS or CDN.

A test posts a JSON object with the fields of Faults; faults that it does not name are off.
"""

import asyncio
import dataclasses
import math
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError, XetserveError
from xetserve.http.messages import Response, error_response
from xetserve.xet.compression import Scheme, encode_payload
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ByteRange
from xetserve.xet.xorb import ChunkHeader, ChunkRecord, make_chunk_header

KINDS: Final = ("hub", "cas", "data", "bridge")
PACE: Final = 0.05  # seconds between two pieces of a body whose bandwidth is limited


class InjectedReset(XetserveError):
    """The body breaks off here, on purpose."""


@dataclass(frozen=True, slots=True)
class FlipByte:
    """One inverted byte at an absolute offset. xorb None: of every xorb.

    first: only in this many of the answers that contain it; None: in all of them.
    """

    offset: int
    xorb: str | None = None
    first: int | None = None


@dataclass(frozen=True, slots=True)
class SwapChunk:
    """Other content in one chunk, well-formed and of the same sizes. xorb None: of every xorb."""

    chunk: int
    xorb: str | None = None


@dataclass(frozen=True, slots=True)
class StatusBurst:
    """The next `count` answers have this status. retry_after: seconds, for the header field."""

    status: int
    count: int
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds before an answer, by kind."""

    hub: float = 0.0
    cas: float = 0.0
    data: float = 0.0
    bridge: float = 0.0


@dataclass(frozen=True, slots=True)
class Faults:
    """The faults to inject. "first N" and bursts count from the moment they are set.

    url_lifetime, token_lifetime: seconds, instead of the origin's own.
    data_403_first: data requests that are refused as expired.
    v2_status: 404 or 501 for every request to /v2/reconstructions.
    v2_one_entry_per_range: one URL for each range, as CDNs without multi-range support need.
    untrimmed_terms: whole terms at both ends of a range.
    wrong_term_length: added to the decoded size of the first term of each answer.
    multipart_off: requests for several ranges are answered with 416.
    short_body_first: data answers that are well-formed but hold half of the range.
    reset_first: data bodies that break off in the middle.
    stall_first, stall_seconds: data bodies that pause in the middle, and for how long.
    bandwidth: bytes per second of each data body.
    data_ignore_range: 200 with the whole xorb.
    """

    url_lifetime: float | None = None
    token_lifetime: float | None = None
    data_403_first: int = 0
    v2_status: int | None = None
    v2_one_entry_per_range: bool = False
    untrimmed_terms: bool = False
    wrong_term_length: int = 0
    multipart_off: bool = False
    short_body_first: int = 0
    reset_first: int = 0
    stall_first: int = 0
    stall_seconds: float = 0.0
    bandwidth: float | None = None
    data_ignore_range: bool = False
    flip_byte: FlipByte | None = None
    swap_chunk: SwapChunk | None = None
    data_status_burst: StatusBurst | None = None
    cas_status_burst: StatusBurst | None = None
    hub_status_burst: StatusBurst | None = None
    latency: Latency = Latency()


def parse_faults(body: bytes) -> Faults:
    """Parse the JSON form.

    Raises:
        RequestError: 400: not JSON, an unknown key, or a value of the wrong type or out of bounds.
    """
    try:
        value = parse_json(body or b"{}")
    except FormatError:
        raise RequestError(400, "faults are not JSON") from None
    faults: Faults = _read(Faults, value, "faults")
    if faults.v2_status not in (None, 404, 501):
        raise RequestError(400, "v2_status must be 404 or 501")
    return faults


def _read(kind: type, value: Any, name: str) -> Any:
    if not isinstance(value, dict):
        raise RequestError(400, f"{name} must be an object")
    hints = get_type_hints(kind)
    fields = {}
    for key, item in value.items():
        if key not in hints:
            raise RequestError(400, f"{name} has no {key!r}")
        fields[key] = _read_field(hints[key], item, key)
    try:
        return kind(**fields)
    except TypeError:
        missing = [f.name for f in dataclasses.fields(kind) if f.name not in fields]
        raise RequestError(400, f"{name} needs {', '.join(missing)}") from None


def _read_field(hint: Any, item: Any, key: str) -> Any:
    options = getattr(hint, "__args__", (hint,))
    if item is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option) and isinstance(option, type):
            return _read(option, item, key)
        # isinstance takes a bool for an int, and an int is fine for a float
        if type(item) is option or (option is float and type(item) is int):
            if type(item) is not bool and option in (int, float):
                _check_number(item, key)
            if option is str:
                _check_hash(item, key)
            return float(item) if option is float else item
    raise RequestError(400, f"{key} has a value of the wrong type")


def _check_number(number: float, key: str) -> None:
    if not math.isfinite(number) or (number < 0 and key != "wrong_term_length"):
        raise RequestError(400, f"{key} must be a number, and not negative")


def _check_hash(text: str, key: str) -> None:
    try:
        parse_hash(text)
    except ValueError:
        raise RequestError(400, f"{key} must be a xorb hash") from None


class Misbehaviour:
    """Faults, and how often each has occurred."""

    def __init__(self, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self._counts: dict[str, int] = {}

    def strikes(self, name: str) -> bool:
        """Count an occasion of a "first N" fault; return whether the fault occurs."""
        limit: int = getattr(self.faults, name)
        return self._count(name, limit)

    def flips(self, xorb_hash: bytes, ranges: Iterable[ByteRange]) -> bool:
        """Return whether to invert a byte of an answer with these ranges; count answers that
        contain it.
        """
        flip = self.faults.flip_byte
        if flip is None or flip.xorb not in (None, format_hash(xorb_hash)):
            return False
        if not any(each.start <= flip.offset < each.end for each in ranges):
            return False
        return flip.first is None or self._count("flip_byte", flip.first)

    def make_burst_response(self, kind: str) -> Response | None:
        """Return the response of a burst, in place of the real one; None: there is none."""
        burst: StatusBurst | None = getattr(self.faults, f"{kind}_status_burst", None)
        if burst is None or not self._count(f"{kind}_status_burst", burst.count):
            return None
        headers = [] if burst.retry_after is None else [("Retry-After", str(burst.retry_after))]
        return error_response(burst.status, "as the test controls want it", headers)

    def _count(self, name: str, limit: int) -> bool:
        used = self._counts.get(name, 0)
        if used >= limit:
            return False
        self._counts[name] = used + 1
        return True

    async def wait(self, kind: str) -> None:
        """Wait as long as an answer of this kind has to take."""
        delay: float = getattr(self.faults.latency, kind, 0.0)
        if delay:
            await asyncio.sleep(delay)

    def damages(self, xorb_hash: bytes) -> bool:
        """Return whether bytes of this xorb are changed."""
        name = format_hash(xorb_hash)
        return any(
            fault is not None and fault.xorb in (None, name)
            for fault in (self.faults.flip_byte, self.faults.swap_chunk)
        )

    def misbehave(
        self, body: AsyncGenerator[list[bytes], None], length: int
    ) -> AsyncGenerator[list[bytes], None]:
        """Make a data body break off, pause or slow down, as the faults say.

        Args:
            length: bytes of the whole body.
        """
        if self.strikes("reset_first"):
            body = _break_off(body, length // 2)
        if self.strikes("stall_first"):
            body = _pause(body, length // 2, self.faults.stall_seconds)
        if self.faults.bandwidth:
            body = _crawl(body, self.faults.bandwidth)
        return body


async def _cut(
    body: AsyncGenerator[list[bytes], None], size: int
) -> AsyncGenerator[tuple[bytes, bool], None]:
    """Yield the pieces of a body, cut at size, each with whether it lies after the cut."""
    async with aclosing(body):
        async for block in body:
            for part in block:
                if size > 0:
                    yield part[:size], False
                if len(part) > size:
                    yield part[max(0, size) :], True
                size -= len(part)


async def _break_off(
    body: AsyncGenerator[list[bytes], None], size: int
) -> AsyncGenerator[list[bytes], None]:
    async with aclosing(_cut(body, size)) as parts:
        async for part, is_behind in parts:
            if is_behind:
                raise InjectedReset("reset, as the test controls want it")
            yield [part]


async def _pause(
    body: AsyncGenerator[list[bytes], None], size: int, seconds: float
) -> AsyncGenerator[list[bytes], None]:
    async with aclosing(_cut(body, size)) as parts:
        async for part, is_behind in parts:
            if is_behind and seconds:
                await asyncio.sleep(seconds)
                seconds = 0.0
            yield [part]


async def _crawl(
    body: AsyncGenerator[list[bytes], None], bandwidth: float
) -> AsyncGenerator[list[bytes], None]:
    size = max(1, int(bandwidth * PACE))
    async with aclosing(body):
        async for block in body:
            for part in block:
                for start in range(0, len(part), size):
                    piece = part[start : start + size]
                    yield [piece]
                    await asyncio.sleep(len(piece) / bandwidth)


async def overwrite(
    body: AsyncGenerator[bytes, None], start: int, patches: dict[int, bytes]
) -> AsyncGenerator[bytes, None]:
    """Replace bytes of a body that begins at an absolute offset.

    Args:
        patches: by absolute offset; they may lie across blocks, or outside the body.
    """
    async with aclosing(body):
        async for block in body:
            end = start + len(block)
            for offset, patch in patches.items():
                first, last = max(offset, start), min(offset + len(patch), end)
                if first < last:
                    new = bytearray(block)
                    new[first - start : last - start] = patch[first - offset : last - offset]
                    block = bytes(new)
            yield block
            start = end


def make_swapped_record(record: ChunkRecord) -> bytes:
    """Return a valid record of the same sizes whose chunk has other content.

    Raises:
        FormatError: no other content packs into as few bytes.
    """
    header = record.header
    if header.scheme is Scheme.NONE:
        return make_chunk_header(header) + bytes(byte ^ 0x55 for byte in record.payload)
    filler = b"\x5a" if bytes(record.decode()[:1]) == b"\xa5" else b"\xa5"
    payload = encode_payload(Scheme.LZ4, filler * header.decoded_size)
    if len(payload) > header.packed_size:
        raise FormatError(f"a chunk of {header.packed_size} packed bytes cannot be swapped")
    # Every reader ignores bytes after the end of an LZ4 frame.
    payload += bytes(header.packed_size - len(payload))
    head = ChunkHeader(header.packed_size, Scheme.LZ4, header.decoded_size)
    return make_chunk_header(head) + payload
