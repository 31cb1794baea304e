"""?checksum=sha256: answer with a line for `sha256sum -c` instead of the file."""

import hashlib
from contextlib import aclosing
from typing import Final

from xetserve.app.download.content import Content
from xetserve.app.download.representation import Representation
from xetserve.errors import IntegrityError, RequestError
from xetserve.http.digests import format_checksum_line
from xetserve.http.messages import Request, Response

MAX_HASHED_SIZE: Final = 16 * 1024 * 1024  # bytes of a file that is hashed if the Hub names no hash


def wants_checksum(request: Request) -> bool:
    """Return whether the client asks for the checksum.

    Raises:
        RequestError: 400, the client asks for another kind than sha256.
    """
    kind = request.query.get("checksum")
    if kind not in (None, "sha256"):
        raise RequestError(400, "checksum must be sha256")
    return kind is not None


async def answer_checksum(file: Representation, content: Content) -> Response:
    """Answer with the sha256 that the Hub names, or hash a small plain file if it names none.

    Raises:
        RequestError: 404, the Hub names no sha256, and the file is Xet, too large or of unknown
            size.
        UpstreamError: the Hub does not send the file.
        IntegrityError: the file does not have the size that the Hub named.
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
        raise IntegrityError(f"the file does not have the {size} bytes that the Hub named")
    return digest.hexdigest()
