"""Kept entries of files: which of them never change."""

import json

import pytest

from xetserve.errors import UpstreamMissing
from xetserve.net.url import Url, parse_url
from xetserve.upstream.hub.cached_entries import is_lasting, pack_entry, pack_missing
from xetserve.upstream.hub.entry import FileEntry

COMMIT = "c" * 40
ENTRY = FileEntry(
    size=1,
    etag="e",
    sha256=None,
    commit=COMMIT,
    last_modified=None,
    content_type=None,
    file_hash=None,
    token_url=None,
    url=parse_url("http://hub/o/n/resolve/main/a"),
)
GOOD = pack_entry(ENTRY).data
MISSING = pack_missing(UpstreamMissing("no", code="EntryNotFound")).data


def is_on_hub(url: Url) -> bool:
    return url.origin.host == "hub"


@pytest.mark.parametrize(
    ("data", "revision", "expected"),
    [
        pytest.param(GOOD, COMMIT, True, id="of its commit"),
        pytest.param(GOOD, "main", False, id="of a branch"),
        pytest.param(GOOD, "d" * 40, False, id="of another commit"),
        pytest.param(MISSING, COMMIT, False, id="no such file"),
        pytest.param(GOOD.replace(b'"hub"', b'"169.254.169.254"'), COMMIT, False, id="elsewhere"),
        pytest.param(b"{}", COMMIT, False, id="no entry"),
        pytest.param(json.dumps([1]).encode(), COMMIT, False, id="no object"),
        pytest.param(b"x", COMMIT, False, id="no JSON"),
    ],
)
def test_what_never_changes(data: bytes, revision: str, expected: bool) -> None:
    assert is_lasting(data, revision, is_on_hub) == expected
