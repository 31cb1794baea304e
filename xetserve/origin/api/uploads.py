"""The writing part of the Hub's API: LFS and commits.

A commit names large files by sha256 only. Their content was uploaded before: through the CAS, whose
shards carry the sha256, or by an LFS PUT, which is packed into xorbs on arrival. It must have been
uploaded to the same repository: knowing a sha256 gives no access to another one's content.

Source: huggingface_hub _commit_api.py and lfs.py.
"""

import asyncio
import base64
import binascii
import re
from collections.abc import AsyncGenerator, AsyncIterable
from typing import Any, Final
from urllib.parse import quote

from xetserve.base.json_text import parse_json
from xetserve.errors import FormatError, RequestError
from xetserve.http.messages import Request, Response, json_response
from xetserve.origin.api.auth import Gatekeeper, hub_error
from xetserve.origin.api.hub import find_commit, is_true, read_json
from xetserve.origin.store.commits import Commit, CommitInfo, Entry, RepoType
from xetserve.origin.store.library import (
    AddFile,
    Change,
    DeleteFile,
    DeleteFolder,
    Library,
    StagedBlob,
)
from xetserve.origin.store.modes import MAX_PLAIN_SIZE, SAMPLE_SIZE, is_large_file
from xetserve.origin.store.names import is_valid_path
from xetserve.origin.store.repos import Repo
from xetserve.origin.store.signing import Signer

