"""`python -m bench`: xetserve beside the official client and nginx, interleaved, on one machine.

Wants nginx and curl (Debian: nginx-light, curl). Prepares its site once in --work and uses it again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from bench.site import KINDS, MIB, REPO, TOKEN, Site, start_xetserve

Results = dict[str, list[float]]

FAR = {"latency": {"hub": 0.04, "cas": 0.04, "data": 0.04}, "bandwidth": 10_000_000}


def curl(url: str, *options: str) -> list[str]:
    """A download to nowhere; prints bytes, seconds to the first byte, and seconds in all."""
    return [
        *("curl", "-q", "-sS", "-f", "--noproxy", "*", "-o", "/dev/null"),
        *("-H", f"Authorization: Bearer {TOKEN}", *options),
        *("-w", "%{size_download} %{time_starttransfer} %{time_total}\n", url),
    ]


def run_curl(url: str, *options: str) -> tuple[float, float, float]:
    """Run one download; gives (bytes, seconds to the first byte, seconds)."""
    done = subprocess.run(curl(url, *options), check=True, capture_output=True, text=True)
    size, first, total = done.stdout.split()
    return float(size), float(first), float(total)


def measure_throughput(site: Site, runs: int, kinds: Sequence[str]) -> Results:
    """One client, cold: xetserve to curl, hf-xet to memory, nginx to curl; a new server for each run."""
    found: Results = {}
    script = (
        "import resource, sys, time; from huggingface_hub import hf_hub_download as get;"
        "start = time.monotonic(); get(sys.argv[1], sys.argv[2], local_dir=sys.argv[3]);"
        "took = time.monotonic() - start; usage = resource.getrusage(resource.RUSAGE_SELF);"
        "print(took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)"
    )
    for _ in range(runs):
        for kind in kinds:
            server = start_xetserve(site.work, "serve", "--hub-url", site.origin.url)
            before = server.cpu_seconds()
            size, first, total = run_curl(f"{server.url}/download/{REPO}/{kind}.bin")
            note(found, f"xetserve {kind} MB/s", size / total / 1e6)
            note(found, f"xetserve {kind} CPU s/GB", (server.cpu_seconds() - before) / size * 1e9)
            note(found, f"xetserve {kind} peak MiB", server.peak_memory())
            note(found, f"xetserve {kind} first byte ms", first * 1e3)
            server.stop()
            with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
                done = subprocess.run(
                    [sys.executable, "-c", script, REPO, f"{kind}.bin", f"{memory}/out"],
                    env=site.client_environment(Path(memory) / "home"),
                    check=True,
                    capture_output=True,
                    text=True,
                )
            took, cpu, peak = map(float, done.stdout.split())
            note(found, f"hf-xet {kind} MB/s", size / took / 1e6)
            note(found, f"hf-xet {kind} CPU s/GB", cpu / size * 1e9)
            note(found, f"hf-xet {kind} peak MiB", peak)
            size, _, total = run_curl(f"{site.nginx_url}/files/{kind}.bin")
            note(found, f"nginx {kind} MB/s", size / total / 1e6)
            _, first, _ = run_curl(f"{site.nginx_url}/bridge/{kind}.bin", "-r", "0-999999")
            note(found, f"nginx proxy_pass {kind} first byte ms", first * 1e3)
    return found


def measure_clients(site: Site, runs: int, kinds: Sequence[str]) -> Results:
    """Several clients of one file at once: memory, and how often the upstream is asked."""
    found: Results = {}
    packed = 0
    for count in (1, 8, 16, 32):
        for _ in range(max(1, runs // 2)):
            server = start_xetserve(site.work, "serve", "--hub-url", site.origin.url)
            sent, started = site.data_bytes(), time.monotonic()
            command = curl(f"{server.url}/download/{REPO}/{kinds[-1]}.bin")
            clients = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(count)]
            failed = sum(client.wait() != 0 for client in clients)
            seconds = time.monotonic() - started
            fetched = site.data_bytes() - sent
            packed = packed or fetched
            note(found, f"{count} clients, all together MB/s", count * site.size / seconds / 1e6)
            note(found, f"{count} clients, peak MiB", server.peak_memory())
            note(found, f"{count} clients, upstream bytes over one client's", fetched / packed)
            note(found, f"{count} clients, failed", failed)
            server.stop()
    return found


def measure_far(site: Site, runs: int, kinds: Sequence[str]) -> Results:
    """An upstream with 40 ms on every request and 10 MB/s on every connection (the origin's own data plane)."""
    found: Results = {}
    origin = start_xetserve(site.work, "origin", str(site.work / "origin"), "--test-controls")
    try:
        set_faults(origin.url, FAR)
        for _ in range(runs):
            server = start_xetserve(site.work, "serve", "--hub-url", origin.url)
            url = f"{server.url}/download/{REPO}/raw.bin"
            size, first, total = run_curl(url, "--max-time", "120")
            note(found, "40 ms, 10 MB/s: throughput over one connection's", size / total / 10e6)
            note(found, "40 ms, 10 MB/s: first byte ms", first * 1e3)
            note(found, "40 ms, 10 MB/s: peak MiB", server.peak_memory())
            server.stop()
    finally:
        origin.stop()
    return found


def set_faults(origin_url: str, faults: object) -> None:
    """Tell the origin how to misbehave."""
    request = urllib.request.Request(
        f"{origin_url}/_test/faults", data=json.dumps(faults).encode(), method="POST"
    )
    urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request).close()


def note(found: Results, name: str, value: float) -> None:
    """Keep one value of a figure."""
    found.setdefault(name, []).append(value)


MEASUREMENTS: dict[str, Callable[[Site, int, Sequence[str]], Results]] = {
    "throughput": measure_throughput,
    "clients": measure_clients,
    "far": measure_far,
}


def make_table(found: Results) -> str:
    """Write medians with minimum and maximum, and the ratios that matter."""
    lines = [f"{'figure':58} {'median':>9} {'min':>9} {'max':>9}"]
    for name, values in found.items():
        lines.append(f"{name:58} {median(values):9.2f} {min(values):9.2f} {max(values):9.2f}")
    for kind in KINDS:
        ours = found.get(f"xetserve {kind} MB/s")
        for peer in ("hf-xet", "nginx"):
            theirs = found.get(f"{peer} {kind} MB/s")
            if ours and theirs:
                pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
                name = f"ratio: xetserve over {peer}, {kind}"
                lines.append(f"{name:58} {median(pairs):9.2f} {min(pairs):9.2f} {max(pairs):9.2f}")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("what", nargs="*", default=[], help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument("--size", type=int, default=1024, help="MiB of each file")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--port", type=int, default=9191, help="for nginx")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "xetserve-bench")
    parser.add_argument("--fresh", action="store_true", help="prepare the site anew")
    parser.add_argument("--json", type=Path, help="write every value there")
    options = parser.parse_args()
    if options.fresh:
        shutil.rmtree(options.work, ignore_errors=True)
    site = Site(options.work, options.size * MIB, options.port)
    found: Results = {}
    try:
        for name in options.what or MEASUREMENTS:
            found.update(MEASUREMENTS[name](site, options.runs, options.kinds))
    finally:
        site.stop()
    sys.stdout.write(make_table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
