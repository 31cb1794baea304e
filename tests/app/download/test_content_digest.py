"""Hashes by which the Hub names files that are not Xet."""

import hashlib
from dataclasses import replace

import pytest

from xetserve.app.download.content_digest import ContentDigest
from xetserve.errors import IntegrityError
from xetserve.net.url import parse_url
from xetserve.upstream.hub.client import FileEntry

ENTRY = FileEntry(None, None, None, None, None, None, None, None, parse_url("http://hub.test/"))


def test_sha256_comes_first() -> None:
    entry = replace(ENTRY, size=3, etag="a" * 40, sha256=hashlib.sha256(b"abc").hexdigest())
    digest = ContentDigest.of(entry)
    assert digest is not None
    digest.update(memoryview(b"ab"))
    digest.update(memoryview(b"c"))
    digest.check()


def test_a_git_blob() -> None:
    # `printf abc | git hash-object --stdin`
    entry = replace(ENTRY, size=3, etag="f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f")
    digest = ContentDigest.of(entry)
    assert digest is not None
    digest.update(memoryview(b"abc"))
    digest.check()
    digest.update(memoryview(b"d"))
    with pytest.raises(IntegrityError, match="sha1"):
        digest.check()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(ENTRY, id="no etag"),
        pytest.param(replace(ENTRY, etag="a" * 40), id="a git blob of unknown size"),
        pytest.param(replace(ENTRY, etag="a" * 39, size=1), id="39 digits"),
        pytest.param(replace(ENTRY, etag="A" * 40, size=1), id="capitals"),
        pytest.param(replace(ENTRY, etag="xyz", size=1), id="something else"),
    ],
)
def test_an_etag_that_is_no_hash_of_the_content(entry: FileEntry) -> None:
    assert ContentDigest.of(entry) is None
