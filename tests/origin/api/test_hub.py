import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.origin.client import BASE, Answer, Client, XorbFile, large, plain
from tests.origin.conftest import Clock
from xetserve.origin.app import Origin
from xetserve.origin.store.git_ids import hash_object

FILE = XorbFile([b"\0" * 1000, b"\1" * 500])
REPO = "/api/models/me/repo"
POINTER_SIZE = 129


@pytest.fixture
async def filled(client: Client) -> Client:
    """me/repo with plain and large files in folders."""
    await client.upload(FILE)
    answer = await client.commit(
        plain("README.md", b"# hello\n"),
        plain("sub/deep/c.txt", b"c"),
        plain("sub/b.txt", b"bb"),
        large("sub/a.bin", FILE),
    )
    assert answer.status == 200
    return client


async def head_of(client: Client, revision: str = "main") -> str:
    return str((await client.get_json(f"{REPO}/revision/{revision}"))["sha"])


def error_of(answer: Answer) -> tuple[int, str | None]:
    assert answer.json()["error"] == answer.header("X-Error-Message")
    return answer.status, answer.headers.get("X-Error-Code")


@pytest.mark.parametrize(
    "path", [REPO, f"{REPO}/revision/main", f"{REPO}/revision/refs%2Fheads%2Fmain"]
)
async def test_a_repository_is_described(filled: Client, path: str) -> None:
    value = await filled.get_json(path)
    assert (value["id"], value["modelId"], value["private"]) == ("me/repo", "me/repo", False)
    assert re.fullmatch(r"[0-9a-f]{40}", value["sha"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000Z", value["lastModified"])
    assert value["siblings"] == [
        {"rfilename": path} for path in ("README.md", "sub/a.bin", "sub/b.txt", "sub/deep/c.txt")
    ]


async def test_files_are_described_on_request(filled: Client) -> None:
    value = await filled.get_json(f"{REPO}?blobs=true")
    readme, binary, *_ = value["siblings"]
    oid = hash_object("blob", b"# hello\n")
    assert readme == {"rfilename": "README.md", "size": 8, "blobId": oid}
    assert binary["lfs"] == {"sha256": FILE.sha256, "size": 1500, "pointerSize": POINTER_SIZE}


async def test_a_folder_is_listed(filled: Client) -> None:
    value = await filled.get_json(f"{REPO}/tree/main")
    assert [(item["type"], item["path"]) for item in value] == [
        ("file", "README.md"),
        ("directory", "sub"),
    ]
    value = await filled.get_json(f"{REPO}/tree/main/sub")
    assert [item["path"] for item in value] == ["sub/a.bin", "sub/b.txt", "sub/deep"]
    assert value[0]["xetHash"] == FILE.file_name
    assert value[0]["lfs"] == {"oid": FILE.sha256, "size": 1500, "pointerSize": POINTER_SIZE}
    assert "xetHash" not in value[1]
    assert "lastCommit" not in value[1]


@pytest.mark.parametrize("spelling", ["true", "True", "1"])
async def test_everything_is_listed_recursively(filled: Client, spelling: str) -> None:
    value = await filled.get_json(f"{REPO}/tree/main?recursive={spelling}&expand=False")
    assert [item["path"] for item in value] == [
        "README.md",
        "sub",
        "sub/a.bin",
        "sub/b.txt",
        "sub/deep",
        "sub/deep/c.txt",
    ]


async def test_an_expanded_listing_names_the_last_commit(filled: Client) -> None:
    first = await head_of(filled)
    await filled.commit(plain("sub/b.txt", b"new"))
    second = await head_of(filled)
    value = await filled.get_json(f"{REPO}/tree/main?recursive=true&expand=true")
    found = {item["path"]: item["lastCommit"]["id"] for item in value}
    assert found == {
        "README.md": first,
        "sub": second,
        "sub/a.bin": first,
        "sub/b.txt": second,
        "sub/deep": first,
        "sub/deep/c.txt": first,
    }
    assert value[0]["lastCommit"]["title"] == "change"


@pytest.mark.parametrize("limit", [1, 2, 5, 6, 100])
async def test_pages_make_up_the_listing(filled: Client, limit: int) -> None:
    whole = await filled.get_json(f"{REPO}/tree/main?recursive=true")
    target = f"{REPO}/tree/main?recursive=true&limit={limit}"
    found: list[Any] = []
    while target:
        answer = await filled.get(target)
        page = answer.json()
        assert 0 < len(page) <= limit
        found += page
        link = answer.headers.get("Link")
        target = ""
        if link is not None:
            match = re.fullmatch(rf'<({BASE}[^>]*)>; rel="next"', link)
            assert match
            target = match[1]
    assert found == whole


async def test_a_page_has_at_most_a_thousand_entries(client: Client) -> None:
    lines = [plain(f"{n:04}.txt", b"") for n in range(1001)]
    assert (await client.commit(*lines)).status == 200
    first = await client.get(f"{REPO}/tree/main?limit=5000")
    assert len(first.json()) == 1000
    second = await client.get(first.header("Link")[1:].partition(">")[0])
    assert [item["path"] for item in second.json()] == ["1000.txt"]
    assert "Link" not in second.headers


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=-1", "cursor=%ff", "cursor=*"])
async def test_a_strange_page_is_refused(filled: Client, query: str) -> None:
    assert (await filled.get(f"{REPO}/tree/main?{query}")).status == 400


@pytest.mark.parametrize(
    ("body", "expanded"),
    [
        pytest.param(
            urlencode(
                [("paths", "sub/a.bin"), ("paths", "sub"), ("paths", "x"), ("expand", "False")]
            ),
            False,
            id="form",
        ),
        pytest.param(
            urlencode([("expand", "True"), ("paths", "sub/a.bin"), ("paths", "sub")]),
            True,
            id="expand",
        ),
        pytest.param(json.dumps({"paths": ["sub/a.bin", "sub", "x"]}), False, id="JSON"),
    ],
)
async def test_paths_are_described(filled: Client, body: str, expanded: bool) -> None:
    answer = await filled.ask("POST", f"{REPO}/paths-info/main", body.encode())
    found = answer.json()
    assert [(item["type"], item["path"]) for item in found] == [
        ("file", "sub/a.bin"),
        ("directory", "sub"),
    ]
    assert all(("lastCommit" in item) is expanded for item in found)


@pytest.mark.parametrize("body", ['{"paths": 3}', '{"paths": [3]}', "{", '{"paths": "sub"}'])
async def test_strange_paths_are_refused_or_read(filled: Client, body: str) -> None:
    answer = await filled.ask("POST", f"{REPO}/paths-info/main", body.encode())
    assert answer.status == (200 if "sub" in body else 400)


async def test_refs_are_listed(filled: Client) -> None:
    head = await head_of(filled)
    assert (await filled.post_json(f"{REPO}/tag/main", {"tag": "v1"})).status == 201
    assert (await filled.post_json(f"{REPO}/branch/dev%2Fx", {})).status == 201
    assert await filled.get_json(f"{REPO}/refs") == {
        "branches": [
            {"name": "main", "ref": "refs/heads/main", "targetCommit": head},
            {"name": "dev/x", "ref": "refs/heads/dev/x", "targetCommit": head},
        ],
        "converts": [],
        "tags": [{"name": "v1", "ref": "refs/tags/v1", "targetCommit": head}],
    }
    assert (await filled.get_json(f"{REPO}/refs?include_prs=1"))["pullRequests"] == []


async def test_a_branch_starts_where_it_is_told_to(filled: Client) -> None:
    first = await head_of(filled)
    await filled.commit(plain("x", b"x"))
    await filled.post_json(f"{REPO}/branch/old", {"startingPoint": first})
    await filled.post_json(f"{REPO}/branch/new", {})
    assert await head_of(filled, "old") == first
    assert await head_of(filled, "new") == await head_of(filled)


@pytest.mark.parametrize(
    ("method", "path", "value", "status"),
    [
        pytest.param("POST", "branch/main", {}, 409, id="there is such a branch"),
        pytest.param("POST", "branch/a..b", {}, 400, id="bad branch name"),
        pytest.param("POST", "branch/x", {"startingPoint": "nowhere"}, 404, id="bad start"),
        pytest.param("POST", "tag/nowhere", {"tag": "v1"}, 404, id="nothing to tag"),
        pytest.param("POST", "tag/main", {"tag": "v 1"}, 400, id="bad tag name"),
        pytest.param("DELETE", "branch/x", {}, 404, id="no such branch"),
        pytest.param("DELETE", "branch/main", {}, 403, id="main stays"),
        pytest.param("DELETE", "tag/x", {}, 404, id="no such tag"),
    ],
)
async def test_refs_that_cannot_be(
    filled: Client, method: str, path: str, value: Any, status: int
) -> None:
    answer = await filled.ask(method, f"{REPO}/{path}", json.dumps(value).encode())
    assert answer.status == status


async def test_a_ref_is_deleted(filled: Client) -> None:
    await filled.post_json(f"{REPO}/tag/main", {"tag": "v1"})
    assert (await filled.ask("DELETE", f"{REPO}/tag/v1")).status == 200
    assert error_of(await filled.get(f"{REPO}/revision/v1")) == (404, "RevisionNotFound")


async def test_history_is_listed(filled: Client) -> None:
    await filled.commit(plain("x", b"x"))
    value = await filled.get_json(f"{REPO}/commits/main")
    assert [item["title"] for item in value] == ["change", "change", "initial commit"]
    assert value[0]["id"] == await head_of(filled)


async def test_a_cas_token_comes_as_headers_and_as_json(filled: Client, clock: Clock) -> None:
    for scope in ("read", "write"):
        answer = await filled.get(f"{REPO}/xet-{scope}-token/main")
        value = answer.json()
        assert value["casUrl"] == answer.header("X-Xet-Cas-Url") == BASE
        assert value["accessToken"] == answer.header("X-Xet-Access-Token")
        assert value["exp"] == int(answer.header("X-Xet-Token-Expiration")) == clock.now + 900


async def test_a_pull_request_to_be_has_a_write_token(filled: Client) -> None:
    """huggingface_hub asks with "None" for a revision."""
    assert (await filled.get(f"{REPO}/xet-write-token/None?create_pr=1")).status == 200
    assert (await filled.get(f"{REPO}/xet-read-token/None")).status == 404


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        pytest.param("/api/models/me/absent", (404, "RepoNotFound"), id="no repository"),
        pytest.param("/api/datasets/me/repo", (404, "RepoNotFound"), id="another type"),
        pytest.param("/api/models/me/..%2fx/refs", (404, "RepoNotFound"), id="a bad id"),
        pytest.param(f"{REPO}/revision/x", (404, "RevisionNotFound"), id="no revision"),
        pytest.param(f"{REPO}/tree/x", (404, "RevisionNotFound"), id="no revision to list"),
        pytest.param(f"{REPO}/tree/main/x", (404, "EntryNotFound"), id="no folder"),
        pytest.param(f"{REPO}/xet-read-token/x", (404, "RevisionNotFound"), id="no token"),
    ],
)
async def test_what_is_not_there(filled: Client, path: str, expected: tuple[int, str]) -> None:
    assert error_of(await filled.get(path)) == expected


TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}


@pytest.fixture
async def shared(tmp_path: Path) -> Client:
    """An origin with users: alice has a public and a private repository."""
    client = Client(Origin(tmp_path / "shared", tokens=TOKENS), "hf_alice")
    for name, private in (("alice/open", False), ("alice/secret", True)):
        answer = await client.post_json(
            "/api/repos/create", {"name": name.partition("/")[2], "private": private}
        )
        assert answer.json()["url"] == f"{BASE}/{name}"
    return client


@pytest.mark.parametrize(
    ("token", "repo", "read", "write"),
    [
        pytest.param("hf_alice", "open", (200, None), (200, None), id="owner, public"),
        pytest.param("hf_alice", "secret", (200, None), (200, None), id="owner, private"),
        pytest.param("hf_alice", "absent", *[(404, "RepoNotFound")] * 2, id="owner, missing"),
        pytest.param("hf_bob", "open", (200, None), (403, None), id="other user, public"),
        pytest.param("hf_bob", "secret", *[(404, "RepoNotFound")] * 2, id="other user, private"),
        pytest.param("hf_bob", "absent", *[(404, "RepoNotFound")] * 2, id="other user, missing"),
        pytest.param("", "open", (200, None), (401, None), id="nobody, public"),
        pytest.param("", "secret", *[(401, "RepoNotFound")] * 2, id="nobody, private"),
        pytest.param("", "absent", *[(401, "RepoNotFound")] * 2, id="nobody, missing"),
        pytest.param("hf_x", "open", (401, None), (401, None), id="wrong token, public"),
        pytest.param("hf_x", "secret", *[(401, "RepoNotFound")] * 2, id="wrong token, private"),
        pytest.param("hf_x", "absent", *[(401, "RepoNotFound")] * 2, id="wrong token, missing"),
    ],
)
async def test_who_may_do_what(
    shared: Client,
    token: str,
    repo: str,
    read: tuple[int, str | None],
    write: tuple[int, str | None],
) -> None:
    base = f"/api/models/alice/{repo}"
    for path in (base, f"{base}/tree/main", f"{base}/xet-read-token/main", f"{base}/refs"):
        answer = await shared.get(path, token=token)
        assert (answer.status, answer.headers.get("X-Error-Code")) == read
    answer = await shared.get(f"{base}/xet-write-token/main", token=token)
    assert (answer.status, answer.headers.get("X-Error-Code")) == write
    answer = await shared.post_json(f"{base}/branch/new", {}, token=token)
    assert (answer.status // 100, answer.headers.get("X-Error-Code")) == (write[0] // 100, write[1])
    if token == "hf_x":
        assert answer.header("X-Error-Message") == "Invalid credentials in Authorization header"


async def test_a_file_of_a_private_repository_is_hidden_likewise(shared: Client) -> None:
    target = "/alice/secret/resolve/main/x"
    assert error_of(await shared.get(target)) == (404, "EntryNotFound")
    assert error_of(await shared.get(target, token="hf_bob")) == (404, "RepoNotFound")
    assert error_of(await shared.get(target, token="")) == (401, "RepoNotFound")


@pytest.mark.parametrize("header", ["Basic YWxpY2U6aGZfYWxpY2U=", "Bearer", "Bearer  ", "hf_alice"])
async def test_an_unusable_authorization_is_a_wrong_token(shared: Client, header: str) -> None:
    answer = await shared.get(
        "/api/models/alice/open", headers=[("Authorization", header)], token=""
    )
    assert error_of(answer) == (401, None)


async def test_imports_belong_to_the_user_of_the_namespace_or_to_every_user(
    shared: Client, tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    library = shared.origin.library
    for name in ("bob/secret", "acme/secret"):
        await library.import_folder("model", name, tmp_path / "folder", private=True)
    found = [
        (await shared.get(f"/api/models/{name}", token=token)).status
        for name in ("bob/secret", "acme/secret")
        for token in ("hf_alice", "hf_bob", "")
    ]
    assert found == [404, 200, 401, 200, 200, 401]


@pytest.mark.parametrize(
    ("token", "status", "name"),
    [("hf_alice", 200, "alice"), ("", 401, None), ("hf_x", 401, None)],
    ids=["known", "none", "wrong"],
)
async def test_who_am_i(shared: Client, token: str, status: int, name: str | None) -> None:
    answer = await shared.get("/api/whoami-v2", token=token)
    assert (answer.status, answer.json().get("name")) == (status, name)


async def test_in_an_open_origin_everybody_is_somebody(client: Client) -> None:
    assert (await client.get("/api/whoami-v2", token="hf_any")).json()["type"] == "user"
    assert (await client.get("/api/whoami-v2")).status == 401
