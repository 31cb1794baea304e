"""A Hub with something in it: origins, files for them, and runs of the official clients."""

import random
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.conftest import Launcher, Process, clean_environment

TOKEN = "hf_" + "t" * 34
OTHER_TOKEN = "hf_" + "o" * 34
UPLOAD = Path(__file__).with_name("upload.py")
PLAIN_FILE = "notes.txt"
XET_FILE = "weights.bin"


def make_files() -> dict[str, bytes]:
    """A few files, Xet and plain, with names of all kinds."""
    source = random.Random(5)
    return {
        XET_FILE: source.randbytes(2_000_000) + bytes(300_000),
        "deep/er/grün-大きさ.bin": source.randbytes(70_000),
        "odd/100% + more.bin": source.randbytes(200_000),
        "odd/name with spaces.txt": b"plain, too\n",
        "empty.bin": b"",
        "empty.txt": b"",
        PLAIN_FILE: b"plain text\n",
        "config.json": b'{"xetHash": "of the file itself"}\n',
    }


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def read_tree(folder: Path) -> dict[str, bytes]:
    """The files of a folder, without what the client notes for itself."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: path.read_bytes()
        for name, path in names.items()
        if not name.startswith((".cache/", ".gitattributes"))
    }


def start_origin(
    launched: Launcher,
    folder: Path,
    *flags: str,
    port: int = 0,
    users: tuple[str, ...] = (f"{TOKEN}=tester", f"{OTHER_TOKEN}=other"),
) -> Process:
    """Start an origin; with users, what is private is for its owner, and only they may write."""
    return launched.start(
        *("origin", str(folder), "--host", "127.0.0.1", "--port", str(port), "--test-controls"),
        *(part for user in users for part in ("--token", user)),
        *flags,
    )


def upload(
    python: str, origin_url: str, home: Path, kind: str, repo: str, folder: Path, *flags: str
) -> None:
    """Run the official client of an interpreter; see upload.py."""
    _run_client(
        [python, str(UPLOAD), kind, repo, str(folder), *flags],
        origin_url,
        home,
        HF_TOKEN=TOKEN,
        HF_XET_CLIENT_RETRY_BASE_DELAY="100ms",
    )


def run_script(
    python: str,
    endpoint: str,
    home: Path,
    script: str,
    *arguments: str,
    token: str | None = TOKEN,
    **environment: str,
) -> str:
    """Run a few lines with all of huggingface_hub; gives what they print."""
    lead = "import json, sys\nfrom huggingface_hub import *\nfrom huggingface_hub.errors import *\n"
    given = {} if token is None else {"HF_TOKEN": token}
    command = [python, "-c", lead + textwrap.dedent(script), *arguments]
    return _run_client(command, endpoint, home, **given, **environment)


def run_hf(endpoint: str, home: Path, *arguments: str) -> str:
    """Run today's client for the command line; gives what it prints."""
    hf = str(Path(sys.executable).with_name("hf"))
    return _run_client([hf, *arguments], endpoint, home, HF_TOKEN=TOKEN)


def run_hf_to_failure(endpoint: str, home: Path, *arguments: str) -> list[str]:
    """Run today's client for the command line, which must fail; gives the lines of its errors."""
    hf = str(Path(sys.executable).with_name("hf"))
    done = _start_client([hf, *arguments], endpoint, home, HF_TOKEN=TOKEN, NO_COLOR="1")
    assert done.returncode == 1, done.stdout
    return [line.strip() for line in done.stderr.splitlines() if line.strip()]


def _run_client(command: list[str], endpoint: str, home: Path, **environment: str) -> str:
    done = _start_client(command, endpoint, home, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _start_client(
    command: list[str], endpoint: str, home: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=clean_environment(
            HF_ENDPOINT=endpoint,
            HF_HOME=str(home),
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_PROGRESS_BARS="1",
            **environment,
        ),
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
