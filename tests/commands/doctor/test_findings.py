import os
import resource
import shutil
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xetserve.commands.doctor.findings import Level, check_ca, check_cache, check_clock, check_files
from xetserve.config.schema import CacheConfig, Config
from xetserve.pipeline.cache.health import USEFUL_SIZE

NOBODY = 65534


@pytest.mark.parametrize(
    ("date", "level", "text"),
    [
        pytest.param("Tue, 14 Nov 2023 22:13:20 GMT", Level.OK, "the same as the Hub's", id="same"),
        pytest.param("Tue, 14 Nov 2023 22:13:10 GMT", Level.OK, "10 s ahead of", id="a bit"),
        pytest.param("Tue, 14 Nov 2023 22:12:20 GMT", Level.WARN, "60 s ahead of", id="ahead"),
        pytest.param("Tue, 14 Nov 2023 22:23:20 GMT", Level.FAIL, "600 s behind", id="behind"),
        pytest.param("yesterday", Level.WARN, "has no valid Date", id="no date"),
        pytest.param(None, Level.WARN, "has no valid Date", id="none"),
    ],
)
def test_clock(date: str | None, level: Level, text: str) -> None:
    found = check_clock(date, 1_700_000_000.0)
    assert found.level is level
    assert text in found.text
    assert ("timedatectl" in found.advice) == (" behind" in text or "60 s" in text)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can reach."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


def with_cache(folder: Path, size: int = USEFUL_SIZE, min_free: int = 0) -> Config:
    return Config(cache=CacheConfig(str(folder), size, min_free))


def test_a_cache_that_is_too_small_for_large_pieces(tmp_path: Path) -> None:
    found = check_cache(with_cache(tmp_path, size=20_000_000))
    assert found.level is Level.WARN
    assert "nothing larger than 10.0 MB at a time is kept" in found.text
    assert "136.3 MB or more" in found.advice


def test_no_cache() -> None:
    assert check_cache(Config()).level is Level.OK


def test_a_folder_that_is_good_or_can_be_made(tmp_path: Path) -> None:
    assert check_cache(with_cache(tmp_path)).level is Level.OK
    found = check_cache(with_cache(tmp_path / "a" / "b"))
    assert (found.level, found.text.rpartition(", ")[2]) == (Level.OK, "the server will create it")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_read_only(open_folder: Path) -> None:
    open_folder.chmod(0o555)
    user = os.geteuid()
    if user == 0:  # who may write everywhere
        os.seteuid(NOBODY)
    try:
        for folder in (open_folder, open_folder / "new"):
            found = check_cache(with_cache(folder))
            assert found.level is Level.FAIL
            assert f"cannot write to {open_folder}" in found.text
            assert str(folder) in found.advice
    finally:
        os.seteuid(user)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert check_cache(with_cache(tmp_path / "file")).level is Level.FAIL


def test_room(tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path).free
    assert check_cache(with_cache(tmp_path, min_free=free * 2)).level is Level.FAIL
    assert check_cache(with_cache(tmp_path, size=free * 2)).level is Level.WARN
    (tmp_path / "usage").write_text(str(free * 2))  # what the cache has already counts
    assert check_cache(with_cache(tmp_path, size=free * 2)).level is Level.OK


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for hard, level in (
        (resource.RLIM_INFINITY, Level.OK),
        (20_000, Level.OK),
        (1024, Level.WARN),
        (200, Level.FAIL),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, hard=hard: (hard, hard))
        assert check_files(10_000).level is level


def test_ca(tmp_path: Path) -> None:
    empty = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    good = ssl.create_default_context()
    assert check_ca(empty, {}, is_needed=False).level is Level.OK
    assert check_ca(good, {}, is_needed=True).level is Level.OK
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        found = check_ca(good, {name: str(tmp_path / "absent")}, is_needed=True)
        assert (found.level, found.advice) == (Level.FAIL, f"correct {name}")
