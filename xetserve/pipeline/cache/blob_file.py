"""The format of stored files that are not Xet (blobs).

A small one, in plain/, has nothing but its content, and is hashed as a whole each time it is
opened. A large one, in large/, was hashed while it was written. It has a check for each block, so
that reading a part costs no more than that part:

    0       the content
    then    CRC-32 of each block of BLOCK_SIZE bytes    u32 each
    last    BLAKE3 of the name and the content's size   16 bytes
            MAGIC                                       8 bytes

Numbers are little-endian. As in entries of xorbs, the checks find errors of the disk; a reader of
the whole file compares it with its hash, too. Functions with a file descriptor block, and are for
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

from xetserve.base.format_version import check_version
from xetserve.errors import FormatError
from xetserve.pipeline.cache.layout import LARGE, PLAIN, make_file_path
from xetserve.upstream.hub.entry import FileEntry

if TYPE_CHECKING:
    from hashlib import _Hash

MAX_SMALL_SIZE: Final = 64 * 1024 * 1024  # bytes; hashed as a whole for every request
BLOCK_SIZE: Final = 256 * 1024  # bytes; a body of such a file reads as many at a time
MAGIC: Final = b"xsplain1"
_CHECK: Final = struct.Struct("<I")
_NAME_CHECK_SIZE: Final = 16  # bytes
_TRAILER_SIZE: Final = _NAME_CHECK_SIZE + len(MAGIC)
_READ_SIZE: Final = 4 * BLOCK_SIZE


class BlobKey(NamedTuple):
    """The identity of a file.

    kind: "sha256", or "git" for the SHA-1 of a git blob.
    digest: hex digits.
    size: bytes.
    """

    kind: str
    digest: str
    size: int

    @classmethod
    def of(cls, entry: FileEntry) -> "BlobKey | None":
        """Return the key of a Hub entry; None if the Hub gives no hash of its content."""
        if entry.size is None:
            return None
        if entry.sha256 is not None:
            return cls("sha256", entry.sha256, entry.size)
        etag = entry.etag or ""
        if len(etag) == 40 and set(etag) <= set("0123456789abcdef"):
            return cls("git", etag, entry.size)
        return None

    @classmethod
    def parse(cls, subfolder: str, name: str, stored_size: int) -> "BlobKey":
        """Parse the name of a stored file, given the bytes that it has on disk.

        Raises:
            FormatError: no file of that subfolder has such a size.
        """
        kind, _, digest = name.partition("-")
        size = stored_size
        if subfolder == LARGE:
            rest = stored_size - _TRAILER_SIZE
            size = rest - _CHECK.size * -(-rest // (BLOCK_SIZE + _CHECK.size))
        key = cls(kind, digest, size)
        if key.stored_size != stored_size or key.subfolder != subfolder:
            raise FormatError(f"no file in {subfolder} can have {stored_size} bytes")
        return key

    @property
    def name(self) -> str:
        """The file name in its subfolder."""
        return f"{self.kind}-{self.digest}"

    @property
    def is_large(self) -> bool:
        """Whether the file has checks for its blocks."""
        return self.size > MAX_SMALL_SIZE

    @property
    def subfolder(self) -> str:
        """The subfolder of the cache that holds the file."""
        return LARGE if self.is_large else PLAIN

    @property
    def stored_size(self) -> int:
        """Bytes of the stored file."""
        if not self.is_large:
            return self.size
        return self.size + _CHECK.size * -(-self.size // BLOCK_SIZE) + _TRAILER_SIZE

    def get_path(self, folder: Path) -> str:
        """Return the path of the file in the folder of a cache.

        Raises:
            ValueError: the digest is not one.
        """
        return make_file_path(folder, self.subfolder, self.name)

    def make_hash(self) -> "_Hash":
        """Return a hash object for the whole content."""
        if self.kind == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False)


def check_stored(
    fd: int, subfolder: str, name: str, on_bytes: Callable[[int], object] = lambda _: None
) -> None:
    """Check an open file of a subfolder by its name and its whole content.

    Args:
        on_bytes: see check_plain.

    Raises:
        OtherVersion: another version wrote the file.
        FormatError: the content is not that of the name.
        OSError: the disk fails.
    """
    size = os.fstat(fd).st_size
    if subfolder == LARGE:
        check_version(os.pread(fd, len(MAGIC), max(0, size - len(MAGIC))), MAGIC)
    check_plain(fd, BlobKey.parse(subfolder, name, size), on_bytes)


def check_plain(fd: int, key: BlobKey, on_bytes: Callable[[int], object] = lambda _: None) -> None:
    """Check an open file against its key, by its whole content.

    Args:
        on_bytes: called after each read with the number of bytes.

    Raises:
        FormatError: the content is not that of the key.
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


# Large files.


def check_trailer(fd: int, key: BlobKey) -> None:
    """Check that an open file is the large one of a key, without reading its content.

    Raises:
        OtherVersion: another version wrote the file.
        FormatError: the file is truncated, or another one.
        OSError: the disk fails.
    """
    size = os.fstat(fd).st_size
    check_version(os.pread(fd, len(MAGIC), max(0, size - len(MAGIC))), MAGIC)
    end = os.pread(fd, _TRAILER_SIZE, key.stored_size - _TRAILER_SIZE)
    if size != key.stored_size or end != _make_trailer(key):
        raise FormatError(f"{size} bytes that are not {key.name}, complete")


def read_block(fd: int, key: BlobKey, position: int) -> bytes:
    """Read from a position to the end of its block, and check the block.

    Raises:
        FormatError: the block is damaged.
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
    """Writes the checks and the trailer of a large file, while its content is fed.

    Args:
        fd: the file, which has its final size already. The caller writes the content.
    """

    def __init__(self, fd: int, key: BlobKey) -> None:
        self._fd = fd
        self._key = key
        self._position = 0
        self._check = 0

    def feed(self, data: memoryview) -> None:
        """Add the next bytes of the content; after the last ones the file is complete.

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