# Bytes of one line of a commit: a git blob of the largest size that the Hub takes, in base64. The
# memory for a commit is about five times as large.
MAX_LINE_SIZE: Final = MAX_PLAIN_SIZE * 3 // 2
MAX_LINES: Final = 100_000  # lines of one commit, with empty ones
LFS_URL_LIFETIME: Final = 3600.0  # seconds
LFS_TYPE: Final = "application/vnd.git-lfs+json"

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class UploadApi:
    """The calls that upload content."""

    def __init__(
        self,
        library: Library,
        gatekeeper: Gatekeeper,
        signer: Signer,
        *,
        bridge_url: str | None = None,
    ) -> None:
        self._library = library
        self._gatekeeper = gatekeeper
        self._signer = signer
        self._bridge_url = bridge_url

    async def preupload(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer POST .../{id}/preupload/{rev}: which files are large, and which exist already."""
        commit = await find_commit(repo, revision)
        files = (await read_json(request)).get("files")
        if not isinstance(files, list):
            raise hub_error(400, "files must be a list")
        return json_response(200, {"files": [_choose_mode(commit, file) for file in files]})

    async def lfs_batch(self, request: Request, repo: Repo, value: dict[str, Any]) -> Response:
        """Answer POST /{id}.git/info/lfs/objects/batch; value is its body."""
        objects, operation = value.get("objects"), value.get("operation")
        if not isinstance(objects, list) or operation not in ("upload", "download"):
            raise hub_error(422, "an LFS batch has an operation and objects")
        transfers = value.get("transfers") or ["basic"]
        if not isinstance(transfers, list):
            raise hub_error(422, "transfers must be a list")
        is_xet = operation == "upload" and "xet" in transfers
        found = [await self._lfs_object(request, repo, item, operation) for item in objects]
        answer = {"transfer": "xet" if is_xet else "basic", "objects": found, "hash_algo": "sha256"}
        response = json_response(200, answer)
        response.headers[0] = ("Content-Type", LFS_TYPE)
        return response

    async def _lfs_object(
        self, request: Request, repo: Repo, item: Any, operation: str
    ) -> dict[str, Any]:
        sha256, size = _read_lfs_object(item)
        file_hash = await repo.get_upload(sha256)
        found: dict[str, Any] = {"oid": sha256, "size": size}
        expires = self._signer.get_expiry(LFS_URL_LIFETIME)
        if operation == "download":
            if file_hash is None:
                return found | {"error": {"code": 404, "message": "no such object"}}
            path = f"/bridge/{repo.type.plural}/{quote(repo.id, safe='')}/{sha256}"
            base = self._bridge_url or request.base_url
            url = self._signer.make_url(base, path, {}, expires)
            return found | {"actions": {"download": {"href": url, "header": {}}}}
        if file_hash is not None:
            return found  # without actions, the client does not upload it again
        path = f"/lfs/{repo.type.plural}/{quote(repo.id, safe='')}/{sha256}"
        url = self._signer.make_url(request.base_url, path, {"size": str(size)}, expires)
        return found | {"actions": {"upload": {"href": url, "header": {}}}}

    async def lfs_put(
        self, request: Request, repo_type: RepoType, repo_id: str, sha256: str
    ) -> Response:
        """Answer PUT /lfs/{type}s/{id}/{sha256}, as lfs_batch signed it."""
        problem = self._signer.check_url(request.raw_path, request.query)
        if problem is not None:
            raise hub_error(403, problem)
        repo = await self._library.repos.get(repo_type, repo_id)
        if repo is None:
            raise hub_error(404, "Repository not found", "RepoNotFound")
        size = int(request.query["size"])
        ingest = self._library.make_ingest()
        try:
            ingested = await ingest.add_file(_limit(request.body, size))
            if (ingested.sha256, ingested.size) != (sha256, size):
                raise hub_error(
                    400,
                    f"{ingested.size} bytes with sha256 {ingested.sha256}, "
                    f"expected {size} with {sha256}",
                )
            await ingest.publish()
        finally:
            await ingest.abort()
        await asyncio.to_thread(repo.add_upload, sha256, ingested.file_hash)
        return Response(200)

    async def commit(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer POST .../{id}/commit/{rev}, NDJSON; with create_pr=1 onto a new refs/pr/N."""
        creates_pr = is_true(request.query.get("create_pr"))
        staged: list[StagedBlob] = []
        try:
            header, changes = await self._read_commit(request, repo, staged)
            info = _read_commit_header(header, self._gatekeeper.identify(request.headers).user)
            async with repo.lock:
                ref = _choose_ref(repo, revision, creates_pr)
                base = await find_commit(repo, revision)
                parent = header.get("parentCommit")
                if parent is not None and parent != base.id:
                    raise hub_error(
                        412, "A commit has happened since. Please refresh and try again."
                    )
                try:
                    made = await self._library.commit(repo, ref, base, changes, info, blobs=staged)
                except RequestError as exc:
                    code = "EntryNotFound" if exc.status == 404 else None
                    raise hub_error(exc.status, str(exc), code, base.id) from None
        finally:
            await self._library.discard_blobs(staged)
        return json_response(200, _describe_commit(request, repo, ref, made, creates_pr))

    async def _read_commit(
        self, request: Request, repo: Repo, staged: list[StagedBlob]
    ) -> tuple[dict[str, Any], list[Change]]:
        """Read the lines of a commit; content of git blobs is written to temporary files."""
        header: dict[str, Any] | None = None
        changes: list[Change] = []
        async for line in _iter_lines(request.body):
            if not line.strip():
                continue
            try:
                item = parse_json(line)
                key, value = item["key"], item["value"]
            except (FormatError, TypeError, KeyError):
                raise hub_error(400, "a line of the commit is not {key, value}") from None
            if not isinstance(value, dict):
                raise hub_error(400, "a line of the commit has no object for a value")
            if key == "header":
                header = value
                continue
            changes.append(await self._read_change(repo, key, value, staged))
        if header is None:
            raise hub_error(400, "the commit has no header")
        return header, changes

    async def _read_change(
        self, repo: Repo, key: Any, value: dict[str, Any], staged: list[StagedBlob]
    ) -> Change:
        path = value.get("path")
        if not isinstance(path, str) or not is_valid_path(path.rstrip("/")):
            raise hub_error(400, f"{path!r} is not a valid path")
        if key == "deletedFolder":
            return DeleteFolder(path)
        if not is_valid_path(path):
            raise hub_error(400, f"{path!r} is not a valid path")
        if key == "deletedFile":
            return DeleteFile(path)
        if key == "file":
            blob = await self._library.stage_blob(_read_content(value))
            staged.append(blob)
            return AddFile(Entry(path, blob.size, blob.oid))
        if key == "lfsFile":
            return AddFile(await self._make_large_entry(repo, path, value))
        raise hub_error(400, f"a line of the commit has an unknown key: {key!r}")

    async def _make_large_entry(self, repo: Repo, path: str, value: dict[str, Any]) -> Entry:
        sha256, size = value.get("oid"), value.get("size")
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise hub_error(400, f"{path}: oid must be a sha256")
        file_hash = await repo.get_upload(sha256)
        record = await self._library.files.get(file_hash) if file_hash is not None else None
        if record is None:
            raise hub_error(400, f"{path}: its content, sha256 {sha256}, was not uploaded")
        if size is not None and size != record.size:
            raise hub_error(400, f"{path}: {record.size} bytes were uploaded, not {size}")
        return self._library.make_large_entry(path, sha256, record.size, record.file_hash)


def _choose_mode(commit: Commit, file: Any) -> dict[str, Any]:
    try:
        path, size = file["path"], file["size"]
        sample = base64.b64decode(file.get("sample") or "")
    except (TypeError, KeyError, AttributeError, binascii.Error):
        raise hub_error(400, "a file needs a path, a size and a sample") from None
    if not isinstance(path, str) or type(size) is not int:
        raise hub_error(400, "a file needs a path, a size and a sample")
    is_large = is_large_file(path, size, sample[:SAMPLE_SIZE])
    answer = {"path": path, "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    present = commit.entries.get(path)
    if present is not None:
        # Clients compare it with their own sha256, or git id, and leave out what is the same.
        answer["oid"] = present.sha256 or present.oid
    return answer


def _read_lfs_object(item: Any) -> tuple[str, int]:
    try:
        sha256, size = item["oid"], item["size"]
    except (TypeError, KeyError):
        raise hub_error(422, "an LFS object has an oid and a size") from None
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise hub_error(422, "an LFS oid is a sha256")
    if type(size) is not int or size < 0:
        raise hub_error(422, "an LFS size is a number of bytes")
    return sha256, size


def _read_content(value: dict[str, Any]) -> bytes:
    content, encoding = value.get("content"), value.get("encoding", "utf-8")
    if not isinstance(content, str) or encoding not in ("base64", "utf-8"):
        raise hub_error(400, "a file has content, in base64 or utf-8")
    if encoding == "utf-8":
        return content.encode("utf-8", "surrogatepass")
    try:
        return base64.b64decode(content, validate=True)
    except ValueError:
        raise hub_error(400, "a file's content is not base64") from None


def _read_commit_header(header: dict[str, Any], user: str | None) -> CommitInfo:
    title, message = header.get("summary"), header.get("description") or ""
    if not isinstance(title, str) or not title or not isinstance(message, str):
        raise hub_error(400, "a commit has a summary")
    try:
        f"{title}{message}".encode()
    except UnicodeEncodeError:  # half a surrogate pair
        raise hub_error(400, "the summary or the description is not Unicode") from None
    return CommitInfo(title, message, user or "")


def _choose_ref(repo: Repo, revision: str, creates_pr: bool) -> str:
    """Return the ref that a commit goes to."""
    if creates_pr:
        numbers = (int(ref.rpartition("/")[2]) for ref in repo.refs if ref.startswith("refs/pr/"))
        return f"refs/pr/{max(numbers, default=0) + 1}"
    ref = repo.find_ref(revision)
    if ref is None:
        raise hub_error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    if ref.startswith("refs/tags/"):
        raise hub_error(400, f"{revision} is a tag: commits go to branches")
    return ref


def _describe_commit(
    request: Request, repo: Repo, ref: str, commit: Commit, creates_pr: bool
) -> dict[str, Any]:
    base = request.base_url + repo.url_path
    answer = {
        "success": True,
        "commitUrl": f"{base}/commit/{commit.id}",
        "commitOid": commit.id,
        "hookOutput": "",
    }
    if creates_pr:
        answer["pullRequestUrl"] = f"{base}/discussions/{ref.removeprefix('refs/pr/')}"
    return answer


async def _limit(body: AsyncIterable[bytes], size: int) -> AsyncGenerator[bytes, None]:
    """Pass a body on, and refuse it once it is longer than announced."""
    async for piece in body:
        size -= len(piece)
        if size < 0:
            raise hub_error(400, "more bytes than were announced")
        yield piece


async def _iter_lines(body: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """Yield the lines of a body, empty ones too.

    Raises:
        RequestError: 413: a line is too long, or there are too many.
    """
    held = bytearray()
    count = 0
    async for piece in body:
        *ends, rest = piece.split(b"\n")
        count += len(ends)
        if count > MAX_LINES:
            raise hub_error(413, f"a commit has at most {MAX_LINES} lines")
        for end in ends:
            yield bytes(held) + end
            held.clear()
        held += rest
        if len(held) > MAX_LINE_SIZE:
            raise hub_error(
                413,
                f"a line of the commit is longer than {MAX_LINE_SIZE} bytes: upload files of more "
                f"than {MAX_PLAIN_SIZE} bytes through git-lfs or the CAS first",
            )
    yield bytes(held)
