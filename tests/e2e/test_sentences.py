"""What goes wrong around a command ends with a sentence, never with a traceback."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launcher, clean_environment
from xetserve.commands.arguments import COMMANDS
from xetserve.pipeline.cache.store import prepare_folder

COMMAND = [sys.executable, "-m", "xetserve"]
NOBODY = 65534
# Root may do everything, so it becomes somebody else once the code has been read.
UNPRIVILEGED = f"""
import os, sys
from xetserve.cli import main
from xetserve.commands import cache
from xetserve.commands.pull import command
from xetserve.commands.serve import command
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid({NOBODY})
    os.setuid({NOBODY})
sys.exit(main(sys.argv[1:]))
"""

OF_GROUP_0 = """
import os, sys
from pathlib import Path
from xetserve.pipeline.cache.store import prepare_folder
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(0)
    os.setuid(1000660000)
prepare_folder(Path(sys.argv[1]))
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=clean_environment(**environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


def run_unprivileged(*arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", UNPRIVILEGED, *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; tmp_path is for its owner alone."""
    folder = Path(tempfile.mkdtemp(prefix="xetserve-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.chmod(0o700)
        shutil.rmtree(folder)


@pytest.fixture
def locked(open_folder: Path) -> Path:
    """A cache of another user: of root, or where we are not root, of nobody at all."""
    folder = open_folder / "cache"
    prepare_folder(folder)
    if os.geteuid() != 0:
        folder.chmod(0)
    return folder


# Rights


@pytest.mark.parametrize("action", ["stats", "verify", "gc", "export"])
def test_a_cache_of_another_user(locked: Path, action: str) -> None:
    file = ("-",) if action == "export" else ()
    done = run_unprivileged("cache", action, "--cache-dir", str(locked), *file)
    owner = locked.lstat().st_uid
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    assert done.returncode == 2
    assert f"{locked} belongs to uid {owner}, and this process runs as uid {user}" in done.stderr
    assert f"sudo -u '#{owner}' xetserve cache" in done.stderr


@pytest.mark.parametrize(
    "command", [("serve", "--port", "0"), ("pull", "a/b"), ("cache", "import", "-")]
)
def test_a_cache_folder_without_rights(locked: Path, command: tuple[str, ...]) -> None:
    done = run_unprivileged(*command, "--cache-dir", str(locked))
    assert done.returncode == 2
    assert done.stderr.startswith(f"xetserve: cannot keep a cache in {locked}: {locked}")
    assert f"belongs to uid {locked.lstat().st_uid}, and this process runs as uid" in done.stderr
    assert re.search(rf": as root: chown -R \d+:\d+ {locked}$", done.stderr)


def test_any_user_of_group_0_can_keep_a_cache_in_the_image(open_folder: Path) -> None:
    """OpenShift runs containers as a random user of this group."""
    text = (Path(__file__).parents[2] / "Dockerfile.alpine").read_text()
    found = re.search(r"install -d -o xetserve -g (\w+) -m (\d+) /var/cache/xetserve", text)
    assert found is not None
    groups = {"root": 0, "xetserve": 1000}
    assert groups[found[1]] == 0
    folder = open_folder / "cache"
    folder.mkdir()
    if os.geteuid() == 0:
        os.chown(folder, 1000, groups[found[1]])
    folder.chmod(int(found[2], 8))
    done = subprocess.run(
        [sys.executable, "-c", OF_GROUP_0, str(folder)],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "usage").lstat().st_gid == (0 if os.geteuid() == 0 else os.getegid())


def test_a_cache_folder_that_cannot_be_made(open_folder: Path) -> None:
    closed = open_folder / "closed"
    closed.mkdir(mode=0o555)
    folder = closed / "cache"
    done = run_unprivileged("serve", "--port", "0", "--cache-dir", str(folder))
    assert f"{folder}: Permission denied: {closed} belongs to uid" in done.stderr
    assert re.search(rf": as root: mkdir -p {folder} && chown \d+:\d+ {folder}$", done.stderr)


def test_a_cache_folder_behind_a_locked_one(locked: Path) -> None:
    done = run_unprivileged("serve", "--port", "0", "--cache-dir", str(locked / "deep" / "er"))
    assert f"Permission denied: {locked} belongs to uid" in done.stderr
    assert done.stderr.endswith(": choose another folder\n")


# Standard output

PRINTING = [
    ("--version",),
    ("--help",),
    ("serve", "--help"),
    ("config", "template"),
    ("config", "show"),
    ("config", "check"),
    ("help",),
    ("help", "changelog"),
    ("cache", "stats"),
    ("cache", "verify"),
    ("cache", "gc", "--json"),
    ("cache", "export", "-"),
    ("doctor", "--hub-url", "http://127.0.0.1:9", "--upstream-timeout", "0.5"),
]


def with_cache(command: tuple[str, ...], folder: Path) -> tuple[str, ...]:
    if command[0] != "cache":
        return command
    prepare_folder(folder)
    return (*command, "--cache-dir", str(folder))


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_a_full_disk_behind_standard_output(tmp_path: Path, command: tuple[str, ...]) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *with_cache(command, tmp_path / "cache")],
            env=clean_environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("0 files exported")]
    assert done.returncode == 1, done.stderr
    assert len(lines) == 1
    assert "standard output: No space left on device" in lines[0]


@pytest.mark.parametrize("command", PRINTING, ids=" ".join)
def test_a_reader_that_has_gone(tmp_path: Path, command: tuple[str, ...]) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            [*COMMAND, *with_cache(command, tmp_path / "cache")],
            env=clean_environment(),
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(theirs)
    assert done.returncode in (0, 1)
    assert done.stderr == ""


@pytest.mark.parametrize("command", [("config", "template"), ("help",)], ids=" ".join)
def test_a_closed_standard_output(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *COMMAND, *command],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, "xetserve: standard output is closed\n")


# Ctrl-C


@pytest.mark.parametrize(
    "moment", ["xetserve.config.load", "asyncio", "xetserve.net.stream", "xetserve.app.routes"]
)
def test_an_interrupt_during_the_imports(moment: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "xetserve", "serve", "--port", "0"],
        env=clean_environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stderr is not None
    overdue = threading.Timer(60.0, child.kill)
    overdue.start()
    with child, child.stderr:
        lines = []
        for line in child.stderr:
            lines.append(line)
            if line.rpartition("|")[2].strip() == moment:
                child.send_signal(signal.SIGINT)
                break
        lines += child.stderr.readlines()
    overdue.cancel()
    assert child.returncode in (-signal.SIGINT, 130)
    assert [line for line in lines if not line.startswith("import time:")] == []


# Fast answers

HEAVY = {"uvloop", "asyncio", "ssl", "socket", "h11", "logging", "xetserve.app", "xetserve.net"}


@pytest.mark.parametrize(
    "arguments",
    [("--version",), ("--help",), ("--prot", "80"), *((name, "--help") for name in COMMANDS)],
    ids=" ".join,
)
def test_help_imports_no_command(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "xetserve", *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "xetserve.cli" in modules or "xetserve.commands.arguments" in modules
    assert modules & HEAVY == set()
    ours = {name for name in modules if name.startswith("xetserve.")}
    assert len(ours) <= 15, sorted(ours)
    assert len(modules) <= 140


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--prot 80", "unknown flag --prot; did you mean '--port'?; see `xetserve serve --help`"),
        ("serve --cachedir=x", "unknown flag --cachedir; did you mean '--cache-dir'?; "),
        (
            "pull a/b --inclde x",
            "unknown flag --inclde; did you mean '--include'?; see `xetserve pull",
        ),
        ("cache stats --jsn", "did you mean '--json'?; see `xetserve cache stats --help`"),
        ("serv", "'serv' (choose from"),
        ("serv", "; did you mean 'serve'?; see `xetserve --help`"),
        ("cache stat", "; did you mean 'stats'?; see `xetserve cache --help`"),
        ("deploy plan --target sytemd", "; did you mean 'systemd'?; see `xetserve deploy plan"),
        ("serve 80", "'80' is one argument too many; see `xetserve serve --help`"),
        ("pull", "the following arguments are required: OWNER/NAME[@REVISION]; see `xetserve pull"),
        ("--port", "argument --port: expected one argument; see `xetserve serve --help`"),
        ("demo --workers 2", "unknown flag --workers"),
        ("pull a/b --xet-mode plain", "unknown flag --xet-mode"),
    ],
)
def test_a_wrong_argument_is_one_line_with_a_hint(arguments: str, message: str) -> None:
    done = run(*arguments.split())
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_wrong_value_names_the_help() -> None:
    done = run("--port", "x")
    assert done.stderr == (
        "xetserve: --port must be a port number, 0 to 65535, or off, not 'x'; "
        "see `xetserve serve --help`\n"
    )


