"""`xetserve doctor`: check whether a server with these settings would work on this machine."""

import argparse
import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import PurePosixPath
from typing import Final

from xetserve import __version__
from xetserve.app.paths import check_revision, parse_repo
from xetserve.base.sizes import format_size
from xetserve.commands.doctor.findings import (
    Finding,
    Level,
    check_cache,
    check_files,
    check_native_code,
)
from xetserve.commands.doctor.network import Checkup
from xetserve.commands.doctor.trial_download import Target
from xetserve.commands.output import write_output
from xetserve.commands.pull.command import read_token
from xetserve.commands.serve.wiring import describe_memory
from xetserve.config.schema import Config, find_conflicts
from xetserve.errors import ConfigError, RequestError
from xetserve.ops.lifecycle import run_loop
from xetserve.ops.logs import mask_secrets
from xetserve.ops.memory_limit import find_memory_limit

TIME_LIMIT: Final = 90.0  # seconds for all checks


def run_doctor(options: argparse.Namespace, config: Config) -> int:
    """Run all checks; return the exit status: 0, or 1 if a check fails.

    Raises:
        ConfigError: an argument is invalid.
    """
    target = _parse_target(options.file, options.type, options.revision)
    token = read_token(options.token_file)
    return run_loop(_examine(config, Checkup(config, token, target), as_json=options.json))


def _parse_target(text: str | None, kind: str, revision: str) -> Target | None:
    if text is None:
        return None
    parts = PurePosixPath(text.strip("/")).parts
    if len(parts) < 3:
        raise ConfigError(f"--file must be OWNER/REPO/PATH, not {text!r}")
    try:
        repo = parse_repo("/".join(parts[:2]), kind)
        return Target(repo, check_revision(revision), "/".join(parts[2:]))
    except RequestError as exc:
        raise ConfigError(f"--file {text!r}: {exc}") from None


async def _examine(config: Config, checkup: Checkup, *, as_json: bool) -> int:
    found: list[Finding] = []
    async for finding in _bounded(config, checkup):
        # Reasons may quote other servers, so print them without control characters.
        finding = finding._replace(text=mask_secrets(finding.text))
        found.append(finding)
        if not as_json:
            _print(finding)
    counts = Counter(finding.level for finding in found)
    is_good = not counts[Level.FAIL]
    if as_json:
        checks = [finding._asdict() for finding in found]
        write_output(json.dumps({"version": __version__, "ok": is_good, "checks": checks}) + "\n")
    else:
        verdict = "the server will work" if is_good else "the server will not work"
        write_output(f"{verdict}: {', '.join(f'{counts[level]} {level}' for level in Level)}\n")
    return 0 if is_good else 1


async def _bounded(config: Config, checkup: Checkup) -> AsyncIterator[Finding]:
    for finding in _check_here(config):
        yield finding
    try:
        async with asyncio.timeout(TIME_LIMIT):
            async for finding in checkup.run():
                yield finding
    except TimeoutError:
        yield Finding(
            "time",
            Level.FAIL,
            f"the checks did not end within {TIME_LIMIT:g} s",
            "see the last line",
        )


def _check_here(config: Config) -> Iterator[Finding]:
    """Yield the checks that need no network."""
    conflicts = list(find_conflicts(config))
    yield from (Finding("settings", Level.FAIL, each, "correct the settings") for each in conflicts)
    if not conflicts:
        yield Finding("settings", Level.OK, f"valid for xetserve {__version__}")
    yield check_native_code()
    yield _check_memory(config)
    yield check_files(config.limits.max_connections)
    yield check_cache(config)


def _check_memory(config: Config) -> Finding:
    """Check that the processes and their budgets fit into the cgroup's limit."""
    limit = find_memory_limit()
    text, advice = describe_memory(config, limit)
    if text:
        return Finding("memory", Level.WARN, text, advice)
    fits = "no limit" if limit is None else f"fits into the limit of {format_size(limit)}"
    return Finding("memory", Level.OK, fits)


def _print(finding: Finding) -> None:
    advice = f"      -> {finding.advice}\n" if finding.advice else ""
    write_output(f"{finding.level:<4}  {finding.name}: {finding.text}\n{advice}")
