"""`xetserve pull`: fill the disk cache with a repository before clients request it."""

import argparse
import asyncio
import json
import os
import re
import secrets
import signal
import sys
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from xetserve.base.permissions import describe_os_error
from xetserve.base.sizes import format_size
from xetserve.cachetools.select import find_lack
from xetserve.commands.output import write_output
from xetserve.commands.pull.listing import HandlerClient, Refused, RemoteFile, is_wanted
from xetserve.commands.pull.progress import Progress, format_seconds
from xetserve.commands.pull.puller import Puller, Summary
from xetserve.commands.pull.repo_argument import parse_target
from xetserve.commands.serve.wiring import make_application, open_upstreams, warn_if_slow
from xetserve.commands.service_settings import find_cache
from xetserve.config.parsers import parse_count
from xetserve.config.schema import CacheConfig, Config
from xetserve.errors import ConfigError, XetserveError
from xetserve.ops.lifecycle import raise_file_limit, run_loop
from xetserve.pipeline.cache.blob_file import BlobKey
from xetserve.pipeline.cache.store import prepare_for_owner
from xetserve.upstream.hub.client import RepoRef

_TOKEN: Final = re.compile(r"[!-~]+")


def run_pull(options: argparse.Namespace, config: Config) -> int:
    """Pull a repository; return the exit status.

    0: all files are in the cache. 1: a file failed. 130 or 143: a signal ended the command.

    Raises:
        ConfigError: an argument is invalid, or cache_dir is not set.
    """
    config = find_cache(vars(options), options.config, config)
    prepare_for_owner(Path(config.cache.cache_dir))
    repo, revision = parse_target(options.repo, options.type)
    token = read_token(options.token_file)
    try:
        num_jobs = parse_count(options.jobs)
    except ValueError as exc:
        raise ConfigError(f"--jobs {exc}, not {options.jobs!r}") from None
    warn_if_slow()
    raise_file_limit()
    pulling = _pull(options, config, repo, revision, token, num_jobs)
    return run_loop(_until_signal(pulling))


def _advise(error: XetserveError, token: str | None, hub_url: str) -> str:
    """Return what to do when a repository cannot be listed; "": the error says it."""
    if not isinstance(error, Refused) or error.status != 401:
        return ""
    if token is not None:
        return f": is the token (HF_TOKEN, --token-file) one of {hub_url}, and still valid?"
    return (
        ": there is no such repository, or it is private: check the name, "
        "or give a token that may read it (HF_TOKEN, --token-file)"
    )


def read_token(path: str | None) -> str | None:
    """Return the token from a file or from HF_TOKEN; None: there is none.

    There is no flag for the token itself, because other users could see it in the process list.
    """
    token = os.environ.get("HF_TOKEN", "")
    if path is not None:
        try:
            token = Path(path).read_text(encoding="utf-8")
        except OSError as exc:
            raise ConfigError(f"cannot read the token: {describe_os_error(exc)}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path} does not hold a valid token") from None
    token = token.strip()
    if not token and path is None:
        return None
    if not token:
        raise ConfigError(f"{path} is empty: put a Hub token into it")
    if not _TOKEN.fullmatch(token):
        raise ConfigError(f"{path or 'HF_TOKEN'} does not hold a valid token")
    return token


async def _until_signal(work: Coroutine[Any, Any, int]) -> int:
    """Run until the work is done or a signal cancels it; return the exit status."""
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
        sys.stderr.write("xetserve pull: stopped; a new run continues from here\n")
        return 128 + received[0]


