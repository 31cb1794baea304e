"""The CAS: it returns reconstructions, and takes xorbs and shards.

A token is for one repository: it reads the files that the repository's commits have named. To its
bearer, a file that it may not read looks like a file that does not exist.

Source: hub-docs xet/api.md; xet-core cas_client/simulation.
"""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Final

from xetserve.errors import FormatError, RequestError
from xetserve.http.messages import Request, Response, json_response
from xetserve.http.ranges import Span, UnsatisfiableRange, format_unsatisfied_range, parse_range
from xetserve.origin.api.auth import get_bearer
from xetserve.origin.faults import Misbehaviour
from xetserve.origin.store.commits import REPO_TYPES
from xetserve.origin.store.files import FileRecord, find_whole_terms, make_file_record
from xetserve.origin.store.library import Library
from xetserve.origin.store.repos import Repo
from xetserve.origin.store.signing import Signer, split_ranges
from xetserve.origin.store.xorbs import MAX_UPLOAD_SIZE
from xetserve.xet.batch import MAX_BATCH_SIZE, make_batch_answer, parse_batch, parse_batch_names
from xetserve.xet.hashes import MerkleTree, format_hash, hash_range, parse_hash
from xetserve.xet.reconstruction import FetchInfo, Reconstruction, Term, to_v1, to_v2
from xetserve.xet.shard import MAX_SHARD_SIZE, Shard, ShardFile, ShardXorb, parse_shard
from xetserve.xet.xorb import MAX_XORB_SIZE

NDJSON: Final = "application/x-ndjson"
MAX_SHARD_CHUNKS: Final = 2**25  # chunks of all files of a shard: two terabytes
CHUNKS_AT_ONCE: Final = 4096  # chunks that are hashed in one turn of the loop