def test_the_help_shows_defaults_as_the_template_does() -> None:
    shown = " ".join(run("serve", "--help", COLUMNS="200").stdout.split())
    assert "[XETSERVE_MEMORY_BUDGET; default: 128MiB]" in shown
    assert "[XETSERVE_CACHE_DIR; default: not set]" in shown
    assert "[XETSERVE_ALLOW_ANONYMOUS; default: false]" in shown
    assert "[XETSERVE_UPSTREAM_TIMEOUT; default: 8]" in shown


def test_the_help_of_pull_has_no_settings_of_clients() -> None:
    shown = run("pull", "--help").stdout
    assert {"--hub-url", "--memory-budget", "--cache-dir", "--log-level"} <= set(shown.split())
    for flag in (
        "--allow-anonymous",
        "--hash-repo",
        "--xet-mode",
        "--native-from",
        "--body-budget",
    ):
        assert flag not in shown


# Files


def test_files_of_exports_and_imports_are_named(tmp_path: Path) -> None:
    folder = ("--cache-dir", str(tmp_path / "cache"))
    absent = tmp_path / "absent"
    done = run("cache", "import", str(absent), *folder)
    assert (done.returncode, done.stderr) == (
        1,
        f"xetserve cache: {absent}: No such file or directory\n",
    )
    done = run("cache", "export", str(absent / "x.tar"), *folder)
    assert f"the export failed: {absent}/x.tar.part: No such file or directory" in done.stderr
    done = run("cache", "export", str(tmp_path), *folder)
    assert f"the export failed: {tmp_path}: Is a directory" in done.stderr
    (tmp_path / "text").write_text("no archive")
    done = run("cache", "import", str(tmp_path / "text"), *folder)
    assert done.stderr.startswith(f"xetserve cache: {tmp_path}/text: not an archive of a cache")


