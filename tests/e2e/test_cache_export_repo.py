"""`xetserve cache export --repo`: one model for a site without a network, and not all that the
cache has.
"""

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, clean_environment
from tests.e2e.clients import ask, curl, run
from tests.e2e.commands import cache, summary_of, told
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN, read_tree, upload, write_files

MODEL = "tester/wanted"
OTHER = "tester/other"
SET = "tester/wanted"  # a dataset of the same name
TIMEOUT = 60.0

_source = random.Random(21)
SHARED = _source.randbytes(1_500_000)
OLD = _source.randbytes(900_000)
FILES = {
    "weights.bin": _source.randbytes(3_000_000) + bytes(2_000_000),
    "of/both.bin": SHARED,
    "config.json": b'{"model_type": "wanted"}\n',
    "empty.txt": b"",
}
OTHER_FILES = {
    "large.bin": _source.randbytes(6_000_000),
    "shared.bin": SHARED + _source.randbytes(500_000),
    "notes.txt": b"of the other one\n",
}
SET_FILES = {"data.bin": _source.randbytes(700_000), "README.md": b"# A dataset\n"}


@dataclass
class Place:
    """An origin with two models and a dataset, and a cache that all of them were pulled into.

    old: the commit of the model before `weights.bin` was what it is.
    """

    origin: Process
    warm: Path
    old: str


