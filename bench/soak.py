"""A soak test: `python -m bench.soak --minutes 20 [--tls] [-- SERVE FLAGS]`.

Many clients download whole files and ranges of mixed sizes, disconnect early and come back, while
the upstream injects faults in turns. Every received byte is compared with the source. At the end
the server must be idle: with as many open files as before, and memory within its limits.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

from bench.site import make_certificates
from xetserve.errors import BrokenStream
from xetserve.net.pool import ConnectionPool
from xetserve.net.proxies import ProxyRules
from xetserve.net.tls import make_client_context
from xetserve.net.url import parse_url

MIB = 1024 * 1024
REPO = "soak/files"
TIMEOUT = 30.0
SIZES = (0, 1, 1000, 70_000, MIB, 5 * MIB + 1, 23 * MIB, 70 * MIB)
FAULTS: tuple[dict[str, object], ...] = (
    {},
    {"data_403_first": 20},
    {"short_body_first": 10},
    {"reset_first": 10},
    {"data_status_burst": {"status": 503, "count": 10}},
    {"cas_status_burst": {"status": 500, "count": 5}},
    {"latency": {"hub": 0.02, "cas": 0.02, "data": 0.02}},
    {"url_lifetime": 1},
    {"v2_status": 404},
    {"untrimmed_terms": True},
)


def make_files(folder: Path) -> dict[str, bytes]:
    """Make the files; return name -> content. Large files share parts, and therefore xorbs."""
    source = random.Random(1)
    shared = source.randbytes(8 * MIB)
    files = {}
    folder.mkdir()
    for number, size in enumerate(SIZES):
        own = source.randbytes(min(size, 2 * MIB)) + bytes(min(size, 300_000))
        content = (own + shared * (size // len(shared) + 1))[:size]
        name = f"file-{number}.bin"
        (folder / name).write_bytes(content)
        files[name] = content
    return files


class TlsRelay:
    """A data host with TLS: it passes connections on to the origin, and its resets back.

    target: host and port of the origin, to be set before the first connection.
    """

    def __init__(self, folder: Path) -> None:
        self.target = ("", 0)
        self.ca_file = make_certificates(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.pem", folder / "server.key")

    async def start(self) -> str:
        """Listen; return the URL."""
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._context)
        return f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        origin_reader, origin_writer = await asyncio.open_connection(*self.target)
        tasks = [
            asyncio.ensure_future(self._copy(reader, origin_writer)),
            asyncio.ensure_future(self._copy(origin_reader, writer)),
        ]
        with contextlib.suppress(asyncio.CancelledError):  # at the end of the soak
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        origin_writer.transport.abort()
        writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(256 * 1024):
                writer.write(data)
                await writer.drain()


def start(
    *arguments: str, log: Path, environment: dict[str, str] | None = None
) -> tuple[subprocess.Popen[bytes], str]:
    """Start a xetserve command; return its process and its URL once it listens."""
    command = [sys.executable, "-m", "xetserve", *arguments]
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stderr=errors, env={**os.environ, **(environment or {})}
        )
    deadline = time.monotonic() + TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if match := re.search(r"listening on (http://\S+?:\d+)", log.read_text()):
            return process, match[1]
        time.sleep(0.05)
    process.kill()
    raise SystemExit(f"did not start: {log.read_text()}")


def open_files(pid: int) -> int:
    """Return the number of open files of a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(len(list(Path(f"/proc/{each}/fd").iterdir())) for each in [str(pid), *children])


