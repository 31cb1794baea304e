"""Network checks of `xetserve doctor`, in the order of a download.

CA, proxy, DNS, Hub and token are checked here; trial_download checks a file.
"""

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import replace

from xetserve.commands.doctor.findings import (
    STEP_TIMEOUT,
    Finding,
    Level,
    advise_on_connection,
    check_ca,
    check_clock,
    describe_error,
    describe_time,
)
from xetserve.commands.doctor.trial_download import MAX_DOCUMENT_SIZE, FileCheck, Target
from xetserve.commands.pull.progress import show
from xetserve.commands.serve.wiring import make_reach
from xetserve.config.schema import Config
from xetserve.errors import UpstreamRefused, XetserveError
from xetserve.net.pool import ConnectionPool
from xetserve.net.proxies import SOCKS_LOCAL, Proxy, ProxyRules
from xetserve.net.tls import make_client_context
from xetserve.net.url import parse_url
from xetserve.upstream.requests import JSON_HEADERS


class Checkup:
    """A run of all network checks; a failed check skips those that depend on it.

    Args:
        token: a Hub token; None: send none.
        target: the file to download; None: find one.
    """

    def __init__(self, config: Config, token: str | None, target: Target | None) -> None:
        # Do not use the disk cache: the checks must reach the upstreams.
        self._config = replace(
            config,
            cache=replace(config.cache, cache_dir=""),
            metadata=replace(config.metadata, metadata_ttl=0.0, negative_ttl=0.0, stale_for=0.0),
            hub=replace(config.hub, allow_anonymous=True, xet_mode="plain"),
        )
        self._token = token
        self._target = target
        self._user: str | None = None  # the owner of the token, from the Hub's response
        self._origin = parse_url(config.hub.hub_url).origin
        self._proxies = ProxyRules()

    async def run(self) -> AsyncIterator[Finding]:
        """Yield the finding of each check."""
        if self._config.hub.offline:
            yield Finding("Hub", Level.SKIP, "offline is set: no upstream is used")
            return
        try:
            context = make_client_context()
        except (OSError, ssl.SSLError) as exc:  # SSL_CERT_FILE is not a certificate file
            yield Finding("CA", Level.FAIL, f"cannot be read: {exc}", "correct SSL_CERT_FILE")
            return
        yield check_ca(context, os.environ, is_needed=self._origin.scheme == "https")
        proxy_finding, proxy = await self._check_proxy()
        yield proxy_finding
        if proxy_finding.level is Level.FAIL:
            yield Finding("Hub", Level.SKIP, "the proxy does not work")
            return
        dns = await self._check_dns(is_proxied=proxy is not None and proxy.kind != SOCKS_LOCAL)
        yield dns
        if dns.level is Level.FAIL:
            yield Finding("Hub", Level.SKIP, "its name does not resolve")
            return
        pool = ConnectionPool(
            tls=context,
            proxies=self._proxies,
            connect_timeout=STEP_TIMEOUT / 2,
            reach=make_reach(self._config.hub),
        )
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
            yield Finding("CAS", Level.SKIP, "needs an answer of the Hub")
            return
        file_check = FileCheck(self._config, self._token, self._user, self._target)
        async for finding in file_check.run():
            yield finding

    async def _check_proxy(self) -> tuple[Finding, Proxy | None]:
        advice = "correct HTTPS_PROXY / HTTP_PROXY, or name the Hub in NO_PROXY"
        try:
            proxy = self._proxies.find(self._origin)
        except UpstreamRefused as exc:
            return Finding("proxy", Level.FAIL, str(exc), advice), None
        if proxy is None:
            return Finding("proxy", Level.OK, "none"), None
        where = str(proxy)
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
                return Finding("DNS", Level.OK, f"the proxy resolves {host}")
            return Finding(
                "DNS",
                Level.FAIL,
                f"{host}: {reason}",
                "check hub_url, /etc/resolv.conf and the network",
            )
        addresses = sorted({str(info[4][0]) for info in infos})
        text = f"{host} is {', '.join(addresses[:4])}{describe_time(began)}"
        if time.monotonic() - began > 2.0:
            return Finding("DNS", Level.WARN, text, "the resolver is slow: see /etc/resolv.conf")
        return Finding("DNS", Level.OK, text)

    async def _check_hub(self, pool: ConnectionPool) -> AsyncIterator[Finding]:
        """Request the token's owner from the Hub; yield findings about Hub, clock and token."""
        base, began = self._config.hub.hub_url, time.monotonic()
        fields = [*JSON_HEADERS]
        if self._token is not None:
            fields.append(("Authorization", f"Bearer {self._token}"))
        try:
            async with asyncio.timeout(STEP_TIMEOUT):
                async with pool.request(
                    "GET", parse_url(f"{base}/api/whoami-v2"), fields, timeout=STEP_TIMEOUT
                ) as response:
                    now, took = time.time(), describe_time(began)
                    body = await response.read(MAX_DOCUMENT_SIZE, STEP_TIMEOUT)
        except (XetserveError, TimeoutError) as exc:
            text = describe_error(exc)
            yield Finding("Hub", Level.FAIL, f"{base}: {text}", advise_on_connection(text))
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
                "the Hub limits requests: give a token, or set metadata_ttl",
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
            return Finding("token", Level.OK, f"valid, owner {show(self._user or 'unknown')}")
        if status in (401, 403):
            return Finding(
                "token",
                Level.FAIL,
                f"the Hub refuses it ({status})",
                "create a new token in the Hub's settings, and check that hub_url is its Hub",
            )
        return Finding("token", Level.WARN, f"the Hub does not name its owner ({status})")


def _read_name(body: bytes) -> str | None:
    try:
        name = json.loads(body)["name"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None


def _reason(exc: Exception) -> str:
    return str(getattr(exc, "strerror", None) or exc)
