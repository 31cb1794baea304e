"""`xetserve origin`: run a small Hub and CAS that store repositories in a folder."""

import argparse
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xetserve.commands.serve.endpoints import open_endpoints
from xetserve.commands.serve.process import run_handler
from xetserve.commands.serve.reload import Live
from xetserve.config.load import add_flags, load_config
from xetserve.config.schema import Config, check_together
from xetserve.errors import ConfigError
from xetserve.http.messages import Handler
from xetserve.origin.app import Origin
from xetserve.xet.shard import MAX_SHARD_SIZE

logger = logging.getLogger("xetserve")


def add_flags_of_origin(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the command's parser."""
    parser.add_argument("dir", metavar="DIR", help="folder for repositories, xorbs and shards")
    parser.add_argument(
        "--import",
        dest="imports",
        action="append",
        default=[],
        metavar="OWNER/NAME=FOLDER",
        help="import a local folder as a model repository before serving; may be repeated",
    )
    parser.add_argument(
        "--token",
        dest="tokens",
        action="append",
        default=[],
        metavar="TOKEN=USER",
        help="accept this token; without any token, all clients may read and write everything",
    )
    parser.add_argument("--data-url", metavar="URL", help="base of data URLs; default: this server")
    parser.add_argument(
        "--bridge-url", metavar="URL", help="redirect downloads to this base, as the Hub does"
    )
    parser.add_argument("--test-controls", action="store_true", help=argparse.SUPPRESS)
    # The origin keeps its index of repositories in memory, so it runs in one process.
    add_flags(parser, ("server", "proxies", "limits", "log"), without=("workers",))


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
            repo_id, folder = _parse_pair(text, "--import", "OWNER/NAME=FOLDER")
            await origin.library.import_folder("model", repo_id, Path(folder))
            logger.info("imported %s as %s", folder, repo_id)
        yield origin.handle
    finally:
        await origin.aclose()


def _parse_pair(text: str, flag: str, form: str) -> tuple[str, str]:
    left, equals, right = text.partition("=")
    if not (left and equals and right):
        raise ConfigError(f"{flag} must be {form}, not {text!r}")
    return left, right
