"""What a service manager is told: states and figures, as datagrams on a Unix socket (sd_notify(3)).

NOTIFY_SOCKET is its address, a path or, after an "@", a name in the abstract namespace.
WATCHDOG_USEC is within how many microseconds we have to give signs of life; WATCHDOG_PID, where it
is set, is whom that is asked of.

Nothing here ever waits: a manager that does not read what it is sent must not stop the server.
States that it has no room for are sent before the next message; of figures and signs of life there
will be newer ones.
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
MAX_OWED: Final = 16  # states
MAX_STATUS: Final = 256  # characters

_NO_ROOM: Final = (BlockingIOError, InterruptedError)


class Notifier:
    """Tells the service manager; without one, nothing happens.

    Args:
        address: of its socket; "" where there is none.
        watchdog: seconds within which it wants a sign of life; None: it does not.
    """

    def __init__(self, address: str = "", watchdog: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._sock: socket.socket | None = None
        self._owed: deque[bytes] = deque(maxlen=MAX_OWED)
        self._status = ""
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET is no Unix socket: nobody is told how we are")
        elif address:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sock.setblocking(False)
        self.watchdog = watchdog if self._sock is not None else None

    @property
    def is_heard(self) -> bool:
        """Whether there is somebody to tell."""
        return self._sock is not None

    def ready(self) -> None:
        """Clients can connect, or what was reloaded holds."""
        self._tell("READY=1", f"MAINPID={os.getpid()}")

    def reloading(self) -> None:
        """Settings are being read again; ready() says when that is over."""
        self._tell(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )

    def stopping(self, why: str) -> None:
        """This is the end, for a reason in a few words."""
        self._tell("STOPPING=1", f"STATUS={_one_line(why)}")

    def status(self, text: str) -> None:
        """Say how things are, in one line; what was said last is not said again."""
        text = _one_line(text)
        if text != self._status and self._send(f"STATUS={text}".encode()):
            self._status = text

    def alive(self) -> None:
        """Give the sign of life that the watchdog wants."""
        self._send(b"WATCHDOG=1")

    def close(self) -> None:
        """Say no more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _tell(self, *assignments: str) -> None:
        message = "\n".join(assignments).encode()
        if self._sock is not None and not self._send(message):
            self._owed.append(message)

    def _send(self, message: bytes) -> bool:
        """Send what is owed, then this; False: there is no room for it now."""
        if self._sock is None:
            return False
        try:
            while self._owed:
                self._sock.sendto(self._owed[0], self._address)
                self._owed.popleft()
            self._sock.sendto(message, self._address)
        except _NO_ROOM:
            return False
        except OSError as exc:  # nobody is there, or nobody whom we may tell
            self._owed.clear()
            logger.debug("the service manager cannot be told: %s", exc.strerror)
        return True


def take_notifier(environ: MutableMapping[str, str]) -> Notifier:
    """Return the notifier that the environment tells of.

    The variables are removed: what we start has nothing to tell.
    """
    address, usec, pid = (environ.pop(name, "").strip() for name in VARIABLES)
    is_meant = not pid or pid == str(os.getpid())
    is_number = usec.isascii() and usec.isdigit() and len(usec) <= 18 and int(usec) > 0
    if usec and not is_number:
        logger.warning("WATCHDOG_USEC is no number of microseconds: the watchdog is left alone")
    return Notifier(address, int(usec) / 1e6 if is_number and is_meant else None)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_STATUS]
