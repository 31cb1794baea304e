"""All that is between the application and the Hub: connections, cache, budget."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from xetserve.app.application import Application
from xetserve.app.files import Upstreams
from xetserve.app.status import Readiness
from xetserve.app.xetmode import XetMode
from xetserve.config import Config
from xetserve.http.cors import CorsPolicy
from xetserve.net.connect import ProxyRules
from xetserve.net.pool import ConnectionPool
from xetserve.net.tls import make_client_context
from xetserve.pipeline.budget import ByteBudget
from xetserve.pipeline.cache import DiskCache
from xetserve.pipeline.ledger_shelf import LedgerShelf
from xetserve.pipeline.plain import PlainShelf
from xetserve.pipeline.reader import ReadLimits
from xetserve.pipeline.source import CasSource
from xetserve.upstream.cas import CasClient
from xetserve.upstream.hub import HubClient
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.sealing import Sealer

CONNECT_TIMEOUT: Final = 5.0  # seconds


@asynccontextmanager
async def open_upstreams(
    config: Config, *, instance: str
) -> AsyncIterator[tuple[Upstreams, DiskCache | None]]:
    """Build what serving a file needs, and the disk cache if there is to be one; close it afterwards.

    Args:
        instance: see HubClient.
    """
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
    try:
        upstreams = Upstreams(
            hub=hub,
            cas=cas,
            budget=ByteBudget(config.memory.memory_budget),
            limits=limits,
            policy=policy,
            hash_repo=config.hub.hash_repo,
            ledger_shelf=None if cache is None else LedgerShelf(cache),
            plain_shelf=None if cache is None else PlainShelf(cache),
        )
        yield upstreams, cache
    finally:
        if cache is not None:
            await cache.aclose()
        await pool.aclose()


def make_application(
    upstreams: Upstreams,
    config: Config,
    readiness: Readiness | None = None,
    sealer: Sealer | None = None,
) -> Application:
    """Build what answers requests; sealer: for native Xet clients."""
    return Application(
        upstreams,
        allow_anonymous=config.hub.allow_anonymous,
        compression=config.http.compression != "off",
        cors=CorsPolicy.parse(config.http.cors),
        readiness=readiness,
        mode=XetMode(config.hub.xet_mode, config.hub.native_from),
        sealer=sealer,
    )
