"""Settings of a server that runs: some of them change when it is told to read them again, none
half.
"""

import dataclasses
import logging
from collections.abc import Callable

from xetserve.config.schema import SECTIONS, Config
from xetserve.errors import ConfigError
from xetserve.net.tls import ServerTls

logger = logging.getLogger(__name__)

# Sections of which everything can change, and single settings. The rest is built into sockets,
# processes and pools.
_SECTIONS = frozenset({"status", "limits", "admission", "proxies", "log"})
_SETTINGS = frozenset({"write_timeout", "handshake_timeout", "hsts_max_age"})


class Live:
    """The settings that count now.

    Args:
        load: reads them anew.

    Attributes:
        tls: what is reloaded with them; set once there is something.
    """

    def __init__(self, config: Config, load: Callable[[], Config]) -> None:
        self.config = config
        self._load = load
        self._listeners: list[Callable[[Config], None]] = []
        self.tls: ServerTls | None = None

    def on_change(self, apply: Callable[[Config], None]) -> None:
        """Have apply called with the settings now, and whenever they have changed. It must not
        fail.
        """
        self._listeners.append(apply)
        apply(self.config)

    def reload(self) -> bool:
        """Read settings and certificate again; what is no good changes nothing at all, and is
        logged.
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
    """Return the old settings with what can change taken from the new ones, and the names of what
    did and what did not.
    """
    changed, fixed = [], []
    sections = {}
    for name in SECTIONS:
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
