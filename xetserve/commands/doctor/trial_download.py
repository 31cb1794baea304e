"""The trial download of `xetserve doctor`: find a file, query the CAS, and read the file.

The checks use the code that a server runs for a client.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from xetserve.base.sizes import format_size
from xetserve.commands.doctor.findings import (
    STEP_TIMEOUT,
    Finding,
    Level,
    advise_on_connection,
    describe_error,
    describe_time,
)
from xetserve.commands.pull.listing import HandlerClient
from xetserve.commands.pull.progress import show
from xetserve.commands.serve.wiring import make_application, open_upstreams
from xetserve.config.schema import Config
from xetserve.errors import UpstreamDenied, UpstreamError, XetserveError
from xetserve.upstream.cas.source import CasSource
from xetserve.upstream.hub.client import FileEntry, HubClient, ReadAccess, RepoRef
from xetserve.xet.reconstruction import ByteRange, Reconstruction

MAX_DOCUMENT_SIZE: Final = 4 * 1024 * 1024
MAX_REPOS: Final = 5  # repositories searched for a file
GOOD_SIZE: Final = 4 * 1024 * 1024  # bytes; the search prefers the smallest one above this
MAX_READ: Final = 256 * 1024 * 1024  # bytes read of a file; only a whole file is verified


class Target(NamedTuple):
    """A file to download."""

    repo: RepoRef
    revision: str
    path: str


class FileCheck:
    """The checks that download a file.

    Args:
        token: a Hub token; None: send none.
        user: the owner of the token; None: unknown.
        target: the file; None: find one.
    """

    def __init__(
        self, config: Config, token: str | None, user: str | None, target: Target | None
    ) -> None:
        self._config = config
        self._token = token
        self._user = user
        self._target = target

    async def run(self) -> AsyncIterator[Finding]:
        """Resolve a file, request its reconstruction, and read it; yield the findings."""
        instance = f"xetserve-{secrets.token_hex(6)}"
        async with open_upstreams(self._config, instance=instance) as (upstreams, _, _):
            hub = upstreams.hub
            try:
                async with asyncio.timeout(STEP_TIMEOUT * 2):
                    target = self._target or await self._find_target(hub)
                    if target is None:
                        yield Finding(
                            "file",
                            Level.WARN,
                            "no Xet file was found for a download",
                            "name a file: --file OWNER/REPO/PATH",
                        )
                        return
                    entry = await hub.resolve(
                        target.repo, target.revision, target.path, self._token
                    )
            except (XetserveError, TimeoutError) as exc:
                yield Finding(
                    "file",
                    Level.FAIL,
                    describe_error(exc),
                    "check that the file exists, that the token may read it, and --type",
                )
                return
            name = show(f"{target.repo.id}/{target.path}")
            yield Finding("file", Level.OK, f"{name}, {format_size(entry.size or 0)}")
            if entry.file_hash is None:
                yield Finding(
                    "CAS",
                    Level.SKIP,
                    "this file is not stored in Xet: name another one with --file",
                )
            else:
                access = ReadAccess(hub, target.repo, target.revision, self._token, entry.token_url)
                is_good = True
                async for finding in _check_cas(
                    upstreams.engine.source, access, entry, entry.file_hash
                ):
                    yield finding
                    is_good = is_good and finding.level is not Level.FAIL
                if not is_good:
                    yield Finding("data", Level.SKIP, "needs an answer of the CAS")
                    return
            application = make_application(upstreams, self._config)
            async for finding in _check_data(
                HandlerClient(application.handle, target.repo, target.revision, self._token), target
            ):
                yield finding

    async def _find_target(self, hub: HubClient) -> Target | None:
        """Find a Xet file of suitable size in hash_repo or in the token owner's repositories.

        Raises:
            UpstreamError: the Hub failed.
        """
        repos = [self._config.hub.hash_repo]
        if self._user is not None:
            query = urlencode({"author": self._user, "limit": MAX_REPOS})
            repos += [
                str(each.get("id"))
                for each in await _ask_list(hub, f"/api/models?{query}", self._token)
            ]
        for repo_id in repos[: MAX_REPOS + 1]:
            repo = RepoRef("model", repo_id)
            try:
                items = await _ask_list(
                    hub, f"{repo.api_prefix}/tree/main?recursive=true", self._token
                )
            except (UpstreamDenied, UpstreamError) as exc:
                if exc.status >= 500:
                    raise
                continue
            sizes = {
                str(i["path"]): int(i["size"]) for i in items if i.get("xetHash") and i.get("size")
            }
            handy = [path for path, size in sizes.items() if size >= GOOD_SIZE]
            if sizes:
                path = (
                    min(handy, key=sizes.__getitem__)
                    if handy
                    else max(sizes, key=sizes.__getitem__)
                )
                return Target(repo, "main", path)
        return None


async def _check_cas(
    cas: CasSource, access: ReadAccess, entry: FileEntry, file_hash: bytes
) -> AsyncIterator[Finding]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            given = await access.get_token()
    except (XetserveError, TimeoutError) as exc:
        yield Finding(
            "read token",
            Level.FAIL,
            describe_error(exc),
            "the Hub gives no token for the CAS: check that your token may read the repository",
        )
        return
    left = given.expires - time.time()
    host = urlsplit(given.cas_url).hostname
    text = f"for {host}, valid for {left:.0f} s{describe_time(began)}"
    if left <= 0:
        yield Finding(
            "read token", Level.FAIL, f"for {host}, expired {-left:.0f} s ago", "set the clock"
        )
        return
    yield Finding("read token", Level.OK, text)
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            end = min(entry.size or GOOD_SIZE, GOOD_SIZE)
            answer: Reconstruction = await cas.fetch_reconstruction(
                access, file_hash, ByteRange(0, end)
            )
    except (XetserveError, TimeoutError) as exc:
        yield Finding(
            "CAS", Level.FAIL, f"{host}: {describe_error(exc)}", advise_on_connection(str(exc))
        )
        return
    hosts = {
        urlsplit(info.url).hostname or "" for infos in answer.fetch_info.values() for info in infos
    }
    text = f"{host}: {len(answer.terms)} terms, data from {', '.join(sorted(hosts))}"
    yield Finding("CAS", Level.OK, f"{text}{describe_time(began)}")


async def _check_data(client: HandlerClient, target: Target) -> AsyncIterator[Finding]:
    """Read the file as a server does for a client, until its end or a limit of time or size."""
    began = time.monotonic()
    size = 0
    is_whole = False
    try:
        async with asyncio.timeout(STEP_TIMEOUT * 2):
            request, response = await client.ask(
                "GET", client.file_target(target.path, target.revision)
            )
            try:
                if isinstance(response.body, bytes):
                    size, is_whole = len(response.body), True
                else:
                    is_whole = True
                    async for block in response.body:
                        size += sum(map(len, block))
                        if size >= MAX_READ or time.monotonic() - began > STEP_TIMEOUT:
                            is_whole = False
                            break
            finally:
                await response.aclose()
    except (XetserveError, TimeoutError) as exc:
        yield Finding(
            "data",
            Level.FAIL,
            f"after {format_size(size)}: {describe_error(exc)}",
            advise_on_connection(str(exc)),
        )
        return
    seconds = max(time.monotonic() - began, 1e-3)
    if is_whole and request.record.is_verified is False:
        yield Finding(
            "data",
            Level.FAIL,
            f"{format_size(size)} read, but verification failed",
            "the upstream's data is damaged",
        )
        return
    what = "read and verified" if is_whole else "read and decoded; the rest was not read"
    yield Finding("data", Level.OK, f"{format_size(size)} {what}")
    rate = size / seconds
    text = f"{rate / 1e6:.1f} MB/s"
    if size >= 1_000_000 and rate < 1_000_000:
        yield Finding(
            "speed", Level.WARN, text, "slow: check the network, and the proxy if you use one"
        )
    else:
        yield Finding("speed", Level.OK, text)


async def _ask_list(hub: HubClient, target: str, token: str | None) -> list[dict[str, Any]]:
    """Request a JSON list of objects from the Hub.

    Raises:
        UpstreamError: the Hub failed, or its answer is not a list.
    """
    body, _ = await hub.ask(target, token, MAX_DOCUMENT_SIZE)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise UpstreamError("the Hub's answer is not a JSON list")
    return [each for each in found if isinstance(each, dict)]
