"""`xetserve cache`: show, verify, shrink, export or import the disk cache."""

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO, Final

from xetserve import __version__
from xetserve.base.atomic_file import replace_file
from xetserve.base.permissions import describe_os_error, find_owner
from xetserve.base.regular_files import collecting_skips
from xetserve.base.sizes import format_size
from xetserve.cachetools.archive import ArchiveError, Counted
from xetserve.cachetools.archive_reader import Importer
from xetserve.cachetools.archive_writer import write_archive
from xetserve.cachetools.select import Chosen, Selection, Wanted, select_repos
from xetserve.cachetools.verify import Checker, Tally, count_contents
from xetserve.commands.output import OutputFailed, discard_output, write_output
from xetserve.commands.pull.progress import Progress, format_seconds, show
from xetserve.commands.pull.repo_argument import parse_target
from xetserve.commands.serve.wiring import DISK_FACTOR
from xetserve.commands.service_settings import find_cache
from xetserve.config.parsers import parse_age, parse_size
from xetserve.config.schema import Config
from xetserve.errors import ConfigError, XetserveError
from xetserve.pipeline.cache.store import CacheStore, prepare_for_owner

STREAM: Final = "-"


def run_cache(options: argparse.Namespace, config: Config) -> int:
    """Run the subcommand; return the exit status: 0, or 1 for damage or a failure.

    Raises:
        ConfigError: the cache does not exist, or an argument is invalid.
    """
    config = find_cache(vars(options), options.config, config)
    folder = Path(config.cache.cache_dir)
    if options.action == "import":
        prepare_for_owner(folder)
    else:
        _check_folder(folder)
    store = CacheStore(
        folder, max_size=config.cache.cache_size, min_free=config.cache.cache_min_free
    )
    options.max_answers = config.metadata.metadata_size * DISK_FACTOR
    try:
        return _ACTIONS[options.action](options, store)
    except OSError as exc:
        return _fail(describe_os_error(exc, folder))
    except ArchiveError as exc:
        return _fail(f"{_name_file(options.file, 'standard input')}: {exc}")
    except (ConfigError, OutputFailed):
        raise
    except XetserveError as exc:
        return _fail(str(exc))


def _fail(reason: str) -> int:
    sys.stderr.write(f"xetserve cache: {show(reason)}\n")
    return 1


def _name_file(file: str, stream: str) -> str:
    return stream if file == STREAM else file


