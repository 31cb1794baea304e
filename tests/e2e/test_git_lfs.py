"""git-lfs, as Debian has it, downloads through the server."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import Launcher, OriginControl, need_program
from tests.e2e.client_site import LARGE, MODEL, PAST, SECRET, SMALL, ClientSite
from tests.e2e.clients import Connection
from tests.e2e.conftest import serve_arguments
from tests.e2e.git_client import git, make_pointer
from tests.e2e.hub import OTHER_TOKEN, TOKEN, start_origin

NAMES = (LARGE, SMALL, "deep/er/grün-大きさ.bin", "odd/name with spaces.bin")


def clone_pointers(folder: Path, lfs_url: str, files: Mapping[str, bytes]) -> Path:
    """Make a repository of pointers, and a clone of it that knows where the content is."""
    need_program("git-lfs")
    source, target = folder / "source", folder / "clone"
    source.mkdir()
    target.mkdir()
    git(source, "lfs", "install", "--skip-repo")  # into the settings of HOME
    git(source, "init", "--quiet", "--initial-branch=main")
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(make_pointer(content))
    (source / ".gitattributes").write_text("*.bin filter=lfs -text\n*.gguf filter=lfs -text\n")
    git(source, "add", "--all")
    identity = ("-c", "user.name=t", "-c", "user.email=t@t")
    git(source, *identity, "commit", "--quiet", "--message=pointers")
    git(target, "clone", "--quiet", str(source), ".", GIT_LFS_SKIP_SMUDGE="1")
    for name, value in (("lfs.url", lfs_url), (f"lfs.{lfs_url}.locksverify", "false")):
        git(target, "config", name, value)
    for name, content in files.items():
        assert (target / name).read_bytes() == make_pointer(content)
    return target


def lfs_url(base: str, repo: str) -> str:
    return f"{base}/{repo}.git/info/lfs"


def test_a_whole_repository(client_site: ClientSite, tmp_path: Path) -> None:
    files = {name: client_site.files[name] for name in NAMES}
    clone = clone_pointers(tmp_path, lfs_url(client_site.server.url, MODEL), files)
    git(clone, "lfs", "pull")
    assert {name: (clone / name).read_bytes() for name in NAMES} == files
    git(clone, "lfs", "fsck")
    asked = client_site.control.requests()
    # From the CAS, after one question for the batch, one for the list of files, and one for each of
    # them.
    assert {entry["kind"] for entry in asked} == {"hub", "cas", "data"}
    assert (
        len([entry for entry in asked if "/tree/" in entry["path"]]) <= 1
    )  # it may be known already
    assert len([entry for entry in asked if entry["path"].endswith("/batch")]) == 1


@pytest.mark.parametrize("way", ["a header", "a password"])
def test_a_private_repository(client_site: ClientSite, tmp_path: Path, way: str) -> None:
    files = {SMALL: client_site.files[SMALL]}
    base = client_site.server.url
    if way == "a password":
        base = base.replace("http://", f"http://tester:{TOKEN}@")
    clone = clone_pointers(tmp_path, lfs_url(base, SECRET), files)
    if way == "a header":
        git(clone, "config", "http.extraHeader", f"Authorization: Bearer {TOKEN}")
    git(clone, "lfs", "pull")
    assert (clone / SMALL).read_bytes() == files[SMALL]


@pytest.mark.parametrize("token", [None, OTHER_TOKEN])
def test_a_private_repository_of_somebody_else(
    client_site: ClientSite, tmp_path: Path, token: str | None
) -> None:
    clone = clone_pointers(
        tmp_path, lfs_url(client_site.server.url, SECRET), {LARGE: client_site.files[LARGE]}
    )
    if token is not None:
        git(clone, "config", "http.extraHeader", f"Authorization: Bearer {token}")
    assert git(clone, "lfs", "pull", check=False).returncode != 0
    assert (clone / LARGE).read_bytes() == make_pointer(client_site.files[LARGE])
    assert {entry["kind"] for entry in client_site.control.requests()} == {"hub"}


def test_a_broken_download_goes_on(client_site: ClientSite, tmp_path: Path) -> None:
    content = client_site.files[LARGE]
    clone = clone_pointers(tmp_path, lfs_url(client_site.server.url, MODEL), {LARGE: content})
    partial = clone / ".git" / "lfs" / "incomplete"
    partial.mkdir(parents=True)
    digest = hashlib.sha256(content).hexdigest()
    for name in (digest, f"{digest}.part"):  # of older and newer versions
        (partial / name).write_bytes(content[:20_000_000])
    git(clone, "lfs", "pull")
    assert (clone / LARGE).read_bytes() == content
    assert f'/objects/{digest}?size=***" 206 {len(content) - 20_000_000} ' in client_site.server.log


def test_what_is_only_in_the_past_comes_as_the_hub_has_it(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path
) -> None:
    bridge = client_site.origin.url.replace("127.0.0.1", "localhost")
    hub = start_origin(launcher, client_site.folder / "origin", "--bridge-url", bridge)
    server = launcher.start(*serve_arguments(hub.url))
    content = client_site.files[SMALL]
    name = Path(SMALL).name
    clone = clone_pointers(tmp_path, lfs_url(server.url, PAST), {name: content})
    git(clone, "lfs", "pull")
    assert (clone / name).read_bytes() == content
    asked = [entry for entry in client_site.control.requests() if entry["kind"] == "bridge"]
    assert asked
    assert {entry["authorization"] for entry in asked} == {None}
    assert all(
        entry["user_agent"].startswith("xetserve/") for entry in OriginControl(hub.url).requests()
    )


def test_a_server_behind_a_server(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path
) -> None:
    outer = launcher.start(*serve_arguments(client_site.server.url))
    clone = clone_pointers(tmp_path, lfs_url(outer.url, SECRET), {SMALL: client_site.files[SMALL]})
    git(clone, "config", "http.extraHeader", f"Authorization: Bearer {TOKEN}")
    git(clone, "lfs", "pull")
    assert (clone / SMALL).read_bytes() == client_site.files[SMALL]


def test_nothing_is_uploaded(client_site: ClientSite, tmp_path: Path) -> None:
    clone = clone_pointers(
        tmp_path, lfs_url(client_site.server.url, MODEL), {SMALL: client_site.files[SMALL]}
    )
    (clone / "new.bin").write_bytes(os.urandom(1000))
    git(clone, "add", "new.bin")
    git(clone, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "--quiet", "-m", "new")
    done = git(clone, "lfs", "push", "origin", "main", check=False)
    assert done.returncode != 0
    assert "this server is for downloads" in done.stderr


def test_the_answer_to_a_batch(client_site: ClientSite) -> None:
    content = client_site.files[SMALL]
    digest, missing = hashlib.sha256(content).hexdigest(), "0" * 64
    body = {
        "operation": "download",
        "transfers": ["lfs-standalone-file", "basic", "ssh"],
        "ref": {"name": "refs/heads/main"},
        "objects": [{"oid": digest, "size": len(content)}, {"oid": missing, "size": 1}],
        "hash_algo": "sha256",
    }
    connection = Connection(client_site.server.url)
    reply = connection.ask(
        f"/{MODEL}.git/info/lfs/objects/batch",
        [("Content-Type", "application/vnd.git-lfs+json")],
        method="POST",
        body=json.dumps(body).encode(),
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "application/vnd.git-lfs+json")
    assert TOKEN.encode() not in reply.body
    found, lost = json.loads(reply.body)["objects"]
    href = found["actions"]["download"]["href"]
    assert href.startswith(f"{client_site.server.url}/")
    assert lost["error"]["code"] == 404
    part = connection.ask(href.removeprefix(client_site.server.url), [("Range", "bytes=4-13")])
    assert (part.status, part.body) == (206, content[4:14])
    assert part.headers["etag"] == f'"{digest}"'
    whole = connection.ask(href.removeprefix(client_site.server.url), method="HEAD")
    assert (whole.status, whole.headers["content-length"]) == (200, str(len(content)))
    connection.close()
