"""Pages for people: the repositories, the files of a folder, and a commit.

    /                               all repositories that the caller may see
    /{repo}[/tree/{rev}[/{path}]]   a folder; without a revision, the root of main
    /{repo}/commit/{id}             what a commit changed
    /{repo}/blob/{rev}/{path}       a redirect to the file
    /{repo}/discussions/{n}         the root of a pull request

Pages have no scripts, and what users have named goes through escape().
"""

import asyncio
from base64 import b64encode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from html import escape
from typing import Final
from urllib.parse import quote

from xetserve.base.sizes import format_size
from xetserve.http.messages import Request, Response
from xetserve.origin.api.auth import Gatekeeper, hub_error
from xetserve.origin.api.hub import find_commit, list_folder, take_page
from xetserve.origin.store.commits import REPO_TYPES, Commit, Entry
from xetserve.origin.store.repos import Repo, RepoStore

MAX_REFS: Final = 100  # links to branches and tags on a page

_PAGES: Final = ("tree", "blob", "commit", "discussions")
_STYLE: Final = """
:root { color-scheme: light dark; }
body {
  max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
}
h1 { font-size: 1.35rem; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; }
td { padding: .2rem 1rem .2rem 0; border-top: 1px solid #8884; overflow-wrap: anywhere; }
td + td { white-space: nowrap; text-align: right; font-variant-numeric: tabular-nums; }
pre { white-space: pre-wrap; }
"""
_STYLE_HASH: Final = b64encode(sha256(_STYLE.encode()).digest()).decode()
_POLICY: Final = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "img-src data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_PAGE: Final = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<p><a href="/">all repositories</a></p>
<h1>{title}</h1>
{content}
</body>
</html>
"""


class PagesApi:
    """Pages about repositories. The caller's rights to a repository are checked before."""

    def __init__(self, gatekeeper: Gatekeeper, repos: RepoStore) -> None:
        self._gatekeeper = gatekeeper
        self._repos = repos

    async def index(self, request: Request) -> Response:
        """Answer GET / with the repositories that the caller may see."""
        caller = self._gatekeeper.identify(request.headers)
        found = [
            repo
            for repo_type in REPO_TYPES.values()
            for repo in await self._repos.list_all(repo_type)
            if self._gatekeeper.may_read(caller, repo)
        ]
        page, headers = take_page(request, sorted(found, key=_url_of), _url_of)
        rows = []
        for repo in page:
            marks = [repo.type.name, *["private"] * repo.private, *["gated"] * bool(repo.gated)]
            info = await repo.load_commit_info(repo.refs["refs/heads/main"])
            rows.append((_link_repo(repo), ", ".join(marks), _format_time(info["date"])))
        content = _make_table(rows) if rows else "<p>There is no repository that you may see.</p>"
        return _make_response("xetserve origin", content + _link_next(headers))

    async def show(self, request: Request, repo: Repo, parts: Sequence[str]) -> Response:
        """Answer a page of a repository; parts follow its id."""
        match parts:
            case [] | [""]:
                return await self.tree(request, repo, "main", "")
            case ["tree", revision, *path]:
                return await self.tree(request, repo, revision, "/".join(path).strip("/"))
            case ["blob", revision, *path]:
                return Response(
                    302, [("Location", _make_url(repo, "resolve", revision, "/".join(path)))]
                )
            case ["discussions", number]:
                return await self.tree(request, repo, f"refs/pr/{number}", "")
            case ["commit", revision]:
                return await self.commit(request, repo, revision)
        raise hub_error(404, "no such page")

    async def tree(self, request: Request, repo: Repo, revision: str, folder: str) -> Response:
        """Answer GET /{id} and /{id}/tree/{rev}[/{path}] with a folder."""
        commit = await find_commit(repo, revision)
        await asyncio.to_thread(getattr, commit, "trees")  # hashes every folder, once
        items = list_folder(commit, folder, recursive=False)
        if not items and folder:
            raise hub_error(404, f"{folder} does not exist", "EntryNotFound", commit.id)
        page, headers = take_page(request, items, lambda i: i if isinstance(i, str) else i.path)
        rows = [_make_row(repo, revision, item) for item in page]
        path = [_link_folder(repo, revision, "", revision)]
        path += [_link_folder(repo, revision, part) for part in _list_parents(folder)]
        content = (
            f"<p>{' / '.join(path)}</p>\n"
            f"<p>{_link_commit(repo, commit.id)} {escape(commit.title)}</p>\n"
            f"{_make_table(rows)}{_link_next(headers)}\n<p>{_link_refs(repo)}</p>"
        )
        return _make_response(_name(repo), content)

    async def commit(self, request: Request, repo: Repo, revision: str) -> Response:
        """Answer GET /{id}/commit/{id} with what the commit changed."""
        commit = await find_commit(repo, revision)
        parent = await find_commit(repo, commit.parent) if commit.parent else None
        changes = sorted(_compare(commit, parent.entries if parent else {}))
        page, headers = take_page(request, changes, lambda change: change[0])
        rows = [
            (_link_file(repo, commit.id, path) if word != "removed" else escape(path), word)
            for path, word in page
        ]
        after = f", after {_link_commit(repo, parent.id)}" if parent else ""
        content = (
            f"<p>{commit.id}, by {escape(commit.author)}, {_format_time(commit.date)}{after}: "
            f"{_link_folder(repo, commit.id, '', 'all files')} of {_link_repo(repo)}</p>\n"
            f"<pre>{escape(commit.message)}</pre>\n"
            f"{_make_table(rows) if rows else '<p>No file differs.</p>'}{_link_next(headers)}"
        )
        return _make_response(f"{_name(repo)}: {commit.title}", content)


