"""Serve files by sha256. The Hub finds files by path, so the path is looked up first; then the Hub
decides whether the client may read it.
"""

import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from xetserve.app.download.representation import describe_entry
from xetserve.app.download.service import FileService, head_timeout
from xetserve.errors import UpstreamMissing, UpstreamRefused
from xetserve.http.messages import Request, Response
from xetserve.http.ranges import parse_content_range
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import FileEntry, HubClient, RepoRef
from xetserve.upstream.hub.listing import LargeFiles

_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def is_sha256(text: str) -> bool:
    """Return whether a text is a sha256 in lower-case hex."""
    return _SHA256.fullmatch(text) is not None


class ObjectService:
    """Serves files by their sha256.

    Args:
        limits: gap_timeout bounds the time until the head is sent.
    """

    def __init__(self, files: FileService, hub: HubClient, limits: ReadLimits) -> None:
        self._files = files
        self._hub = hub
        self._limits = limits
        self._large_files = LargeFiles()

    async def get(
        self,
        request: Request,
        repo: RepoRef,
        revision: str,
        digest: str,
        token: str | None,
        look_up: Callable[[HubClient], Awaitable[FileEntry]],
    ) -> Response:
        """Answer GET and HEAD for a file.

        Args:
            revision: searched for the file first.
            digest: a sha256 in lower-case hex.
            look_up: asks the Hub for a file that is not in the revision. The Hub's bytes are passed
                on, and the whole is checked against the digest.

        Raises:
            RequestError: the client must change something.
            UpstreamError: the Hub or the CAS fails or refuses.
            IntegrityError: the data is damaged.
        """
        hub = self._hub.on_behalf(request.headers, names_agent=True)
        request.record.repo, request.record.file = repo.id, f"sha256:{digest}"
        async with head_timeout(self._limits):
            entry = await self._find(hub, repo, revision, digest, token)
            if entry is None:
                entry = await look_up(hub)
                if entry.size is None:
                    entry = replace(entry, size=await _measure(hub, entry, token))
                entry = replace(entry, sha256=digest, etag=digest)
            file = replace(
                describe_entry(entry, digest, revision, is_public=token is None, now=time.time()),
                is_fixed=True,
                is_hub=True,
                is_attached=True,
                hides_xet=True,
            )
            return await self._files.get_described(request, hub, entry, file, repo, revision, token)

    async def _find(
        self, hub: HubClient, repo: RepoRef, revision: str, digest: str, token: str | None
    ) -> FileEntry | None:
        """Return the entry of a file at its path; None: the revision has no such file."""
        for _ in range(2):
            try:
                path = await self._large_files.find(hub, repo, revision, digest, token)
                if path is None:
                    return None
                entry = await hub.resolve(repo, revision, path, token)
            except UpstreamMissing as exc:
                if exc.code not in ("RevisionNotFound", "EntryNotFound"):
                    raise
                entry = None
            if entry is not None and entry.sha256 == digest:
                return entry
            # The list of paths is older than a push: read it again.
            self._large_files.forget(repo, revision, token)
        return None


async def _measure(hub: HubClient, entry: FileEntry, token: str | None) -> int:
    """Return the size of a file in bytes, from the answer to a request for its first byte."""
    async with hub.open_plain(entry, token, "bytes=0-0") as answer:
        found = parse_content_range(answer.headers.get("content-range") or "")
        size = found[1] if found is not None else answer.content_length
    if size is None:
        raise UpstreamRefused("the Hub does not name the size of the file")
    return size
