"""`xetserve origin`: run a small Hub and CAS that store repositories in a folder."""

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xetserve.base.permissions import describe_os_error
from xetserve.commands.pull.repo_argument import parse_target
from xetserve.commands.serve.endpoints import open_endpoints
from xetserve.commands.serve.process import run_handler
from xetserve.commands.serve.reload import Live
from xetserve.config.load import load_config
from xetserve.config.schema import Config, check_together
from xetserve.errors import ConfigError
from xetserve.http.messages import Handler
from xetserve.origin.app import Origin
from xetserve.xet.shard import MAX_SHARD_SIZE

logger = logging.getLogger("xetserve")


def run_origin(options: argparse.Namespace, config: Config) -> int:
    """Serve until a signal; return the exit status."""

    def load() -> Config:
        loaded = load_config(vars(options), os.environ, options.config)
        check_together(loaded)
        return loaded

    check_together(config)
    live = Live(config, load)
    endpoints = open_endpoints(config, os.environ, with_tls=False)
    name = f"origin on {options.dir}"
    return run_handler(_origin(options), live, endpoints, name, body_budget=2 * MAX_SHARD_SIZE)


@asynccontextmanager
async def _origin(options: argparse.Namespace) -> AsyncIterator[Handler]:
    origin = Origin(
        Path(options.dir),
        tokens=dict(_parse_pair(text, "--token", "TOKEN=USER") for text in options.tokens),
        data_url=options.data_url,
        bridge_url=options.bridge_url,
        test_controls=options.test_controls,
    )
    try:
        for text in options.imports:
            name, folder = _parse_pair(text, "--import", "OWNER/NAME=FOLDER")
            repo, _ = parse_target(name)
            try:
                await origin.library.import_folder(repo.kind, repo.id, Path(folder))
            except OSError as exc:
                raise ConfigError(f"--import {text}: {describe_os_error(exc)}") from None
            except ValueError as exc:
                raise ConfigError(f"--import {text}: {exc}") from None
            logger.info("imported %s as %s", folder, name)
        yield origin.handle
    finally:
        await origin.aclose()


def _parse_pair(text: str, flag: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise ConfigError(f"{flag} must be {form}, not {text!r}")
    return left, right
