"""A cache folder that another version has used, before an upgrade or before its rollback."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment
from tests.e2e.cached_site import check_without_data, download, start_server
from tests.e2e.clients import Connection
from tests.e2e.commands import TIMEOUT, cache, pull, summary_of, told
from tests.e2e.conftest import Site

NAME = "random.bin"
# Where the mark of a file is, and the marks of this version and of a later one.
MARKS = {
    "??/*/*.xc": (-8, b"xscache2", b"xscache3"),
    "ledgers/??/*.xl": (0, b"xsledgr1", b"xsledgr2"),
    "meta/**/*": (0, b"xsmeta2\n", b"xsmeta3\n"),
}


def swap_marks(folder: Path, *, back: bool = False, only: set[Path] | None = None) -> set[Path]:
    """Give files the mark of the later version, or back; return the files."""
    changed = set()
    for pattern, (at, *marks) in MARKS.items():
        old, new = reversed(marks) if back else marks
        for path in folder.glob(pattern):
            if not path.is_file() or (only is not None and path not in only):
                continue
            data = bytearray(path.read_bytes())
            start = len(data) + at if at < 0 else at
            assert data[start : start + 8] == old
            data[start : start + 8] = new
            path.write_bytes(data)
            changed.add(path)
    return changed


@pytest.fixture
def folder(site: Site, tmp_path: Path) -> Path:
    """A cache with one Xet file, in the format of a later version."""
    summary_of(pull(site, tmp_path / "cache", "--json", "--include", NAME))
    return tmp_path / "cache"


def counters(site: Site) -> str:
    connection = Connection(site.server.url)
    try:
        return connection.ask("/metrics").body.decode()
    finally:
        connection.close()


def test_files_of_another_version_are_counted_apart_and_kept(folder: Path) -> None:
    before = told(folder, "stats")
    assert before["other_versions"]["files"] == 0
    files = swap_marks(folder)
    stats = told(folder, "stats")
    assert stats["other_versions"]["files"] == len(files)
    assert stats["bytes"] == before["bytes"]
    text = cache(folder, "stats").stdout.decode()
    assert f"other version {len(files)}, " in text
    found = told(folder, "verify")
    assert found["damaged"] == []
    counted = {path for path in files if "meta" not in path.parts}  # those are not verified
    assert {folder / name for name in found["other_versions"]} == counted
    done = cache(folder, "verify")
    assert b"of another version (format 3, this version reads 2): kept, not used" in done.stderr
    assert told(folder, "gc")["removed"] == 0
    assert all(path.exists() for path in files)
    assert told(folder, "gc", "--to", "0")["removed"] > 0  # room is made as ever
    assert not any(path.exists() for path in counted)


def test_a_server_leaves_them_alone_and_keeps_its_own_beside_them(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path
) -> None:
    files = swap_marks(folder)
    used = start_server(site, launcher, folder)
    assert download(used, NAME, tmp_path / "out")
    # As if the later version was started again: its files are as good as before.
    assert {path for path in files if path.suffix == ".xc"} <= {
        path for path in files if path.exists()
    }
    assert not download(used, NAME, tmp_path / "out")  # the second time from the cache
    text = counters(used)
    assert "\nxetserve_cache_damaged_total 0\n" in text
    assert "\nxetserve_metadata_damaged_total 0\n" in text
    check_without_data(used, tmp_path, [NAME])
    site.control.set_faults()
    assert used.server.stop() == 0
    found = told(folder, "verify")
    assert found["damaged"] == []
    assert found["ledgers"] == 1  # the ledger is ours now: the file was proven again
    # Forward again: the files of the later version are read as its own.
    swap_marks(folder, back=True, only={path for path in files if path.suffix == ".xc"})
    assert told(folder, "verify")["other_versions"] == []
    check_without_data(start_server(site, launcher, folder), tmp_path, [NAME])


def test_an_export_names_them(folder: Path, tmp_path: Path) -> None:
    swap_marks(folder)
    done = cache(folder, "export", str(tmp_path / "archive.tar"))
    assert done.returncode == 1
    assert b"format 3, this version reads 2" in done.stderr


UNREADABLE = """
import os, sys
scandir = os.scandir
def refuse(path):
    if str(path).endswith("/ledgers"):
        raise PermissionError(13, "Permission denied", str(path))
    return scandir(path)
os.scandir = refuse
from xetserve.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("action", ["stats", "verify"])
def test_a_folder_that_cannot_be_read_is_a_failure(folder: Path, action: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNREADABLE, "cache", action, "--cache-dir", str(folder)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 1
    assert f"{folder}/ledgers: Permission denied" in done.stderr
    assert "could not be read, so the figures are incomplete" in done.stderr
    assert f"chown -R --reference={folder} {folder}\n" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout
