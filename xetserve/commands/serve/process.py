"""Run a handler as a server: workers, sockets, reloads, the access log, until a signal."""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import NamedTuple

from xetserve import __version__
from xetserve.app.middleware.accounting import count_answer
from xetserve.app.status.readiness import Readiness
from xetserve.commands.serve.endpoints import Endpoints, check_idle_exit
from xetserve.commands.serve.reload import Live
from xetserve.config.schema import Config, LimitsConfig, ProxiesConfig
from xetserve.config.service_links import find_service_links
from xetserve.http.head import RequestLimits
from xetserve.http.messages import Handler, Request
from xetserve.http.proxy_headers import Forwarding, TrustedProxies
from xetserve.metrics.catalogue import (
    ACTIVE_REQUESTS,
    CONNECTIONS,
    REGISTRY,
    REQUESTS,
    SENT_BYTES,
    TLS_EXPIRY,
    WORKER_RESTARTS,
)
from xetserve.metrics.instruments import CELLS_SIZE, CellReader
from xetserve.net.body_budget import BodyBudget
from xetserve.net.listener import Listener, ProxyPolicy
from xetserve.net.loop_turns import Turns
from xetserve.net.server_connection import ConnectionLimits
from xetserve.ops.access_log import AccessLog, make_access_log
from xetserve.ops.file_limits import share_files
from xetserve.ops.generations import (
    Handover,
    Predecessor,
    Successor,
    Upgrade,
    UpgradeState,
    find_command,
)
from xetserve.ops.lifecycle import raise_file_limit, run_loop, serve_until_signal
from xetserve.ops.logs import set_log_format, set_log_level
from xetserve.ops.loop_lag import watching_loop
from xetserve.ops.sd_notify import take_notifier
from xetserve.ops.shared_memory import SharedMemory
from xetserve.ops.supervisor import Supervisor
from xetserve.ops.watchdog import Figures, Watchdog

logger = logging.getLogger("xetserve")


class Generations(NamedTuple):
    """What a server needs to be upgraded.

    handover: to the successor.
    predecessor: the server that this one replaces, if there is one.
    """

    handover: Handover = Handover()
    predecessor: Predecessor | None = None


