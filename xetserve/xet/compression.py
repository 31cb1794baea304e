"""Chunk compression: decode and encode the three schemes, raw, LZ4 and byte-grouped LZ4.

An LZ4 payload is one complete frame without a content size. The chunk header states the decoded
size, and decoding stops one byte past it: this bounds the output.

BG4 orders the bytes by index modulo 4 (all of index 0 modulo 4, then 1, 2, 3) before LZ4. This
places the exponent bytes of floats side by side.

Source: draft-denis-xet, "Compression Schemes"; byte layout in xet-core byte_grouping/bg4.rs.
"""

from collections.abc import Callable
from enum import IntEnum
from struct import Struct
from typing import Final

import lz4.block
import lz4.frame

from xetserve.base.buffers import Buffer
from xetserve.errors import FormatError

try:
    from xetserve.xet._bg4 import ungroup as _native_ungroup
except ImportError:  # the package was built without a C compiler
    _native_ungroup = None  # type: ignore[assignment]


class Scheme(IntEnum):
    """The compression byte of a chunk header."""

    NONE = 0
    LZ4 = 1
    BG4_LZ4 = 2


# Frame head of the official encoder -> the largest block that its BD byte allows, packed and
# decoded. A head is the magic, FLG 0x60 (version 1, independent blocks, no checksums, no content
# size), BD, and the header checksum.
_KNOWN_FRAME_HEADS: Final = {
    bytes.fromhex("04224d18604082"): 65_536,
    bytes.fromhex("04224d186050fb"): 262_144,
}
_SINGLE_BLOCK: Final = Struct("<7sI")  # the frame head, then the size and kind of the block
_END_MARK: Final = bytes(4)
_STORED_BLOCK: Final = 0x80000000


def decode_payload(scheme: Scheme, payload: memoryview, decoded_size: int) -> Buffer:
    """Decode the payload of one chunk.

    Args:
        payload: packed bytes without the chunk header. For Scheme.NONE the payload itself is
            returned, so the result is valid only as long as the caller's buffer.
        decoded_size: bytes, from the chunk header.

    Raises:
        FormatError: the frame is damaged, or its output is not exactly decoded_size bytes.
    """
    if scheme is Scheme.NONE:
        if len(payload) != decoded_size:
            raise FormatError(f"raw chunk of {len(payload)} bytes, expected {decoded_size}")
        return payload
    packed = _decode_frame(payload, decoded_size)
    return packed if scheme is Scheme.LZ4 else ungroup_bytes(packed)


def encode_payload(scheme: Scheme, data: Buffer) -> bytes:
    """Encode one chunk with the frame format of the official encoder; for the origin and tests."""
    if scheme is Scheme.NONE:
        return bytes(data)
    plain = bytes(data) if scheme is Scheme.LZ4 else group_bytes(data)
    return bytes(
        lz4.frame.compress(
            plain,
            block_size=(
                lz4.frame.BLOCKSIZE_MAX64KB if len(plain) <= 65536 else lz4.frame.BLOCKSIZE_MAX256KB
            ),
            block_linked=False,
            store_size=False,
        )
    )


def _decode_frame(frame: memoryview, decoded_size: int) -> bytes:
    """Decode one LZ4 frame to exactly decoded_size bytes; ignore bytes behind the frame.

    Most chunks are a frame with one independent block. The block decoder reads those: it needs no
    frame context and no growing output buffer.
    """
    if len(frame) > _SINGLE_BLOCK.size:
        head, size = _SINGLE_BLOCK.unpack_from(frame)
        max_block_size = _KNOWN_FRAME_HEADS.get(head, -1)
        block_size = size & ~_STORED_BLOCK
        end = _SINGLE_BLOCK.size + block_size
        # A block size of 0 is the end mark of a frame without blocks.
        if (
            decoded_size <= max_block_size
            and 0 < block_size <= max_block_size
            and frame[end : end + len(_END_MARK)] == _END_MARK
        ):
            return _decode_block(frame[_SINGLE_BLOCK.size : end], size, decoded_size)
    return _decode_any_frame(frame, decoded_size)


def _decode_block(block: memoryview, size: int, decoded_size: int) -> bytes:
    if size & _STORED_BLOCK:
        data = bytes(block)
    else:
        try:
            data = lz4.block.decompress(block, uncompressed_size=decoded_size)
        except lz4.block.LZ4BlockError as exc:
            raise FormatError(f"damaged LZ4 block: {exc}") from None
    _check_size(len(data), decoded_size)
    return data


def _decode_any_frame(frame: memoryview, decoded_size: int) -> bytes:
    decoder = lz4.frame.LZ4FrameDecompressor()
    try:
        data: bytes = decoder.decompress(frame, max_length=decoded_size + 1)
    except (RuntimeError, EOFError) as exc:
        raise FormatError(f"damaged LZ4 frame: {exc}") from None
    if len(data) <= decoded_size and not decoder.eof:
        raise FormatError("LZ4 frame without an end")
    _check_size(len(data), decoded_size)
    return data


def _check_size(actual: int, expected: int) -> None:
    if actual != expected:
        raise FormatError(f"chunk of {actual} decoded bytes, expected {expected}")


def group_bytes(data: Buffer) -> bytes:
    """Reorder bytes by index modulo 4; group sizes differ by at most one byte."""
    return b"".join(bytes(data[start::4]) for start in range(4))


def ungroup_bytes_in_python(grouped: Buffer) -> bytearray:
    """Undo group_bytes; used where the C extension could not be built."""
    size = len(grouped)
    out = bytearray(size)
    view = memoryview(grouped)
    start = 0
    for index in range(4):
        end = start + (size - index + 3) // 4
        out[index::4] = view[start:end]
        start = end
    return out


Ungroup = Callable[[Buffer], Buffer]


def choose_ungroup(native: Ungroup | None) -> Ungroup:
    """Return the C extension if it exists and agrees with Python for every size modulo 4."""
    if native is None:
        return ungroup_bytes_in_python
    for size in (0, 1, 2, 3, 4, 253, 254, 255):
        sample = bytes(range(size))
        if bytes(native(sample)) != bytes(ungroup_bytes_in_python(sample)):
            return ungroup_bytes_in_python
    return native


ungroup_bytes: Final = choose_ungroup(_native_ungroup)
HAS_NATIVE_CODE: Final = ungroup_bytes is not ungroup_bytes_in_python


def describe_slowness() -> tuple[str, str]:
    """Return why byte-grouped chunks are decoded slowly, and what helps; "": they are not."""
    if HAS_NATIVE_CODE:
        return "", ""
    speed = "byte grouping, as most model weights have it, runs at a twentieth of its speed"
    if _native_ungroup is None:
        return f"the C extension is missing: {speed}", (
            "install a wheel of xetserve for this platform, or a C compiler and Python's headers "
            "(build-essential, python3-dev), then install xetserve again"
        )
    return f"the C extension decodes wrongly, and Python stands in: {speed}", "report this machine"
