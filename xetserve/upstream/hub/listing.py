"""Where the large files of a repository are: the Hub's listing, page by page, read as far as it is
needed.

The Hub knows a file by its path; git-lfs and registries ask by sha256.

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
from xetserve.http.relay import find_link, move_url
from xetserve.upstream.hub.client import HubClient, RepoRef

MAX_FILES: Final = 20_000  # of one listing; a longer one is not read to its end
MAX_PAGES: Final = 1000  # of one listing, with a thousand entries each
MAX_MEMORY: Final = 8 * 1024 * 1024  # bytes, of all listings together
LISTING_COST: Final = 1500  # bytes of memory of a listing without files
FILE_COST: Final = 250  # and of a file, beside its path
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
    """A listing as far as it was read.

    target: where it goes on; None: it was read to its end, or is too long. cost: bytes of memory.
    """

    target: str | None
    expires: float
    num_pages: int = 0
    cost: int = LISTING_COST
    paths: dict[bytes, str] = field(default_factory=dict)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class LargeFiles:
    """Finds large files by their sha256. A path is where to look, not a right to read.

    A listing is kept once its first page has come: failures are not. Those who ask for it before
    that share it.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._listings: LruDict[_Key, _Listing] = LruDict(max_cost=MAX_MEMORY)
        self._begun: dict[_Key, _Listing] = {}  # asked for now, and nothing of it is known

    @property
    def num_kept(self) -> int:
        """Listings that are kept."""
        return len(self._listings)

    async def find(
        self, hub: HubClient, repo: RepoRef, revision: str, digest: str, token: str | None
    ) -> str | None:
        """Return the path of a file; None: the listing has none, or is too long.

        Who asks while a page is read waits for it. One that is cancelled loses nothing that was
        read.

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
        """List a repository anew the next time: a file was not where it was said to be."""
        listing = self._listings.pop(_make_key(repo, revision, token))
        if listing is not None:
            listing.expires = -math.inf  # whoever is reading it still does not bring it back

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
        """Read a page, and keep the listing. A failure changes nothing."""
        document, headers = await hub.ask(target, token, _MAX_PAGE_SIZE)
        found = _read_entries(document)
        link = find_link(", ".join(headers.get_all("link")), "next")
        following = None if link is None else move_url(link, hub.bases, "")
        if following is not None and (not following.startswith("/") or following == target):
            # The listing stays at this page, so that the next look-up fails in the same way.
            raise UpstreamRefused("the Hub's listing goes on elsewhere")
        listing.paths.update(found)
        listing.cost += sum(FILE_COST + len(path) for path in found.values())
        listing.num_pages += 1
        # Pages without large files have to end, too: they might lead back to one before.
        is_short = len(listing.paths) < MAX_FILES and listing.num_pages < MAX_PAGES
        listing.target = following if is_short else None
        if listing.expires >= self._clock():
            self._listings.put(key, listing, listing.cost)


def _make_key(repo: RepoRef, revision: str, token: str | None) -> _Key:
    return _Key(repo, revision, sha256((token or "").encode()).digest())


def _read_entries(document: bytes) -> dict[bytes, str]:
    """Read a page; what is not understood in it is left out."""
    try:
        entries = parse_json(document)
    except FormatError:
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
