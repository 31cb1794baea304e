"""Settings of the deployed service for commands that fill or look after its cache."""

import argparse
import logging
import os
from collections.abc import Mapping

from xetserve.commands.config import read_env_file
from xetserve.config.load import add_flags, load_config
from xetserve.config.schema import Config
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
    try:
        service = find_service_settings(read_env_file)
        if service is None:
            raise ConfigError(lacking)
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        add_flags(parser)
        started, _ = parser.parse_known_args(service.arguments)
        given = {name: value for name, value in flags.items() if value is not None}
        environ = {**service.environ, **os.environ}
        found = load_config({**vars(started), **given}, environ, config_file or started.config)
    except ConfigError as exc:
        if str(exc) == lacking:
            raise
        raise ConfigError(f"{lacking}; the settings of {SERVICE} cannot be used: {exc}") from None
    if not found.cache.cache_dir:
        raise ConfigError(f"{lacking}; {SERVICE} has no cache either")
    logger.info("using the settings of %s: cache_dir %s", SERVICE, found.cache.cache_dir)
    return found
