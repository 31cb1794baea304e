"""Signs of life in memory that processes share."""

import os
import time

import pytest

from xetserve.ops.heartbeats import Heartbeats


@pytest.fixture
def vitals() -> Heartbeats:
    return Heartbeats(3)


def write(vitals: Heartbeats, place: int, idle_for: float | None) -> None:
    vitals.own = place
    vitals.write(None if idle_for is None else time.monotonic() - idle_for)


def test_nobody_is_there(vitals: Heartbeats) -> None:
    assert vitals.silence() == 0
    assert vitals.idle_time() == 0


def test_all_have_to_be_idle(vitals: Heartbeats) -> None:
    write(vitals, 0, 100.0)
    assert vitals.idle_time() >= 100
    write(vitals, 1, 50.0)
    assert 50 <= vitals.idle_time() < 100
    write(vitals, 1, None)
    assert vitals.idle_time() == 0
    vitals.end(1)
    assert vitals.idle_time() >= 100


def test_one_that_begins_is_neither_silent_nor_idle_for_long(vitals: Heartbeats) -> None:
    write(vitals, 0, 100.0)
    vitals.begin(1, patience=1000)
    assert vitals.idle_time() < 100
    vitals.end(0)
    assert vitals.silence() < -900


def test_the_one_counts_that_was_silent_for_longest(vitals: Heartbeats) -> None:
    vitals.begin(0, patience=-10.0)
    vitals.begin(1, patience=-100.0)
    assert 100 <= vitals.silence() < 150
    write(vitals, 1, None)
    assert 10 <= vitals.silence() < 100
    write(vitals, 0, None)
    assert 0 <= vitals.silence() < 10


def test_another_process_sees_it(vitals: Heartbeats) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            write(vitals, 1, 100.0)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert vitals.idle_time() >= 100
