"""Hostile clients and upstreams, each kind against a new server.

For each kind, the bench prints the statuses, the longest turn of the server's event loop, the
longest wait of a client for /health, and the server's memory. There are no goals. The load is
bounded in number and time, and stays on the loopback interface. Clients and upstream share the
machine and one process, which adds to the waits.
"""

import asyncio
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from bench.badhub import BadHub
from bench.processes import Child, start_xetserve
from xetserve.app.hub.passthrough import MAX_QUESTION_SIZE

KIND_TIMEOUT: Final = 60.0  # seconds for all clients of a kind
PROBE_PAUSE: Final = 0.05  # seconds between two requests for /health
HEAD_SIZE: Final = 31_000  # bytes in a field; a head has at most 32 KiB
BODY_SIZE: Final = MAX_QUESTION_SIZE - 1024  # bytes
TOKEN: Final = "Authorization: Bearer hf_hostile"
_BODY_PIECE: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: its head without the empty line, and the pieces of its body."""

    head: str
    body: Sequence[bytes] = ()

    @property
    def is_head(self) -> bool:
        """Return whether the response has no body."""
        return self.head.startswith("HEAD ")


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of hostile clients.

    make: returns the requests.
    connections: number of connections; each sends one request after the other.
    flags: of the server.
    needs_origin: use the normal origin as upstream, which has a file.
    """

    name: str
    make: Callable[[], Iterable[Ask]]
    connections: int = 8
    flags: tuple[str, ...] = ()
    needs_origin: bool = False


