"""Content codings, whole, cut and inflated."""

import gzip
import zlib

import pytest
import zstandard

from xetserve.errors import FormatError
from xetserve.http.encoding import (
    CODINGS,
    MAX_DECODED,
    MAX_MEMBERS,
    StreamDecoder,
    decode_content,
    encode_content,
)

TEXT = b'{"terms": []}' * 100
LIMIT = len(TEXT)


def zstd(data: bytes, *, with_size: bool = True) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=with_size).compress(data)


def wide_zstd(data: bytes) -> bytes:
    """A frame that wants a window of 64 MiB."""
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=26)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        pytest.param(None, TEXT, id="none"),
        pytest.param("", TEXT, id="empty"),
        pytest.param("identity", TEXT, id="identity"),
        pytest.param("gzip", gzip.compress(TEXT), id="gzip"),
        pytest.param("x-gzip", gzip.compress(TEXT), id="x-gzip"),
        pytest.param(" GZip ", gzip.compress(TEXT), id="case and blanks"),
        pytest.param("zstd", zstd(TEXT), id="zstd"),
        pytest.param("zstd", zstd(TEXT, with_size=False), id="zstd without its size"),
        pytest.param("zstd", zstd(TEXT[:500]) + zstd(TEXT[500:]), id="two zstd frames"),
        pytest.param("gzip", gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]), id="two members"),
    ],
)
def test_content_comes_out(coding: str | None, data: bytes) -> None:
    assert decode_content(coding, data, LIMIT) == TEXT


@pytest.mark.parametrize("coding", ["gzip", "zstd", "identity"])
def test_nothing_comes_out_of_nothing(coding: str) -> None:
    packed = {"gzip": gzip.compress(b""), "zstd": zstd(b""), "identity": b""}[coding]
    assert decode_content(coding, packed, 0) == b""


@pytest.mark.parametrize("coding", ["br", "deflate", "gzip, gzip", "zstd,gzip", "compress", "x"])
def test_an_unknown_coding_is_refused(coding: str) -> None:
    with pytest.raises(FormatError, match="unknown"):
        decode_content(coding, TEXT, LIMIT)


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        pytest.param("gzip", TEXT, id="not gzip"),
        pytest.param("gzip", zlib.compress(TEXT), id="zlib is not gzip"),
        pytest.param("gzip", gzip.compress(TEXT)[:-1], id="gzip, cut in its end"),
        pytest.param("gzip", gzip.compress(TEXT)[:20], id="gzip, cut"),
        pytest.param("gzip", gzip.compress(TEXT)[:-8] + bytes(8), id="gzip, bad checksum"),
        pytest.param("gzip", gzip.compress(TEXT) + b"more", id="more after gzip"),
        pytest.param("gzip", b"", id="empty gzip"),
        pytest.param("zstd", TEXT, id="not zstd"),
        pytest.param("zstd", zstd(TEXT)[:-1], id="zstd, cut in its end"),
        pytest.param("zstd", zstd(TEXT)[:10], id="zstd, cut"),
        pytest.param("zstd", zstd(TEXT, with_size=False)[:-1], id="zstd without size, cut"),
        pytest.param("zstd", zstd(TEXT) + zstd(TEXT)[:9], id="second zstd frame, cut"),
        pytest.param("zstd", zstd(TEXT) + b"more", id="more after zstd"),
        pytest.param("zstd", b"", id="empty zstd"),
    ],
)
def test_damaged_content_is_refused(coding: str, data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_content(coding, data, 10 * LIMIT)


@pytest.mark.parametrize(
    ("coding", "data"),
    [
        pytest.param("identity", TEXT, id="identity"),
        pytest.param("gzip", gzip.compress(TEXT), id="gzip"),
        pytest.param("gzip", gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:]), id="two members"),
        pytest.param("zstd", zstd(TEXT), id="zstd"),
        pytest.param("zstd", zstd(TEXT, with_size=False), id="zstd without its size"),
        pytest.param("zstd", zstd(TEXT[:9]) * 2 + zstd(TEXT), id="zstd frames"),
        pytest.param("gzip", gzip.compress(bytes(200_000_000), 9), id="a gzip bomb"),
        pytest.param("zstd", zstd(bytes(200_000_000)), id="a zstd bomb"),
    ],
)
def test_content_above_the_limit_is_refused(coding: str, data: bytes) -> None:
    with pytest.raises(FormatError, match=f"more than {LIMIT - 1} bytes"):
        decode_content(coding, data, LIMIT - 1)


