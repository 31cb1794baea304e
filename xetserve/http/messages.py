"""Requests and responses as the application sees them.

A handler takes a Request and returns a Response; neither knows of sockets. A response's body is
bytes, or a Body that the connection pulls block by block. What has to happen around the blocks
(rates, turns, counting) is done by an observer, which the connection calls: no body is wrapped.
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol
from urllib.parse import parse_qsl

from xetserve.base.buffers import Buffer

# Buffers that are written in order, in one go. They must stay as they are until the next block is
# asked for, and may be reused from then on.
Block = Sequence[Buffer]


class Headers:
    """Header fields in order, looked up without regard to case."""

    __slots__ = ("_fields",)

    def __init__(self, fields: Iterable[tuple[str, str]] = ()) -> None:
        self._fields = [(name, value) for name, value in fields]

    @classmethod
    def from_raw(cls, fields: Iterable[tuple[bytes, bytes]]) -> "Headers":
        """Make from h11's byte pairs; values are Latin-1 on the wire (RFC 9110, 5.5)."""
        return cls((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a field."""
        wanted = name.lower()
        for field_name, value in self._fields:
            if field_name.lower() == wanted:
                return value
        return default

    def get_all(self, name: str) -> list[str]:
        """Give every value of a field, in order."""
        wanted = name.lower()
        return [value for field_name, value in self._fields if field_name.lower() == wanted]

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._fields)

    def __repr__(self) -> str:
        # Values may be tokens: only the names are fit to be printed.
        return f"Headers({', '.join(name for name, _ in self._fields)})"


class RequestBody(Protocol):
    """The body of a request, read from the socket as it is asked for."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Iterate over the pieces as they arrive."""
        ...

    async def read(self, limit: int) -> bytes:
        """Read it whole.

        Raises:
            RequestError: 413, more than limit bytes; 503, there is no room for it now.
        """
        ...

    def release(self) -> None:
        """Say that nobody holds what was read any more, before the request is answered."""
        ...


class EmptyBody:
    """The body of a request that has none."""

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
    """What became of a request, noted by whoever knows; times in seconds from the end of its head.

    status: of the answer.
    sent: body bytes that left.
    is_complete: whether the whole answer left.
    head_time: until the answer's status was known.
    first_byte_time: until the first body bytes had left; None: none did.
    total_time: until the answer's end.
    token: fingerprint of the client's token, never the token; None: it sent none.
    is_verified: whether the content's hash was checked to the end; None: it has none to check.
    upstream_bytes, cache_bytes: where the content came from; None: not known.
    cache_hits: ranges that the disk cache had; None: not known.
    route: what kind of request it was, see metrics.ROUTES.
    repo, file: what was asked for, where it is a file; None: not known.
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
    target: the request target, still percent-encoded; one that was received is normalized, see
        read_request.
    peer: the client's address, for logs; "" on a Unix socket.
    client: what the client is counted by: its address, in IPv6 its /64; "" on a Unix socket.
    secure: whether it came over TLS.
    record: what becomes of it.
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
    record: Record = field(default_factory=Record)

    @property
    def raw_path(self) -> str:
        """The path, percent-encoded, without the query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The query parameters; the last of several with one name counts."""
        return dict(self.query_pairs)

    @property
    def query_pairs(self) -> list[tuple[str, str]]:
        """The query parameters in order."""
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)

    @property
    def host(self) -> str:
        """The host, with port, that the client named; "localhost" for HTTP/1.0 without one."""
        return self.headers.get("host") or "localhost"

    @property
    def base_url(self) -> str:
        """How the client reaches us: scheme and host, without a slash at the end."""
        return f"{'https' if self.secure else 'http'}://{self.host}"


class Body(Protocol):
    """A streamed body. The next block is asked for only once the last one has left.

    A body that owns something from the start is a class, not a generator: closing a generator that
    was never started runs none of its code, so it would release nothing.
    """

    def __aiter__(self) -> AsyncIterator[Block]:
        return self

    async def __anext__(self) -> Block:
        """Return the next block."""
        ...

    async def aclose(self) -> None:
        """Release everything that the body holds, begun or not: it has no more blocks then.

        May be called again.
        """
        ...


class Observer(Protocol):
    """Accompanies a streamed body as it is sent, without touching it. The connection calls it.

    before_block and on_block alternate. A body that is never sent, as for HEAD, sees on_end only.
    """

    async def before_block(self) -> None:
        """Wait until the next block may be asked for; all before it have left."""
        ...

    def on_block(self, size: int) -> None:
        """Note a block of size bytes that is to be sent; size may be 0."""
        ...

    def on_end(self) -> None:
        """Note that the body is being closed, complete or not; called once."""
        ...


@dataclass(slots=True)
class Response:
    """One response.

    body: bytes, or blocks. A Body is closed whatever happens. If it raises, or ends before length
        bytes, the connection is reset: what the client has can then not be taken for complete.
    length: bytes of a streamed body where they are known. None: chunked, or ended by closing for an
        HTTP/1.0 client. With a body of bytes it is set only to answer HEAD without making the body.
    chunked: send chunked transfer-encoding to HTTP/1.1 clients although length is known, so that
        the end can be withheld. HEAD and HTTP/1.0 get Content-Length all the same.
    headers: without Content-Length, Transfer-Encoding, Connection and Date, which the connection
        writes.
    trailers: name -> what gives the value once the body has ended. They are sent only behind a
        chunked body; the head then announces their names (RFC 9110, 6.6.2). One that raises
        withholds the end, as a body does.
    observer: accompanies a streamed body; None: nobody does.
    """

    status: int
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes | Body = b""
    length: int | None = None
    chunked: bool = False
    trailers: dict[str, Callable[[], str]] = field(default_factory=dict)
    observer: Observer | None = None

    @property
    def content_length(self) -> int | None:
        """Bytes in the body, where they are known beforehand."""
        return (
            len(self.body) if isinstance(self.body, bytes) and self.length is None else self.length
        )

    @property
    def reason(self) -> str:
        """The usual phrase for the status."""
        try:
            return HTTPStatus(self.status).phrase
        except ValueError:
            return ""

    async def aclose(self) -> None:
        """Close a streamed body, whatever has become of it. May be called again."""
        observer, self.observer = self.observer, None
        if observer is not None:
            observer.on_end()
        if not isinstance(self.body, bytes):
            await self.body.aclose()


def json_response(status: int, value: object, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Answer with a JSON document."""
    text = json.dumps(value, ensure_ascii=False)
    # Half a surrogate pair has no UTF-8 form, but Python's escape for it is JSON's as well.
    body = text.encode(errors="backslashreplace") + b"\n"
    return Response(status, [("Content-Type", "application/json"), *headers], body)


def error_response(status: int, message: str, headers: Iterable[tuple[str, str]] = ()) -> Response:
    """Answer with {"error": message}, the one shape that errors have."""
    return json_response(status, {"error": message}, headers)


Handler = Callable[[Request], Awaitable[Response]]
