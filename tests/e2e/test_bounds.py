"""What slow clients cost, and what clients that leave leave behind."""

import asyncio
import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import Launcher, Process, need_program
from tests.e2e.clients import curl, run
from tests.e2e.conftest import TOKEN, Site, environment_without_home, serve_arguments
from tests.e2e.dataset import MIB
from tests.e2e.hub import start_origin
from tests.waiting import until, wait_until
from xetserve.app.application import Application
from xetserve.app.download.service import Upstreams
from xetserve.config.schema import MemoryConfig
from xetserve.net.listener import Listener, bind_sockets
from xetserve.net.pool import ConnectionPool
from xetserve.net.proxies import ProxyRules
from xetserve.net.server_connection import ConnectionLimits
from xetserve.net.tls import make_client_context
from xetserve.pipeline.engine import Engine, ReadLimits
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.retry import RetryPolicy

NUM_SLOW_CLIENTS = 20
NUM_SENDERS = 120


@pytest.fixture(scope="module")
def large_origin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """An origin that has taken in a 256 MiB file by itself."""
    base = tmp_path_factory.mktemp("large")
    source = random.Random(7)
    (base / "files").mkdir()
    with (base / "files" / "large.bin").open("wb") as file:
        for _ in range(64):
            file.write(source.randbytes(4 * MIB))
    launched = Launcher(base)
    yield start_origin(launched, base / "origin", "--import", f"tester/large={base / 'files'}")
    launched.stop_all()


def test_slow_clients_of_a_large_file_cost_little_memory(
    large_origin: Process, launcher: Launcher, tmp_path: Path
) -> None:
    server = launcher.start(*serve_arguments(large_origin.url))
    url = f"{server.url}/download/tester/large/large.bin"
    slow = [
        subprocess.Popen(
            curl(url, tmp_path / f"slow-{index}", "--limit-rate", "64k", "--max-time", "10"),
            env=environment_without_home(),
            stderr=subprocess.DEVNULL,
        )
        for index in range(NUM_SLOW_CLIENTS)
    ]
    # 28 is curl's "time is up": all of them were still being served when it was.
    assert [client.wait(timeout=60) for client in slow] == [28] * NUM_SLOW_CLIENTS
    assert server.peak_memory() < 128 * MIB


def test_a_fast_client_is_served_beside_slow_ones(
    large_origin: Process, launcher: Launcher, tmp_path: Path
) -> None:
    server = launcher.start(*serve_arguments(large_origin.url))
    url = f"{server.url}/download/tester/large/large.bin"
    slow = [
        subprocess.Popen(
            curl(url, tmp_path / f"slow-{index}", "--limit-rate", "64k"),
            env=environment_without_home(),
        )
        for index in range(NUM_SLOW_CLIENTS)
    ]
    try:
        done = run(curl(url, tmp_path / "fast", "-w", "%{size_download}"))
        assert (done.returncode, done.stdout) == (0, str(256 * MIB))
    finally:
        for client in slow:
            client.kill()
            client.wait()


@pytest.mark.parametrize(
    ("framing", "size", "statuses"),
    [
        pytest.param("chunked", 4 * MIB, {"413", "503"}, id="larger than is taken"),
        pytest.param("length", MIB, {"200", "503"}, id="as large as is taken"),
    ],
)
async def test_bodies_of_many_clients_stay_within_their_budget(
    large_origin: Process, launcher: Launcher, framing: str, size: int, statuses: set[str]
) -> None:
    server = launcher.start(*serve_arguments(large_origin.url))
    before = server.peak_memory()
    beginning, end = b'{"paths": ["', b'"]}'
    body = beginning + b"x" * (size - len(beginning) - len(end)) + end
    head = b"POST /api/models/tester/large/paths-info/main HTTP/1.1\r\nHost: x\r\n"
    head += b"Content-Type: application/json\r\nConnection: close\r\n"
    if framing == "length":
        wire = head + b"Content-Length: %d\r\n\r\n%b" % (size, body)
    else:
        wire = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (size, body)

    async def ask() -> str:
        parts = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        with contextlib.suppress(ConnectionError):  # refused before all of it was sent
            writer.write(wire)
            await writer.drain()
        try:
            return (await reader.readline()).split()[1].decode()
        finally:
            writer.transport.abort()

    seen = set(await asyncio.gather(*(ask() for _ in range(NUM_SENDERS))))
    assert seen <= statuses
    assert seen & {"200", "413"}, "some get through"
    budget = MemoryConfig().body_budget
    # Receive buffers of each connection, and one body more while it is joined.
    assert server.peak_memory() - before < budget + NUM_SENDERS * MIB // 4 + 8 * MIB