def is_page(parts: Sequence[str]) -> bool:
    """Return whether the parts of a path after a repository's id name a page of it."""
    return parts in ([], [""]) or (len(parts) > 1 and parts[0] in _PAGES)


def _compare(commit: Commit, before: dict[str, Entry]) -> Iterable[tuple[str, str]]:
    for path, entry in commit.entries.items():
        if not entry.is_same_content(before.get(path)):
            yield path, "changed" if path in before else "added"
    for path in before:
        if path not in commit.entries:
            yield path, "removed"


def _list_parents(folder: str) -> list[str]:
    """Return the paths of a folder and of those around it, without the root."""
    parts = folder.split("/") if folder else []
    return ["/".join(parts[:size]) for size in range(1, len(parts) + 1)]


def _make_row(repo: Repo, revision: str, item: Entry | str) -> tuple[str, str]:
    if isinstance(item, str):
        return _link_folder(repo, revision, item) + "/", ""
    name = item.path.rpartition("/")[2]
    return _link_file(repo, revision, item.path, name), format_size(item.size)


def _make_table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table of cells that are HTML."""
    lines = ("".join(f"<td>{cell}</td>" for cell in row) for row in rows)
    return "<table>\n" + "".join(f"<tr>{line}</tr>\n" for line in lines) + "</table>"


def _make_url(repo: Repo, what: str, revision: str, path: str = "") -> str:
    # A name from JSON may have half a surrogate pair.
    parts = (quote(part, safe, errors="replace") for part, safe in ((revision, ""), (path, "/")))
    return f"{repo.url_path}/{what}/{'/'.join(parts)}".rstrip("/")


def _link(url: str, text: str) -> str:
    return f'<a href="{escape(url)}">{escape(text)}</a>'


def _link_repo(repo: Repo) -> str:
    return _link(repo.url_path, _name(repo))


def _link_folder(repo: Repo, revision: str, folder: str, text: str | None = None) -> str:
    return _link(_make_url(repo, "tree", revision, folder), text or folder.rpartition("/")[2])


def _link_file(repo: Repo, revision: str, path: str, text: str | None = None) -> str:
    return _link(_make_url(repo, "resolve", revision, path), text or path)


def _link_commit(repo: Repo, commit_id: str) -> str:
    return _link(_make_url(repo, "commit", commit_id), commit_id[:8])


def _link_refs(repo: Repo) -> str:
    names = [ref.removeprefix("refs/heads/").removeprefix("refs/tags/") for ref in repo.refs]
    return ", ".join(_link_folder(repo, name, "", name) for name in names[:MAX_REFS])


def _link_next(headers: Iterable[tuple[str, str]]) -> str:
    """Return a link to the next page, if take_page made one."""
    for _, value in headers:
        return f"\n<p>{_link(value[1:].partition('>')[0], 'more')}</p>"
    return ""


def _format_time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _name(repo: Repo) -> str:
    return repo.url_path.removeprefix("/")


def _url_of(repo: Repo) -> str:
    return repo.url_path


def _make_response(title: str, content: str) -> Response:
    page = _PAGE.format(title=escape(title), style=_STYLE, content=content)
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", _POLICY),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    ]
    return Response(200, headers, page.encode(errors="replace"))
