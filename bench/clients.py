"""Clients: curl, the official client, a client that waits for the first byte, and slow clients."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from bench.processes import BenchError, Child
from bench.site import REPO, TOKEN, Site
from bench.slow import Outcome, SlowClients

MEMORY: Final = Path("/dev/shm")

_HF_XET: Final = """\
import resource, sys, time
from huggingface_hub import hf_hub_download
def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
repo, name, folder = sys.argv[1:]
cpu_before, start = cpu(), time.monotonic()
hf_hub_download(repo, name, local_dir=folder)
took = time.monotonic() - start
print(took, cpu() - cpu_before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


class Download(NamedTuple):
    """A finished download.

    cpu, loop_cpu: CPU seconds of the measured process and of its main thread.
    peak: peak memory of the process in MiB.
    """

    nbytes: int
    seconds: float
    cpu: float = 0.0
    peak: float = 0.0
    loop_cpu: float = 0.0

    @property
    def rate(self) -> float:
        """Return the rate in MB/s."""
        return self.nbytes / self.seconds / 1e6


class Part(NamedTuple):
    """A path on a server, and the byte range to request; None: the whole file."""

    path: str
    start: int = 0
    size: int | None = None


def _curl_command(url: str, part: Part) -> list[str]:
    program = shutil.which("curl")
    if program is None:
        raise BenchError("curl is not installed: apt-get install curl")
    ranged = () if part.size is None else ("-r", f"{part.start}-{part.start + part.size - 1}")
    return [
        *(program, "-q", "-sS", "-f", "--noproxy", "*", "-o", "/dev/null"),
        *("-H", f"Authorization: Bearer {TOKEN}", *ranged),
        *("-w", "%{size_download} %{time_total}\n", url + part.path),
    ]


def run_curl(site: Site, url: str, part: Part, size: int | None = None) -> Download:
    """Download with one curl and discard the data.

    Args:
        size: the expected number of bytes; None: any number.

    Raises:
        BenchError: the download failed, or had another size.
    """
    (download,), _ = run_curls(site, url, [part])
    if size is not None and download.nbytes != size:
        raise BenchError(f"{part.path} has {download.nbytes} bytes, expected {size}")
    return download


def run_curls(site: Site, url: str, parts: Sequence[Part]) -> tuple[list[Download], float]:
    """Download several parts at the same time, with a curl for each.

    Returns:
        The downloads, and the total time in seconds.

    Raises:
        BenchError: a download failed.
    """
    log = site.folder / "curl.log"
    downloads = []
    with ExitStack() as stack:
        start = time.monotonic()
        children = [
            stack.enter_context(Child(_curl_command(url, part), log, output=subprocess.PIPE))
            for part in parts
        ]
        for child, part in zip(children, parts, strict=True):
            output = child.process.communicate()[0].decode()
            if child.process.returncode != 0:
                raise BenchError(f"curl {part} failed: {log.read_text()}")
            size, seconds = output.split()
            downloads.append(Download(int(size), float(seconds)))
        return downloads, time.monotonic() - start


def run_hf_xet(
    site: Site, name: str, hub_url: str = "", *, ca_file: Path | None = None
) -> Download:
    """Download with the official client into memory, with its defaults and an empty cache.

    The CPU time is that of the download, without the start of Python. The peak is the process's.

    Args:
        ca_file: certificates that the client trusts instead of the system's.

    Raises:
        BenchError: the download failed.
    """
    size = site.size
    has_room = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 3 * size
    log = site.folder / "hf-xet.log"
    with tempfile.TemporaryDirectory(dir=MEMORY if has_room else site.folder) as folder:
        touch_memory(Path(folder) / "touched", size)
        environment = site.client_environment(Path(folder) / "home", hub_url)
        if ca_file is not None:
            environment["SSL_CERT_FILE"] = str(ca_file)
        command = [sys.executable, "-c", _HF_XET, REPO, name, f"{folder}/out"]
        with Child(command, log, environment=environment, output=subprocess.PIPE) as child:
            output = child.process.communicate()[0].decode()
            if child.process.returncode != 0:
                raise BenchError(f"hf-xet {name} failed: {log.read_text()}")
        seconds, cpu, peak = map(float, output.split())
        return Download(os.stat(f"{folder}/out/{name}").st_size, seconds, cpu, peak)


def make_cache_folder(site: Site) -> str:
    """Make an empty folder for a cache, and touch the memory that is used when it is filled."""
    touch_memory(site.folder / "touched", 2 * site.size)
    return tempfile.mkdtemp(prefix="cache-", dir=site.folder)


def touch_memory(path: Path, size: int) -> None:
    """Write a file of a size and delete it.

    In a virtual machine, the first access to memory is slow. Without this, the first measured
    program would have that cost.
    """
    block = bytes(1024 * 1024)
    with path.open("wb") as file:
        for _ in range(0, size, len(block)):
            file.write(block)
    path.unlink()


def find_body(data: bytes) -> bytes | None:
    """Return the received part of a response's body, without the size line of a first chunk.

    Returns None if the head is incomplete.

    Raises:
        BenchError: the status is not a success.
    """
    head, separator, body = data.partition(b"\r\n\r\n")
    if not separator:
        return None
    if not head.startswith((b"HTTP/1.1 200", b"HTTP/1.1 206")):
        status = head.split(b"\r\n")[0].decode(errors="replace")
        raise BenchError(f"the server answered {status}")
    if b"transfer-encoding: chunked" in head.lower():
        return body.partition(b"\r\n")[2]
    return body


def time_first_byte(url: str, path: str) -> float:
    """Request a whole file and leave after the first body byte.

    Returns the seconds from the start of the connection to that byte.
    """
    parts = urlsplit(url)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    )
    start = time.monotonic()
    with socket.create_connection((parts.hostname, parts.port or 80), timeout=30) as sock:
        sock.sendall(request.encode())
        data = b""
        while not find_body(data):
            received = sock.recv(65536)
            if not received:
                raise BenchError(f"{path} ended before its first byte")
            data += received
        return time.monotonic() - start


def run_slow(
    site: Site, requests: list[tuple[str, int]], rate: float, seconds: float
) -> list[Outcome]:
    """Run slow clients in a separate process.

    Args:
        requests: the URL and the first byte of the range for each client.
        rate: bytes per second of each client.
        seconds: how long the clients read.
    """
    plan = site.folder / "slow.json"
    plan.write_text(json.dumps(asdict(SlowClients(requests, TOKEN, rate, seconds))))
    log = site.folder / "slow.log"
    command = [sys.executable, "-m", "bench.slow", str(plan)]
    with Child(command, log, output=subprocess.PIPE) as child:
        output = child.process.communicate()[0]
        if child.process.returncode != 0:
            raise BenchError(f"the slow clients failed: {log.read_text()}")
    return [Outcome(**item) for item in json.loads(output)]