class InProcess:
    """The server inside the test's own loop, so that what is left behind can be seen."""

    def __init__(self, hub_url: str) -> None:
        policy = RetryPolicy()
        self.pool = ConnectionPool(
            tls=make_client_context(), proxies=ProxyRules({}), connect_timeout=5
        )
        self.budget = ByteBudget(64 * MIB)
        cas = CasClient(self.pool, timeout=5, policy=policy)
        upstreams = Upstreams(
            hub=HubClient(self.pool, hub_url, timeout=5, policy=policy),
            engine=Engine(cas, self.budget, policy=policy, limits=ReadLimits()),
            hash_repo="tester/large",
        )
        application = Application(upstreams, allow_anonymous=False)
        self.listener = Listener(application.handle, ConnectionLimits())
        self.sockets = bind_sockets("127.0.0.1", 0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize("leaving", ["killed", "closed after the head", "closed at once"])
async def test_a_client_that_leaves_leaves_nothing_behind(
    large_origin: Process, leaving: str
) -> None:
    server = InProcess(large_origin.url)
    await server.listener.start(server.sockets)
    before = set(asyncio.all_tasks())
    num_files = len(os.listdir("/proc/self/fd"))
    if leaving == "killed":
        client = await asyncio.create_subprocess_exec(
            *(need_program("curl"), "-q", "-sS", "-N", "--limit-rate", "20M", "-o", "-"),
            *("-H", f"Authorization: Bearer {TOKEN}"),
            f"{server.url}/download/tester/large/large.bin",
            stdout=asyncio.subprocess.PIPE,
        )
        assert client.stdout is not None
        assert len(await client.stdout.readexactly(2 * MIB)) == 2 * MIB
        client.kill()
        while await client.stdout.read(MIB):
            pass
        await client.wait()
        del client
    else:
        parts = urlsplit(server.url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        writer.write(
            b"GET /download/tester/large/large.bin HTTP/1.1\r\nHost: x\r\n"
            b"Authorization: Bearer %b\r\n\r\n" % TOKEN.encode()
        )
        await writer.drain()
        if leaving == "closed after the head":
            await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()
    await until(lambda: not (server.listener.num_connections or asyncio.all_tasks() - before))
    assert (server.budget.held, server.budget.num_readers) == (0, 0)
    assert server.pool.num_active == 0
    await server.pool.aclose()
    await server.listener.drain(1)
    await until(lambda: len(os.listdir("/proc/self/fd")) <= num_files)


def test_a_server_that_is_stopped_finishes_what_it_has_begun(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    server = launcher.start(*serve_arguments(site.origin.url))
    command = curl(
        f"{server.url}/download/tester/everything/big.bin", tmp_path / "out", "--limit-rate", "40M"
    )
    client = subprocess.Popen(command, env=environment_without_home())
    wait_until(lambda: (tmp_path / "out").exists() and (tmp_path / "out").stat().st_size)
    assert server.stop() == 0
    assert client.wait(timeout=60) == 0
    assert (tmp_path / "out").read_bytes() == (site.uploaded.folder / "big.bin").read_bytes()