def run_handler(
    making: AbstractAsyncContextManager[Handler],
    live: Live,
    endpoints: Endpoints,
    name: str,
    num_workers: int = 1,
    readiness: Readiness | None = None,
    shared_memory: SharedMemory | None = None,
    *,
    body_budget: int | None = None,
    turns: Turns | None = None,
    generations: Generations | None = None,
) -> int:
    """Serve a handler until a signal; return the exit status.

    With several workers, each worker enters making and has its own handler.

    Args:
        shared_memory: holds the metrics of all workers, and data of the handler behind them; None:
            create memory for metrics only.
        body_budget: bytes of request bodies that a process may hold; None: use the setting.
        turns: the scheduler of the event loop, if the handler uses it too.
        generations: None: SIGUSR2 is not handled.
    """
    if links := find_service_links(os.environ):
        logger.info(
            "ignoring %d environment variables that describe services (%s and so on)",
            len(links),
            min(links),
        )
    shared_memory = shared_memory or SharedMemory(num_workers, CELLS_SIZE)
    # Until their handlers exist.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP, signal.SIGUSR2])
    server = live.config.server
    check_idle_exit(live.config, endpoints)
    notifier = take_notifier(os.environ)
    watch = Watchdog(num_workers, notifier, server.idle_exit, make_figures(shared_memory))
    max_files = raise_file_limit()
    share_files(max_files, live.config.limits.max_connections)  # raises ConfigError if too few
    live.tls = endpoints.tls
    TLS_EXPIRY.source = partial(_find_expiry, endpoints)

    def set_up_log(config: Config) -> None:
        set_log_level(config.log.log_level)
        set_log_format(config.log.log_format)

    live.on_change(set_up_log)

    def report_ready() -> None:
        if upgrade is not None:
            upgrade.is_allowed = True
        endpoints.take_over()
        logger.info("xetserve %s: %s, listening on %s", __version__, name, endpoints.describe())
        watch.ready()

    def reload() -> bool:
        with watch.reloading():
            return live.reload()

    count_active = make_active_counter(shared_memory)

    def describe_drain() -> str:
        num = count_active()
        if not num:
            return "draining"
        requests = "1 active request" if num == 1 else f"{num} active requests"
        seconds = server.drain_delay + server.drain_timeout
        return f"draining: {requests} may take {seconds:g} s; a second signal cuts them"

    predecessor: Predecessor | None = None
    upgrade: Upgrade | None = None
    if generations is not None:
        predecessor = generations.predecessor
        upgrade = _make_upgrade(endpoints, watch, generations.handover, describe_drain)

    async def serve(channel: socket.socket | None) -> None:
        async with making as handler, _following(live), watching_loop():
            access_log = _AccessLog(live)

            def on_answer(request: Request) -> None:
                count_answer(request)
                access_log.write(request)

            listener = Listener(
                handler,
                _connection_limits(live.config, max_files),
                on_answer=on_answer,
                is_shared=channel is not None,
                bodies=BodyBudget(body_budget or live.config.memory.body_budget),
                turns=turns,
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
                if channel is None:  # otherwise the supervisor waits for all workers and reports
                    report_ready()

            await serve_until_signal(
                listener,
                endpoints.all,
                drain_timeout=server.drain_timeout,
                drain_delay=server.drain_delay,
                on_ready=on_ready,
                on_drain=on_drain,
                describe_drain=describe_drain,
                on_reload=reload if channel is None else live.reload,
                channel=channel,
                watch=watch,
                predecessor=predecessor,
                upgrade=upgrade if channel is None else None,
            )

    def take_place(number: int) -> None:
        REGISTRY.move_to(shared_memory.take(number - 1)[:CELLS_SIZE])
        WORKER_RESTARTS.add(amount=shared_memory.is_replacement)

    def work(channel: socket.socket | None) -> int:
        run_loop(serve(channel))
        return 0

    try:
        if num_workers == 1:
            take_place(1)
            status = work(None)
            if predecessor is not None:
                predecessor.wait_for_end(server.drain_timeout)
            return status
        supervisor = Supervisor(
            num_workers,
            endpoints.sockets,
            work,
            drain_timeout=server.drain_delay + server.drain_timeout,
            on_ready=report_ready,
            on_reload=reload,
            watch=watch,
            on_start=take_place,
            describe_drain=describe_drain,
            predecessor=predecessor,
            upgrade=upgrade,
        )
        status = supervisor.run()
        if predecessor is not None:
            predecessor.wait_for_end(server.drain_timeout)
        return status
    finally:
        endpoints.remove_files()


def _make_upgrade(
    endpoints: Endpoints, watch: Watchdog, handover: Handover, describe_drain: Callable[[], str]
) -> Upgrade:
    state = UpgradeState()
    state.show()

    def start() -> Successor:
        environ = {**os.environ, **watch.variables}
        return Successor(find_command(), endpoints.named, environ, handover)

    def on_failure(reason: str) -> None:
        state.record(has_failed=True)
        # `xetserve deploy` reads it, and sees by the time that it is another one.
        watch.note(f"the upgrade at {time.strftime('%H:%M:%S')} has failed: {reason}")
        watch.ready()  # of this process, in case that the other one was named already

    def on_take_over() -> None:
        endpoints.leave_to_successor()
        watch.close()
        logger.info(describe_drain())

    return Upgrade(
        start, on_failure=on_failure, on_ready=watch.name_successor, on_take_over=on_take_over
    )


def make_figures(shared_memory: SharedMemory) -> Callable[[], Figures]:
    """Return a function that reads the figures for the service manager from shared memory.

    Requests and bytes of dead workers are included.
    """
    cells = [CellReader(place[:CELLS_SIZE]) for place in shared_memory.places]

    def read() -> Figures:
        readings = [each.read() for each in cells]
        living = [each for number, each in enumerate(readings) if shared_memory.is_alive(number)]
        return Figures(
            int(CONNECTIONS.total_of(living)),
            int(REQUESTS.total_of(readings)),
            int(SENT_BYTES.total_of(readings)),
        )

    return read


def make_active_counter(shared_memory: SharedMemory) -> Callable[[], int]:
    """Return a function that counts the active requests of all workers in shared memory."""
    cells = [CellReader(place[:CELLS_SIZE]) for place in shared_memory.places]

    def count() -> int:
        living = [
            each.read() for number, each in enumerate(cells) if shared_memory.is_alive(number)
        ]
        return int(ACTIVE_REQUESTS.total_of(living))

    return count


def _find_expiry(endpoints: Endpoints) -> dict[tuple[str, ...], float]:
    """Return the value of TLS_EXPIRY; without TLS there is none."""
    expiry = None if endpoints.tls is None else endpoints.tls.expiry
    return {} if expiry is None else {(): expiry}


class _AccessLog:
    """The access log in the form that the settings currently name."""

    def __init__(self, live: Live) -> None:
        self._log: AccessLog | None = None
        live.on_change(self._change)

    def _change(self, config: Config) -> None:
        self._log = make_access_log(config.log.access_log, config.log.log_format)

    def write(self, request: Request) -> None:
        if self._log is not None:
            self._log.write(request)


@asynccontextmanager
async def _following(live: Live) -> AsyncIterator[None]:
    """Reload changed TLS certificates while the block runs."""
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
        half_closed_timeout=config.hub.upstream_timeout,
        max_requests=limits.max_requests_per_connection,
        # A request also needs files for upstream connections and the cache.
        max_connections=share_files(max_files, limits.max_connections).connections,
        max_connections_per_client=limits.max_connections_per_client,
        request=_request_limits(limits),
    )


def _request_limits(limits: LimitsConfig) -> RequestLimits:
    return RequestLimits(
        max_url_size=limits.max_url_size,
        max_head_size=limits.max_head_size,
        max_fields=limits.max_header_fields,
        max_trailer_size=limits.max_trailer_size,
    )
