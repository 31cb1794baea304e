"""The CAS as native Xet clients know it, with us in its place.

app/routes.py lists the paths; hf-xet 1.2 asks for reconstructions without a version. Questions
about several files are in batch.py, xorb data is in xorb_data.py.

A client's access token is one that we have sealed: the CAS behind us and the token for it. That CAS
is asked every time with that token, so it alone decides who may read what; of its answer only the
data URLs are replaced.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Final

from xetserve.app.auth import fingerprint, get_token
from xetserve.app.download.body import StartedBody, hold_body, no_blocks
from xetserve.app.download.service import Upstreams, head_timeout
from xetserve.app.download.sizes import FileSizes
from xetserve.app.errors import CHALLENGE
from xetserve.app.native.batch import fetch_batch, read_batch
from xetserve.app.native.xorb_data import GRANT_SECONDS, XorbData
from xetserve.app.route_table import Call, MatchedPath
from xetserve.errors import (
    RangeUnsatisfiable,
    RequestError,
    UpstreamDenied,
    UpstreamRefused,
    UpstreamTooLarge,
)
from xetserve.http.messages import Block, Headers, Request, Response, json_response
from xetserve.http.ranges import format_unsatisfied_range
from xetserve.upstream.cas.reconstruction_budget import ReconstructionBudget, estimate_size
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.read_tokens import CasToken, make_cas_token, parse_cas_token
from xetserve.upstream.slices import run_slices
from xetserve.xet.batch import merge_fetch_infos
from xetserve.xet.data_urls import Granter, TooManyUses
from xetserve.xet.hashes import parse_hash
from xetserve.xet.reconstruction import ByteRange, ChunkRange, Reconstruction
from xetserve.xet.reconstruction_writer import write_batch, write_plan
from xetserve.xet.signing import Sealer
from xetserve.xet.term_uses import Named, Names

logger = logging.getLogger(__name__)

CLOCK_SKEW: Final = 60.0  # seconds between the clocks of two instances, at most
MAX_SEALED_SIZE: Final = 24 * 1024  # characters of a token of ours; heads are 32 KiB at most
HELD_SIZE: Final = 64 * 1024  # bytes; a smaller answer is sent as a whole, with its length
MAX_TELEMETRY_SIZE: Final = 256 * 1024  # bytes
_PURPOSE: Final = "token"
_NO_END: Final = 2**53  # bytes; the CAS gives what there is
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})", re.ASCII)
_SHARED: Final = (
    "two of the files have chunks in common, and one URL can hold them against one file only: "
    "ask for one file at a time"
)
_NO_STORE: Final = (("Cache-Control", "no-store"), ("Vary", "Authorization"))


class SealedAccess:
    """The right that a client has brought with its token; only the client can renew it.

    Args:
        issued: when it was given out, Unix seconds.
    """

    def __init__(self, token: CasToken, issued: float) -> None:
        self._token = token
        self.issued = issued

    async def get_token(self) -> CasToken:
        """Return the token."""
        return self._token

    async def renew_token(self) -> CasToken:
        """Refuse: a client has this one token only.

        Raises:
            UpstreamDenied: always, 401.
        """
        raise UpstreamDenied("the CAS refused the token", status=401)


class CasService:
    """Answers what native clients ask a CAS.

    Args:
        instance: a name of this server, the same for all its workers, and another one after each
            start.
    """

    def __init__(self, upstreams: Upstreams, sealer: Sealer, instance: str) -> None:
        self._engine = engine = upstreams.engine
        self._instance = instance
        self._sealer = sealer
        self._sizes = FileSizes(engine.source)
        self._room = ReconstructionBudget(engine.budget)
        self._data = XorbData(engine, sealer, instance)

    async def make_token_answer(self, answer: Response, base_url: str) -> Response:
        """Make the Hub's token answer one that leads to us.

        Args:
            answer: the Hub's.
            base_url: how the client reaches us.

        Raises:
            UpstreamError: it is not what it should be.
        """
        if answer.status >= 300:
            return answer
        if isinstance(answer.body, StartedBody):  # as it is, it would lead past us
            await answer.body.aclose()
            raise UpstreamRefused("the answer with the CAS token is too long to be passed on")
        token = parse_cas_token(answer.body if isinstance(answer.body, bytes) else b"")
        sealed = self._sealer.seal(_PURPOSE, [*token, time.time()])
        if len(sealed) > MAX_SEALED_SIZE:
            raise UpstreamRefused("the CAS token is too long to be passed on")
        expires = int(token.expires)
        fields = [
            ("X-Xet-Cas-Url", base_url),
            ("X-Xet-Access-Token", sealed),
            ("X-Xet-Token-Expiration", str(expires)),
        ]
        value = {"casUrl": base_url, "accessToken": sealed, "exp": expires}
        return json_response(200, value, [*fields, *_NO_STORE])

    async def answer_v1(self, call: Call[str]) -> Response:
        """Answer with a reconstruction in version 1: a URL has one range. See _reconstruct."""
        return await self._reconstruct(call.request, call.target, 1)

    async def answer_v2(self, call: Call[str]) -> Response:
        """Answer with a reconstruction in version 2: a URL has many ranges. See _reconstruct."""
        return await self._reconstruct(call.request, call.target, 2)

    async def answer_size(self, call: Call[str]) -> Response:
        """Answer HEAD for a file with its size.

        Raises:
            RequestError: 400, 401.
            UpstreamError: as the CAS says.
        """
        file_hash, access = _parse_name(call.target), self._open_token(call.request)
        async with head_timeout(self._engine.limits):
            size = await self._sizes.get(access, file_hash)
        return Response(200, list(_NO_STORE), no_blocks(), size)

    async def answer_telemetry(self, call: Call[None]) -> Response:
        """Read telemetry and drop it.

        Raises:
            RequestError: 413.
        """
        await _discard(call.request, MAX_TELEMETRY_SIZE)
        return Response(204)

    async def answer_xorb(self, call: Call[str]) -> Response:
        """Answer GET and HEAD for packed data.

        Raises:
            RequestError, UpstreamError, IntegrityError: see XorbData.answer.
        """
        return await self._data.answer(call.request, call.target)

    async def _reconstruct(self, request: Request, name: str, version: int) -> Response:
        """Ask the CAS how a range of a file is built, and give its answer with our URLs.

        Raises:
            RequestError: 400, 401, 409, 413, 416, 422.
            UpstreamError: as the CAS says.
        """
        file_hash, access = _parse_name(name), self._open_token(request)
        asked = _parse_range(request.headers.get("range"))
        async with head_timeout(self._engine.limits):
            try:
                answer = await self._engine.source.fetch_reconstruction(access, file_hash, asked)
            except RangeUnsatisfiable:
                raise self._unsatisfiable(file_hash) from None
            except UpstreamTooLarge as exc:  # a short answer would be a short file to clients
                raise RequestError(413, str(exc)) from None
            end = asked.start + answer.decoded_size
            size = await self._find_size(access, file_hash, end, is_last=end < asked.end)
            await self._engine.recall(file_hash)
            if asked.start:
                self._check_going_on(file_hash, access)
            granter = self._make_granter(request)
            names = await _find_names(granter, answer, asked.start, file_hash, size)
            infos = granter.make_infos(
                answer, names, file_hash, size, has_single_ranges=version == 1
            )
            logger.debug(
                "native: file %s, bytes %d..%d: %d terms, data URLs for %d xorbs",
                name,
                asked.start,
                end,
                len(answer.terms),
                len(answer.fetch_info),
            )
            return await self._send([answer], write_plan(answer, version, infos))

    async def answer_batch(self, call: Call[None]) -> Response:
        """Return how whole files are built.

        Of a range that several files have, the first one gets the URL. It speaks for the others
        only where all are proven, and alike; else they have to be asked for one by one.

        Raises:
            RequestError: 400, 401, 413, 422.
            UpstreamError: as the CAS says of any of them.
        """
        request = call.request
        access = self._open_token(request)
        hashes = await read_batch(request)
        async with head_timeout(self._engine.limits):
            answers = await fetch_batch(self._engine.source, access, hashes)
            granter = self._make_granter(request)
            named: dict[tuple[bytes, ChunkRange], Named] = {}
            infos = []
            for file_hash, answer in answers.items():
                size = answer.decoded_size
                self._sizes.note(file_hash, size)
                names = await _find_names(granter, answer, 0, file_hash, size)
                for (xorb_hash, info), new in names.items():
                    if not named.setdefault((xorb_hash, info.chunks), new).is_good_for(new):
                        raise RequestError(400, _SHARED)
                steps = granter.iter_infos(answer, names, file_hash, size, has_single_ranges=True)
                infos.append((await run_slices(steps)).fetch_info)
            terms = {file_hash: answer.terms for file_hash, answer in answers.items()}
            fetch_info = merge_fetch_infos(infos)
            logger.debug("native: %d files, data URLs for %d xorbs", len(answers), len(fetch_info))
            held = [*answers.values(), Reconstruction(0, (), fetch_info)]
            return await self._send(held, write_batch(terms, fetch_info))

    async def _send(self, held: list[Reconstruction], pieces: Iterator[bytes]) -> Response:
        """Answer with a document that is written as the client reads it.

        What it is made of counts against the memory budget until then.

        Raises:
            UpstreamBusy: there is no room for it.
        """

        async def write() -> AsyncGenerator[Block, None]:
            with self._room.hold() as holding:
                for answer in held:
                    holding.grow(estimate_size(answer))
                for piece in pieces:
                    yield [piece]
                    await asyncio.sleep(0)

        body = await hold_body(write(), HELD_SIZE)
        return Response(200, [("Content-Type", "application/json"), *_NO_STORE], body)

    def _make_granter(self, request: Request) -> Granter:
        return Granter(
            self._sealer,
            request.base_url,
            issued=time.monotonic(),
            expires=time.time() + GRANT_SECONDS,
            instance=self._instance,
            find_hashes=self._engine.find_hashes,
        )

    def _check_going_on(self, file_hash: bytes, access: SealedAccess) -> None:
        """Check that a client which asks for more of a file may go on with what it has.

        Nothing tells when it has begun but its token. It may come from another instance, whose
        clock is another.

        Raises:
            RequestError: 409, what it has may be wrong, or nobody can tell any more.
        """
        engine, age = self._engine, time.time() - access.issued
        since = time.monotonic() - age - CLOCK_SKEW
        if age < -CLOCK_SKEW:  # a clock was set back
            since = 0.0
        if engine.was_cut_since(file_hash, since):
            raise RequestError(
                409, "the file turned out to be damaged: start again with a new token"
            )
        if not engine.is_proven(file_hash) and engine.was_lost_since(file_hash, since):
            raise RequestError(
                409, "what was known of the file had to go: start again with a new token"
            )

    async def _find_size(self, access: Access, file_hash: bytes, end: int, *, is_last: bool) -> int:
        """Return the size of a file; it tells when all of its chunks have been seen.

        Args:
            end: byte up to which the file is known to reach.
            is_last: the file ends there.
        """
        size = end if is_last else self._sizes.find(file_hash)
        if size is None:
            return await self._sizes.measure(access, file_hash, end)
        self._sizes.note(file_hash, size)
        return size

    def _unsatisfiable(self, file_hash: bytes) -> RequestError:
        """Return the 416 for a range that the CAS refused: only its word allows to name the
        size.
        """
        size = self._sizes.find(file_hash)
        field = [] if size is None else [("Content-Range", format_unsatisfied_range(size))]
        return RequestError(416, "the file has no such bytes", field)

    def _open_token(self, request: Request) -> SealedAccess:
        """Return what a client's token is a seal on.

        Raises:
            RequestError: 401, it is not ours, or has run out.
        """
        text = get_token(request, required=True, max_size=MAX_SEALED_SIZE)
        assert text is not None
        request.record.token = fingerprint(text)
        value = self._sealer.unseal(_PURPOSE, text)
        *value, issued = value if isinstance(value, list) and len(value) == 4 else (value, 0)
        token = make_cas_token(value)
        if token is None or not isinstance(issued, int | float):
            raise RequestError(401, "the access token is not one of this server's", [CHALLENGE])
        if time.time() >= token.expires:
            raise RequestError(401, "the access token has expired", [CHALLENGE])
        return SealedAccess(token, issued)


async def _find_names(
    granter: Granter, answer: Reconstruction, start: int, file_hash: bytes, size: int
) -> Names:
    """Find what the grants will name; see Granter.iter_names.

    Raises:
        RequestError: 422, the file is not proven, and cannot be by grants.
    """
    try:
        return await run_slices(granter.iter_names(answer, start, file_hash, size))
    except TooManyUses as exc:
        raise RequestError(422, str(exc)) from None


def read_name(path: MatchedPath) -> str:
    """Return the name of a file or a xorb; the handlers judge it."""
    return path.values["hash"]


def _parse_name(name: str) -> bytes:
    try:
        return parse_hash(name)
    except ValueError as exc:
        raise RequestError(400, str(exc)) from None


def _parse_range(value: str | None) -> ByteRange:
    """Read the Range of a question: positions in the file.

    Raises:
        RequestError: 416, malformed, or of another form than clients use. It says nothing of the
            file: the CAS has not been asked whether this client may know of it.
    """
    if value is None:
        return ByteRange(0, _NO_END)
    match = _RANGE.fullmatch(value.strip())
    start, last = (int(match[1]), int(match[2] or _NO_END - 1)) if match else (1, 0)
    if start > last:
        raise RequestError(416, "the Range must be bytes=FIRST-LAST")
    return ByteRange(start, last + 1)


async def _discard(request: Request, limit: int) -> None:
    """Read a body that is nobody's business, and hold none of it.

    Raises:
        RequestError: 413, it is larger than limit bytes.
    """
    async for piece in request.body:
        limit -= len(piece)
        if limit < 0:
            raise RequestError(413, f"telemetry is taken up to {MAX_TELEMETRY_SIZE} bytes")


def ask_for_token(request: Request) -> Request:
    """Return the request to the Hub for a token: whole, whatever version the client has, with a
    body even for HEAD.
    """
    fields = (
        (name, value) for name, value in request.headers if not name.lower().startswith("if-")
    )
    return replace(request, method="GET", headers=Headers(fields))
