"""Write to standard output, and describe errors of the system in sentences.

The reader of a pipe may close it early (`| head`), the disk behind it may be full, and standard
output may be closed from the start. None of this is a defect of the program, so a traceback would
mislead.
"""

import os
import sys

from xetserve.base.permissions import describe_os_error
from xetserve.errors import XetserveError


class OutputFailed(XetserveError):
    """Standard output cannot be written to; the message is empty if its reader has gone."""


def write_output(text: str = "") -> None:
    """Write a text to standard output, and everything that was written before.

    Raises:
        OutputFailed: it cannot be written. What remains is discarded.
    """
    if sys.stdout is None:
        raise OutputFailed("standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as exc:
        discard_output()
        is_gone = isinstance(exc, BrokenPipeError)
        reason = "" if is_gone else f"cannot write to standard output: {describe_os_error(exc)}"
        raise OutputFailed(reason) from None


def discard_output() -> None:
    """Send what remains in the buffer of standard output nowhere: Python flushes it at exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def report_os_error(error: OSError) -> None:
    """Write a sentence about an error that no command expected; the log has its traceback."""
    import logging

    logging.getLogger("xetserve").debug("failed", exc_info=error)
    sys.stderr.write(f"xetserve: {describe_os_error(error)}\n")