def _check_folder(folder: Path) -> None:
    """Check that a folder holds a cache that this process may use.

    Raises:
        ConfigError: it does not.
    """
    try:
        os.close(os.open(folder / "usage", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"there is no cache in {folder}") from None
    except PermissionError as exc:
        owner = find_owner(folder)
        raise ConfigError(
            f"cannot use the cache: {describe_os_error(exc)}: run the command as that user, "
            f"sudo -u '#{owner}' xetserve cache ..."
        ) from None


def _print_stats(options: argparse.Namespace, store: CacheStore) -> int:
    with collecting_skips() as unread:
        contents = count_contents(store.folder, reads_versions=True)
    kinds = {
        "entries": contents.entries,
        "unproven": contents.unproven,
        "imported": contents.imported,
        "ledgers": contents.ledgers,
        "plain": contents.plain,
        "meta": contents.meta,
        "writing": contents.writing,
        "other_versions": contents.other_versions,
    }
    if options.json:
        document: dict[str, object] = {
            "folder": str(store.folder),
            "bytes": contents.size,
            "quota": store.quota.max_size,
            "free": store.quota.get_free(),
            "xorbs": contents.num_xorbs,
        }
        for name, tally in kinds.items():
            value = asdict(tally)
            del value["cost"]
            value["files"], value["bytes"] = value.pop("num"), value.pop("size")
            document[name] = value
        _print_json({**document, "unreadable": unread})
        return _report_unread(store.folder, unread)
    part = 100 * contents.size / max(1, store.quota.max_size)
    lines = [
        ("folder", str(store.folder)),
        (
            "size",
            f"{format_size(contents.size)} of {format_size(store.quota.max_size)}, {part:.1f} %",
        ),
        ("disk", f"{format_size(store.quota.get_free())} free"),
        ("entries", f"{_describe(contents.entries)}, of {contents.num_xorbs} xorbs"),
        ("unproven", f"{_describe(contents.unproven)}, {contents.imported.num} of them imported"),
        ("ledgers", _describe(contents.ledgers)),
        ("plain files", _describe(contents.plain)),
        ("Hub's answers", _describe(contents.meta)),
        ("being written", _describe(contents.writing)),
    ]
    if contents.other_versions.num:
        lines.append(("other version", f"{_describe(contents.other_versions)}: kept, not used"))
    if contents.entries.oldest is not None and contents.entries.newest is not None:
        now = time.time()
        oldest, newest = (
            format_seconds(max(0, now - used))
            for used in (contents.entries.oldest, contents.entries.newest)
        )
        lines.append(("used", f"{newest} ago; the least recently used entry {oldest} ago"))
    write_output("".join(f"{name:<14}{show(value)}\n" for name, value in lines))
    return _report_unread(store.folder, unread)


def _report_unread(folder: Path, unread: Mapping[str, str]) -> int:
    """Name the files and folders that could not be read; return the exit status."""
    for path, reason in unread.items():
        sys.stderr.write(f"{show(path)}: {show(reason)}\n")
    if not unread:
        return 0
    return _fail(
        f"what is named above could not be read, so the figures are incomplete. Run the command as "
        f"the owner of the cache, or give it all files: chown -R --reference={folder} {folder}"
    )


def _describe(tally: Tally) -> str:
    return f"{tally.num}, {format_size(tally.size)}"


def _verify(options: argparse.Namespace, store: CacheStore) -> int:
    with collecting_skips() as unread:
        return _verify_all(options, store, unread)


def _verify_all(options: argparse.Namespace, store: CacheStore, unread: Mapping[str, str]) -> int:
    contents = count_contents(store.folder)
    size = contents.entries.size + contents.ledgers.size + contents.plain.size
    progress = Progress("", 0, size, sys.stderr)
    checker = Checker(
        store,
        removes=not options.dry_run,
        on_bytes=progress.add,
        on_damage=lambda name, reason: progress.print_line(f"{show(name)}: {show(reason)}"),
    )
    try:
        report = checker.run()
    finally:
        progress.close()
    if options.json:
        damaged = [{"file": name, "reason": why} for name, why in report.damaged.items()]
        _print_json(
            {
                "entries": report.num_entries,
                "xorbs": report.num_xorbs,
                "proven_xorbs": report.num_proven,
                "ledgers": report.num_ledgers,
                "plain": report.num_plain,
                "bytes": report.size,
                "unproven": report.unproven,
                "damaged": damaged,
                "other_versions": sorted(report.other_versions),
                "unreadable": dict(unread),
                "removed": not options.dry_run,
            }
        )
    else:
        for name in report.unproven:
            sys.stderr.write(f"{show(name)}: unproven\n")
        others = len(report.other_versions)
        for version, num in Counter(report.other_versions.values()).items():
            sys.stderr.write(f"{num} files of another version ({version}): kept, not used\n")
        fate = "not removed" if options.dry_run else "removed"
        write_output(
            f"{report.num_entries} entries of {report.num_xorbs} xorbs, "
            f"{report.num_proven} of them complete and proven; "
            f"{report.num_ledgers} ledgers, {report.num_plain} plain files, "
            f"{format_size(report.size)} read; "
            f"{len(report.unproven)} unproven, {len(report.damaged)} damaged"
            f"{f' and {fate}' if report.damaged else ''}"
            f"{f', {others} of another version' if others else ''}\n"
        )
    return _report_unread(store.folder, unread) or (1 if report.damaged else 0)


def _collect(options: argparse.Namespace, store: CacheStore) -> int:
    try:
        size = None if options.to is None else parse_size(options.to)
    except ValueError as exc:
        raise ConfigError(f"--to {exc}, not {options.to!r}") from None
    try:
        age = None if options.older_than is None else parse_age(options.older_than)
    except ValueError as exc:
        raise ConfigError(f"--older-than {exc}, not {options.older_than!r}") from None
    evicted = store.quota.evict(size=size, unused_since=None if age is None else time.time() - age)
    left = count_contents(store.folder).size
    if options.json:
        _print_json({"removed": evicted.num, "removed_bytes": evicted.size, "bytes": left})
    else:
        write_output(
            f"{evicted.num} files removed, {format_size(evicted.size)}; {format_size(left)} left\n"
        )
    return 0


def _export(options: argparse.Namespace, store: CacheStore) -> int:
    wanted = [Wanted(*parse_target(text)) for text in options.repo]
    is_stream = options.file == STREAM
    if is_stream and (sys.stdout is None or sys.stdout.isatty()):
        raise ConfigError("cannot write an export to a terminal: name a file or redirect it")
    selection = select_repos(store.folder, wanted) if wanted else None
    try:
        if is_stream:
            counted = _write_to(sys.stdout.buffer, store, selection, options.with_unproven)
            write_output()
        else:
            target = Path(options.file)
            partial = target.with_name(target.name + ".part")
            # In a shared folder, another user could have put a symbolic link at this path.
            partial.unlink(missing_ok=True)
            with replace_file(target, partial, syncs=True) as stream:
                counted = _write_to(stream, store, selection, options.with_unproven)
    except BrokenPipeError:
        discard_output()
        return 1
    except OSError as exc:
        if is_stream:
            discard_output()
        place = _name_file(options.file, "standard output")
        return _fail(f"the export failed: {describe_os_error(exc, place)}")
    chosen = [] if selection is None else selection.chosen
    out = sys.stderr.write if is_stream else write_output
    _print_counted(options, counted, "exported", "damaged and left out", out, chosen)
    if counted.num_unproven:
        sys.stderr.write(
            f"{counted.num_unproven} entries are left out because they are not proven: "
            "download their files completely first, or export --with-unproven\n"
        )
    is_lacking = bool(chosen) and counted.num_unproven > 0
    return 1 if counted.num_skipped or is_lacking or any(one.incomplete for one in chosen) else 0


def _write_to(
    stream: BinaryIO, store: CacheStore, selection: Selection | None, with_unproven: bool
) -> Counted:
    progress = _LateProgress()
    try:
        return write_archive(
            store,
            stream,
            version=__version__,
            selection=selection,
            with_unproven=with_unproven,
            on_start=progress.start,
            on_bytes=progress.add,
            on_skip=lambda name, reason: progress.print_line(f"{show(name)}: {show(reason)}"),
        )
    finally:
        progress.close()


def _import(options: argparse.Namespace, store: CacheStore) -> int:
    progress = _LateProgress()
    importer = Importer(
        store,
        max_answers=options.max_answers if options.with_answers else 0,
        on_start=progress.start,
        on_bytes=progress.add,
        on_skip=lambda name, reason: progress.print_line(f"{show(name)}: {show(reason)}"),
    )
    try:
        if options.file == STREAM:
            if sys.stdin is None:
                raise ConfigError("standard input is closed")
            counted = importer.run(sys.stdin.buffer)
        else:
            with open(options.file, "rb") as stream:
                counted = importer.run(stream)
    finally:
        progress.close()
    _print_counted(options, counted, "imported", "here before", write_output)
    return 1 if options.with_answers and counted.num_left_out else 0


class _LateProgress:
    """A progress display that starts when the total size is known."""

    def __init__(self) -> None:
        self._progress: Progress | None = None

    def start(self, num: int, size: int) -> None:
        self._progress = Progress("", 0, size, sys.stderr)

    def add(self, size: int) -> None:
        if self._progress is not None:
            self._progress.add(size)

    def print_line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.print_line(text)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def _print_counted(
    options: argparse.Namespace,
    counted: Counted,
    done: str,
    skipped: str,
    out: Callable[[str], object],
    chosen: Sequence[Chosen] = (),
) -> None:
    for one in chosen:
        for path, lack in one.incomplete.items():
            sys.stderr.write(f"{show(one.wanted.repo.id)}: {show(path)}: {show(lack)}\n")
    if options.json:
        value: dict[str, object] = {
            "files": counted.num,
            "bytes": counted.size,
            "skipped": counted.num_skipped,
            "left_out": counted.num_left_out,
            "unproven": counted.num_unproven,
        }
        if chosen:
            value["repos"] = [_describe_chosen(one) for one in chosen]
        out(json.dumps(value) + "\n")
    else:
        for one in chosen:
            out(
                f"{one.wanted.repo.id}@{one.commit or one.wanted.revision}: {one.num_files} files, "
                f"{format_size(one.size)}; {len(one.incomplete)} of them incomplete in this cache\n"
            )
        left_out = ""
        if counted.num_left_out:
            hint = "" if options.with_answers else " (see --with-answers)"
            left_out = f"; {counted.num_left_out} answers of the Hub left out{hint}"
        out(
            f"{counted.num} files {done}, {format_size(counted.size)}; "
            f"{counted.num_skipped} {skipped}{left_out}\n"
        )


def _describe_chosen(chosen: Chosen) -> dict[str, object]:
    repo, revision = chosen.wanted
    return {
        "repo": repo.id,
        "type": repo.kind,
        "revision": revision,
        "commit": chosen.commit,
        "files": chosen.num_files,
        "bytes": chosen.size,
        "incomplete": [{"path": path, "error": why} for path, why in chosen.incomplete.items()],
    }


def _print_json(value: object) -> None:
    write_output(json.dumps(value) + "\n")


_ACTIONS: Final[Mapping[str, Callable[[argparse.Namespace, CacheStore], int]]] = {
    "stats": _print_stats,
    "verify": _verify,
    "gc": _collect,
    "export": _export,
    "import": _import,
}
