"""`xetserve cache`: looking after a cache while a server uses it, and carrying it to another
site.
"""

from pathlib import Path

import pytest

from tests.conftest import Launcher
from tests.e2e.cached_site import check_without_data, download, entries, start_server
from tests.e2e.clients import curl, file_url, run
from tests.e2e.commands import cache, pull, summary_of, told
from tests.e2e.conftest import TOKEN, Site
from xetserve.pipeline.cache.entry import Indexer, index_size, parse_entry_name, parse_index
from xetserve.xet.compression import Scheme
from xetserve.xet.hashes import parse_hash
from xetserve.xet.xorb import iter_records, make_chunk_header

NAMES = ["random.bin", "repeats.bin", "config.json", "odd/größe-大きさ.bin"]


@pytest.fixture
def folder(site: Site, tmp_path: Path) -> Path:
    """A cache with a few files."""
    include = [part for name in NAMES for part in ("--include", name)]
    summary_of(pull(site, tmp_path / "cache", "--json", *include))
    return tmp_path / "cache"


def test_stats(folder: Path) -> None:
    stats = told(folder, "stats")
    assert stats["entries"]["files"] == len(entries(folder)) > 0
    assert stats["plain"] == {**stats["plain"], "files": 1, "bytes": 23}
    assert stats["ledgers"]["files"] == 3
    assert stats["bytes"] > 3_000_000
    assert stats["quota"] == 32 * 1024**3
    text = cache(folder, "stats").stdout.decode()
    assert f"entries       {len(entries(folder))}, " in text


def test_all_is_well(folder: Path) -> None:
    report = told(folder, "verify")
    assert report["damaged"] == []
    assert report["entries"] == len(entries(folder))
    assert (report["ledgers"], report["plain"]) == (3, 1)
    assert b"0 damaged" in cache(folder, "verify").stdout


