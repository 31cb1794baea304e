"""The large files of a repository: the Hub's listing, read page by page as far as it is needed.

The Hub names files by path; git-lfs and registries ask by sha256.

Source: huggingface_hub hf_api.py, list_repo_tree.
"""

import asyncio
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Final, NamedTuple
from urllib.parse import quote

from xetserve.base.json_text import parse_json
from xetserve.base.lru_dict import LruDict
from xetserve.errors import FormatError, UpstreamError, UpstreamRefused
from xetserve.http.relay import find_link, move_page
from xetserve.upstream.hub.client import HubClient, RepoRef

MAX_FILES: Final = 20_000  # files of one listing; a longer one is not read to its end
MAX_PAGES: Final = 1000  # pages of one listing, with a thousand entries each
MAX_MEMORY: Final = 8 * 1024 * 1024  # bytes, of all listings together
LISTING_COST: Final = 1500  # bytes of memory of a listing without files
FILE_COST: Final = 250  # and of a file, besides its path
LIFETIME: Final = 60.0  # seconds; later pushes are in the next listing
_MAX_PAGE_SIZE: Final = 4 * 1024 * 1024  # bytes; a page has at most 1000 entries
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class _Key(NamedTuple):
    """The repository, revision and client of a listing."""

    repo: RepoRef
    revision: str
    token: bytes


@dataclass(slots=True)
class _Listing:
    """A listing as far as it has been read.

    target: the next page; None: it has been read to its end, or is too long. cost: bytes of memory.
    """

    target: str | None
    expires: float
    num_pages: int = 0
    cost: int = LISTING_COST
    paths: dict[bytes, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LargeFiles:
    """Find large files by their sha256. A path says where to look; it gives no right to read.

    A listing is kept once its first page has come; a failure is not kept. Callers that ask before
    that share the request.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listings: LruDict[_Key, _Listing] = LruDict(max_cost=MAX_MEMORY)
        self._begun: dict[_Key, _Listing] = {}  # requested, and nothing has come yet

    @property
    def num_kept(self) -> int:
        """The number of listings that are kept."""
        return len(self._listings)

    async def find(
        self, hub: HubClient, repo: RepoRef, revision: str, digest: str, token: str | None
    ) -> str | None:
        """Return the path of a file; None: the listing does not have it, or is too long.

        Callers wait while a page is read. If one is cancelled, nothing that was read is lost.

        Args:
            digest: sha256, in lower-case hex.

        Raises:
            UpstreamError and its kinds: the Hub does not list the repository to this token.
        """
        key = _make_key(repo, revision, token)
        listing = self._get_listing(key)
        wanted = bytes.fromhex(digest)
        try:
            async with listing.lock:
                while wanted not in listing.paths and listing.target is not None:
                    await self._read_page(hub, key, listing, listing.target, token)
        finally:
            if self._begun.get(key) is listing:
                del self._begun[key]
        return listing.paths.get(wanted)

    def forget(self, repo: RepoRef, revision: str, token: str | None) -> None:
        """Read the listing anew next time: a file was not at its path."""
        listing = self._listings.pop(_make_key(repo, revision, token))
        if listing is not None:
            listing.expires = -math.inf  # a caller that is still reading it does not bring it back

    def _get_listing(self, key: _Key) -> _Listing:
        listing = self._listings.get(key) or self._begun.get(key)
        if listing is None or listing.expires < self._clock():
            self._listings.pop(key)
            target = f"{key.repo.api_prefix}/tree/{quote(key.revision, safe='')}?recursive=true"
            listing = _Listing(target, self._clock() + LIFETIME)
            self._begun[key] = listing
        return listing

    async def _read_page(
        self, hub: HubClient, key: _Key, listing: _Listing, target: str, token: str | None
    ) -> None:
        """Read a page and keep the listing. A failure changes nothing."""
        document, headers = await hub.ask(target, token, _MAX_PAGE_SIZE)
        found = _read_entries(document)
        link = find_link(", ".join(headers.get_all("link")), "next")
        path = target.partition("?")[0]
        following = None if link is None else move_page(link, path, hub.bases, "")
        if following is not None and (not following.startswith("/") or following == target):
            # The listing stays at this page, so that the next look-up fails in the same way.
            raise UpstreamRefused("the Hub's listing continues on another host")
        listing.paths.update(found)
        listing.cost += sum(FILE_COST + len(path) for path in found.values())
        listing.num_pages += 1
        # Pages without large files count, too: they might lead back to an earlier one.
        is_short = len(listing.paths) < MAX_FILES and listing.num_pages < MAX_PAGES
        listing.target = following if is_short else None
        if listing.expires >= self._clock():
            self._listings.put(key, listing, listing.cost)


def _make_key(repo: RepoRef, revision: str, token: str | None) -> _Key:
    return _Key(repo, revision, sha256((token or "").encode()).digest())


def _read_entries(document: bytes) -> dict[bytes, str]:
    """Parse a page; entries that are not understood are left out."""
    try:
        entries = parse_json(document)
    except FormatError:
        entries = None
    if not isinstance(entries, list):
        raise UpstreamError("the Hub's listing is not a JSON array of files")
    found = {}
    for entry in entries:
        lfs = entry.get("lfs") if isinstance(entry, dict) else None
        digest = lfs.get("oid") if isinstance(lfs, dict) else None
        path = entry.get("path") if isinstance(entry, dict) else None
        if isinstance(digest, str) and isinstance(path, str) and _SHA256.fullmatch(digest):
            found[bytes.fromhex(digest)] = path
    return found
