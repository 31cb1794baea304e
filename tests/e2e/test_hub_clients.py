"""HF_ENDPOINT names us: the official clients of today and of yesterday download through the
server.
"""

import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import Launcher, OriginControl, Process
from tests.e2e.clients import Connection, curl, run
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import (
    OTHER_TOKEN,
    PLAIN_FILE,
    TOKEN,
    XET_FILE,
    make_files,
    read_tree,
    run_hf,
    run_script,
    start_origin,
    upload,
    write_files,
)

REPO = "tester/through-us"
PRIVATE = "tester/for-its-owner"

# What a client is started with, for each of them: whose interpreter, and its environment.
CLIENTS = {
    "today's, with hf-xet": ("new", {}),
    "today's, without": ("new", {"HF_HUB_DISABLE_XET": "1"}),
    "yesterday's, with hf-xet": ("old", {}),
    "yesterday's, without": ("old", {"HF_HUB_DISABLE_XET": "1"}),
}


@dataclass
class Place:
    """A server in front of an origin with a model, a dataset and a private model of the same
    files.
    """

    server: Process
    control: OriginControl
    files: dict[str, bytes]
    folder: Path


@pytest.fixture(scope="module")
def _running_place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("place")
    files = make_files()
    write_files(base / "files", files)
    launched = Launcher(base)
    try:
        origin = start_origin(launched, base / "origin")
        for where in (("model", REPO), ("dataset", REPO), ("model", PRIVATE, "--private")):
            kind, repo, *flags = where
            upload(sys.executable, origin.url, base / "home", kind, repo, base / "files", *flags)
        server = launched.start(*serve_arguments(origin.url))
        yield Place(server, OriginControl(origin.url), files, base)
    finally:
        launched.stop_all()


@pytest.fixture
def place(_running_place: Place) -> Iterator[Place]:
    """The place, with an empty record of requests; only the server may have asked the origin in the
    end.
    """
    _running_place.control.reset_requests()
    yield _running_place
    asked = _running_place.control.requests()
    agents = {request["user_agent"] for request in asked}
    assert [agent for agent in agents if not re.match(r"xetserve/[0-9.]+( |$)", agent)] == []
    for request in asked:
        if request["kind"] != "hub":
            assert request["user_agent"].count("/") == 1
            assert TOKEN not in (request["authorization"] or "")
    assert "Traceback" not in _running_place.server.log


@pytest.mark.parametrize("client", CLIENTS)
def test_a_whole_repository_and_a_single_file(
    place: Place, request: pytest.FixtureRequest, tmp_path: Path, client: str
) -> None:
    generation, environment = CLIENTS[client]
    python = request.getfixturevalue("old_client") if generation == "old" else sys.executable
    script = """
        repo = sys.argv[1]
        snapshot_download(repo, local_dir="{0}/model")
        snapshot_download(repo, repo_type="dataset", local_dir="{0}/dataset")
        print(hf_hub_download(repo, sys.argv[2]))
    """.replace("{0}", str(tmp_path))
    single = run_script(
        python, place.server.url, tmp_path / "home", script, REPO, XET_FILE, **environment
    )
    assert read_tree(tmp_path / "model") == place.files
    assert read_tree(tmp_path / "dataset") == place.files
    assert Path(single).read_bytes() == place.files[XET_FILE]
    asked = place.control.requests()
    assert {entry["kind"] for entry in asked} == {"hub", "cas", "data"}
    assert any("hf_hub/" in entry["user_agent"] for entry in asked)


def test_a_tree_of_a_commit_is_asked_for_once(
    place: Place, launcher: Launcher, tmp_path: Path
) -> None:
    """A hundred machines that begin with the same commit, with answers that are old at once."""
    server = launcher.start(*serve_arguments(place.control.url, "--metadata-ttl", "0.001"))
    script = """
        repo, out = sys.argv[1:]
        commit = HfApi().model_info(repo).sha
        for number in range(100):
            snapshot_download(repo, revision=commit, cache_dir=f"{out}/{number}",
                              allow_patterns="*.json")
    """
    run_script(sys.executable, server.url, tmp_path / "home", script, REPO, str(tmp_path / "out"))
    asked = [entry["path"] for entry in place.control.requests()]
    assert len([path for path in asked if "/tree/" in path]) == 1
    assert len([path for path in asked if path.endswith("/auth-check")]) > 90
    assert len(list((tmp_path / "out").glob("*/*/snapshots/*/config.json"))) == 100


