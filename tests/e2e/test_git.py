"""git, as Debian has it, clones and fetches through the server."""

import gzip
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process, need_program
from tests.e2e.client_site import MODEL, SECRET, SMALL, ClientSite
from tests.e2e.conftest import serve_arguments
from tests.e2e.git_client import git, make_pointer
from tests.e2e.git_hub import GitHub, serving_git
from tests.e2e.hub import TOKEN

NUM_SMALL = 1_400  # their ids make a request of more than 64 KiB
REPOS = (MODEL, SECRET, "old-name", "datasets/tester/data", "spaces/tester/app", "kernels/tester/k")
IDENTITY = ("-c", "user.name=t", "-c", "user.email=t@t")


@dataclass
class GitSite:
    """A server in front of a Hub with git."""

    hub: GitHub
    server: Process
    files: dict[str, bytes]


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bare repositories: many small files, and a pointer to one that the origin has."""
    base = tmp_path_factory.mktemp("git")
    work, bare = base / "work", base / "bare"
    work.mkdir()
    git(work, "init", "--quiet", "--initial-branch=main")
    (work / "many").mkdir()
    for number in range(NUM_SMALL):
        (work / "many" / f"{number}.txt").write_text(f"file {number}\n")
    (work / "README.md").write_text("# first\n")
    git(work, "add", "--all")
    git(work, *IDENTITY, "commit", "--quiet", "--message=first")
    git(work, "branch", "other")
    git(work, "tag", "v1")
    for repo in REPOS:
        (bare / repo).parent.mkdir(parents=True, exist_ok=True)
        git(base, "clone", "--quiet", "--bare", str(work), str(bare / repo))
        for name in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
            git(bare / repo, "config", name, "true")
    return bare


@pytest.fixture(scope="module")
def _running_git_site(
    _running_client_site: ClientSite, repositories: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GitSite]:
    launched = Launcher(tmp_path_factory.mktemp("git-site"))
    origin = _running_client_site.origin.url
    try:
        with serving_git(repositories, origin) as hub:
            hub.private[SECRET] = TOKEN
            server = launched.start(*serve_arguments(hub.url))
            yield GitSite(hub, server, _running_client_site.files)
    finally:
        launched.stop_all()


@pytest.fixture
def git_site(_running_git_site: GitSite, client_site: ClientSite) -> Iterator[GitSite]:
    """The site; in the end only the server may have asked the Hub."""
    hub = _running_git_site.hub
    hub.asked.clear()
    yield _running_git_site
    agents = {asked.headers["user-agent"] for asked in hub.asked}
    assert all(re.match(r"xetserve/[0-9.]+ git/", agent) for agent in agents)
    assert TOKEN not in _running_git_site.server.log


def add_pointer(repositories: Path, repo: str, folder: Path, files: dict[str, bytes]) -> None:
    """Push a pointer to a file of the origin into a repository, past the server."""
    git(folder, "clone", "--quiet", str(repositories / repo), "pusher", GIT_LFS_SKIP_SMUDGE="1")
    work = folder / "pusher"
    (work / SMALL).parent.mkdir(parents=True, exist_ok=True)
    (work / SMALL).write_bytes(make_pointer(files[SMALL]))
    (work / ".gitattributes").write_text("*.gguf filter=lfs -text\n")
    skip = ("-c", "filter.lfs.clean=cat", "-c", "filter.lfs.process=")
    git(work, *skip, "add", "--all")
    git(work, *IDENTITY, "commit", "--quiet", "--message=pointer")
    git(work, "push", "--quiet", str(repositories / repo), "main")
    shutil.rmtree(work)


@pytest.mark.parametrize(
    "path", [MODEL, "old-name", "datasets/tester/data.git", "spaces/tester/app", "kernels/tester/k"]
)
def test_a_public_repository_of_each_kind(git_site: GitSite, tmp_path: Path, path: str) -> None:
    git(tmp_path, "clone", "--quiet", f"{git_site.server.url}/{path}", "clone")
    assert len(list((tmp_path / "clone" / "many").iterdir())) == NUM_SMALL
    posted = [asked for asked in git_site.hub.asked if asked.method == "POST"]
    assert posted
    assert {asked.headers["git-protocol"] for asked in git_site.hub.asked} == {"version=2"}


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_each_version_of_the_protocol(git_site: GitSite, tmp_path: Path, version: str) -> None:
    url = f"{git_site.server.url}/{MODEL}"
    git(tmp_path, "-c", f"protocol.version={version}", "clone", "--quiet", url, "clone")
    assert git(tmp_path / "clone", "branch", "--remotes").stdout.split()[-1] == "origin/other"


def test_large_files_come_from_the_server(
    git_site: GitSite, repositories: Path, tmp_path: Path
) -> None:
    need_program("git-lfs")
    add_pointer(repositories, MODEL, tmp_path, git_site.files)
    folder = tmp_path / "folder"
    folder.mkdir()
    clone = folder / "clone"
    url = f"{git_site.server.url}/{MODEL}"
    git(folder, "lfs", "install", "--skip-repo")  # into the settings of HOME
    git(folder, "clone", "--quiet", url, "clone", GIT_LFS_SKIP_SMUDGE="1")
    assert (clone / SMALL).read_bytes() == make_pointer(git_site.files[SMALL])
    git(clone, "lfs", "install", "--local")
    git(clone, "lfs", "pull")
    assert (clone / SMALL).read_bytes() == git_site.files[SMALL]
    git(folder, "clone", "--quiet", url, "at-once")
    assert (folder / "at-once" / SMALL).read_bytes() == git_site.files[SMALL]


@pytest.mark.parametrize("way", ["a password", "a header"])
def test_a_private_repository(git_site: GitSite, tmp_path: Path, way: str) -> None:
    base, flags = git_site.server.url, []
    if way == "a password":
        base = base.replace("http://", f"http://anybody:{TOKEN}@")
    else:
        flags = ["-c", f"http.extraHeader=Authorization: Bearer {TOKEN}"]
    git(tmp_path, *flags, "clone", "--quiet", f"{base}/{SECRET}", "clone")
    assert (tmp_path / "clone" / "README.md").read_text() == "# first\n"
    sent = {asked.headers.get("authorization") for asked in git_site.hub.asked}
    assert sent - {None} == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize("token", [None, "hf_" + "o" * 34])
def test_a_private_repository_of_somebody_else(
    git_site: GitSite, tmp_path: Path, token: str | None
) -> None:
    base = git_site.server.url
    if token is not None:
        base = base.replace("http://", f"http://anybody:{token}@")
    done = git(tmp_path, "clone", "--quiet", f"{base}/{SECRET}", "clone", check=False)
    assert done.returncode == 128
    assert (
        "Invalid username or password." in done.stderr or "could not read Username" in done.stderr
    )


def test_a_clone_of_the_public_hub_comes_here(git_site: GitSite, tmp_path: Path) -> None:
    hub, here, folder = "https://huggingface.co/", f"{git_site.server.url}/", tmp_path / "folder"
    folder.mkdir()
    git(folder, "config", "--global", f"url.{here}.insteadOf", hub)  # into the settings of HOME
    git(folder, "config", "--global", f"url.{hub}.pushInsteadOf", hub)
    git(folder, "clone", "--quiet", "--depth=1", f"{hub}{MODEL}", "clone")
    urls = git(folder, "-C", "clone", "remote", "--verbose").stdout
    assert f"{here}{MODEL} (fetch)" in urls
    assert f"{hub}{MODEL} (push)" in urls


def test_a_fetch_after_a_clone(git_site: GitSite, repositories: Path, tmp_path: Path) -> None:
    url = f"{git_site.server.url}/datasets/tester/data"
    git(tmp_path, "clone", "--quiet", url, "clone")
    git(tmp_path, "clone", "--quiet", str(repositories / "datasets/tester/data"), "pusher")
    (tmp_path / "pusher" / "new.txt").write_text("new\n")
    git(tmp_path / "pusher", "add", "new.txt")
    git(tmp_path / "pusher", *IDENTITY, "commit", "--quiet", "--message=new")
    git(tmp_path / "pusher", "push", "--quiet", "origin", "main")
    git(tmp_path / "clone", "pull", "--quiet")
    assert (tmp_path / "clone" / "new.txt").read_text() == "new\n"


def test_a_shallow_clone_in_the_past(git_site: GitSite, tmp_path: Path) -> None:
    url = f"{git_site.server.url}/{MODEL}"
    git(tmp_path, "clone", "--quiet", "--depth=1", "--branch=v1", url, "clone")
    assert git(tmp_path / "clone", "rev-list", "--count", "HEAD").stdout.strip() == "1"


@pytest.mark.parametrize("post_buffer", ["1m", "65536"], ids=["coded", "chunked"])
def test_a_large_request(git_site: GitSite, tmp_path: Path, post_buffer: str) -> None:
    """A checkout of a clone without blobs asks for each of them in one request."""
    url = f"{git_site.server.url}/spaces/tester/app"
    setting = ("-c", f"http.postBuffer={post_buffer}")
    git(tmp_path, *setting, "clone", "--quiet", "--filter=blob:none", url, "clone")
    assert len(list((tmp_path / "clone" / "many").iterdir())) == NUM_SMALL
    largest = max(git_site.hub.asked, key=lambda asked: len(asked.body))
    body = largest.body
    if post_buffer == "1m":
        assert largest.headers["content-encoding"] == "gzip"
        body = gzip.decompress(body)
    else:
        assert largest.headers["transfer-encoding"] == "chunked"
    assert body.count(b"want ") >= NUM_SMALL


def test_a_repository_that_has_another_name_now(git_site: GitSite, tmp_path: Path) -> None:
    git_site.hub.moved["tester/before"] = MODEL
    url = f"{git_site.server.url}/tester/before"
    done = git(tmp_path, "clone", url, "clone")
    assert f"redirecting to {git_site.server.url}/{MODEL}/" in done.stderr
    assert (tmp_path / "clone" / "README.md").exists()


def test_a_repository_that_does_not_exist(git_site: GitSite, tmp_path: Path) -> None:
    done = git(tmp_path, "clone", f"{git_site.server.url}/no/body", "clone", check=False)
    assert "not found" in done.stderr


def test_nothing_is_pushed(git_site: GitSite, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", f"{git_site.server.url}/{MODEL}", "clone")
    clone = tmp_path / "clone"
    (clone / "new.txt").write_text("new\n")
    git(clone, "add", "new.txt")
    git(clone, *IDENTITY, "commit", "--quiet", "--message=new")
    done = git(clone, "push", "origin", "main", check=False)
    assert done.returncode != 0
    assert "remote: this server is for downloads; uploads go to the Hub itself" in done.stderr
    assert not [asked for asked in git_site.hub.asked if "receive-pack" in asked.target]
