"""Estimates for loads beyond this machine, from its measured costs per byte and per client."""

from bench import fleet, growth, throughput
from bench.bench import MIB
from bench.fleet import SLOW, SLOW_RATE
from bench.results import Results

SECTION = "paper"
FULL_LINE = 12.5  # GB/s: 100 Gbit/s
LARGE_FILE = 1e12  # bytes
NUM_CLIENTS = 10_000


def work_out(results: Results) -> None:
    """Add the estimates for which the results have figures."""
    results.section = SECTION
    for kind in throughput.CPU_GOALS:
        _estimate_full_line(results, kind)
    _estimate_large_file(results)
    _estimate_many_clients(results)
    if results.in_section(SECTION):
        results.remark("estimates, not measured: straight lines through this run's medians")


def _estimate_full_line(results: Results, kind: str) -> None:
    """Estimate 100 Gbit/s to clients: the cores, one worker each, and the upstream traffic."""
    cpu = results.median(throughput.SECTION, f"{kind}: xetserve, CPU")
    packed = results.median(throughput.SECTION, f"{kind}: packed over decoded bytes")
    if cpu is not None and packed is not None:
        what = f"100 Gbit/s of {kind} data"
        results.estimate(f"{what}: cores busy in xetserve", FULL_LINE * cpu, "cores")
        results.estimate(f"{what}: from upstream", 100 * packed, "Gbit/s")


def _estimate_large_file(results: Results) -> None:
    """Estimate a file of 1 TB: the time for one client, and the memory.

    The memory is extrapolated from the measured sizes.
    """
    sizes = []
    for figure in results.in_section(growth.SECTION):
        size, separator, _ = figure.name.partition(" MiB: peak memory")
        if separator:
            sizes.append((int(size) * MIB, figure.median))
    if len(sizes) < 2:
        return
    sizes.sort()
    (small, low), (large, high) = sizes[0], sizes[-1]
    slope = max(0.0, (high - low) / (large - small))
    rate = results.median(growth.SECTION, growth.describe(large))
    what = f"a file of 1 TB ({growth.KIND})"
    results.estimate(f"{what}: peak memory", high + slope * (LARGE_FILE - large), "MiB")
    if rate:
        results.estimate(f"{what}: one client, at this run's speed", LARGE_FILE / rate / 6e7, "min")


def _estimate_many_clients(results: Results) -> None:
    """Estimate 10,000 slow clients: extrapolate the memory from SLOW[0] and SLOW[1] clients."""
    few, many = (
        results.median(fleet.SECTION, f"{count} slow clients: peak memory") for count in SLOW
    )
    cpu = results.median(fleet.SECTION, f"{SLOW[1]} slow clients: CPU")
    if few is None or many is None or cpu is None:
        return
    each = max(0.0, (many - few) / (SLOW[1] - SLOW[0]))
    what = f"10,000 clients at {SLOW_RATE // 1024} KiB/s"
    results.estimate("one slow client more", each * 1024, "KiB")
    results.estimate(f"{what}: peak memory", many + each * (NUM_CLIENTS - SLOW[1]), "MiB")
    results.estimate(
        f"{what}: cores busy in xetserve", NUM_CLIENTS * SLOW_RATE / 1e9 * cpu, "cores"
    )
