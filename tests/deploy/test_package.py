import io
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

from xetserve import __version__
from xetserve.deploy import package as module
from xetserve.deploy.machine import DeployError
from xetserve.deploy.package import UNITS, read_package

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


def test_what_runs_now() -> None:
    found = read_package(None)
    assert (found.version, found.requirement) == (__version__, f"xetserve=={__version__}")
    assert set(found.units) == set(UNITS)
    assert found.lock == read_package(ROOT).lock


@pytest.mark.parametrize(
    ("site", "data"),
    [
        pytest.param("lib/python3/site-packages", ".", id="pip install --user"),
        pytest.param("target", "target", id="pip install --target"),
    ],
)
def test_an_installation_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, site: str, data: str
) -> None:
    package = tmp_path / site / "xetserve" / "deploy" / "package.py"
    package.parent.mkdir(parents=True)
    (package.parent / "requirements.lock").write_bytes(b"lock")
    units = tmp_path / data / "share" / "xetserve" / "systemd"
    units.mkdir(parents=True)
    monkeypatch.setattr(module, "__file__", str(package))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path / "absent"))
    with pytest.raises(DeployError, match=r"no units in .*: name a wheel, an sdist or a clone"):
        read_package(None)
    for name in UNITS:
        (units / name).write_text(name)
    assert read_package(None).units == {name: name.encode() for name in UNITS}


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
