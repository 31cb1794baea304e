"""Wiring: build the objects between the application and the upstreams from the settings."""

import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.app.application import Application
from xetserve.app.download.service import Upstreams
from xetserve.app.hub.xet_mode import XetMode
from xetserve.app.status.service import StatusService
from xetserve.base.sizes import format_size
from xetserve.config.schema import Config, HubConfig
from xetserve.errors import ConfigError, UpstreamRefused
from xetserve.http.cors import CorsPolicy
from xetserve.http.hosts import HostPolicy
from xetserve.net.address_policy import AddressPolicy
from xetserve.net.pool import ConnectionPool
from xetserve.net.proxies import ProxyRules
from xetserve.net.tls import check_ca_files, make_client_context
from xetserve.net.url import parse_url
from xetserve.ops.cpu_count import count_cores
from xetserve.ops.memory_limit import find_memory_limit
from xetserve.pipeline.cache.blobs import BlobCache
from xetserve.pipeline.cache.disk_cache import DiskCache
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.verify.ledger_store import LedgerStore
from xetserve.pipeline.verify.worker_bus import WorkerBus
from xetserve.upstream.answers.cache import AnswerCache, AnswerPolicy
from xetserve.upstream.answers.store import AnswerStore
from xetserve.upstream.cas.cached_reconstructions import CachedReconstructions
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.cas.reconstruction_budget import FREE_READ_SIZE, ReconstructionBudget
from xetserve.upstream.cas.source import CasSource
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.hub.link import PUBLIC_HUB
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.compression import describe_slowness
from xetserve.xet.signing import Sealer

logger = logging.getLogger("xetserve")

PUBLIC_DATASETS_SERVER: Final = "https://datasets-server.huggingface.co"
CONNECT_TIMEOUT: Final = 5.0  # seconds
DISK_FACTOR: Final = 16  # size of the answer store on disk, as a multiple of metadata_size


class Opened(NamedTuple):
    """The open objects between the application and the upstreams."""

    upstreams: Upstreams
    cache: DiskCache | None
    pool: ConnectionPool


def warn_if_slow() -> None:
    """Log at the start of a command if chunks are decoded without the C extension."""
    text, advice = describe_slowness()
    if text:
        logger.warning("%s; %s", text, advice)


def describe_memory(config: Config, limit: int | None) -> tuple[str, str]:
    """Return how the memory that the settings allow exceeds the cgroup's limit, and what to do.

    Both texts are empty if it does not, or if there is no limit. Connections are left out: few
    servers have as many as max_connections allows.
    """
    num_workers = config.server.workers or count_cores()
    needed = config.get_memory(num_workers)
    if limit is None or needed <= limit:
        return "", ""
    workers = "1 worker" if num_workers == 1 else f"{num_workers} workers"
    auto = " (workers = auto)" if config.server.workers == 0 else ""
    text = (
        f"{workers}{auto} may need {format_size(needed)} and more for connections, but the "
        f"cgroup's limit is {format_size(limit)}: the kernel may kill them"
    )
    advice = (
        "lower workers, memory_budget or body_budget, or raise the limit (MemoryMax, mem_limit)"
    )
    return text, advice


def warn_of_memory(config: Config) -> None:
    """Log at the start if the settings allow more memory than the cgroup does."""
    text, advice = describe_memory(config, find_memory_limit())
    if text:
        logger.warning("%s; %s", text, advice)


def check_environment(config: Config) -> None:
    """Check the variables that upstream connections use, before anything is opened.

    Raises:
        ConfigError: a CA file or the proxy for the Hub cannot be used.
    """
    if config.hub.offline:
        return
    origin = parse_url(config.hub.hub_url).origin
    if origin.scheme == "https":
        check_ca_files(os.environ)
    try:
        ProxyRules().find(origin)
    except UpstreamRefused as exc:
        raise ConfigError(str(exc)) from None


