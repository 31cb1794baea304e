"""Measure latencies: of the first body byte, of small ranges, and of many clients at once."""

from statistics import median

from bench.bench import KIB, Bench, Version, download_path
from bench.clients import Part, run_curls, time_first_byte
from bench.results import at_most
from bench.site import set_faults

SECTION = "ttfb"
LATENCY = 0.04  # seconds before each answer of the upstream
# Resolve, read token, reconstruction, data: each request needs the response before it.
NUM_ROUND_TRIPS = 4
MARGIN = 30.0  # ms
NUM_RANGES = 100
NUM_CLIENTS = 128
RANGE_SIZE = 64 * KIB
MAX_RATIO = 1.05  # of a latency to that of another version


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
        _compare_latencies(bench, path)
    bench.results.remark(
        f"unavoidable round trips: {NUM_ROUND_TRIPS} (resolve, read token, reconstruction, data)"
    )
    far.stop()


def _compare_latencies(bench: Bench, path: str) -> None:
    """Measure the versions in turn, and compare this one with the other if there is one."""
    ours, *others = [_measure_latencies(bench, path, version) for version in bench.versions]
    for what, seconds in ours.items():
        bench.results.note(f"xetserve, {what}", seconds * 1e3, "ms")
        for theirs in others:
            assert bench.against is not None
            who = f"{what}: over {bench.against.label}"
            bench.results.note(who, seconds / theirs[what], goal=at_most(MAX_RATIO))


def _measure_latencies(bench: Bench, path: str, version: Version) -> dict[str, float]:
    """Return the seconds of each latency of a version, on a new server."""
    step = bench.site.size // NUM_RANGES
    parts = [Part(path, number * step, RANGE_SIZE) for number in range(NUM_RANGES)]
    with bench.site.start_server(python=version.python) as server:
        found = {"first byte": time_first_byte(server.url, path)}
        found["first byte again"] = median(
            time_first_byte(server.url, path) for _ in range(NUM_RANGES)
        )
        singles = [run_curls(bench.site, server.url, [part])[0][0].seconds for part in parts]
        found["a range of 64 KiB"] = median(singles)
        crowd = [parts[number % NUM_RANGES] for number in range(NUM_CLIENTS)]
        found[f"ranges of {NUM_CLIENTS} clients at once"] = median(
            download.seconds for download in run_curls(bench.site, server.url, crowd)[0]
        )
    return found
