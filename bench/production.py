"""Measure the usual configuration: data over HTTPS, and a disk cache that fills.

Plain HTTP and no cache are measured beside it. The floor is measured in the same run: one thread
decodes and hashes the file's chunks and does nothing else. A figure as a multiple of the floor can
be compared with one of another day.
"""

import shutil
import subprocess
import sys
from functools import partial

from bench.bench import Bench, Version, per_gb
from bench.clients import Download, make_cache_folder, run_hf_xet
from bench.processes import BenchError, Child, clean_environment
from bench.results import at_least, at_most
from bench.site import count_requests

SECTION = "production"
KIND = "bg4"
NATIVE = ("native, cold", "native, warm")  # the official client, through a cache; warm is proven
MAX_QUESTIONS = 20.0  # requests to a near CAS, for 10**9 bytes

_FLOOR = """\
import sys, time
from pathlib import Path
from xetserve.xet.hashes import hash_chunk
from xetserve.xet.xorb import RecordReader
decoded = 0
start = time.process_time()
for path in sys.argv[1:]:
    data = memoryview(Path(path).read_bytes())
    for record in RecordReader().scan(data, len(data)):
        chunk = record.decode()
        hash_chunk(chunk)
        decoded += len(chunk)
print(decoded, time.process_time() - start)
"""


def measure_production(bench: Bench) -> None:
    """Measure HTTPS and plain HTTP upstreams, with a filling cache, a warm one and without one."""
    site = bench.site
    name = site.need_kind(KIND)
    secure = site.need_secure_origin()
    xorbs = [str(site.folder / "origin" / "xorbs" / xorb) for xorb in site.read_xorbs(name)]
    for _ in bench.turns(SECTION):
        floor = _measure_floor(xorbs)
        bench.results.note("floor: decode and hash alone", floor, "s/GB")
        for scheme, origin in (("HTTPS", secure), ("plain", site.origin)):
            cells = {
                version.label: _measure_version(bench, name, scheme, origin, version)
                for version in bench.versions
            }
            for cell, download in cells[Version().label].items():
                bench.compare(f"{scheme}, {cell}", {label: cells[label][cell] for label in cells})
                if bench.against is not None:
                    theirs = cells[bench.against.label][cell]
                    bench.results.note(
                        f"{scheme}, {cell}: loop thread over {bench.against.label}",
                        download.loop_cpu / theirs.loop_cpu,
                    )
                bench.results.note(
                    f"{scheme}, {cell}: CPU over the floor", per_gb(download.cpu, site.size) / floor
                )
            _compare_with_hf_xet(bench, name, scheme, origin, cells[Version().label])
    bench.results.remark("loop thread: the main thread's part of the CPU time")


def _measure_version(
    bench: Bench, name: str, scheme: str, origin: Child, version: Version
) -> dict[str, Download]:
    """Measure one version in front of one upstream; return its downloads by configuration."""
    site, note = bench.site, bench.results.note
    start = partial(
        site.start_server, hub_url=origin.url, python=version.python, ca_file=site.ca_file
    )
    cells = {}
    questions = count_requests(origin, "/reconstructions/")
    with start() as server:
        cells["no cache"] = bench.pull_from(server, name, site.size)
    questions = count_requests(origin, "/reconstructions/") - questions
    folder = make_cache_folder(site)
    with start("--cache-dir", folder) as server:
        cells["filling a cache"] = bench.pull_from(server, name, site.size)
        cells["warm"] = bench.pull_from(server, name, site.size)
    shutil.rmtree(folder)
    folder = make_cache_folder(site)
    with start("--cache-dir", folder, "--native-from", "0") as server:
        for cell in NATIVE:
            cells[cell] = bench.pull_natively(server, name)
    shutil.rmtree(folder)
    is_ours = version == Version()
    prefix = scheme if is_ours else f"{scheme}, {version.label}"
    for cell, download in cells.items():
        note(f"{prefix}, {cell}", download.rate, "MB/s")
        note(f"{prefix}, {cell}: CPU", per_gb(download.cpu, site.size), "s/GB")
        note(f"{prefix}, {cell}: loop thread", per_gb(download.loop_cpu, site.size), "s/GB")
        note(f"{prefix}, {cell}: peak memory", download.peak, "MiB")
    note(
        f"{prefix}: questions to the CAS",
        per_gb(questions, site.size),
        "/GB",
        at_most(MAX_QUESTIONS) if is_ours else None,
    )
    if is_ours:
        filling, none = cells["filling a cache"], cells["no cache"]
        note(f"{scheme}: rate, filling over not", filling.rate / none.rate, goal=at_least(0.75))
        note(f"{scheme}: CPU, filling over not", filling.cpu / none.cpu, goal=at_most(1.35))
    return cells


def _compare_with_hf_xet(
    bench: Bench, name: str, scheme: str, origin: Child, cells: dict[str, Download]
) -> None:
    note = bench.results.note
    hf_xet = run_hf_xet(bench.site, name, origin.url, ca_file=bench.site.ca_file)
    note(f"{scheme}: hf-xet", hf_xet.rate, "MB/s")
    note(f"{scheme}: hf-xet, CPU", per_gb(hf_xet.cpu, bench.site.size), "s/GB")
    for cell in ("no cache", "filling a cache"):
        note(f"{scheme}, {cell}: rate over hf-xet", cells[cell].rate / hf_xet.rate)
    for cell in NATIVE:
        note(f"{scheme}, {cell}: rate over hf-xet going direct", cells[cell].rate / hf_xet.rate)
    note(f"{scheme}: memory of hf-xet over ours", hf_xet.peak / cells["no cache"].peak)


def _measure_floor(xorbs: list[str]) -> float:
    """Decode and hash every chunk of some xorbs; return the CPU seconds for 10**9 bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _FLOOR, *xorbs],
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise BenchError(f"decoding the xorbs failed: {done.stderr}")
    nbytes, seconds = done.stdout.split()
    return per_gb(float(seconds), int(nbytes))
