"""Uploads by the official clients of today and of yesterday, of every kind of repository and
revision.
"""

import random
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.clients import curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import OTHER_TOKEN, TOKEN, run_script, start_origin, upload


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, Process]]:
    """An empty origin with two users, and a server in front of it."""
    base = tmp_path_factory.mktemp("pair")
    launched = Launcher(base)
    origin = start_origin(launched, base / "origin")
    yield origin, launched.start(*serve_arguments(origin.url))
    launched.stop_all()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A few files, Xet and plain."""
    source = random.Random(str(tmp_path))
    (tmp_path / "files" / "deep" / "er").mkdir(parents=True)
    (tmp_path / "files" / "weights.bin").write_bytes(source.randbytes(2_000_000) + bytes(300_000))
    (tmp_path / "files" / "deep" / "er" / "grün.bin").write_bytes(source.randbytes(70_000))
    (tmp_path / "files" / "notes.txt").write_text("plain text\n")
    return tmp_path / "files"


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
@pytest.mark.parametrize("generation", ["today's client", "the old client"])
def test_an_upload_comes_out_again(
    pair: tuple[Process, Process],
    request: pytest.FixtureRequest,
    folder: Path,
    tmp_path: Path,
    kind: str,
    generation: str,
) -> None:
    origin, server = pair
    is_old = generation == "the old client"
    python = request.getfixturevalue("old_client") if is_old else sys.executable
    repo = f"tester/{kind}-{'old' if is_old else 'new'}"
    upload(python, origin.url, tmp_path / "home", kind, repo, folder)
    for path in folder.rglob("*.*"):
        name = urllib.parse.quote(str(path.relative_to(folder)))
        target = tmp_path / "out"
        done = run(curl(f"{server.url}/download/{repo}/{name}?type={kind}", target))
        assert done.returncode == 0, done.stderr
        assert target.read_bytes() == path.read_bytes()


def test_every_kind_of_revision_is_served(
    pair: tuple[Process, Process], folder: Path, tmp_path: Path
) -> None:
    origin, server = pair
    upload(sys.executable, origin.url, tmp_path / "home", "model", "tester/revisions", folder)
    first = (folder / "weights.bin").read_bytes()
    second = b"changed" + first
    (tmp_path / "second").write_bytes(second)
    commit = run_script(
        sys.executable,
        origin.url,
        tmp_path / "home",
        """
        api = HfApi()
        repo = "tester/revisions"
        commit = api.model_info(repo).sha
        api.create_tag(repo, tag="v1.0")
        api.create_branch(repo, branch="feature/one")
        for revision, create_pr in (("feature/one", False), ("main", True)):
            api.create_commit(repo, [CommitOperationAdd("weights.bin", sys.argv[1])],
                              commit_message="change", revision=revision, create_pr=create_pr)
        print(commit)
        """,
        str(tmp_path / "second"),
    )
    expected = {
        "": first,
        "?revision=main": first,
        "?revision=v1.0": first,
        f"?revision={commit}": first,
        "?revision=feature/one": second,
        "?revision=refs/pr/1": second,
        "?revision=refs%2Fpr%2F1": second,
    }
    for query, content in expected.items():
        url = f"{server.url}/download/tester/revisions/weights.bin{query}"
        done = run(curl(url, tmp_path / "out"))
        assert (query, done.returncode, done.stderr) == (query, 0, "")
        assert (tmp_path / "out").read_bytes() == content


def test_a_private_repository_is_for_its_owner(
    pair: tuple[Process, Process], folder: Path, tmp_path: Path
) -> None:
    origin, server = pair
    home = tmp_path / "home"
    upload(sys.executable, origin.url, home, "model", "tester/private", folder, "--private")
    url = f"{server.url}/download/tester/private/weights.bin"
    command = curl(url, tmp_path / "out", "-D", str(tmp_path / "headers"), "-w", "%{http_code}")
    assert run(command).stdout == "200"
    headers = (tmp_path / "headers").read_text()
    file_hash = headers.lower().partition("x-xet-hash: ")[2][:64]
    by_hash = curl(
        f"{server.url}/download-hash/{file_hash}?repo=tester/private",
        tmp_path / "out",
        *("-w", "%{http_code}"),
    )
    assert run(by_hash).stdout == "200"
    for owned in (command, by_hash):
        other = [part.replace(TOKEN, OTHER_TOKEN) for part in owned]
        assert run(other).stdout in ("401", "403", "404")
        stranger = [part.replace(TOKEN, "hf_nobody") for part in owned]
        assert run(stranger).stdout == "401"
