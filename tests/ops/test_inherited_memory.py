"""Memory that the next generation of a server inherits."""

import os
from collections.abc import Callable

import pytest

from xetserve.errors import ConfigError
from xetserve.ops.inherited_memory import InheritedMemory

SIZE = 5000


def in_child(work: Callable[[], object]) -> None:
    """Run something in a process of its own, which ends then."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def inherit(memory: InheritedMemory) -> InheritedMemory:
    """Take the memory as another generation does."""
    return InheritedMemory(SIZE, 1, os.dup(memory.descriptor))


def test_both_generations_see_what_the_other_one_writes() -> None:
    old = InheritedMemory(SIZE, 1)
    old.claim(2)
    assert len(old) == 2
    assert [old.take(number) for number in (0, 1)] == [0, 1]
    old[1][:3] = b"old"

    def take_over() -> None:
        new = inherit(old)
        assert bytes(new[:][1][:3]) == b"old" if len(new) else False
        new.claim(3)
        assert [new.take(number) for number in range(3)] == [2, 3, 4]
        new[4][-3:] = b"new"

    in_child(take_over)
    assert len(old) == 5
    assert {len(place) for place in old} == {SIZE}
    assert bytes(old[4][-3:]) == b"new"


def test_places_of_processes_that_have_ended_are_taken_with_their_data() -> None:
    first = InheritedMemory(SIZE, 1)

    def serve() -> None:
        own = inherit(first)
        own.claim(2)
        own[own.take(1)][:4] = b"left"

    in_child(serve)
    in_child(serve)
    assert len(first) == 2, "the second one took the places of the first"
    first.claim(3)
    assert len(first) == 3
    assert bytes(first[first.take(1)][:4]) == b"left"


def test_a_place_is_in_use_while_its_worker_or_its_main_process_lives() -> None:
    memory = InheritedMemory(SIZE, 1)
    in_child(lambda: inherit(memory).claim(1))
    assert len(memory) == 1
    memory._heads[0][1] = os.getpid()  # a worker whose main process was killed
    in_child(lambda: inherit(memory).claim(1))
    assert len(memory) == 2


def test_another_layout_is_refused() -> None:
    memory = InheritedMemory(SIZE, 1)
    for size, layout in ((SIZE, 2), (SIZE + 1, 1)):
        with pytest.raises(ConfigError, match="instead of an upgrade"):
            InheritedMemory(size, layout, os.dup(memory.descriptor))
