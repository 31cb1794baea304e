"""`xetserve help`: the chapters of the documentation."""

import argparse
import re
from pathlib import Path

import pytest

from xetserve.commands import help as module
from xetserve.commands.help import DOCS, find_chapters, format_list, run_help, show, summarize
from xetserve.errors import ConfigError

ROOT = Path(__file__).parents[2]
# What GitHub renders beside the chapters.
OTHERS = [ROOT / "README.md", *(ROOT / ".github").glob("*.md"), ROOT / "bench" / "README.md"]


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "cache.md").write_text("# The disk cache\n\nIt keeps [chunks](a.md). More.\n")
    (folder / "tls.md").write_text("# TLS\n\nFor “operators”.\n", encoding="utf-8")
    (folder / "notes.txt").write_text("no chapter")
    monkeypatch.setattr(module, "find_chapters", lambda: find_chapters(folder))
    monkeypatch.setenv("COLUMNS", "80")
    return folder


def run(topic: str | None) -> int:
    return run_help(argparse.Namespace(topic=topic))


def test_the_list(docs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(None) == 0
    assert capsys.readouterr().out == (
        "cache             It keeps chunks.\n"
        "tls               For “operators”.\n"
        "\n"
        "Print a chapter: xetserve help TOPIC\n"
    )


@pytest.mark.parametrize("topic", ["tls", "tls.md"])
def test_a_chapter_is_printed_as_it_is(
    docs: Path, capsys: pytest.CaptureFixture[str], topic: str
) -> None:
    assert run(topic) == 0
    assert capsys.readouterr().out == "# TLS\n\nFor “operators”.\n"


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("cahce", r"unknown chapter 'cahce'; did you mean 'cache'\?$"),
        ("pull", r"unknown chapter 'pull'; `xetserve help` lists .* COMMAND --help`"),
        ("../docs/tls", "unknown chapter"),
        ("", "unknown chapter ''"),
    ],
)
def test_an_unknown_chapter(docs: Path, topic: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(topic)


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("# A\n\nOne\nline. Two.\n", "One line."),
        ("# A\n\nVersion 1.2 of it. Two.\n", "Version 1.2 of it."),
        ("# A\n\n| a | b |\n\n`code` and *more*\n", "`code` and *more*"),
        ("# A\n\n[cache](cache.md#x) keeps. `b`", "cache keeps."),
        ("# Only a heading\n", "Only a heading"),
    ],
)
def test_a_summary(text: str, summary: str) -> None:
    assert summarize(text) == summary


def test_the_list_fits_the_screen(tmp_path: Path) -> None:
    path = tmp_path / "long.md"
    path.write_text(f"# A\n\n{'word ' * 40}\n")
    lines = format_list({"long": path}, 60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[1].startswith(" " * 18 + "word")


# The pager


def test_a_pager_shows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shown"
    show("größe\n", f"cp /dev/stdin '{path}'")
    assert path.read_text(encoding="utf-8") == "größe\n"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("pager", ["", "/nowhere/less", "less 'x"])
def test_without_a_pager_it_is_plain(capsys: pytest.CaptureFixture[str], pager: str) -> None:
    show("text\n", pager)
    assert capsys.readouterr().out == "text\n"


def test_a_pager_that_reads_nothing_is_no_error() -> None:
    show("text\n" * 100_000, "true")


# The chapters themselves


CHAPTERS = find_chapters()
every_chapter = pytest.mark.parametrize("name", CHAPTERS)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def without_code(text: str) -> str:
    return re.sub(r"(?ms)^( *)```.*?^\1```$", "", text)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub makes of headings."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in HEADING.findall(without_code(text))
    }


def find_dead_links(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        file, _, anchor = target.partition("#")
        if "://" in file:
            continue
        found = path.parent / file if file else path
        if not found.exists() or (anchor and anchor not in anchors_of(found.read_text())):
            dead.append(target)
    return dead


@every_chapter
def test_a_chapter_opens_with_a_heading_and_a_sentence(name: str) -> None:
    text = CHAPTERS[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert summarize(text) != HEADING.findall(text)[0]


@pytest.mark.parametrize(
    "path", [*OTHERS, *CHAPTERS.values()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(path: Path) -> None:
    assert find_dead_links(path) == []


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("# A b\n\n[1](#a-b) [2](#no) [3](a.md#a-b) [4](b.md)\n```\n[5](c.md)\n```\n")
    assert find_dead_links(path) == ["#no", "b.md"]


def test_chapters_are_package_data() -> None:
    assert CHAPTERS
    assert '"docs/*.md"' in (DOCS.parents[1] / "pyproject.toml").read_text()
