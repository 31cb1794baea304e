"""The other end of a socket, scripted by the test: servers that answer, lie, stall and leave; raw
clients.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import PATIENCE
from xetserve.http.messages import Handler
from xetserve.net.address_policy import AddressPolicy
from xetserve.net.body_budget import BodyBudget
from xetserve.net.listener import Listener, ProxyPolicy, bind_sockets
from xetserve.net.loop_turns import Turns
from xetserve.net.pool import ConnectionPool
from xetserve.net.preamble import Endpoint
from xetserve.net.proxies import ProxyRules
from xetserve.net.server_connection import ConnectionLimits, OnAnswer
from xetserve.net.tls import ServerTls
from xetserve.net.url import Url, parse_url

_LENGTH = re.compile(rb"(?im)^content-length: *(\d+)\r?$")


async def turn(count: int = 1) -> None:
    """Let the loop turn."""
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Received:
    """A request as it came; header names in lower case."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key == name), None)

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


class Wire:
    """One connection, seen from the peer. `received` has every byte that came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = bytearray()
        self.requests: list[Received] = []
        self.ended = asyncio.Event()  # the other side has left

    async def read(self) -> bytes:
        """Give what comes next; b"" at the end."""
        data = await self.reader.read(1 << 16)
        self.received += data
        return data

    async def read_request(self) -> Received | None:
        """Read a head and a body with Content-Length; None: the other side has finished."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as exc:
            self.received += exc.partial
            return None
        length = int(match[1]) if (match := _LENGTH.search(head)) else 0
        body = await self.reader.readexactly(length)
        self.received += head + body
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        pairs = [field.partition(":") for field in fields]
        method, target, _ = line.split(" ")
        request = Received(
            method, target, [(name.lower(), value.strip()) for name, _, value in pairs], body
        )
        self.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    def reset(self) -> None:
        """Leave with an RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def close(self) -> None:
        """Leave with a FIN."""
        self.writer.close()
        with contextlib.suppress(OSError):
            await asyncio.shield(self.writer.wait_closed())

    async def wait_end(self) -> str:
        """Read until the other side leaves; "closed" or "reset" tells how."""
        try:
            while await self.read():
                pass
        except ConnectionError:
            return "reset"
        return "closed"


Script = Callable[[Wire], Awaitable[None]]
RESET = "reset"
CLOSE = "close"
STALL = "stall"
Answer = bytes | str  # bytes to send, or one of the three above


def answering(*answers: Answer | Callable[[Received], Answer]) -> Script:
    """Play one answer for each request, over all connections in turn; the last one stands for all
    others.
    """
    left = list(answers)

    async def play(wire: Wire) -> None:
        while (request := await wire.read_request()) is not None:
            answer = left.pop(0) if len(left) > 1 else left[0]
            if callable(answer):
                answer = answer(request)
            if isinstance(answer, bytes):
                await wire.send(answer)
            elif answer == RESET:
                return wire.reset()
            elif answer == CLOSE:
                return await wire.close()
            else:
                await wire.wait_end()

    return play


def http_answer(status: int = 200, body: bytes = b"", *fields: str, length: bool = True) -> bytes:
    """Write an answer; without `length` it has no Content-Length."""
    lines = [f"HTTP/1.1 {status} X", *fields]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def http_head(status: int = 200, *fields: str) -> bytes:
    """Write an answer's head alone."""
    return http_answer(status, b"", *fields, length=False)


class ScriptedPeer:
    """A server on loopback that plays a script on every connection, and remembers what it was
    sent.
    """

    def __init__(
        self, play: Script, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
    ) -> None:
        self._play = play
        self._host = host
        self._tls = tls
        self._tasks: dict[asyncio.Task[None], Wire] = {}
        self.wires: list[Wire] = []
        self.port = 0

    @property
    def base(self) -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self.port}"

    def url(self, target: str = "/") -> Url:
        return parse_url(self.base + target)

    @property
    def requests(self) -> list[Received]:
        """All requests, connection by connection."""
        return [request for wire in self.wires for request in wire.requests]

    @property
    def received(self) -> bytes:
        """All bytes, connection by connection."""
        return b"".join(bytes(wire.received) for wire in self.wires)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))
        for wire in self.wires:
            wire.writer.transport.abort()
            with contextlib.suppress(OSError, ssl.SSLError):
                await wire.writer.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self.wires.append(wire)
        task = asyncio.get_running_loop().create_task(self._run(wire))
        self._tasks[task] = wire
        task.add_done_callback(self._tasks.pop)

    async def _run(self, wire: Wire) -> None:
        try:
            with contextlib.suppress(ConnectionError):
                await self._play(wire)
                await wire.wait_end()
                wire.writer.close()
        finally:
            wire.ended.set()


