"""Giving memory back: when, and that the real one can."""

import asyncio
import platform

import pytest

from xetserve.ops import malloc_trim as heap_module
from xetserve.ops.malloc_trim import MIN_FREE, MIN_READERS, find_heap, keep_trimmed


class FakeHeap:
    """Tells how much is free, in turns, and notes when it is trimmed; the last turn ends the
    test.
    """

    def __init__(self, *free: int) -> None:
        self._free = list(free)
        self.trimmed_after: list[int] = []  # turns that were over
        self.num_turns = 0
        self.is_over = asyncio.Event()

    def count_free(self) -> int:
        return self._free[self.num_turns - 1]

    def trim(self) -> None:
        self.trimmed_after.append(self.num_turns)

    def count_readers_of(self, *readers: int) -> int:
        """Give the readers of the next turn."""
        self.num_turns += 1
        if self.num_turns == len(readers):
            self.is_over.set()
        return readers[min(self.num_turns, len(readers)) - 1]


@pytest.mark.parametrize(
    ("readers", "trimmed"),
    [
        ((0, 0, 0), []),
        ((MIN_READERS, MIN_READERS, 0, 0), [1, 2, 3]),
        ((MIN_READERS, 0, 0, 0), [1, 2]),
    ],
)
async def test_while_there_are_many_and_once_after(
    monkeypatch: pytest.MonkeyPatch, readers: tuple[int, ...], trimmed: list[int]
) -> None:
    monkeypatch.setattr(heap_module, "INTERVAL", 0)
    heap = FakeHeap(*(MIN_FREE for _ in readers))
    task = asyncio.create_task(keep_trimmed(heap, lambda: heap.count_readers_of(*readers)))
    await heap.is_over.wait()
    task.cancel()
    assert heap.trimmed_after == trimmed


async def test_a_little_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap_module, "INTERVAL", 0)
    heap = FakeHeap(MIN_FREE - 1, MIN_FREE - 1)
    task = asyncio.create_task(
        keep_trimmed(heap, lambda: heap.count_readers_of(MIN_READERS, MIN_READERS))
    )
    await heap.is_over.wait()
    task.cancel()
    assert heap.trimmed_after == []


def test_the_real_one() -> None:
    heap = find_heap()
    if platform.libc_ver()[0] != "glibc":
        assert heap is None
        return
    assert heap is not None
    blocks = [bytes(60_000) for _ in range(400)]
    kept = blocks[::40]  # so that the heap cannot simply become shorter
    before = heap.count_free()
    del blocks
    assert heap.count_free() > before + 10_000_000
    heap.trim()
    assert len(kept) == 10
