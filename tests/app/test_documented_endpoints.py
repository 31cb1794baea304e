"""The endpoint chapter lists the rows of the route table, and no others."""

import re
from pathlib import Path

from tests.routes import TABLE, make_table
from xetserve.app.route_table import Auth

CHAPTER = Path(__file__).parents[2] / "xetserve" / "docs" / "endpoints.md"
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}

# Path -> methods, token.
Endpoints = dict[str, tuple[set[str], str]]


def read_chapter(text: str) -> Endpoints:
    """Return the endpoints in the tables of the chapter."""
    found: Endpoints = {}
    for row, token in re.findall(r"^\| (`[A-Z]+`.*?) \| (.*?) \| ", text, re.MULTILINE):
        methods: set[str] = set()
        was_path = False
        for word in re.findall(r"`([^`]+)`", row):
            if word in METHODS:
                methods = {word} if was_path else {*methods, word}
            else:
                path = word.partition("?")[0].replace("\\|", "|")
                assert path not in found
                found[path] = methods, token
            was_path = word not in METHODS
    return found


def test_the_chapter_lists_the_rows_of_the_table() -> None:
    rows: Endpoints = {
        # That a segment has a character is not worth a mark in the chapter.
        route.pattern.replace("+}", "}"): (set(route.methods.split()), route.auth.value)
        for route in TABLE.routes
    }
    assert len(rows) == len(TABLE.routes)
    assert read_chapter(CHAPTER.read_text(encoding="utf-8")) == rows


def test_the_chapter_explains_every_kind_of_token() -> None:
    text = CHAPTER.read_text(encoding="utf-8").partition("## Tokens")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([a-zA-Z, ]+) \| ", text, re.MULTILINE)
    assert rows == ["Token", *rows[1:]]
    assert set(rows[1:]) == {auth.value for auth in Auth}


def test_the_chapter_tells_which_paths_need_no_token_when_it_is_optional() -> None:
    required = {route.pattern for route in TABLE.routes if route.auth is Auth.REQUIRED}
    anonymous = make_table(allow_anonymous=True).routes
    still = {route.pattern for route in anonymous if route.auth is Auth.REQUIRED}
    assert {pattern.split("/")[1] for pattern in required - still} == {"download", "download-hash"}


def test_a_row_is_read() -> None:
    rows = (
        "| `GET`, `HEAD` `/[x/\\|y/]{id}?a={b}` | none | one |\n"
        "| `PUT` `/a`; `POST` `/b`, `/c` | optional | two |\n"
    )
    assert read_chapter(rows) == {
        "/[x/|y/]{id}": ({"GET", "HEAD"}, "none"),
        "/a": ({"PUT"}, "optional"),
        "/b": ({"POST"}, "optional"),
        "/c": ({"POST"}, "optional"),
    }
