"""What passes through a server between client and upstream: who has asked, by which way, and what
is said of an answer (RFC 9110, 7.6)."""

import re
from collections.abc import Sequence
from typing import Final

from xetserve.http.messages import Headers

MAX_AGENT_SIZE: Final = 512  # characters of a client's User-Agent that are passed on

# Of a client's request; the rest is between it and us, or written anew.
_REQUEST_FIELDS: Final = (
    "Accept", "Accept-Language", "Content-Type", "If-None-Match", "If-Modified-Since",
)  # fmt: skip
# Of an answer, these are about one connection (RFC 9110, 7.6.1), about its sender, or not true of
# what we send: the content is decoded, and may be changed. Cookies and lasting orders to browsers
# are for the Hub's own host.
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
_RELATION: Final = re.compile(r';\s*rel\s*=\s*(?:"([^"]*)"|([^\s;,"]+))', re.IGNORECASE)


def extend_agent(own: str, headers: Headers) -> str:
    """Return a User-Agent of ours with the client's behind it."""
    return f"{own} {(headers.get('user-agent') or '')[:MAX_AGENT_SIZE]}".strip()


def extend_via(headers: Headers, name: str) -> str:
    """Return the Via of a message that has come with these headers, and that `name` passes on."""
    return ", ".join([*headers.get_all("via"), f"1.1 {name}"])


def has_passed(headers: Headers, name: str) -> bool:
    """Check whether a message was passed on by `name` before.

    Members are cut at their commas and then at their blanks: a pattern that is searched for would
    begin again at every character of a long word.
    """
    members = ",".join(headers.get_all("via")).split(",")
    return any(member.split(maxsplit=2)[1:2] == [name] for member in members)


def select_request_fields(headers: Headers) -> list[tuple[str, str]]:
    """Return the fields of a client's request that go to the upstream as they are."""
    return [(name, value) for name in _REQUEST_FIELDS if (value := headers.get(name)) is not None]


def select_answer_fields(
    headers: Headers, bases: Sequence[str], base_url: str
) -> list[tuple[str, str]]:
    """Return the fields of an upstream's answer that go to the client, without a word of Xet.

    Args:
        bases: what the upstream's URLs start with, without a slash at the end.
        base_url: what takes their place, so that the client comes back to us.
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
        # Strong tags are for bytes that are the upstream's own (RFC 9110, 8.8.1).
        fields.append(("ETag", etag if etag.startswith("W/") else f"W/{etag}"))
    location = headers.get("location")
    if location is not None:
        fields.append(("Location", move_url(location, bases, base_url)))
    links = rewrite_links(", ".join(headers.get_all("link")), bases, base_url)
    return [*fields, ("Link", links)] if links else fields


def rewrite_links(value: str, bases: Sequence[str], base_url: str) -> str:
    """Let the links of a Link field (RFC 8288) lead to us; those for Xet clients are left out."""
    kept = []
    for url, parameters in _LINK.findall(value):
        if _XET_RELATIONS.isdisjoint(_find_relations(parameters)):
            kept.append(f"<{move_url(url, bases, base_url)}>{parameters.rstrip()}")
    return ", ".join(kept)


def find_link(value: str, relation: str) -> str | None:
    """Return the URL of the first link with a relation, of a Link field."""
    links = _LINK.findall(value)
    return next((url for url, parameters in links if relation in _find_relations(parameters)), None)


def _find_relations(parameters: str) -> list[str]:
    found = _RELATION.search(parameters)
    return (found[1] or found[2] or "").lower().split() if found else []


def move_url(url: str, bases: Sequence[str], base_url: str) -> str:
    """Put base_url in the place of the base that a URL starts with; others stay as they are."""
    for base in bases:
        if url.startswith(base) and url[len(base) : len(base) + 1] in ("", "/", "?", "#"):
            return base_url + url[len(base) :]
    return url
