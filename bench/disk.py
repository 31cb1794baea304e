"""Measure the disk cache: cold, warm, after a restart, and for a second revision.

measure_fragments measures the fetched bytes without a cache.
"""

import shutil
import tempfile

from bench.bench import Bench, Version, download_path, per_gb
from bench.clients import Download, Part, make_cache_folder, run_curl
from bench.results import at_least, at_most

SECTION = "cache"


def measure_cache(bench: Bench) -> None:
    """Measure a file without a cache, while it is filled, warm, and warm after a restart."""
    names = {kind: bench.site.need_kind(kind) for kind in bench.kinds}
    for _ in bench.turns(SECTION):
        for kind, name in names.items():
            stages = {
                version.label: _measure_stages(bench, kind, name, version)
                for version in bench.versions
            }
            for stage in stages["xetserve"]:
                bench.compare(f"{kind}: {stage}", {label: stages[label][stage] for label in stages})


def _measure_stages(bench: Bench, kind: str, name: str, version: Version) -> dict[str, Download]:
    """Measure one version; return its downloads by stage."""
    site = bench.site
    folder = make_cache_folder(site)
    flags = ("--cache-dir", folder)
    cold = bench.pull(name=name, size=site.size, version=version)
    with site.start_server(*flags, python=version.python) as server:
        filling = bench.pull_from(server, name, site.size)
        before = site.data_traffic()
        warm = bench.pull_from(server, name, site.size)
        warm_requests = site.data_traffic().num_requests - before.num_requests
    before = site.data_traffic()
    restarted = bench.pull(*flags, name=name, size=site.size, version=version)
    requests = site.data_traffic().num_requests - before.num_requests
    shutil.rmtree(folder)
    stages = {
        "without a cache": cold,
        "while it is filled": filling,
        "warm": warm,
        "warm, after a restart": restarted,
    }
    note, is_ours = bench.results.note, version == Version()
    prefix = kind if is_ours else f"{kind}, {version.label}"
    for stage, download in stages.items():
        note(f"{prefix}: {stage}", download.rate, "MB/s")
    for stage, download in stages.items():
        note(f"{prefix}: {stage}, CPU", per_gb(download.cpu, site.size), "s/GB")
    note(f"{prefix}: warm, peak memory", restarted.peak, "MiB")
    if is_ours:
        goal = at_least(1.0) if kind == "bg4" else None
        note(f"{kind}: warm over cold", warm.rate / cold.rate, goal=goal)
        note(f"{kind}: warm, data requests", warm_requests, "", at_most(0))
        note(f"{kind}: warm after a restart, data requests", requests, "", at_most(0))
    return stages


def measure_revision(bench: Bench) -> None:
    """Measure the cost of an edited file's second revision when the first is in the cache."""
    site = bench.site
    name, first, second = site.need_edited()
    old, new = site.read_chunks(name, first), site.read_chunks(name, second)
    added = sum(nbytes for chunk, nbytes in new.items() if chunk not in old)
    for _ in bench.turns("revision"):
        folder = tempfile.mkdtemp(prefix="cache-", dir=site.folder)
        with site.start_server("--cache-dir", folder) as server:
            _pull_revision(bench, server.url, name, first)
            before = site.data_traffic()
            _pull_revision(bench, server.url, name, second)
        fetched = site.data_traffic().nbytes - before.nbytes
        shutil.rmtree(folder)
        bench.results.note(
            "second revision, warm: upstream bytes over the new chunks'",
            fetched / added,
            "",
            at_most(1.1),
        )
    share = added / sum(new.values())
    bench.results.remark(f"{share:.0%} of the second revision's packed bytes are new")


def _pull_revision(bench: Bench, url: str, name: str, revision: str) -> None:
    """Download a revision of a file of any size."""
    path = f"{download_path(name)}?revision={revision}"
    run_curl(bench.site, url, Part(path))


def measure_fragments(bench: Bench) -> None:
    """Measure the bytes fetched for a fragmented file without a cache, over its distinct chunks."""
    site = bench.site
    name = site.need_fragmented()
    chunks = site.read_chunks(name)
    for _ in bench.turns("fragments"):
        downloads = {}
        for version in bench.versions:
            before = site.data_traffic()
            download = bench.pull(name=name, size=site.size // 4, version=version)
            after = site.data_traffic()
            downloads[version.label] = download
            is_ours = version == Version()
            what = "fragmented file" if is_ours else f"fragmented file, {version.label}"
            note = bench.results.note
            note(what, download.rate, "MB/s")
            note(f"{what}, CPU", per_gb(download.cpu, download.nbytes), "s/GB")
            note(f"{what}, peak memory", download.peak, "MiB")
            note(
                f"{what}: upstream bytes over its distinct chunks'",
                (after.nbytes - before.nbytes) / sum(chunks.values()),
                goal=at_most(1.25) if is_ours else None,
            )
            note(f"{what}, data requests", after.num_requests - before.num_requests)
        bench.compare("fragmented file", downloads)
