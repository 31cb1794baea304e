"""The CAS: from a file hash to a reconstruction, and from a data URL to packed bytes.

The read token goes to the CAS only. Data URLs are used exactly as they were signed, with exactly
the planned Range, and without credentials.

Source: hub-docs xet/api.md; xet-core remote_client.rs.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from xetserve.errors import (
    FormatError,
    RangeUnsatisfiable,
    UpstreamDenied,
    UpstreamError,
    UpstreamMissing,
    UpstreamRefused,
    UpstreamTooLarge,
    UrlExpired,
)
from xetserve.http.ranges import Span, parse_content_range
from xetserve.net.client_connection import ClientResponse
from xetserve.net.pool import ConnectionPool
from xetserve.upstream.cas.reconstruction_budget import JSON_COST, ReconstructionBudget, Reservation
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.read_tokens import CasToken
from xetserve.upstream.requests import (
    JSON_HEADERS,
    USER_AGENT,
    error_for_status,
    join_url,
    make_url,
    read_document,
    retrying,
    send_request,
)
from xetserve.upstream.retry import RetryPolicy
from xetserve.upstream.slices import run_slices
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import (
    ByteRange,
    ChunkRange,
    FetchInfo,
    Reconstruction,
    TooLarge,
    iter_reconstruction,
)

# Bytes of JSON: 40,000 terms take 6 MB, and 16,384 ranges with a URL of 500 characters for each
# 10 MB. A window of ours needs a few KiB.
MAX_RECONSTRUCTION_SIZE: Final = 16 * 1024 * 1024
MAX_REDIRECTS: Final = 3


class _WrongVersion(UpstreamMissing):
    """404 or 501: the file is unknown, or this version of the API is."""

    def __init__(self, message: str, *, is_file_unknown: bool) -> None:
        super().__init__(message)
        self.is_file_unknown = is_file_unknown


class _DataBody:
    """The packed bytes of a fetch range, from the data host."""

    is_stored = False
    origin = None
    has_imported = False

    def __init__(self, response: ClientResponse) -> None:
        self.receive_into = response.receive_into


class _Unlimited:
    """A budget without a limit."""

    def try_take(self, size: int) -> bool:
        return True

    def take(self, size: int) -> None: ...

    def give(self, size: int) -> None: ...


class CasClient:
    """Ask CAS servers and data hosts.

    Args:
        timeout: seconds without a byte before a connection is given up.
        budget: counts large answers while they are read; None: nothing is counted.
    """

    max_stored_size = None

    def __init__(
        self,
        pool: ConnectionPool,
        *,
        timeout: float,
        policy: RetryPolicy,
        budget: ReconstructionBudget | None = None,
    ) -> None:
        self._pool = pool
        self._timeout = timeout
        self._policy = policy
        self._budget = budget or ReconstructionBudget(_Unlimited())
        self._versions: dict[str, int] = {}  # by CAS URL: the API version that answered last

    async def fetch_reconstruction(
        self, access: Access, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        """Return the reconstruction of a range of a file.

        Args:
            byte_range: decoded positions in the file; its end may lie past the end of the file.

        Raises:
            RangeUnsatisfiable: the range starts at or past the end of the file.
            UpstreamMissing: the CAS does not know the file.
            UpstreamDenied: it refuses the token, and a renewed one too.
            UpstreamTooLarge: the answer has too many terms, ranges or bytes.
            UpstreamBusy: the answer is large, and there is no memory for it.
            UpstreamError: the CAS fails, or its answer breaks the rules.
        """

        async def attempt() -> Reconstruction:
            token = await access.get_token()
            try:
                return await self._ask_versions(token, file_hash, byte_range)
            except UpstreamDenied as exc:
                if exc.status != 401:
                    raise
            return await self._ask_versions(await access.renew_token(), file_hash, byte_range)

        return await retrying(attempt, self._policy, "cas")

    async def _ask_versions(
        self, token: CasToken, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        first = self._versions.get(token.cas_url, 2)
        try:
            answer = await self._ask(token, first, file_hash, byte_range)
        except _WrongVersion as one:
            first = 3 - first
            try:
                answer = await self._ask(token, first, file_hash, byte_range)
            except _WrongVersion as other:
                if one.is_file_unknown or other.is_file_unknown:
                    raise
                raise UpstreamRefused("the CAS answered 501") from None
        self._versions[token.cas_url] = first
        return answer

    async def _ask(
        self, token: CasToken, version: int, file_hash: bytes, byte_range: ByteRange
    ) -> Reconstruction:
        name = format_hash(file_hash)
        url = make_url(f"{token.cas_url}/v{version}/reconstructions/{name}", "the CAS URL")
        fields = (
            *JSON_HEADERS,
            ("Authorization", f"Bearer {token.access_token}"),
            ("Range", byte_range.to_header()),
        )
        async with send_request(
            self._pool, "the CAS", "GET", url, fields, self._timeout
        ) as response:
            status = response.status
            if status not in (200, 206):
                if status in (404, 501):
                    raise _WrongVersion(
                        f"the CAS does not know file {name}", is_file_unknown=status == 404
                    )
                if status == 416:
                    raise RangeUnsatisfiable(f"file {name} ends before {byte_range.start}")
                if status in (401, 403):
                    raise UpstreamDenied(f"the CAS refused file {name}", status=status)
                raise error_for_status("the CAS", status, response.headers)
            with self._budget.reserve() as reservation:
                return await self._read_answer(response, reservation)

    async def _read_answer(
        self, response: ClientResponse, reservation: Reservation
    ) -> Reconstruction:
        count = response.meter

        def note(size: int) -> None:
            if count is not None:
                count(size)
            reservation.grow(size * JSON_COST)

        response.meter = note
        body = await read_document(response, "the CAS", MAX_RECONSTRUCTION_SIZE, self._timeout)
        # The body may have been compressed.
        reservation.grow(max(0, len(body) * JSON_COST - reservation.size))
        try:
            return await run_slices(iter_reconstruction(body))
        except TooLarge as exc:
            raise UpstreamTooLarge(f"the CAS: {exc}; ask for a shorter range") from None
        except FormatError as exc:
            raise UpstreamError(f"the CAS: {exc}") from exc

    @asynccontextmanager
    async def open_data(
        self,
        xorb_hash: bytes,
        info: FetchInfo,
        *,
        is_proven: bool = False,
        takes_imported: bool = True,
    ) -> AsyncIterator[_DataBody]:
        """Open the packed bytes of a fetch range; the body has exactly that many bytes, or breaks
        off.

        Args:
            xorb_hash, is_proven, takes_imported: for caches in front of this source; the URL itself
                says whose fetch range it is.

        Raises:
            UrlExpired: 403 or 409.
            UpstreamError: any other answer than the requested range.
        """
        url = make_url(info.url, "a data URL")
        fields = (
            ("User-Agent", USER_AGENT),
            ("Accept-Encoding", "identity"),
            ("Range", info.byte_range.to_header()),
        )
        for _ in range(MAX_REDIRECTS + 1):
            async with send_request(
                self._pool, "the data host", "GET", url, fields, self._timeout
            ) as response:
                location = response.headers.get("location")
                if response.status in (301, 302, 303, 307, 308) and location is not None:
                    url = join_url(url, location, "the data host's redirect")
                    continue
                _check_data_response(response, info.byte_range)
                yield _DataBody(response)
                return
        raise UpstreamRefused("the data host redirects in circles")

    def forget(self, xorb_hash: bytes, chunks: ChunkRange) -> None:
        """Do nothing: no data is stored here."""


def _check_data_response(response: ClientResponse, asked: ByteRange) -> None:
    status = response.status
    if status in (403, 409):  # 409: an xetserve that has restarted since it signed the URL
        raise UrlExpired("the data host refused a signed URL")
    if status not in (200, 206):
        raise error_for_status("the data host", status, response.headers)
    content_range = response.headers.get("content-range")
    if status == 206 and content_range is not None:
        parsed = parse_content_range(content_range)
        if parsed is None or parsed[0] != Span(asked.start, asked.end):
            raise UpstreamError("the data host sent another range")
    # A 200 with the slice is as good as a 206; one with the whole xorb is not.
    length = response.content_length
    if length != asked.size and not (length is None and status == 206):
        raise UpstreamError(f"the data host sent {length} bytes, expected {asked.size}")