class RawClient(Wire):
    """A client that sends what it is told to."""

    async def read_answer(self, *, is_head: bool = False) -> tuple[int, dict[str, str], bytes]:
        """Read one answer with a known or chunked body: status, headers, body.

        Trailers are among the headers, as "trailer NAME".
        """
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), PATIENCE)
        line, *fields = head.decode("latin-1").split("\r\n")[:-2]
        headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
        status = int(line.split(" ")[1])
        body = b""
        if is_head or status in (100, 204, 304):
            pass
        elif "content-length" in headers:
            body = await self.reader.readexactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            while size := int(await self.reader.readline(), 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            while (trailer := await self.reader.readuntil(b"\r\n")) != b"\r\n":
                name, _, value = trailer.decode("latin-1").partition(":")
                headers[f"trailer {name.lower()}"] = value.strip()
        return status, headers, body

    async def read_end(self) -> tuple[bytes, str]:
        """Read all that comes until the server leaves, and how it left."""
        how = await asyncio.wait_for(self.wait_end(), PATIENCE)
        return bytes(self.received), how


@asynccontextmanager
async def connected(
    port: int, host: str = "127.0.0.1", *, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RawClient]:
    """Connect a raw client."""
    client = RawClient(*await asyncio.open_connection(host, port, ssl=tls))
    try:
        yield client
    finally:
        client.writer.transport.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await client.writer.wait_closed()


class Served(Listener):
    """A listener on a free port of loopback."""

    port: int


@asynccontextmanager
async def serving(
    handler: Handler,
    limits: ConnectionLimits | None = None,
    on_answer: OnAnswer | None = None,
    *,
    host: str = "127.0.0.1",
    tls: ServerTls | None = None,
    proxies: ProxyPolicy | None = None,
    bodies: BodyBudget | None = None,
    turns: Turns | None = None,
) -> AsyncIterator[Served]:
    """Serve a handler; at the end every connection is cut."""
    limits = limits or ConnectionLimits(linger_timeout=0.2)
    listener = Served(
        handler, limits, on_answer=on_answer, proxies=proxies, bodies=bodies, turns=turns
    )
    sockets = bind_sockets(host, 0)
    listener.port = sockets[0].getsockname()[1]
    await listener.start([Endpoint(sock, tls) for sock in sockets])
    try:
        yield listener
    finally:
        await listener.drain(0)


@asynccontextmanager
async def open_pool(reach: AddressPolicy | None = None) -> AsyncIterator[ConnectionPool]:
    """A pool that uses no proxy and trusts no CA; every connection has come back in the end."""
    pool = ConnectionPool(
        tls=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
        proxies=ProxyRules({}),
        connect_timeout=PATIENCE,
        reach=reach,
    )
    yield pool
    await pool.aclose()
    await turn(3)
    assert (pool.num_active, pool.num_idle) == (0, 0)


@dataclass
class Certificates:
    """A CA and a server certificate for localhost, 127.0.0.1 and ::1, signed by it."""

    ca: Path
    chain: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Make both with the openssl command."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
            "-subj", "/CN=test CA")  # fmt: skip
    openssl(
        "req", *new_key, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost"
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n")
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-days", "2",
            "-CAcreateserial", "-extfile", "names", "-out", "server.pem")  # fmt: skip
    return Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")


async def gather_answers(
    client: RawClient, count: int
) -> Sequence[tuple[int, dict[str, str], bytes]]:
    """Read several answers in order."""
    return [await client.read_answer() for _ in range(count)]
