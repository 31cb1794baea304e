"""Process statistics: set the gauges for memory, CPU time and open files."""

import asyncio
import os
import platform
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

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

INTERVAL: Final = 1.0  # seconds

Sampler = Callable[[], None]


class ProcessStats:
    """A sampler for the gauges of this process.

    Args:
        started: the start time of the server in Unix seconds.
    """

    def __init__(self, started: float) -> None:
        self._cpu_seconds = 0.0
        WORKERS.set(1)
        BUILD_INFO.set(1, __version__, platform.python_version())
        START_TIME.set(round(started, 3))

    def sample(self) -> None:
        """Read the statistics of this process and set its gauges."""
        used = time.process_time()
        CPU_SECONDS.add(amount=used - self._cpu_seconds)
        self._cpu_seconds = used
        RESIDENT_MEMORY.set(_read_resident())
        OPEN_FILES.set(_count_files())
        MAX_FILES.set(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _read_resident() -> int:
    """Return resident memory in bytes, without shared memory.

    Each worker that has touched a shared page would count it again.
    """
    sizes = {"VmRSS": 0, "RssShmem": 0}
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name in sizes:
            sizes[name] = int(value.split()[0]) * 1024
    return sizes["VmRSS"] - sizes["RssShmem"]


def _count_files() -> int:
    # Linux 6.2 and later return the count as st_size; listing 10,000 names takes milliseconds.
    return os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))


async def beat(samplers: Sequence[Sampler], interval: float = INTERVAL) -> None:
    """Call the samplers every interval seconds, until cancelled."""
    while True:
        for sample in samplers:
            sample()
        await asyncio.sleep(interval)
