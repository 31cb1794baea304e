"""The form of an archive: a cache as one stream, a tar archive (ustar) to be carried to another
site.

    manifest.json                               what this is, and about how much follows
    xorbs/{64 hex: xorb hash}/{start}-{end}.xc  entries
    ledgers/{64 hex: file hash}.xl              ledgers of proven files
    plain/{git or sha256}-{hex}                 files that are not Xet
    large/{git or sha256}-{hex}                 large ones, see pipeline/cache/blob_file.py
    meta/...                                    cached answers of the Hub
    end.json                                    how much there was: without it, the stream was cut

Files are in the order of their names, and no time or place is recorded: equal content makes an
equal stream, apart from how entries are cut. A cache holds no tokens, so an archive holds none.

An import trusts nothing that it reads. Names are parsed, and never used as paths. Members that are
not regular files are refused by their header. Every file is checked before others can see it.
Nothing can prove the Hub's answers, so they are imported only on request (answer_importer.py): into
a folder of their own, within a limit of size, and never in place of an answer that is known here.
Everything here blocks.
"""

import os
import re
import tarfile
from collections.abc import Callable
from typing import Final, NamedTuple

from xetserve.errors import XetserveError
from xetserve.pipeline.cache.blob_file import check_stored
from xetserve.pipeline.cache.layout import LARGE, PLAIN, Stored
from xetserve.pipeline.verify.ledger_file import parse_ledger
from xetserve.xet.hashes import parse_hash
from xetserve.xet.xorb import MAX_XORB_SIZE

FORMAT: Final = "xetserve-cache"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
END: Final = "end.json"
BLOCK_SIZE: Final = 1024 * 1024  # bytes
MAX_DOCUMENT_SIZE: Final = 65536  # bytes of manifest and end
MAX_META_SIZE: Final = 16 * 1024 * 1024
# A xorb has at most MAX_XORB_SIZE payload bytes; headers and index are extra.
MAX_ENTRY_SIZE: Final = 2 * MAX_XORB_SIZE

ENTRY_NAME: Final = re.compile(
    r"xorbs/([0-9a-f]{64})/(0|[1-9]\d{0,8})-([1-9]\d{0,8})\.xc", re.ASCII
)
META_NAME: Final = re.compile(r"meta(?:/[A-Za-z0-9_][A-Za-z0-9_.=-]{0,79}){1,5}")


class ArchiveError(XetserveError):
    """The archive is malformed, or there is no room for it. Files read before the error stay."""


class Counted(NamedTuple):
    """The number of files, their bytes, and the files skipped: damaged (export) or known (import).

    num_left_out: answers of the Hub that were not wanted, or must not be imported.
    num_unproven: entries left out because they are not proven (export), or imported unproven
    (import).
    """

    num: int
    size: int
    num_skipped: int
    num_left_out: int = 0
    num_unproven: int = 0


def make_file_check(subfolder: str, stored: Stored) -> Callable[[int], object]:
    """Return a function that checks an open file of a subfolder; it raises FormatError."""
    if subfolder in (PLAIN, LARGE):
        return lambda fd: check_stored(fd, subfolder, stored.name)
    file_hash = parse_hash(stored.name.partition(".")[0])
    return lambda fd: parse_ledger(os.pread(fd, stored.size + 1, 0), file_hash)


def forget_members(archive: tarfile.TarFile) -> None:
    """Keep an archive from remembering every member that it has seen."""
    archive.members = []  # type: ignore[attr-defined]
