"""`python -m bench.crowd`: fast downloads amid a crowd of idle, slow and hostile clients.

Idle connections send nothing, slow readers read a few KB/s, slow senders send a request's head byte
by byte. The command prints the rate of the fast downloads with and without the crowd, the server's
memory, and the outcome of the slow senders. Then it runs hostile clients of each kind (see
hostile.py) and prints the longest turn of the event loop and the memory that each kind costs.
Clients, server and origin share the machine.
"""

import argparse
import asyncio
import contextlib
import hashlib
import random
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.hostile import run_kinds
from bench.soak import memory, start

MIB = 1024 * 1024
REPO = "crowd/files"
NAME = "large.bin"
GET = f"GET /download/{REPO}/{NAME} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer hf_crowd\r\n"
TIMEOUT = 120.0  # seconds


@dataclass
class Sizes:
    """The number of clients of each kind."""

    idle: int = 1000
    readers: int = 200
    senders: int = 50
    fast: int = 20


@dataclass
class Outcome:
    """The outcomes of all clients."""

    rates: list[float] = field(
        default_factory=list
    )  # bytes a second of all fast downloads together
    wrong: list[str] = field(default_factory=list)
    senders: Counter[str] = field(default_factory=Counter)
    readers: Counter[str] = field(default_factory=Counter)
    idle: Counter[str] = field(default_factory=Counter)


