"""A table of routes: from a path to the methods that it takes, its token and its handler.

A pattern is a path with placeholders. They stand for segments as they were sent, percent-encoded:

    {revision}         one segment, which may be empty
    {hash+}            one segment of at least one character
    {commit}           one segment of 40 hex digits
    {path...}          all that is left, one segment or more
    {id}               owner/name or a name alone: the values "owner" and "name", or "name",
                       which may be owner%2Fname
    {models|spaces}    one of these words: the value "kind"
    [models/|spaces/]  likewise, or nothing
    /api/.../refs      a question to the Hub about its verb "refs"; /api/...: about any other one

"/[datasets/|spaces/]{id}/raw/{revision}/{path...}" matches "/datasets/squad/raw/main/a/b%20c" with
the values kind=datasets, name=squad, revision=main, path=a/b%20c.

A path is cut into segments once. Only patterns with the same first segment, or without a fixed one,
are compared with it, segment by segment, so the work is proportional to the path's length.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar

from xetserve.app.paths import decode_segment, split_path
from xetserve.errors import RequestError, XetserveError
from xetserve.http.messages import Request, Response
from xetserve.upstream.hub.entry import KINDS_BY_PLURAL

T = TypeVar("T")

_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH")
_WRITES: Final = ("POST", "PUT", "DELETE", "PATCH")
# First segments that are never an owner: they start routes, or stand before an id.
_NOT_OWNERS: Final = frozenset({"api", "download", "datasets", "spaces", "kernels", "buckets"})
_QUESTION: Final = "/api/..."
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_OPTION: Final = re.compile(r"\[([^][]*)\]")
_SEGMENT: Final = re.compile(r"\{([a-z|]+)(\+?)\}(.*)")
_REST: Final = re.compile(r"\{([a-z]+)\.\.\.\}")


class Auth(Enum):
    """Which token a route takes; the value is its name in the documentation."""

    NONE = "none"
    OPTIONAL = "optional"  # a Hub token
    BASIC = "optional, or by Basic"  # a Hub token, or a password with it
    REQUIRED = "required"  # a Hub token
    CAS = "CAS token"  # sealed by this server; the handler opens it
    OPERATOR = "operator"  # the handler compares it, if the settings ask for it


@dataclass(frozen=True, slots=True)
class MatchedPath:
    """A path, and what the placeholders of its pattern stand for; all percent-encoded."""

    raw: str
    values: Mapping[str, str]

    def decode(self, name: str) -> list[str]:
        """Return the decoded segments that a placeholder stands for.

        Raises:
            RequestError: 400, see decode_segment.
        """
        return [decode_segment(segment) for segment in self.values[name].split("/")]


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request on its way to a handler.

    target: what the route's read has made of the path.
    token: the Hub token; None: the client has sent none, or the route takes none.
    """

    request: Request
    target: T
    token: str | None


@dataclass(frozen=True, slots=True)
class Route(Generic[T]):
    """A row of the table.

    name: in metrics and logs, one of metrics.catalogue.ROUTES.
    methods: separated by blanks; OPTIONS is allowed everywhere.
    pattern: as above.
    read: makes the target of the path; raises RequestError if the path is malformed.
    refuse: makes the response to an error of the handler, where it is not the usual one.
    vary: request fields that every response depends on.
    no_writes: why methods that change something are refused with 403; "": they get the usual 405.
    """

    name: str
    methods: str
    pattern: str
    auth: Auth
    read: Callable[[MatchedPath], T]
    handler: Callable[[Call[T]], Awaitable[Response]]
    refuse: Callable[[XetserveError, Request], Response] | None = None
    vary: tuple[str, ...] = ()
    no_writes: str = ""

    @property
    def allowed(self) -> tuple[str, ...]:
        """Return the methods for Allow."""
        return (*self.methods.split(), "OPTIONS")


class RouteTable:
    """Routes in order; the first one that matches a path wins.

    An id is read as owner/name wherever a route matches then: "/a/resolve/raw/main/b" is a raw file
    of a/resolve, not the file main/b of a.

    Args:
        find_verb: returns the verb of a path below /api/, "" if it has no known verb.
        advise: returns what may be meant by a path that has no route, and may begin with the id
            of a repository; from its decoded segments, and what clients' paths begin with.
    """

    def __init__(
        self,
        routes: Sequence[Route[Any]],
        find_verb: Callable[[str], str],
        advise: Callable[[Sequence[str], str], str] = lambda _, __: "",
    ) -> None:
        self.routes = tuple(routes)
        self._find_verb = find_verb
        self._advise = advise
        self._questions: dict[str, Route[Any]] = {}
        readings: list[_Reading] = []
        for route in routes:
            if route.pattern.startswith(_QUESTION):
                verb = route.pattern.removeprefix(_QUESTION)[1:].partition("/")[0]
                self._questions[verb] = route
            else:
                readings += _compile(route)
        readings.sort(key=lambda reading: reading.is_name_alone)
        words = _NOT_OWNERS.union(*(reading.segments[0].words for reading in readings))
        self._by_first = {
            word: [each for each in readings if each.segments[0].may_be_first(word)]
            for word in words
        }
        self._others = [each for each in readings if not each.segments[0].words]

    def match(self, raw_path: str, prefix: str = "") -> tuple[Route[Any], MatchedPath]:
        """Return the route of a path.

        Args:
            prefix: what clients' paths begin with, see Request; for the words of an error.

        Raises:
            RequestError: 404, the path has no route; 400, the path is malformed, too.
        """
        segments = raw_path[1:].split("/")
        for reading in self._by_first.get(segments[0], self._others):
            values = reading.read(segments)
            if values is not None:
                return reading.route, MatchedPath(raw_path, values)
        if len(segments) > 1 and segments[0] == "api" and self._questions:
            try:
                verb = self._find_verb(raw_path)
            except RequestError:  # the route's reader raises it again
                verb = ""
            route = self._questions.get(verb) or self._questions[""]
            return route, MatchedPath(raw_path, {})
        decoded = split_path(raw_path)
        may_be_id = segments[0] not in self._by_first or segments[0] in KINDS_BY_PLURAL
        advice = self._advise(decoded, prefix) if may_be_id else ""
        raise RequestError(
            404, f"there is nothing at this path; {advice}{prefix}/ lists the paths of this server"
        )