def test_the_command_line_client(place: Place, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    run_hf(place.server.url, tmp_path / "home", "download", REPO, "--local-dir", out)
    assert read_tree(tmp_path / "out") == place.files


def test_what_the_client_asks_about_a_repository(place: Place, tmp_path: Path) -> None:
    printed = run_script(
        sys.executable,
        place.server.url,
        tmp_path,
        """
        repo, xet_file = sys.argv[1:]
        api = HfApi()
        tree = {item.path: item for item in api.list_repo_tree(repo, recursive=True, expand=True)}
        (info,) = api.get_paths_info(repo, [xet_file])
        metadata = get_hf_file_metadata(hf_hub_url(repo, xet_file))
        print(json.dumps({
            "user": api.whoami()["name"],
            "commits": [commit.commit_id for commit in api.list_repo_commits(repo)],
            "main": [ref.target_commit for ref in api.list_repo_refs(repo).branches],
            "sha": [api.model_info(repo).sha, metadata.commit_hash],
            "files": sorted(path for path in tree if hasattr(tree[path], "size")),
            "sizes": [tree[xet_file].size, info.size, info.lfs.size, metadata.size],
            "tags": [info.lfs.sha256, metadata.etag],
            "xet": [tree[xet_file].xet_hash, info.xet_hash, metadata.xet_file_data],
            "exists": [api.file_exists(repo, xet_file), api.file_exists(repo, "no"),
                       api.repo_exists(repo), api.repo_exists("tester/no")],
        }))
        """,
        REPO,
        XET_FILE,
    )
    found = json.loads(printed)
    assert found["user"] == "tester"
    assert found["main"] == [found["commits"][0]]
    assert set(found["sha"]) == set(found["main"])
    assert set(found["files"]) >= set(place.files)
    assert set(found["sizes"]) == {len(place.files[XET_FILE])}
    assert len(set(found["tags"])) == 1
    assert found["xet"] == [None, None, None]
    assert found["exists"] == [True, False, True, False]


def test_a_file_system_reads_parts(place: Place, tmp_path: Path) -> None:
    printed = run_script(
        sys.executable,
        place.server.url,
        tmp_path,
        """
        repo, path = sys.argv[1:]
        fs = HfFileSystem()
        print(sorted(fs.glob(f"datasets/{repo}/odd/*"))[0])
        with fs.open(f"datasets/{repo}/{path}", block_size=50_000) as file:
            for at, size in ((0, 4), (1_234_567, 100), (-7, 7)):
                file.seek(at, 2 if at < 0 else 0)
                print(file.read(size).hex())
        print(fs.cat_file(f"{repo}/{path}", start=5, end=25).hex())
        """,
        REPO,
        XET_FILE,
    )
    content = place.files[XET_FILE]
    assert printed.split("\n") == [
        f"datasets/{REPO}/odd/100% + more.bin",
        content[:4].hex(),
        content[1_234_567:1_234_667].hex(),
        content[-7:].hex(),
        content[5:25].hex(),
    ]


# What is asked for, with which token, and what the client makes of the answer.
FAILURES = {
    "a stranger's repository": (PRIVATE, "main", PLAIN_FILE, OTHER_TOKEN,
                                "RepositoryNotFoundError"),
    "a repository without a token": (PRIVATE, "main", XET_FILE, None, "RepositoryNotFoundError"),
    "a repository that is none": ("tester/no", "main", XET_FILE, TOKEN, "RepositoryNotFoundError"),
    "a revision that is none": (REPO, "refs/pr/9", XET_FILE, TOKEN, "RevisionNotFoundError"),
    "a file that is none": (REPO, "main", "no.bin", TOKEN, "EntryNotFoundError"),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failure_is_known_by_its_exception(place: Place, tmp_path: Path, failure: str) -> None:
    repo, revision, path, token, expected = FAILURES[failure]
    assert download_failing(place.server.url, tmp_path, repo, revision, path, token) == expected


def download_failing(
    endpoint: str, home: Path, repo: str, revision: str, path: str, token: str | None
) -> str:
    """Name the exception that a download ends with."""
    return run_script(
        sys.executable,
        endpoint,
        home,
        """
        known = (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError)
        try:
            hf_hub_download(sys.argv[1], sys.argv[3], revision=sys.argv[2])
        except Exception as exc:
            print(next(kind.__name__ for kind in known if isinstance(exc, kind)))
        """,
        repo,
        revision,
        path,
        token=token,
    )


def test_a_private_repository_for_its_owner(place: Place, tmp_path: Path) -> None:
    script = f"snapshot_download({PRIVATE!r}, local_dir={str(tmp_path / 'out')!r})"
    run_script(sys.executable, place.server.url, tmp_path / "home", script)
    assert read_tree(tmp_path / "out") == place.files


def test_a_damaged_file_is_cut_short_of_its_length(place: Place, tmp_path: Path) -> None:
    command = curl(f"{place.server.url}/{REPO}/resolve/main/{XET_FILE}", tmp_path / "out")
    place.control.set_faults(flip_byte={"offset": 1_500_000})
    try:
        assert run(command).returncode in (18, 56)
    finally:
        place.control.set_faults()
    assert len((tmp_path / "out").read_bytes()) < len(place.files[XET_FILE])
    assert run(command).returncode == 0
    assert (tmp_path / "out").read_bytes() == place.files[XET_FILE]


class GatedHub(BaseHTTPRequestHandler):
    """A Hub that lets nobody in."""

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.send_header("X-Error-Code", "GatedRepo")
        self.send_header("X-Error-Message", "Access to model o/n is restricted")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving_gated_hub() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), GatedHub) as hub:
        thread = threading.Thread(target=hub.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{hub.server_port}"
        hub.shutdown()
        thread.join()


def test_a_gated_repository_is_known_by_its_exception(launcher: Launcher, tmp_path: Path) -> None:
    with serving_gated_hub() as hub_url:
        server = launcher.start(*serve_arguments(hub_url))
        found = download_failing(server.url, tmp_path, "o/n", "main", "a.bin", TOKEN)
        assert found == "GatedRepoError"


def test_pages_of_a_listing_come_from_here(place: Place) -> None:
    connection = Connection(place.server.url)
    target = f"/api/models/{REPO}/tree/main?recursive=True&limit=2"
    found = []
    while target:
        reply = connection.ask(target)
        assert reply.status == 200
        assert b"xetHash" not in reply.body
        found += [item["path"] for item in json.loads(reply.body) if item["type"] == "file"]
        link = reply.headers.get("link", "")
        assert link == "" or link.startswith(f"<{place.server.url}/api/")
        target = link.partition(">")[0].removeprefix(f"<{place.server.url}")
    assert set(found) >= set(place.files)
    connection.close()


def test_a_server_that_is_its_own_hub_says_so(launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    arguments = serve_arguments(f"http://127.0.0.1:{port}")
    server = launcher.start(*(port if part == "0" else part for part in arguments))
    connection = Connection(server.url)
    for path in ("/api/models/o/n", "/o/n/resolve/main/a.bin", "/download/o/n/a.bin"):
        assert connection.ask(path).status == 508
    connection.close()


def test_a_server_behind_a_server(place: Place, launcher: Launcher, tmp_path: Path) -> None:
    outer = launcher.start(*serve_arguments(place.server.url))
    script = f"snapshot_download({REPO!r}, local_dir={str(tmp_path / 'out')!r})"
    run_script(sys.executable, outer.url, tmp_path / "home", script)
    assert read_tree(tmp_path / "out") == place.files
