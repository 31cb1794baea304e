"""Lists of several pages: joined for clients that read one page, followed by a pull, and there
without the Hub.
"""

import json
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.client_site import MANY, MODEL, NUM_MANY, ClientSite
from tests.e2e.clients import Connection, Reply
from tests.e2e.commands import run_command
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import run_script
from tests.waiting import wait_until

LLAMA = [("User-Agent", "llama-cpp/b9999-0123abc"), ("Accept", "application/json")]


def start_server(client_site: ClientSite, launcher: Launcher, cache: Path, **more: str) -> Process:
    arguments = serve_arguments(client_site.origin.url, "--metadata-ttl", "60")
    return launcher.start(*arguments, "--cache-dir", str(cache), "--cache-min-free", "0", **more)


def list_like_llama(server: Process) -> set[str]:
    """Return the paths of the only page that the client reads."""
    with closing(Connection(server.url)) as connection:
        refs = json.loads(connection.ask(f"/api/models/{MANY}/refs", LLAMA, token=None).body)
        (commit,) = [each["targetCommit"] for each in refs["branches"]]
        target = f"/api/models/{MANY}/tree/{commit}?recursive=true"
        reply = connection.ask(target, LLAMA, token=None)
        assert (reply.status, "link" in reply.headers) == (200, False)
        head = connection.ask(target, LLAMA, "HEAD", token=None)
        assert (head.status, "link" in head.headers) == (200, False)
    return {entry["path"] for entry in json.loads(reply.body) if entry["type"] == "file"}


def list_like_huggingface(server: Process, home: Path) -> set[str]:
    script = "print(json.dumps(HfApi().list_repo_files(sys.argv[1])))"
    printed = run_script(sys.executable, server.url, home, script, MANY, token=None)
    return set(json.loads(printed))


def test_they_are_cached_and_there_offline(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    server = start_server(client_site, launcher, cache)
    paths = list_like_llama(server)
    assert len(paths) >= NUM_MANY
    assert list_like_huggingface(server, tmp_path / "home") == paths
    wait_until(lambda: not any((cache / "tmp").iterdir()))
    client_site.control.reset_requests()
    assert list_like_llama(server) == paths
    assert list_like_huggingface(server, tmp_path / "home") == paths
    asked = [each["path"] for each in client_site.control.requests()]
    assert [path for path in asked if MANY in path] == []
    offline = start_server(client_site, launcher, cache, XETSERVE_OFFLINE="1")
    assert list_like_llama(offline) == paths
    assert list_like_huggingface(offline, tmp_path / "other") == paths


@pytest.mark.parametrize("client", ["llama.cpp", "huggingface_hub"])
def test_a_pull_follows_them(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path, client: str
) -> None:
    cache = tmp_path / "cache"
    hub = ("--hub-url", client_site.origin.url)
    run_command("pull", MANY, "--include", "d0/00000.txt", "--cache-dir", str(cache), *hub)
    offline = start_server(client_site, launcher, cache, XETSERVE_OFFLINE="1")
    if client == "llama.cpp":
        paths = list_like_llama(offline)
    else:
        script = """
            commit = HfApi().model_info(sys.argv[1]).sha
            tree = HfApi().list_repo_tree(sys.argv[1], recursive=True, revision=commit)
            print(json.dumps([item.path for item in tree if hasattr(item, "size")]))
        """
        printed = run_script(
            sys.executable, offline.url, tmp_path / "home", script, MANY, token=None
        )
        paths = set(json.loads(printed))
    assert len(paths) >= NUM_MANY


@pytest.mark.parametrize("agent", ["ollama/0.31.1 (amd64 linux) Go/go1.26", "llama-cpp/b4000"])
def test_a_manifest_is_there_offline(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path, agent: str
) -> None:
    cache = tmp_path / "cache"
    fields = [
        ("User-Agent", agent),
        ("Accept", "application/vnd.docker.distribution.manifest.v2+json"),
    ]

    def ask_manifest(server: Process, method: str = "GET") -> Reply:
        with closing(Connection(server.url)) as connection:
            return connection.ask(f"/v2/{MODEL}/manifests/Q4_K_M", fields, method, token=None)

    server = start_server(client_site, launcher, cache)
    manifest = ask_manifest(server)
    assert manifest.status == 200
    assert json.loads(manifest.body)["layers"]
    assert ask_manifest(server).body == manifest.body
    asked = [each["path"] for each in client_site.control.requests()]
    assert len([path for path in asked if "/manifests/" in path]) == 1
    wait_until(lambda: not any((cache / "tmp").iterdir()))
    offline = start_server(client_site, launcher, cache, XETSERVE_OFFLINE="1")
    again = ask_manifest(offline)
    assert (again.status, again.body) == (200, manifest.body)
    assert again.headers["content-type"] == manifest.headers["content-type"]
    assert ask_manifest(offline, "HEAD").status == 200
