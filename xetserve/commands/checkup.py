"""The way to a file, step by step, as a server would go it: proxy, DNS, Hub, token, CAS, data. For `xetserve doctor`."""

import asyncio
import json
import os
import secrets
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

from xetserve.commands.findings import Finding, Level, check_ca, check_clock
from xetserve.commands.listing import Asker, close_body
from xetserve.commands.progress import format_size, show
from xetserve.commands.upstreams import make_application, open_upstreams
from xetserve.config import Config
from xetserve.errors import BrokenStream, UpstreamDenied, UpstreamError, XetserveError
from xetserve.net.connect import Proxy, ProxyRules
from xetserve.net.pool import ConnectionPool
from xetserve.net.tls import make_client_context
from xetserve.net.url import parse_url
from xetserve.upstream.exchange import JSON_HEADERS
from xetserve.upstream.hub import FileEntry, HubClient, ReadAccess, RepoRef
from xetserve.xet.reconstruction import ByteRange, Reconstruction

STEP_TIMEOUT: Final = 10.0  # seconds for each step
MAX_DOCUMENT_SIZE: Final = 4 * 1024 * 1024
MAX_REPOS: Final = 5  # that are looked into for a file
GOOD_SIZE: Final = (
    4 * 1024 * 1024
)  # bytes; of files found by ourselves, the smallest that has so many
MAX_READ: Final = 256 * 1024 * 1024  # bytes that are read of a file; what is read whole is verified


class Target(NamedTuple):
    """A file to try."""

    repo: RepoRef
    revision: str
    path: str


