"""A cache as a stream: all of it comes back, and nothing else ever gets in."""

import asyncio
import contextlib
import hashlib
import io
import json
import math
import os
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cachetools.archives import LEFT_OUT, export, take_in
from tests.pipeline.cache.filled import (
    HUB,
    MARK,
    META,
    QUESTION,
    TEXT,
    fill,
    is_served,
    make_said,
    make_store,
    tree_of,
    write_file,
)
from xetserve.cachetools import archive_reader, archive_writer
from xetserve.cachetools.archive import ArchiveError, forget_members
from xetserve.cachetools.select import Selection
from xetserve.errors import UpstreamMissing
from xetserve.net.url import parse_url
from xetserve.pipeline.cache.quota import Quota
from xetserve.pipeline.cache.store import CacheStore, prepare_folder
from xetserve.upstream.answers.folder import BLOCK, IMPORTED
from xetserve.upstream.answers.question import Question, make_path
from xetserve.upstream.answers.scope import ANONYMOUS
from xetserve.upstream.answers.stored_file import Stored, pack_file
from xetserve.upstream.hub.cached_entries import pack_entry, pack_missing
from xetserve.upstream.hub.entry import FileEntry
from xetserve.upstream.imported_answers import make_mark

BROUGHT = META.replace("meta/", f"meta/{IMPORTED}/")


@pytest.fixture(autouse=True)
def _nothing_left_out() -> None:
    LEFT_OUT.clear()


