"""Every raw request of the table gets the answer that the table promises, in one piece and byte by
byte.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.conftest import Site, serve_arguments
from tests.e2e.raw_requests import GET, HEALTH, RESOLVED, SECRET, TABLE, Fate, Row, post, request
from xetserve import __version__

# Seconds; a client that waits longer has been left hanging. Less than head_timeout, which ends it.
PATIENCE = 15.0
HEALTHY = {"status": "ok", "version": __version__}
BY_DESIGN = {501, 505}


@dataclass
class Answer:
    """An answer as it came, field names in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes


class Client:
    """A connection that sends what it is told to, and reads answers."""

    def __init__(self, server: Process) -> None:
        address = urlsplit(server.url)
        assert address.hostname is not None
        self._socket = socket.create_connection((address.hostname, address.port or 80), PATIENCE)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def send(self, data: bytes, piece: int, *, ends: bool = False) -> None:
        for at in range(0, len(data), piece):
            self._socket.sendall(data[at : at + piece])
        if ends:
            self._socket.shutdown(socket.SHUT_WR)

    def read_answer(self, *, is_head: bool = False) -> Answer:
        line = self._file.readline()
        assert line.startswith(b"HTTP/1.1 "), line
        fields = {}
        while (field := self._file.readline()) != b"\r\n":
            name, colon, value = field.decode("latin-1").partition(":")
            assert colon
            fields[name.lower()] = value.strip()
        status = int(line[9:12])
        body = b""
        if is_head or status in (204, 304):
            pass
        elif "content-length" in fields:
            body = self._file.read(int(fields["content-length"]))
        elif fields.get("transfer-encoding") == "chunked":
            while size := int(self._file.readline(), 16):
                body += self._file.read(size)
                assert self._file.readline() == b"\r\n"
            while self._file.readline() != b"\r\n":  # trailers
                pass
        else:
            body = self._file.read()
        return Answer(status, fields, body)

    def read_rest(self) -> bytes:
        """What comes until the server leaves."""
        return self._file.read()


def check_row(server: Process, row: Row, piece: int) -> list[Answer]:
    """Send a row's bytes, so many at a time, and hold the answers, which are given, to the row."""
    with closing(Client(server)) as client:
        client.send(row.raw, piece, ends=row.ends)
        answers = []
        for index, statuses in enumerate(row.statuses):
            answer = client.read_answer(is_head=index in row.heads)
            assert answer.status in statuses
            if index not in row.heads:
                check_body(answer, row)
            assert SECRET not in str(answer)
            answers.append(answer)
        if row.fate is Fate.KEPT:
            assert answers[-1].fields.get("connection") != "close"
            client.send(GET, len(GET))
            following = client.read_answer()
            assert (following.status, json.loads(following.body)) == (200, HEALTHY)
        else:
            assert client.read_rest() == b""
    return answers


def check_body(answer: Answer, row: Row) -> None:
    """Errors are JSON of one shape; what else comes is what was asked for, not bytes of another
    answer.
    """
    if answer.status >= 400:
        assert set(json.loads(answer.body)) == {"error"}
    elif answer.status == 200 and row.body is None:
        assert json.loads(answer.body) == HEALTHY
    elif answer.status == 200 and row.body is not None:
        assert answer.body.startswith(row.body) or json.loads(answer.body) == HEALTHY
    else:
        assert answer.body == b""


@pytest.fixture(scope="module")
def raw_site(_running_site: Site) -> Iterator[Site]:
    yield _running_site
    log = _running_site.server.log
    assert "Traceback" not in log
    assert "failed unexpectedly" not in log
    assert SECRET not in log


def test_the_table_is_sound() -> None:
    assert len(TABLE) >= 150
    assert len({row.name for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert all(status < 500 or status in BY_DESIGN for seen in row.statuses for status in seen)
        assert bool(row.statuses) is (row.fate is not Fate.SILENT)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_a_raw_request(raw_site: Site, row: Row) -> None:
    if row.asked is not None:
        raw_site.control.reset_requests()
    answers = check_row(raw_site.server, row, 1 << 20)
    if row.asked is not None:
        seen = [item["target"] for item in raw_site.control.requests() if item["kind"] == "hub"]
        # A file that is there is asked for, then its read token; a path never becomes another path.
        assert seen[:1] == ([row.asked] if row.asked else [])
        assert all(target == row.asked or "/xet-read-token/" in target for target in seen)
        if answers[0].status == 200:
            name = unquote(row.asked.removeprefix(RESOLVED))
            assert answers[0].body == (raw_site.uploaded.folder / name).read_bytes()


@pytest.mark.parametrize("row", [row for row in TABLE if len(row.raw) < 1000], ids=str)
def test_a_raw_request_byte_by_byte(raw_site: Site, row: Row) -> None:
    check_row(raw_site.server, row, 1)


# Limits, as they are set


@pytest.fixture(scope="module")
def narrow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server with low limits; its Hub is never asked."""
    launched = Launcher(tmp_path_factory.mktemp("narrow"))
    limits = ("--max-url-size", "300", "--max-head-size", "600", "--max-header-fields", "5")
    arguments = serve_arguments("http://127.0.0.1:9", *limits)
    yield launched.start(*arguments, XETSERVE_MAX_TRAILER_SIZE="256")
    launched.stop_all()


def _url(size: int) -> bytes:
    return request(b"GET %b HTTP/1.1" % (HEALTH + b"?").ljust(size, b"a"))


def _head(size: int) -> bytes:
    empty = request(b"GET /health HTTP/1.1", b"X-A: ")
    return request(b"GET /health HTTP/1.1", b"X-A: " + b"a" * (size - len(empty)))


def _fields(count: int) -> bytes:
    return request(b"GET /health HTTP/1.1", *[b"X-A: b"] * (count - 1))


def _trailers(size: int) -> bytes:
    trailer = b"X-A: %b\r\n" % (b"a" * (size - len(b"X-A: \r\n")))
    return post(b"Transfer-Encoding: chunked", body=b"0\r\n" + trailer + b"\r\n")


@pytest.mark.parametrize(
    ("within", "status", "beyond", "refusal"),
    [
        pytest.param(_url(300), 200, _url(301), 414, id="URL"),
        pytest.param(_head(600), 200, _head(601), 431, id="head"),
        pytest.param(_fields(5), 200, _fields(6), 431, id="fields"),
        pytest.param(_trailers(256), 405, _trailers(257), None, id="trailers"),
    ],
)
def test_a_limit_is_as_it_is_set(
    narrow_server: Process, within: bytes, status: int, beyond: bytes, refusal: int | None
) -> None:
    """Up to the limit all is well; beyond it the request is refused, or, if it was answered
    already, cut.
    """
    with closing(Client(narrow_server)) as client:
        client.send(within + GET, 1 << 20)
        assert [client.read_answer().status for _ in range(2)] == [status, 200]
    with closing(Client(narrow_server)) as client:
        client.send(beyond + GET, 1 << 20)
        assert client.read_answer().status == (refusal or status)
        assert client.read_rest() == b""
