"""Accepting: without room, beside others, and in the last moment."""

import contextlib
import errno
import logging
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from tests.peers import turn
from tests.waiting import PATIENCE, until
from xetserve.metrics.catalogue import ACCEPT_PAUSES
from xetserve.net import accept
from xetserve.net.accept import Acceptor
from xetserve.net.listener import bind_sockets


class Taken:
    """Sockets that were accepted."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []
        self.blocking: list[bool] = []

    def __call__(self, sock: socket.socket, address: object) -> None:
        self.sockets.append(sock)
        self.blocking.append(sock.getblocking())

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


@pytest.fixture
def taken() -> Iterator[Taken]:
    taken = Taken()
    yield taken
    taken.close()


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    (sock,) = bind_sockets("127.0.0.1", 0)
    sock.listen()
    yield sock
    sock.close()


@pytest.fixture
def clients(listening: socket.socket) -> Iterator["Clients"]:
    clients = Clients(listening)
    yield clients
    clients.close()


class Clients:
    """Sockets that are connected to the listening one, by the kernel alone."""

    def __init__(self, listening: socket.socket) -> None:
        self._address = listening.getsockname()
        self.sockets: list[socket.socket] = []

    def connect(self, count: int = 1) -> None:
        self.sockets += [socket.create_connection(self._address) for _ in range(count)]

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()


class FailingSocket(socket.socket):
    """A listening socket whose accept() fails as long as it is told to."""

    error = 0

    def accept(self) -> tuple[socket.socket, object]:
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return super().accept()


@pytest.fixture
def failing(listening: socket.socket) -> Iterator[FailingSocket]:
    sock = FailingSocket(fileno=os.dup(listening.fileno()))
    yield sock
    sock.close()


async def test_clients_are_taken_and_never_block(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    clients.connect(40)
    acceptor = Acceptor(listening, taken)
    acceptor.start()
    await until(lambda: len(taken.sockets) == 40)
    assert not any(taken.blocking)
    acceptor.stop()


async def test_one_turn_takes_a_few_only(
    listening: socket.socket, clients: Clients, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "TURN", 3)
    most = 0
    clients.connect(10)
    acceptor = Acceptor(listening, taken)
    acceptor.start()
    before = 0
    while len(taken.sockets) < 10:
        await turn()
        most = max(most, len(taken.sockets) - before)
        before = len(taken.sockets)
    assert most == 3
    acceptor.stop()


async def test_a_socket_that_listens_already_keeps_its_queue(listening: socket.socket) -> None:
    asked: list[int] = []

    class Listening(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            asked.append(backlog)

    with Listening(fileno=os.dup(listening.fileno())) as sock:
        acceptor = Acceptor(sock, Taken())
        acceptor.start()
        acceptor.stop()
    assert asked == []


async def test_stopping_takes_who_is_in_the_queue(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    acceptor = Acceptor(listening, taken)
    acceptor.start()
    clients.connect(5)
    acceptor.stop()
    assert len(taken.sockets) == 5
    assert listening.fileno() < 0
    acceptor.stop()  # once more does nothing


async def test_leaving_leaves_who_is_in_the_queue_to_others(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    with socket.socket(fileno=os.dup(listening.fileno())) as other:
        acceptor = Acceptor(listening, taken)
        acceptor.start()
        clients.connect(3)
        acceptor.leave()
        assert listening.fileno() < 0
        acceptor.leave()  # once more does nothing
        acceptor.stop()
        await turn()
        assert taken.sockets == []
        for _ in range(3):
            other.accept()[0].close()


# No room


@pytest.mark.parametrize("number", sorted(accept._FULL), ids=errno.errorcode.get)
async def test_without_room_it_rests_and_then_goes_on(
    failing: FailingSocket,
    clients: Clients,
    taken: Taken,
    number: int,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(accept, "FULL_PAUSE", 0.01)
    caplog.set_level(logging.INFO)
    before = ACCEPT_PAUSES.total
    failing.error = number
    acceptor = Acceptor(failing, taken)
    acceptor.start()
    clients.connect(3)
    await until(lambda: acceptor.num_attempts >= 3)
    assert ACCEPT_PAUSES.total - before == acceptor.num_attempts
    failing.error = 0
    await until(lambda: len(taken.sockets) == 3)
    # One line for all of it, and one for its end.
    assert [r.getMessage() for r in caplog.records] == [
        f"cannot accept clients: {os.strerror(number)}",
        "accepting again",
    ]
    acceptor.stop()


async def test_a_rest_is_one_attempt_however_often_the_loop_turns(
    failing: FailingSocket, clients: Clients, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accept, "FULL_PAUSE", PATIENCE)
    failing.error = errno.EMFILE
    acceptor = Acceptor(failing, taken)
    acceptor.start()
    clients.connect()
    await until(lambda: acceptor.num_attempts > 0)
    await turn(1000)
    assert acceptor.num_attempts == 1
    acceptor.stop()


async def test_files_that_have_run_out_are_no_end(
    listening: socket.socket, clients: Clients, taken: Taken, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real thing: a limit of open files that is reached."""
    monkeypatch.setattr(accept, "FULL_PAUSE", 0.01)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    clients.connect(20)
    acceptor = Acceptor(listening, taken)
    before = ACCEPT_PAUSES.values[("EMFILE",)]
    with contextlib.ExitStack() as stack:
        lowest = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 11, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        acceptor.start()
        await until(lambda: ACCEPT_PAUSES.values[("EMFILE",)] >= before + 3)
        assert 0 < len(taken.sockets) < 20
        for sock in taken.sockets[:]:
            sock.close()
        await until(lambda: len(taken.sockets) == 20)
    acceptor.stop()


