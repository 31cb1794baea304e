"""Measure distant upstreams: latency on every request, and a rate limit on each connection."""

from bench.bench import Bench, Version, per_gb
from bench.clients import run_hf_xet
from bench.processes import Child
from bench.results import at_least, at_most
from bench.site import count_requests, set_faults

SECTION = "far"
BANDWIDTH = 10e6  # bytes per second of a connection
LATENCY = 0.04  # seconds
SWEEP = (
    (0.01, 10e6),
    (0.1, 10e6),
    (0.2, 10e6),
    (0.04, 2.5e6),
    (0.04, 40e6),
)
GOAL = at_least(7.0)
MAX_QUESTIONS = 130.0  # requests to the CAS, for 10**9 bytes


def measure_far(bench: Bench) -> None:
    """Measure one client's throughput as a multiple of one connection's limit."""
    name = bench.site.need_kind("raw")
    origin = bench.site.start_origin("far.log")
    for number in bench.turns(SECTION):
        for version in bench.versions:
            _measure_point(bench, origin, name, LATENCY, BANDWIDTH, version)
        hf_xet = run_hf_xet(bench.site, name, origin.url)
        who = f"{describe(LATENCY, BANDWIDTH)}: hf-xet over one connection's"
        bench.results.note(who, hf_xet.rate * 1e6 / BANDWIDTH)
        if number <= 3:  # the other points show only the shape of the curve
            for latency, bandwidth in SWEEP:
                _measure_point(bench, origin, name, latency, bandwidth)
    bench.results.remark(
        "random data; one connection's throughput is the limit itself, at no latency"
    )
    origin.stop()


def _measure_point(
    bench: Bench,
    origin: Child,
    name: str,
    latency: float,
    bandwidth: float,
    version: Version = Version(),  # noqa: B008 - it does not change
) -> None:
    set_faults(
        origin, latency={"hub": latency, "cas": latency, "data": latency}, bandwidth=bandwidth
    )
    questions = count_requests(origin, "/reconstructions/")
    ours = bench.pull(name=name, size=bench.site.size, hub_url=origin.url, version=version)
    questions = count_requests(origin, "/reconstructions/") - questions
    is_main = (latency, bandwidth, version) == (LATENCY, BANDWIDTH, Version())
    where = f"{describe(latency, bandwidth)}: {version.label}"
    note = bench.results.note
    note(
        f"{where} over one connection's",
        ours.rate * 1e6 / bandwidth,
        goal=GOAL if is_main else None,
    )
    note(f"{where}, peak memory", ours.peak, "MiB")
    goal = at_most(MAX_QUESTIONS) if is_main else None
    note(f"{where}, questions to the CAS", per_gb(questions, bench.site.size), "/GB", goal)


def describe(latency: float, bandwidth: float) -> str:
    """Return the name of a point of the sweep."""
    return f"{latency * 1e3:g} ms, {bandwidth / 1e6:g} MB/s"
