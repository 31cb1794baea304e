"""The roof: read the arguments, build the objects, hand them to each other, run."""

import argparse
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from xetserve import __version__
from xetserve.app.admission import Admission, AdmissionLimits
from xetserve.app.application import Application
from xetserve.app.files import Upstreams
from xetserve.app.status import Readiness
from xetserve.config import (
    AdmissionConfig,
    Config,
    LimitsConfig,
    ServerConfig,
    add_flags,
    load_config,
)
from xetserve.demo import DemoFailed, run_demo
from xetserve.errors import ConfigError
from xetserve.http.cors import CorsPolicy
from xetserve.http.heads import RequestLimits
from xetserve.http.messages import Handler
from xetserve.net.connect import ProxyRules
from xetserve.net.connection import ConnectionLimits
from xetserve.net.listener import Listener, bind_sockets
from xetserve.net.pool import ConnectionPool
from xetserve.net.tls import make_client_context
from xetserve.ops.access import make_access_log
from xetserve.ops.inherit import take_sockets
from xetserve.ops.lifecycle import raise_file_limit, run_loop, serve_until_signal
from xetserve.ops.logs import set_up_logging
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
    add_flags(origin, ("server", "limits", "log"), without=("workers",))
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
    if config.cache.cache_dir:  # a folder that cannot be used stops the start
        prepare_folder(Path(config.cache.cache_dir))
    num_workers = config.server.workers or count_cores()
    config = config.for_worker(num_workers)
    readiness = Readiness()
    making = _application(config, readiness)
    return _serve(making, config, f"hub {config.hub.hub_url}", num_workers, readiness)


@asynccontextmanager
async def _application(config: Config, readiness: Readiness) -> AsyncIterator[Handler]:
    """Build the application and what is under it; close it afterwards."""
    gap = config.hub.upstream_timeout
    limits = ReadLimits(stall_timeout=min(3.0, gap / 2), gap_timeout=gap)
    policy = RetryPolicy(time_limit=gap * 0.9)
    pool = ConnectionPool(
        tls=make_client_context(),
        proxies=ProxyRules(),
        connect_timeout=min(CONNECT_TIMEOUT, gap / 2),
    )
    hub = HubClient(pool, config.hub.hub_url, timeout=gap, policy=policy)
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
    )
    try:
        yield Admission(application.handle, _admission_limits(config.admission)).handle
    finally:
        if cache is not None:
            await cache.aclose()
        await pool.aclose()


def _run_origin(options: argparse.Namespace, config: Config) -> int:
    return _serve(_origin(options), config, f"origin on {options.dir}")


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
    config: Config,
    name: str,
    num_workers: int = 1,
    readiness: Readiness | None = None,
) -> int:
    """Serve a handler until a signal ends it; gives the exit status. With workers, each makes its own."""
    server = config.server
    access_log = make_access_log(config.log.access_log)
    limits = _connection_limits(config, max_files=raise_file_limit())
    sockets = _find_sockets(server)

    def say_ready() -> None:
        where = ", ".join(_describe(sock) for sock in sockets)
        logger.info("xetserve %s: %s, listening on %s", __version__, name, where)

    async def serve(channel: socket.socket | None) -> None:
        async with making as handler:
            listener = Listener(
                handler,
                limits,
                on_answer=None if access_log is None else access_log.write,
                is_shared=channel is not None,
            )

            def on_drain() -> None:
                if readiness is not None:
                    readiness.is_draining = True

            async def on_ready() -> None:
                if channel is None:  # else the supervisor waits for the other workers, and says it
                    say_ready()

            await serve_until_signal(
                listener,
                sockets,
                drain_timeout=server.drain_timeout,
                drain_delay=server.drain_delay,
                on_ready=on_ready,
                on_drain=on_drain,
                channel=channel,
            )

    def work(channel: socket.socket | None) -> int:
        run_loop(serve(channel))
        return 0

    if num_workers == 1:
        return work(None)
    patience = server.drain_delay + server.drain_timeout
    supervisor = Supervisor(num_workers, sockets, work, drain_timeout=patience, on_ready=say_ready)
    return supervisor.run()


def _connection_limits(config: Config, max_files: int) -> ConnectionLimits:
    limits = config.limits
    return ConnectionLimits(
        keep_alive_timeout=limits.keep_alive_timeout,
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


def _find_sockets(server: ServerConfig) -> list[socket.socket]:
    """Give the sockets that were handed over, or else bind some."""
    inherited = take_sockets(os.environ)
    return [each.sock for each in inherited] or _bind(server.host, server.port)


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        return bind_sockets(host, port)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from None


def _describe(sock: socket.socket) -> str:
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
