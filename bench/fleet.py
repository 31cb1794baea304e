"""Measure many clients: memory against their number, a shared file, and two workers."""

from collections.abc import Iterator
from itertools import islice

from bench.bench import BUDGET, KIB, MIB, Bench, download_path, per_gb
from bench.clients import Part, run_curls, run_slow
from bench.processes import BenchError, Child
from bench.results import Goal, at_most

SECTION = "memory"
FAST = (
    (1, 4),
    (8, 4),
    (32, 4),
    (128, 16),
)  # number of clients, and the fraction of a file that each requests
FAST_GOALS: dict[int, Goal] = {32: at_most(BUDGET + 64)}
SLOW = (125, 500)
SLOW_GOALS: dict[int, Goal] = {500: at_most(BUDGET + 96)}
SLOW_RATE = 64 * KIB  # bytes per second
SLOW_SECONDS = 20.0
NUM_SHARING = 16


def iter_parts(names: tuple[str, ...], size: int, fraction: int) -> Iterator[Part]:
    """Yield parts of files, each 1/fraction of its file; repeat them after all have been used."""
    part_size = size // fraction
    while True:
        for number in range(fraction):
            yield from (Part(download_path(name), number * part_size, part_size) for name in names)


def measure_memory(bench: Bench) -> None:
    """Measure the peak memory of a new server against the number of fast and slow clients."""
    names = tuple(bench.site.need_kind(kind) for kind in bench.kinds)
    for _ in bench.turns(SECTION):
        for count, fraction in FAST:
            _measure_fast(bench, names, count, fraction)
        for count in SLOW:
            _measure_slow(bench, names, count)
    bench.results.remark(
        f"fast clients read ranges, of 1/{FAST[0][1]} or (128 of them) 1/{FAST[-1][1]} of a file, "
        f"all kinds of data; the budget is {BUDGET} MiB"
    )
    bench.results.remark(
        f"slow clients start at different offsets and read {SLOW_RATE // KIB} KiB/s "
        "through a small socket buffer"
    )


def _measure_fast(bench: Bench, names: tuple[str, ...], count: int, fraction: int) -> None:
    note = bench.results.note
    who = f"{count} fast client{'s' if count > 1 else ''}"
    parts = list(islice(iter_parts(names, bench.site.size, fraction), count))
    with bench.site.start_server() as server:
        if count == 1:
            note("no client", server.memory(), "MiB")
        nbytes, seconds, cpu = _pull_parts(bench, server, parts)
        note(f"{who}: peak memory", server.peak_memory(), "MiB", FAST_GOALS.get(count))
        note(f"{who}: all together", nbytes / seconds / 1e6, "MB/s")
        note(f"{who}: CPU", per_gb(cpu, nbytes), "s/GB")


def _pull_parts(bench: Bench, server: Child, parts: list[Part]) -> tuple[int, float, float]:
    """Download parts at the same time; return bytes, seconds, and the server's CPU seconds."""
    before = server.cpu_seconds()
    downloads, seconds = run_curls(bench.site, server.url, parts)
    expected = sum(part.size or bench.site.size for part in parts)
    nbytes = sum(download.nbytes for download in downloads)
    if nbytes != expected:
        raise BenchError(f"{len(parts)} clients got {nbytes} bytes, expected {expected}")
    return nbytes, seconds, server.cpu_seconds() - before


def _measure_slow(bench: Bench, names: tuple[str, ...], count: int) -> None:
    note = bench.results.note
    size, seconds = bench.site.size, SLOW_SECONDS / (4 if bench.is_quick else 1)
    room = max(MIB, size - int(2 * SLOW_RATE * seconds))  # where a range may start
    who = f"{count} slow clients"
    with bench.site.start_server() as server:
        before = server.cpu_seconds()
        requests = [
            (server.url + download_path(names[number % len(names)]), room * number // count)
            for number in range(count)
        ]
        outcomes = run_slow(bench.site, requests, SLOW_RATE, seconds)
        received = [outcome.received for outcome in outcomes]
        note(f"{who}: peak memory", server.peak_memory(), "MiB", SLOW_GOALS.get(count))
        note(f"{who}: CPU", per_gb(server.cpu_seconds() - before, sum(received)), "s/GB")
    note(f"{who}: slowest one's share of its rate", min(received) / SLOW_RATE / seconds)
    note(f"{who}: cut or refused", sum(o.is_cut for o in outcomes), "", at_most(0))
    first = max(o.first_byte if o.first_byte is not None else seconds for o in outcomes)
    note(f"{who}: longest wait for an answer", first * 1e3, "ms")


def measure_sharing(bench: Bench) -> None:
    """Measure the fetched bytes for clients of the same file, over the file's packed bytes."""
    kind = bench.kinds[-1]
    name = bench.site.need_kind(kind)
    packed = sum(bench.site.read_chunks(name).values())
    for _ in bench.turns("sharing"):
        before = bench.site.data_traffic()
        with bench.site.start_server() as server:
            parts = [Part(download_path(name), size=None) for _ in range(NUM_SHARING)]
            nbytes, seconds, _ = _pull_parts(bench, server, parts)
            bench.results.note(
                f"{kind}: {NUM_SHARING} clients: peak memory", server.peak_memory(), "MiB"
            )
        fetched = bench.site.data_traffic().nbytes - before.nbytes
        bench.results.note(
            f"{kind}: {NUM_SHARING} clients: upstream bytes over the file's packed bytes",
            fetched / packed,
            goal=at_most(1.05),
        )
        bench.results.note(
            f"{kind}: {NUM_SHARING} clients, all together", nbytes / seconds / 1e6, "MB/s"
        )


def measure_workers(bench: Bench) -> None:
    """Measure one worker against two, with eight clients."""
    names = tuple(bench.site.need_kind(kind) for kind in bench.kinds)
    parts = list(islice(iter_parts(names, bench.site.size, 4), 8))
    for _ in bench.turns("workers"):
        rates = []
        for count in (1, 2):
            with bench.site.start_server("--workers", str(count)) as server:
                nbytes, seconds, cpu = _pull_parts(bench, server, parts)
                who = f"8 clients, {count} worker{'s' if count > 1 else ''}"
                rates.append(nbytes / seconds / 1e6)
                bench.results.note(who, rates[-1], "MB/s")
                bench.results.note(f"{who}: CPU", per_gb(cpu, nbytes), "s/GB")
                bench.results.note(
                    f"{who}: peak memory, all processes", server.peak_memory(), "MiB"
                )
        bench.results.note("two workers over one", rates[1] / rates[0])
    bench.results.remark("the workers share the cores with nginx, the origin and eight curls")
