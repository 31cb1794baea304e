"""The hash of a file's content, as the Hub names it for files that are not Xet."""

import hashlib

from xetserve.errors import IntegrityError
from xetserve.upstream.hub.client import FileEntry


class ContentDigest:
    """The hash that the Hub names a plain file by: sha256, or SHA-1 of a git blob."""

    def __init__(self, name: str, expected: str, prefix: bytes = b"") -> None:
        self._hash = hashlib.new(name, prefix, usedforsecurity=False)
        self._expected = expected

    @classmethod
    def of(cls, entry: FileEntry) -> "ContentDigest | None":
        """Make the digest for an entry; None if its etag is not a hash of the content."""
        if entry.sha256 is not None:
            return cls("sha256", entry.sha256)
        etag = entry.etag or ""
        if entry.size is not None and len(etag) == 40 and set(etag) <= set("0123456789abcdef"):
            return cls("sha1", etag, b"blob %d\0" % entry.size)
        return None

    def update(self, data: memoryview) -> None:
        """Take in the next bytes."""
        self._hash.update(data)

    def check(self) -> None:
        """Compare.

        Raises:
            IntegrityError: the content is not the one that was named.
        """
        if self._hash.hexdigest() != self._expected:
            raise IntegrityError(
                f"the file has {self._hash.name} {self._hash.hexdigest()}, "
                f"expected {self._expected}"
            )
