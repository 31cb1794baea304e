"""Xorb data behind signed URLs, as a CDN serves it.

A request must name a Range, with ranges that the URL signs and in their order. Anything else is
403, as is an expired URL. Several ranges are answered with multipart/byteranges.

Source: hub-docs xet/download-protocol.md; RFC 9110, sections 14.2 and 15.3.7.2.
"""

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from secrets import token_hex
from typing import Final, NamedTuple

from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response
from xetserve.http.ranges import Span, format_content_range, format_unsatisfied_range
from xetserve.origin.faults import Misbehaviour, make_swapped_record, overwrite
from xetserve.origin.store.signing import Signer, format_ranges
from xetserve.origin.store.xorbs import XorbIndex, XorbStore
from xetserve.xet.hashes import format_hash, parse_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange
from xetserve.xet.xorb import iter_records

OCTETS: Final = "application/octet-stream"

_RANGES: Final = re.compile(r"bytes=\d{1,10}-\d{1,10}(?:, ?\d{1,10}-\d{1,10})*", re.ASCII)


class _Part(NamedTuple):
    """Bytes of a body: some of our own, then a range of the xorb."""

    head: bytes
    byte_range: ByteRange


class DataApi:
    """The data host."""

    def __init__(
        self, xorbs: XorbStore, signer: Signer, misbehaviour: Callable[[], Misbehaviour]
    ) -> None:
        self._xorbs = xorbs
        self._signer = signer
        self._misbehaviour = misbehaviour

    async def get(self, request: Request, name: str) -> Response:
        """Answer GET /data/{xorb hash}?X-Xet-Signed-Range=...&Expires=...&Signature=..."""
        misbehaviour = self._misbehaviour()
        faults = misbehaviour.faults
        problem = self._signer.check_data_url(name, request.query)
        if problem is not None:
            raise RequestError(403, problem)
        wanted = _check_ranges(
            request.headers.get("range"), request.query.get("X-Xet-Signed-Range", "")
        )
        if misbehaviour.strikes("data_403_first"):
            raise RequestError(403, "the URL has expired, as the test controls want it")
        xorb_hash = parse_hash(name)
        index = await self._xorbs.get_index(xorb_hash)
        if index is None:
            raise RequestError(404, f"xorb {name} is not known")
        size = index.packed_size
        if faults.data_ignore_range:
            return await self._answer(
                Response(200), xorb_hash, index, [_Part(b"", ByteRange(0, size))], b""
            )
        if len(wanted) == 1:
            return await self._answer_single(xorb_hash, index, wanted[0])
        if faults.multipart_off:
            field = ("Content-Range", format_unsatisfied_range(size))
            raise RequestError(416, "one range at a time, as the test controls want it", [field])
        return await self._answer_multipart(xorb_hash, index, wanted)

    async def _answer_single(
        self, xorb_hash: bytes, index: XorbIndex, wanted: ByteRange
    ) -> Response:
        content_range = format_content_range(Span(*wanted), index.packed_size)
        if self._misbehaviour().strikes("short_body_first"):
            wanted = ByteRange(wanted.start, wanted.start + wanted.size // 2)
        response = Response(206, [("Content-Range", content_range)])
        return await self._answer(response, xorb_hash, index, [_Part(b"", wanted)], b"")

    async def _answer_multipart(
        self, xorb_hash: bytes, index: XorbIndex, wanted: Sequence[ByteRange]
    ) -> Response:
        boundary = token_hex(16)
        parts = []
        for byte_range in wanted:
            content_range = format_content_range(Span(*byte_range), index.packed_size)
            head = f"\r\n--{boundary}\r\nContent-Type: {OCTETS}\r\n"
            parts.append(
                _Part(f"{head}Content-Range: {content_range}\r\n\r\n".encode(), byte_range)
            )
        if self._misbehaviour().strikes("short_body_first"):
            last = parts[-1].byte_range
            parts[-1] = parts[-1]._replace(
                byte_range=ByteRange(last.start, last.start + last.size // 2)
            )
        response = Response(206, [("Content-Type", f"multipart/byteranges; boundary={boundary}")])
        tail = f"\r\n--{boundary}--\r\n".encode()
        return await self._answer(response, xorb_hash, index, parts, tail)

    async def _answer(
        self,
        response: Response,
        xorb_hash: bytes,
        index: XorbIndex,
        parts: Sequence[_Part],
        tail: bytes,
    ) -> Response:
        """Return the response for a body, with the fields that all responses have."""
        misbehaviour = self._misbehaviour()
        if not any(name == "Content-Type" for name, _ in response.headers):
            response.headers.append(("Content-Type", OCTETS))
        response.headers += [
            ("Accept-Ranges", "bytes"),
            ("ETag", f'"{format_hash(xorb_hash)}"'),
            ("Cache-Control", "private, max-age=31536000, immutable"),
        ]
        patches = {}
        if misbehaviour.damages(xorb_hash):
            patches = await self._make_patches(xorb_hash, index, [p.byte_range for p in parts])
        size = sum(len(part.head) + part.byte_range.size for part in parts) + len(tail)
        body = self._read_parts(xorb_hash, parts, tail, patches)
        response.body = misbehaviour.misbehave(body, size)
        response.length = size
        return response

    async def _read_parts(
        self,
        xorb_hash: bytes,
        parts: Sequence[_Part],
        tail: bytes,
        patches: dict[int, bytes],
    ) -> AsyncGenerator[list[bytes], None]:
        for head, byte_range in parts:
            if head:
                yield [head]
            blocks = self._xorbs.read(xorb_hash, byte_range)
            if patches:
                blocks = overwrite(blocks, byte_range.start, patches)
            async with aclosing(blocks):
                async for block in blocks:
                    yield [block]
        if tail:
            yield [tail]

    async def _make_patches(
        self, xorb_hash: bytes, index: XorbIndex, ranges: Sequence[ByteRange]
    ) -> dict[int, bytes]:
        """Return the bytes to serve in place of others, by their offset in the xorb."""
        misbehaviour = self._misbehaviour()
        faults = misbehaviour.faults
        name = format_hash(xorb_hash)
        patches = {}
        swap, flip = faults.swap_chunk, faults.flip_byte
        if swap is not None and swap.xorb in (None, name) and swap.chunk < index.num_chunks:
            byte_range = index.byte_range(ChunkRange(swap.chunk, swap.chunk + 1))
            record = await self._read_whole(xorb_hash, byte_range)
            patches[byte_range.start] = make_swapped_record(next(iter_records(record)))
        if flip is not None and misbehaviour.flips(xorb_hash, ranges):
            old = await self._read_whole(xorb_hash, ByteRange(flip.offset, flip.offset + 1))
            patches[flip.offset] = bytes((old[0] ^ 0xFF,))
        return patches

    async def _read_whole(self, xorb_hash: bytes, byte_range: ByteRange) -> bytes:
        async with aclosing(self._xorbs.read(xorb_hash, byte_range)) as blocks:
            return b"".join([block async for block in blocks])


def _check_ranges(header: str | None, signed_text: str) -> list[ByteRange]:
    """Return the requested ranges.

    Raises:
        RequestError: 403: there are none, or others than the URL signs.
    """
    wanted = _parse_ranges(header or "")
    if not wanted:
        raise RequestError(403, "a data URL needs a Range header")
    signed = iter(_parse_ranges(signed_text))
    if not all(any(byte_range == one for one in signed) for byte_range in wanted):
        raise RequestError(403, f"{format_ranges(wanted)} is not what the URL signs")
    return wanted


def _parse_ranges(text: str) -> list[ByteRange]:
    if not _RANGES.fullmatch(text):
        return []
    pairs = (part.split("-") for part in text.removeprefix("bytes=").split(","))
    return [ByteRange(int(first), int(last) + 1) for first, last in pairs]
