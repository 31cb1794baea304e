"""Measure the time to the first body byte, for the first request to a new server."""

from bench.bench import Bench, download_path
from bench.clients import time_first_byte
from bench.results import at_most
from bench.site import set_faults

SECTION = "ttfb"
LATENCY = 0.04  # seconds before each answer of the upstream
# Resolve, read token, reconstruction, data: each request needs the response before it.
NUM_ROUND_TRIPS = 4
MARGIN = 30.0  # ms


def measure_ttfb(bench: Bench) -> None:
    """Measure without latency beside nginx in front of the origin's bridge, and with latency."""
    note = bench.results.note
    name = bench.site.need_kind(bench.kinds[-1])
    path = download_path(name)
    goal = at_most(NUM_ROUND_TRIPS * LATENCY * 1e3 + MARGIN)
    far = bench.site.start_origin("far.log")  # it serves the data too, with the latency
    for _ in bench.turns(SECTION):
        with bench.site.start_server() as server:
            ours = time_first_byte(server.url, path) * 1e3
            again = time_first_byte(server.url, path) * 1e3
        bridge = time_first_byte(bench.site.nginx_url, f"/bridge/{name}") * 1e3
        note("xetserve", ours, "ms")
        note("xetserve, second request", again, "ms")
        note("nginx proxy_pass of the bridge", bridge, "ms")
        note("xetserve behind nginx proxy_pass", ours - bridge, "ms", at_most(MARGIN))

        set_faults(far, latency={"hub": LATENCY, "cas": LATENCY, "data": LATENCY})
        with bench.site.start_server(hub_url=far.url) as server:
            note(
                "xetserve, 40 ms on each answer",
                time_first_byte(server.url, path) * 1e3,
                "ms",
                goal,
            )
    bench.results.remark(
        f"unavoidable round trips: {NUM_ROUND_TRIPS} (resolve, read token, reconstruction, data)"
    )
    far.stop()
