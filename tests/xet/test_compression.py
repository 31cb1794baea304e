import json
import tracemalloc
from pathlib import Path
from typing import Any

import lz4.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.xet import _bg4, compression
from xetserve.xet.compression import (
    Scheme,
    choose_ungroup,
    decode_payload,
    encode_payload,
    group_bytes,
    ungroup_bytes,
    ungroup_bytes_in_python,
)

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "data/xorbs.json").read_text())

MAX_CHUNK_SIZE = 131_072
TEXT = b"0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20," * 60
NOISE = bytes(i * i * 7 % 251 ^ i % 256 for i in range(70_000))

SMALL_HEAD = bytes.fromhex("04224d18604082")  # blocks up to 64 KiB
LARGE_HEAD = bytes.fromhex("04224d186050fb")  # blocks up to 256 KiB
END_MARK = bytes(4)


def cases(group: str) -> list[Any]:
    found: list[Any] = VECTORS[group]["cases"]
    return found


def make_frame(data: bytes, **options: Any) -> bytes:
    return bytes(lz4.frame.compress(data, **options))


def make_block(data: bytes) -> bytes:
    """A block, with its size, as the encoder makes it."""
    return encode_payload(Scheme.LZ4, data)[7:-4]


def stored_block(data: bytes) -> bytes:
    return (len(data) | 0x80000000).to_bytes(4, "little") + data


def decode(scheme: Scheme, payload: bytes, decoded_size: int) -> bytes:
    return bytes(decode_payload(scheme, memoryview(payload), decoded_size))


def decode_by_frame(payload: bytes, decoded_size: int) -> bytes | None:
    """What the frame decoder of the library makes of it, which knows no shortcut; None: refused."""
    decoder = lz4.frame.LZ4FrameDecompressor()
    try:
        data = bytes(decoder.decompress(payload, max_length=decoded_size + 1))
    except (RuntimeError, EOFError):
        return None
    return data if decoder.eof and len(data) == decoded_size else None


# Byte grouping


@pytest.mark.parametrize("case", cases("bg4"), ids=lambda case: f"{case['length']} bytes")
def test_grouping_by_index_modulo_four(case: dict[str, Any]) -> None:
    plain, grouped = bytes.fromhex(case["in_hex"]), bytes.fromhex(case["out_hex"])
    assert len(plain) == case["length"]
    assert group_bytes(plain) == grouped
    assert ungroup_bytes(grouped) == plain
    if plain:
        packed = encode_payload(Scheme.BG4_LZ4, plain)
        assert decode(Scheme.LZ4, packed, len(plain)) == grouped
        assert decode(Scheme.BG4_LZ4, packed, len(plain)) == plain


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_ungrouping_undoes_grouping(data: bytes) -> None:
    grouped = group_bytes(data)
    assert sorted(grouped) == sorted(data)
    for buffer in (grouped, bytearray(grouped), memoryview(grouped)):
        assert ungroup_bytes(buffer) == data
    assert group_bytes(ungroup_bytes(data)) == data


# What decodes


@pytest.mark.parametrize(
    "case", cases("lz4_frames_from_official_client"), ids=lambda case: case["frame_hex"][22:38]
)
def test_frames_of_the_official_encoder(case: dict[str, Any]) -> None:
    frame = bytes.fromhex(case["frame_hex"])
    chunk = bytes.fromhex(case["chunk_hex"])
    plain = bytes.fromhex(case["frame_output_hex"])
    assert decode(Scheme(case["scheme"]), frame, len(chunk)) == chunk
    assert decode(Scheme.LZ4, frame, len(plain)) == plain
    assert frame[:7] in (SMALL_HEAD, LARGE_HEAD)


@pytest.mark.parametrize(
    ("size", "head"),
    [
        pytest.param(1, SMALL_HEAD, id="one byte"),
        pytest.param(65_536, SMALL_HEAD, id="64 KiB"),
        pytest.param(65_537, LARGE_HEAD, id="one more"),
        pytest.param(MAX_CHUNK_SIZE, LARGE_HEAD, id="a full chunk"),
    ],
)
@pytest.mark.parametrize("scheme", [Scheme.LZ4, Scheme.BG4_LZ4], ids=["lz4", "bg4"])
def test_frames_begin_as_the_official_encoder_begins_them(
    scheme: Scheme, size: int, head: bytes
) -> None:
    frame = encode_payload(scheme, bytes(size))
    assert frame.startswith(head)
    assert frame.endswith(END_MARK)
    assert decode(scheme, frame, size) == bytes(size)


