"""`xetserve pull`: fill the disk cache with a repository, before clients ask for it."""

import argparse
import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from xetserve.app.paths import KINDS
from xetserve.commands.pull.listing import Asker, is_wanted
from xetserve.commands.pull.progress import Progress, format_seconds, format_size
from xetserve.commands.pull.puller import Puller, Summary
from xetserve.commands.pull.repo_argument import parse_target
from xetserve.commands.serve.wiring import make_application, open_upstreams
from xetserve.config.load import add_flags
from xetserve.config.parsers import parse_count
from xetserve.config.schema import Config
from xetserve.errors import ConfigError, XetserveError
from xetserve.ops.lifecycle import raise_file_limit, run_loop
from xetserve.pipeline.cache.blob_file import BlobKey
from xetserve.pipeline.cache.store import prepare_folder
from xetserve.upstream.hub.client import RepoRef

DEFAULT_JOBS: Final = 4
_TOKEN: Final = re.compile(r"[!-~]+")


def add_flags_of_pull(parser: argparse.ArgumentParser) -> None:
    """Give the command's parser its arguments."""
    parser.add_argument("repo", metavar="OWNER/NAME[@REVISION]", help="the repository")
    parser.add_argument(
        "--type", choices=KINDS, help="default: model, or as datasets/ or spaces/ before it says"
    )
    for flag, text in (("include", "pull only paths that match"), ("exclude", "but not these")):
        parser.add_argument(
            f"--{flag}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{text}; may be repeated, * matches / as well",
        )
    parser.add_argument(
        "--token-file", metavar="FILE", help="holds the Hub token; otherwise HF_TOKEN does, if set"
    )
    parser.add_argument(
        "--jobs", metavar="N", default=str(DEFAULT_JOBS), help=f"files at a time; {DEFAULT_JOBS}"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    add_flags(parser, ("hub", "memory", "cache", "log"), without=("access_log",))


def run_pull(options: argparse.Namespace, config: Config) -> int:
    """Pull; gives the exit status: 0, 1 if something failed, 130 or 143 if a signal ended it.

    Raises:
        ConfigError: nothing can be pulled this way.
    """
    if not config.cache.cache_dir:
        raise ConfigError("there is no cache to fill: cache_dir is not set")
    prepare_folder(Path(config.cache.cache_dir))
    repo, revision = parse_target(options.repo, options.type)
    token = read_token(options.token_file)
    try:
        num_jobs = parse_count(options.jobs)
    except ValueError as exc:
        raise ConfigError(f"--jobs {exc}, not {options.jobs!r}") from None
    raise_file_limit()
    pulling = _pull(options, config, repo, revision, token, num_jobs)
    return run_loop(_until_signal(pulling))


def read_token(path: str | None) -> str | None:
    """Return the token, from a file or the environment: a flag would be seen by others."""
    token = os.environ.get("HF_TOKEN", "")
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"cannot read the token in {path}") from None
    token = token.strip()
    if not token and path is None:
        return None
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path or 'HF_TOKEN'} does not hold a token")
    return token


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run until the end, or until a signal, after which everything is left in order."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    received: list[int] = []

    def stop(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise
        sys.stderr.write("xetserve pull: stopped; started again, it goes on where it was\n")
        return 128 + received[0]


async def _pull(
    options: argparse.Namespace,
    config: Config,
    repo: RepoRef,
    revision: str,
    token: str | None,
    num_jobs: int,
) -> int:
    # Whether a token is needed is for the Hub to say.
    config = replace(config, hub=replace(config.hub, allow_anonymous=True))
    instance = f"xetserve-{secrets.token_hex(6)}"
    async with open_upstreams(config, instance=instance) as (upstreams, cache, _):
        assert cache is not None
        assert upstreams.blob_cache is not None
        application = make_application(upstreams, config)
        asker = Asker(application.handle, repo, revision, token)
        try:
            commit = await asker.find_commit()
            files = [
                file
                async for file in asker.iter_files(commit)
                if is_wanted(file.path, options.include, options.exclude)
            ]
        except XetserveError as exc:
            sys.stderr.write(f"xetserve pull: {repo.id}: {exc}\n")
            return 1
        if not files and options.include:
            sys.stderr.write(f"xetserve pull: {repo.id}: no file matches\n")
            return 1
        size = sum(file.size for file in files)
        progress = Progress("files", len(files), size, sys.stderr)
        shelf = upstreams.blob_cache

        async def is_kept(digest: str, size: int) -> bool:
            return await shelf.has(BlobKey("sha256" if len(digest) == 64 else "git", digest, size))

        puller = Puller(asker, commit, cache, shelf.can_keep, is_kept, progress, num_jobs=num_jobs)
        try:
            summary = await puller.run(files)
        finally:
            progress.close()
    packed = summary.upstream_size + summary.cache_size
    if summary.num_evicted and packed > config.cache.cache_size:
        summary.failed[""] = (
            f"{format_size(packed)} went through a cache of "
            f"{format_size(config.cache.cache_size)}: what was read first is not there any more"
        )
    _tell(summary, repo, revision, as_json=options.json)
    return 1 if summary.failed else 0


def _tell(summary: Summary, repo: RepoRef, revision: str, *, as_json: bool) -> None:
    if as_json:
        document = {
            "repo": repo.id,
            "type": repo.kind,
            "revision": revision,
            "commit": summary.commit,
            "files": summary.num_files,
            "bytes": summary.size,
            "upstream_bytes": summary.upstream_size,
            "cache_bytes": summary.cache_size,
            "seconds": round(summary.seconds, 3),
            "failed": [{"path": path, "error": why} for path, why in summary.failed.items()],
        }
        sys.stdout.write(json.dumps(document) + "\n")
        return
    if "" in summary.failed:
        sys.stderr.write(f"xetserve pull: {summary.failed['']}\n")
    sys.stdout.write(
        f"{repo.id}@{summary.commit}: {summary.num_files} files, "
        f"{format_size(summary.size)} in the cache; "
        f"{format_size(summary.upstream_size)} fetched, {len(summary.failed)} failed, "
        f"in {format_seconds(summary.seconds)}\n"
    )