def memory(pid: int, field: str) -> int:
    """Return VmRSS or VmHWM in MiB, summed over a process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    total = 0
    for each in [str(pid), *children]:
        match = re.search(rf"{field}:\s+(\d+)", Path(f"/proc/{each}/status").read_text())
        total += int(match[1]) if match else 0
    return total // 1024


class Soak:
    """The clients and their results."""

    def __init__(self, url: str, files: dict[str, bytes]) -> None:
        self._url = url
        self._files = files
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def client(self, number: int, until: float) -> None:
        """Download random files and ranges until a time."""
        source = random.Random(number)
        while time.monotonic() < until:
            pool = ConnectionPool(
                tls=make_client_context(), proxies=ProxyRules({}), connect_timeout=TIMEOUT
            )
            try:
                for _ in range(source.randrange(1, 5)):
                    await self._download(pool, source)
            except (BrokenStream, TimeoutError):
                self.counts["cut"] += 1
            finally:
                await pool.aclose()

    async def _download(self, pool: ConnectionPool, source: random.Random) -> None:
        name = source.choice(list(self._files))
        content = self._files[name]
        headers = [("Authorization", "Bearer hf_soak")]
        expected = content
        if content and source.random() < 0.4:
            first = source.randrange(len(content))
            last = source.randrange(first, len(content))
            headers.append(("Range", f"bytes={first}-{last}"))
            expected = content[first : last + 1]
        leave_after = source.randrange(len(expected) + 1) if source.random() < 0.2 else None
        buffer = memoryview(bytearray(source.choice((4096, 65536, 512 * 1024))))
        at = 0
        url = parse_url(f"{self._url}/download/{REPO}/{name}")
        async with pool.request("GET", url, headers, timeout=TIMEOUT) as response:
            if response.status not in (200, 206):
                self.counts[f"status {response.status}"] += 1
                await response.read(MIB, TIMEOUT)
                return
            while count := await response.receive_into(buffer, TIMEOUT):
                if buffer[:count] != expected[at : at + count]:
                    self.wrong.append(f"{name} at {at}")
                    return
                at += count
                if leave_after is not None and at >= leave_after:
                    self.counts["left"] += 1
                    return
        if at != len(expected):
            self.wrong.append(f"{name} ended after {at} of {len(expected)} bytes without an error")
        self.counts["complete"] += 1


async def misbehave(origin_url: str, until: float) -> None:
    """Set faults of the origin in turns, until a time."""
    pool = ConnectionPool(tls=make_client_context(), proxies=ProxyRules({}), connect_timeout=5)
    number = 0
    while time.monotonic() < until:
        body = json.dumps(FAULTS[number % len(FAULTS)]).encode()
        url = parse_url(f"{origin_url}/_test/faults")
        async with pool.request("POST", url, body=body, timeout=TIMEOUT) as response:
            await response.read(MIB, TIMEOUT)
        number += 1
        await asyncio.sleep(3)
    await pool.aclose()


async def run(
    minutes: float, num_clients: int, flags: list[str], folder: Path, *, tls: bool
) -> bool:
    """Run the soak; return whether all checks passed.

    Args:
        tls: whether the data host speaks TLS.
    """
    files = make_files(folder / "files")
    relay = TlsRelay(folder) if tls else None
    data_flags = () if relay is None else ("--data-url", await relay.start())
    origin, origin_url = start(
        *("origin", str(folder / "origin"), "--host", "127.0.0.1", "--port", "0"),
        *("--import", f"{REPO}={folder / 'files'}", "--test-controls", *data_flags),
        log=folder / "origin.log",
    )
    if relay is not None:
        parts = urlsplit(origin_url)
        relay.target = (parts.hostname or "", parts.port or 0)
    server, url = start(
        *("serve", "--host", "127.0.0.1", "--port", "0", "--hub-url", origin_url, *flags),
        log=folder / "server.log",
        environment={} if relay is None else {"SSL_CERT_FILE": str(relay.ca_file)},
    )
    try:
        soak = Soak(url, files)
        await soak.client(0, time.monotonic() + 2)  # warm up: some files stay open
        files_before = open_files(server.pid)
        until = time.monotonic() + minutes * 60
        clients = [soak.client(number, until) for number in range(num_clients)]
        await asyncio.gather(misbehave(origin_url, until), *clients)
        await asyncio.sleep(35)  # idle upstream connections close after 30 seconds
        files_after = open_files(server.pid)
        sys.stdout.write(
            f"{dict(soak.counts)}\nwrong: {soak.wrong or 'nothing'}\n"
            f"open files: {files_before} before, {files_after} after\n"
            f"memory: {memory(server.pid, 'VmRSS')} MiB now, "
            f"{memory(server.pid, 'VmHWM')} at most\n"
            f"tracebacks: {(folder / 'server.log').read_text().count('Traceback')}\n"
        )
        return not soak.wrong and files_after <= files_before + 2
    finally:
        server.terminate()
        origin.terminate()
        server.wait()
        origin.wait()


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--tls", action="store_true", help="the data comes over HTTPS")
    parser.add_argument("flags", nargs="*", help="flags for `xetserve serve`, after --")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="xetserve-soak-"))
    try:
        work = run(options.minutes, options.clients, options.flags, folder, tls=options.tls)
        return 0 if asyncio.run(work) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
