"""Open the bytes of a file or of a range of it, from the CAS or from the Hub."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from xetserve.app.download.blob_body import BlobBody
from xetserve.app.download.blob_reader import BlobReader
from xetserve.app.download.body import no_blocks
from xetserve.app.download.content_digest import ContentDigest
from xetserve.app.download.hub_source import HubSource
from xetserve.errors import IntegrityError, UpstreamRefused
from xetserve.http.messages import Block, Body, Record
from xetserve.http.ranges import Span, parse_content_range
from xetserve.pipeline.cache.blob_file import BlobKey
from xetserve.pipeline.cache.blobs import BlobCache
from xetserve.pipeline.engine import Engine
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.reader import FileReader
from xetserve.pipeline.tally import Tally
from xetserve.upstream.cas.source import Access
from xetserve.upstream.hub.client import FileEntry, HubClient
from xetserve.xet.hashes import format_hash
from xetserve.xet.reconstruction import ByteRange


@dataclass(frozen=True, slots=True)
class Opened:
    """A body whose first bytes have arrived.

    span: the range of the file, half-open; None: the whole file.
    length: bytes of the body; None: unknown.
    reader, file_hash: of a Xet file; otherwise None.
    sample: the first block of a plain file; valid until the body returns its second block.
    """

    body: Body
    span: Span | None
    length: int | None
    reader: FileReader | None = None
    file_hash: bytes | None = None
    sample: Block = ()

    def get_verified_hash(self) -> str:
        """Return the verified hash of the whole Xet file; to be called after the last block.

        Raises:
            IntegrityError: the file was not verified.
        """
        if self.reader is None or self.file_hash is None or not self.reader.is_verified:
            raise IntegrityError("the file was not verified")
        return format_hash(self.file_hash)


class Content(Protocol):
    """A file whose ranges can be opened any number of times."""

    async def open(self, span: Span | None, *, has_begun: bool = False) -> Opened:
        """Start reading a range, or the whole file; the result may be the whole file in any case.

        Args:
            has_begun: the client has the beginning of the body already, so it waits longer.

        Raises:
            UpstreamError: the upstream fails or refuses.
            IntegrityError: the data is damaged.
        """
        ...


class XetContent:
    """A Xet file.

    Args:
        size: bytes; None: unknown.
        record: of the request that reads the file.
        on_open: called once the CAS has shown the file.
        client: that gets the bytes; None: nobody.
    """

    def __init__(
        self,
        engine: Engine,
        access: Access,
        file_hash: bytes,
        size: int | None,
        record: Record,
        on_open: Callable[[], object] = lambda: None,
        *,
        client: str | None = None,
    ) -> None:
        self._engine = engine
        self._access = access
        self._file_hash = file_hash
        self._size = size
        self._record = record
        self._on_open = on_open
        self._client = client

    def prove(self) -> float:
        """Start a proof of the file after a cut; see Engine.prove."""
        assert self._size is not None
        return self._engine.prove(self._access, self._file_hash, self._size)

    async def open(self, span: Span | None, *, has_begun: bool = False) -> Opened:
        """See Content."""
        reader = self._engine.read(
            self._access,
            self._file_hash,
            start=span.start if span else 0,
            end=span.end if span else None,
            size=self._size,
            on_close=partial(note_source, self._record),
            client=self._client,
        )
        await reader.start(has_begun=has_begun)
        self._on_open()
        return Opened(reader, span, span.size if span else self._size, reader, self._file_hash)


class BlobContent:
    """A file that is not Xet. The Hub may answer a request for a range with the whole file.

    Args:
        gap_timeout: seconds without a byte.
        outage_patience: the same once the body has begun, failures of the Hub included.
        blob_cache: stores such files; None: they are not stored.
        record: of the request that reads the file.
        budget: counts the buffers of the body.
    """

    def __init__(
        self,
        hub: HubClient,
        entry: FileEntry,
        token: str | None,
        gap_timeout: float,
        outage_patience: float,
        blob_cache: BlobCache | None,
        record: Record,
        budget: ByteBudget,
    ) -> None:
        self._hub = hub
        self._entry = entry
        self._token = token
        self._gap_timeout = gap_timeout
        self._patience = outage_patience
        self._blob_cache = blob_cache
        self._record = record
        self._budget = budget

    async def open(self, span: Span | None, *, has_begun: bool = False) -> Opened:
        """See Content."""
        patience = self._patience if has_begun else 0.0
        key = BlobKey.of(self._entry)
        if self._blob_cache is None or key is None or not self._blob_cache.can_keep(key.size):
            return await self._open_hub(span, None, patience)
        if not key.size and key.make_hash().hexdigest() == key.digest:
            return Opened(no_blocks(), span, 0)
        wanted = span or Span(0, key.size)
        stored = await self._blob_cache.open(key, *wanted)
        if stored is None:
            return await self._open_hub(span, key, patience)
        reader = BlobReader(self._hub, self._entry, self._token, stored, wanted.end, self._record)
        reader.patience = patience
        # A large stored file was checked block by block only, and the Hub may have to continue it.
        digest = ContentDigest.of(self._entry) if span is None else None
        length = wanted.size
        self._record.cache_hits = (self._record.cache_hits or 0) + 1
        self._record.cache_bytes = (self._record.cache_bytes or 0) + length
        body = BlobBody(
            reader,
            reader,
            digest,
            self._gap_timeout,
            self._budget,
            on_damage=partial(self._blob_cache.condemn, key),
        )
        await body.start()
        reader.patience = self._patience
        return Opened(body, span, length, sample=body.first)

    async def _open_hub(self, span: Span | None, key: BlobKey | None, patience: float) -> Opened:
        """Open the file at the Hub, and store it under the key if the Hub sends all of it.

        Args:
            patience: see HubSource; of the time before the first block.
        """
        wanted = None if span is None else ByteRange(*span).to_header()
        start, end = (0, self._entry.size) if span is None else span
        source = HubSource(self._hub, self._entry, self._token, start, end)
        source.patience = patience
        answer = await source.open(wanted)
        is_part = answer.status == 206
        digest = None if is_part else ContentDigest.of(self._entry)
        writer = None
        if self._blob_cache is not None and key is not None and answer.status == 200:
            writer = self._blob_cache.open_writer(key)
        # From here on the body owns the connection, and releases it in every case.
        body = BlobBody(source, source, digest, self._gap_timeout, self._budget, writer=writer)
        length = answer.content_length
        coding = answer.headers.get("content-encoding", "identity")
        expected = span.size if is_part and span is not None else self._entry.size
        await body.start()
        if (
            coding != "identity"
            or answer.status == 416
            or (is_part and not _is_range(answer.headers.get("content-range"), span))
            or (length is not None and expected is not None and length != expected)
        ):
            await body.aclose()
            raise UpstreamRefused("the Hub's answer does not match its description of the file")
        source.patience = self._patience
        length = expected if length is None else length
        return Opened(body, span if is_part else None, length, sample=body.first)


def note_source(record: Record, tally: Tally, is_verified: bool) -> None:
    """Add the bytes of a part to the record; several parts are verified if each of them is."""
    record.upstream_bytes = (record.upstream_bytes or 0) + tally.upstream_bytes
    record.cache_bytes = (record.cache_bytes or 0) + tally.cache_bytes
    record.cache_hits = (record.cache_hits or 0) + tally.cache_hits
    record.is_verified = is_verified and record.is_verified is not False


def _is_range(content_range: str | None, span: Span | None) -> bool:
    """Return whether a 206 has the requested range."""
    parsed = parse_content_range(content_range or "")
    return parsed is not None and parsed[0] == span
