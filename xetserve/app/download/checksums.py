"""?checksum=sha256: a line for `sha256sum -c` in place of the file."""

import hashlib
from contextlib import aclosing
from typing import Final

from xetserve.app.download.content import Content
from xetserve.app.download.representation import Representation
from xetserve.errors import IntegrityError, RequestError
from xetserve.http.digests import format_checksum_line
from xetserve.http.messages import Request, Response

MAX_HASHED_SIZE: Final = 16 * 1024 * 1024  # bytes that are read for a checksum that nobody names


def wants_checksum(request: Request) -> bool:
    """Return whether the checksum is asked for.

    Raises:
        RequestError: 400, of a kind that there is none of.
    """
    kind = request.query.get("checksum")
    if kind not in (None, "sha256"):
        raise RequestError(400, "checksum must be sha256")
    return kind is not None


async def answer_checksum(file: Representation, content: Content) -> Response:
    """Return the checksum that the Hub names; that of a small plain file is made from its bytes.

    Raises:
        RequestError: 404, there is none to be had.
    """
    sha256 = file.sha256
    if sha256 is None:
        if file.file_hash is not None or file.size is None or file.size > MAX_HASHED_SIZE:
            raise RequestError(404, "the Hub names no sha256 of this file")
        sha256 = await _hash(content, file.size)
    headers = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        *file.make_cache_fields(None),
    ]
    return Response(200, headers, format_checksum_line(sha256, file.name).encode())


async def _hash(content: Content, size: int) -> str:
    digest = hashlib.sha256()
    left = size
    opened = await content.open(None)
    async with aclosing(opened.body) as blocks:
        async for block in blocks:
            for buffer in block:
                digest.update(buffer)
                left -= len(buffer)
            if left < 0:
                break
    if left:
        raise IntegrityError(f"the file has not the {size} bytes that the Hub named")
    return digest.hexdigest()
