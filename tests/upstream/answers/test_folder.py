"""The folder of cached answers."""

import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3

from xetserve.metrics.catalogue import METADATA_DAMAGED
from xetserve.upstream.answers.folder import BLOCK, LEFTOVER_AGE, AnswerFolder
from xetserve.upstream.answers.stored_file import Stored

NAME = "anonymous/ab/cd"


@pytest.fixture
def folder(tmp_path: Path) -> AnswerFolder:
    return AnswerFolder(tmp_path / "meta", max_size=100 * BLOCK)


def test_what_is_written_is_read(folder: AnswerFolder, tmp_path: Path) -> None:
    assert folder.read(NAME) is None
    folder.write(NAME, Stored(1.5, b"body"))
    assert folder.read(NAME) == Stored(1.5, b"body")
    folder.write(NAME, Stored(2.5, b""))
    assert folder.read(NAME) == Stored(2.5, b"")
    assert folder.list("anonymous/ab") == ["cd"]
    assert folder.list("anonymous/no") == []
    folder.remove(NAME)
    folder.remove(NAME)
    assert folder.read(NAME) is None


def test_what_it_is_about_is_told(folder: AnswerFolder, tmp_path: Path) -> None:
    stored = Stored(1.5, b"body", "model/o/n\0größe\udcff")
    folder.write(NAME, stored)
    assert folder.read(NAME) == stored
    for about in (b"\xff", b""):  # no text, and less than there should be
        rest = struct.pack("<dI", 1.5, 1) + about
        (tmp_path / "meta" / NAME).write_bytes(b"xsmeta2\n" + make_check(NAME, rest) + rest)
        assert folder.read(NAME) is None


def test_what_was_written_before_is_read(folder: AnswerFolder, tmp_path: Path) -> None:
    folder.write(NAME, Stored(1.5, b"body"))
    rest = struct.pack("<d", 2.5) + b"said"
    (tmp_path / "meta" / NAME).write_bytes(b"xsmeta1\n" + make_check(NAME, rest) + rest)
    assert folder.read(NAME) == Stored(2.5, b"said")


def make_check(path: str, rest: bytes) -> bytes:
    return blake3(path.encode() + b"\0" + rest).digest(16)