def no_target(_: MatchedPath) -> None:
    """Read a path without placeholders: it has no target."""


def check_method(
    request: Request, allowed: Sequence[str] = ("GET", "HEAD"), no_writes: str = ""
) -> None:
    """Check that a route allows the method of a request.

    Args:
        no_writes: see Route.

    Raises:
        RequestError: 405 with Allow, another route may allow it; 403, it would change something;
            501, it is not a method (RFC 9110, 9.1; methods are case-sensitive).
    """
    if request.method not in _METHODS:
        raise RequestError(501, "unknown method")
    if no_writes and request.method in _WRITES and request.method not in allowed:
        raise RequestError(403, no_writes)
    if request.method not in allowed:
        names = ", ".join(allowed)
        raise RequestError(405, f"this path allows only {names}", [("Allow", names)])


class _Segment(NamedTuple):
    """A segment of a pattern, which a segment of a path has to match.

    name: the name of its value; "": it has no value.
    words: the texts that it may have; empty: any text.
    is_filled: it must not be empty.
    suffix: what follows the value in the segment.
    """

    name: str
    words: frozenset[str] = frozenset()
    is_filled: bool = False
    suffix: str = ""

    def may_be_first(self, word: str) -> bool:
        """Return whether a path may start with this, and with the word."""
        return word in self.words or (not self.words and word not in _NOT_OWNERS)

    def read(self, segment: str) -> str | None:
        """Return the value of a segment, None if it does not match."""
        if self.words:
            return segment if segment in self.words else None
        if not segment.endswith(self.suffix) or (self.is_filled and not segment):
            return None
        if self.name == "owner" and "%2F" in segment.upper():
            return None  # the whole id is in the segment
        if self.name == "commit" and not _COMMIT.fullmatch(segment):
            return None
        return segment.removesuffix(self.suffix)


class _Reading(NamedTuple):
    """One way to read a pattern.

    segments: the first segments of the path, in order.
    rest: the name of what follows them; "": nothing may follow.
    is_name_alone: the id is read as a name without an owner.
    """

    route: Route[Any]
    segments: tuple[_Segment, ...]
    rest: str
    is_name_alone: bool

    def read(self, segments: Sequence[str]) -> dict[str, str] | None:
        """Return the values of a path, None if it does not match."""
        size = len(self.segments)
        if not (len(segments) > size if self.rest else len(segments) == size):
            return None
        values = {}
        for wanted, segment in zip(self.segments, segments, strict=False):
            value = wanted.read(segment)
            if value is None:
                return None
            if wanted.name:
                values[wanted.name] = value
        if self.rest:
            values[self.rest] = "/".join(segments[size:])
        return values


def _compile(route: Route[Any]) -> Iterator[_Reading]:
    """Yield every way to read a pattern."""
    for pattern in _choose_options(route.pattern):
        for text, is_name_alone in _choose_ids(pattern):
            *parts, last = text[1:].split("/")
            rest = _REST.fullmatch(last)
            if rest is None:
                parts.append(last)
            segments = tuple(map(_read_segment, parts))
            yield _Reading(route, segments, rest[1] if rest else "", is_name_alone)


def _choose_options(pattern: str) -> Iterator[str]:
    """Yield a pattern with and without its optional words."""
    option = _OPTION.search(pattern)
    if option is not None:
        words = option[1].replace("/", "")
        yield pattern.replace(option[0], f"{{{words}}}/")
    yield _OPTION.sub("", pattern)


def _choose_ids(pattern: str) -> Iterator[tuple[str, bool]]:
    """Yield a pattern with an owner/name and with a name alone for its id."""
    if "{id}" in pattern:
        yield pattern.replace("{id}", "{owner}/{name}"), False
        yield pattern.replace("{id}", "{name}"), True
    else:
        yield pattern, False


def _read_segment(text: str) -> _Segment:
    """Read a segment of a pattern."""
    found = _SEGMENT.fullmatch(text)
    if found is None:
        return _Segment("", frozenset({text}))
    name, mark, suffix = found.groups()
    if "|" in name:
        return _Segment("kind", frozenset(name.split("|")))
    return _Segment(name, is_filled=mark == "+", suffix=suffix)
