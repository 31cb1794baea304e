"""Repositories made, listed, changed and removed through the server, by the official client and by
curl.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher
from tests.e2e.client_site import MODEL, ClientSite
from tests.e2e.clients import curl, run
from tests.e2e.conftest import TOKEN, serve_arguments
from tests.e2e.hub import OTHER_TOKEN, run_hf_to_failure, run_script, write_files

REFUSAL = "uploads go to the Hub itself: unset HF_ENDPOINT"


def test_the_official_client_manages_repositories(
    client_site: ClientSite, launcher: Launcher, tmp_path: Path
) -> None:
    manager = launcher.start(*serve_arguments(client_site.origin.url, "--repo-management", "on"))
    printed = run_script(
        sys.executable,
        manager.url,
        tmp_path,
        """
        api, other = HfApi(), HfApi(token=sys.argv[1])
        def fails(call, *arguments, **options):
            try:
                call(*arguments, **options)
            except Exception as exc:
                return type(exc).__name__
        names = lambda who, **options: [m.id for m in who.list_models(author="team", **options)]
        first = api.create_repo("team/first-model", private=True)
        again = [fails(api.create_repo, "team/first-model"),
                 api.create_repo("team/first-model", exist_ok=True).repo_id]
        api.create_repo("team/second-model")
        api.create_repo("team/third")
        seen = [names(api), names(other), names(api, search="MODEL"), names(api, limit=1)]
        api.auth_check("team/first-model")
        api.auth_check("team/first-model", write=True)
        refused = [fails(other.auth_check, "team/first-model"),
                   fails(other.update_repo_settings, "team/second-model", private=True),
                   fails(other.delete_repo, "team/second-model")]
        api.update_repo_settings("team/first-model", private=False)
        other.auth_check("team/first-model")
        private = api.model_info("team/first-model").private
        api.delete_repo("team/first-model")
        gone = [fails(api.delete_repo, "team/first-model"), api.repo_exists("team/first-model")]
        api.delete_repo("team/first-model", missing_ok=True)
        print(json.dumps([first, first.endpoint, again, seen, refused, private, gone, names(api)]))
        """,
        OTHER_TOKEN,
    )
    url, endpoint, again, seen, refused, private, gone, left = json.loads(printed)
    assert (url, endpoint) == (f"{manager.url}/team/first-model", manager.url)
    assert again == ["HfHubHTTPError", "team/first-model"]
    first, second, third = "team/first-model", "team/second-model", "team/third"
    assert seen == [[first, second, third], [second, third], [first, second], [first]]
    assert refused == ["RepositoryNotFoundError", "HfHubHTTPError", "HfHubHTTPError"]
    assert (private, gone) == (False, ["RepositoryNotFoundError", False])
    assert left == [second, third]


@pytest.mark.parametrize("repo", ["tester/not-made", "datasets/tester/not-made", MODEL])
@pytest.mark.parametrize("what", ["a file", "a folder", "a folder to a branch"])
def test_an_upload_changes_nothing(
    client_site: ClientSite, tmp_path: Path, repo: str, what: str
) -> None:
    write_files(tmp_path / "new", {"a.txt": b"plain\n", "b.bin": bytes(200_000)})
    kind, _, name = repo.rpartition("datasets/")
    source = tmp_path / "new" if "folder" in what else tmp_path / "new" / "b.bin"
    flags = ["--repo-type", "dataset"] if kind or repo.startswith("datasets/") else []
    flags += ["--revision", "other"] if "branch" in what else []
    client_site.control.reset_requests()
    printed = run_hf_to_failure(
        client_site.server.url, tmp_path / "home", "upload", name, str(source), *flags
    )
    assert [line for line in printed if not line.startswith("Hint:")][-1].endswith(REFUSAL)
    asked = client_site.control.requests()
    assert {entry["method"] for entry in asked} <= {"GET", "HEAD"}


def test_a_repository_is_not_made_by_the_official_client(
    client_site: ClientSite, tmp_path: Path
) -> None:
    printed = run_hf_to_failure(
        client_site.server.url, tmp_path / "home", "repos", "create", "tester/not-made"
    )
    assert [line for line in printed if not line.startswith("Hint:")][-1].endswith(REFUSAL)
    assert "POST" not in {entry["method"] for entry in client_site.control.requests()}


def call(
    client_site: ClientSite,
    folder: Path,
    method: str,
    path: str,
    body: Any = None,
    token: str = TOKEN,
) -> tuple[int, Any]:
    """Send JSON with curl; gives status and JSON of the answer."""
    target = folder / "answer"
    options = ["-X", method, "-w", "%{http_code}", "--no-fail"]
    if body is not None:
        options += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    command = curl(f"{client_site.server.url}{path}", target, *options)
    done = run([part.replace(TOKEN, token) for part in command])
    assert done.returncode == 0, done.stderr
    text = target.read_text()
    return int(done.stdout), json.loads(text) if text.startswith(("{", "[")) else text


def test_the_small_api(client_site: ClientSite, tmp_path: Path) -> None:
    status, account = call(client_site, tmp_path, "GET", "/api/account")
    assert (status, account["name"]) == (200, "tester")
    made = {"type": "dataset", "name": "tester/by-curl", "private": True}
    status, answer = call(client_site, tmp_path, "POST", "/api/repo", made)
    assert status == 200
    assert answer["url"] == f"{client_site.server.url}/datasets/tester/by-curl"
    status, answer = call(client_site, tmp_path, "POST", "/api/repo", made)
    assert (status, answer["error"]) == (409, "You already created this dataset repo")
    info = "/api/datasets/tester/by-curl"
    assert call(client_site, tmp_path, "GET", info, token=OTHER_TOKEN)[0] == 404
    changed = {"type": "dataset", "namespace": "tester/by-curl", "private": False}
    assert call(client_site, tmp_path, "PUT", "/api/repo", changed, token=OTHER_TOKEN)[0] == 404
    assert call(client_site, tmp_path, "PUT", "/api/repo", changed)[0] == 200
    assert call(client_site, tmp_path, "GET", info, token=OTHER_TOKEN)[0] == 200
    removed = {"type": "dataset", "name": "tester/by-curl"}
    assert call(client_site, tmp_path, "DELETE", "/api/repo", removed, token=OTHER_TOKEN)[0] == 403
    assert call(client_site, tmp_path, "DELETE", "/api/repo", removed) == (200, "OK")
    assert call(client_site, tmp_path, "GET", info)[0] == 404
    assert call(client_site, tmp_path, "GET", f"/api/models/{MODEL}")[0] == 200


def test_the_small_api_wants_a_token_that_the_hub_knows(
    client_site: ClientSite, tmp_path: Path
) -> None:
    body = {"type": "model", "name": "tester/x", "private": True}
    for method, path, value in (("GET", "/api/account", None), ("POST", "/api/repo", body)):
        status, answer = call(client_site, tmp_path, method, path, value, token="hf_nobody")
        assert status == 401
        assert answer["error"]
