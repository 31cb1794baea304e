"""Signs of life in memory that processes share."""

import os
import time

import pytest

from xetserve.ops.heartbeats import Heartbeats


@pytest.fixture
def heartbeats() -> Heartbeats:
    return Heartbeats(3)


def write(heartbeats: Heartbeats, place: int, idle_for: float | None) -> None:
    heartbeats.own = place
    heartbeats.write(None if idle_for is None else time.monotonic() - idle_for)


def test_nobody_is_there(heartbeats: Heartbeats) -> None:
    assert heartbeats.silence() == 0
    assert heartbeats.idle_time() == 0


def test_all_have_to_be_idle(heartbeats: Heartbeats) -> None:
    write(heartbeats, 0, 100.0)
    assert heartbeats.idle_time() >= 100
    write(heartbeats, 1, 50.0)
    assert 50 <= heartbeats.idle_time() < 100
    write(heartbeats, 1, None)
    assert heartbeats.idle_time() == 0
    heartbeats.end(1)
    assert heartbeats.idle_time() >= 100


def test_one_that_begins_is_neither_silent_nor_idle_for_long(heartbeats: Heartbeats) -> None:
    write(heartbeats, 0, 100.0)
    heartbeats.begin(1, grace=1000)
    assert heartbeats.idle_time() < 100
    heartbeats.end(0)
    assert heartbeats.silence() < -900


def test_the_one_counts_that_was_silent_for_longest(heartbeats: Heartbeats) -> None:
    heartbeats.begin(0, grace=-10.0)
    heartbeats.begin(1, grace=-100.0)
    assert 100 <= heartbeats.silence() < 150
    write(heartbeats, 1, None)
    assert 10 <= heartbeats.silence() < 100
    write(heartbeats, 0, None)
    assert 0 <= heartbeats.silence() < 10


def test_another_process_sees_it(heartbeats: Heartbeats) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            write(heartbeats, 1, 100.0)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert heartbeats.idle_time() >= 100
