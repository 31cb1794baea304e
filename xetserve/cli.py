"""The roof: read the arguments, build the objects, hand them to each other, run."""

import argparse
import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from xetserve import __version__
from xetserve.app.admission import Admission, AdmissionLimits
from xetserve.app.application import Application
from xetserve.app.files import Upstreams
from xetserve.app.redirect import insist_on_https
from xetserve.app.status import Readiness
from xetserve.app.xetmode import XetMode
from xetserve.config import (
    AdmissionConfig,
    Config,
    LimitsConfig,
    ProxiesConfig,
    add_flags,
    check_together,
    load_config,
)
from xetserve.demo import DemoFailed, run_demo
from xetserve.endpoints import Endpoints, open_endpoints
from xetserve.errors import ConfigError
from xetserve.http.cors import CorsPolicy
from xetserve.http.forwarded import Forwarding, TrustedProxies
from xetserve.http.heads import RequestLimits
from xetserve.http.messages import Handler, Request
from xetserve.live import Live
from xetserve.net.connect import ProxyRules
from xetserve.net.connection import ConnectionLimits
from xetserve.net.listener import Listener, ProxyPolicy
from xetserve.net.pool import ConnectionPool
from xetserve.net.tls import make_client_context
from xetserve.ops.access import AccessLog, make_access_log
from xetserve.ops.lifecycle import raise_file_limit, run_loop, serve_until_signal
from xetserve.ops.logs import set_log_level, set_up_logging
from xetserve.ops.workers import Supervisor, count_cores
from xetserve.origin.app import Origin
from xetserve.pipeline.budget import ByteBudget
from xetserve.pipeline.cache import DiskCache
from xetserve.pipeline.cache_store import prepare_folder
from xetserve.pipeline.reader import ReadLimits
from xetserve.pipeline.source import CasSource
from xetserve.upstream.cas import CasClient
from xetserve.upstream.hub import HubClient
from xetserve.upstream.retry import RetryPolicy
from xetserve.values import OFF
from xetserve.xet.sealing import KEY_SIZE, Sealer, derive_key

logger = logging.getLogger("xetserve")

