"""The disk cache: warm against cold, after a restart, and for a second revision. And what is
fetched without one.
"""

import shutil
import tempfile

from bench.bench import Bench, download_path
from bench.clients import Part, run_curl
from bench.results import at_least, at_most

SECTION = "cache"


def measure_cache(bench: Bench) -> None:
    """Measure a file without a cache, while it is filled, warm, and warm after a restart."""
    note, site = bench.results.note, bench.site
    names = {kind: site.need_kind(kind) for kind in bench.kinds}
    for _ in bench.turns(SECTION):
        for kind, name in names.items():
            folder = tempfile.mkdtemp(prefix="cache-", dir=site.folder)
            flags = ("--cache-dir", folder)
            cold = bench.pull(name=name, size=site.size)
            with site.start_server(*flags) as server:
                filling = bench.pull_from(server, name, site.size)
                before = site.data_traffic()
                warm = bench.pull_from(server, name, site.size)
                warm_requests = site.data_traffic().num_requests - before.num_requests
            before = site.data_traffic()
            restarted = bench.pull(*flags, name=name, size=site.size)
            requests = site.data_traffic().num_requests - before.num_requests
            shutil.rmtree(folder)
            note(f"{kind}: without a cache", cold.rate, "MB/s")
            note(f"{kind}: while it is filled", filling.rate, "MB/s")
            note(f"{kind}: warm", warm.rate, "MB/s")
            note(f"{kind}: warm, after a restart", restarted.rate, "MB/s")
            note(f"{kind}: warm, peak memory", restarted.peak, "MiB")
            goal = at_least(1.0) if kind == "bg4" else None
            note(f"{kind}: warm over cold", warm.rate / cold.rate, goal=goal)
            note(f"{kind}: warm, data requests", warm_requests, "", at_most(0))
            note(f"{kind}: warm after a restart, data requests", requests, "", at_most(0))


def measure_revision(bench: Bench) -> None:
    """Measure what the second revision of an edited file costs when the first is in the cache."""
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
    """Download a revision of a file, whatever its size."""
    path = f"{download_path(name)}?revision={revision}"
    run_curl(bench.site, url, Part(path))


def measure_fragments(bench: Bench) -> None:
    """Measure what is fetched of a fragmented file, without a cache, over its distinct chunks."""
    site = bench.site
    name = site.need_fragmented()
    chunks = site.read_chunks(name)
    for _ in bench.turns("fragments"):
        before = site.data_traffic()
        with site.start_server() as server:
            cpu = server.cpu_seconds()
            download = run_curl(site, server.url, Part(download_path(name)))
            bench.results.note("fragmented file", download.rate, "MB/s")
            bench.results.note("fragmented file, peak memory", server.peak_memory(), "MiB")
            cpu = server.cpu_seconds() - cpu
        after = site.data_traffic()
        fetched = after.nbytes - before.nbytes
        bench.results.note(
            "fragmented file: upstream bytes over its distinct chunks'",
            fetched / sum(chunks.values()),
            goal=at_most(1.25),
        )
        bench.results.note(
            "fragmented file, data requests", after.num_requests - before.num_requests
        )
