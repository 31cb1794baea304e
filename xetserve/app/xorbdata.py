"""Xorb data behind URLs of our own, as object stores serve it: whoever has a good URL may read its ranges, without a token.

A request has to name a Range: bytes within one of those that the URL grants, or several of them as they are, in order, which are
answered with multipart/byteranges. Anything else is 403, as is a URL that has expired, here or upstream: clients
then ask for the reconstruction again.
"""

import re
import secrets
import time
from functools import partial
from typing import Final

from xetserve.app.bodies import no_blocks, start_body
from xetserve.app.content import Opened, note_source
from xetserve.app.files import head_timeout
from xetserve.app.multipart import MultipartBody
from xetserve.errors import RequestError, UrlExpired
from xetserve.http.messages import Record, Request, Response
from xetserve.http.multipart import ByteRanges
from xetserve.http.ranges import Span, format_content_range
from xetserve.pipeline.packed import PackedReader
from xetserve.pipeline.reader import ReadLimits
from xetserve.pipeline.tickets import FetchTable
from xetserve.xet.grants import Grant, open_grant
from xetserve.xet.reconstruction import ByteRange
from xetserve.xet.sealing import Sealer

OCTETS: Final = "application/octet-stream"
_RANGES: Final = re.compile(r"bytes=\d{1,10}-\d{1,10}(?:, ?\d{1,10}-\d{1,10})*", re.ASCII)


class XorbData:
    """Serves ranges of xorbs, packed."""

    def __init__(self, fetches: FetchTable, sealer: Sealer, limits: ReadLimits) -> None:
        self._fetches = fetches
        self._sealer = sealer
        self._limits = limits

    async def answer(self, request: Request, name: str) -> Response:
        """GET and HEAD /xorbs/{xorb hash}?file=...&grant=...

        Raises:
            RequestError: 403; 409, the file was damaged.
            UpstreamError, IntegrityError: the data cannot be had.
        """
        grant = open_grant(self._sealer, request.query.get("grant", ""))
        file_name = request.query.get("file")
        if grant is None or name != grant.name or file_name not in (None, grant.file_name):
            raise RequestError(403, "the URL's signature is wrong")
        request.record.file = f"xorb {name}"
        age = time.time() - grant.issued
        if time.time() >= grant.expires:
            raise RequestError(403, "the URL has expired")
        fields = [
            ("Accept-Ranges", "bytes"),
            ("ETag", f'"{name}"'),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if request.method == "HEAD":  # Range is for GET only (RFC 9110, 14.2)
            return Response(200, [("Content-Type", OCTETS), *fields], no_blocks())
        if self._fetches.ledgers.was_cut_since(grant.file_hash, time.monotonic() - age):
            # What the client has of the file may be what is wrong: it must not come to an end.
            raise RequestError(409, "the file turned out to be damaged: start again")
        spans = _check_ranges(request.headers.get("range"), grant)
        content = _PackedRanges(self._fetches, grant, self._limits.gap_timeout, request.record)
        async with head_timeout(self._limits):
            try:
                opened = await content.open(spans[0])
            except UrlExpired as exc:
                raise RequestError(403, str(exc)) from None
        if len(spans) == 1:
            fields.append(("Content-Range", format_content_range(spans[0], None)))
            fields.append(("Content-Type", OCTETS))
            return Response(206, fields, opened.body, spans[0].size)
        frame = ByteRanges(spans, None, OCTETS, secrets.token_hex(16))
        fields.append(("Content-Type", frame.content_type))
        return Response(206, fields, MultipartBody(frame, content, opened.body), frame.length)


class _PackedRanges:
    """The ranges of a grant, as a Content."""

    def __init__(
        self, fetches: FetchTable, grant: Grant, gap_timeout: float, record: Record
    ) -> None:
        self._fetches = fetches
        self._grant = grant
        self._gap_timeout = gap_timeout
        self._record = record

    async def open(self, span: Span | None) -> Opened:
        """See Content."""
        assert span is not None
        wanted = ByteRange(*span)
        granted = self._grant.find(wanted)
        assert granted is not None
        reader = PackedReader(
            self._fetches, self._grant, granted, wanted, gap_timeout=self._gap_timeout
        )
        body = await start_body(reader.blocks(), partial(self._note, reader))
        return Opened(body, span, span.size)

    def _note(self, reader: PackedReader) -> None:
        note_source(self._record, reader.tally, is_verified=reader.is_verified)


def _check_ranges(header: str | None, grant: Grant) -> list[Span]:
    """Give the ranges that are asked for.

    Raises:
        RequestError: 403, there are none, or others than the URL grants.
    """
    text = header or ""
    if not _RANGES.fullmatch(text):
        raise RequestError(403, "a data URL needs a Range header")
    pairs = (part.split("-") for part in text.removeprefix("bytes=").split(","))
    spans = [Span(int(first), int(last) + 1) for first, last in pairs]
    if len(spans) == 1:
        is_granted = spans[0].size > 0 and grant.find(ByteRange(*spans[0])) is not None
    else:  # as they are: many small ones would cost far more than they give
        signed = iter(grant.ranges)
        is_granted = all(
            any(each.byte_range == ByteRange(*span) for each in signed) for span in spans
        )
    if not is_granted:
        raise RequestError(403, "the range is not one that the URL grants")
    return spans
