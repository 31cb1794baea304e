"""`xetserve serve`: serve files to clients."""

import argparse
import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from xetserve.app.middleware.admission import Admission, AdmissionLimits
from xetserve.app.middleware.base_path import serve_below
from xetserve.app.middleware.https import insist_on_https
from xetserve.app.middleware.traffic_control import TrafficControl
from xetserve.app.status.active_streams import StreamTable
from xetserve.app.status.operator import Operator
from xetserve.app.status.readiness import CACHE, HUB, Readiness
from xetserve.app.status.service import StatusService
from xetserve.app.status.snapshot import PLACE_SIZE, Snapshot
from xetserve.base.request_id import REQUEST_ID
from xetserve.commands.serve.endpoints import open_endpoints
from xetserve.commands.serve.process import Generations, run_handler
from xetserve.commands.serve.reload import Live
from xetserve.commands.serve.wiring import (
    Opened,
    check_environment,
    make_application,
    open_upstreams,
    warn_if_slow,
    warn_of_memory,
)
from xetserve.config.load import find_file, load_config, read_secrets
from xetserve.config.schema import Config, HubConfig, check_together
from xetserve.errors import XetserveError
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Handler
from xetserve.metrics.catalogue import (
    BUDGET_HELD,
    BUDGET_LIMIT,
    FETCHES,
    READERS,
    UPSTREAM_CONNECTIONS,
)
from xetserve.metrics.instruments import CELLS_SIZE
from xetserve.net.loop_turns import Turns
from xetserve.ops.cpu_count import count_cores
from xetserve.ops.file_limits import share_files
from xetserve.ops.generations import Handover, find_predecessor
from xetserve.ops.inherited_memory import InheritedMemory
from xetserve.ops.lifecycle import raise_file_limit
from xetserve.ops.malloc_trim import find_heap, keep_trimmed
from xetserve.ops.process_stats import ProcessStats, beat
from xetserve.ops.shared_memory import SharedMemory
from xetserve.ops.socket_activation import take_sockets
from xetserve.pipeline.cache.store import prepare_folder
from xetserve.pipeline.verify import worker_bus
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.hub.client import HubClient
from xetserve.xet.signing import KEY_SIZE, Sealer, derive_key

logger = logging.getLogger(__name__)

MAX_COUNTED: Final = 20_000  # stored answers that are looked at, at the start
PROBE_TIMEOUT: Final = 5.0  # seconds that the Hub has to answer at the start


def run_serve(options: argparse.Namespace, config: Config) -> int:
    """Serve until a signal; return the exit status."""
    check_together(config)
    check_environment(config)
    warn_if_slow()
    warn_of_memory(config)
    if config.cache.cache_dir:  # an unusable folder must stop the start
        prepare_folder(Path(config.cache.cache_dir))
    num_workers = config.server.workers or count_cores()

    def load() -> Config:
        loaded = load_config(vars(options), os.environ, options.config)
        check_together(loaded)
        return read_secrets(loaded).for_worker(num_workers)

    inherited = take_sockets(os.environ)
    predecessor = find_predecessor(inherited)
    with_secrets = read_secrets(config).for_worker(num_workers)
    endpoints = open_endpoints(config, inherited, os.environ, with_tls=True)
    if predecessor is not None:
        predecessor.detach()  # before anything remembers the number of this process
    live = Live(with_secrets, load, find_file(options.config, os.environ))
    readiness = Readiness(
        has_certificate=endpoints.has_certificate, can_do_without=_find_dispensable(config)
    )
    # Created before the workers are forked, so that all of them share these values.
    former = Handover() if predecessor is None else predecessor.handover
    keys = [derive_key(each) for each in config.hub.native_secret.split(",") if each]
    own_key = b""
    if not keys:
        own_key = former.key or secrets.token_bytes(KEY_SIZE)
    sealer = Sealer(*(keys or [own_key]))
    instance = former.instance or f"xetserve-{secrets.token_hex(6)}"
    shared_memory = SharedMemory(num_workers, PLACE_SIZE)
    # Workers of the former generation may still cut answers, and must see the chunks of this one.
    ledgers = InheritedMemory(worker_bus.PLACE_SIZE, worker_bus.LAYOUT, former.memory)
    ledgers.claim(num_workers)
    turns = Turns()
    making = _application(
        live,
        readiness,
        shared_memory,
        ledgers,
        instance=instance,
        num_workers=num_workers,
        sealer=sealer,
        turns=turns,
    )
    name = f"hub {config.hub.hub_url}"
    return run_handler(
        making,
        live,
        endpoints,
        name,
        num_workers,
        readiness,
        shared_memory,
        turns=turns,
        generations=Generations(Handover(own_key, instance, ledgers.descriptor), predecessor),
    )


