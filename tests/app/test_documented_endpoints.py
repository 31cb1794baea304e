"""The endpoint chapter lists the paths and methods that the application answers, and no others."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from tests.peers import open_pool
from tests.waiting import PATIENCE
from xetserve.app.application import Application
from xetserve.app.download.service import Upstreams
from xetserve.app.hub.xet_mode import XetMode
from xetserve.http.messages import Headers, Request
from xetserve.metrics.catalogue import ROUTES
from xetserve.pipeline.engine import Engine
from xetserve.pipeline.flow.budget import ByteBudget
from xetserve.pipeline.reader import ReadLimits
from xetserve.upstream.cas.client import CasClient
from xetserve.upstream.hub.client import HubClient
from xetserve.upstream.retry import RetryPolicy
from xetserve.xet.signing import KEY_SIZE, Sealer

SEALER = Sealer(bytes(KEY_SIZE))
CHAPTER = Path(__file__).parents[2] / "xetserve" / "docs" / "endpoints.md"
# What stands for the placeholders of the chapter.
VALUES = {
    "id": "o/n", "owner": "o", "repo": "n", "revision": "main", "path": "d/a.bin", "tag": "Q4",
    "hash": "a" * 64, "sha256": "b" * 64, "digest": "b" * 64, "commit": "c" * 40,
}  # fmt: skip
ELLIPSES = {"/api/…": "/api/models/o/n", "…/objects/": "/o/n.git/info/lfs/objects/"}
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE"}


def expand(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern of the chapter stands for."""
    path = pattern.partition("?")[0].replace("\\|", "|")
    for short, long in ELLIPSES.items():
        path = path.replace(short, long)
    choice = re.search(r"\[([^]]*)]|\{([^}]*\|[^}]*)}", path)
    if choice is None:
        yield re.sub(r"\{(\w+)}", lambda found: VALUES[found[1]], path)
        return
    either = ["", *choice[1].split("|")] if choice[1] is not None else choice[2].split("|")
    for text in either:
        yield from expand(path[: choice.start()] + text + path[choice.end() :])


def read_chapter(text: str) -> dict[str, set[str]]:
    """Return the methods of each path in the first columns of the tables."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in re.findall(r"^\| (`[A-Z]+`.*?) \| ", text, re.MULTILINE):
        methods: set[str] = set()
        was_path = False
        for word in re.findall(r"`([^`]+)`", row):
            if word in METHODS:
                methods = {word} if was_path else {*methods, word}
            else:
                for path in expand(word):
                    found[path] |= methods
            was_path = word not in METHODS
    return found


async def ask_for_methods() -> tuple[dict[str, set[str]], set[str]]:
    """Ask for every documented path by a method that none has.

    Returns: the methods that the answers name, and the routes that were counted.
    """
    allowed: dict[str, set[str]] = {}
    routes = set()
    policy = RetryPolicy(time_limit=PATIENCE)
    async with open_pool() as pool:
        upstreams = Upstreams(
            HubClient(pool, "http://127.0.0.1:1", timeout=PATIENCE, policy=policy),
            Engine(
                CasClient(pool, timeout=PATIENCE, policy=policy),
                ByteBudget(1 << 24),
                policy=policy,
                limits=ReadLimits(stall_timeout=PATIENCE, gap_timeout=PATIENCE),
            ),
            "hash/repo",
        )
        app = Application(upstreams, allow_anonymous=True, mode=XetMode("native"), sealer=SEALER)
        for path in read_chapter(CHAPTER.read_text(encoding="utf-8")):
            request = Request("PATCH", path, Headers([("host", "localhost")]))
            response = await app.handle(request)
            names = Headers(response.headers).get("allow") or str(response.status)
            allowed[path] = set(names.split(", ")) - {"OPTIONS"}
            routes.add(request.record.route)
    return allowed, routes


async def test_the_chapter_names_the_methods_of_every_path() -> None:
    allowed, _ = await ask_for_methods()
    assert len(allowed) > 30
    assert allowed == read_chapter(CHAPTER.read_text(encoding="utf-8"))


async def test_the_chapter_names_every_route() -> None:
    _, routes = await ask_for_methods()
    assert routes == set(ROUTES) - {"options", "other"}


def test_a_row_is_read() -> None:
    rows = "| `GET`, `HEAD` `/[x/]{id}?a={b}` | one |\n| `PUT` `/a`; `POST` `/b`, `/c` | two |\n"
    assert read_chapter(rows) == {
        "/o/n": {"GET", "HEAD"},
        "/x/o/n": {"GET", "HEAD"},
        "/a": {"PUT"},
        "/b": {"POST"},
        "/c": {"POST"},
    }