class Crowd:
    """The clients of one server.

    Args:
        reader_rate: bytes a second of a slow reader.
        sender_pause: seconds between two bytes of a slow sender.
    """

    def __init__(self, url: str, digest: str, reader_rate: int, sender_pause: float) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 0))
        self._digest = digest
        self._reader_rate = reader_rate
        self._sender_pause = sender_pause
        self.outcome = Outcome()

    async def be_idle(self, connected: asyncio.Event) -> None:
        """Connect and send nothing."""
        reader, writer = await asyncio.open_connection(*self._address)
        connected.set()
        try:
            self.outcome.idle["closed" if not await reader.read(1) else "answered"] += 1
        except asyncio.CancelledError:
            self.outcome.idle["still there"] += 1
            raise
        except OSError:
            self.outcome.idle["reset"] += 1
        finally:
            writer.transport.abort()

    async def read_slowly(self, connected: asyncio.Event) -> None:
        """Download at reader_rate."""
        reader, writer = await asyncio.open_connection(*self._address, limit=16384)
        try:
            writer.write(f"{GET}\r\n".encode())
            status = (await reader.readline()).split(b" ")[1].decode()
            connected.set()
            while await reader.read(self._reader_rate // 4):  # noqa: ASYNC110 - slow on purpose
                await asyncio.sleep(0.25)
            self.outcome.readers[f"{status}, ended"] += 1
        except asyncio.CancelledError:
            self.outcome.readers[f"{status}, still reading"] += 1
            raise
        except (OSError, IndexError):
            self.outcome.readers["cut"] += 1
        finally:
            connected.set()
            writer.transport.abort()

    async def send_slowly(self, connected: asyncio.Event) -> None:
        """Send an endless request head byte by byte."""
        reader, writer = await asyncio.open_connection(*self._address)
        answer = asyncio.ensure_future(reader.read(100))
        try:
            for byte in (GET + "X: " + "x" * 100_000).encode():
                with contextlib.suppress(ConnectionError):
                    writer.write(bytes([byte]))
                connected.set()
                done, _ = await asyncio.wait([answer], timeout=self._sender_pause)
                if done:
                    break
            line = (await answer).split(b" ")
            self.outcome.senders[line[1].decode() if len(line) > 1 else "closed"] += 1
        except asyncio.CancelledError:
            self.outcome.senders["still sending"] += 1
            answer.cancel()
            raise
        except OSError:
            self.outcome.senders["reset"] += 1
        finally:
            writer.transport.abort()

    async def download(self) -> int:
        """Download at full speed; return the number of bytes, 0 if the content is wrong."""
        async with asyncio.timeout(TIMEOUT):
            # curl is a separate process, so it does not slow down the other clients.
            process = await asyncio.create_subprocess_exec(
                *("curl", "-q", "-sS", "-f", "--noproxy", "*", "-H", "Authorization: Bearer x"),
                f"http://{self._address[0]}:{self._address[1]}/download/{REPO}/{NAME}",
                stdout=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            digest, size = hashlib.blake2b(), 0
            while piece := await process.stdout.read(MIB):
                digest.update(piece)
                size += len(piece)
            status = await process.wait()
        if status or digest.hexdigest() != self._digest:
            self.outcome.wrong.append(f"curl {status} after {size} bytes")
            return 0
        return size

    async def download_all(self, count: int) -> float:
        """Run the fast downloads at the same time; return their total rate in bytes a second."""
        started = time.monotonic()
        sizes = await asyncio.gather(*(self.download() for _ in range(count)))
        return sum(sizes) / (time.monotonic() - started)

    async def gather(self, sizes: Sizes) -> list[asyncio.Task[None]]:
        """Start the crowd; return its tasks once all clients are connected."""
        tasks, events = [], []
        kinds = (self.be_idle, sizes.idle), (self.read_slowly, sizes.readers)
        for kind, count in (*kinds, (self.send_slowly, sizes.senders)):
            for _ in range(count):
                event = asyncio.Event()
                tasks.append(asyncio.ensure_future(kind(event)))
                events.append(event)
                if len(tasks) % 50 == 0:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(TIMEOUT):
            await asyncio.gather(*(event.wait() for event in events))
        return tasks


async def disperse(tasks: list[asyncio.Task[None]]) -> None:
    """Stop the clients of the crowd."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def run(options: argparse.Namespace, folder: Path) -> bool:
    """Measure without and with the crowd; return whether all fast downloads were correct."""
    sizes = Sizes(options.idle, options.readers, options.senders, options.fast)
    (folder / "files").mkdir(parents=True)
    source = random.Random(5)
    digest = hashlib.blake2b()
    with (folder / "files" / NAME).open("wb") as file:
        for _ in range(options.size):
            piece = source.randbytes(MIB)
            digest.update(piece)
            file.write(piece)
    origin, origin_url = start(
        *("origin", str(folder / "origin"), "--host", "127.0.0.1", "--port", "0"),
        *("--import", f"{REPO}={folder / 'files'}"),
        log=folder / "origin.log",
    )
    try:
        is_right = True
        if not options.kinds:
            is_right = await run_crowd(options, folder, sizes, origin_url, digest.hexdigest())
        target = f"/download/{REPO}/{NAME}"
        size = options.size * MIB
        if options.scale:
            await run_kinds(options.kinds, options.scale, folder, origin_url, target, size)
        return is_right
    finally:
        origin.terminate()
        origin.wait()


async def run_crowd(
    options: argparse.Namespace, folder: Path, sizes: Sizes, origin_url: str, digest: str
) -> bool:
    """Measure the fast downloads; return whether all were correct."""
    server, url = start(
        *("serve", "--host", "127.0.0.1", "--port", "0", "--hub-url", origin_url),
        *("--head-timeout", str(options.head_timeout), "--access-log", "off", *options.flags),
        log=folder / "server.log",
    )
    try:
        crowd = Crowd(url, digest, options.reader_rate, options.sender_pause)
        await crowd.download()
        alone = [await crowd.download_all(sizes.fast) for _ in range(options.runs)]
        before = memory(server.pid, "VmRSS"), memory(server.pid, "VmHWM")
        tasks = await crowd.gather(sizes)
        amid = [await crowd.download_all(sizes.fast) for _ in range(options.runs)]
        now = memory(server.pid, "VmRSS"), memory(server.pid, "VmHWM")
        await asyncio.sleep(max(0.0, options.head_timeout))
        await disperse(tasks)
        outcome = crowd.outcome
        sys.stdout.write(
            f"alone: {show(alone)}; amid the crowd: {show(amid)} MB/s; "
            f"ratio {max(amid) / max(alone):.2f}\n"
            f"memory: {before[0]} MiB (at most {before[1]}) before, "
            f"{now[0]} (at most {now[1]}) amid\n"
            f"slow senders: {dict(outcome.senders)}\n"
            f"slow readers: {dict(outcome.readers)}\n"
            f"idle: {dict(outcome.idle)}\n"
            f"wrong: {outcome.wrong or 'nothing'}\n"
            f"tracebacks: {(folder / 'server.log').read_text().count('Traceback')}\n"
        )
        return not outcome.wrong
    finally:
        server.terminate()
        server.wait()


def show(rates: list[float]) -> str:
    """Return rates as text in MB/s."""
    return ", ".join(f"{rate / 1e6:.0f}" for rate in rates)


def main() -> int:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m bench.crowd", description=__doc__)
    parser.add_argument("--idle", type=int, default=Sizes.idle)
    parser.add_argument("--readers", type=int, default=Sizes.readers)
    parser.add_argument("--senders", type=int, default=Sizes.senders)
    parser.add_argument("--fast", type=int, default=Sizes.fast)
    parser.add_argument("--size", type=int, default=256, help="size of the file in MiB")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--reader-rate", type=int, default=16384, help="rate of a slow reader in bytes a second"
    )
    parser.add_argument(
        "--sender-pause", type=float, default=1.0, help="seconds between two bytes of a slow sender"
    )
    parser.add_argument(
        "--head-timeout", type=float, default=20.0, help="the server's head_timeout in seconds"
    )
    parser.add_argument(
        "--kinds", nargs="+", default=[], help="run only these kinds of hostile clients"
    )
    parser.add_argument(
        "--scale", type=float, default=1.0, help="factor for hostile requests; 0: none"
    )
    parser.add_argument("flags", nargs="*", help="flags for `xetserve serve`, after --")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    folder = Path(tempfile.mkdtemp(prefix="xetserve-crowd-"))
    try:
        return 0 if asyncio.run(run(options, folder)) else 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