def test_a_zstd_window_above_8_mib_is_refused() -> None:
    # RFC 9659: what a client has to keep for it is bounded.
    with pytest.raises(FormatError, match="damaged zstd"):
        decode_content("zstd", wide_zstd(TEXT), LIMIT)


@pytest.mark.parametrize("data", [b"", TEXT, bytes(range(256))])
@pytest.mark.parametrize("coding", CODINGS)
def test_what_is_encoded_is_decoded_again(coding: str, data: bytes) -> None:
    encoded = encode_content(coding, data)
    assert decode_content(coding, encoded, len(data)) == data
    assert encoded == encode_content(coding, data)  # with no time in it
    assert data != TEXT or len(encoded) < len(data) // 5


def decode_stream(coding: str | None, data: bytes, size: int) -> tuple[bytes, int]:
    """Decode in pieces; gives the result and the size of the largest piece."""
    decoder = StreamDecoder(coding)
    parts = [
        part for at in range(0, len(data), size) for part in decoder.decode(data[at : at + size])
    ]
    decoder.finish()
    return b"".join(parts), max(map(len, parts), default=0)


@pytest.mark.parametrize("coding", CODINGS)
def test_members_are_bounded(coding: str) -> None:
    """However many there are in a few megabytes, each of nothing: they cost as much as
    kilobytes.
    """
    member = encode_content(coding, b"")
    assert decode_content(coding, member * MAX_MEMBERS, 0) == b""
    with pytest.raises(FormatError, match="members"):
        decode_content(coding, member * (MAX_MEMBERS + 1), 0)


class TestStreams:
    @pytest.mark.parametrize("size", [1, 1000, 10**6])
    def test_members_are_bounded(self, size: int) -> None:
        member = gzip.compress(b"")
        assert decode_stream("gzip", member * MAX_MEMBERS, size) == (b"", 0)
        with pytest.raises(FormatError, match="members"):
            decode_stream("gzip", member * (MAX_MEMBERS + 1), size)

    @pytest.mark.parametrize("size", [1, 100, 10**6])
    @pytest.mark.parametrize("content", [b"", b"x", b"text " * 100_000, bytes(MAX_DECODED * 2)])
    def test_gzip(self, content: bytes, size: int) -> None:
        result, largest = decode_stream("gzip", gzip.compress(content), size)
        assert result == content
        assert largest <= MAX_DECODED

    @pytest.mark.parametrize("size", [1, 10**6])
    def test_members_one_after_the_other(self, size: int) -> None:
        data = gzip.compress(b"one") + gzip.compress(b"two")
        assert decode_stream("x-gzip", data, size)[0] == b"onetwo"

    def test_none(self) -> None:
        assert decode_stream(None, b"abc", 2)[0] == b"abc"
        assert decode_stream("Identity", b"abc", 2)[0] == b"abc"

    def test_another_coding(self) -> None:
        with pytest.raises(FormatError):
            StreamDecoder("br")

    @pytest.mark.parametrize(
        "data",
        [b"", b"nonsense of some length", gzip.compress(b"x")[:-1]],
        ids=["empty", "nonsense", "cut"],
    )
    def test_damage(self, data: bytes) -> None:
        with pytest.raises(FormatError):
            decode_stream("gzip", data, 5)
