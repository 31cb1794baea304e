"""The context of every measurement: the site, the results, and the number of runs."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bench.clients import Download, Part, run_curl, run_hf_xet
from bench.processes import Child
from bench.results import Results
from bench.site import REPO, Site

KIB: Final = 1024
MIB: Final = 1024 * 1024
BUDGET: Final = 128  # MiB; xetserve's default


class Version(NamedTuple):
    """A version of xetserve to measure.

    label: the name of the version in figures.
    python: the interpreter of the environment in which it is installed.
    """

    label: str = "xetserve"
    python: str = sys.executable


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the bench.

    runs: how often each program is measured; the programs take turns.
    is_quick: measure less, as a test.
    against: another version to measure in turn with this one, if the measurement supports it.
    """

    site: Site
    results: Results
    runs: int
    kinds: tuple[str, ...]
    is_quick: bool = False
    against: Version | None = None

    @property
    def versions(self) -> tuple[Version, ...]:
        """Return this version, and the other version if there is one."""
        return (Version(),) if self.against is None else (Version(), self.against)

    def compare(self, name: str, downloads: dict[str, Download]) -> None:
        """Record the ratios of this version's rate and CPU to those of the other version.

        Args:
            name: of the measurement.
            downloads: label of a version -> its download.
        """
        if self.against is not None:
            ours, theirs = downloads[Version().label], downloads[self.against.label]
            over = f"over {self.against.label}"
            self.results.note(f"{name}: rate {over}", ours.rate / theirs.rate)
            self.results.note(f"{name}: CPU {over}", ours.cpu / theirs.cpu)

    def turns(self, name: str) -> Iterator[int]:
        """Yield the numbers of the runs, and print each one."""
        for number in range(1, self.runs + 1):
            sys.stderr.write(f"bench: {name}, run {number} of {self.runs}\n")
            yield number

    def pull(
        self,
        *flags: str,
        name: str,
        size: int,
        hub_url: str = "",
        version: Version = Version(),  # noqa: B008 - it does not change
        ca_file: Path | None = None,
    ) -> Download:
        """Download a file through a new server; its CPU seconds and peak are for this download."""
        with self.site.start_server(
            *flags, hub_url=hub_url, python=version.python, ca_file=ca_file
        ) as server:
            return self.pull_from(server, name, size)

    def pull_from(self, server: Child, name: str, size: int) -> Download:
        """Download a file through a server; return the download with the server's CPU and peak."""
        before, loop_before = server.cpu_seconds(), server.loop_cpu_seconds()
        download = run_curl(self.site, server.url, Part(download_path(name)), size)
        return download._replace(
            cpu=server.cpu_seconds() - before,
            loop_cpu=server.loop_cpu_seconds() - loop_before,
            peak=server.peak_memory(),
        )

    def pull_natively(self, server: Child, name: str) -> Download:
        """Download a file through a server with the official client, natively; return the download
        with the server's CPU and peak.
        """
        before, loop_before = server.cpu_seconds(), server.loop_cpu_seconds()
        download = run_hf_xet(self.site, name, server.url)
        return download._replace(
            cpu=server.cpu_seconds() - before,
            loop_cpu=server.loop_cpu_seconds() - loop_before,
            peak=server.peak_memory(),
        )


Measurement = Callable[[Bench], None]


def download_path(name: str) -> str:
    """Return the path of a file on xetserve."""
    return f"/download/{REPO}/{name}"


def per_gb(cpu: float, nbytes: int) -> float:
    """Return CPU seconds for 10**9 bytes."""
    return cpu / nbytes * 1e9
