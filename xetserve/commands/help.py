"""`xetserve help`: list the chapters of the documentation, or print one.

Chapters are Markdown files in xetserve/docs, installed with the package.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from xetserve.commands.output import OutputFailed, write_output
from xetserve.config.load import suggest
from xetserve.errors import ConfigError

DOCS: Final = Path(__file__).parents[1] / "docs"
_INDENT: Final = 18  # columns for the name of a chapter
_MAX_WIDTH: Final = 100
_HINT: Final = "; `xetserve help` lists the chapters, `xetserve COMMAND --help` describes a command"
_LINK: Final = re.compile(r"\[([^]\[]*)]\([^)\s]*\)")


def run_help(options: argparse.Namespace) -> int:
    """Run the command; return the exit status.

    Raises:
        ConfigError: the chapter does not exist.
    """
    chapters = find_chapters()
    if options.topic is None:
        _write(format_list(chapters, shutil.get_terminal_size().columns))
        return 0
    name = options.topic.removesuffix(".md")  # links between chapters have this suffix
    if name not in chapters:
        hint = suggest(name, chapters) or _HINT
        raise ConfigError(f"unknown chapter {name!r}{hint}")
    pager = os.environ.get("PAGER", "less") if sys.stdout.isatty() else ""
    show(chapters[name].read_text(encoding="utf-8"), pager)
    return 0


def find_chapters(folder: Path = DOCS) -> dict[str, Path]:
    """Return chapter name -> file, in alphabetical order."""
    return {path.stem: path for path in sorted(folder.glob("*.md"))}


def format_list(chapters: Mapping[str, Path], width: int) -> str:
    """Return a list of the chapters for a screen with width columns."""
    lines = []
    for name, path in chapters.items():
        lines += textwrap.wrap(
            summarize(path.read_text(encoding="utf-8")),
            max(2 * _INDENT, min(width, _MAX_WIDTH)),
            initial_indent=f"{name} ".ljust(_INDENT),
            subsequent_indent=" " * _INDENT,
            break_on_hyphens=False,
        )
    return "\n".join([*lines, "", "Print a chapter: xetserve help TOPIC", ""])


def summarize(text: str) -> str:
    """Return the first sentence of a chapter, without Markdown links.

    A chapter without a paragraph is summarized by its heading.
    """
    heading, *paragraphs = re.split(r"\n\s*\n", text.strip())
    for paragraph in paragraphs:
        if paragraph[0].isalnum() or paragraph[0] in "`[*":
            plain = _LINK.sub(r"\1", " ".join(paragraph.split()))
            return re.split(r"(?<=[.!?:]) (?=[A-Z`])", plain, maxsplit=1)[0]
    return heading.splitlines()[0].lstrip("# ")


def show(text: str, command: str) -> None:
    """Write a text to the pager that command starts, or to standard output if it cannot start."""
    pager = _start_pager(command)
    if pager is None:
        _write(text)
        return
    data = text.encode()
    while True:
        try:
            pager.communicate(data)
            return
        except KeyboardInterrupt:  # for the pager: less stops a search and keeps running
            data = b""  # communicate() continues to write the data of the first call


def _start_pager(command: str) -> subprocess.Popen[bytes] | None:
    """Start a pager that reads from a pipe; None: the command is empty or does not start."""
    try:
        arguments = shlex.split(command)
        # As git does; with F, less exits at once if the text fits on the screen.
        environ = {"LESS": "FRX", **os.environ}
        return (
            subprocess.Popen(arguments, stdin=subprocess.PIPE, env=environ) if arguments else None
        )
    except (OSError, ValueError):  # the program does not exist, or quotes do not match
        return None


def _write(text: str) -> None:
    """Write to standard output; ignore a reader that closes the pipe early (`| head`)."""
    try:
        write_output(text)
    except OutputFailed as exc:
        if str(exc):
            raise
