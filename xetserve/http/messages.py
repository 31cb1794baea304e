"""Requests and responses as the application sees them.

A handler takes a Request and returns a Response; neither depends on sockets. The body of a response
is bytes, or a Body from which the connection pulls block by block. The connection calls an observer
around each block for rates, turns and counting, so no body needs a wrapper.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl

from xetserve.base.buffers import Buffer

# Buffers that are written together, in order. They must not change until the connection requests
# the next block; then they may be reused.
Block = Sequence[Buffer]


class Headers:
    """Header fields in order; names are compared without regard to case."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = [(name, value) for name, value in fields]

    @classmethod
    def from_raw(cls, fields: Iterable[tuple[bytes, bytes]]) -> "Headers":
        """Make headers from h11's byte pairs; values are decoded as Latin-1 (RFC 9110, 5.5)."""
        return cls((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a field; default if it is absent."""
        wanted = name.lower()
        for field_name, value in self._fields:
            if field_name.lower() == wanted:
                return value
        return default

    def get_all(self, name: str) -> list[str]:
        """Return all values of a field, in order."""
        wanted = name.lower()
        return [value for field_name, value in self._fields if field_name.lower() == wanted]

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __repr__(self) -> str:
        # Values may be tokens, so only the names are shown.
        return f"Headers({', '.join(name for name, _ in self._fields)})"


class RequestBody(Protocol):
    """The body of a request, read from the socket on demand."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as they arrive."""
        ...

    async def read(self, limit: int) -> bytes:
        """Read the whole body.

        Raises:
            RequestError: 413, the body has more than limit bytes; 503, the server has no memory
                left for request bodies.
        """
        ...

    def release(self) -> None:
        """Release the memory of the read body early, before the request is answered."""
        ...


class EmptyBody:
    """The body of a request without a body."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        return
        yield b""

    async def read(self, limit: int) -> bytes:
        return b""

    def release(self) -> None:
        pass


@dataclass(slots=True)
class Record:
    """The outcome of a request, for logs and metrics. Times are seconds from the end of its head.

    status: of the response.
    sent: body bytes sent.
    is_complete: whether the whole response was sent.
    head_time: until the status of the response was known.
    first_byte_time: until the first body bytes were sent; None: none were sent.
    total_time: until the end of the response.
    token: fingerprint of the client's token, never the token; None: the client sent none.
    is_verified: whether the content matched its hash to the end; None: it has no hash.
    upstream_bytes, cache_bytes: content bytes from each source; None: unknown.
    cache_hits: ranges found in the disk cache; None: unknown.
    route: the kind of request, see metrics.ROUTES.
    repo, file: the requested repository and path; None: unknown, or not a file.
    """

    status: int = 0
    sent: int = 0
    is_complete: bool = False
    head_time: float = 0.0
    first_byte_time: float | None = None
    total_time: float = 0.0
    token: str | None = None
    is_verified: bool | None = None
    upstream_bytes: int | None = None
    cache_bytes: int | None = None
    cache_hits: int | None = None
    route: str = "other"
    repo: str | None = None
    file: str | None = None


@dataclass(slots=True)
class Request:
    """One request.

    method: as sent, upper case by convention.
    target: the request target, percent-encoded; normalize_target was applied to a received one.
    peer: the client's address, for logs; "" on a Unix socket.
    client: the client key for limits: the address, in IPv6 its /64; "" on a Unix socket.
    secure: whether the client uses TLS.
    prefix: what the client's paths begin with, and target does not: "" or a path without a slash at
        its end.
    record: the outcome, filled in while the request is served.
    for_operators: whether it came to the address for operators.
    """

    method: str
    target: str
    headers: Headers = field(default_factory=Headers)
    http_version: str = "1.1"
    body: RequestBody = field(default_factory=EmptyBody)
    request_id: str = ""
    peer: str = ""
    client: str = ""
    secure: bool = False
    prefix: str = ""
    record: Record = field(default_factory=Record)
    for_operators: bool = False

    @property
    def raw_path(self) -> str:
        """Return the path, percent-encoded, without the query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """Return the query parameters; the last of several with the same name counts."""
        return dict(self.query_pairs)

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        """Return the query parameters in order."""
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def host(self) -> str:
        """Return the Host field, with its port; "localhost" for HTTP/1.0 without one."""
        return self.headers.get("host") or "localhost"

    @property
    def base_url(self) -> str:
        """Return the client's URL of this server: scheme, host, prefix, no slash at the end."""
        return f"{'https' if self.secure else 'http'}://{self.host}{self.prefix}"


class Body(Protocol):
    """A streamed body. The connection requests a block only after the last one was sent.

    A body that holds resources from the start must be a class, not a generator: closing a generator
    that was never started runs none of its code, so it would release nothing.
    """

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        """Return the next block."""
        ...

    async def aclose(self) -> None:
        """Release the resources of the body, started or not; it has no more blocks afterwards.

        It may be called several times.
        """
        ...


class Observer(Protocol):
    """An observer of a streamed body, which the connection calls as it sends the body.

    before_block and on_block alternate. For a body that is never sent, as for HEAD, only on_end is
    called.
    """

    async def before_block(self) -> None:
        """Wait until the next block may be requested; all blocks before it were sent."""
        ...

    def on_block(self, size: int) -> None:
        """Record a block of size bytes that will be sent; size may be 0."""
        ...

    def on_end(self) -> None:
        """Record that the body is being closed, complete or not; called once."""
        ...


@dataclass(slots=True)
class Response:
    """One response.

    body: bytes, or a Body, which is always closed. If a Body raises or ends before length bytes,
        the connection is reset, so that the client does not take a partial body for complete.
    length: bytes in a streamed body. None: unknown, the body is chunked, or ends with the
        connection of an HTTP/1.0 client. With bytes it is set only for HEAD, without a body.
    chunked: use chunked transfer-encoding for HTTP/1.1 clients although length is known, so that
        an error can withhold the end. HEAD and HTTP/1.0 still get Content-Length.
    headers: without Content-Length, Transfer-Encoding, Connection and Date, which the connection
        writes.
    trailers: name -> function that returns the value after the body has ended. Only a chunked body
        has trailers; the head announces their names (RFC 9110, 6.6.2). A function that raises
        withholds the end, as a failing body does.
    observer: called while a streamed body is sent; None: there is none.
    is_live: the body has events that come now and then. The head is sent at once, and the response
        ends when the server drains, because the client would wait for ever otherwise.
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | Body = b""
    length: int | None = None
    chunked: bool = False
    trailers: dict[str, Callable[[], str]] = field(default_factory=dict)
    observer: Observer | None = None
    is_live: bool = False

    @property
    def content_length(self) -> int | None:
        """Return the bytes in the body; None: unknown."""
        return (
            len(self.body) if isinstance(self.body, bytes) and self.length is None else self.length
        )

    @property
    def reason(self) -> str:
        """Return the standard reason phrase of the status; "" if it has none."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""

    async def aclose(self) -> None:
        """Close a streamed body, sent or not. It may be called several times."""
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.on_end()
        if not isinstance(self.body, bytes):
            await self.body.aclose()


def json_response(status: int, value: object, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Return a response with a JSON document."""
    text = json.dumps(value, ensure_ascii=False)
    # A lone surrogate has no UTF-8 form; Python's backslash escape for it is also valid JSON.
    body = text.encode(errors="backslashreplace") + b"\n"
    return Response(status, [("Content-Type", "application/json"), *headers], body)


def error_response(status: int, message: str, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Return an error response; all errors have the form {"error": message}."""
    return json_response(status, {"error": message}, headers)


Handler = Callable[[Request], Awaitable[Response]]
