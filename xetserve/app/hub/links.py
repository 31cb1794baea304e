"""Links to pages of the Hub, which people paste into tools: this server has the files only."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import quote

from xetserve.app.hub.paths import read_file_path
from xetserve.app.paths import parse_hub_repo
from xetserve.app.route_table import Call, MatchedPath
from xetserve.errors import RequestError
from xetserve.http.messages import Response
from xetserve.upstream.hub.entry import KINDS_BY_PLURAL

_PAGES: Final = ("tree", "blob", "resolve", "raw", "commits", "discussions", "viewer")
_MAX_SIZE: Final = 200  # characters of a revision and a folder that are repeated


def read_link_path(path: MatchedPath) -> str:
    """Check the path of a page about a file, and return the path of the file itself.

    Raises:
        RequestError: 400, 404, 414, as read_file_path.
    """
    read_file_path(path)
    values = path.values
    parts = [values[name] for name in ("kind", "owner", "name") if name in values]
    return "/".join(["", *parts, "resolve", values["revision"], values["path"]])


async def redirect_link(call: Call[str]) -> Response:
    """Redirect from the page about a file to the file."""
    _, mark, query = call.request.target.partition("?")
    location = f"{call.request.base_url}{call.target}{mark}{query}"
    return Response(307, [("Location", location), ("Cache-Control", "no-cache")])


def advise(segments: Sequence[str], prefix: str = "") -> str:
    """Return what works in place of a page about a repository; "": the path is not of one.

    For example, the path /o/n/tree/dev/d is the page of a folder, whose list is at
    /api/models/o/n/tree/dev/d.

    Args:
        segments: decoded; the first one starts no route.
        prefix: what clients' paths begin with.
    """
    kind = KINDS_BY_PLURAL.get(segments[0], "model")
    rest = [segment for segment in segments[segments[0] in KINDS_BY_PLURAL :] if segment]
    if not rest:
        return ""
    has_owner = len(rest) > 1 and (rest[1] not in _PAGES or "".join(rest[2:3]) in _PAGES)
    repo_id, page, revision = rest[: 1 + has_owner], rest[1 + has_owner :][:1], "main"
    if page and page[0] not in _PAGES:
        return ""
    if page == ["tree"]:
        revision = "/".join(rest[2 + has_owner :]) or revision
    try:
        repo = parse_hub_repo(repo_id, kind)
    except RequestError:
        return ""
    files, listing = f"{prefix}{repo.url_prefix}/resolve", f"{prefix}{repo.api_prefix}/tree"
    return (
        f"if {repo.id} is a repository, its files are at {files}/REVISION/PATH, "
        f"and {listing}/{quote(revision[:_MAX_SIZE])} lists them; "
    )