CONNECT_TIMEOUT = 5.0  # seconds
DESCRIPTION = """\
Serve the files of a Xet-backed Hub (Hugging Face) to plain HTTP clients: rebuilt from the CAS,
verified chunk by chunk, streamed in bounded memory.

  xetserve                              serve on port 8080
  curl -H "Authorization: Bearer hf_..." http://localhost:8080/download/OWNER/REPO/PATH -o FILE

Without a command, `serve` is meant.
"""
SETTINGS_HELP = """\
Every setting can be given as a flag, as an environment variable (in brackets) or in the TOML file that
--config names; the first one found in this order counts. HTTPS_PROXY, HTTP_PROXY, NO_PROXY and
SSL_CERT_FILE are honoured for upstream connections.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for a failure, 2 for a bad setting."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ROOT_FLAGS):
        arguments.insert(0, "serve")
    options = _make_parser().parse_args(arguments)
    try:
        config = load_config(vars(options), os.environ, options.config)
        set_up_logging(config.log.log_level)
        return int(options.run(options, config))
    except ConfigError as exc:
        sys.stderr.write(f"xetserve: {exc}\n")
        return 2


_ROOT_FLAGS = ("-h", "--help", "--version")


def _make_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="xetserve", description=DESCRIPTION, formatter_class=layout
    )
    parser.add_argument("--version", action="version", version=f"xetserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser(
        "serve", help="serve files (the default)", description=SETTINGS_HELP, formatter_class=layout
    )
    add_flags(serve)
    serve.set_defaults(run=_run_serve)

    origin = commands.add_parser(
        "origin",
        help="run a small Hub and CAS on a folder",
        description="Run a small Hub and CAS on a folder. It takes uploads from the official clients "
        "(HF_ENDPOINT=http://HOST:PORT) and keeps what they send in DIR.",
    )
    origin.add_argument("dir", metavar="DIR", help="where repositories, xorbs and shards are kept")
    origin.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="OWNER/NAME=FOLDER",
        help="take a local folder in as a model repository, before serving; may be repeated",
    )
    origin.add_argument(
        "--token",
        dest="tokens",
        action="append",
        default=[],
        metavar="TOKEN=USER",
        help="a token that is known here; with none, everybody may read and write everything",
    )
    origin.add_argument("--data-url", metavar="URL", help="where data URLs point to, if not here")
    origin.add_argument(
        "--bridge-url", metavar="URL", help="redirect downloads there, as the Hub does, if not here"
    )
    origin.add_argument("--test-controls", action="store_true", help=argparse.SUPPRESS)
    # What the origin knows of its repositories is in one process.
    add_flags(origin, ("server", "proxies", "limits", "log"), without=("workers",))
    origin.set_defaults(run=_run_origin)

    demo = commands.add_parser(
        "demo",
        help="see it work: a generated repository, an origin, the server, one download",
        description="Generate a repository, serve it from an origin, put xetserve in front of it and "
        "download a file. Then keep serving, for trying it with curl.",
    )
    demo.add_argument("--once", action="store_true", help="stop after the download")
    add_flags(demo, ("server", "log"), without=("workers",))
    demo.set_defaults(run=_run_demo)
    return parser


def _run_serve(options: argparse.Namespace, config: Config) -> int:
    check_together(config)
    if config.cache.cache_dir:  # a folder that cannot be used stops the start
        prepare_folder(Path(config.cache.cache_dir))
    num_workers = config.server.workers or count_cores()

    def load() -> Config:
        loaded = load_config(vars(options), os.environ, options.config)
        check_together(loaded)
        return loaded.for_worker(num_workers)

    live = Live(config.for_worker(num_workers), load)
    endpoints = open_endpoints(config, os.environ, with_tls=True)
    readiness = Readiness()
    # Made here: all workers are one server.
    secret = config.hub.native_secret
    sealer = Sealer(derive_key(secret) if secret else secrets.token_bytes(KEY_SIZE))
    instance = f"xetserve-{secrets.token_hex(6)}"
    making = _application(live, readiness, instance=instance, sealer=sealer)
    return _serve(making, live, endpoints, f"hub {config.hub.hub_url}", num_workers, readiness)


@asynccontextmanager
async def _application(
    live: Live, readiness: Readiness, *, instance: str, sealer: Sealer
) -> AsyncIterator[Handler]:
    """Build the application and what is under it; close it afterwards."""
    config = live.config
    gap = config.hub.upstream_timeout
    limits = ReadLimits(stall_timeout=min(3.0, gap / 2), gap_timeout=gap)
    policy = RetryPolicy(time_limit=gap * 0.9)
    pool = ConnectionPool(
        tls=make_client_context(),
        proxies=ProxyRules(),
        connect_timeout=min(CONNECT_TIMEOUT, gap / 2),
    )
    hub = HubClient(pool, config.hub.hub_url, timeout=gap, policy=policy, instance=instance)
    cas: CasSource = CasClient(pool, timeout=limits.stall_timeout, policy=policy)
    cache: DiskCache | None = None
    if config.cache.cache_dir:
        cas = cache = DiskCache(
            cas,
            Path(config.cache.cache_dir),
            max_size=config.cache.cache_size,
            min_free=config.cache.cache_min_free,
        )
        await cache.start()
    upstreams = Upstreams(
        hub=hub,
        cas=cas,
        budget=ByteBudget(config.memory.memory_budget),
        limits=limits,
        policy=policy,
        hash_repo=config.hub.hash_repo,
    )
    application = Application(
        upstreams,
        allow_anonymous=config.hub.allow_anonymous,
        compression=config.http.compression != "off",
        cors=CorsPolicy.parse(config.http.cors),
        readiness=readiness,
        mode=XetMode(config.hub.xet_mode, config.hub.native_from),
        sealer=sealer,
    )
    admission = Admission(application.handle, _admission_limits(config.admission))
    live.on_change(lambda config: admission.configure(_admission_limits(config.admission)))
    try:
        yield insist_on_https(admission.handle, lambda: live.config.tls.hsts_max_age)
    finally:
        if cache is not None:
            await cache.aclose()
        await pool.aclose()


def _run_origin(options: argparse.Namespace, config: Config) -> int:
    def load() -> Config:
        loaded = load_config(vars(options), os.environ, options.config)
        check_together(loaded)
        return loaded

    check_together(config)
    live = Live(config, load)
    endpoints = open_endpoints(config, os.environ, with_tls=False)
    return _serve(_origin(options), live, endpoints, f"origin on {options.dir}")


@asynccontextmanager
async def _origin(options: argparse.Namespace) -> AsyncIterator[Handler]:
    origin = Origin(
        Path(options.dir),
        tokens=dict(_parse_pair(text, "--token", "TOKEN=USER") for text in options.tokens),
        data_url=options.data_url,
        bridge_url=options.bridge_url,
        test_controls=options.test_controls,
    )
    try:
        for text in options.imports:
            repo_id, folder = _parse_pair(text, "--import", "OWNER/NAME=FOLDER")
            await origin.library.import_folder("model", repo_id, Path(folder))
            logger.info("took %s in as %s", folder, repo_id)
        yield origin.handle
    finally:
        await origin.aclose()


def _run_demo(options: argparse.Namespace, config: Config) -> int:
    if config.server.port == OFF:
        raise ConfigError("the demo needs a port")
    host = config.server.host if options.host else "127.0.0.1"
    demo = run_demo(host, config.server.port, once=options.once, write=_print)
    try:
        run_loop(demo)
    except DemoFailed as exc:
        sys.stderr.write(f"xetserve demo: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _parse_pair(text: str, flag: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise ConfigError(f"{flag} must be {form}, not {text!r}")
    return left, right


def _serve(
    making: AbstractAsyncContextManager[Handler],
    live: Live,
    endpoints: Endpoints,
    name: str,
    num_workers: int = 1,
    readiness: Readiness | None = None,
) -> int:
    """Serve a handler until a signal ends it; gives the exit status. With workers, each makes its own."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])  # until it can be heeded
    server = live.config.server
    max_files = raise_file_limit()
    live.tls = endpoints.tls
    live.on_change(lambda config: set_log_level(config.log.log_level))

    def say_ready() -> None:
        logger.info("xetserve %s: %s, listening on %s", __version__, name, endpoints.describe())

    async def serve(channel: socket.socket | None) -> None:
        async with making as handler, _following(live):
            access_log = _AccessLog(live)
            listener = Listener(
                handler,
                _connection_limits(live.config, max_files),
                on_answer=access_log.write,
                is_shared=channel is not None,
            )
            live.on_change(
                lambda config: listener.configure(
                    _connection_limits(config, max_files), _proxy_policy(config.proxies)
                )
            )

            def on_drain() -> None:
                if readiness is not None:
                    readiness.is_draining = True

            async def on_ready() -> None:
                if channel is None:  # else the supervisor waits for the other workers, and says it
                    say_ready()

            await serve_until_signal(
                listener,
                endpoints.all,
                drain_timeout=server.drain_timeout,
                drain_delay=server.drain_delay,
                on_ready=on_ready,
                on_drain=on_drain,
                on_reload=live.reload,
                channel=channel,
            )

    def work(channel: socket.socket | None) -> int:
        run_loop(serve(channel))
        return 0

    try:
        if num_workers == 1:
            return work(None)
        supervisor = Supervisor(
            num_workers,
            endpoints.sockets,
            work,
            drain_timeout=server.drain_delay + server.drain_timeout,
            on_ready=say_ready,
            on_reload=live.reload,
        )
        return supervisor.run()
    finally:
        endpoints.remove_files()