@asynccontextmanager
async def _application(
    live: Live,
    readiness: Readiness,
    shared_memory: SharedMemory,
    ledgers: InheritedMemory,
    *,
    instance: str,
    num_workers: int,
    sealer: Sealer,
    turns: Turns,
) -> AsyncIterator[Handler]:
    """Build the application with its upstreams; close all of it afterwards."""
    config = live.config
    worker_bus = WorkerBus(ledgers, ledgers.take(shared_memory.number))
    async with (
        open_upstreams(
            config,
            instance=instance,
            num_workers=num_workers,
            worker_bus=worker_bus,
            speaks=shared_memory.number == 0,
        ) as opened,
        AsyncExitStack() as stack,
    ):
        is_first = shared_memory.number == 0 and not shared_memory.is_replacement
        if opened.cache is not None:
            readiness.check_cache = opened.cache.check
        if not config.hub.offline:
            readiness.probe_hub = opened.upstreams.hub.probe
            if is_first:
                _run_beside(stack, _report_hub(opened.upstreams.hub))
        metadata = opened.upstreams.hub.metadata
        if is_first and metadata is not None and metadata.store is not None:
            _run_beside(stack, _report_answers(metadata.store, config.hub))
        figures = Snapshot(shared_memory.places, shared_memory.is_alive)
        _run_beside(stack, readiness.watch())
        status = _make_status(live, figures, readiness)
        hosts = HostPolicy.parse(config.http.hosts)
        application = make_application(opened.upstreams, config, status, sealer, instance, hosts)
        max_files = raise_file_limit()
        budget, pool = opened.upstreams.engine.budget, opened.pool
        limits = partial(_admission_limits, max_files=max_files)
        admission = Admission(limits(config))
        live.on_change(lambda config: admission.configure(limits(config)))
        max_open = limits(config).max_with_files
        budget.has_files = lambda: pool.num_open + admission.num_active < max_open
        streams = StreamTable(shared_memory.own[CELLS_SIZE:])
        control = TrafficControl(application.handle, admission, turns, streams)
        look = _sample_into(figures, shared_memory, opened, readiness)
        heap = find_heap()
        _run_beside(stack, beat([look, figures.sample, opened.upstreams.engine.hear_workers]))
        if heap is not None:
            _run_beside(stack, keep_trimmed(heap, lambda: budget.num_readers))
        handler = serve_below(control.handle, config.http.base_path)
        yield insist_on_https(handler, lambda: live.config.tls.hsts_max_age)


def _find_dispensable(config: Config) -> frozenset[str]:
    """Return the causes of trouble that leave something to serve.

    Downloads go on without the cache. Without the Hub, old answers and stored data are served.
    """
    has_stored = config.metadata.stale_for > 0 or bool(config.cache.cache_dir)
    return frozenset({CACHE, HUB} if has_stored else {CACHE})


async def _report_hub(hub: HubClient) -> None:
    """Log whether the Hub answers at the start, without delaying it."""
    REQUEST_ID.set("start")
    try:
        async with asyncio.timeout(PROBE_TIMEOUT):
            await hub.probe(PROBE_TIMEOUT)
    except (XetserveError, TimeoutError) as exc:
        logger.warning("the Hub does not answer: %s", str(exc) or "no answer in time")
    else:
        logger.info("the Hub answers")


async def _report_answers(store: AnswerStore, settings: HubConfig) -> None:
    """Log of which Hubs there are answers at the start: a wrong hub_url shows."""
    REQUEST_ID.set("start")
    counts = await store.count_by_realm(MAX_COUNTED)
    own = counts.pop(settings.hub_url, 0)
    if own == 0 and not settings.offline and not counts:
        return  # a new cache
    text = f"the cache has {own or 'no'} answers of hub_url, {settings.hub_url}"
    for realm, num in sorted(counts.items()):
        text += f", {num} of {realm}"
    if counts and not own:
        text += ": is hub_url right?"
    logger.log(logging.WARNING if settings.offline and not own else logging.INFO, text)


def _run_beside(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine as a task until the stack is closed."""
    stack.callback(asyncio.create_task(work).cancel)


def _make_status(live: Live, figures: Snapshot, readiness: Readiness) -> StatusService:
    """Make the status service; a reload may change who may use it."""
    operator = Operator()
    is_apart = bool(live.config.status.status_listen)
    status = StatusService(figures, operator, readiness, is_apart=is_apart)

    def apply_access(config: Config) -> None:
        operator.token = config.status.operator_token
        status.audience = config.status.metrics

    live.on_change(apply_access)
    return status


def _sample_into(
    figures: Snapshot, shared_memory: SharedMemory, opened: Opened, readiness: Readiness
) -> Callable[[], None]:
    """Register a callback that samples gauges on demand; return the sampling function."""
    process = ProcessStats(shared_memory.started)
    engine, cache, pool = opened.upstreams.engine, opened.cache, opened.pool

    def look() -> None:
        process.sample()
        BUDGET_HELD.set(engine.budget.held)
        BUDGET_LIMIT.set(engine.budget.limit)
        READERS.set(engine.budget.num_readers)
        FETCHES.set(engine.num_fetches)
        UPSTREAM_CONNECTIONS.set(pool.num_active, "active")
        UPSTREAM_CONNECTIONS.set(pool.num_idle, "idle")

    async def refresh() -> None:
        look()
        readiness.expect()
        if cache is not None:
            await cache.measure()

    figures.on_refresh(refresh)
    return look


def _admission_limits(config: Config, max_files: int) -> AdmissionLimits:
    admission = config.admission
    return AdmissionLimits(
        max_with_files=share_files(max_files, config.limits.max_connections).requests,
        max_active=admission.max_active_requests,
        token_requests=admission.token_request_rate,
        address_requests=admission.address_request_rate,
        token_bytes=admission.token_byte_rate,
        address_bytes=admission.address_byte_rate,
        burst=admission.rate_burst,
    )