@dataclass
class Figures:
    """The figures of a kind. Times are in seconds, memory in MiB."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    worst_turn: float = 0.0
    longest_wait: float = 0.0
    before: float = 0.0
    most: float = 0.0
    culprits: list[str] = field(default_factory=list)


def get(target: str, *fields: str, method: str = "GET") -> Ask:
    """Make a request without a body."""
    return Ask("\r\n".join([f"{method} {target} HTTP/1.1", "Host: h", TOKEN, *fields]))


def post(target: str, pieces: Sequence[bytes], *fields: str) -> Ask:
    """Make a request with a body."""
    kind = "Content-Type: application/json"
    return Ask(get(target, kind, *fields, method="POST").head, pieces)


def make_large_bodies(count: int) -> Iterator[Ask]:
    """Make requests with bodies of the maximum size, in pieces."""
    body = b'{"paths": [' + b'"x",' * (BODY_SIZE // 4 - 4) + b'"x"]}'
    pieces = [body[at : at + _BODY_PIECE] for at in range(0, len(body), _BODY_PIECE)]
    for _ in range(count):
        yield post("/api/models/a/b/paths-info/main", pieces, f"Content-Length: {len(body)}")


def make_small_chunks(count: int) -> Iterator[Ask]:
    """Make requests with bodies in chunks of two bytes."""
    pieces = [b"2\r\n  \r\n" * 8192] * 32
    for _ in range(count):
        yield post(
            "/api/models/a/b/paths-info/main", [*pieces, b"0\r\n\r\n"], "Transfer-Encoding: chunked"
        )


def make_ranges(target: str, size: int, count: int) -> Iterator[Ask]:
    """Make requests for 16 parts of a file and for the whole file with zstd, in turn."""
    step = size // 16
    parts = ",".join(f"{at}-{at + step // 2}" for at in range(0, size - step, step))
    for number in range(count):
        yield get(target, f"Range: bytes={parts}" if number % 2 else "Accept-Encoding: zstd")


def make_kinds(scale: float, target: str, size: int) -> list[Kind]:
    """Return all kinds.

    Args:
        scale: factor for the number of requests.
        target, size: a file on the origin.
    """

    def times(number: int) -> int:
        return max(1, int(number * scale))

    def each(number: int, make: Callable[[int], Ask]) -> Callable[[], Iterable[Ask]]:
        return lambda: (make(index) for index in range(times(number)))

    blanks, word = " " * HEAD_SIZE, "a" * HEAD_SIZE
    forwarded = ("--trusted-proxies", "127.0.0.1", "--proxy-headers", "forwarded")
    lfs = "info/lfs/objects"
    framed = ("/api/models/frames/b", "/download/frames/b/f", f"/download-hash/{'f' * 64}?repo=a/b")
    return [
        Kind("nobody", each(1, lambda _: get("/health"))),
        Kind("long Via", each(100, lambda _: get("/health", f"Via: 1.1 {word}"))),
        Kind(
            "long Forwarded",
            each(100, lambda _: get("/health", f"Forwarded: for=1,{blanks}!")),
            flags=forwarded,
        ),
        Kind(
            "missing LFS objects", each(4000, lambda n: get(f"/a/b{n}.git/{lfs}/{n:064x}?size=5"))
        ),
        Kind("large JSON bodies", lambda: make_large_bodies(times(120)), 120),
        Kind("chunks of 2 bytes", lambda: make_small_chunks(times(16)), 8),
        Kind("huge plans", each(8, lambda n: get(f"/download/a/b/{n}", f"Range: bytes={n}-")), 4),
        Kind(
            "refused repositories",
            each(12_000, lambda n: get(f"/refused/r{n}/resolve/main/f", method="HEAD")),
        ),
        Kind(
            "long Accept-Language",
            each(4000, lambda n: get("/api/models/a/b", f"Accept-Language: {n}{'x' * 12_000}")),
        ),
        Kind(
            "empty frames",
            each(9, lambda n: get(framed[n % 3])),
            3,
        ),
        Kind(
            "16 parts, and zstd, at once",
            lambda: make_ranges(target, size, times(1000)),
            times(1000),
            needs_origin=True,
        ),
    ]  # fmt: skip


class Hostile:
    """The clients of one server."""

    def __init__(self, url: str, figures: Figures) -> None:
        parts = urlsplit(url)
        self._address = (str(parts.hostname), int(parts.port or 0))
        self._figures = figures

    async def flood(self, kind: Kind) -> None:
        """Send all requests of a kind, for at most KIND_TIMEOUT."""
        asks = iter(kind.make())
        started = time.monotonic()
        clients = [asyncio.ensure_future(self._send(asks)) for _ in range(kind.connections)]
        _, late = await asyncio.wait(clients, timeout=KIND_TIMEOUT)
        for client in late:
            client.cancel()
            self._figures.statuses["unfinished"] += 1
        await asyncio.gather(*clients, return_exceptions=True)
        self._figures.seconds = time.monotonic() - started

    async def _send(self, asks: Iterator[Ask]) -> None:
        """Send requests; open a new connection whenever the server closes one."""
        ask = next(asks, None)
        while ask is not None:
            try:
                async with self._connect() as (reader, writer):
                    is_kept = True
                    while is_kept and ask is not None:
                        status, is_kept = await exchange(reader, writer, ask)
                        self._figures.statuses[status] += 1
                        ask = next(asks, None)
            except (OSError, asyncio.IncompleteReadError, ValueError):
                self._figures.statuses["cut"] += 1
                ask = next(asks, None)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection(*self._address)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def probe(self) -> None:
        """Request /health periodically and record the longest wait, until cancelled."""
        while True:
            started = time.monotonic()
            try:
                with suppress(OSError, asyncio.IncompleteReadError):
                    async with self._connect() as (reader, writer):
                        await exchange(reader, writer, get("/health", "Connection: close"))
            finally:
                waited = time.monotonic() - started
                self._figures.longest_wait = max(self._figures.longest_wait, waited)
            await asyncio.sleep(PROBE_PAUSE)

    async def read_worst_turn(self) -> float:
        """Return the longest turn of the event loop, from the metrics."""
        async with asyncio.timeout(KIND_TIMEOUT), self._connect() as (reader, writer):
            writer.write(b"GET /metrics HTTP/1.0\r\nHost: h\r\n\r\n")
            text = (await reader.read()).decode("latin-1")
        found = re.search(r"^xetserve_loop_lag_max_seconds (\S+)", text, re.MULTILINE)
        return float(found[1]) if found else float("nan")


async def exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask
) -> tuple[str, bool]:
    """Send a request and read the response; return its status and whether the connection stays."""
    writer.write(f"{ask.head}\r\n\r\n".encode("latin-1"))
    with suppress(ConnectionError):  # the server may respond before it has read all
        for piece in ask.body:
            writer.write(piece)
            await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = head[0].split(" ")[1]
    fields = dict(line.lower().split(": ", 1) for line in head[1:] if ": " in line)
    if not ask.is_head and status not in ("204", "304"):
        if "transfer-encoding" in fields:
            await skip_chunks(reader)
        else:
            await skip(reader, int(fields["content-length"]))
    return status, fields.get("connection") != "close"


async def skip(reader: asyncio.StreamReader, size: int) -> None:
    """Read and discard size bytes."""
    while size:
        piece = await reader.read(min(size, _BODY_PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", size)
        size -= len(piece)


async def skip_chunks(reader: asyncio.StreamReader) -> None:
    """Read and discard a chunked body."""
    while size := int((await reader.readuntil(b"\r\n")).partition(b";")[0], 16):
        await skip(reader, size + 2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass


async def measure(kind: Kind, server: Child) -> Figures:
    """Run one kind of hostile clients against a server; return the figures."""
    figures = Figures()
    hostile = Hostile(server.url, figures)
    probing = asyncio.ensure_future(hostile.probe())
    await asyncio.sleep(5 * PROBE_PAUSE)
    figures.before = server.memory()
    await hostile.flood(kind)
    figures.worst_turn = await hostile.read_worst_turn()
    probing.cancel()
    await asyncio.wait([probing])
    figures.most = server.peak_memory()
    text = server.log.read_text(errors="replace")
    figures.culprits = re.findall(r"has been blocked for .* s in (.{1,160})", text)
    return figures


async def run_kinds(
    names: Sequence[str], scale: float, folder: Path, origin_url: str, target: str, size: int
) -> None:
    """Measure the named kinds, or all, and print a line for each."""
    titles = "kind", "seconds", "worst turn", "/health, s", "MiB before", "at most", "answers"
    sys.stdout.write("\n{:28} {:>8} {:>11} {:>11} {:>11} {:>8}  {}\n".format(*titles))
    async with AsyncExitStack() as stack:
        bad = await stack.enter_async_context(BadHub())
        for number, kind in enumerate(make_kinds(scale, target, size)):
            if names and kind.name not in names:
                continue
            hub_url = origin_url if kind.needs_origin else bad.url
            flags = ("--hub-url", hub_url, "--access-log", "off", *kind.flags)
            log = folder / f"hostile-{number}.log"
            with await asyncio.to_thread(start_xetserve, log, "serve", *flags) as server:
                figures = await measure(kind, server)
            answers = ", ".join(f"{status}: {n}" for status, n in figures.statuses.most_common(5))
            sys.stdout.write(
                f"{kind.name:28} {figures.seconds:8.1f} {figures.worst_turn:11.3f} "
                f"{figures.longest_wait:11.3f} {figures.before:11.0f} {figures.most:8.0f}  "
                f"{answers}\n"
            )
            for culprit in figures.culprits[:3]:
                sys.stdout.write(f"{'':28} {culprit}\n")
            sys.stdout.flush()