def test_nobody_else_may_look(folder: AnswerFolder, tmp_path: Path) -> None:
    folder.write(NAME, Stored(1.0, b"body"))
    found = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "meta").rglob("*")}
    assert set(found.values()) == {0o700, 0o600}
    assert found[tmp_path / "meta" / NAME] == 0o600


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"", lambda data: data[:20],
     lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: b"XSMETA1\n" + data[8:],
     lambda data: data[:26] + bytes([data[26] ^ 1]) + data[27:]],
    ids=["cut", "longer", "empty", "no body", "body", "magic", "time"],
)  # fmt: skip
def test_what_is_damaged_is_a_miss(
    folder: AnswerFolder, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    folder.write(NAME, Stored(1.0, b"body"))
    path = tmp_path / "meta" / NAME
    path.write_bytes(damage(path.read_bytes()))
    before = METADATA_DAMAGED.total
    assert folder.read(NAME) is None
    assert METADATA_DAMAGED.total == before + 1
    assert not path.exists()


def test_an_answer_to_somebody_else_is_a_miss(folder: AnswerFolder, tmp_path: Path) -> None:
    folder.write(NAME, Stored(1.0, b"body"))
    other = tmp_path / "meta" / "0123" / "ab" / "cd"
    other.parent.mkdir(parents=True)
    os.rename(tmp_path / "meta" / NAME, other)
    assert folder.read("0123/ab/cd") is None


def test_what_is_minor_goes_first_and_what_is_used_last(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path, max_size=20 * BLOCK)
    past = time.time() - 7200
    for name in ("used", "unused"):
        folder.write(f"s/{name}", Stored(1.0, b""))
        os.utime(tmp_path / "s" / name, (past, past))
    for number in range(100):
        folder.write(f"s/minor{number}", Stored(1.0, b""), is_minor=True)
    assert {"used", "unused"} <= set(folder.list("s"))
    folder.read("s/used")
    for number in range(19):
        folder.write(f"s/{number}", Stored(1.0, b""))
        os.utime(tmp_path / "s" / str(number), (past + 3600, past + 3600))
    kept = set(folder.list("s"))
    assert "used" in kept
    assert "unused" not in kept


def test_what_was_written_longest_ago_goes_first(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path, max_size=10 * BLOCK)
    for number in range(25):
        folder.write(f"s/{number}", Stored(1.0, bytes(10)))
        os.utime(tmp_path / "s" / str(number), (number, number))
    kept = sorted(int(name) for name in folder.list("s"))
    assert kept == list(range(kept[0], 25))
    assert 5 <= len(kept) <= 10


def test_what_is_too_large_is_left_out(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path, max_size=10 * BLOCK)
    folder.write("s/a", Stored(1.0, bytes(6 * BLOCK)))
    assert folder.read("s/a") is None


def test_leftovers_of_a_crash_go(tmp_path: Path) -> None:
    old, new = tmp_path / "s" / ".old", tmp_path / "s" / ".new"
    old.parent.mkdir()
    for path in (old, new):
        path.write_bytes(b"")
    past = time.time() - LEFTOVER_AGE - 60
    os.utime(old, (past, past))
    folder = AnswerFolder(tmp_path, max_size=10 * BLOCK)
    folder.write("s/a", Stored(1.0, b""))
    assert (old.exists(), new.exists()) == (False, True)
    assert folder.list("s") == ["a"]


# Shares of a full folder


def fill_scope(folder: AnswerFolder, scope: str, *numbers: int) -> None:
    for number in numbers:
        folder.write(f"{scope}/{number % 256:02x}/{number:064x}", Stored(1.0, bytes(3000)))


def count_files(folder: Path, scope: str) -> int:
    return sum(path.is_file() for path in (folder / scope).rglob("*"))


def measure(folder: Path) -> int:
    """Bytes of all files and folders, in blocks."""
    return BLOCK * sum(1 for _ in folder.rglob("*"))


@pytest.mark.parametrize("flood", ["e" * 32, "anonymous", "plans", "imported"])
def test_one_scope_does_not_push_out_the_others(tmp_path: Path, flood: str) -> None:
    folder = AnswerFolder(tmp_path, max_size=1000 * BLOCK)
    others = {"a" * 32, "b" * 32, "anonymous", "plans", "imported"} - {flood}
    for scope in others:
        fill_scope(folder, scope, *range(30))
        for path in (tmp_path / scope).rglob("*"):
            os.utime(path, (0, 0))
    fill_scope(folder, flood, *range(3000))
    assert {scope: count_files(tmp_path, scope) for scope in others} == dict.fromkeys(others, 30)
    assert count_files(tmp_path, flood) > 100
    assert measure(tmp_path) <= 1000 * BLOCK


def test_many_scopes_share_what_tokens_have(tmp_path: Path) -> None:
    folder = AnswerFolder(tmp_path, max_size=600 * BLOCK)
    fill_scope(folder, "anonymous", *range(60))
    for number in range(1500):
        fill_scope(folder, f"{number:032x}", number)
        if not number % 50:
            assert measure(tmp_path) <= 600 * BLOCK
    assert count_files(tmp_path, "anonymous") == 60
    # No folder is left without a file.
    assert all(count_files(tmp_path, path.name) for path in tmp_path.iterdir())
    assert len(list(tmp_path.iterdir())) < 300


def test_removing_the_last_file_removes_its_folders(folder: AnswerFolder, tmp_path: Path) -> None:
    folder.write(NAME, Stored(1.0, b""))
    folder.remove(NAME)
    assert list(tmp_path.rglob("*")) == [tmp_path / "meta"]


def test_a_folder_that_somebody_removes_meanwhile_is_made_again(
    folder: AnswerFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(NAME, Stored(1.0, b""))
    open_file, num_swept = os.open, 0

    def sweep_first(*args: object, **kwargs: object) -> object:
        nonlocal num_swept
        num_swept += 1
        if num_swept < 3:
            (tmp_path / "meta/other/ab").rmdir()
        return open_file(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", sweep_first)
    folder.write("other/ab/cd", Stored(1.0, b"body"))
    assert num_swept == 3
    assert (tmp_path / "meta/other/ab/cd").is_file()


def test_odd_things_do_not_end_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = AnswerFolder(tmp_path, max_size=20 * BLOCK)
    fill_scope(folder, "0", 1, 2)
    os.mkfifo(tmp_path / "0/fifo")
    (tmp_path / "0/link").symlink_to("nowhere")
    for path in (tmp_path / "0").rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)
    stays = tmp_path / f"0/01/{1:064x}"
    unlink = os.unlink

    def refuse(path: str | Path) -> None:
        if str(path) == str(stays):
            raise PermissionError(1, "Operation not permitted")
        unlink(path)

    monkeypatch.setattr(os, "unlink", refuse)
    fill_scope(folder, "0", *range(100, 140))
    assert stays.exists()
    assert 5 < count_files(tmp_path, "0") <= 20


def test_what_is_first_and_what_needs_another(folder: AnswerFolder) -> None:
    folder.write("s/a", Stored(1.0, b""), only_with="s/b")
    assert folder.read("s/a") is None
    folder.write("s/b", Stored(1.0, b""), is_first=True)
    folder.write("s/b", Stored(2.0, b""), is_first=True)
    folder.write("s/a", Stored(3.0, b""), only_with="s/b")
    assert (folder.read("s/a"), folder.read("s/b")) == (Stored(3.0, b""), Stored(1.0, b""))
