"""Memory that workers share."""

import os
import signal

from xetserve.ops.shared_memory import SharedMemory


def in_child(work: object) -> int:
    """Run something in a process of its own, which is killed afterwards; gives its id."""
    pid = os.fork()
    if pid == 0:
        try:
            work()  # type: ignore[operator]
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    return pid


def test_what_one_writes_others_see() -> None:
    memory = SharedMemory(3, 100)
    assert [len(place) for place in memory.places] == [100] * 3

    def work() -> None:
        memory.take(1)[:5] = b"hello"

    in_child(work)
    assert bytes(memory.places[1][:5]) == b"hello"
    assert not any(memory.places[0])
    assert not any(memory.places[2])


def test_who_takes_the_place_of_a_dead_one_finds_what_it_has_left() -> None:
    memory = SharedMemory(2, 64)

    def work() -> None:
        memory.take(0)[0] = 7

    assert not memory.is_alive(0)
    in_child(work)
    assert not memory.is_alive(0)
    assert memory.take(0)[0] == 7
    assert memory.is_replacement
    assert memory.is_alive(0)
    assert memory.own is memory.places[0]
    memory.take(1)
    assert not memory.is_replacement
