"""Where the large files of a repository are: the Hub's listing, page by page, read as far as it is needed.

The Hub knows a file by its path; git-lfs and registries ask by sha256.

Source: huggingface_hub hf_api.py, list_repo_tree.
"""

import asyncio
import json
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.errors import UpstreamError, UpstreamRefused
from xetserve.http.forwarding import find_link, move_url
from xetserve.upstream.hub import HubClient, RepoRef

MAX_FILES: Final = 20_000  # remembered, of all repositories together: about 5 MiB
LIFETIME: Final = 60.0  # seconds; what was pushed since is found behind the next listing
_MAX_PAGE_SIZE: Final = 4 * 1024 * 1024  # bytes; a page has at most 1000 entries
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class _Key(NamedTuple):
    """What a listing is of, and for whom."""

    repo: RepoRef
    revision: str
    token: bytes


@dataclass(slots=True)
class _Listing:
    """A listing as far as it was read. target: where it goes on; None: it was read to its end, or is too long."""

    target: str | None
    expires: float
    paths: dict[bytes, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LargeFiles:
    """Finds large files by their sha256. A path is where to look, not a right to read.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listings: OrderedDict[_Key, _Listing] = OrderedDict()

    async def find(
        self, hub: HubClient, repo: RepoRef, revision: str, digest: str, token: str | None
    ) -> str | None:
        """Give the path of a file; None: the listing has none, or is too long.

        Who asks while a page is read waits for it. One that is cancelled loses nothing that was read.

        Args:
            digest: sha256, in lower-case hex.

        Raises:
            UpstreamError and its kinds: the Hub does not list the repository to this token.
        """
        listing = self._get_listing(repo, revision, token)
        wanted = bytes.fromhex(digest)
        async with listing.lock:
            while wanted not in listing.paths and listing.target is not None:
                await self._read_page(hub, listing, listing.target, token)
        return listing.paths.get(wanted)

    def forget(self, repo: RepoRef, revision: str, token: str | None) -> None:
        """List a repository anew the next time: a file was not where it was said to be."""
        self._listings.pop(_make_key(repo, revision, token), None)

    def _get_listing(self, repo: RepoRef, revision: str, token: str | None) -> _Listing:
        key = _make_key(repo, revision, token)
        listing = self._listings.get(key)
        if listing is None or listing.expires < self._clock():
            target = f"{repo.api_prefix}/tree/{quote(revision, safe='')}?recursive=true"
            listing = _Listing(target, self._clock() + LIFETIME)
            self._listings[key] = listing
        self._listings.move_to_end(key)
        return listing

    async def _read_page(
        self, hub: HubClient, listing: _Listing, target: str, token: str | None
    ) -> None:
        document, headers = await hub.ask(target, token, _MAX_PAGE_SIZE)
        listing.paths.update(_read_entries(document))
        following = find_link(", ".join(headers.get_all("link")), "next")
        next_target = None
        if following is not None and len(listing.paths) < MAX_FILES:
            next_target = move_url(following, hub.bases, "")
            # The listing stays at this page, so that the next look-up fails in the same way.
            if not next_target.startswith("/") or next_target == target:
                raise UpstreamRefused("the Hub's listing goes on elsewhere")
        listing.target = next_target
        # Of the oldest nothing is kept, and nothing but empty listings beyond.
        while len(self._listings) > 1 and self._count_files() > MAX_FILES:
            self._listings.popitem(last=False)

    def _count_files(self) -> int:
        """Give what the listings cost, in files; an empty one costs as one."""
        return sum(max(1, len(listing.paths)) for listing in self._listings.values())


def _make_key(repo: RepoRef, revision: str, token: str | None) -> _Key:
    return _Key(repo, revision, sha256((token or "").encode()).digest())


def _read_entries(document: bytes) -> dict[bytes, str]:
    """Read a page; what is not understood in it is left out."""
    try:
        entries = json.loads(document)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, list):
        raise UpstreamError("the Hub's listing is not what it should be")
    found = {}
    for entry in entries:
        lfs = entry.get("lfs") if isinstance(entry, dict) else None
        digest = lfs.get("oid") if isinstance(lfs, dict) else None
        path = entry.get("path") if isinstance(entry, dict) else None
        if isinstance(digest, str) and isinstance(path, str) and _SHA256.fullmatch(digest):
            found[bytes.fromhex(digest)] = path
    return found
