"""Sockets that somebody else has opened."""

import os
import socket
from collections.abc import Iterator

import pytest

from xetserve.errors import ConfigError
from xetserve.ops.socket_activation import take_sockets


@pytest.fixture
def descriptors() -> Iterator[list[int]]:
    """Two listening sockets at descriptors in a row."""
    base = 900
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    for number, sock in enumerate(socks):
        os.dup2(sock.fileno(), base + number, inheritable=True)
    yield [base, base + 1]
    for number in range(2):
        try:
            os.close(base + number)
        except OSError:  # taken over and closed
            continue
    for sock in socks:
        sock.close()


def environ(count: object, **others: str) -> dict[str, str]:
    return {"LISTEN_FDS": str(count), "OTHER": "x", **others}


@pytest.mark.parametrize("pid", [None, "own"])
def test_sockets_are_taken_over(descriptors: list[int], pid: str | None) -> None:
    given = environ(2, **({} if pid is None else {"LISTEN_PID": str(os.getpid())}))
    taken = take_sockets(given, descriptors[0])
    assert [name for name, _ in taken] == ["unknown", "unknown"]
    for (_, sock), descriptor in zip(taken, descriptors, strict=True):
        with sock:
            assert sock.fileno() == descriptor
            assert sock.family == socket.AF_INET
            assert not sock.getblocking()
            assert not os.get_inheritable(descriptor)


def test_they_have_names(descriptors: list[int]) -> None:
    taken = take_sockets(environ(2, LISTEN_FDNAMES="http:admin"), descriptors[0])
    assert [name for name, _ in taken] == ["http", "admin"]
    for _, sock in taken:
        sock.close()


def test_they_are_taken_once_and_what_we_start_is_not_meant(descriptors: list[int]) -> None:
    given = environ(1, LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="a")
    for _, sock in take_sockets(given, descriptors[0]):
        sock.close()
    assert given == {"OTHER": "x"}
    assert take_sockets(given, descriptors[0]) == []


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"LISTEN_FDS": ""}, id="empty"),
        pytest.param({"LISTEN_FDS": "0"}, id="none"),
        pytest.param({"LISTEN_FDS": "1", "LISTEN_PID": "1"}, id="for another process"),
        pytest.param({"LISTEN_PID": "1", "LISTEN_FDNAMES": "a"}, id="names alone"),
    ],
)
def test_there_may_be_none(given: dict[str, str]) -> None:
    assert take_sockets(given) == []
    assert given == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        pytest.param({"LISTEN_FDS": "x"}, "LISTEN_FDS must be a number", id="no number"),
        pytest.param({"LISTEN_FDS": "-1"}, "LISTEN_FDS must be a number", id="negative"),
        pytest.param({"LISTEN_FDS": "65"}, "number up to 64, not '65'", id="too many"),
        pytest.param({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "a"}, "1 names for 2", id="names"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        take_sockets(given)


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    with pytest.raises(ConfigError, match="descriptor 950 is not a socket: Bad file descriptor"):
        take_sockets(environ(1), 950)


def test_a_file_is_refused() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    with pytest.raises(ConfigError, match="is not a socket"):
        take_sockets(environ(1), descriptor)
    os.close(descriptor)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["idle", "datagram"])
def test_a_socket_that_does_not_listen_is_refused_and_left_open(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        with pytest.raises(ConfigError, match="is not a listening stream socket"):
            take_sockets(environ(1), sock.fileno())
        assert sock.getsockname()
