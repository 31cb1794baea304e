"""Measure one client with files of growing size: memory and CPU per byte must stay constant."""

from bench.bench import MIB, Bench, per_gb
from bench.results import at_most

SECTION = "growth"
FACTORS = (1 / 16, 1 / 4, 1, 4)  # of the default size: 64 MiB to 4 GiB
KIND = "lz4"
PEAK_GOAL = at_most(64)


def measure_growth(bench: Bench) -> None:
    """Measure memory and CPU against the size of the file."""
    sizes = [int(bench.site.size * factor) for factor in FACTORS]
    names = [bench.site.need_kind(KIND, size) for size in sizes]
    for _ in bench.turns(SECTION):
        for name, size in zip(names, sizes, strict=True):
            download = bench.pull(name=name, size=size)
            label = describe(size)
            bench.results.note(f"{label}: peak memory", download.peak, "MiB", PEAK_GOAL)
            bench.results.note(f"{label}: CPU", per_gb(download.cpu, size), "s/GB")
            bench.results.note(f"{label}", download.rate, "MB/s")


def describe(size: int) -> str:
    """Return a size in bytes as text."""
    return f"{size // MIB} MiB"
