"""Generations of a server: at SIGUSR2, a new one takes over the sockets while the old one drains.

The main process starts its command line again, from the disk as it is now, and hands its listening
sockets over like a service manager does (ops.socket_activation), with names by which they are
matched to the new settings. One more descriptor is a channel between both:

    old generation                              new generation

    starts the program, hands over       ---->  reads its settings, opens its cache,
    its keys and its shared memory              starts its workers
                                         <----  "PID": all of it is ready to accept clients
    names the service manager its new
    main process; "go"                   ---->  accepts clients
    stops accepting, drains, ends               lives on

Until "go", the new generation accepts no client, so nothing is lost if it ends, or if it is not
ready within TIMEOUT and is killed with its workers: the old one goes on. If the old one ends before
"go", so does the new one. Afterwards, each of them reads the end of the other one as the end of the
channel.

The new main process is not a child of the old one. The program that the old one has started forks
once and ends, so its child belongs to the service manager (or to process 1). systemd does not wait
for a main process that is not its child, and would kill it at once when it stops the service. The
first process is not waited for until the outcome is known: so long, nobody else gets the number of
its process group, which is the one that is killed.
"""

import contextlib
import fcntl
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from xetserve.metrics.catalogue import UPGRADED
from xetserve.ops.socket_activation import CHANNEL, FIRST_DESCRIPTOR, Inherited

logger = logging.getLogger(__name__)

TIMEOUT: Final = 20.0  # seconds until the new generation must be ready
MAX_LINE: Final = 4096
_GO: Final = b"go\n"


def find_command() -> list[str]:
    """Return the command line that starts this program as it is on the disk now.

    A script is started by its path: its first line may name another interpreter by now, as after a
    link to an environment was changed.
    """
    script = sys.argv[0]
    if sys.orig_argv[1:2] == [script] and os.path.isfile(script) and os.access(script, os.X_OK):
        return [script, *sys.argv[1:]]
    return [sys.executable, *sys.orig_argv[1:]]


class Handover(NamedTuple):
    """What a generation hands to the next one, besides its sockets.

    key: for the signatures of data URLs; empty: each generation has its own.
    instance: the name of the server, which all generations share; empty: there is none.
    memory: descriptor of the memory that all generations share; None: there is none.
    """

    key: bytes = b""
    instance: str = ""
    memory: int | None = None


class Successor:
    """The new generation, as its predecessor sees it until the outcome is known.

    Args:
        sockets: the listening sockets with their names.
        environ: its environment, without the variables for sockets.
        handover: what it is given besides.

    Attributes:
        patience: seconds that it may take until it is ready.
        deadline: when they end, by the monotonic clock.
        pid: of its main process; 0: it is not ready yet.

    Raises:
        OSError: the program cannot be started.
    """

    def __init__(
        self,
        command: list[str],
        sockets: Sequence[Inherited],
        environ: Mapping[str, str],
        handover: Handover | None = None,
    ) -> None:
        handover = handover or Handover()
        self.channel, theirs = socket.socketpair()
        self.channel.setblocking(False)
        self.patience = TIMEOUT
        self.deadline = time.monotonic() + TIMEOUT
        self.pid = 0
        self._received = b""
        given = [(CHANNEL, theirs), *sockets]
        try:
            line = f"{handover.key.hex()}:{handover.instance}\n".encode()
            memory = [] if handover.memory is None else [handover.memory]
            socket.send_fds(self.channel, [line], memory)
            self._group = _spawn(command, given, environ)
        except OSError:
            self.channel.close()
            raise
        finally:
            theirs.close()

    def read(self) -> bool:
        """Read from the channel; return False if the new generation has ended."""
        try:
            data = self.channel.recv(MAX_LINE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        self._received += data
        if self._received.endswith(b"\n") and self._received.strip().isdigit():
            self.pid = int(self._received)
        return bool(data) and len(self._received) < MAX_LINE

    def release(self) -> bool:
        """Send that it may accept clients; return False if it has ended."""
        try:
            self.channel.send(_GO)
        except OSError:
            return False
        if self.pid != self._group:
            # The first process has only forked (Predecessor.detach). Kill it in case that it has
            # not got round to its end yet, so that this call never waits and leaves no zombie.
            os.kill(self._group, signal.SIGKILL)
            os.waitpid(self._group, 0)
        return True

    def kill(self) -> str:
        """Kill all of its processes; return how the first one ended, "" if it had only forked.

        The caller closes the channel, when its event loop no longer watches it.
        """
        with contextlib.suppress(OSError):
            os.killpg(self._group, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(self._group, 0)[1])
        return f"with status {status}" if status > 0 else ""


def _spawn(
    command: list[str], given: Sequence[tuple[str, socket.socket]], environ: Mapping[str, str]
) -> int:
    """Start a program in a process group of its own, with sockets at the first descriptors."""
    first_free = FIRST_DESCRIPTOR + len(given)
    copies: list[int] = []
    try:
        # Copies beyond the descriptors that they are for: none overwrites another one.
        for _, sock in given:
            copies.append(fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, first_free))
        return os.posix_spawn(
            command[0],
            command,
            {
                **environ,
                "LISTEN_FDS": str(len(given)),
                "LISTEN_FDNAMES": ":".join(name for name, _ in given),
            },
            file_actions=[
                (os.POSIX_SPAWN_DUP2, copy, target)
                for target, copy in enumerate(copies, FIRST_DESCRIPTOR)
            ],
            setpgroup=0,
            setsigmask=[signal.SIGUSR2],  # until it has a handler
        )
    finally:
        for copy in copies:
            os.close(copy)


