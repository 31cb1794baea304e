"""Reload of settings at SIGHUP: apply all live settings of a valid configuration, or none."""

import dataclasses
import hashlib
import logging
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.metrics.catalogue import CONFIG_INFO, CONFIG_RELOAD_TIME, CONFIG_RELOADED
from xetserve.net.tls import ServerTls

logger = logging.getLogger(__name__)

# Sections and single settings that a reload can change. The others are fixed when the server builds
# its sockets, processes and pools.
_SECTIONS = frozenset({"status", "limits", "admission", "proxies", "log"})
_FIXED = frozenset({"status_listen"})  # in those sections
_SETTINGS = frozenset({"write_timeout", "handshake_timeout", "hsts_max_age", "tokens"})


class ReloadState:
    """How the last reload ended, in memory that all processes of a server share.

    Workers do not hear of a reload that failed in their supervisor, but any of them may be asked
    for metrics. The process that makes the state says when a reload has succeeded; each process
    says when one has failed. Layout: u64 has failed, f64 Unix seconds, SHA-256 or zeros.
    """

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self._failed, self._time, self._digest = (
            memory[:8].cast("Q"),
            memory[8:16].cast("d"),
            memory[16:48],
        )
        self._owner = os.getpid()

    def on_success(self, digest: bytes) -> None:
        """Record a reload, or the start, with the SHA-256 of the file; b"": there is no file."""
        if os.getpid() == self._owner:
            self._digest[:] = digest or bytes(32)
            self._time[0] = time.time()
            self._failed[0] = 0

    def on_failure(self) -> None:
        """Record a reload that changed nothing."""
        self._failed[0] = 1

    def show(self) -> None:
        """Show the state in the metrics of this process, and of those forked from it."""
        CONFIG_RELOADED.source = lambda: {(): 0 if self._failed[0] else 1}
        CONFIG_RELOAD_TIME.source = lambda: {(): round(self._time[0], 3)}
        CONFIG_INFO.source = lambda: {(self._digest.hex() if any(self._digest) else "",): 1}


def hash_file(path: str | None) -> bytes:
    """Return the SHA-256 of a configuration file; b"" if there is none or it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest() if path else b""
    except OSError:  # loading it reports this
        return b""


class Live:
    """The current settings of a running server.

    Args:
        load: reads the settings again.
        path: the configuration file that they are read from, if there is one.

    Attributes:
        tls: the certificate to reload with the settings; None: there is none.
    """

    def __init__(self, config: Config, load: Callable[[], Config], path: str | None = None) -> None:
        self.config = config
        self._load = load
        self._path = path
        self._state = ReloadState()
        self._state.on_success(hash_file(path))
        self._state.show()
        self._listeners: list[Callable[[Config], None]] = []
        self.tls: ServerTls | None = None

    def on_change(self, apply: Callable[[Config], None]) -> None:
        """Call apply with the settings now and after each reload; apply must not raise."""
        self._listeners.append(apply)
        apply(self.config)

    def reload(self) -> bool:
        """Reload settings and certificate; return whether both are valid.

        If one is invalid, the error is logged and nothing changes.
        """
        digest = hash_file(self._path)
        try:
            loaded = self._load()
            if self.tls is not None:
                self.tls.reload()
        except ConfigError as exc:
            logger.error("nothing reloaded: %s", exc)
            self._state.on_failure()
            return False
        self.config, changed, fixed = _merge(self.config, loaded)
        if fixed:
            logger.warning("a restart is needed to change %s", ", ".join(fixed))
        logger.info("reloaded; changed: %s", ", ".join(changed) or "no settings")
        for apply in self._listeners:
            apply(self.config)
        self._state.on_success(digest)
        return True


def is_live(section: str, name: str) -> bool:
    """Return whether a setting can change while the server runs."""
    return (section in _SECTIONS and name not in _FIXED) or name in _SETTINGS


def _merge(old: Config, new: Config) -> tuple[Config, list[str], list[str]]:
    """Return old with the live settings of new, and the names of two kinds of settings.

    The first names were changed. The second ones differ in new, but need a restart.
    """
    changed, fixed = [], []
    sections = {}
    for name in (section.name for section in dataclasses.fields(old)):
        before, after = getattr(old, name), getattr(new, name)
        updates = {}
        for setting in dataclasses.fields(before):
            value = getattr(after, setting.name)
            if value == getattr(before, setting.name):
                continue
            if is_live(name, setting.name):
                updates[setting.name] = value
                changed.append(setting.name)
            else:
                fixed.append(setting.name)
        sections[name] = dataclasses.replace(before, **updates)
    return dataclasses.replace(old, **sections), changed, fixed