@settings(deadline=None)
@given(
    st.sampled_from(Scheme),
    st.binary(max_size=40),
    st.integers(1, 20_000),
    st.binary(max_size=200),
)
def test_decoding_undoes_encoding(scheme: Scheme, unit: bytes, repeats: int, tail: bytes) -> None:
    data = (unit * repeats)[: MAX_CHUNK_SIZE - len(tail)] + tail
    for buffer in (data, bytearray(data), memoryview(data)):
        payload = encode_payload(scheme, buffer)
        assert decode(scheme, payload, len(data)) == data


def test_a_raw_payload_is_given_back_uncopied() -> None:
    payload = memoryview(b"hello")
    assert decode_payload(Scheme.NONE, payload, 5) is payload


@pytest.mark.parametrize(
    ("frame", "data"),
    [
        pytest.param(make_frame(TEXT, store_size=True), TEXT, id="content size"),
        pytest.param(make_frame(TEXT, content_checksum=True), TEXT, id="content checksum"),
        pytest.param(make_frame(TEXT, block_checksum=True), TEXT, id="block checksums"),
        pytest.param(make_frame(NOISE, block_linked=True), NOISE, id="linked blocks"),
        pytest.param(make_frame(NOISE, block_linked=False), NOISE, id="several blocks"),
        pytest.param(make_frame(TEXT, block_size=7), TEXT, id="4 MiB blocks"),
        pytest.param(make_frame(TEXT, compression_level=12), TEXT, id="another level"),
        pytest.param(SMALL_HEAD + stored_block(b"hello") + END_MARK, b"hello", id="stored block"),
        pytest.param(
            SMALL_HEAD + stored_block(b"he") + stored_block(b"llo") + END_MARK,
            b"hello",
            id="two stored blocks",
        ),
        pytest.param(
            SMALL_HEAD + make_block(b"a" * 65_536) + make_block(b"b" * 65_536) + END_MARK,
            b"a" * 65_536 + b"b" * 65_536,
            id="two full blocks",
        ),
        pytest.param(
            SMALL_HEAD + stored_block(b"") + stored_block(b"x") + END_MARK,
            b"x",
            id="empty block first",
        ),
        pytest.param(SMALL_HEAD + END_MARK, b"", id="no block"),
        pytest.param(SMALL_HEAD + stored_block(b"") + END_MARK, b"", id="empty stored block"),
        pytest.param(make_frame(b""), b"", id="empty frame of the library"),
        pytest.param(encode_payload(Scheme.LZ4, b""), b"", id="empty frame of ours"),
    ],
)
@pytest.mark.parametrize(
    "trailer",
    [
        pytest.param(b"", id="alone"),
        pytest.param(b"more", id="bytes after it"),
        pytest.param(bytes(4), id="an end mark after it"),
        pytest.param(encode_payload(Scheme.LZ4, b"other"), id="a frame after it"),
        pytest.param(b"\x04\x22\x4d", id="half a magic after it"),
    ],
)
def test_frames_that_the_official_reader_takes_too(
    frame: bytes, data: bytes, trailer: bytes
) -> None:
    assert decode(Scheme.LZ4, frame + trailer, len(data)) == data
    assert decode(Scheme.BG4_LZ4, frame + trailer, len(data)) == bytes(ungroup_bytes(data))


# What does not