class CasApi:
    """The CAS calls of readers and uploaders."""

    def __init__(
        self,
        library: Library,
        signer: Signer,
        *,
        url_lifetime: float,
        data_url: str | None,
        misbehaviour: Callable[[], Misbehaviour],
    ) -> None:
        self._library = library
        self._signer = signer
        self._url_lifetime = url_lifetime
        self._data_url = data_url.rstrip("/") if data_url is not None else None
        self._misbehaviour = misbehaviour

    async def authorize(self, request: Request, scope: str) -> Repo:
        """Return the repository that the request's token is for.

        Raises:
            RequestError: 401: no valid token; 403: a token that may only read.
        """
        token = get_bearer(request.headers)
        grant = self._signer.parse_token(token) if token else None
        repo = None
        if grant is not None:
            repo = await self._library.repos.get(REPO_TYPES[grant.repo_type], grant.repo_id)
        if grant is None or repo is None:
            raise RequestError(401, "the CAS token is wrong or has expired")
        if scope == "write" and grant.scope != "write":
            raise RequestError(403, "the CAS token may only read")
        return repo

    async def reconstruct(self, request: Request, name: str, version: int) -> Response:
        """Answer GET /v1/reconstructions/{hash}, /v2/... and, as version 1, without a version."""
        faults = self._misbehaviour().faults
        if version == 2 and faults.v2_status is not None:
            raise RequestError(faults.v2_status, "there is no v2, as the test controls want it")
        record = await self._find_file(request, _parse_name(name))
        span = _parse_file_range(request.headers.get("range"), record.size)
        single = version == 1 or faults.v2_one_entry_per_range
        answer = await self._plan(request, record, span, single)
        return json_response(200, to_v1(answer) if version == 1 else to_v2(answer))

    async def reconstruct_several(self, request: Request) -> Response:
        """Answer POST and GET /v1/reconstructions, also without a version; GET has ?file_id=."""
        await self.authorize(request, "read")
        if request.method == "POST":
            hashes = parse_batch(await request.body.read(MAX_BATCH_SIZE))
        else:
            names = [value for name, value in request.query_pairs if name == "file_id"]
            hashes = parse_batch_names(names)
        terms: dict[bytes, list[Term]] = {}
        for file_hash in hashes:
            record = await self._find_file(request, file_hash)
            _, terms[file_hash] = await self._library.files.find_terms(record, Span(0, record.size))
        everything = [term for found in terms.values() for term in found]
        infos = await self._sign(request, everything, single=True)
        return json_response(200, make_batch_answer(terms, infos))

    async def _plan(
        self, request: Request, record: FileRecord, span: Span, single: bool
    ) -> Reconstruction:
        """Return the terms of a range, and signed URLs for their data; single: see _sign."""
        faults = self._misbehaviour().faults
        if faults.untrimmed_terms:
            offset, terms = find_whole_terms(record, span)
        else:
            offset, terms = await self._library.files.find_terms(record, span)
        fetch_info = await self._sign(request, terms, single=single)
        if faults.wrong_term_length and terms:
            size = max(0, terms[0].decoded_size + faults.wrong_term_length)
            terms[0] = terms[0]._replace(decoded_size=size)
        return Reconstruction(offset, tuple(terms), fetch_info)

    async def _sign(
        self, request: Request, terms: Sequence[Term], *, single: bool
    ) -> dict[bytes, tuple[FetchInfo, ...]]:
        """Return signed URLs for the data of terms.

        Args:
            single: one URL for each range, instead of one for all ranges of a xorb.
        """
        base = self._data_url or request.base_url
        lifetime = self._misbehaviour().faults.url_lifetime
        expires = self._signer.get_expiry(self._url_lifetime if lifetime is None else lifetime)
        fetch_info = {}
        for xorb_hash, ranges in (await self._library.files.find_fetch_ranges(terms)).items():
            infos: list[FetchInfo] = []
            byte_ranges = [byte_range for _, byte_range in ranges]
            for part in [[r] for r in byte_ranges] if single else split_ranges(byte_ranges):
                url = self._signer.make_data_url(base, xorb_hash, part, expires)
                infos += (
                    FetchInfo(chunks, byte_range, url)
                    for chunks, byte_range in ranges[len(infos) : len(infos) + len(part)]
                )
            fetch_info[xorb_hash] = tuple(infos)
        return fetch_info

    async def head_file(self, request: Request, name: str) -> Response:
        """Answer HEAD /v1/files/{hash}."""
        return Response(200, length=(await self._find_file(request, _parse_name(name))).size)

    async def _find_file(self, request: Request, file_hash: bytes) -> FileRecord:
        """Return a file that the token may read.

        Raises:
            RequestError: 401, 404.
        """
        repo = await self.authorize(request, "read")
        record = None
        if await repo.has_file(file_hash):
            record = await self._library.files.get(file_hash)
        if record is None:
            raise RequestError(404, f"file {format_hash(file_hash)} is not known")
        return record

    async def head_xorb(self, request: Request, name: str) -> Response:
        """Answer HEAD /v1/xorbs/{prefix}/{hash}."""
        xorb_hash = _parse_name(name)
        await self.authorize(request, "read")
        index = await self._library.xorbs.get_index(xorb_hash)
        if index is None:
            raise RequestError(404, f"xorb {name} is not known")
        return Response(200, length=index.packed_size)

    async def find_chunk(self, request: Request) -> Response:
        """Answer GET /v1/chunks/{prefix}/{hash}: there is no global deduplication here."""
        await self.authorize(request, "read")
        raise RequestError(404, "the chunk is not known")

    async def post_xorb(self, request: Request, name: str) -> Response:
        """Answer POST /v1/xorbs/{prefix}/{hash}."""
        xorb_hash = _parse_name(name)
        await self.authorize(request, "write")
        announced = request.headers.get("content-length") or "0"
        if int(announced) > MAX_UPLOAD_SIZE:
            raise RequestError(413, f"a xorb has at most {MAX_XORB_SIZE} bytes")
        inserted = await self._library.xorbs.put(xorb_hash, request.body)
        return json_response(200, {"was_inserted": inserted})

    async def post_shard(self, request: Request, version: int) -> Response:
        """Answer POST /v2/shards, /v1/shards and, as version 1, /shards."""
        repo = await self.authorize(request, "write")
        body = await request.body.read(MAX_SHARD_SIZE)
        shard = await asyncio.to_thread(parse_shard, body)
        records = await self._check_shard(shard)
        result = int(await asyncio.to_thread(self._register, repo, records))
        if version == 1:
            return json_response(200, {"result": result})
        count = len(records)
        lines = (
            {"type": "validating", "verified": count, "total": count},
            {"type": "committing", "stage": "syncing"},
            {"type": "result", "result": result},
        )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        return Response(200, [("Content-Type", NDJSON)], text.encode())

    async def _check_shard(self, shard: Shard) -> list[FileRecord]:
        """Return the files of a shard after checking everything in it.

        The sha256 is not checked; it counts in the uploader's own repository only.

        Raises:
            FormatError: an unknown xorb, or a wrong hash or size.
        """
        # Records without content would cost work but hardly any bytes. All empty files are one.
        if sum(not file.terms for file in shard.files) > 1:
            raise FormatError("shard with several empty files")
        if not all(xorb.chunks for xorb in shard.xorbs):
            raise FormatError("shard with a xorb without chunks")
        if await asyncio.to_thread(_count_chunks, shard) > MAX_SHARD_CHUNKS:
            raise FormatError(f"shard with files of more than {MAX_SHARD_CHUNKS} chunks")
        for xorb in shard.xorbs:
            await self._check_xorb(xorb)
            await asyncio.sleep(0)
        return [await self._check_file(file) for file in shard.files]

    async def _check_xorb(self, xorb: ShardXorb) -> None:
        index = await self._library.xorbs.get_index(xorb.xorb_hash)
        name = format_hash(xorb.xorb_hash)
        if index is None:
            raise FormatError(f"xorb {name} was not uploaded")
        if b"".join(chunk.chunk_hash for chunk in xorb.chunks) != index.hashes:
            raise FormatError(f"xorb {name} has other chunks than the shard says")

    async def _check_file(self, file: ShardFile) -> FileRecord:
        name = format_hash(file.file_hash)
        if file.range_hashes is None and file.terms:
            raise FormatError(f"file {name}: no verification hashes")
        tree = MerkleTree()
        for term, range_hash in zip(file.terms, file.range_hashes or (), strict=True):
            await self._check_term(term, range_hash, tree)
            # A file of a terabyte has ten million chunks: others need their turns.
            await asyncio.sleep(0)
        if tree.file_hash() != file.file_hash:
            raise FormatError(f"file {name}: its chunks hash to {format_hash(tree.file_hash())}")
        return make_file_record(file.file_hash, file.terms, file.sha256)

    async def _check_term(self, term: Term, range_hash: bytes, tree: MerkleTree) -> None:
        """Check a term against its xorb, and add its chunks to the file's tree."""
        index = await self._library.xorbs.get_index(term.xorb_hash)
        name = format_hash(term.xorb_hash)
        if index is None:
            raise FormatError(f"a file names xorb {name}, which was not uploaded")
        if term.chunks.end > index.num_chunks:
            raise FormatError(
                f"a file names chunk {term.chunks.end - 1} of xorb {name}, "
                f"which has {index.num_chunks}"
            )
        if index.decoded_size(term.chunks) != term.decoded_size:
            raise FormatError(
                f"a term over xorb {name} has {index.decoded_size(term.chunks)} bytes, "
                f"not {term.decoded_size}"
            )
        leaves = list(index.leaves(term.chunks))
        if len(leaves) <= CHUNKS_AT_ONCE:
            actual = _add_leaves(tree, leaves)
        else:  # a few bytes of a shard can name all of them
            actual = await asyncio.to_thread(_add_leaves, tree, leaves)
        if actual != range_hash:
            raise FormatError(f"a verification hash over chunks of xorb {name} is wrong")

    def _register(self, repo: Repo, records: Sequence[FileRecord]) -> bool:
        """Store files; return whether at least one of them is new."""
        is_new = False
        for record in records:
            is_new |= self._library.files.put(record)
            if record.sha256 is not None:
                repo.add_upload(record.sha256, record.file_hash)
        return is_new


def _count_chunks(shard: Shard) -> int:
    """Return the number of chunks of all files."""
    return sum(term.chunks.end - term.chunks.start for file in shard.files for term in file.terms)


def _add_leaves(tree: MerkleTree, leaves: Sequence[tuple[bytes, int]]) -> bytes:
    """Add chunks to a file's tree; return their verification hash."""
    for chunk_hash, size in leaves:
        tree.add(chunk_hash, size)
    return hash_range(chunk_hash for chunk_hash, _ in leaves)


def _parse_name(name: str) -> bytes:
    try:
        return parse_hash(name)
    except ValueError as exc:
        raise RequestError(400, str(exc)) from None


def _parse_file_range(header: str | None, size: int) -> Span:
    """Parse the Range header of a reconstruction request.

    Raises:
        RequestError: 416: malformed, several ranges, or a start past the end of the file.
    """
    if header is None:
        return Span(0, size)
    if not size and header.startswith("bytes=0-"):
        return Span(0, 0)  # the file is empty
    try:
        span = parse_range(header, size)
    except UnsatisfiableRange:
        span = None
    if span is None:
        field = ("Content-Range", format_unsatisfied_range(size))
        raise RequestError(416, f"the file has {size} bytes", [field])
    return span
