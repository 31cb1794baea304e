import io
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from xetserve import __version__
from xetserve.deploy import package as module
from xetserve.deploy.machine import DeployError
from xetserve.deploy.package import (
    SHARED,
    UNITS,
    find_clone,
    read_own_package,
    read_package,
)

ROOT = Path(__file__).parents[2]


def make_wheel(path: Path, version: str = "1.2", units: tuple[str, ...] = UNITS) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            f"xetserve-{version}.dist-info/METADATA", f"Name: x\nVersion: {version}\n\nVersion: 9\n"
        )
        for name in units:
            archive.writestr(f"xetserve-{version}.data/data/share/xetserve/systemd/{name}", name)
        archive.writestr("xetserve/deploy/requirements.lock", "requirements.lock")
        archive.writestr("other/requirements.lock", "of another one")
    return path


def make_sdist(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        units = [f"systemd/{unit}" for unit in UNITS]
        lock = "xetserve/deploy/requirements.lock"
        for name in ("PKG-INFO", *units, "tests/systemd/x", lock):
            content = b"Version: 1.2\n" if name == "PKG-INFO" else name.rpartition("/")[2].encode()
            info = tarfile.TarInfo(f"xetserve-1.2/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_a_wheel_and_an_sdist(tmp_path: Path) -> None:
    for path in (make_wheel(tmp_path / "x.whl"), make_sdist(tmp_path / "x.tar.gz")):
        found = read_package(path)
        assert (found.version, found.requirement) == ("1.2", str(path))
        assert found.name.startswith("1.2-")
        assert found.units == {name: name.encode() for name in UNITS}
        assert found.lock == b"requirements.lock"


def test_other_content_of_the_same_version_has_another_name(tmp_path: Path) -> None:
    one = read_package(make_wheel(tmp_path / "x.whl"))
    with zipfile.ZipFile(tmp_path / "x.whl", "a") as archive:
        archive.writestr("more", "x")
    assert read_package(tmp_path / "x.whl").name != one.name


def test_a_source_folder() -> None:
    found = read_package(ROOT)
    assert found.version == __version__
    assert found.units == {name: (ROOT / "systemd" / name).read_bytes() for name in UNITS}
    assert found.lock == (ROOT / "xetserve/deploy/requirements.lock").read_bytes()
    assert read_package(ROOT) == found


def test_what_runs_now_is_the_clone(tmp_path: Path) -> None:
    assert find_clone() == ROOT
    assert read_own_package(tmp_path) == read_package(ROOT)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The code runs in an environment below the folder that is returned."""
    prefix = tmp_path / "versions" / "1.2-aaaa"
    package = prefix / "lib/python3/site-packages/xetserve/deploy/package.py"
    package.parent.mkdir(parents=True)
    (prefix / SHARED).mkdir(parents=True)
    for name in UNITS:
        (prefix / SHARED / name).write_text(name)
    monkeypatch.setattr(module, "__file__", str(package))
    monkeypatch.setattr(sys, "prefix", str(prefix))
    return prefix.parent


def test_what_runs_now_is_what_was_deployed(installed: Path) -> None:
    (installed / "1.2-aaaa" / ".complete").touch()
    found = read_own_package(installed)
    assert (found.version, found.name) == (__version__, "1.2-aaaa")
    assert found.units == {name: name.encode() for name in UNITS}


def test_nothing_is_installed_by_its_name(installed: Path, tmp_path: Path) -> None:
    """An index may have anything under this name."""
    assert find_clone() is None
    for folder in (installed, tmp_path):
        with pytest.raises(DeployError, match=r"name the wheel, .* \(--from PATH\)"):
            read_own_package(folder)


def test_what_is_none_of_ours(tmp_path: Path) -> None:
    (tmp_path / "x.whl").write_bytes(b"PK")
    (tmp_path / "x.tar.gz").write_bytes(b"x")
    (tmp_path / "x.txt").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    for name in ("x.whl", "x.tar.gz", "x.txt", "folder", "absent.whl"):
        with pytest.raises(DeployError, match=name):
            read_package(tmp_path / name)
    with pytest.raises(DeployError, match=r"has no xetserve\.socket"):
        read_package(make_wheel(tmp_path / "y.whl", units=UNITS[:1]))
