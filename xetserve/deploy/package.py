"""Packages to install: a wheel, an sdist, a source folder, or the version that runs.

A package has a version, systemd units, and a lock: its dependencies with their hashes. The package
itself always comes from files of the operator, never by its name from an index: whoever registers
the name there would run code as root.
"""

import hashlib
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from xetserve import __version__
from xetserve.deploy.machine import DeployError

UNITS: Final = ("xetserve.service", "xetserve.socket")
LOCK: Final = "requirements.lock"
LOCK_PATH: Final = ("xetserve", "deploy", LOCK)  # path in a package
COMPLETE: Final = ".complete"  # file in the folder of a complete installation
SHARED: Final = "share/xetserve/systemd"  # folder of the units in an installation
_VERSION: Final = re.compile(r"(?m)^Version: ([A-Za-z0-9.!+_-]+)\s*$")
_DUNDER: Final = re.compile(r'(?m)^__version__(?::[^=]*)? = "([^"]+)"')
_MAX_MEMBER: Final = 1024 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Package:
    """A package that pip can install.

    version: the version that the server reports.
    name: of the installation folder; it differs for packages with other content.
    requirement: the argument for pip.
    units: file name -> content.
    lock: requirements with hashes; None: an older version has none.
    """

    version: str
    name: str
    requirement: str
    units: dict[str, bytes]
    lock: bytes | None = None


def read_package(path: Path) -> Package:
    """Read a package.

    Raises:
        DeployError: the path is not a package of xetserve.
    """
    path = path.absolute()
    try:
        if path.is_dir():
            version, files, digest = _read_folder(path)
        elif path.suffix == ".whl":
            version, files, digest = _read_wheel(path)
        elif path.name.endswith(".tar.gz"):
            version, files, digest = _read_sdist(path)
        else:
            raise DeployError(f"{path} is not a wheel, an sdist or a folder")
    except (OSError, zipfile.BadZipFile, tarfile.TarError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise DeployError(f"cannot read {path}: {reason}") from None
    missing = [name for name in UNITS if name not in files]
    if missing:
        raise DeployError(f"{path} has no {missing[0]}: is it xetserve?")
    units = {name: files[name] for name in UNITS}
    return Package(version, f"{version}-{digest[:8]}", str(path), units, files.get(LOCK))


def find_clone() -> Path | None:
    """Return the source folder that this code runs from; None: it is an installed package."""
    folder = Path(__file__).parents[2]
    return folder if (folder / "pyproject.toml").is_file() else None


def read_own_package(versions: Path) -> Package:
    """Read the version that runs: from its clone, or as it is installed below versions.

    Raises:
        DeployError: this is another installation, which has no package to install from.
    """
    clone = find_clone()
    if clone is not None:
        return read_package(clone)
    folder = Path(sys.prefix).resolve()
    if folder.parent != versions.resolve() or not (folder / COMPLETE).exists():
        raise DeployError(
            "this xetserve runs from an installed package: name the wheel, the sdist or the clone "
            "that it comes from (--from PATH). deploy installs nothing by its name from an index"
        )
    units = {name: (folder / SHARED / name).read_bytes() for name in UNITS}
    return Package(__version__, folder.name, str(folder), units)


def _read_folder(path: Path) -> tuple[str, dict[str, bytes], str]:
    match = _DUNDER.search((path / "xetserve" / "__init__.py").read_text(encoding="utf-8"))
    digest = hashlib.sha256()
    files = [path / "pyproject.toml", *_list(path / "xetserve"), *_list(path / "systemd")]
    for file in sorted(files):
        digest.update(f"{file.relative_to(path)}\0".encode())
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    wanted = [*(path / "systemd" / name for name in UNITS), path.joinpath(*LOCK_PATH)]
    found = {file.name: file.read_bytes() for file in wanted if file.is_file()}
    return _get_version(match, path), found, digest.hexdigest()


def _list(folder: Path) -> Iterable[Path]:
    return (
        each
        for each in folder.rglob("*")
        if each.is_file() and "__pycache__" not in each.parts and each.suffix != ".so"
    )


def _read_wheel(path: Path) -> tuple[str, dict[str, bytes], str]:
    match = None
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = PurePosixPath(info.filename)
            if info.file_size > _MAX_MEMBER:
                continue
            if name.name == "METADATA" and name.parent.suffix == ".dist-info":
                match = _VERSION.search(archive.read(info).decode("utf-8"))
            elif name.name in UNITS or name.parts == LOCK_PATH:
                found[name.name] = archive.read(info)
    return _get_version(match, path), found, _hash(path)


def _read_sdist(path: Path) -> tuple[str, dict[str, bytes], str]:
    match = None
    found = {}
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            if not member.isfile() or member.size > _MAX_MEMBER:
                continue
            file = archive.extractfile(member)
            assert file is not None  # the member is a regular file
            if parts[1:] == ("PKG-INFO",):
                match = _VERSION.search(file.read().decode("utf-8"))
            elif (parts[1:-1] == ("systemd",) and parts[-1] in UNITS) or parts[1:] == LOCK_PATH:
                found[parts[-1]] = file.read()
    return _get_version(match, path), found, _hash(path)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _get_version(match: re.Match[str] | None, path: Path) -> str:
    if match is None:
        raise DeployError(f"{path} has no version: is it xetserve?")
    return match[1]