async def _pull(
    options: argparse.Namespace,
    config: Config,
    repo: RepoRef,
    revision: str,
    token: str | None,
    num_jobs: int,
) -> int:
    # The Hub decides whether a token is needed.
    config = replace(config, hub=replace(config.hub, allow_anonymous=True))
    instance = f"xetserve-{secrets.token_hex(6)}"
    async with open_upstreams(config, instance=instance) as (upstreams, cache, _):
        assert cache is not None
        assert upstreams.blob_cache is not None
        assert upstreams.hub.metadata is not None
        answers = upstreams.hub.metadata.store
        assert answers is not None
        application = make_application(upstreams, config)
        client = HandlerClient(application.handle, repo, revision, token)
        is_spared = False
        try:
            commit = await client.find_commit()
            if token is not None and await upstreams.hub.find_grant(repo, None) is not None:
                token, is_spared = None, True
                client = HandlerClient(application.handle, repo, revision, token)
                commit = await client.find_commit()
            await client.ask_about_repo(commit)
            files = [
                file
                async for file in client.iter_files(commit)
                if is_wanted(file.path, options.include, options.exclude)
            ]
        except XetserveError as exc:
            advice = _advise(exc, token, config.hub.hub_url)
            sys.stderr.write(f"xetserve pull: {repo.id}: {exc}{advice}\n")
            return 1
        if not files and options.include:
            sys.stderr.write(f"xetserve pull: {repo.id}: no file matches\n")
            return 1
        size = sum(file.size for file in files)

        async def look_for_lack(file: RemoteFile) -> str | None:
            entry = await upstreams.hub.resolve(repo, commit, file.path, token)
            await answers.settle()
            try:
                return await asyncio.to_thread(find_lack, Path(config.cache.cache_dir), entry)
            except OSError as exc:
                return describe_os_error(exc)

        async def is_complete() -> bool:
            with suppress(XetserveError):
                for file in files:
                    if await look_for_lack(file) is not None:
                        return False
                return True
            return False

        try:
            shortage = _describe_shortage(files, await cache.get_room(), config.cache)
        except OSError as exc:
            shortage = f"the cache cannot be used: {describe_os_error(exc)}"
        if shortage and not options.force and not await is_complete():
            sys.stderr.write(f"xetserve pull: {repo.id}: {shortage}\n")
            return 1
        progress = Progress("files", len(files), size, sys.stderr)
        blob_cache = upstreams.blob_cache

        async def is_kept(digest: str, size: int) -> bool:
            return await blob_cache.has(
                BlobKey("sha256" if len(digest) == 64 else "git", digest, size)
            )

        puller = Puller(
            client,
            commit,
            cache,
            blob_cache.can_keep,
            is_kept,
            look_for_lack,
            progress,
            num_jobs=num_jobs,
            outage_patience=config.hub.outage_patience,
        )
        try:
            summary = await puller.run(files)
        finally:
            progress.close()
    summary.is_token_spared = is_spared
    _print_summary(summary, repo, revision, as_json=options.json)
    return 1 if summary.failed else 0


def _describe_shortage(files: Sequence[RemoteFile], room: int, settings: CacheConfig) -> str:
    """Return why files do not fit into the cache, and what helps; "": they fit.

    Args:
        room: bytes that the cache may have, with the files that are there.
    """
    needed = sum({file.content or file.path: file.size for file in files}.values())
    if needed <= room:
        return ""
    if room < settings.cache_size:
        cause = (
            f"the file system of {settings.cache_dir} is too full (cache_min_free, "
            f"{format_size(settings.cache_min_free)}, stays free): make room there or lower it"
        )
    else:
        cause = "raise cache_size"
    return (
        f"{format_size(needed)} do not fit into the cache, which has room for {format_size(room)}: "
        f"{format_size(needed - room)} are missing. Nothing was fetched. {cause[0].upper()}"
        f"{cause[1:]}, or choose files with --include. Stored data can be smaller than its files: "
        "--force tries"
    )


def _print_summary(summary: Summary, repo: RepoRef, revision: str, *, as_json: bool) -> None:
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
            "token_spared": summary.is_token_spared,
            "seconds": round(summary.seconds, 3),
            "failed": [{"path": path, "error": why} for path, why in summary.failed.items()],
        }
        write_output(json.dumps(document) + "\n")
        return
    write_output(
        f"{repo.id}@{summary.commit}: {summary.num_files} files, "
        f"{format_size(summary.size)} in the cache; "
        f"{format_size(summary.upstream_size)} fetched, {len(summary.failed)} failed, "
        f"in {format_seconds(summary.seconds)}\n"
    )
    if summary.is_token_spared:
        write_output("It is public: pulled without the token, so that every client may have it.\n")