@pytest.mark.parametrize("scheme", [Scheme.LZ4, Scheme.BG4_LZ4], ids=["lz4", "bg4"])
@pytest.mark.parametrize(
    ("payload", "decoded_size"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(b"", 5, id="nothing for five bytes"),
        pytest.param(b"\x04", 5, id="one byte"),
        pytest.param(b"hello", 5, id="no frame"),
        pytest.param(SMALL_HEAD, 0, id="a head alone"),
        pytest.param(SMALL_HEAD, 5, id="a head for five bytes"),
        pytest.param(SMALL_HEAD[:6] + b"\x83" + END_MARK, 0, id="head checksum"),
        pytest.param(SMALL_HEAD + END_MARK[:3], 0, id="cut end mark"),
        pytest.param(SMALL_HEAD + END_MARK, 1, id="no block for one byte"),
        pytest.param(SMALL_HEAD + stored_block(b"hello"), 5, id="no end mark"),
        pytest.param(SMALL_HEAD + stored_block(b"hello") + b"\0\0\0\1", 5, id="wrong end mark"),
        pytest.param(SMALL_HEAD + stored_block(b"hello") + END_MARK, 4, id="longer than said"),
        pytest.param(SMALL_HEAD + stored_block(b"hello") + END_MARK, 6, id="shorter than said"),
        pytest.param(SMALL_HEAD + stored_block(b"hello") + END_MARK, 0, id="not empty as said"),
        pytest.param(SMALL_HEAD + b"\xff\xff\xff\xff" + b"hello", 5, id="stored block of 2 GiB"),
        pytest.param(SMALL_HEAD + b"\xff\xff\xff\x7f" + b"hello", 5, id="block of 2 GiB"),
        pytest.param(SMALL_HEAD + b"\5\0\0\0hello" + END_MARK, 5, id="damaged block"),
        pytest.param(SMALL_HEAD + b"\1\0\0\0\x50" + END_MARK, 5, id="literals missing"),
        pytest.param(
            SMALL_HEAD + b"\7\0\0\0\x10a\xff\xff\x10bc" + END_MARK, 8, id="match before the start"
        ),
        pytest.param(SMALL_HEAD + b"\4\0\0\0\x1fa\1\0" + END_MARK, 8, id="match length missing"),
        pytest.param(
            SMALL_HEAD + make_block(b"a" * 70_000) + END_MARK, 70_000, id="block above 64 KiB"
        ),
        pytest.param(
            SMALL_HEAD + stored_block(bytes(65_537)) + END_MARK, 65_537, id="stored above 64 KiB"
        ),
        pytest.param(make_frame(b"he") + make_frame(b"llo"), 5, id="two frames"),
        pytest.param(make_frame(TEXT)[:-1], len(TEXT), id="last byte missing"),
        pytest.param(make_frame(TEXT)[:-4], len(TEXT), id="end mark missing"),
        pytest.param(make_frame(TEXT)[: len(TEXT) // 40], len(TEXT), id="cut in a block"),
        pytest.param(
            make_frame(TEXT, content_checksum=True)[:-1] + b"\0", len(TEXT), id="content checksum"
        ),
        pytest.param(
            make_frame(TEXT, content_checksum=True)[:-4], len(TEXT), id="content checksum missing"
        ),
        pytest.param(
            make_frame(b"hello", store_size=True).replace(b"\5", b"\6", 1), 5, id="content size"
        ),
    ],
)
def test_damaged_frames_are_format_errors(
    scheme: Scheme, payload: bytes, decoded_size: int
) -> None:
    with pytest.raises(FormatError):
        decode_payload(scheme, memoryview(payload), decoded_size)


@pytest.mark.parametrize("decoded_size", [0, 4, 6], ids=lambda size: f"{size} promised")
def test_a_raw_payload_of_another_size_is_a_format_error(decoded_size: int) -> None:
    with pytest.raises(FormatError, match=f"5 bytes, expected {decoded_size}"):
        decode_payload(Scheme.NONE, memoryview(b"hello"), decoded_size)


def test_messages_give_both_sizes() -> None:
    frame = memoryview(encode_payload(Scheme.LZ4, b"hello"))
    with pytest.raises(FormatError, match="chunk of 5 decoded bytes, expected 7"):
        decode_payload(Scheme.LZ4, frame, 7)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(encode_payload(Scheme.LZ4, bytes(MAX_CHUNK_SIZE)), id="one block"),
        pytest.param(make_frame(bytes(32 << 20)), id="many blocks"),
        pytest.param(make_frame(bytes(32 << 20), store_size=True), id="with its size"),
        pytest.param(make_frame(bytes(32 << 20), block_size=7), id="4 MiB blocks"),
    ],
)
@pytest.mark.parametrize("scheme", [Scheme.LZ4, Scheme.BG4_LZ4], ids=["lz4", "bg4"])
def test_a_bomb_unfolds_no_further_than_promised(scheme: Scheme, frame: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            decode_payload(scheme, memoryview(frame), 100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Up to two copies of the input that the frame decoder did not get to, but none of 32 MiB.
    assert peak < 2 * len(frame) + 65_536


# Anything at all

FRAMES = [
    encode_payload(Scheme.LZ4, TEXT),
    encode_payload(Scheme.LZ4, b"hello"),
    encode_payload(Scheme.LZ4, b"ab" * 40_000),
    encode_payload(Scheme.LZ4, NOISE[:300]),
    SMALL_HEAD + stored_block(b"hello") + END_MARK,
    SMALL_HEAD + make_block(TEXT) + make_block(b"x" * 500) + END_MARK,
    make_frame(TEXT, store_size=True, content_checksum=True, block_checksum=True),
    make_frame(NOISE, block_linked=True),
    bytes.fromhex("502a4d1804000000") + b"skip" + encode_payload(Scheme.LZ4, b"hello"),
]


@st.composite
def damaged_frames(draw: st.DrawFn) -> bytes:
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    # Heads and block sizes lie at the front; there damage is most telling.
    near, far = st.integers(0, 20), st.integers(0, len(frame) - 1)
    for index in draw(st.lists(near | far, max_size=3)):
        frame[index % len(frame)] = draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]) | st.integers(0, 255)
        )
    cut = draw(st.none() | st.integers(0, len(frame)))
    return bytes(frame[:cut]) + draw(st.just(b"") | st.binary(max_size=8))


