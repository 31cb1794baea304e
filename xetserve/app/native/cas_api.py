"""Serve the CAS API to native Xet clients.

app/routes.py lists the paths; hf-xet 1.2 requests reconstructions without a version. batch.py
answers for several files, and xorb_data.py serves xorb data.

The access token that a client gets from us is sealed: it holds the URL of the real CAS and the
token for it. Every request is forwarded to that CAS with that token, so the CAS alone decides who
may read a file. Of its answers, only the data URLs are replaced.
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
MAX_SEALED_SIZE: Final = 24 * 1024  # characters of a sealed token; a head has at most 32 KiB
HELD_SIZE: Final = 64 * 1024  # bytes; a smaller answer is sent as a whole, with its length
MAX_TELEMETRY_SIZE: Final = 256 * 1024  # bytes
_PURPOSE: Final = "token"
_NO_END: Final = 2**53  # bytes; the CAS cuts a range to the size of the file
_RANGE: Final = re.compile(r"bytes=(\d{1,15})-(\d{0,15})", re.ASCII)
_SHARED: Final = (
    "two of the files share chunks, and the server can verify the data of one URL against one file "
    "only: ask for one file at a time"
)
_NO_STORE: Final = (("Cache-Control", "no-store"), ("Vary", "Authorization"))


class SealedAccess:
    """The CAS token that a client's access token holds; only the client can renew it.

    Args:
        issued: when we sealed it, in Unix seconds.
    """

    def __init__(self, token: CasToken, issued: float) -> None:
        self._token = token
        self.issued = issued

    async def get_token(self) -> CasToken:
        """Return the CAS token."""
        return self._token

    async def renew_token(self) -> CasToken:
        """Refuse, since only the client can get another token from the Hub.

        Raises:
            UpstreamDenied: 401, always.
        """
        raise UpstreamDenied("the CAS refused the token", status=401)


class CasService:
    """Answers the CAS requests of native clients.

    Args:
        sealer: seals access tokens and grants.
        instance: the name of this server: the same for all its workers, a new one at each start.
    """

    def __init__(self, upstreams: Upstreams, sealer: Sealer, instance: str) -> None:
        self._engine = engine = upstreams.engine
        self._instance = instance
        self._sealer = sealer
        self._sizes = FileSizes(engine.source)
        self._budget = ReconstructionBudget(engine.budget)
        self._data = XorbData(engine, sealer, instance)

    async def make_token_answer(self, answer: Response, base_url: str) -> Response:
        """Return the Hub's answer with a CAS token, with our URL and a sealed token in place.

        Args:
            answer: the Hub's answer; an error is returned unchanged.
            base_url: the URL at which the client reaches us.

        Raises:
            UpstreamError: the Hub's answer is malformed or too long.
        """
        if answer.status >= 300:
            return answer
        if isinstance(answer.body, StartedBody):  # unchanged, it would name the real CAS
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
        """Answer with a reconstruction of version 1, with one range for each URL."""
        return await self._reconstruct(call.request, call.target, 1)

    async def answer_v2(self, call: Call[str]) -> Response:
        """Answer with a reconstruction of version 2, with several ranges for each URL."""
        return await self._reconstruct(call.request, call.target, 2)

    async def answer_size(self, call: Call[str]) -> Response:
        """Answer HEAD for a file with its size.

        Raises:
            RequestError: 400, the hash is malformed; 401, the token is missing, wrong or expired.
            UpstreamError: the CAS fails or refuses.
        """
        file_hash, access = _parse_name(call.target), self._open_token(call.request)
        async with head_timeout(self._engine.limits):
            size = await self._sizes.get(access, file_hash)
        return Response(200, list(_NO_STORE), no_blocks(), size)

    async def answer_telemetry(self, call: Call[None]) -> Response:
        """Read telemetry and discard it.

        Raises:
            RequestError: 413, the body has more than MAX_TELEMETRY_SIZE bytes.
        """
        await _discard(call.request, MAX_TELEMETRY_SIZE)
        return Response(204)

    async def answer_xorb(self, call: Call[str]) -> Response:
        """Answer GET and HEAD for packed xorb data.

        Raises:
            RequestError, UpstreamError, IntegrityError: see XorbData.answer.
        """
        return await self._data.answer(call.request, call.target)

    async def _reconstruct(self, request: Request, name: str, version: int) -> Response:
        """Request a reconstruction from the CAS, and answer with it and with our data URLs.

        Raises:
            RequestError: 400, the hash is malformed; 401, the token is missing, wrong or expired;
                409, the client must start the file again; 413, the range has too many terms; 416,
                the range is malformed or outside the file; 422, grants cannot prove the file.
            UpstreamError: the CAS fails or refuses.
        """
        file_hash, access = _parse_name(name), self._open_token(request)
        asked = _parse_range(request.headers.get("range"))
        async with head_timeout(self._engine.limits):
            try:
                answer = await self._engine.source.fetch_reconstruction(access, file_hash, asked)
            except RangeUnsatisfiable:
                raise self._unsatisfiable(file_hash) from None
            except (
                UpstreamTooLarge
            ) as exc:  # clients would take a shorter answer for a shorter file
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
        """Answer with the reconstructions of several whole files.

        A range that several files share has one URL, whose grant names the first of the files. It
        is valid for the others only if all of them are proven with equal chunk hashes. Otherwise
        the client has to ask for one file at a time.

        Raises:
            RequestError: 400, a hash is malformed or the files share chunks; 401, the token is
                missing, wrong or expired; 413, the answer would be too large; 422, grants cannot
                prove one of the files.
            UpstreamError: the CAS fails or refuses for any of the files.
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
        """Answer with a document that is written while the client reads it.

        The reconstructions count against the memory budget until the last piece is written.

        Args:
            held: the reconstructions that the document is written from.
            pieces: of the document.

        Raises:
            UpstreamBusy: the memory budget has no room for them.
        """

        async def write() -> AsyncGenerator[Block, None]:
            with self._budget.reserve() as reservation:
                for answer in held:
                    reservation.grow(estimate_size(answer))
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
        """Check that a client which continues a file may keep the part that it has.

        Only its token shows when it began. Another instance with another clock may have issued the
        token, so CLOCK_SKEW is allowed for.

        Raises:
            RequestError: 409, that part may be damaged, or can no longer be verified.
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
                409,
                "the server has dropped its record of the parts that it sent: "
                "start again with a new token",
            )

    async def _find_size(self, access: Access, file_hash: bytes, end: int, *, is_last: bool) -> int:
        """Return the size of a file in bytes; the granter needs it to know the last chunk.

        Args:
            end: a position that the file reaches.
            is_last: the file ends at that position.
        """
        size = end if is_last else self._sizes.find(file_hash)
        if size is None:
            return await self._sizes.measure(access, file_hash, end)
        self._sizes.note(file_hash, size)
        return size

    def _unsatisfiable(self, file_hash: bytes) -> RequestError:
        """Make the 416 for a range that the CAS refused.

        It may name the size, since the answer of the CAS shows that the client may read the file.
        """
        size = self._sizes.find(file_hash)
        field = [] if size is None else [("Content-Range", format_unsatisfied_range(size))]
        return RequestError(416, "the file has no such bytes", field)

    def _open_token(self, request: Request) -> SealedAccess:
        """Unseal the access token of a request.

        Raises:
            RequestError: 401, the token is missing, not sealed by this server, or expired.
        """
        text = get_token(request, required=True, max_size=MAX_SEALED_SIZE)
        assert text is not None
        request.record.token = fingerprint(text)
        value = self._sealer.unseal(_PURPOSE, text)
        *value, issued = value if isinstance(value, list) and len(value) == 4 else (value, 0)
        token = make_cas_token(value)
        if token is None or not isinstance(issued, int | float):
            raise RequestError(
                401, "the access token was not issued by this server: get a new one", [CHALLENGE]
            )
        if time.time() >= token.expires:
            raise RequestError(401, "the access token has expired: get a new one", [CHALLENGE])
        return SealedAccess(token, issued)


async def _find_names(
    granter: Granter, answer: Reconstruction, start: int, file_hash: bytes, size: int
) -> Names:
    """Return the chunk hashes and terms that the grants will name; see Granter.iter_names.

    Raises:
        RequestError: 422, the file is not proven, and grants cannot prove it.
    """
    try:
        return await run_slices(granter.iter_names(answer, start, file_hash, size))
    except TooManyUses as exc:
        raise RequestError(422, str(exc)) from None


def read_name(path: MatchedPath) -> str:
    """Return the hash in a path, unchecked; the handlers check it."""
    return path.values["hash"]


def _parse_name(name: str) -> bytes:
    try:
        return parse_hash(name)
    except ValueError as exc:
        raise RequestError(400, str(exc)) from None


def _parse_range(value: str | None) -> ByteRange:
    """Parse the Range of a request for a reconstruction: positions in the file, inclusive ends.

    Raises:
        RequestError: 416, it is malformed, or of a form that clients do not use. The error names no
            size: the CAS has not decided yet whether the client may read the file.
    """
    if value is None:
        return ByteRange(0, _NO_END)
    match = _RANGE.fullmatch(value.strip())
    start, last = (int(match[1]), int(match[2] or _NO_END - 1)) if match else (1, 0)
    if start > last:
        raise RequestError(416, "the Range must be bytes=FIRST-LAST")
    return ByteRange(start, last + 1)


async def _discard(request: Request, limit: int) -> None:
    """Read a body and discard it piece by piece.

    Raises:
        RequestError: 413, it is larger than limit bytes.
    """
    async for piece in request.body:
        limit -= len(piece)
        if limit < 0:
            raise RequestError(413, f"telemetry may have at most {MAX_TELEMETRY_SIZE} bytes")


def ask_for_token(request: Request) -> Request:
    """Return the request for a token as it goes to the Hub: a GET without conditions.

    So the Hub's answer always has a body with the token.
    """
    fields = (
        (name, value) for name, value in request.headers if not name.lower().startswith("if-")
    )
    return replace(request, method="GET", headers=Headers(fields))
