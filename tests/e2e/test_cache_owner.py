"""Commands that root runs beside a service: its user can use what they write, and its settings are
found.
"""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment
from tests.e2e.cached_site import check_without_data, start_server
from tests.e2e.commands import TIMEOUT, cache, pull, summary_of, told
from tests.e2e.conftest import TOKEN, Site

# Only root can make files for others; for other users, the owner is themselves.
OWNER = (54321, 54322) if os.geteuid() == 0 else (os.geteuid(), os.getegid())


def owners(folder: Path) -> set[tuple[int, int]]:
    """Return the owners of a folder and of everything in it."""
    stats = [path.stat(follow_symlinks=False) for path in (folder, *folder.rglob("*"))]
    return {(stat.st_uid, stat.st_gid) for stat in stats}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder of the service's user."""
    folder = tmp_path / "service"
    folder.mkdir(mode=0o700)
    os.chown(folder, *OWNER)
    return folder


def test_what_root_pulls_belongs_to_the_owner_of_the_folder(site: Site, folder: Path) -> None:
    summary_of(pull(site, folder, "--json"))
    assert len(list(folder.rglob("*"))) > 20
    assert owners(folder) == {OWNER}
    told(folder, "gc", "--older-than", "1m")
    told(folder, "verify")
    assert owners(folder) == {OWNER}


def test_what_root_imports_belongs_to_the_owner_of_the_folder(
    site: Site, launcher: Launcher, folder: Path, tmp_path: Path
) -> None:
    only = ("--include", "r*.bin", "--include", "config.json")
    summary_of(pull(site, tmp_path / "warm", "--json", *only))
    archive = tmp_path / "archive.tar"
    assert cache(tmp_path / "warm", "export", str(archive)).returncode == 0
    assert told(folder, "import", "--with-answers", str(archive))["files"] > 0
    assert owners(folder) == {OWNER}
    assert (archive.stat().st_uid, archive.stat().st_gid) == (os.geteuid(), os.getegid())
    check_without_data(start_server(site, launcher, folder), tmp_path, ["random.bin"])


def make_systemctl(folder: Path, shown: str) -> str:
    """Make a systemctl that prints these properties; return a PATH that leads to it."""
    folder.mkdir()
    (folder / "systemctl").write_text(f"#!/bin/sh\nprintf %s {shlex.quote(shown)}\n")
    (folder / "systemctl").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def run_without_cache_dir(path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "xetserve", *arguments],
        env=clean_environment(PATH=path, HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("place", ["drop-in", "file", "settings", "flag"])
def test_the_cache_of_the_service_is_found(
    site: Site, folder: Path, tmp_path: Path, place: str
) -> None:
    config, environment = tmp_path / "xetserve.toml", tmp_path / "xetserve.env"
    config.write_text(f'[hub]\nhub_url = "{site.origin.url}"\n[cache]\ncache_min_free = 0\n')
    environment.write_text("XETSERVE_CACHE_SIZE=5GB\n")
    variables = "PYTHONUNBUFFERED=1 XETSERVE_CORS=off"
    flags = ""
    match place:
        case "drop-in":
            variables += f" XETSERVE_CACHE_DIR={folder}"
        case "file":
            environment.write_text(f"XETSERVE_CACHE_SIZE=5GB\nXETSERVE_CACHE_DIR={folder}\n")
        case "settings":
            config.write_text(f"{config.read_text()}cache_dir = {json.dumps(str(folder))}\n")
        case "flag":
            flags = f" --cache-dir {folder}"
    start = f"/opt/xetserve/bin/xetserve --config {config}{flags}"
    path = make_systemctl(
        tmp_path / "bin",
        f"LoadState=loaded\nEnvironment={variables}\n"
        f"EnvironmentFiles={environment} (ignore_errors=yes)\n"
        f"EnvironmentFiles={tmp_path / 'absent.env'} (ignore_errors=yes)\n"
        f"ExecStart={{ path=/opt/xetserve/bin/xetserve ; argv[]={start} ; ignore_errors=no }}\n",
    )
    done = run_without_cache_dir(path, "pull", "tester/everything", "--include", "random.bin")
    assert done.returncode == 0, done.stderr
    assert f"the settings of xetserve.service: cache_dir {folder}" in done.stderr
    stats = run_without_cache_dir(path, "cache", "stats", "--json")
    assert stats.returncode == 0, stats.stderr
    shown = json.loads(stats.stdout)
    assert (shown["folder"], shown["quota"]) == (str(folder), 5_000_000_000)
    assert shown["entries"]["files"] > 0


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("LoadState=not-found\n", "cache_dir is not set: give --cache-dir"),
        ("LoadState=loaded\nEnvironment=XETSERVE_CORS=off\n", "has no cache either"),
        ("LoadState=loaded\nEnvironment=XETSERVE_CONFIG=/absent/a.toml\n", "/absent/a.toml"),
    ],
)
def test_a_machine_without_a_cache(tmp_path: Path, shown: str, message: str) -> None:
    path = make_systemctl(tmp_path / "bin", shown)
    for command in (("cache", "stats"), ("pull", "a/b")):
        done = run_without_cache_dir(path, *command)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
