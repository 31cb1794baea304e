"""The form of a stored answer.

    MAGIC                                                             8 bytes
    check: BLAKE3 of the path and of all that follows                16 bytes
    answered_at: when it was given, Unix seconds              f64, little-endian
    size of the next field                                    u32, little-endian
    about: the question that the body answers                             UTF-8
    body

An older form, with OLD_MAGIC, has no about. The check binds a file to its path: a file that is
damaged, cut, or copied from the folder of another token counts as missing.
"""

import struct
from typing import Final, NamedTuple

from blake3 import blake3

from xetserve.base.format_version import check_version

MAGIC: Final = b"xsmeta2\n"
OLD_MAGIC: Final = b"xsmeta1\n"
CHECK_SIZE: Final = 16  # bytes
_TIME: Final = struct.Struct("<d")
_FIELDS: Final = struct.Struct("<dI")


class Stored(NamedTuple):
    """A stored answer.

    answered_at: when it was given, Unix seconds.
    about: the question that it answers, as text; "": not recorded.
    """

    answered_at: float
    body: bytes
    about: str = ""


def unpack_file(path: str, data: bytes) -> Stored | None:
    """Parse the file stored at a path; None: it is damaged, or was stored at another path.

    Raises:
        OtherVersion: another version wrote it, and this one cannot read it.
    """
    magic, rest = data[: len(MAGIC)], data[len(MAGIC) + CHECK_SIZE :]
    if magic != OLD_MAGIC:
        check_version(magic, MAGIC)
    if magic not in (MAGIC, OLD_MAGIC) or not data.startswith(magic + _make_check(path, rest)):
        return None
    try:
        if magic == OLD_MAGIC:
            return Stored(_TIME.unpack_from(rest)[0], rest[_TIME.size :])
        answered_at, size = _FIELDS.unpack_from(rest)
        end = _FIELDS.size + size
        if end > len(rest):
            return None
        about = rest[_FIELDS.size : end].decode("utf-8", "surrogatepass")
    except (struct.error, UnicodeDecodeError):
        return None
    return Stored(answered_at, rest[end:], about)


def read_about(data: bytes) -> str:
    """Return the question of a stored file, without checking the file; "": it is not recorded.

    Args:
        data: the start of the file.
    """
    rest = data[len(MAGIC) + CHECK_SIZE :]
    if not data.startswith(MAGIC) or len(rest) < _FIELDS.size:
        return ""
    end = _FIELDS.size + _FIELDS.unpack_from(rest)[1]
    return rest[_FIELDS.size : end].decode("utf-8", "replace")


def pack_file(path: str, stored: Stored) -> bytes:
    """Return the file to store at a path."""
    about = stored.about.encode("utf-8", "surrogatepass")
    rest = _FIELDS.pack(stored.answered_at, len(about)) + about + stored.body
    return MAGIC + _make_check(path, rest) + rest


def _make_check(path: str, rest: bytes) -> bytes:
    return blake3(path.encode() + b"\0" + rest).digest(CHECK_SIZE)
