"""What the service manager is told is what the workers have counted."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from xetserve.commands.serve.process import make_figures
from xetserve.metrics.catalogue import CONNECTIONS, REGISTRY, REQUESTS, SENT_BYTES
from xetserve.metrics.instruments import CELLS_SIZE
from xetserve.ops.shared_memory import SharedMemory


@contextmanager
def worker(shared_memory: SharedMemory, number: int, num: int, size: int) -> Iterator[None]:
    """A process that has counted so many connections, as many requests, and bytes; it lives until
    the end.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            REGISTRY.move_to(shared_memory.take(number)[:CELLS_SIZE])
            CONNECTIONS.add(amount=num)
            REQUESTS.add("download", "200", amount=num)
            SENT_BYTES.add("download", amount=size)
            os.write(writer, b"x")
            signal.pause()
        finally:
            os._exit(1)
    try:
        assert os.read(reader, 1) == b"x"
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(reader)
        os.close(writer)


def test_figures_are_added_up_and_what_was_done_stays_done() -> None:
    shared_memory = SharedMemory(3, CELLS_SIZE)
    read = make_figures(shared_memory)
    assert read() == (0, 0, 0)
    with worker(shared_memory, 2, 2, 2**50):
        with worker(shared_memory, 0, 10, 100):
            assert read() == (12, 12, 2**50 + 100)
        assert read() == (2, 12, 2**50 + 100)
        with worker(shared_memory, 0, 5, 1):
            assert read() == (7, 17, 2**50 + 101)
