"""`xetserve serve`: files for clients."""

import argparse
import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xetserve.app.admission import Admission, AdmissionLimits
from xetserve.app.redirect import insist_on_https
from xetserve.app.status import Readiness
from xetserve.commands.running import run_handler
from xetserve.commands.upstreams import make_application, open_upstreams
from xetserve.config import AdmissionConfig, Config, check_together
from xetserve.endpoints import open_endpoints
from xetserve.http.messages import Handler
from xetserve.live import Live
from xetserve.ops.heap import find_heap, keep_trimmed
from xetserve.ops.workers import count_cores
from xetserve.pipeline.cache_store import prepare_folder
from xetserve.sources import load_config
from xetserve.xet.sealing import KEY_SIZE, Sealer, derive_key


def run_serve(options: argparse.Namespace, config: Config) -> int:
    """Serve until a signal; gives the exit status."""
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
    making = _application(
        live, readiness, instance=instance, num_workers=num_workers, sealer=sealer
    )
    return run_handler(making, live, endpoints, f"hub {config.hub.hub_url}", num_workers, readiness)


@asynccontextmanager
async def _application(
    live: Live, readiness: Readiness, *, instance: str, num_workers: int, sealer: Sealer
) -> AsyncIterator[Handler]:
    """Build the application and what is under it; close it afterwards."""
    config = live.config
    async with open_upstreams(config, instance=instance, num_workers=num_workers) as (upstreams, _):
        application = make_application(upstreams, config, readiness, sealer)
        admission = Admission(application.handle, _admission_limits(config.admission))
        live.on_change(lambda config: admission.configure(_admission_limits(config.admission)))
        handler = insist_on_https(admission.handle, lambda: live.config.tls.hsts_max_age)
        heap, budget = find_heap(), upstreams.budget
        if heap is None:
            yield handler
            return
        trimming = asyncio.create_task(keep_trimmed(heap, lambda: budget.num_readers))
        try:
            yield handler
        finally:
            trimming.cancel()


def _admission_limits(admission: AdmissionConfig) -> AdmissionLimits:
    return AdmissionLimits(
        max_active=admission.max_active_requests,
        token_requests=admission.token_request_rate,
        address_requests=admission.address_request_rate,
        token_bytes=admission.token_byte_rate,
        address_bytes=admission.address_byte_rate,
        burst=admission.rate_burst,
    )