class Checkup:
    """Goes the way; a step whose ground is missing is skipped.

    Args:
        token: a Hub token; None: as anybody.
        target: the file to try; None: one that is found.
    """

    def __init__(self, config: Config, token: str | None, target: Target | None) -> None:
        # Nothing may come from what is stored.
        self._config = replace(
            config,
            cache=replace(config.cache, cache_dir=""),
            metadata=replace(config.metadata, metadata_ttl=0.0, negative_ttl=0.0, stale_for=0.0),
            hub=replace(config.hub, allow_anonymous=True, xet_mode="plain"),
        )
        self._token = token
        self._target = target
        self._user: str | None = None
        self._origin = parse_url(config.hub.hub_url).origin
        self._proxies = ProxyRules()

    async def run(self) -> AsyncIterator[Finding]:
        """Give the findings, one after the other."""
        if self._config.hub.offline:
            yield Finding("Hub", Level.SKIP, "offline is on: nobody is to be asked")
            return
        try:
            context = make_client_context()
        except (OSError, ssl.SSLError) as exc:  # SSL_CERT_FILE that is none
            yield Finding("CA", Level.FAIL, f"cannot be read: {exc}", "correct SSL_CERT_FILE")
            return
        yield check_ca(context, os.environ, is_needed=self._origin.scheme == "https")
        proxy_finding, proxy = await self._check_proxy()
        yield proxy_finding
        if proxy_finding.level is Level.FAIL:
            yield Finding("Hub", Level.SKIP, "the proxy is in the way")
            return
        dns = await self._check_dns(is_proxied=proxy is not None)
        yield dns
        if dns.level is Level.FAIL:
            yield Finding("Hub", Level.SKIP, "its address is not known")
            return
        pool = ConnectionPool(tls=context, proxies=self._proxies, connect_timeout=STEP_TIMEOUT / 2)
        try:
            is_reached = True
            async for finding in self._check_hub(pool):
                yield finding
                is_reached = is_reached and (
                    finding.level is not Level.FAIL or finding.name == "clock"
                )
        finally:
            await pool.aclose()
        if not is_reached:
            yield Finding("CAS", Level.SKIP, "the Hub would have to be asked first")
            return
        async for finding in self._check_file():
            yield finding

    async def _check_proxy(self) -> tuple[Finding, Proxy | None]:
        advice = "correct HTTPS_PROXY / HTTP_PROXY, or name the Hub in NO_PROXY"
        try:
            proxy = self._proxies.find(self._origin)
        except BrokenStream as exc:
            return Finding("proxy", Level.FAIL, str(exc), advice), None
        if proxy is None:
            return Finding("proxy", Level.OK, "none"), None
        where = f"{proxy.host}:{proxy.port}"
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                _, writer = await asyncio.open_connection(proxy.host, proxy.port)
                writer.close()
        except OSError as exc:
            reason = "no answer in time" if isinstance(exc, TimeoutError) else _reason(exc)
            return Finding(
                "proxy", Level.FAIL, f"cannot connect to {where}: {reason}", advice
            ), proxy
        return Finding("proxy", Level.OK, where), proxy

    async def _check_dns(self, *, is_proxied: bool) -> Finding:
        host, began = self._origin.host, time.monotonic()
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                loop = asyncio.get_running_loop()
                infos = await loop.getaddrinfo(host, self._origin.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as exc:
            reason = "no answer in time" if isinstance(exc, TimeoutError) else _reason(exc)
            if is_proxied:
                return Finding("DNS", Level.OK, f"{host} is left to the proxy")
            return Finding(
                "DNS",
                Level.FAIL,
                f"{host}: {reason}",
                "look at hub_url, /etc/resolv.conf and the network",
            )
        addresses = sorted({str(info[4][0]) for info in infos})
        text = f"{host} is {', '.join(addresses[:4])}{_took(began)}"
        if time.monotonic() - began > 2.0:
            return Finding("DNS", Level.WARN, text, "the resolver is slow: see /etc/resolv.conf")
        return Finding("DNS", Level.OK, text)

    async def _check_hub(self, pool: ConnectionPool) -> AsyncIterator[Finding]:
        """Ask who the token is: it tells of the Hub, of the time, and of the token."""
        base, began = self._config.hub.hub_url, time.monotonic()
        fields = [*JSON_HEADERS]
        if self._token is not None:
            fields.append(("Authorization", f"Bearer {self._token}"))
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                async with pool.request(
                    "GET", parse_url(f"{base}/api/whoami-v2"), fields, timeout=STEP_TIMEOUT
                ) as response:
                    now, took = time.time(), _took(began)
                    body = await response.read(MAX_DOCUMENT_SIZE, STEP_TIMEOUT)
        except (XetserveError, TimeoutError) as exc:
            text = str(exc) or "no answer in time"
            yield Finding("Hub", Level.FAIL, f"{base}: {text}", _advise_on_connection(text))
            return
        status = response.status
        if status >= 500 or status == 408:
            yield Finding(
                "Hub",
                Level.FAIL,
                f"{base} answers {status}{took}",
                "see the Hub's status page; try again later",
            )
            return
        if status == 429:
            yield Finding(
                "Hub",
                Level.WARN,
                f"{base} answers 429{took}",
                "it wants fewer requests: give a token, set metadata_ttl",
            )
        else:
            yield Finding("Hub", Level.OK, f"{base} answers{took}")
        yield check_clock(response.headers.get("date"), now)
        yield self._judge_token(status, body)

    def _judge_token(self, status: int, body: bytes) -> Finding:
        if self._token is None:
            return Finding(
                "token", Level.OK, "none given (HF_TOKEN, --token-file): public files only"
            )
        if status == 200:
            self._user = _read_name(body)
            return Finding("token", Level.OK, f"good, of {show(self._user or 'somebody')}")
        if status in (401, 403):
            return Finding(
                "token",
                Level.FAIL,
                f"the Hub refuses it ({status})",
                "make a new one in the Hub's settings; is hub_url that token's Hub?",
            )
        return Finding("token", Level.WARN, f"the Hub does not say who it is ({status})")

    async def _check_file(self) -> AsyncIterator[Finding]:
        """Look a file up, ask how it is made, and read it."""
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
                            "no Xet file was found to try",
                            "name one: --file OWNER/REPO/PATH",
                        )
                        return
                    entry = await hub.resolve(
                        target.repo, target.revision, target.path, self._token
                    )
            except (XetserveError, TimeoutError) as exc:
                yield Finding(
                    "file",
                    Level.FAIL,
                    _say(exc),
                    "is it there, may this token read it, is --type missing?",
                )
                return
            name = show(f"{target.repo.id}/{target.path}")
            yield Finding("file", Level.OK, f"{name}, {format_size(entry.size or 0)}")
            if entry.file_hash is None:
                yield Finding("CAS", Level.SKIP, "that file is not Xet: name another with --file")
            else:
                access = ReadAccess(hub, target.repo, target.revision, self._token, entry.token_url)
                is_good = True
                async for finding in _check_cas(
                    upstreams.cas.fetch_reconstruction, access, entry, entry.file_hash
                ):
                    yield finding
                    is_good = is_good and finding.level is not Level.FAIL
                if not is_good:
                    yield Finding("data", Level.SKIP, "the CAS would have to be asked first")
                    return
            application = make_application(upstreams, self._config)
            async for finding in _check_data(
                Asker(application.handle, target.repo, target.revision, self._token), target
            ):
                yield finding

    async def _find_target(self, hub: HubClient) -> Target | None:
        """Find a Xet file of handy size: in the public repository for hashes, or in what the token's owner has.

        Raises:
            UpstreamError: the Hub is in trouble.
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
    fetch_reconstruction: Any, access: ReadAccess, entry: FileEntry, file_hash: bytes
) -> AsyncIterator[Finding]:
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            given = await access.get_token()
    except (XetserveError, TimeoutError) as exc:
        yield Finding(
            "read token",
            Level.FAIL,
            _say(exc),
            "the Hub gives no token for the CAS: may this token read the repository?",
        )
        return
    left = given.expires - time.time()
    host = urlsplit(given.cas_url).hostname
    text = f"for {host}, good for {left:.0f} s{_took(began)}"
    if left <= 0:
        yield Finding(
            "read token", Level.FAIL, f"for {host}, has run out {-left:.0f} s ago", "set the clock"
        )
        return
    yield Finding("read token", Level.OK, text)
    began = time.monotonic()
    try:
        async with asyncio.timeout(STEP_TIMEOUT):
            end = min(entry.size or GOOD_SIZE, GOOD_SIZE)
            answer: Reconstruction = await fetch_reconstruction(
                access, file_hash, ByteRange(0, end)
            )
    except (XetserveError, TimeoutError) as exc:
        yield Finding("CAS", Level.FAIL, f"{host}: {_say(exc)}", _advise_on_connection(str(exc)))
        return
    hosts = {
        urlsplit(info.url).hostname or "" for infos in answer.fetch_info.values() for info in infos
    }
    yield Finding(
        "CAS",
        Level.OK,
        f"{host}: {len(answer.terms)} terms, data from {', '.join(sorted(hosts))}{_took(began)}",
    )


async def _check_data(asker: Asker, target: Target) -> AsyncIterator[Finding]:
    """Read the file, or as much of it as there is time for, as a server would for a client."""
    began = time.monotonic()
    size = 0
    is_whole = False
    try:
        async with asyncio.timeout(STEP_TIMEOUT * 2):
            request, response = await asker.ask(
                "GET", asker.file_target(target.path, target.revision)
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
                await close_body(response)
    except (XetserveError, TimeoutError) as exc:
        yield Finding(
            "data",
            Level.FAIL,
            f"after {format_size(size)}: {_say(exc)}",
            _advise_on_connection(str(exc)),
        )
        return
    seconds = max(time.monotonic() - began, 1e-3)
    if is_whole and request.record.is_verified is False:
        yield Finding(
            "data",
            Level.FAIL,
            f"{format_size(size)} that could not be verified",
            "the upstream's data is damaged",
        )
        return
    what = "whole, and verified" if is_whole else "unpacked; the rest was not read"
    yield Finding("data", Level.OK, f"{format_size(size)} {what}")
    rate = size / seconds
    text = f"{rate / 1e6:.1f} MB/s"
    if size >= 1_000_000 and rate < 1_000_000:
        yield Finding(
            "speed", Level.WARN, text, "slow: look at the network, and at the proxy if there is one"
        )
    else:
        yield Finding("speed", Level.OK, text)


async def _ask_list(hub: HubClient, target: str, token: str | None) -> list[dict[str, Any]]:
    """Ask the Hub for a list of objects.

    Raises:
        UpstreamError: it gives none.
    """
    body, _ = await hub.ask(target, token, MAX_DOCUMENT_SIZE)
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list):
        raise UpstreamError("the Hub's answer is no list")
    return [each for each in found if isinstance(each, dict)]


def _read_name(body: bytes) -> str | None:
    try:
        name = json.loads(body)["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _advise_on_connection(text: str) -> str:
    if "certificate" in text:
        return "trust the CA that signed it: SSL_CERT_FILE; behind a proxy that opens TLS, that proxy's CA"
    if "503" in text or "500" in text or "502" in text:
        return "it is in trouble itself: try again later"
    return "look at the network, firewalls and HTTPS_PROXY"


def _say(exc: Exception) -> str:
    return str(exc) or "no answer in time"


def _reason(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)


def _took(began: float) -> str:
    return f" ({(time.monotonic() - began) * 1000:.0f} ms)"