def test_damage_is_found_beside_a_server(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path
) -> None:
    served = start_server(site, launcher, folder)
    assert download(served, "random.bin", tmp_path / "out") == []
    for path in entries(folder):
        data = bytearray(path.read_bytes())
        data[len(data) // 3] ^= 1
        path.write_bytes(data)
    report = told(folder, "verify", "--dry-run", status=1)
    assert len(report["damaged"]) == len(entries(folder))
    assert not report["removed"]
    done = cache(folder, "verify")
    assert done.returncode == 1
    assert b"damaged and removed" in done.stdout
    assert entries(folder) == []
    assert told(folder, "verify")["damaged"] == []
    assert download(served, "random.bin", tmp_path / "out") != []


def test_making_room_beside_a_server(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path
) -> None:
    served = start_server(site, launcher, folder)
    assert download(served, "random.bin", tmp_path / "out") == []
    assert told(folder, "gc", "--older-than", "1h")["removed"] == 0
    before = told(folder, "stats")["bytes"]
    freed = told(folder, "gc", "--to", "2MB")
    assert freed["bytes"] <= 2_000_000
    assert freed["removed_bytes"] == before - freed["bytes"]
    assert told(folder, "gc", "--to", "0")["bytes"] == 0
    assert download(served, "random.bin", tmp_path / "out") != []


@pytest.mark.parametrize("through", ["a file", "a pipe"])
def test_a_warm_cache_moves_to_another_site(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path, through: str
) -> None:
    there = tmp_path / "there"
    served = start_server(site, launcher, there)  # it runs already, and has nothing
    if through == "a file":
        archive = tmp_path / "cache.tar"
        written = told(folder, "export", str(archive))
        assert written["unproven"] == 0  # all was pulled as a whole
        taken = told(there, "import", str(archive))
        assert taken["left_out"] > 0  # the Hub's answers
        assert taken["files"] + taken["left_out"] == written["files"]
        everything = ("import", "--with-answers", str(archive))
        assert told(there, *everything)["files"] == taken["left_out"]
        assert told(there, *everything)["skipped"] == written["files"]
        assert not archive.with_name("cache.tar.part").exists()
        data = archive.read_bytes()
    else:
        data = cache(folder, "export", "-").stdout
        done = cache(there, "import", "-", stdin=data)
        assert done.returncode == 0, done.stderr.decode()
    for secret in (TOKEN, "X-Xet-Signed", str(tmp_path)):
        assert secret.encode() not in data
    check_without_data(served, tmp_path, NAMES)
    part = run(curl(file_url(served, "random.bin"), tmp_path / "part", "-r", "1000-1999"))
    assert part.returncode == 0
    assert told(there, "verify")["damaged"] == []


def forge(path: Path) -> None:
    """Overwrite the content of an entry's raw records, and make its checks anew."""
    chunks = parse_entry_name(path.name)
    assert chunks is not None
    xorb_hash, data = parse_hash(path.parent.name), path.read_bytes()
    index = parse_index(data[-index_size(chunks) :], xorb_hash, chunks, len(data))
    forged = bytearray()
    for record in iter_records(data[: index.key.byte_range.size]):
        payload = bytes(record.payload)
        if record.header.scheme is Scheme.NONE:
            payload = payload[:-1] + bytes([payload[-1] ^ 0xFF])
        forged += make_chunk_header(record.header) + payload
    indexer = Indexer(index.key)
    indexer.feed(memoryview(forged))
    path.write_bytes(forged + indexer.make_index().pack())


@pytest.mark.parametrize("has_ledgers", [True, False], ids=["ledgers", "no ledgers"])
def test_what_the_maker_of_an_archive_wrote_is_in_no_range(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path, has_ledgers: bool
) -> None:
    for path in entries(folder):
        forge(path)
    if not has_ledgers:
        for path in folder.glob("ledgers/*/*"):
            path.unlink()
    there, archive = tmp_path / "there", tmp_path / "cache.tar"
    told(folder, "export", str(archive))
    assert told(there, "import", str(archive))["unproven"] > 0
    assert told(there, "verify", "--dry-run")["unproven"]
    assert told(there, "stats")["imported"]["files"] > 0
    served = start_server(site, launcher, there)
    content = (site.uploaded.folder / "random.bin").read_bytes()
    for start in range(0, len(content), len(content) // 16):
        end = min(len(content), start + len(content) // 16)
        out = tmp_path / "part"
        done = run(curl(file_url(served, "random.bin"), out, "-r", f"{start}-{end - 1}"))
        assert (done.returncode, out.read_bytes()) == (0, content[start:end])
    assert download(served, "random.bin", tmp_path / "out") is not None


def test_a_stream_that_breaks_off_is_no_success(folder: Path, tmp_path: Path) -> None:
    data = cache(folder, "export", "-").stdout
    there = tmp_path / "there"
    done = cache(there, "import", "-", stdin=data[: len(data) // 2])
    assert done.returncode == 1
    assert b"cut" in done.stderr
    assert b"Traceback" not in done.stderr
    assert told(there, "verify")["damaged"] == []
    assert cache(there, "import", "-", stdin=data).returncode == 0


def test_an_export_that_fails_leaves_the_old_one(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "cache.tar"
    archive.write_bytes(b"old")
    archive.with_name("cache.tar.part").mkdir()  # in the way
    assert cache(folder, "export", str(archive)).returncode == 1
    assert archive.read_bytes() == b"old"


def test_an_export_follows_no_link_of_others_and_is_not_theirs_to_read(
    folder: Path, tmp_path: Path
) -> None:
    archive, other = tmp_path / "cache.tar", tmp_path / "other"
    other.write_bytes(b"somebody's")
    archive.with_name("cache.tar.part").symlink_to(other)
    assert cache(folder, "export", str(archive)).returncode == 0
    assert other.read_bytes() == b"somebody's"
    assert not archive.is_symlink()
    assert archive.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats"], "there is no cache in"),
        (["verify"], "there is no cache in"),
        (["export", "-"], "there is no cache in"),
        (["gc", "--to", "much"], "there is no cache in"),
        (["gc"], "there is no cache in"),
        ([""], "invalid choice"),
    ],
)
def test_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = cache(tmp_path / "absent", *arguments)
    assert done.returncode == 2
    assert message in done.stderr.decode()
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("flags", [("--to", "much"), ("--older-than", "long ago")])
def test_bad_amounts(folder: Path, flags: tuple[str, str]) -> None:
    done = cache(folder, "gc", *flags)
    assert done.returncode == 2
    assert flags[0] in done.stderr.decode()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    done = cache(tmp_path / "there", "import", str(tmp_path / "absent.tar"))
    assert done.returncode == 1
    assert b"No such file" in done.stderr
