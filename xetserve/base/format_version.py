"""The mark of a stored file, its magic: a name, and the version of the format as digits.

Every version of xetserve keeps the place, the size and the name of a mark. So it can tell files of
another version, which it leaves alone, from damaged ones, which it removes.
"""

import re
from typing import Final

from xetserve.errors import OtherVersion

_MAGIC: Final = re.compile(rb"([a-z]+)([1-9][0-9]*)(\n?)")


def check_version(found: bytes, magic: bytes) -> None:
    """Check that the mark of a file is not one of another version; it may be damaged.

    Args:
        magic: the mark that this version writes.

    Raises:
        OtherVersion: it is of another version.
    """
    if found == magic:
        return
    one, other = _MAGIC.fullmatch(found), _MAGIC.fullmatch(magic)
    if one is not None and other is not None and (one[1], one[3]) == (other[1], other[3]):
        raise OtherVersion(f"format {one[2].decode()}, this version reads {other[2].decode()}")