class _AccessLog:
    """The access log in the form that is wanted now."""

    def __init__(self, live: Live) -> None:
        self._log: AccessLog | None = None
        live.on_change(self._change)

    def _change(self, config: Config) -> None:
        self._log = make_access_log(config.log.access_log)

    def write(self, request: Request) -> None:
        if self._log is not None:
            self._log.write(request)


@asynccontextmanager
async def _following(live: Live) -> AsyncIterator[None]:
    """Take new certificates as they come."""
    if live.tls is None:
        yield
        return
    following = asyncio.create_task(live.tls.follow(live.config.tls.tls_check_interval))
    try:
        yield
    finally:
        following.cancel()


def _proxy_policy(proxies: ProxiesConfig) -> ProxyPolicy:
    trusted = TrustedProxies(proxies.trusted_proxies)
    kind = proxies.proxy_headers
    forwarding = Forwarding(trusted, kind) if trusted and kind != "off" else None
    return ProxyPolicy(trusted, forwarding, needs_header=proxies.proxy_protocol)


def _connection_limits(config: Config, max_files: int) -> ConnectionLimits:
    limits = config.limits
    return ConnectionLimits(
        keep_alive_timeout=limits.keep_alive_timeout,
        handshake_timeout=config.tls.handshake_timeout,
        head_timeout=limits.head_timeout,
        body_timeout=limits.body_timeout,
        min_body_rate=limits.min_body_rate,
        write_timeout=config.server.write_timeout,
        min_write_rate=limits.min_write_rate,
        write_window=config.server.write_timeout,
        max_requests=limits.max_requests_per_connection,
        # A client that is served wants files for the upstream and the cache, too.
        max_connections=min(limits.max_connections, max_files * 3 // 4),
        max_connections_per_client=limits.max_connections_per_client,
        request=_request_limits(limits),
    )


def _admission_limits(admission: AdmissionConfig) -> AdmissionLimits:
    return AdmissionLimits(
        max_active=admission.max_active_requests,
        token_requests=admission.token_request_rate,
        address_requests=admission.address_request_rate,
        token_bytes=admission.token_byte_rate,
        address_bytes=admission.address_byte_rate,
        burst=admission.rate_burst,
    )


def _request_limits(limits: LimitsConfig) -> RequestLimits:
    return RequestLimits(
        max_url_size=limits.max_url_size,
        max_head_size=limits.max_head_size,
        max_fields=limits.max_header_fields,
        max_trailer_size=limits.max_trailer_size,
    )