async def test_what_was_exported_is_served_elsewhere(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    data = export(folder)
    counted = take_in(data, there)
    assert tree_of(there) == tree_of(folder)
    assert (there / BROUGHT).read_bytes() == make_said()
    assert counted[:4] == (len(tree_of(folder)), counted.size, 0, 0)
    assert await is_served(there)
    assert export(there) == data
    # Again, and nothing is written twice; what was said last counts.
    assert take_in(data, there)[:3:2] == (0, counted.num)
    for answered_at, num in ((999.0, 0), (1001.0, 1)):
        (folder / META).write_bytes(make_said(META, answered_at))
        assert take_in(export(folder), there)[:3:2] == (num, counted.num - num)
    assert (there / BROUGHT).read_bytes() == make_said(META, 1001.0)
    # What is known there counts more, and is what goes on to others.
    write_file(there / META, make_said(META, 5.0))
    (folder / META).write_bytes(make_said(META, 2000.0))
    assert take_in(export(folder), there).num == 0
    assert dict(members(export(there)))[META] == make_said(META, 5.0)


def test_a_xorb_has_only_so_many_entries(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = export(folder)
    monkeypatch.setattr(archive_reader, "MAX_XORB_ENTRIES", 0)
    with pytest.raises(ArchiveError, match="more than 0 entries of one xorb"):
        take_in(data, tmp_path / "there")


def test_answers_come_only_if_they_are_wanted(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    counted = take_in(export(folder), there, max_answers=0)
    assert (counted.num, counted.num_left_out) == (len(tree_of(folder)) - 2, 2)
    assert not (there / "meta").exists()


def test_what_was_said_elsewhere_is_refused(tmp_path: Path) -> None:
    for content in (make_said("meta/y"), make_said("meta/x")[:-1], b""):
        with pytest.raises(ArchiveError, match="damaged"):
            take_in(pack([GOOD, ("meta/x", content), END]), tmp_path / "cache")


NOW = time.time()
ENTRY = pack_entry(
    FileEntry(
        size=1, etag="e", sha256=None, commit="c" * 40, last_modified=None, content_type=None,
        file_hash=bytes(32), token_url=f"{HUB}/api/token",
        url=parse_url(f"{HUB}/o/n/resolve/main/a"),
    )
).data  # fmt: skip
FILE = QUESTION._replace(kind="file", name=f"{'c' * 40}\0a")
API = QUESTION._replace(kind="api", name="GET\0/api/models/o/n\0\0")
PLAN = f"plans/ab/{'ab' * 32}/0-0"
NO_TERMS = b'{"offset_into_first_range":0,"terms":[],"fetch_info":{}}'
WANTED = {
    "permission": (QUESTION, b"+yes"),
    "entry": (FILE, b"+" + ENTRY),
    "public entry": (FILE._replace(scope=ANONYMOUS), b"+" + ENTRY),
    "no such file": (FILE, b"-" + pack_missing(UpstreamMissing("no", code="EntryNotFound")).data),
    "public hub": (FILE, b"+" + ENTRY.replace(
        b'["http", "hub.example", 80', b'["https", "huggingface.co", 443')),
    "info": (API, b'+[200, [["Link", "<http://hub.example/next>; rel=\\"next\\""]]]\n{}'),
}  # fmt: skip
UNWANTED = {
    "an entry elsewhere": (FILE, b"+" + ENTRY.replace(b"hub.example", b"169.254.169.254"), NOW),
    "another port": (FILE, b"+" + ENTRY.replace(b'"hub.example", 80', b'"hub.example", 8080'), NOW),
    "a token elsewhere": (FILE, b"+" + ENTRY.replace(HUB.encode(), b"http://evil"), NOW),
    "a token anywhere": (FILE, b"+" + ENTRY.replace(b'"http://hub', b'"//hub', 1), NOW),
    "no entry": (FILE, b"+{}", NOW),
    "no JSON": (FILE, b"+x", NOW),
    "a list elsewhere": (API, b'+[200, [["link", "<//evil/>; rel=next"]]]\n[]', NOW),
    "a place elsewhere": (API, b'+[200, [["Location", "http://evil/"]]]\n[]', NOW),
    "no answer": (API, b"+x", NOW),
    "the future": (QUESTION, b"+yes", NOW + 3600),
    "no time": (QUESTION, b"+yes", math.nan),
    "another kind": (QUESTION._replace(kind="other"), b"+yes", NOW),
    "another scope": (QUESTION._replace(scope="abc"), b"+yes", NOW),
}  # fmt: skip


@pytest.mark.parametrize(("question", "body"), WANTED.values(), ids=list(WANTED))
def test_what_may_come(question: Question, body: bytes, tmp_path: Path) -> None:
    name = f"meta/{make_path(question, HUB)}"
    assert take_in(one(name, make_said(name, NOW, question, body)), tmp_path).num == 1, LEFT_OUT
    # And a mark, so that a refusal finds that there is something to refuse.
    assert (tmp_path / "meta" / IMPORTED / make_mark(question, HUB)[0]).is_file()


@pytest.mark.parametrize(("question", "body", "answered_at"), UNWANTED.values(), ids=list(UNWANTED))
def test_what_may_not_come(
    question: Question, body: bytes, answered_at: float, tmp_path: Path
) -> None:
    name = f"meta/{make_path(question, HUB)}"
    counted = take_in(one(name, make_said(name, answered_at, question, body)), tmp_path)
    assert (counted.num, counted.num_left_out) == (0, 1)
    assert LEFT_OUT[0].startswith(f"{name}: ")
    assert tree_of(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "body"),
    [
        (PLAN, b"x"),
        (PLAN.replace("0-0", "0-1"), NO_TERMS),
        (PLAN.replace("/ab/", "/cd/"), NO_TERMS),
        (PLAN.replace("0-0", "x"), NO_TERMS),
        (PLAN.replace("0-0", "end-5"), b"x"),
        ("plans/x", b""),
        ("x", b"+yes"),
    ],
)
def test_plans_that_may_not_come(name: str, body: bytes, tmp_path: Path) -> None:
    data = one(f"meta/{name}", pack_file(name, Stored(0.0, body)))
    assert take_in(data, tmp_path).num_left_out == 1
    assert tree_of(tmp_path) == {}


def test_an_answer_to_another_question_may_not_come(tmp_path: Path) -> None:
    name = f"meta/{make_path(API, HUB)}"
    assert take_in(one(name, make_said(name, NOW, QUESTION)), tmp_path).num_left_out == 1


def test_a_folder_that_a_server_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, num_removed = os.rename, 0

    def remove_first(source: str, target: str) -> None:
        nonlocal num_removed
        if num_removed < 2:
            num_removed += 1
            os.rmdir(os.path.dirname(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", remove_first)
    assert take_in(one(META, make_said()), tmp_path).num == 1
    assert num_removed == 2


def test_answers_keep_to_the_quota(tmp_path: Path) -> None:
    questions = [QUESTION._replace(repo=f"model/o/{number}") for number in range(2000)]
    names = [f"meta/{make_path(question, HUB)}" for question in questions]
    files = [
        (name, make_said(name, NOW, question, b"+" + bytes(3000)))
        for name, question in zip(names, questions, strict=True)
    ]
    manifest = GOOD[1].replace(b'"files": 1', b'"files": 2000')
    data = pack([("manifest.json", manifest), *files, ("end.json", b'{"files": 2000}')])
    for max_size, max_answers in ((1_000_000, 1 << 30), (1 << 40, 1_000_000)):
        there = tmp_path / str(max_size)
        for _ in range(2):
            with pytest.raises(ArchiveError, match="need more than 1000000 bytes"):
                take_in(data, there, max_size, max_answers)
        num = sum(1 for _ in (there / "meta").rglob("*"))
        assert 100_000 < num * BLOCK < 1_000_000


def test_more_than_the_manifest_says_does_not_fit_either(tmp_path: Path) -> None:
    texts = [bytes([number]) * 10_000 for number in range(100)]
    files = [(f"plain/sha256-{hashlib.sha256(text).hexdigest()}", text) for text in texts]
    with pytest.raises(ArchiveError, match=r"a cache of 200\.0 kB has room for 180\.0 kB"):
        take_in(pack([GOOD, *files, END]), tmp_path, 200_000)
    assert len(tree_of(tmp_path)) < 20


def members(data: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = []
        for member in archive:
            source = archive.extractfile(member)
            assert source is not None
            found.append((member.name, source.read()))
        return found


def pack(files: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(mode="w", fileobj=stream, format=tarfile.USTAR_FORMAT) as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def test_names_tell_no_time_and_no_place(folder: Path, tmp_path: Path) -> None:
    data = export(folder)
    names = [name for name, _ in members(data)]
    assert (names[0], names[-1]) == ("manifest.json", "end.json")
    assert names[1:-1] == sorted(names[1:-1], key=lambda name: name.split("/")[0])
    assert str(tmp_path).encode() not in data
    for path in folder.rglob("*"):
        os.utime(path, (0, 1))
    assert export(folder) == data


def test_what_is_damaged_or_odd_stays_here(folder: Path) -> None:
    for path in (*folder.glob("plain/*/*"), *folder.glob("ledgers/*/*"), *folder.glob("??/*/*.xc")):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    (folder / "meta" / ".unfinished").write_bytes(b"x")
    (folder / "meta" / "odd name").write_bytes(b"x")
    (folder / "meta" / "link").symlink_to("/etc/passwd")
    (folder / "stranger").write_bytes(b"x")
    skipped: list[str] = []
    data = export(folder, on_skip=lambda name, reason: skipped.append(name))
    assert [name for name, _ in members(data)] == [
        "manifest.json",
        *sorted([META, f"meta/{MARK[0]}"]),
        "end.json",
    ]
    assert len(skipped) == 2 + len(list(folder.glob("??/*/*.xc")))


# What may come


GOOD = (
    "manifest.json",
    json.dumps({"format": "xetserve-cache", "version": 1, "files": 1, "bytes": 9}).encode(),
)
END = ("end.json", b'{"files": 1}')


def one(name: str, content: bytes = b"x") -> bytes:
    return pack([GOOD, (name, content), END])


def raw_member(name: str, kind: bytes, link: str = "", size: int = 0) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return GOOD_PACKED + info.tobuf(tarfile.USTAR_FORMAT) + bytes(10240)


GOOD_PACKED = pack([GOOD])[: 512 * 2]
HASH = "ab" * 32
HOSTILE = {
    "absolute": one("/etc/cron.d/x"),
    "upwards": one("../../x"),
    "upwards inside": one("meta/../../x"),
    "upwards from a subfolder": one("plain/../x"),
    "dots": one("meta/.."),
    "hidden": one("meta/.x"),
    "a folder of somebody's": one("tmp/x"),
    "the account": one("usage"),
    "no name": one("meta/"),
    "deep": one("meta/" + "a/" * 20 + "x"),
    "upper case": one(f"ledgers/{HASH.upper()}.xl"),
    "new line": one("meta/a\n"),
    "wrong hash": one(f"plain/sha256-{HASH}"),
    "wrong git hash": one(f"plain/git-{HASH[:40]}"),
    "wrong ledger": one(f"ledgers/{HASH}.xl"),
    "wrong entry": one(f"xorbs/{HASH}/0-5.xc", bytes(500)),
    "empty entry": one(f"xorbs/{HASH}/0-5.xc", b""),
    "no chunks": one(f"xorbs/{HASH}/5-5.xc", bytes(500)),
    "backwards": one(f"xorbs/{HASH}/5-4.xc", bytes(500)),
    "huge range": one(f"xorbs/{HASH}/0-999999999.xc", bytes(500)),
    "symbolic link": raw_member("meta/x", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": raw_member("meta/x", tarfile.LNKTYPE, "/etc/passwd"),
    "device": raw_member("meta/x", tarfile.CHRTYPE),
    "fifo": raw_member("meta/x", tarfile.FIFOTYPE),
    "folder": raw_member("meta/x", tarfile.DIRTYPE),
    "long name": raw_member("meta/x", tarfile.GNUTYPE_LONGNAME, size=1 << 30),
    "extended header": raw_member("meta/x", tarfile.XHDTYPE, size=1 << 30),
    "sparse": raw_member("meta/x", tarfile.GNUTYPE_SPARSE, size=1 << 30),
    "large answer": raw_member("meta/x", tarfile.REGTYPE, size=1 << 30),
    "large plain file": raw_member(f"plain/sha256-{HASH}", tarfile.REGTYPE, size=1 << 32),
    "large ledger": raw_member(f"ledgers/{HASH}.xl", tarfile.REGTYPE, size=1 << 32),
    "large entry": raw_member(f"xorbs/{HASH}/0-5.xc", tarfile.REGTYPE, size=1 << 32),
    "no manifest": pack([("meta/x", b"x"), END]),
    "another format": pack(
        [("manifest.json", b'{"format": "x", "version": 1, "files": 1, "bytes": 1}'), END]),
    "a later version": pack([("manifest.json", GOOD[1].replace(b"1,", b"2,", 1)), END]),
    "a manifest without sizes": pack(
        [("manifest.json", b'{"format": "xetserve-cache", "version": 1}')]),
    "a manifest that is none": pack([("manifest.json", b"[]")]),
    "a large manifest": pack([("manifest.json", b" " * 100_000)]),
    "missing files": pack([GOOD, END]),
    "no end": pack([GOOD, (META, make_said())]),
    "nothing": b"",
    "zeros": bytes(20_000),
    "something else": b"x" * 20_000,
}  # fmt: skip


@pytest.mark.parametrize("data", HOSTILE.values(), ids=list(HOSTILE))
def test_what_is_no_export_does_not_get_in(data: bytes, tmp_path: Path) -> None:
    there = tmp_path / "there"
    with pytest.raises(ArchiveError):
        take_in(data, there)
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
    assert set(tree_of(there)) <= {META, f"meta/{MARK[0]}"}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("packed")
    asyncio.run(fill(folder))
    return export(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damage_on_the_way_is_seen(
    packed: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    there = tmp_path_factory.mktemp("there")
    names = dict(members(packed))
    changed = bytearray(packed)
    at = data.draw(st.integers(0, len(packed.rstrip(b"\0")) - 1))
    if data.draw(st.booleans()):
        del changed[at:]
        with pytest.raises(ArchiveError):
            take_in(bytes(changed), there)
    else:
        changed[at] ^= data.draw(st.integers(1, 255))
        with contextlib.suppress(ArchiveError):
            take_in(bytes(changed), there)
    # Whatever has come of it: what is in place is right. (Of answers, their reader sees to that.)
    for path in there.rglob("*"):
        name = str(path.relative_to(there))
        if name.startswith("plain/") and path.is_file():
            assert path.read_bytes() == TEXT
        if name.startswith("ledgers/") and path.is_file():
            assert path.read_bytes() == names[f"ledgers/{path.name}"]
        if path.suffix == ".xc":
            start_end = path.name.rsplit("-", 1)[0]
            assert path.read_bytes() == names[f"xorbs/{path.parent.name}/{start_end}.xc"]


def test_what_came_before_a_cut_stays_and_the_rest_follows(packed: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="cut"):
        take_in(packed[: len(packed) * 2 // 3], tmp_path)
    some = set(tree_of(tmp_path))
    assert some
    counted = take_in(packed, tmp_path)
    assert counted.num_skipped >= len(some) - 1
    assert len(tree_of(tmp_path)) == counted.num + counted.num_skipped


def test_the_quota_is_kept(packed: bytes, tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"a cache of 1\.0 kB has room for 900 B"):
        take_in(packed, tmp_path, max_size=1000)
    assert tree_of(tmp_path) == {}


def test_what_was_here_before_makes_room(packed: bytes, tmp_path: Path) -> None:
    prepare_folder(tmp_path)
    limit = len(packed) * 5 // 4
    store = make_store(tmp_path, limit)
    temporary = store.create(limit - 1000)
    assert temporary is not None
    store.place(temporary, "plain", "git-" + "a" * 40)
    os.close(temporary.fd)
    os.utime(next(tmp_path.glob("plain/*/*")), (0, 0))
    take_in(packed, tmp_path, limit)
    assert not list(tmp_path.glob("plain/aa/*"))
    assert len(tree_of(tmp_path)) == len(members(packed)) - 2


def test_a_disk_that_is_full_is_named(
    packed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Quota, "get_free", lambda self: -1)
    with pytest.raises(ArchiveError, match="the cache or its disk is full"):
        take_in(packed, tmp_path)


def test_what_goes_while_it_is_written_is_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = archive_writer._iter_sources
    calls: list[int] = []

    def list_and_remove(
        store: CacheStore, selection: Selection | None
    ) -> Iterator[archive_writer._Source]:
        found = list(listed(store, selection))
        calls.append(len(found))
        if len(calls) == 2:
            os.unlink(found[0].stored.path)
        return iter(found)

    monkeypatch.setattr(archive_writer, "_iter_sources", list_and_remove)
    data = export(folder)
    assert json.loads(members(data)[-1][1])["files"] == calls[0] - 1


def test_memory_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    questions = [QUESTION._replace(repo=f"model/o/{number}") for number in range(3000)]
    files: list[tuple[str, bytes]] = [
        (name := f"meta/{make_path(question, HUB)}", make_said(name, 1.0, question))
        for question in questions
    ]
    manifest = GOOD[1].replace(b'"files": 1', b'"files": 3000')
    data = pack([("manifest.json", manifest), *files, ("end.json", b'{"files": 3000}')])
    seen: list[int] = []

    def forget(archive: tarfile.TarFile) -> None:
        seen.append(len(archive.members))  # type: ignore[attr-defined]
        forget_members(archive)

    monkeypatch.setattr(archive_reader, "forget_members", forget)
    assert take_in(data, tmp_path).num == 3000
    assert max(seen) <= 2
