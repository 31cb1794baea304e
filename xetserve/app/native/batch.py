"""Collect the reconstructions of several files for one answer, with the client's token for each."""

import asyncio
from typing import Final

from xetserve.errors import FormatError, RangeUnsatisfiable, RequestError, UpstreamTooLarge
from xetserve.http.messages import Request
from xetserve.upstream.cas.source import Access, CasSource
from xetserve.xet.batch import MAX_BATCH_SIZE, parse_batch, parse_batch_names
from xetserve.xet.reconstruction import ByteRange, Reconstruction

MAX_ASKED: Final = 4  # requests to the CAS at a time
MAX_TERMS: Final = 40_000  # of all files in an answer; one file alone may have as many
MAX_RANGES: Final = 10_000  # fetch ranges, each of which has a URL in the answer
_ALL: Final = ByteRange(0, 2**53)  # the CAS cuts it to the size of the file
_NOTHING: Final = Reconstruction(0, (), {})


async def read_batch(request: Request) -> list[bytes]:
    """Return the file hashes that a request names, in its body or, with GET, as ?file_id=.

    Raises:
        RequestError: 400, there is none, too many, or one is malformed; 413, the body is too long.
    """
    try:
        if request.method == "POST":
            hashes = parse_batch(await request.body.read(MAX_BATCH_SIZE))
            request.body.release()
            return hashes
        names = [value for name, value in request.query_pairs if name == "file_id"]
        if not names:
            raise FormatError("?file_id= is missing: it names a file, once for each file")
        return parse_batch_names(names)
    except FormatError as exc:
        raise RequestError(400, str(exc)) from None


async def fetch_batch(
    cas: CasSource, access: Access, hashes: list[bytes]
) -> dict[bytes, Reconstruction]:
    """Return the reconstructions of whole files by file hash.

    Raises:
        RequestError: 413, the answer would be too large.
        UpstreamError and its kinds: the CAS fails or refuses for any of the files.
    """
    gate = asyncio.Semaphore(MAX_ASKED)
    num_terms = num_ranges = 0

    async def ask(file_hash: bytes) -> Reconstruction:
        nonlocal num_terms, num_ranges
        async with gate:
            try:
                answer = await cas.fetch_reconstruction(access, file_hash, _ALL)
            except RangeUnsatisfiable:
                return _NOTHING  # the file is empty
            except UpstreamTooLarge:
                raise _too_large() from None
        num_terms += len(answer.terms)
        num_ranges += sum(map(len, answer.fetch_info.values()))
        if num_terms > MAX_TERMS or num_ranges > MAX_RANGES:
            raise _too_large()
        return answer

    tasks = [asyncio.ensure_future(ask(file_hash)) for file_hash in hashes]
    try:
        answers = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
    return dict(zip(hashes, answers, strict=True))


def _too_large() -> RequestError:
    return RequestError(413, "the files have too many terms for one answer: ask for fewer files")