@pytest.mark.parametrize("number", sorted(accept._OF_ONE_CLIENT), ids=errno.errorcode.get)
async def test_trouble_of_one_client_is_not_that_of_others(
    failing: FailingSocket, clients: Clients, taken: Taken, number: int
) -> None:
    before = ACCEPT_PAUSES.total
    failing.error = number
    acceptor = Acceptor(failing, taken)
    acceptor.start()
    clients.connect(2)
    await until(lambda: acceptor.num_attempts > 0)
    failing.error = 0
    await until(lambda: len(taken.sockets) == 2)
    assert ACCEPT_PAUSES.total == before
    acceptor.stop()


# Sockets that are shared


async def test_an_idle_process_takes_one_at_once_and_the_next_later(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    acceptor = Acceptor(listening, taken, lambda: len(taken.sockets))
    acceptor.start()
    clients.connect(20)
    sizes = set()
    while len(taken.sockets) < 20:
        before = len(taken.sockets)
        await turn()
        sizes.add(len(taken.sockets) - before)
    assert 1 in sizes
    assert max(sizes) <= accept.TURN
    acceptor.stop()


async def test_the_one_with_less_to_do_goes_first(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    busy = Taken()
    one = Acceptor(listening, busy, lambda: 100)
    with socket.socket(fileno=os.dup(listening.fileno())) as same:
        other = Acceptor(same, taken, lambda: 0)
        one.start()
        other.start()
        for _ in range(10):
            clients.connect()
            await until(lambda: len(taken.sockets) + len(busy.sockets) == len(clients.sockets))
        assert len(taken.sockets) == 10
        one.stop()
        other.stop()
    busy.close()


async def test_two_that_share_have_their_part_each(
    listening: socket.socket, clients: Clients, taken: Taken
) -> None:
    others = Taken()
    one = Acceptor(listening, taken, lambda: len(taken.sockets))
    with socket.socket(fileno=os.dup(listening.fileno())) as same:
        other = Acceptor(same, others, lambda: len(others.sockets))
        one.start()
        other.start()
        for _ in range(32):
            clients.connect()
            await until(lambda: len(taken.sockets) + len(others.sockets) == len(clients.sockets))
        assert min(len(taken.sockets), len(others.sockets)) >= 8
        one.stop()
        other.stop()
    others.close()
