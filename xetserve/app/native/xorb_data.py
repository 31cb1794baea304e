"""Serve xorb data at URLs of our own. As with object stores, a signed URL needs no token.

A request must have a Range that is exactly one of the ranges that the URL grants, or several of
them in order, which are answered with multipart/byteranges. Clients send such requests, and repeat
them after a broken transfer. A part of a granted range is refused, since it would cost upstream as
much as the whole. Any other range is 403, and so is a URL that has expired here or upstream:
clients then request the reconstruction again.

Native clients do not verify their data. So the server must not complete data that it cannot prove,
and only the instance that granted all parts of a file can prove the file as a whole. A URL of
another instance (one that has ended or restarted, or one that a balancer missed) is refused with
409, and clients start the file again. One exception: the file was already proven where the URL was
signed, so that instance verified all other parts. A proof by this instance alone is not enough.
"""

import logging
import re
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from xetserve.app.download.body import no_blocks
from xetserve.app.download.content import Opened, note_source
from xetserve.app.download.multipart_body import MultipartBody
from xetserve.app.download.service import head_timeout
from xetserve.base.log_limit import LOG_LIMIT
from xetserve.errors import RequestError, UrlExpired
from xetserve.http.messages import Record, Request, Response
from xetserve.http.multipart import ByteRanges
from xetserve.http.ranges import Span, format_content_range
from xetserve.metrics.catalogue import STRANGE_GRANTS
from xetserve.pipeline.engine import Engine
from xetserve.xet.grants import Grant, open_grant
from xetserve.xet.reconstruction import ByteRange
from xetserve.xet.signing import Sealer

logger = logging.getLogger(__name__)

GRANT_SECONDS: Final = 900.0  # lifetime of a data URL
OCTETS: Final = "application/octet-stream"
_RANGES: Final = re.compile(r"bytes=\d{1,10}-\d{1,10}(?:, ?\d{1,10}-\d{1,10})*", re.ASCII)


class XorbData:
    """Serves packed ranges of xorbs.

    Args:
        sealer: opens the grants in URLs.
        instance: the name of this instance, see Grant.
    """

    def __init__(self, engine: Engine, sealer: Sealer, instance: str) -> None:
        self._engine = engine
        self._sealer = sealer
        self._instance = instance

    async def answer(self, request: Request, name: str) -> Response:
        """Answer GET and HEAD for /xorbs/{xorb hash}?file=...&grant=...

        Raises:
            RequestError: 403, the URL or the Range is wrong, or the URL has expired; 409, the
                client has to start the file again, because it was damaged or this instance cannot
                prove it.
            UpstreamError: the CAS or the data host fails or refuses.
            IntegrityError: the data is damaged.
        """
        text = request.query.get("grant", "")
        grant = open_grant(self._sealer, text)
        file_name = request.query.get("file")
        if grant is None and text:
            raise RequestError(
                409, "the URL was not signed here, or the server has restarted since: start again"
            )
        if grant is None or name != grant.name or file_name not in (None, grant.file_name):
            raise RequestError(403, "the URL's signature is wrong")
        request.record.file = f"xorb {name}"
        is_strange = grant.instance != self._instance
        if is_strange and not grant.is_of_proven_file:
            # This check precedes the 403 for an expired URL: after a 403 the client would continue
            # the file with a new URL, and no instance would verify the two parts together.
            raise self._refuse_strange()
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
        engine, issued = self._engine, grant.issued
        if is_strange:  # issued is a monotonic time of another machine; expires is wall-clock time
            issued = time.monotonic() - (time.time() - (grant.expires - GRANT_SECONDS))
        if engine.was_cut_since(grant.file_hash, issued):
            # The damage may be in the part that the client has, so the file must not be completed.
            raise RequestError(409, "the file turned out to be damaged: start again")
        if not grant.is_of_proven_file and engine.was_lost_since(grant.file_hash, issued):
            raise RequestError(
                409, "the server has dropped its record of the parts that it sent: start again"
            )
        spans = _check_ranges(request.headers.get("range"), grant)
        logger.debug(
            "native: xorb %s, %d of %d granted ranges, file %s",
            name,
            len(spans),
            len(grant.ranges),
            grant.file_name,
        )
        content = _PackedRanges(engine, grant, request.record)
        if is_strange or grant.is_of_proven_file:
            content.refuse = self._refuse_strange
        async with head_timeout(engine.limits):
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

    def _refuse_strange(self) -> RequestError:
        """Make the 409 for a URL of another instance; count it, and warn at most once a minute."""
        STRANGE_GRANTS.add()
        LOG_LIMIT.log(
            logger,
            logging.WARNING,
            "strange grant",
            "native: refused a data URL of another instance, which had not proven the file. "
            "After a restart this is over soon; else the balancer spreads the data of a file, "
            "and has to hash /xorbs/ by the parameter `file`, as scale/haproxy.cfg and "
            "scale/nginx.conf do",
        )
        return RequestError(
            409, "only the server that signed the URL can verify the file: start again"
        )


class _PackedRanges:
    """The ranges of a grant, as a Content.

    refuse: makes the error for a range that cannot be proven alone; None: this instance sees all
        ranges of the file, and proves them together.
    """

    def __init__(self, engine: Engine, grant: Grant, record: Record) -> None:
        self.refuse: Callable[[], RequestError] | None = None
        self._engine = engine
        self._grant = grant
        self._record = record

    async def open(self, span: Span | None, *, has_begun: bool = False) -> Opened:
        """See Content."""
        assert span is not None
        granted = self._grant.find(ByteRange(*span))
        assert granted is not None
        reader = self._engine.read_packed(
            self._grant, granted, on_close=partial(note_source, self._record)
        )
        if self.refuse is not None and not await reader.can_prove():
            raise self.refuse()
        await reader.start(has_begun=has_begun)
        return Opened(reader, span, span.size)


def _check_ranges(header: str | None, grant: Grant) -> list[Span]:
    """Return the requested ranges.

    Raises:
        RequestError: 403, there is none, or the URL does not grant one of them.
    """
    text = header or ""
    if not _RANGES.fullmatch(text):
        raise RequestError(403, "a request for a data URL needs a Range header")
    pairs = (part.split("-") for part in text.removeprefix("bytes=").split(","))
    spans = [Span(int(first), int(last) + 1) for first, last in pairs]
    signed = iter(grant.ranges)
    is_granted = all(any(each.byte_range == ByteRange(*span) for each in signed) for span in spans)
    if not is_granted:
        raise RequestError(403, "the range is not one that the URL grants")
    return spans
