"""Fast downloads amid a crowd of idle, slow and hostile clients."""

import select
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

from tests.conftest import Launcher, sha256_of
from tests.e2e.clients import curl
from tests.e2e.conftest import REPO, TOKEN, Site, environment_without_home, serve_arguments
from tests.e2e.dataset import MIB
from tests.e2e.raw import Client

NUM_IDLE = 200
NUM_READERS = 40
NUM_SENDERS = 10
NUM_FAST = 4
NAME = "big.bin"
DOWNLOAD = f"GET /download/{REPO}/{NAME} HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}\r\n"
HEAD_TIMEOUT = 2.0  # seconds


def test_fast_downloads_amid_a_crowd(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(
        *serve_arguments(site.origin.url, "--head-timeout", str(HEAD_TIMEOUT)),
        *("--access-log", "off", "--log-level", "info"),
    )
    parts = urlsplit(server.url)
    with ExitStack() as stack:
        for _ in range(NUM_IDLE):
            stack.enter_context(socket.create_connection((parts.hostname, parts.port or 0)))
        readers = [stack.enter_context(Client(server)) for _ in range(NUM_READERS)]
        for reader in readers:
            reader.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            reader.send(f"{DOWNLOAD}\r\n".encode())
        for reader in readers:
            assert reader.sock.recv(4096).startswith(b"HTTP/1.1 200 OK\r\n")
        senders = [stack.enter_context(Client(server)) for _ in range(NUM_SENDERS)]
        for sender in senders:
            sender.send(DOWNLOAD.encode())

        url = f"{server.url}/download/{REPO}/{NAME}"
        targets = [tmp_path / f"fast-{number}" for number in range(NUM_FAST)]
        fast = [
            subprocess.Popen(curl(url, target), env=environment_without_home())
            for target in targets
        ]
        # While they run: a byte now and then from those who send, some kilobytes for those who
        # read.
        waiting = list(senders)
        while waiting or any(client.poll() is None for client in fast):
            answered, _, _ = select.select([sender.sock for sender in waiting], [], [], 0.05)
            waiting = [sender for sender in waiting if sender.sock not in answered]
            for sender in waiting:
                sender.send(b"x")
            for reader in readers:
                reader.sock.recv(1024)

        assert [client.wait(timeout=60) for client in fast] == [0] * NUM_FAST
        assert {sha256_of(target) for target in targets} == {site.uploaded.digests[NAME]}
        for sender in senders:
            assert sender.read_answer()[0] == 408
        for reader in readers:  # they are still being served
            assert reader.sock.recv(1024)
        assert server.peak_memory() < 200 * MIB
    assert server.stop() == 0
