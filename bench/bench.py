"""What every measurement is given: the site, the results, how often and how much."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from bench.clients import Download, Part, run_curl
from bench.processes import Child
from bench.results import Results
from bench.site import REPO, Site

KIB: Final = 1024
MIB: Final = 1024 * 1024
BUDGET: Final = 128  # MiB; xetserve's default


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the bench.

    runs: how often each contestant has its turn; they take turns.
    is_quick: less of everything, to see that it works.
    """

    site: Site
    results: Results
    runs: int
    kinds: tuple[str, ...]
    is_quick: bool = False

    def turns(self, name: str) -> Iterator[int]:
        """Iterate over the runs, saying which one it is."""
        for number in range(1, self.runs + 1):
            sys.stderr.write(f"bench: {name}, run {number} of {self.runs}\n")
            yield number

    def pull(self, *flags: str, name: str, size: int, hub_url: str = "") -> Download:
        """Download a file through a new server, whose CPU seconds and peak are then its own."""
        with self.site.start_server(*flags, hub_url=hub_url) as server:
            return self.pull_from(server, name, size)

    def pull_from(self, server: Child, name: str, size: int) -> Download:
        """Download a file through a server; gives it with the CPU seconds and peak of the
        server.
        """
        before = server.cpu_seconds()
        download = run_curl(self.site, server.url, Part(download_path(name)), size)
        return download._replace(cpu=server.cpu_seconds() - before, peak=server.peak_memory())


Measurement = Callable[[Bench], None]


def download_path(name: str) -> str:
    """Give the path of a file on xetserve."""
    return f"/download/{REPO}/{name}"


def per_gb(cpu: float, nbytes: int) -> float:
    """CPU seconds for 10**9 bytes."""
    return cpu / nbytes * 1e9
