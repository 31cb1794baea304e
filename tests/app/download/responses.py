"""What a response of the download service has in it."""

from xetserve.http.messages import Response


async def read(response: Response) -> bytes:
    """Read a body to its end, then close it."""
    if isinstance(response.body, bytes):
        return response.body
    try:
        return b"".join([b"".join(block) async for block in response.body])
    finally:
        await response.aclose()


def headers_of(response: Response) -> dict[str, str]:
    """Return the fields, each of which may stand once."""
    names = [name for name, _ in response.headers]
    assert len(names) == len(set(names))
    return dict(response.headers)
