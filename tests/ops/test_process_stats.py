"""What a process says of itself."""

import asyncio
import mmap
import os
import resource
import time

from xetserve import __version__
from xetserve.metrics.catalogue import (
    BUILD_INFO,
    CPU_SECONDS,
    MAX_FILES,
    OPEN_FILES,
    RESIDENT_MEMORY,
    START_TIME,
    WORKERS,
)
from xetserve.ops.process_stats import ProcessStats, beat


def test_a_process_tells_of_its_memory_time_and_files() -> None:
    before = CPU_SECONDS.total
    process = ProcessStats(1234.5)
    process.sample()
    files = OPEN_FILES.get()
    pipe = os.pipe()
    process.sample()
    for descriptor in pipe:
        os.close(descriptor)
    assert OPEN_FILES.get() == files + 2
    assert MAX_FILES.get() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 1 << 20 < RESIDENT_MEMORY.get() <= peak * 1.1
    assert 0 < CPU_SECONDS.total - before <= time.process_time()
    assert (START_TIME.get(), WORKERS.get()) == (1234.5, 1)
    assert [labels[0] for labels in BUILD_INFO._places] == [__version__]


def test_what_workers_share_is_nobodys_memory() -> None:
    process = ProcessStats(1.0)
    process.sample()
    before = RESIDENT_MEMORY.get()
    with mmap.mmap(-1, 64 << 20) as shared:
        for page in range(0, len(shared), mmap.PAGESIZE):
            shared[page] = 1
        process.sample()
        assert RESIDENT_MEMORY.get() < before + (32 << 20)


async def test_samplers_are_called_again_and_again() -> None:
    called = asyncio.Event()
    counts = [0, 0]

    def first() -> None:
        counts[0] += 1

    def second() -> None:
        counts[1] += 1
        if counts[1] == 3:
            called.set()

    beating = asyncio.create_task(beat([first, second], 0.0))
    await called.wait()
    beating.cancel()
    assert counts == [3, 3]
