"""A file as clients see it: header fields, validators, and how long caches may store it."""

import re
from dataclasses import dataclass
from mimetypes import MimeTypes
from typing import Final
from urllib.parse import quote

from xetserve.http.conditions import Validators, is_etag
from xetserve.http.dates import format_http_date, parse_http_date
from xetserve.http.digests import format_repr_digest
from xetserve.upstream.hub.client import FileEntry
from xetserve.xet.hashes import format_hash

OCTETS: Final = "application/octet-stream"
MAX_AGE: Final = 31_536_000  # seconds, a year: caches may store fixed content that long

# The built-in types only: answers must not depend on the files in /etc of the machine.
_MEDIA_TYPES: Final = MimeTypes(filenames=())
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")

Fields = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Representation:
    """The metadata of a file, known before any of its bytes.

    size: bytes; None: unknown.
    etag: with quotes.
    last_modified: Unix seconds.
    sha256: in hex.
    file_hash: of a Xet file.
    has_ranges: ranges are served. Also true for a file that is requested by hash, although its size
        is looked up only when a client asks for a range.
    is_fixed: the URL always names this content.
    is_public: the Hub answered without a token.
    was_cut: a transfer of the file was cut recently because of damaged data. A client that has a
        part of the file must not continue it.
    client_was_cut: such a transfer was the client's, which has not got the whole file since.
    is_suspect: the file was cut just now, or has not been verified since, or client_was_cut. A
        client that asks for a range may hold damaged data.
    retry_after: seconds until ranges of a suspect file may be answered, estimated.
    is_hub: the fields are those of the Hub: inline in browsers, X-Linked-Etag.
    is_attached: browsers save the file, even with is_hub.
    hides_xet: no field tells that the file is Xet.
    xet_fields: lead Xet clients to token and reconstruction; used with is_hub.
    """

    name: str
    media_type: str
    size: int | None
    etag: str | None
    last_modified: int | None = None
    sha256: str | None = None
    commit: str | None = None
    file_hash: bytes | None = None
    has_ranges: bool = True
    is_fixed: bool = False
    is_public: bool = False
    was_cut: bool = False
    client_was_cut: bool = False
    is_suspect: bool = False
    retry_after: float | None = None
    is_hub: bool = False
    is_attached: bool = False
    hides_xet: bool = False
    xet_fields: tuple[tuple[str, str], ...] = ()

    @property
    def zstd_etag(self) -> str | None:
        """The entity-tag of the file coded with zstd, which has other bytes (RFC 9110, 8.8.3)."""
        return None if self.etag is None else f'{self.etag[:-1]}-zstd"'

    def get_validators(self, *, takes_zstd: bool) -> Validators:
        """Return the validators that conditions are compared with."""
        tags = (self.etag, self.zstd_etag if takes_zstd else None)
        return Validators(tuple(tag for tag in tags if tag is not None), self.last_modified)

    def make_cache_fields(self, etag: str | None) -> Fields:
        """Return the fields that a 304 has in common with a 200 (RFC 9110, 15.4.5).

        Shared caches do not reuse an answer to a request with a token (RFC 9111, 3.5); "private"
        repeats it. A branch may move, and the right to read may change, so caches have to
        revalidate files of a branch.
        """
        scope = "public" if self.is_public else "private"
        lifetime = f"max-age={MAX_AGE}, immutable" if self.is_fixed else "no-cache"
        fields = [("Cache-Control", f"{scope}, {lifetime}"), ("Vary", "Authorization")]
        optional = (("ETag", etag), ("X-Repo-Commit", self.commit))
        return fields + [(key, value) for key, value in optional if value is not None]

    def make_fields(self) -> Fields:
        """Return the fields of an answer with the file itself, without a content coding."""
        digest = None if self.sha256 is None else format_repr_digest(self.sha256)
        modified = None if self.last_modified is None else format_http_date(self.last_modified)
        is_inline = self.is_hub and not self.is_attached
        file_hash = None if self.hides_xet else self.file_hash
        fields = [
            ("Content-Type", self.media_type),
            ("Content-Disposition", _content_disposition(self.name, is_inline=is_inline)),
            # Files of strangers, served from our host: nothing may run in a browser.
            ("X-Content-Type-Options", "nosniff"),
        ]
        optional = (
            ("Accept-Ranges", "bytes" if self.has_ranges else None),
            ("Last-Modified", modified),
            ("Repr-Digest", digest),
            ("Content-Security-Policy", "default-src 'none'; sandbox" if is_inline else None),
            ("X-Linked-Size", None if self.size is None else str(self.size)),
            ("X-Linked-Etag", self.etag if self.is_hub else None),
            ("X-Xet-Hash", None if file_hash is None else format_hash(file_hash)),
        )
        fields += [(key, value) for key, value in optional if value is not None]
        return [*fields, *self.xet_fields, *self.make_cache_fields(self.etag)]

    def make_zstd_fields(self) -> Fields:
        """Return the fields of an answer with the file coded with zstd.

        Ranges and digests are left out, since they are about the uncoded bytes.
        """
        other = ("Accept-Ranges", "ETag", "Repr-Digest")
        fields = [field for field in self.make_fields() if field[0] not in other]
        fields += [("Content-Encoding", "zstd"), ("Accept-Ranges", "none")]
        return fields if self.zstd_etag is None else [*fields, ("ETag", self.zstd_etag)]


def describe_entry(
    entry: FileEntry, path: str, revision: str, *, is_public: bool, now: float
) -> Representation:
    """Describe a file of a repository.

    Args:
        revision: as the client named it.
        now: Unix seconds, see parse_http_date.
    """
    name = path.rpartition("/")[2]
    media_type, coding = _MEDIA_TYPES.guess_type(name, strict=False)
    if media_type is None or coding is not None:
        media_type = OCTETS
    value = entry.sha256 or entry.etag
    if value is None and entry.file_hash is not None:
        value = format_hash(entry.file_hash)
    etag = None if value is None or not is_etag(f'"{value}"') else f'"{value}"'
    modified = entry.last_modified
    return Representation(
        name,
        media_type,
        entry.size,
        etag,
        last_modified=None if modified is None else parse_http_date(modified, now),
        sha256=entry.sha256,
        commit=entry.commit,
        file_hash=entry.file_hash,
        has_ranges=entry.size is not None,
        is_fixed=revision == entry.commit and _COMMIT.fullmatch(revision) is not None,
        is_public=is_public,
    )


def describe_hash(file_hash: bytes, size: int | None, *, is_public: bool) -> Representation:
    """Describe a file that is requested by its Xet hash."""
    name = format_hash(file_hash)
    return Representation(
        name,
        OCTETS,
        size,
        f'"{name}"',
        file_hash=file_hash,
        is_fixed=True,
        is_public=is_public,
    )


def _content_disposition(name: str, *, is_inline: bool) -> str:
    """Return the value with the file's name, in ASCII for old clients and UTF-8 (RFC 6266, 4.3)."""
    plain = "".join(c if " " <= c <= "~" and c not in '"\\%' else "_" for c in name)
    value = f'{"inline" if is_inline else "attachment"}; filename="{plain}"'
    return value if plain == name else f"{value}; filename*=UTF-8''{quote(name, safe='')}"
