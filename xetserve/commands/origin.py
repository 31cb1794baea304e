"""`xetserve origin`: run a small Hub and CAS that store repositories in a folder."""

import argparse
import fcntl
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from xetserve.app.status.readiness import Readiness
from xetserve.base.permissions import describe_os_error
from xetserve.commands.pull.repo_argument import parse_target
from xetserve.commands.serve.endpoints import open_endpoints
from xetserve.commands.serve.process import run_handler
from xetserve.commands.serve.reload import Live
from xetserve.config.load import load_config, read_tokens
from xetserve.config.parsers import split_tokens
from xetserve.config.schema import ORIGIN_SECTIONS, Config, check_together
from xetserve.errors import ConfigError
from xetserve.http.messages import Handler
from xetserve.ops.socket_activation import take_sockets
from xetserve.origin.app import Origin
from xetserve.origin.store.library import Library
from xetserve.upstream.hub.entry import BUCKET, RepoRef
from xetserve.xet.shard import MAX_SHARD_SIZE

logger = logging.getLogger("xetserve")


def run_origin(options: argparse.Namespace, config: Config) -> int:
    """Serve until a signal; return the exit status.

    Raises:
        ConfigError: no folder is named, or settings contradict each other.
    """

    def load() -> Config:
        loaded = load_config(vars(options), os.environ, options.config, ORIGIN_SECTIONS)
        check_together(loaded)
        return read_tokens(loaded, options.more_tokens)

    if not config.origin.dir:
        raise ConfigError("an origin needs a folder: `xetserve origin DIR`, or dir in [origin]")
    check_together(config)
    live = Live(read_tokens(config, options.more_tokens), load)
    endpoints = open_endpoints(config, take_sockets(os.environ), os.environ, with_tls=False)
    name = f"origin on {config.origin.dir}"
    readiness = Readiness()
    making = _origin(options, live, endpoints.describe_exposed(), readiness)
    return run_handler(
        making, live, endpoints, name, readiness=readiness, body_budget=2 * MAX_SHARD_SIZE
    )


@asynccontextmanager
async def _origin(
    options: argparse.Namespace, live: Live, exposed: str, readiness: Readiness
) -> AsyncIterator[Handler]:
    """Make the handler, and import folders.

    Args:
        exposed: addresses that other machines can reach, as text.
    """
    config = live.config.origin
    origin = Origin(
        Path(config.dir),
        data_url=config.data_url or None,
        bridge_url=config.bridge_url or None,
        test_controls=options.test_controls,
        is_draining=lambda: readiness.is_draining,
    )

    def set_tokens(config: Config) -> None:
        origin.set_tokens(split_tokens(config.origin.tokens))
        if exposed and not config.origin.tokens:
            logger.warning(
                "everybody who can reach %s may read, change and delete everything: set tokens, "
                "or listen on 127.0.0.1",
                exposed,
            )

    lock = _lock(origin.library.root)
    try:
        live.on_change(set_tokens)
        for text in config.imports.splitlines():
            await _import(origin.library, "imports:", text)
        for text in options.more_imports:
            await _import(origin.library, "--import", text)
        yield origin.handle
    finally:
        os.close(lock)
        await origin.aclose()


def _lock(folder: Path) -> int:
    """Return a descriptor that locks the folder; warn if another process does, or owns it.

    Several origins may read from one folder, so the lock stops nobody.
    """
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        logger.warning(
            "another origin uses %s: if one of them changes a repository, the other does not see "
            "it and may undo it",
            folder,
        )
    except OSError as exc:  # a file system without locks
        logger.debug("cannot lock %s: %s", folder, exc)
    owner = folder.stat().st_uid
    if owner != os.geteuid():
        logger.warning(
            "%s belongs to uid %d, which cannot read the files that this process writes as uid %d",
            folder,
            owner,
            os.geteuid(),
        )
    return lock


async def _import(library: Library, source: str, text: str) -> None:
    name, equals, folder = text.partition("=")
    if not (name and equals and folder):
        raise ConfigError(f"{source} must be OWNER/NAME=FOLDER, not {text!r}")
    if name.startswith("buckets/"):
        repo, revision = RepoRef(BUCKET, name.removeprefix("buckets/")), "main"
    else:
        repo, revision = parse_target(name)
    if revision != "main":
        raise ConfigError(f"{source} {text}: a folder is imported into main, not into {revision}")
    try:
        await library.import_folder(repo.kind, repo.id, Path(folder))
    except OSError as exc:
        folder_of_ours = library.root if exc.errno else None  # writes name no file
        raise ConfigError(f"{source} {text}: {describe_os_error(exc, folder_of_ours)}") from None
    except ValueError as exc:
        raise ConfigError(f"{source} {text}: {exc}") from None
    logger.info("imported %s as %s", folder, name)
