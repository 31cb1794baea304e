"""Whether the cache can keep anything now, logged at each change.

A check runs now and then, and after each write that has failed. While the cache keeps nothing,
downloads go on without it, and their failures to store are not logged one by one.
"""

import asyncio
import contextlib
import errno
import logging
from pathlib import Path
from typing import Final

from xetserve.base.permissions import describe_os_error
from xetserve.base.sizes import format_size
from xetserve.metrics.catalogue import CACHE_TROUBLE

logger = logging.getLogger(__name__)

CHECK_INTERVAL: Final = 15.0  # seconds
# Bytes of a cache that can keep every range: nothing larger than its half is kept, and a range has
# up to 64 MiB and its index.
USEFUL_SIZE: Final = 2 * 65 * 1024 * 1024
# Causes: the folder cannot be written to; there is no room; cache_size is below USEFUL_SIZE.
DISK: Final = "disk"
FULL: Final = "full"
SMALL: Final = "small"


class CacheHealth:
    """What is known about the cache, and when to check it again.

    Args:
        speaks: log changes as warnings; False: another worker does.

    is_good: whether the last check succeeded.
    """

    def __init__(self, folder: Path, *, speaks: bool = True) -> None:
        self.is_good = True
        self._folder = folder
        self._speaks = speaks
        self._failure: OSError | None = None
        self._is_doubted = asyncio.Event()

    def note_size(self, max_size: int) -> None:
        """Record the size limit, and warn if it is too small for what is to be kept."""
        is_small = max_size < USEFUL_SIZE
        CACHE_TROUBLE.set(is_small, SMALL)
        if is_small:
            self._log(
                logging.WARNING,
                "cache: cache_size is %s, so nothing larger than %s at a time is kept; %s and more "
                "keep everything",
                format_size(max_size),
                format_size(max_size // 2),
                format_size(USEFUL_SIZE),
            )

    def doubt(self, error: OSError | None = None) -> None:
        """Ask for a check, since a write has failed; None: there was no room."""
        self._failure = error or self._failure
        self._is_doubted.set()

    async def wait_for_doubt(self) -> None:
        """Wait until a write fails, at most CHECK_INTERVAL seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL):
                await self._is_doubted.wait()

    def take_failure(self) -> OSError | None:
        """Return the failed write that led to the check, and forget it."""
        self._is_doubted.clear()
        failure, self._failure = self._failure, None
        return failure

    def note(self, error: OSError | None) -> None:
        """Record the result of a check; None: the cache can keep something."""
        is_full = error is not None and error.errno == errno.ENOSPC
        CACHE_TROUBLE.set(is_full, FULL)
        CACHE_TROUBLE.set(error is not None and not is_full, DISK)
        if error is not None and self.is_good:
            reason = describe_os_error(error) or "the disk does not answer"
            self._log(
                logging.WARNING,
                "cache: nothing can be kept in %s: %s. Downloads go on without it",
                self._folder,
                reason,
            )
        elif error is None and not self.is_good:
            self._log(logging.INFO, "cache: data is kept in %s again", self._folder)
        self.is_good = error is None

    def _log(self, level: int, message: str, *args: object) -> None:
        logger.log(level if self._speaks else logging.DEBUG, message, *args)