class UpgradeState:
    """Whether the last upgrade failed, in memory that all processes of a server share."""

    def __init__(self) -> None:
        self._has_failed = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    def record(self, *, has_failed: bool) -> None:
        """Record the outcome of an upgrade."""
        self._has_failed[0] = has_failed

    def show(self) -> None:
        """Show the state in the metrics of this process, and of those forked from it."""
        UPGRADED.source = lambda: {(): 0 if self._has_failed[0] else 1}


class Upgrade:
    """The upgrade of a server, as its main process does it; it makes no calls that wait.

    The event loop of the process calls begin at SIGUSR2, proceed when the successor's channel is
    readable or the deadline has passed, and give_up when the server ends by itself.

    Args:
        start: starts a successor; raises OSError.
        on_failure: called with a sentence when an upgrade has failed.
        on_ready: called with the id of the new main process, just before it may accept clients.
        on_take_over: called when it may.

    Attributes:
        is_allowed: whether the server has started completely.
        is_done: whether a successor has taken over.
        successor: the one that is starting, if there is one.
    """

    def __init__(
        self,
        start: Callable[[], Successor],
        *,
        on_failure: Callable[[str], None],
        on_ready: Callable[[int], None],
        on_take_over: Callable[[], None],
    ) -> None:
        self._start = start
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._on_take_over = on_take_over
        self.is_allowed = False
        self.is_done = False
        self.successor: Successor | None = None
        # Stays open after the take-over: the successor reads its end when this process ends.
        self._channel: socket.socket | None = None

    def begin(self) -> bool:
        """Start a successor; return False if that is refused or fails."""
        if self.is_done:
            logger.info("SIGUSR2: ignored, a new server has taken over already")
            return False
        if self.successor is not None:
            logger.warning("SIGUSR2: ignored, an upgrade is under way")
            return False
        if not self.is_allowed:
            logger.warning("SIGUSR2: ignored, this server is starting or ending")
            return False
        if os.getpid() == 1:
            self._fail("it is process 1: the container would end with it")
            return False
        try:
            self.successor = self._start()
        except OSError as exc:
            self._fail(f"the program cannot be started: {exc.strerror or exc}")
            return False
        logger.info("SIGUSR2: starting a new server, which takes over when it is ready")
        return True

    def proceed(self) -> bool:
        """Check the state of the successor; return whether it is starting still."""
        successor = self.successor
        if successor is None:
            return False
        lives = successor.read()
        if successor.pid and self._hand_over(successor):
            return False
        if not lives or successor.pid:
            how = successor.kill()
            self._fail(f"the new server ended {how or 'before it was ready'}")
        elif time.monotonic() >= successor.deadline:
            successor.kill()
            self._fail(f"the new server was not ready within {successor.patience:g} s")
        return self.successor is not None

    def _hand_over(self, successor: Successor) -> bool:
        self._on_ready(successor.pid)
        if not successor.release():
            return False
        self.successor = None
        self._channel = successor.channel
        self.is_done = True
        self._on_take_over()
        logger.info("the new server, process %d, has taken over", successor.pid)
        return True

    def give_up(self) -> None:
        """End a successor that is starting, because this server ends."""
        self.is_allowed = False
        if self.successor is not None:
            self.successor.kill()
            self.successor = None
            logger.warning("the upgrade was given up")

    def _fail(self, reason: str) -> None:
        self.successor = None
        logger.error("the upgrade has failed: %s; this server goes on", reason)
        self._on_failure(reason)


class Predecessor:
    """The old generation, as its successor sees it.

    Attributes:
        handover: what it has handed over.
        is_waiting: whether the old generation still accepts the clients.
    """

    def __init__(self, channel: socket.socket) -> None:
        channel.settimeout(TIMEOUT)
        self.channel = channel
        # The interpreter closes its sockets some time before a failed start ends with its status.
        self._open_until_the_end = os.dup(channel.fileno())
        self.is_waiting = True
        line, descriptors = b"", list[int]()
        with contextlib.suppress(OSError):
            line, descriptors, _, _ = socket.recv_fds(channel, MAX_LINE, 1)
        for each in descriptors:
            os.set_inheritable(each, False)
        key, _, instance = line.decode("ascii", "replace").strip().partition(":")
        self.handover = Handover(
            bytes.fromhex(key), instance, descriptors[0] if descriptors else None
        )
        channel.setblocking(False)

    def detach(self) -> None:
        """Go on in a child that belongs to the service manager; this process has no threads."""
        if os.fork():
            os._exit(0)

    def report_ready(self) -> None:
        """Report that this generation can accept clients."""
        with contextlib.suppress(OSError):  # if the old generation has ended, read returns False
            self.channel.send(b"%d\n" % os.getpid())

    def read(self) -> bool:
        """Read from the channel; return False if the old generation has ended.

        Its message "go" ends is_waiting.
        """
        try:
            data = self.channel.recv(MAX_LINE)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if data:
            self.is_waiting = False
        return bool(data)

    def wait_for_end(self, timeout: float) -> None:
        """Wait until the old generation has ended, at most timeout seconds.

        Does not wait if the old one has not handed over, or after close.
        """
        if self.is_waiting or self.channel.fileno() < 0:
            return
        polling = select.poll()
        polling.register(self.channel, select.POLLIN)
        if not polling.poll(0):
            logger.info("waiting for the server before this one, which drains")
            polling.poll(timeout * 1000)

    def close(self) -> None:
        """Close the channel: this process has nothing more to do with the old generation."""
        if self.channel.fileno() >= 0:
            self.channel.close()
            os.close(self._open_until_the_end)


def find_predecessor(inherited: list[Inherited]) -> Predecessor | None:
    """Take the channel out of the inherited descriptors; None: there is none."""
    for each in inherited:
        if each.name == CHANNEL:
            inherited.remove(each)
            return Predecessor(each.sock)
    return None
