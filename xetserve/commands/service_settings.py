"""Settings of the deployed service for commands on its machine."""

import argparse
import hashlib
import logging
import os
import tomllib
from collections.abc import Mapping

from xetserve.commands.config import read_env_file
from xetserve.commands.serve.reload import is_live
from xetserve.config.load import Loaded, add_flags, load_all
from xetserve.config.schema import Config
from xetserve.deploy.applied_settings import Summary, summarize_bytes
from xetserve.deploy.local_server import Speech
from xetserve.deploy.service_settings import SERVICE, find_service_settings
from xetserve.errors import ConfigError

logger = logging.getLogger("xetserve")


def find_cache(flags: Mapping[str, str | None], config_file: str | None, config: Config) -> Config:
    """Return settings that name a cache: those given, or else those of the deployed service.

    Args:
        flags: as for load_config; they win over the settings of the service.
        config: loaded from the same flags.

    Raises:
        ConfigError: neither names a cache.
    """
    if config.cache.cache_dir:
        return config
    lacking = "cache_dir is not set: give --cache-dir"
    unusable = f"{lacking}; the settings of {SERVICE} cannot be used"
    try:
        loaded = _load_service(flags, os.environ, config_file)
    except ConfigError as exc:
        raise ConfigError(f"{unusable}: {exc}") from None
    if loaded is None:
        raise ConfigError(lacking)
    if loaded.errors:
        raise ConfigError(f"{unusable}: {loaded.errors[0]}")
    found = loaded.config
    if not found.cache.cache_dir:
        raise ConfigError(f"{lacking}; {SERVICE} has no cache either")
    logger.info("using the settings of %s: cache_dir %s", SERVICE, found.cache.cache_dir)
    return found


def find_speech() -> Speech:
    """Return what the deployed service speaks on its sockets, by its settings of now.

    Errors in settings do not matter here; if the settings cannot be read, it is plain HTTP.
    """
    try:
        loaded = _load_service({}, {}, None)
    except (ConfigError, OSError):
        loaded = None
    if loaded is None:
        return Speech()
    config = loaded.config
    return Speech(bool(config.tls.tls_cert), config.proxies.proxy_protocol)


def summarize_settings(content: bytes) -> Summary:
    """Summarize a settings file, by the settings that a reload can change and the others."""
    try:
        tables = tomllib.loads(content.decode())
    except (ValueError, RecursionError):  # it is refused when it is checked
        return summarize_bytes(content)
    found = [
        (section, name, repr(value))
        for section, table in sorted(tables.items())
        for name, value in (sorted(table.items()) if isinstance(table, dict) else [("", table)])
    ]
    fixed = [each for each in found if not is_live(*each[:2])]
    return Summary(*(hashlib.sha256(repr(each).encode()).hexdigest() for each in (found, fixed)))


def _load_service(
    flags: Mapping[str, str | None], environ: Mapping[str, str], config_file: str | None
) -> Loaded | None:
    """Load the settings of the deployed service; None: there is none.

    Args:
        flags, environ, config_file: win over those of the service.

    Raises:
        ConfigError: a file of environment variables cannot be read.
    """
    service = find_service_settings(read_env_file)
    if service is None:
        return None
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser)
    started, _ = parser.parse_known_args(service.arguments)
    given = {name: value for name, value in flags.items() if value is not None}
    return load_all(
        {**vars(started), **given}, {**service.environ, **environ}, config_file or started.config
    )
