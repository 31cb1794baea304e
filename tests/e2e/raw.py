"""A raw socket, and the answers that come on it."""

import select
import socket
from typing import Self
from urllib.parse import urlsplit

from tests.conftest import Process
from tests.e2e.dataset import MIB
from tests.waiting import PATIENCE

HEALTH = b"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"


class Client:
    """A client that sends what it is told to."""

    def __init__(self, server: Process | str) -> None:
        parts = urlsplit(server if isinstance(server, str) else server.url)
        self.sock = socket.create_connection((parts.hostname, parts.port or 0), timeout=PATIENCE)
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read an answer with a Content-Length."""
        while b"\r\n\r\n" not in self._unread:
            self._receive()
        head, _, self._unread = self._unread.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (field.partition(":") for field in fields)}
        size = int(headers["content-length"])
        while len(self._unread) < size:
            self._receive()
        body, self._unread = self._unread[:size], self._unread[size:]
        return int(line.split(" ")[1]), headers, body

    def _receive(self) -> None:
        data = self.sock.recv(65536)
        assert data, f"closed after {self._unread!r}"
        self._unread += data

    def read_end(self) -> str:
        """Read until the server leaves; tells how it left, and forgets what came."""
        try:
            while data := self.sock.recv(MIB):
                self._unread = (self._unread + data)[-MIB:]
        except ConnectionResetError:
            return "reset"
        return "closed"

    def trickle(self, data: bytes, pause: float) -> None:
        """Send byte by byte until all is sent or something comes back."""
        for byte in data:
            readable, _, _ = select.select([self.sock], [], [], pause)
            if readable:
                return
            self.send(bytes([byte]))
