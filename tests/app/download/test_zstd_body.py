"""zstd around a body: one frame, which ends only if the body does."""

import pytest
import zstandard

from tests.bodies import CountedBody
from xetserve.app.download.zstd_body import Compressors
from xetserve.errors import IntegrityError

TEXT = b"to be or not to be, " * 5000


async def test_the_frame_holds_the_body() -> None:
    body = Compressors().compress(CountedBody(TEXT[:7], b"", TEXT[7:]), len(TEXT))
    coded = b"".join([b"".join(block) async for block in body])
    assert zstandard.ZstdDecompressor().decompress(coded) == TEXT


async def test_a_body_that_breaks_leaves_a_frame_without_an_end() -> None:
    body = Compressors().compress(CountedBody(TEXT, error=IntegrityError("x")), len(TEXT))
    coded = b"".join(await anext(body))
    with pytest.raises(IntegrityError):
        await anext(body)
    frame = zstandard.ZstdDecompressor().decompressobj()
    assert frame.decompress(coded) == TEXT
    assert not frame.eof


@pytest.mark.parametrize("num_taken", [0, 1, 2, 3])
async def test_closing_closes_the_body_and_gives_the_compressor_back(num_taken: int) -> None:
    compressors, inner = Compressors(1), CountedBody(TEXT)
    body = compressors.compress(inner, None)
    assert compressors.is_full
    for _ in range(num_taken):
        await anext(body, None)
    await body.aclose()
    assert inner.num_closed == 1
    await body.aclose()
    assert compressors.num_active == 0
