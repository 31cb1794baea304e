"""Trailers on a socket: values that are known when the body has ended, or an end that never
comes.
"""

from collections.abc import AsyncGenerator

from tests.peers import connected, serving
from xetserve.http.messages import Block, Request, Response

GET = b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"


async def test_a_trailer_tells_what_the_body_has_found_out() -> None:
    sent: list[bytes] = []

    async def blocks() -> AsyncGenerator[Block, None]:
        for part in (b"he", b"llo"):
            sent.append(part)
            yield [part]

    async def handle(request: Request) -> Response:
        trailers = {"X-Sent": lambda: b"+".join(sent).decode()}
        return Response(200, body=blocks(), length=5, chunked=True, trailers=trailers)

    async with serving(handle) as listener, connected(listener.port) as client:
        await client.send(GET)
        data, how = await client.read_end()
    head, _, body = data.partition(b"\r\n\r\n")
    assert b"\r\nTrailer: X-Sent\r\n" in head
    assert body == b"2\r\nhe\r\n3\r\nllo\r\n0\r\nX-Sent: he+llo\r\n\r\n"
    assert how == "closed"


async def test_a_trailer_that_raises_cuts_the_response() -> None:
    async def blocks() -> AsyncGenerator[Block, None]:
        yield [b"hello"]

    def fail() -> str:
        raise ValueError("the hash is another one")

    async def handle(request: Request) -> Response:
        return Response(200, body=blocks(), trailers={"X-Verified": fail})

    async with serving(handle) as listener, connected(listener.port) as client:
        await client.send(GET)
        data, how = await client.read_end()
    assert data.endswith(b"5\r\nhello\r\n")
    assert how == "reset"
