"""Measure one client without a cache.

The programs are xetserve with curl, hf-xet, nginx with curl, and nginx in front of the bridge.
"""

from bench.bench import Bench, per_gb
from bench.clients import Download, Part, run_curl, run_hf_xet
from bench.processes import Child
from bench.results import at_least, at_most

SECTION = "throughput"
CPU_GOALS = {"raw": 1.0, "lz4": 1.1, "bg4": 1.5}  # seconds for 10**9 bytes
SPEED_GOALS = {"raw": 1.5, "lz4": 1.5, "bg4": 1.2}  # rate over hf-xet's
CEILING_GOALS = {"lz4": 0.6}  # rate over nginx's
PEAK_GOAL = 64.0  # MiB
NUM_PEAKS = 15.0  # hf-xet's memory over ours


def measure_throughput(bench: Bench) -> None:
    """Measure speed, CPU and memory of every program, for every kind of data."""
    names = {kind: bench.site.need_kind(kind) for kind in bench.kinds}
    for kind, name in names.items():
        packed = sum(bench.site.read_chunks(name).values())
        bench.results.note(f"{kind}: packed over decoded bytes", packed / bench.site.size)
    for _ in bench.turns(SECTION):
        for kind, name in names.items():
            _measure_kind(bench, kind, name)
    bench.results.remark("CPU and peak of the process alone; GB = 10^9 bytes, MiB = 2^20 bytes")
    bench.results.remark("ratios are taken within each run, under the same load of the machine")


def _measure_kind(bench: Bench, kind: str, name: str) -> None:
    note, size = bench.results.note, bench.site.size
    versions = {
        version.label: bench.pull(name=name, size=size, version=version)
        for version in bench.versions
    }
    ours = versions["xetserve"]
    hf_xet = run_hf_xet(bench.site, name)
    nginx = _pull_nginx(bench, bench.site.nginx, f"/files/{name}")
    bridge = _pull_nginx(bench, bench.site.nginx, f"/bridge/{name}")

    peers = {**versions, "hf-xet": hf_xet, "nginx": nginx, "nginx proxy_pass": bridge}
    for peer, download in peers.items():
        is_ours = peer == "xetserve"
        cpu_goal = at_most(CPU_GOALS[kind]) if is_ours else None
        note(f"{kind}: {peer}", download.rate, "MB/s")
        note(f"{kind}: {peer}, CPU", per_gb(download.cpu, size), "s/GB", cpu_goal)
        peak_goal = at_most(PEAK_GOAL) if is_ours else None
        note(f"{kind}: {peer}, peak memory", download.peak, "MiB", peak_goal)
    bench.compare(kind, versions)
    note(
        f"{kind}: xetserve over hf-xet",
        ours.rate / hf_xet.rate,
        goal=at_least(SPEED_GOALS[kind]),
    )
    ceiling = CEILING_GOALS.get(kind)
    note(
        f"{kind}: xetserve over nginx",
        ours.rate / nginx.rate,
        goal=at_least(ceiling) if ceiling else None,
    )
    note(
        f"{kind}: memory of hf-xet over xetserve's",
        hf_xet.peak / ours.peak,
        "",
        at_least(NUM_PEAKS),
    )


def _pull_nginx(bench: Bench, nginx: Child, path: str) -> Download:
    before = nginx.cpu_seconds()
    download = run_curl(bench.site, bench.site.nginx_url, Part(path), bench.site.size)
    return download._replace(cpu=nginx.cpu_seconds() - before, peak=nginx.peak_memory())
