"""Notifications to the service manager: datagrams on a Unix socket (sd_notify(3)).

NOTIFY_SOCKET is the address of the socket: a path or, after an "@", a name in the abstract
namespace. WATCHDOG_USEC is the interval in microseconds within which the manager expects a sign of
life. WATCHDOG_PID, if it is set, is the process that must send it.

Sending never waits: a manager that does not read must not stop the server. If the socket is full, a
state is sent again before the next message. A lost figure or sign of life is not sent again,
because a newer one follows.
"""

import logging
import os
import socket
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Final

logger = logging.getLogger(__name__)

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
MAX_OWED: Final = 16  # states that wait to be sent again
MAX_STATUS: Final = 256  # characters
ROOM_TIMEOUT: Final = 5.0  # seconds

_NO_ROOM: Final = (BlockingIOError, InterruptedError)


class Notifier:
    """A sender of notifications; without a service manager, it does nothing.

    Args:
        address: of the manager's socket; "": there is no manager.
        watchdog: seconds within which the manager expects a sign of life; None: it expects none.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None
        self._owed: deque[bytes] = deque(maxlen=MAX_OWED)
        self._status = ""
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET is not a Unix socket: notifications are disabled")
        elif address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        self.watchdog = watchdog if self._sock is not None else None
        # For a new main process, see name_successor.
        usec = {} if watchdog is None else {"WATCHDOG_USEC": str(int(watchdog * 1e6))}
        self.variables = {"NOTIFY_SOCKET": address, **usec} if address else {}

    @property
    def is_active(self) -> bool:
        """Return whether there is a service manager to notify."""
        return self._sock is not None

    def ready(self) -> None:
        """Send that clients can connect, or that a reload has ended."""
        self._tell("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """Send that a reload has begun; call ready() when it ends."""
        self._tell(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def name_successor(self, pid: int) -> None:
        """Send that another process is the main process from now on.

        systemd accepts no message of this process afterwards, so call close. It must not miss this
        one, so a full socket is waited for.
        """
        if self._sock is not None:
            self._sock.settimeout(ROOM_TIMEOUT)
            self._tell("READY=1", f"MAINPID={pid}")
            self._sock.setblocking(False)

    def stopping(self, why: str) -> None:
        """Send that the server stops, with a short reason."""
        self._tell("STOPPING=1", f"STATUS={_one_line(why)}")

    def status(self, text: str) -> None:
        """Send a status line, unless it is the same as the last one."""
        text = _one_line(text)
        if text != self._status and self._send(f"STATUS={text}".encode()):
            self._status = text

    def alive(self) -> None:
        """Send the sign of life that the watchdog expects."""
        self._send(b"WATCHDOG=1")

    def close(self) -> None:
        """Close the socket; later calls do nothing."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _tell(self, *assignments: str) -> None:
        message = "\n".join(assignments).encode()
        if self._sock is not None and not self._send(message):
            self._owed.append(message)

    def _send(self, message: bytes) -> bool:
        """Send the waiting states and then message; return False if the socket is full."""
        if self._sock is None:
            return False
        try:
            while self._owed:
                self._sock.sendto(self._owed[0], self._address)
                self._owed.popleft()
            self._sock.sendto(message, self._address)
        except _NO_ROOM:
            return False
        except OSError as exc:  # the socket does not exist, or access is denied
            self._owed.clear()
            logger.debug("cannot notify the service manager: %s", exc.strerror)
        return True


def take_notifier(environ: MutableMapping[str, str]) -> Notifier:
    """Return the notifier for the variables in the environment.

    The variables are removed, so that child processes do not notify the manager. The notifier keeps
    what a successor needs.
    """
    address, usec, pid = (environ.pop(name, "").strip() for name in VARIABLES)
    is_meant = not pid or pid == str(os.getpid())
    is_number = usec.isascii() and usec.isdigit() and len(usec) <= 18 and int(usec) > 0
    if usec and not is_number:
        logger.warning("WATCHDOG_USEC is not a number of microseconds: the watchdog is disabled")
    return Notifier(address, int(usec) / 1e6 if is_number and is_meant else None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS]
