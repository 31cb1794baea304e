"""Ask a server on this machine whether it works, over what it listens on.

An address says whether the server speaks TLS there, and whether it expects a PROXY header. The
certificate is not verified, since it is for other names than a loopback address. No proxy is used.
A health check runs every few seconds, so little is imported.
"""

import json
import socket
import time
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

HEALTH: Final = "/health"
READY: Final = "/ready"
ASK_TIMEOUT: Final = 5.0  # seconds
MAX_ANSWER_SIZE: Final = 64 * 1024  # bytes
# Version 2, LOCAL: a connection that the sender opened by itself, for no client (2.2).
_PROXY_HEADER: Final = b"\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"
_SPEAKING: Final = frozenset({200, 503})  # statuses of HEALTH and READY


class Speech(NamedTuple):
    """What a server speaks on a TCP port: TLS or not, and whether it needs a PROXY header."""

    tls: bool = False
    needs_header: bool = False


class Address(NamedTuple):
    """Where a server on this machine listens.

    host: a name or an address without brackets; the path of a Unix socket if port is None.
    tls: whether it speaks TLS there.
    needs_header: whether it expects a PROXY header.
    """

    host: str
    port: int | None = None
    tls: bool = False
    needs_header: bool = False

    @property
    def url(self) -> str:
        """Return the address as a URL without a path."""
        if self.port is None:
            return f"unix:{self.host}:"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


class Answer(NamedTuple):
    """A response: the server's URL without a path, the status, and the body."""

    url: str
    status: int
    body: bytes

    @property
    def fields(self) -> dict[str, Any]:
        """Return the fields of the JSON body; empty if it is no JSON object."""
        try:
            found = json.loads(self.body)
        except (ValueError, RecursionError):
            return {}
        return found if isinstance(found, dict) else {}


def ask(address: Address, path: str, timeout: float = ASK_TIMEOUT) -> Answer:
    """Send a GET and return the response.

    Args:
        timeout: seconds for all of it.

    Raises:
        OSError: there is no response in time, or it is not HTTP.
    """
    deadline = time.monotonic() + timeout
    with _connect(address, timeout) as sock:
        # HTTP/1.0: the response has no chunks and ends with the connection.
        request = f"GET {path} HTTP/1.0\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        sock.sendall(request.encode("latin-1"))
        received = b""
        while len(received) < MAX_ANSWER_SIZE:
            if (left := deadline - time.monotonic()) <= 0:
                raise TimeoutError("no whole answer in time")
            sock.settimeout(left)
            if not (data := sock.recv(MAX_ANSWER_SIZE)):
                break
            received += data
    if not received:
        raise ConnectionError("it closed the connection without an answer")
    head, end, body = received.partition(b"\r\n\r\n")
    words = head.split(None, 2)
    if not end or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
        raise ConnectionError("its answer is not HTTP")
    return Answer(address.url, int(words[1]), body)


def _connect(address: Address, timeout: float) -> socket.socket:
    if address.port is None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
    else:
        sock = socket.create_connection((address.host, address.port), timeout)
    try:
        if address.port is None:
            sock.connect(address.host)
        if address.needs_header:
            sock.sendall(_PROXY_HEADER)
        if not address.tls:
            return sock
        import ssl

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


def read_version(answer: Answer | None) -> str | None:
    """Return the version of the server that gave a response of HEALTH; None: it names none."""
    version = None if answer is None else answer.fields.get("version")
    return None if version is None else str(version)


def choose_answer(answers: Iterable[Answer | None]) -> Answer | None:
    """Return the first answer of HEALTH or READY, else the last one that there is, else None.

    A port that speaks TLS answers plain HTTP with 400.
    """
    found = None
    for answer in answers:
        if answer is not None:
            found = answer
            if answer.status in _SPEAKING:
                break
    return found


def parse_probe(output: str) -> tuple[Answer | None, bool] | None:
    """Read what `xetserve probe --json` prints: the answer, and whether the server needs a header.

    None: it is not from this command, which older versions do not have.
    """
    try:
        found = json.loads(output)
        status, needs_header = found["status"], bool(found["proxy_protocol"])
        body = json.dumps(found["answer"]).encode()
        answer = None if status is None else Answer(str(found["url"]), int(status), body)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return answer, needs_header


def format_probe(address: Address, answer: Answer | None, reason: str) -> str:
    """Return the line of JSON that parse_probe reads.

    Args:
        reason: why there is no answer.
    """
    return json.dumps(
        {
            "url": address.url,
            "status": None if answer is None else answer.status,
            "answer": None if answer is None else answer.fields,
            "error": reason or None,
            "proxy_protocol": address.needs_header,
        }
    )