@asynccontextmanager
async def open_upstreams(
    config: Config,
    *,
    instance: str,
    num_workers: int = 1,
    worker_bus: WorkerBus | None = None,
    speaks: bool = True,
) -> AsyncIterator[Opened]:
    """Build the upstream clients, the engine and the optional disk cache; close them afterwards.

    Args:
        instance: see HubClient.
        num_workers: the number of workers that share the folder on disk.
        worker_bus: receives chunk hashes from the other workers; None: there is one worker.
        speaks: see DiskCache.

    Raises:
        ConfigError: see check_environment.
    """
    check_environment(config)
    gap = config.hub.upstream_timeout
    limits = ReadLimits(
        stall_timeout=min(3.0, gap / 2),
        gap_timeout=gap,
        outage_patience=config.hub.outage_patience,
    )
    policy = RetryPolicy(time_limit=gap * 0.9)
    pool = ConnectionPool(
        tls=make_client_context(),
        proxies=ProxyRules(),
        connect_timeout=min(CONNECT_TIMEOUT, gap / 2),
        is_offline=config.hub.offline,
        reach=make_reach(config.hub),
    )
    metadata = _make_metadata(config, num_workers)
    hub = HubClient(
        pool, config.hub.hub_url, timeout=gap, policy=policy, instance=instance, metadata=metadata
    )
    budget = ByteBudget(config.memory.memory_budget)
    reconstruction_budget = ReconstructionBudget(budget, FREE_READ_SIZE)
    cas: CasSource = CachedReconstructions(
        CasClient(pool, timeout=limits.stall_timeout, policy=policy, budget=reconstruction_budget),
        metadata,
    )
    cache: DiskCache | None = None
    if config.cache.cache_dir:
        cas = cache = DiskCache(
            cas,
            Path(config.cache.cache_dir),
            max_size=config.cache.cache_size,
            min_free=config.cache.cache_min_free,
            speaks=speaks,
        )
        await cache.start()
    try:
        engine = Engine(
            cas,
            budget,
            policy=policy,
            limits=limits,
            ledger_store=None if cache is None else LedgerStore(cache),
            worker_bus=worker_bus,
            proven_store=cache,
        )
        upstreams = Upstreams(
            hub,
            engine,
            hash_repo=config.hub.hash_repo,
            blob_cache=None if cache is None else BlobCache(cache),
            datasets_server=_make_datasets_server(config.hub, pool, policy, instance),
        )
        try:
            yield Opened(upstreams, cache, pool)
        finally:
            await engine.aclose()
    finally:
        if cache is not None:
            await cache.aclose()
        await metadata.aclose()
        await pool.aclose()


def _make_datasets_server(
    settings: HubConfig, pool: ConnectionPool, policy: RetryPolicy, instance: str
) -> HubClient | None:
    """Make the client of datasets-server from the setting of that name; None: it is off."""
    url = settings.datasets_server
    if url == "auto":  # another Hub has no such host, or it is not known
        is_public = parse_url(settings.hub_url).origin == PUBLIC_HUB
        url = PUBLIC_DATASETS_SERVER if is_public else "off"
    if url == "off":
        return None
    return HubClient(pool, url, timeout=settings.upstream_timeout, policy=policy, instance=instance)


def make_reach(hub: HubConfig) -> AddressPolicy:
    """Make the policy for upstream addresses from the setting upstream_networks."""
    named = {"auto": None, "public": ()}
    setting = hub.upstream_networks
    networks = named[setting] if setting in named else setting.split(",")
    return AddressPolicy(parse_url(hub.hub_url).origin, networks)


def _make_metadata(config: Config, num_workers: int) -> AnswerCache:
    """Make the cache of upstream answers; with a disk cache, it keeps them across restarts."""
    settings = config.metadata
    policy = AnswerPolicy(
        ttl=settings.metadata_ttl,
        negative_ttl=settings.negative_ttl,
        stale_for=settings.stale_for,
        stale_permission=settings.stale_permission,
        is_offline=config.hub.offline,
        max_size=settings.metadata_size,
    )
    store = None
    if config.cache.cache_dir:
        store = AnswerStore(
            Path(config.cache.cache_dir) / "meta",
            max_size=settings.metadata_size * num_workers * DISK_FACTOR,
            max_pending=settings.metadata_size,
        )
    return AnswerCache(policy, store, realm=config.hub.hub_url)


def make_application(
    upstreams: Upstreams,
    config: Config,
    status: StatusService | None = None,
    sealer: Sealer | None = None,
    instance: str = "",
    hosts: HostPolicy | None = None,
) -> Application:
    """Build the application.

    Args:
        sealer: seals data URLs for native Xet clients.
        hosts: the accepted host names; None: all, for in-process clients.
    """
    return Application(
        upstreams,
        allow_anonymous=config.hub.allow_anonymous,
        compression=config.http.compression != "off",
        download_length=config.http.download_length,
        cors=CorsPolicy.parse(config.http.cors),
        hosts=hosts,
        status=status,
        mode=XetMode(config.hub.xet_mode, config.hub.native_from),
        management=config.hub.repo_management,
        sealer=sealer,
        instance=instance,
    )