def test_an_import_names_what_is_missing(tmp_path: Path) -> None:
    done = run("origin", str(tmp_path / "o"), "--port", "0", "--import", "a/b=/nowhere")
    assert (done.returncode, done.stderr) == (
        2,
        "xetserve: --import a/b=/nowhere: /nowhere is not a folder\n",
    )
    (tmp_path / "data").mkdir()
    done = run("origin", str(tmp_path / "o"), "--port", "0", "--import", f"a/b/c={tmp_path}/data")
    assert done.returncode == 2
    assert "'a/b/c'" in done.stderr


def test_an_import_of_every_type(launcher: Launcher, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("hello")
    names = ("models/a/m", "datasets/a/d", "spaces/a/s", "kernels/a/k")
    imports = [part for name in names for part in ("--import", f"{name}={tmp_path}/data")]
    origin = launcher.start("origin", str(tmp_path / "o"), "--port", "0", *imports)
    for path in ("a/m", "datasets/a/d", "spaces/a/s", "kernels/a/k"):
        with urllib.request.urlopen(f"{origin.url}/{path}/resolve/main/a.txt") as answer:
            assert answer.read() == b"hello"


def test_an_empty_token_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    folder = ("--cache-dir", str(tmp_path / "cache"))
    done = run("pull", "a/b", "--token-file", str(tmp_path / "token"), *folder)
    assert done.stderr == f"xetserve: {tmp_path}/token is empty: put a Hub token into it\n"
    done = run("pull", "a/b", "--token-file", str(tmp_path / "absent"), *folder)
    assert f"{tmp_path}/absent: No such file or directory" in done.stderr
