"""`python -m bench`: xetserve beside the official client and nginx, interleaved, on one machine.

It needs nginx and curl (Debian: apt-get install nginx-light curl) and the extra `test`. Run it in
the project's folder. The prepared files stay in --work for the next run. Compare the figures of one
run with each other, not with those of other runs.
"""

import argparse
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final

from bench.bench import MIB, Bench, Measurement, Version
from bench.chart import make_chart
from bench.data import KINDS
from bench.disk import measure_cache, measure_fragments, measure_revision
from bench.far import measure_far
from bench.firstbyte import measure_ttfb
from bench.fleet import measure_memory, measure_sharing, measure_workers
from bench.growth import measure_growth
from bench.paper import work_out
from bench.processes import BenchError
from bench.production import measure_production
from bench.results import Results, parse_results
from bench.revision import build_revision
from bench.site import Site
from bench.table import make_table
from bench.throughput import measure_throughput
from xetserve import __version__

MEASUREMENTS: Final[dict[str, Measurement]] = {
    "production": measure_production,
    "throughput": measure_throughput,
    "memory": measure_memory,
    "ttfb": measure_ttfb,
    "far": measure_far,
    "cache": measure_cache,
    "revision": measure_revision,
    "sharing": measure_sharing,
    "fragments": measure_fragments,
    "workers": measure_workers,
    "growth": measure_growth,
}
RESULTS: Final = Path(__file__).with_name("results")


def main() -> int:
    """Run the command; return the exit status: 0, or 1 after a failure."""
    options = _make_parser().parse_args()
    if options.show:
        results = parse_results(options.show.read_text())
    else:
        signal.signal(signal.SIGTERM, _interrupt)  # stop all child processes, as on Ctrl-C
        results = Results()
        status = _measure(options, results)
        if status != 0 and not results.figures:
            return status
        path = options.json or RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(results.to_json())
        sys.stderr.write(f"bench: every value is in {path}\n")
        if status != 0:
            sys.stdout.write(make_table(results))
            return status
    sys.stdout.write(make_table(results))
    if options.svg:
        options.svg.write_text(make_chart(results))
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "names",
        nargs="*",
        choices=[[], *MEASUREMENTS],
        metavar="NAME",
        help=f"measurements to run: {', '.join(MEASUREMENTS)}; default: all",
    )
    parser.add_argument("--size", type=int, metavar="MIB", help="size of a file; default: 1024")
    parser.add_argument("--runs", type=int, help="runs of each measurement; default: 5")
    parser.add_argument("--quick", action="store_true", help="64 MiB and 2 runs, as a test")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS, help="of data")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "xetserve-bench",
        metavar="DIR",
        help="folder for the files and the origin; default: %(default)s",
    )
    parser.add_argument(
        "--against",
        metavar="REV",
        help="build this revision in a separate environment, and measure it in turn with the "
        "current one: production, throughput, ttfb, far, cache, fragments",
    )
    parser.add_argument("--fresh", action="store_true", help="prepare all files again")
    parser.add_argument(
        "--remove", action="store_true", help="remove the prepared files afterwards"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="default: bench/results/TIME.json"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the chart")
    parser.add_argument(
        "--show", type=Path, metavar="FILE", help="print the results in this file, measure nothing"
    )
    return parser


def _measure(options: argparse.Namespace, results: Results) -> int:
    """Run the measurements; results from before a failure are kept."""
    size = (options.size or (64 if options.quick else 1024)) * MIB
    runs = options.runs or (2 if options.quick else 5)
    results.about = _describe_machine(size, runs)
    site = Site(options.work, size)
    if options.fresh:
        shutil.rmtree(site.folder, ignore_errors=True)
    try:
        against = None
        if options.against:
            python = build_revision(options.against, options.work / "revisions")
            against = Version(options.against, str(python))
        with site:
            for name in options.names or MEASUREMENTS:
                results.section = name
                kinds = tuple(options.kinds)
                bench = Bench(site, results, runs, kinds, options.quick, against)
                MEASUREMENTS[name](bench)
        work_out(results)
    except BenchError as exc:
        sys.stderr.write(f"bench: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bench: interrupted\n")
        return 130
    finally:
        if options.remove:
            shutil.rmtree(site.folder, ignore_errors=True)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _describe_machine(size: int, runs: int) -> dict[str, object]:
    """Return a description of the machine and the run."""
    cores = len(os.sched_getaffinity(0))
    day = time.strftime("%Y-%m-%d")
    return {
        "summary": f"xetserve {__version__}, {day}: files of {size // MIB} MiB, medians of {runs} "
        f"interleaved runs with minimum and maximum, all on {cores} shared cores, loopback",
        "version": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": cores,
        "size": size,
        "runs": runs,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


if __name__ == "__main__":
    sys.exit(main())
