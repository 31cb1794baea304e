"""Relayed fields: which header fields pass between client and upstream (RFC 9110, 7.6)."""

import re
from collections.abc import Sequence
from typing import Final
from urllib.parse import unquote

from xetserve.http.messages import Headers

MAX_AGENT_SIZE: Final = 512  # characters of the client's User-Agent that are relayed

# Request fields that are relayed. The others concern this server alone, or it writes its own.
_REQUEST_FIELDS: Final = (
    "Accept", "Accept-Language", "Content-Type", "If-None-Match", "If-Modified-Since",
)  # fmt: skip
# Fields that go to the Hub with each request for a client: they say whether a download counts, and
# which trace the request belongs to (Trace Context, 3.2).
_MARKS: Final = {
    "X-HF-Download-Counter": re.compile(r"[0-9]{1,9}"),
    "traceparent": re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"),
}
# Response fields that are not relayed. They concern one connection (RFC 9110, 7.6.1) or its sender,
# or are wrong for our response, whose content is decoded and may be changed. Cookies and persistent
# browser policies belong to the Hub's own host.
_NOT_PASSED: Final = frozenset(
    (
        "connection", "keep-alive", "proxy-connection", "proxy-authenticate",
        "proxy-authentication-info", "te", "trailer", "transfer-encoding", "upgrade",
        "content-length", "content-encoding", "accept-ranges", "content-digest", "repr-digest",
        "date", "server", "via", "x-request-id", "x-powered-by",
        "set-cookie", "strict-transport-security", "alt-svc", "clear-site-data",
    )
)  # fmt: skip
_NOT_PASSED_PREFIXES: Final = ("access-control-", "x-xet-")
_REWRITTEN: Final = ("link", "location", "etag")
_NAMES: Final = {"etag": "ETag", "www-authenticate": "WWW-Authenticate"}
_XET_RELATIONS: Final = frozenset(("xet-auth", "xet-reconstruction-info"))
_LINK: Final = re.compile(r'<([^<>]*)>((?:"[^"]*"|[^",<])*)')
# The path and the query of an absolute URL.
_LOCATION: Final = re.compile(r"(?:https?:)?//[^/?#]*([^?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_RELATION: Final = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)


def extend_agent(own: str, headers: Headers) -> str:
    """Return our own User-Agent followed by the client's."""
    return f"{own} {(headers.get('user-agent') or '')[:MAX_AGENT_SIZE]}".strip()


def extend_via(headers: Headers, name: str) -> str:
    """Return the Via field for a message with these headers that the server `name` relays."""
    return ", ".join([*headers.get_all("via"), f"1.1 {name}"])


def has_passed(headers: Headers, name: str) -> bool:
    """Return whether the server `name` has relayed this message before.

    The field is split at commas and then at blanks. A regular expression search would start again
    at every character of a long word.
    """
    members = ",".join(headers.get_all("via")).split(",")
    return any(member.split(maxsplit=2)[1:2] == [name] for member in members)


def select_request_fields(headers: Headers) -> list[tuple[str, str]]:
    """Return the request fields that are relayed to the upstream unchanged."""
    return [(name, value) for name in _REQUEST_FIELDS if (value := headers.get(name)) is not None]


def select_marks(headers: Headers) -> list[tuple[str, str]]:
    """Return the well-formed fields that mark a request for the Hub and for logs."""
    return [
        (name, value)
        for name, pattern in _MARKS.items()
        if pattern.fullmatch(value := headers.get(name) or "")
    ]


def select_answer_fields(
    headers: Headers, bases: Sequence[str], base_url: str, path: str = ""
) -> list[tuple[str, str]]:
    """Return the response fields that are relayed to the client, without those that name Xet.

    Args:
        bases: base URLs of the upstream, without a slash at the end.
        base_url: this server's base URL, which replaces them in Location and Link.
        path: the path of the request; links to its other pages lead here, whatever host they name.
    """
    named = {name.strip().lower() for name in ",".join(headers.get_all("connection")).split(",")}
    fields = []
    for name, value in headers:
        name = name.lower()
        if name in named or name in _NOT_PASSED or name.startswith(_NOT_PASSED_PREFIXES):
            continue
        if name in _REWRITTEN:
            continue
        fields.append((_NAMES.get(name) or name.title(), value))
    etag = headers.get("etag")
    if etag is not None:
        # A strong entity-tag would be wrong: our bytes may differ from the upstream's (RFC 9110,
        # 8.8.1).
        fields.append(("ETag", etag if etag.startswith("W/") else f"W/{etag}"))
    location = headers.get("location")
    if location is not None:
        fields.append(("Location", move_url(location, bases, base_url)))
    links = rewrite_links(", ".join(headers.get_all("link")), bases, base_url, path)
    return [*fields, ("Link", links)] if links else fields


def rewrite_links(value: str, bases: Sequence[str], base_url: str, path: str = "") -> str:
    """Move the links of a Link field (RFC 8288) to base_url; drop those for Xet clients."""
    kept = []
    for url, parameters in _LINK.findall(value):
        if _XET_RELATIONS.isdisjoint(_find_relations(parameters)):
            kept.append(f"<{move_page(url, path, bases, base_url)}>{parameters.rstrip()}")
    return ", ".join(kept)


def find_link(value: str, relation: str) -> str | None:
    """Return the URL of the first link in a Link field that has this relation; None: no link."""
    links = _LINK.findall(value)
    return next((url for url, parameters in links if relation in _find_relations(parameters)), None)


def _find_relations(parameters: str) -> list[str]:
    found = _RELATION.search(parameters)
    return (found[1] or found[2] or "").lower().split() if found else []


def move_url(url: str, bases: Sequence[str], base_url: str) -> str:
    """Return a URL with its base replaced by base_url; unchanged if it has none of these bases."""
    for base in bases:
        if url.startswith(base) and url[len(base) : len(base) + 1] in ("", "/", "?", "#"):
            return base_url + url[len(base) :]
    return url


def move_page(url: str, path: str, bases: Sequence[str], base_url: str) -> str:
    """Return the URL of a page of a list with base_url in place of the upstream.

    The upstream may write another name of itself into it, a default port, or none at all. The page
    is the upstream's if its path is the one that was asked for.

    Args:
        path: of the request, encoded; "": none was asked for.
    """
    moved = move_url(url, bases, base_url)
    if moved != url or not path:
        return moved
    if url.startswith("?"):
        return f"{base_url}{path}{url}"
    found = _LOCATION.fullmatch(url)
    if found is None:
        return url
    for base in bases:
        prefix = base.partition("://")[2].partition("/")[1:]
        if unquote(found[1]) == "".join(prefix) + unquote(path):
            return f"{base_url}{path}{found[2]}"
    return url
