"""Files that are not Xet: names, checks and damage of the stored files."""

import hashlib
import os
import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from xetserve.errors import FormatError
from xetserve.pipeline.cache import blob_file
from xetserve.pipeline.cache.blob_file import (
    BLOCK_SIZE,
    MAX_SMALL_SIZE,
    BlobKey,
    CheckWriter,
    check_plain,
    check_trailer,
    read_block,
)

CONTENT = random.Random(3).randbytes(2 * BLOCK_SIZE + 1000)
KEY = BlobKey("sha256", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
sizes = st.integers(0, 3 * BLOCK_SIZE) | st.integers(0, 1 << 44)


@given(sizes, st.sampled_from(["sha256", "git"]))
def test_names_are_read_again(size: int, kind: str) -> None:
    digest = "a" * (64 if kind == "sha256" else 40)
    for offset in (0, MAX_SMALL_SIZE):
        key = BlobKey(kind, digest, offset + size)
        assert BlobKey.parse(key.subfolder, key.name, key.stored_size) == key


@given(sizes, st.sampled_from(["plain", "large"]))
def test_sizes_that_none_has(size: int, subfolder: str) -> None:
    try:
        key = BlobKey.parse(subfolder, KEY.name, size)
    except FormatError:
        return
    assert (key.subfolder, key.stored_size) == (subfolder, size)


def test_a_few_sizes_that_none_has() -> None:
    stored = BlobKey("git", "a" * 40, MAX_SMALL_SIZE + BLOCK_SIZE).stored_size
    for subfolder, size in (
        ("plain", MAX_SMALL_SIZE + 1),
        ("large", 0),
        ("large", MAX_SMALL_SIZE),
        ("large", stored + 1),  # a block of less than nothing
        ("large", stored + 4),
    ):
        with pytest.raises(FormatError):
            BlobKey.parse(subfolder, KEY.name, size)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_file, "MAX_SMALL_SIZE", 1000)


def write(path: Path, cuts: list[int], content: bytes = CONTENT, key: BlobKey = KEY) -> int:
    """Write a large file in pieces; gives it open."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.ftruncate(fd, key.stored_size)
    checks = CheckWriter(fd, key)
    places = [0, *sorted(cuts), len(content)]
    for start, end in pairwise(places):
        os.write(fd, content[start:end])
        checks.feed(memoryview(content)[start:end])
    return fd


@given(st.lists(st.integers(0, len(CONTENT)), max_size=5), st.integers(0, len(CONTENT) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_whatever_the_pieces(
    small_limit: None, tmp_path: Path, cuts: list[int], position: int
) -> None:
    fd = write(tmp_path / "file", cuts)
    try:
        check_trailer(fd, KEY)
        seen: list[int] = []
        check_plain(fd, KEY, seen.append)
        assert sum(seen) == len(CONTENT)
        end = min(len(CONTENT), (position // BLOCK_SIZE + 1) * BLOCK_SIZE)
        assert read_block(fd, KEY, position) == CONTENT[position:end]
    finally:
        os.close(fd)


@pytest.mark.parametrize("at", [0, len(CONTENT) - 1, len(CONTENT), KEY.size + 11])
def test_damage_is_found_by_block(small_limit: None, tmp_path: Path, at: int) -> None:
    fd = write(tmp_path / "file", [])
    os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 4]), at)
    number = at // BLOCK_SIZE if at < KEY.size else (at - KEY.size) // 4
    for block in range(3):
        if block == number:
            with pytest.raises(FormatError, match=f"damaged in block {block}"):
                read_block(fd, KEY, block * BLOCK_SIZE)
        else:
            read_block(fd, KEY, block * BLOCK_SIZE)
    os.close(fd)


@pytest.mark.parametrize("how", ["cut", "longer", "another", "unfinished", "trailer"])
def test_what_is_not_a_complete_one(small_limit: None, tmp_path: Path, how: str) -> None:
    key = BlobKey("sha256", "b" * 64, KEY.size) if how == "another" else KEY
    content = CONTENT[:-1] if how == "unfinished" else CONTENT
    fd = write(tmp_path / "file", [], content, key)
    size = os.fstat(fd).st_size
    if how in ("cut", "longer"):
        os.ftruncate(fd, size + (1 if how == "longer" else -1))
    elif how == "trailer":
        os.pwrite(fd, b"X", size - 1)
    for check in (check_trailer, check_plain):
        with pytest.raises(FormatError, match="complete"):
            check(fd, KEY)
    os.close(fd)


def test_content_that_is_another(small_limit: None, tmp_path: Path) -> None:
    fd = write(tmp_path / "file", [], b"x" + CONTENT[1:])
    check_trailer(fd, KEY)
    with pytest.raises(FormatError, match="that are not sha256-"):
        check_plain(fd, KEY)
    os.close(fd)