def pull(origin: Process, folder: Path, target: str) -> str:
    """Pull a repository; gives its commit."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "xetserve", "pull", target, "--hub-url", origin.url),
            *("--cache-dir", str(folder), "--cache-min-free", "0", "--json"),
        ],
        env=clean_environment(HF_TOKEN=TOKEN, XETSERVE_METADATA_TTL="0"),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return str(summary_of(done)["commit"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("place")
    write_files(base / "old", {**FILES, "weights.bin": OLD})
    write_files(base / "new", {"weights.bin": FILES["weights.bin"]})
    write_files(base / "other", OTHER_FILES)
    write_files(base / "set", SET_FILES)
    launched = Launcher(base)
    try:
        origin = launched.start(
            *("origin", str(base / "origin"), "--host", "127.0.0.1", "--port", "0"),
            *("--token", f"{TOKEN}=tester", "--import", f"{MODEL}={base / 'old'}"),
            *("--import", f"{OTHER}={base / 'other'}"),
        )
        old = pull(origin, base / "warm", MODEL)
        upload(sys.executable, origin.url, base / "home", "model", MODEL, base / "new")
        upload(sys.executable, origin.url, base / "home", "dataset", SET, base / "set")
        for target in (MODEL, OTHER, f"datasets/{SET}"):
            assert pull(origin, base / "warm", target) != old
        yield Place(origin, base / "warm", old)
    finally:
        launched.stop_all()


def serve_offline(launcher: Launcher, place: Place, folder: Path) -> Process:
    arguments = serve_arguments(place.origin.url, "--cache-dir", str(folder))
    return launcher.start(*arguments, "--cache-min-free", "0", XETSERVE_OFFLINE="1")


def hf_download(server: Process, home: Path, repo: str, *flags: str) -> dict[str, bytes]:
    """Download a repository with the official command; gives its files."""
    done = subprocess.run(
        [
            *(str(Path(sys.executable).with_name("hf")), "download", repo, *flags),
            *("--local-dir", str(home / "out")),
        ],
        env=clean_environment(HF_ENDPOINT=server.url, HF_HOME=str(home), HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr + server.log[-3000:]
    return read_tree(home / "out")


def test_one_of_two_models(place: Place, launcher: Launcher, tmp_path: Path) -> None:
    archive, there = tmp_path / "one.tar", tmp_path / "there"
    written = told(place.warm, "export", "--repo", MODEL, str(archive))
    (repo,) = written["repos"]
    assert (repo["repo"], repo["type"], repo["revision"]) == (MODEL, "model", "main")
    assert repo["incomplete"] == []
    assert repo["bytes"] >= sum(map(len, FILES.values()))  # the Hub adds a file of its own
    data = archive.read_bytes()
    for content in (OLD, OTHER_FILES["large.bin"], SET_FILES["data.bin"]):
        assert content[1000:1100] not in data
    assert FILES["weights.bin"][1000:1100] in data
    assert SHARED[1000:1100] in data
    assert OTHER_FILES["notes.txt"] not in data
    assert OTHER.encode() not in data
    assert len(data) < 5_500_000 < told(place.warm, "stats")["bytes"] - 6_000_000
    assert told(there, "import", "--with-answers", str(archive))["files"] == written["files"]
    server = serve_offline(launcher, place, there)
    for name, content in FILES.items():
        done = run(curl(f"{server.url}/download/{MODEL}/{name}", tmp_path / "out"))
        assert done.returncode == 0, done.stderr + server.log[-3000:]
        assert (tmp_path / "out").read_bytes() == content
    assert hf_download(server, tmp_path / "home", MODEL) == FILES
    for path in (
        f"/download/{OTHER}/large.bin",
        f"/{OTHER}/resolve/main/shared.bin",
        f"/api/models/{OTHER}",
        f"/datasets/{SET}/resolve/main/data.bin",
        f"/{MODEL}/resolve/{place.old}/weights.bin",
    ):
        assert ask(server, path).status == 504, path
    # It is public, so it was pulled for everybody.
    assert ask(server, f"/{MODEL}/resolve/main/weights.bin", token=None).status == 200
    assert told(there, "verify")["damaged"] == []


def test_several_and_a_commit(place: Place, launcher: Launcher, tmp_path: Path) -> None:
    there = tmp_path / "there"
    wanted = ("--repo", f"{MODEL}@{place.old}", "--repo", f"datasets/{SET}")
    done = cache(place.warm, "export", *wanted, "-")
    assert done.returncode == 0, done.stderr.decode()
    assert f"{MODEL}@{place.old}: ".encode() in done.stderr
    assert FILES["weights.bin"][1000:1100] not in done.stdout
    assert cache(there, "import", "--with-answers", "-", stdin=done.stdout).returncode == 0
    server = serve_offline(launcher, place, there)
    got = hf_download(server, tmp_path / "set", SET, "--repo-type", "dataset")
    assert got == SET_FILES
    url = f"{server.url}/{MODEL}/resolve/{place.old}/weights.bin"
    assert run(curl(url, tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == OLD
    assert ask(server, f"/{MODEL}/resolve/main/weights.bin").status == 504


def test_what_is_not_here_is_named(place: Place, tmp_path: Path) -> None:
    folder, archive = tmp_path / "warm", tmp_path / "one.tar"
    pull(place.origin, folder, MODEL)
    for path in (*folder.glob("plain/*/*"), *folder.glob("meta/plans/*/*/0-*")):
        path.unlink()
    told_ = told(folder, "export", "--repo", MODEL, str(archive), status=1)
    lacking = {one["path"]: one["error"] for one in told_["repos"][0]["incomplete"]}
    assert lacking.pop("config.json") == "it is not stored"
    assert set(lacking) == {"weights.bin", "of/both.bin"}
    assert archive.is_file()
    pull(place.origin, folder, MODEL)
    entry = max(folder.glob("??/*/*.xc"), key=lambda path: path.stat().st_size)
    entry.unlink()
    told_ = told(folder, "export", "--repo", MODEL, str(archive), status=1)
    assert "it lacks chunks of xorb " in str(told_["repos"][0]["incomplete"])


@pytest.mark.parametrize(
    ("repo", "status", "message"),
    [
        ("tester/absent", 1, "the cache has nothing of model tester/absent at main: pull it first"),
        (f"{MODEL}@v9", 1, "at v9"),
        (f"datasets/{OTHER}", 1, "the cache has nothing of dataset tester/other"),
        ("a/b/c", 2, "it must be OWNER/NAME or NAME"),
        ("a/b@x..y", 2, "revision must be"),
    ],
)
def test_what_was_never_asked_for(
    place: Place, tmp_path: Path, repo: str, status: int, message: str
) -> None:
    done = cache(place.warm, "export", "--repo", repo, str(tmp_path / "one.tar"))
    assert done.returncode == status
    assert message in done.stderr.decode()
    assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
