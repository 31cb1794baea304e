"""The supervisor: fork workers that share the listening sockets, and replace workers that die.

The supervisor binds the sockets, forks the workers and waits. It has no event loop, threads,
connections or data, so it can fork safely at any time. Workers share the pages of the imported
code: an idle worker has 9 MiB of its own, a new program would have 20 MiB. An upgrade on disk
cannot mix two versions, because a replacement worker is forked and imports nothing again.

All workers accept from the same sockets, and those with fewer connections go first (net.accept). Of
8 connections, 4 workers get 2 each, seldom 3, 2, 2, 1. With one socket per worker (SO_REUSEPORT)
the kernel distributes connections by a hash of the addresses: in every second trial, one of 4
workers got none. The connections of a dead worker would also wait for its replacement or be lost.

Each worker has a channel to the supervisor, a pair of connected sockets. The worker sends READY;
the supervisor orders it to drain or to cut. Orders are not signals, because Ctrl-C and systemd
signal every process of the group: a worker would receive two signals for one of the operator's. A
SIGTERM to one worker makes it drain, and the supervisor replaces it. If either side dies, even by
SIGKILL, the other one reads the end of the channel. The supervisor then replaces the worker;
workers without a supervisor drain and exit.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn

from xetserve.errors import ConfigError
from xetserve.ops.generations import Predecessor, Successor, Upgrade
from xetserve.ops.lifecycle import ACCEPT, CUT, DRAIN, LEAVE, READY
from xetserve.ops.logs import label_process, write_error
from xetserve.ops.watchdog import START_GRACE, Watchdog

logger = logging.getLogger(__name__)

STOPPING_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SIGNALS: Final = (*STOPPING_SIGNALS, signal.SIGHUP, signal.SIGUSR2)

SETTLED_AFTER: Final = 60.0  # seconds of life after which a worker's crash count restarts at 0
FIRST_DELAY: Final = 0.5
MAX_DELAY: Final = 30.0
STOP_GRACE: Final = 10.0  # seconds after drain_timeout until a worker is killed


def restart_delay(num_crashes: int) -> float:
    """Return the seconds to wait before a worker with num_crashes in a row is started again."""
    if num_crashes <= 1:
        return 0.0
    return min(FIRST_DELAY * 2.0 ** min(num_crashes - 2, 30), MAX_DELAY)


@dataclass(eq=False, slots=True)
class _Worker:
    """A worker, which is one process after the other if processes die."""

    number: int
    pid: int = 0
    channel: socket.socket | None = None  # None: no process now
    is_ready: bool = False
    started_at: float = 0.0
    start_at: float | None = None  # when to start a process; None: do not start one
    num_crashes: int = 0  # in a row
    is_held: bool = False  # it waits for ACCEPT when it is ready


class Supervisor:
    """A supervisor that keeps num_workers processes running until a signal ends them.

    Args:
        sockets: the listening sockets; the supervisor closes them when the workers drain, so that
            no client connects to a server that will not answer.
        work: runs in a worker with its end of the channel; returns the exit status.
        drain_timeout: seconds that workers may drain; STOP_GRACE later they are killed.
        on_ready: called once, when all workers are ready.
        on_start: called in a worker with its number, counted from 1, before work.
        on_reload: called at SIGHUP; if it returns True, the workers receive SIGHUP too. Workers
            that are started later inherit its changes.
        watch: watches the workers, and decides on an idle exit.
        describe_drain: returns what the log says at the first signal.
        predecessor: the server whose sockets these are. While it waits, no worker accepts clients.
        upgrade: is begun at SIGUSR2; None: SIGUSR2 has no effect.
    """

    def __init__(
        self,
        num_workers: int,
        sockets: list[socket.socket],
        work: Callable[[socket.socket], int],
        *,
        drain_timeout: float,
        on_ready: Callable[[], None],
        on_reload: Callable[[], bool] = lambda: True,
        watch: Watchdog | None = None,
        on_start: Callable[[int], None] = lambda number: None,
        describe_drain: Callable[[], str] = lambda: "draining",
        predecessor: Predecessor | None = None,
        upgrade: Upgrade | None = None,
    ) -> None:
        self._workers = [_Worker(number) for number in range(1, num_workers + 1)]
        self._sockets = sockets
        self._work = work
        self._drain_timeout = drain_timeout
        self._on_ready = on_ready
        self._on_reload = on_reload
        self._watch = watch or Watchdog(num_workers)
        self._look_at: float | None = None  # time of the next check; None: not all were ready yet
        self._on_start = on_start
        self._describe_drain = describe_drain
        self._predecessor = predecessor
        self._upgrade = upgrade
        self._has_begun = False  # a worker was ready at some time
        self._is_up = False  # all workers were ready at the same time
        self._is_stopping = False
        self._is_told = False  # a signal has ordered a drain
        self._kill_at: float | None = None
        self._status = 0
        self._selector = selectors.DefaultSelector()
        self._signals, self._signal_writer = socket.socketpair()

    def run(self) -> int:
        """Run until the last worker has ended; return the exit status.

        0: all workers ended normally. 1: a worker was killed, or failed while it drained. If the
        first worker fails before it is ready, the supervisor ends with its status, or 1 if a signal
        killed it.
        """
        self._signals.setblocking(False)
        self._signal_writer.setblocking(False)
        self._selector.register(self._signals, selectors.EVENT_READ, None)
        before = {number: signal.signal(number, _wake_up) for number in SIGNALS}
        signal.set_wakeup_fd(self._signal_writer.fileno(), warn_on_full_buffer=False)
        try:
            # Start one worker first: an error would be the same for all, and is logged once.
            self._workers[0].start_at = 0.0
            while True:
                self._start_due()
                if not any(w.channel or w.start_at is not None for w in self._workers):
                    return self._status
                for key, _ in self._selector.select(self._next_timeout()):
                    match key.data:
                        case None:
                            self._on_signals(self._signals.recv(4096))
                        case Predecessor():
                            self._on_predecessor(key.data)
                        case Successor():
                            pass  # _proceed looks at it
                        case _:
                            self._on_channel(key.data)
                self._proceed()
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._kill_all()
                self._look()
        finally:
            self._give_up_upgrade()
            signal.set_wakeup_fd(-1)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            self._signals.close()
            self._signal_writer.close()

    def _next_timeout(self) -> float | None:
        times = [w.start_at for w in self._workers if w.start_at is not None]
        times += [at for at in (self._kill_at, self._look_at) if at is not None]
        if self._successor is not None:
            times.append(self._successor.deadline)
        return max(0.0, min(times) - time.monotonic()) if times else None

    # Starting

    def _start_due(self) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if worker.start_at is not None and worker.start_at <= now:
                worker.start_at = None
                worker.started_at = now
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        self._watch.heartbeats.begin(worker.number - 1, START_GRACE)
        worker.is_held = self._is_held
        try:
            worker.pid, worker.channel = self._fork(worker)
        except OSError as exc:
            self._watch.heartbeats.end(worker.number - 1)
            self._on_failure(worker, 1, f"could not be started: {exc.strerror}")
            return
        worker.channel.setblocking(False)
        self._selector.register(worker.channel, selectors.EVENT_READ, worker)

    def _fork(self, worker: _Worker) -> tuple[int, socket.socket]:
        """Fork the process; return its id and the supervisor's end of the channel."""
        ours, theirs = socket.socketpair()
        # A signal between the fork and the child's own handlers would be written to our socket.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                self._become(worker, ours, theirs)
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            theirs.close()
        return pid, ours

    def _become(self, worker: _Worker, ours: socket.socket, theirs: socket.socket) -> NoReturn:
        """Run the worker in the new process; never return to the supervisor's code."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Ctrl-C reaches the whole group; the supervisor handles it and sends orders.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._selector.close()
            for sock in (ours, self._signals, self._signal_writer):
                sock.close()
            if self._predecessor is not None:
                self._predecessor.close()
            for other in (*self._workers, self._successor):
                if other is not None and other.channel is not None:
                    other.channel.close()
            # SIGHUP stays blocked until the worker handles it: a reload may happen meanwhile.
            # SIGUSR2 stays blocked for ever: it is for the supervisor.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING_SIGNALS)
            label_process(f"worker {worker.number}")
            self._watch.heartbeats.own = worker.number - 1
            self._on_start(worker.number)
            status = self._work(theirs)
        except ConfigError as exc:
            write_error(str(exc))
            status = 2
        except BaseException:
            logger.critical("failed", exc_info=True)
        finally:
            # Not sys.exit, which would run the supervisor's exit handlers in the worker.
            os._exit(status)

    # Events of workers

    def _on_channel(self, worker: _Worker) -> None:
        assert worker.channel is not None
        try:
            data = worker.channel.recv(16)
        except OSError:  # the worker died with an unread order in its channel
            data = b""
        if not data:
            self._on_end(worker)
        elif READY in data:
            worker.is_ready = self._has_begun = True
            logger.debug("worker %d (pid %d) is ready", worker.number, worker.pid)
            if worker.is_held and not self._is_held:
                self._let_accept(worker)
            self._on_worker_ready()

    def _on_worker_ready(self) -> None:
        if self._is_up or self._is_stopping:
            return
        for worker in self._workers:
            if worker.channel is None and worker.start_at is None:
                worker.start_at = 0.0
        if all(worker.is_ready for worker in self._workers):
            self._is_up = True
            if self._predecessor is not None and self._is_held:
                self._selector.register(
                    self._predecessor.channel, selectors.EVENT_READ, self._predecessor
                )
                self._predecessor.report_ready()
            else:
                self._begin()

    def _begin(self) -> None:
        """Report that clients are accepted."""
        self._look_at = 0.0
        self._on_ready()

    def _on_end(self, worker: _Worker) -> None:
        assert worker.channel is not None
        self._selector.unregister(worker.channel)
        worker.channel.close()
        worker.channel = None
        self._watch.heartbeats.end(worker.number - 1)
        status = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
        was_ready, worker.is_ready = worker.is_ready, False
        how = f"ended with status {status}" if status >= 0 else f"died of {_signal_name(-status)}"
        if self._is_stopping:
            # A SIGTERM to the whole group kills a worker that is not ready yet.
            if status and not (status == -signal.SIGTERM and not was_ready):
                logger.error("worker %d (pid %d) %s", worker.number, worker.pid, how)
                self._status = 1
        else:
            self._on_failure(worker, status, f"(pid {worker.pid}) {how}")

    def _on_failure(self, worker: _Worker, status: int, what: str) -> None:
        if not self._has_begun:
            logger.critical("the first worker %s before it was ready", what)
            self._status = status if status > 0 else 1
            return
        now = time.monotonic()
        if now - worker.started_at >= SETTLED_AFTER:
            worker.num_crashes = 0
        worker.num_crashes += 1
        delay = restart_delay(worker.num_crashes)
        worker.start_at = now + delay
        when = f"in {delay:g} s" if delay else "now"
        logger.error("worker %d %s; starting it again %s", worker.number, what, when)

    # Generations

    @property
    def _is_held(self) -> bool:
        """Return whether another server still accepts the clients."""
        return self._predecessor is not None and self._predecessor.is_waiting

    @property
    def _successor(self) -> Successor | None:
        return None if self._upgrade is None else self._upgrade.successor

    def _on_predecessor(self, predecessor: Predecessor) -> None:
        lives = predecessor.read()
        if lives and predecessor.is_waiting:
            return
        self._selector.unregister(predecessor.channel)
        if not lives:
            logger.error("the server before this one ended without handing over: ending")
            self._end_all(CUT, 0.0)
        elif not self._is_stopping:
            for worker in self._workers:
                self._let_accept(worker)
            self._begin()

    def _let_accept(self, worker: _Worker) -> None:
        worker.is_held = False
        self._send(worker, ACCEPT)

    def _begin_upgrade(self) -> None:
        if self._upgrade is not None and self._upgrade.begin():
            assert self._successor is not None
            self._selector.register(self._successor.channel, selectors.EVENT_READ, self._successor)

    def _proceed(self) -> None:
        """Check the state of the new server that is starting, if there is one."""
        successor = self._successor
        if self._upgrade is None or successor is None or self._upgrade.proceed():
            return
        self._selector.unregister(successor.channel)
        if self._upgrade.is_done:
            self._look_at = None
            self._end_all(LEAVE, self._drain_timeout)
        else:
            successor.channel.close()

    def _give_up_upgrade(self) -> None:
        successor = self._successor
        if self._upgrade is not None:
            self._upgrade.give_up()
        if successor is not None:
            self._selector.unregister(successor.channel)
            successor.channel.close()

    # Stopping

    def _on_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number == signal.SIGHUP:
                if self._on_reload():
                    logger.info("SIGHUP: sent to the workers")
                    self._signal_all(signal.SIGHUP)
            elif number == signal.SIGUSR2:
                self._begin_upgrade()
            elif number in STOPPING_SIGNALS:
                self._stop(_signal_name(number))

    def _look(self) -> None:
        if self._look_at is None or time.monotonic() < self._look_at:
            return
        interval = self._watch.interval
        self._look_at = None if interval is None else time.monotonic() + interval
        is_idle = interval is not None and self._watch.look()
        if is_idle and not self._is_stopping and self._successor is None:
            logger.info("no client is connected: exiting until the next one")
            self._watch.stopping("idle")
            self._end_all(LEAVE, self._drain_timeout)

    def _stop(self, name: str) -> None:
        logger.info("%s: %s", name, "cutting" if self._is_told else self._describe_drain())
        if self._is_told:
            if self._predecessor is not None:
                self._predecessor.close()
            self._end_all(CUT, 0.0)
            return
        self._is_told = True
        self._watch.stopping("draining")
        self._end_all(DRAIN, self._drain_timeout)

    def _end_all(self, order: bytes, grace: float) -> None:
        self._is_stopping = True
        self._give_up_upgrade()
        self._kill_at = time.monotonic() + grace + STOP_GRACE
        for sock in self._sockets:
            sock.close()
        for worker in self._workers:
            worker.start_at = None
            self._send(worker, order)

    def _send(self, worker: _Worker, order: bytes) -> None:
        if worker.channel is not None:
            with contextlib.suppress(OSError):  # it has just died: _on_channel reads that next
                worker.channel.send(order)

    def _kill_all(self) -> None:
        self._kill_at = None
        logger.error("killing workers that did not end in time")
        self._signal_all(signal.SIGKILL)

    def _signal_all(self, number: signal.Signals) -> None:
        # A process keeps its id until it is waited for, so the right one gets the signal.
        for worker in self._workers:
            if worker.channel is not None:
                os.kill(worker.pid, number)


def _wake_up(number: int, frame: object) -> None:
    """Do nothing: Python writes a signal's number to the wakeup socket only if it has a handler."""


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