sizes = (
    st.sampled_from([0, 1, 5, 300, len(TEXT), len(TEXT) + 500, len(NOISE), 80_000])
    | st.integers(0, MAX_CHUNK_SIZE)
)  # fmt: skip
payloads = (
    damaged_frames() | st.binary(max_size=60) | st.binary(max_size=60).map(SMALL_HEAD.__add__)
)


@settings(deadline=None, max_examples=1000)
@given(st.sampled_from(Scheme), payloads, sizes)
def test_any_payload_gives_the_promised_size_or_a_format_error(
    scheme: Scheme, payload: bytes, decoded_size: int
) -> None:
    try:
        data = decode_payload(scheme, memoryview(payload), decoded_size)
    except FormatError:
        return
    assert len(data) == decoded_size


@settings(deadline=None, max_examples=1000)
@given(payloads, sizes)
def test_the_shortcut_for_one_block_agrees_with_the_frame_decoder(
    payload: bytes, decoded_size: int
) -> None:
    expected = decode_by_frame(payload, decoded_size)
    if expected is None:
        with pytest.raises(FormatError):
            decode_payload(Scheme.LZ4, memoryview(payload), decoded_size)
    else:
        assert decode(Scheme.LZ4, payload, decoded_size) == expected


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=2000))
def test_the_shortcut_is_taken_for_what_the_official_encoder_makes(data: bytes) -> None:
    frame = encode_payload(Scheme.LZ4, data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compression, "_decode_any_frame", lambda *_: pytest.fail("the long way"))
        assert decode(Scheme.LZ4, frame, len(data)) == data


# The extension in C


@given(st.binary(max_size=600))
def test_the_extension_and_python_agree(data: bytes) -> None:
    # Wherever the tests run there is a compiler, so the extension has to be there.
    assert _bg4.ungroup(data) == bytes(ungroup_bytes_in_python(data))
    assert _bg4.ungroup(group_bytes(data)) == data
    assert bytes(ungroup_bytes_in_python(group_bytes(data))) == data


def test_the_extension_refuses_what_is_not_bytes() -> None:
    with pytest.raises(TypeError):
        _bg4.ungroup("text")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        pytest.param(_bg4.ungroup, _bg4.ungroup, id="it is right"),
        pytest.param(bytes, ungroup_bytes_in_python, id="it is wrong"),
        pytest.param(None, ungroup_bytes_in_python, id="it is absent"),
    ],
)
def test_the_extension_is_used_if_it_is_there_and_right(native: Any, expected: object) -> None:
    assert choose_ungroup(native) is expected
