"""Reload of settings at SIGHUP: apply all live settings of a valid configuration, or none."""

import dataclasses
import logging
from collections.abc import Callable

from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.net.tls import ServerTls

logger = logging.getLogger(__name__)

# Sections and single settings that a reload can change. The others are fixed when the server builds
# its sockets, processes and pools.
_SECTIONS = frozenset({"status", "limits", "admission", "proxies", "log"})
_SETTINGS = frozenset({"write_timeout", "handshake_timeout", "hsts_max_age", "tokens"})


class Live:
    """The current settings of a running server.

    Args:
        load: reads the settings again.

    Attributes:
        tls: the certificate to reload with the settings; None: there is none.
    """

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self.config = config
        self._load = load
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
        try:
            loaded = self._load()
            if self.tls is not None:
                self.tls.reload()
        except ConfigError as exc:
            logger.error("nothing reloaded: %s", exc)
            return False
        self.config, changed, fixed = _merge(self.config, loaded)
        if fixed:
            logger.warning("a restart is needed to change %s", ", ".join(fixed))
        logger.info("reloaded; changed: %s", ", ".join(changed) or "no settings")
        for apply in self._listeners:
            apply(self.config)
        return True


def is_live(section: str, name: str) -> bool:
    """Return whether a setting can change while the server runs."""
    return section in _SECTIONS or name in _SETTINGS


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
