"""Files that are not Xet, as they lie on their shelves.

Small ones, in plain/, are their content and nothing else: they are hashed whole each time that they
are opened. Large ones, in large/, were hashed while they were written, and have a check for each
block, so that a part costs that part:

    0       the content
    then    CRC-32 of each block of BLOCK_SIZE bytes    u32 each
    last    BLAKE3 of the name and the content's size   16 bytes
            MAGIC                                       8 bytes

Numbers are little-endian. As in entries of xorbs, the checks find what disks do; whoever reads the
whole compares it with its hash, too. Everything that takes a file descriptor blocks, and is for
threads.
"""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple
from zlib import crc32

from blake3 import blake3

from xetserve.errors import FormatError
from xetserve.pipeline.cache.layout import LARGE, PLAIN, make_shelf_path
from xetserve.upstream.hub.entry import FileEntry

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_SMALL_SIZE: Final = 64 * 1024 * 1024  # bytes; hashed whole, for every part that is asked for
BLOCK_SIZE: Final = 256 * 1024  # bytes; what bodies of plain files take at a time
MAGIC: Final = b"xsplain1"
_CHECK: Final = struct.Struct("<I")
_NAME_CHECK_SIZE: Final = 16  # bytes
_TRAILER_SIZE: Final = _NAME_CHECK_SIZE + len(MAGIC)
_READ_SIZE: Final = 4 * BLOCK_SIZE


class BlobKey(NamedTuple):
    """What a file is known by: "sha256", or "git" (the SHA-1 of a git blob), and hex digits; its
    size in bytes.
    """

    kind: str
    digest: str
    size: int

    @classmethod
    def of(cls, entry: FileEntry) -> "BlobKey | None":
        """Make the key of an entry; None if the Hub names no hash of its content."""
        if entry.size is None:
            return None
        if entry.sha256 is not None:
            return cls("sha256", entry.sha256, entry.size)
        etag = entry.etag or ""
        if len(etag) == 40 and set(etag) <= set("0123456789abcdef"):
            return cls("git", etag, entry.size)
        return None

    @classmethod
    def parse(cls, shelf: str, name: str, stored_size: int) -> "BlobKey":
        """Read the name that a file has on its shelf, and the size of all that is there.

        Raises:
            FormatError: no file of that shelf has such a size.
        """
        kind, _, digest = name.partition("-")
        size = stored_size
        if shelf == LARGE:
            rest = stored_size - _TRAILER_SIZE
            size = rest - _CHECK.size * -(-rest // (BLOCK_SIZE + _CHECK.size))
        key = cls(kind, digest, size)
        if key.stored_size != stored_size or key.shelf != shelf:
            raise FormatError(f"{stored_size} bytes are none of a file in {shelf}")
        return key

    @property
    def name(self) -> str:
        """How the file is named on its shelf."""
        return f"{self.kind}-{self.digest}"

    @property
    def is_large(self) -> bool:
        """Whether it has checks of its own."""
        return self.size > MAX_SMALL_SIZE

    @property
    def shelf(self) -> str:
        """Where it is kept."""
        return LARGE if self.is_large else PLAIN

    @property
    def stored_size(self) -> int:
        """Bytes that it has there."""
        if not self.is_large:
            return self.size
        return self.size + _CHECK.size * -(-self.size // BLOCK_SIZE) + _TRAILER_SIZE

    def get_path(self, folder: Path) -> str:
        """Return where it lies in the folder of a cache.

        Raises:
            ValueError: its digest is none.
        """
        return make_shelf_path(folder, self.shelf, self.name)

    def make_hash(self) -> "_Hash":
        """Return a hash object that the whole content is to be fed to."""
        if self.kind == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def check_plain(fd: int, key: BlobKey, on_bytes: Callable[[int], object] = lambda _: None) -> None:
    """Compare all of an open file with its key.

    Args:
        on_bytes: told how many bytes were read, again and again.

    Raises:
        FormatError: it is something else.
        OSError: the disk fails.
    """
    if key.is_large:
        check_trailer(fd, key)
    elif os.fstat(fd).st_size != key.size:
        raise FormatError(f"{os.fstat(fd).st_size} bytes that are not {key.name}")
    content = key.make_hash()
    buffer = memoryview(bytearray(min(_READ_SIZE, max(1, key.size))))
    position = 0
    while position < key.size:
        count = os.preadv(fd, [buffer[: key.size - position]], position)
        if not count:
            raise FormatError(f"cut at byte {position}")
        content.update(buffer[:count])
        position += count
        on_bytes(count)
    if content.hexdigest() != key.digest:
        raise FormatError(f"{position} bytes that are not {key.name}")


# Large ones.


def check_trailer(fd: int, key: BlobKey) -> None:
    """Check whether an open file is the large one of a key, without a look at its content.

    Raises:
        FormatError: it is cut, or something else.
        OSError: the disk fails.
    """
    size = os.fstat(fd).st_size
    end = os.pread(fd, _TRAILER_SIZE, key.stored_size - _TRAILER_SIZE)
    if size != key.stored_size or end != _make_trailer(key):
        raise FormatError(f"{size} bytes that are not {key.name}, complete")


def read_block(fd: int, key: BlobKey, position: int) -> bytes:
    """Read from a position to the end of its block, which is compared with its check.

    Raises:
        FormatError: it is damaged.
        OSError: the disk fails.
    """
    number = position // BLOCK_SIZE
    start = number * BLOCK_SIZE
    data = os.pread(fd, min(BLOCK_SIZE, key.size - start), start)
    if os.pread(fd, _CHECK.size, _check_position(key, number)) != _CHECK.pack(crc32(data)):
        raise FormatError(f"damaged in block {number}")
    return data[position - start :] if position > start else data


def _check_position(key: BlobKey, number: int) -> int:
    return key.size + number * _CHECK.size


def _make_trailer(key: BlobKey) -> bytes:
    return blake3(f"{key.name} {key.size}".encode()).digest(_NAME_CHECK_SIZE) + MAGIC


class CheckWriter:
    """Writes what is behind the content of a large file, while that passes.

    Args:
        fd: the file, which has its final size already. The content is written by others.
    """

    def __init__(self, fd: int, key: BlobKey) -> None:
        self._fd = fd
        self._key = key
        self._position = 0
        self._check = 0

    def feed(self, data: memoryview) -> None:
        """Take in the next bytes of the content; after the last of them the file is complete.

        Raises:
            OSError: the disk fails.
        """
        while data:
            number, inside = divmod(self._position, BLOCK_SIZE)
            part = data[: BLOCK_SIZE - inside]
            self._check = crc32(part, self._check)
            self._position += len(part)
            data = data[len(part) :]
            if self._position == self._key.size or self._position % BLOCK_SIZE == 0:
                os.pwrite(self._fd, _CHECK.pack(self._check), _check_position(self._key, number))
                self._check = 0
        if self._position == self._key.size:
            os.pwrite(self._fd, _make_trailer(self._key), self._key.stored_size - _TRAILER_SIZE)
