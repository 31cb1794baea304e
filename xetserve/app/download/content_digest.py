"""The hash that the Hub names for the content of a file that is not Xet."""

import hashlib

from xetserve.errors import IntegrityError
from xetserve.upstream.hub.client import FileEntry


class ContentDigest:
    """The hash of a plain file, compared with the one that the Hub names.

    It is the sha256 of the content, or the SHA-1 of the content as a git blob.
    """

    def __init__(self, name: str, expected: str, prefix: bytes = b"") -> None:
        self._hash = hashlib.new(name, prefix, usedforsecurity=False)
        self._expected = expected

    @classmethod
    def of(cls, entry: FileEntry) -> "ContentDigest | None":
        """Make the digest of an entry; None: its etag is not a hash of the content."""
        if entry.sha256 is not None:
            return cls("sha256", entry.sha256)
        etag = entry.etag or ""
        if entry.size is not None and len(etag) == 40 and set(etag) <= set("0123456789abcdef"):
            return cls("sha1", etag, b"blob %d\0" % entry.size)
        return None

    def update(self, data: memoryview) -> None:
        """Add the next bytes of the content."""
        self._hash.update(data)

    def check(self) -> None:
        """Check that the content has the hash that the Hub named.

        Raises:
            IntegrityError: it has another hash.
        """
        if self._hash.hexdigest() != self._expected:
            raise IntegrityError(
                f"the file has {self._hash.name} {self._hash.hexdigest()}, "
                f"expected {self._expected}"
            )
