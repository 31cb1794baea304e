import asyncio
import base64
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.origin.client import BASE, Client, XorbFile, large, list_files, plain
from tests.origin.conftest import Clock
from xetserve.origin.app import Origin
from xetserve.origin.store.modes import MAX_PLAIN_SIZE

FILE = XorbFile([b"\0" * 1000, b"\1" * 500])
CONTENT = random.Random(9).randbytes(200_000)
OID = hashlib.sha256(CONTENT).hexdigest()
REPO = "/api/models/me/repo"
BATCH = "/me/repo.git/info/lfs/objects/batch"


DEEP = b"[" * 5000
DEEP_NAME = b'{"name": "a", "organization": ' + b"[" * 900 + b"]" * 900 + b"}"


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("/api/repos/create", DEEP),
        ("/api/repos/create", DEEP_NAME),
        ("/api/repos/create", b'{"name": ' + b"1" * 10_000 + b"}"),
        (f"{REPO}/paths-info/main", b'{"paths": ' + DEEP),
        (f"{REPO}/preupload/main", DEEP),
        (f"{REPO}/commit/main", b'{"key": "header", "value": ' + DEEP),
        (f"{REPO}/commit/main", b'{"value": {}, "key": ' + b"[" * 900 + b"]" * 900 + b"}"),
        (f"{REPO}/commit/main", b'{"key": "header", "value": {"summary": "\\ud800"}}'),
        (BATCH, DEEP),
        ("/_test/faults", DEEP),
        ("/v1/reconstructions", DEEP),
    ],
)
async def test_strange_json_is_the_clients_fault(client: Client, target: str, body: bytes) -> None:
    token = await client.get_cas_token() if target.startswith("/v1") else None
    assert (await client.ask("POST", target, body, token=token)).status == 400


@pytest.mark.parametrize(
    "body",
    [b"null", b"5", b'"x"', b"[]", b'{"name": {"a": 1}}', b'{"name": "a", "type": ["x"]}',
     b'{"name": "a", "organization": ["x"]}', b'{"name": "x", "visibility": [1]}',
     b'{"visibility": {}, "private": true}', b'{"paths": {"a": 1}}', b'{"files": [1]}',
     b'{"files": [{"path": [], "size": 1, "sample": 5}]}',
     b'{"operation": "upload", "objects": [5]}', b'{"operation": ["x"], "objects": []}',
     b'{"operation": "upload", "transfers": 5, "objects": []}'],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", f"{REPO}/paths-info/main"), ("POST", f"{REPO}/preupload/main"), ("POST", BATCH),
     ("POST", "/api/repos/create"), ("PUT", f"{REPO}/settings"), ("POST", f"{REPO}/branch/b"),
     ("DELETE", "/api/repos/delete"), ("POST", f"{REPO}/tag/main"),
     ("POST", f"{REPO}/commit/main"), ("POST", "/_test/faults")],
)  # fmt: skip
async def test_json_of_another_shape_is_no_error_of_ours(
    client: Client, method: str, target: str, body: bytes
) -> None:
    assert (await client.ask(method, target, body)).status < 500


@pytest.mark.parametrize("line", [b"\n", b'{"key": "deletedFile", "value": {"path": "a"}}\n'])
async def test_lines_of_a_commit_are_counted_with_or_without_content(
    client: Client, line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xetserve.origin.api.uploads.MAX_LINES", 100)
    answer = await client.ask("POST", f"{REPO}/commit/main", line * 101)
    assert (answer.status, "100 lines" in answer.json()["error"]) == (413, True)


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def files_of(client: Client, revision: str = "main") -> list[str]:
    value = await client.get_json(f"{REPO}/revision/{revision}")
    return [item["rfilename"] for item in value["siblings"]]


async def head_of(client: Client, revision: str = "main") -> str:
    return str((await client.get_json(f"{REPO}/revision/{revision}"))["sha"])


@pytest.mark.parametrize(
    ("value", "url"),
    [
        pytest.param({"name": "a"}, "/a", id="name alone"),
        pytest.param({"name": "a", "organization": "o"}, "/o/a", id="owner"),
        pytest.param({"name": "o/a"}, "/o/a", id="owner in the name"),
        pytest.param(
            {"name": "a", "organization": "o", "type": "dataset"}, "/datasets/o/a", id="data"
        ),
        pytest.param({"name": "a", "type": "space", "sdk": "static"}, "/spaces/a", id="space"),
    ],
)
async def test_a_repository_is_made_once(client: Client, value: Any, url: str) -> None:
    answer = await client.post_json("/api/repos/create", value)
    assert (answer.status, answer.json()["url"]) == (200, BASE + url)
    again = await client.post_json("/api/repos/create", value)
    assert (again.status, again.json()["url"]) == (409, BASE + url)


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"name": 3},
        {"name": "a", "type": "x"},
        {"name": "a b"},
        {"name": "../a"},
        {"name": "a/b/c"},
    ],
    ids=str,
)
async def test_a_repository_that_cannot_be_is_refused(client: Client, value: Any) -> None:
    assert (await client.post_json("/api/repos/create", value)).status == 400


@pytest.mark.parametrize("body", [b"{", b"[]", b"3"])
async def test_what_is_not_a_json_object_is_refused(client: Client, body: bytes) -> None:
    for path in ("/api/repos/create", f"{REPO}/preupload/main", BATCH, "/api/validate-yaml"):
        assert (await client.ask("POST", path, body)).status == 400


@pytest.mark.parametrize(
    ("name", "expected"), [("alice/x", 200), ("bob/x", 403), ("acme/x", 200)], ids=str
)
async def test_a_user_makes_repositories_in_namespaces_of_no_other_user(
    tmp_path: Path, name: str, expected: int
) -> None:
    client = Client(Origin(tmp_path, tokens={"hf_a": "alice", "hf_b": "bob"}), "hf_a")
    assert (await client.create_repo(name, visibility="private")).status == expected
    assert (await client.post_json("/api/repos/create", {"name": "x"}, token="")).status == 401
    if expected == 200:
        assert (await client.get(f"/api/models/{name}", token="hf_b")).status == 404
        assert (await client.get_json(f"/api/models/{name}"))["private"] is True


async def test_front_matter_is_always_fine(client: Client) -> None:
    answer = await client.post_json("/api/validate-yaml", {"content": "", "repoType": "model"})
    assert answer.json() == {"errors": [], "warnings": []}


async def test_clients_are_told_how_to_upload(client: Client) -> None:
    await client.add(FILE, "a.bin")
    await client.commit(plain("b.txt", b"hello\n"))
    value = {
        "files": [
            {"path": "a.bin", "sample": b64(b"\0" * 512), "size": 1500},
            {"path": "b.txt", "sample": b64(b"hello\n"), "size": 6},
            {"path": "c.bin", "sample": "", "size": 0},
        ]
    }
    answer = await client.post_json(f"{REPO}/preupload/main", value)
    assert answer.json()["files"] == [
        {"path": "a.bin", "uploadMode": "lfs", "shouldIgnore": False, "oid": FILE.sha256},
        {
            "path": "b.txt",
            "uploadMode": "regular",
            "shouldIgnore": False,
            "oid": "ce013625030ba8dba906f756967f9e9ca394464a",
        },
        {"path": "c.bin", "uploadMode": "regular", "shouldIgnore": False},
    ]


@pytest.mark.parametrize(
    "files",
    [3, [3], [{}], [{"path": "a", "size": "1"}], [{"path": "a", "size": 1, "sample": "x"}]],
    ids=str,
)
async def test_strange_files_are_refused(client: Client, files: Any) -> None:
    assert (await client.post_json(f"{REPO}/preupload/main", {"files": files})).status == 400


async def test_a_commit_changes_what_it_names(client: Client) -> None:
    await client.upload(FILE)
    await client.commit(
        plain("keep", b"1"), plain("go", b"2"), plain("sub/a", b"3"), plain("sub/b", b"")
    )
    answer = await client.commit(
        large("big.bin", FILE),
        plain("keep", b"changed"),
        ("deletedFile", {"path": "go"}),
        ("deletedFolder", {"path": "sub/"}),
    )
    assert answer.status == 200
    head = await head_of(client)
    assert answer.json()["commitOid"] == head
    assert answer.json()["commitUrl"] == f"{BASE}/me/repo/commit/{head}"
    assert await files_of(client) == ["big.bin", "keep"]
    assert (await client.get("/me/repo/resolve/main/keep")).content == b"changed"
    assert (await client.get("/me/repo/resolve/main/big.bin")).content == FILE.content


async def test_the_largest_plain_file_fits_into_a_line_and_no_more(client: Client) -> None:
    answer = await client.commit(plain("a.txt", b"x" * MAX_PLAIN_SIZE))
    assert answer.status == 200
    answer = await client.commit(plain("b.txt", b"x" * (MAX_PLAIN_SIZE * 5 // 4)))
    assert answer.status == 413
    assert f"upload files of more than {MAX_PLAIN_SIZE} bytes through" in answer.json()["error"]
    assert list_files(client.origin.library.root / "tmp") == set()


async def test_a_commit_may_end_without_a_newline_and_have_empty_lines(client: Client) -> None:
    lines = [
        json.dumps({"key": "header", "value": {"summary": "x", "description": "more"}}),
        "",
        json.dumps({"key": "file", "value": {"path": "a", "content": "text", "encoding": "utf-8"}}),
    ]
    for end in ("", "\r\n\n"):
        body = ("\r\n".join(lines) + end).encode()
        assert (await client.ask("POST", f"{REPO}/commit/main", body)).status == 200
    assert (await client.get("/me/repo/resolve/main/a")).content == b"text"


def line(key: str, **value: Any) -> str:
    return json.dumps({"key": key, "value": value})


HEADER = line("header", summary="x")
GOOD = line("file", path="a", content=b64(b"a"), encoding="base64")


@pytest.mark.parametrize(
    ("lines", "status", "reason"),
    [
        pytest.param([], 400, "no header", id="nothing"),
        pytest.param([GOOD], 400, "no header", id="no header"),
        pytest.param([GOOD, line("header", summary="")], 400, "summary", id="no summary"),
        pytest.param([HEADER, GOOD, "{"], 400, "not {key, value}", id="not JSON"),
        pytest.param([HEADER, GOOD, "[]"], 400, "not {key, value}", id="a list"),
        pytest.param(
            [HEADER, GOOD, '{"key": "file", "value": 3}'], 400, "no object", id="a number"
        ),
        pytest.param([HEADER, GOOD, line("other", path="b")], 400, "unknown key", id="unknown key"),
        *(
            pytest.param(
                [HEADER, GOOD, line("file", path=path, content="")], 400, "path", id=repr(path)
            )
            for path in (None, "", "/b", "b/", "../b", "b//c", ".git/config", "b\n")
        ),
        pytest.param([HEADER, GOOD, line("file", path="b")], 400, "content", id="no content"),
        pytest.param(
            [HEADER, GOOD, line("file", path="b", content="*", encoding="base64")],
            400,
            "not base64",
            id="not base64",
        ),
        pytest.param(
            [HEADER, GOOD, line("lfsFile", path="b", oid="ab" * 32, size=1)],
            400,
            "was not uploaded",
            id="content that never came",
        ),
        pytest.param(
            [HEADER, GOOD, line("lfsFile", path="b", oid="../refs.json")],
            400,
            "sha256",
            id="bad oid",
        ),
        pytest.param(
            [HEADER, GOOD, line("lfsFile", path="b", oid=FILE.sha256, size=1)],
            400,
            "1500 bytes",
            id="wrong size",
        ),
        pytest.param(
            [HEADER, GOOD, line("deletedFile", path="b")],
            404,
            "no such file",
            id="nothing to delete",
        ),
        pytest.param(
            [HEADER, GOOD, line("deletedFolder", path="b/")], 404, "no such folder", id="no folder"
        ),
        pytest.param(
            [HEADER, GOOD, line("file", path="a/b", content="", encoding="base64")],
            400,
            "a file and a folder",
            id="a file as a folder",
        ),
        pytest.param(
            [line("header", summary="x", parentCommit="0" * 40), GOOD],
            412,
            "since",
            id="stale parent",
        ),
    ],
)
async def test_a_bad_commit_is_refused_and_leaves_nothing_behind(
    client: Client, lines: list[str], status: int, reason: str
) -> None:
    await client.upload(FILE)
    before = list_files(client.origin.library.root)
    answer = await client.ask("POST", f"{REPO}/commit/main", "\n".join(lines).encode())
    assert (answer.status, reason in answer.json()["error"]) == (status, True), answer.content
    assert list_files(client.origin.library.root) == before
    assert await files_of(client) == []
    if status == 404:
        assert answer.header("X-Error-Code") == "EntryNotFound"


async def test_the_right_parent_is_accepted(client: Client) -> None:
    header = line("header", summary="x", parentCommit=await head_of(client))
    answer = await client.ask("POST", f"{REPO}/commit/main", f"{header}\n{GOOD}".encode())
    assert answer.status == 200


async def test_content_of_another_repository_is_not_at_hand(client: Client) -> None:
    await client.create_repo("you/repo")
    await client.add(FILE, "x.bin", "models/you/repo")
    answer = await client.commit(large("x.bin", FILE))
    assert (answer.status, "was not uploaded" in answer.json()["error"]) == (400, True)


async def test_a_large_file_may_be_copied_within_a_repository(client: Client) -> None:
    await client.add(FILE, "a.bin")
    assert (await client.commit(("lfsFile", {"path": "b.bin", "oid": FILE.sha256}))).status == 200
    assert (await client.get("/me/repo/resolve/main/b.bin")).content == FILE.content


async def test_commits_go_to_branches_and_pull_requests_and_nowhere_else(client: Client) -> None:
    first = await head_of(client)
    await client.post_json(f"{REPO}/branch/dev", {})
    await client.post_json(f"{REPO}/tag/main", {"tag": "v1"})
    assert (await client.commit(plain("a", b"a"), to="dev")).status == 200
    assert (await files_of(client, "dev"), await files_of(client)) == (["a"], [])
    assert (await client.commit(plain("a", b"a"), to="v1")).status == 400
    for to in ("absent", first):
        answer = await client.commit(plain("a", b"a"), to=to)
        assert (answer.status, answer.header("X-Error-Code")) == (404, "RevisionNotFound")


async def test_a_pull_request_has_a_ref_of_its_own(client: Client) -> None:
    for number in (1, 2):
        answer = await client.commit(plain("a", b"a"), to="main?create_pr=1")
        assert answer.json()["pullRequestUrl"] == f"{BASE}/me/repo/discussions/{number}"
    assert await files_of(client) == []
    assert (await client.commit(plain("b", b"b"), to="refs%2Fpr%2F2")).status == 200
    assert await files_of(client, "refs%2Fpr%2F2") == ["a", "b"]
    refs = await client.get_json(f"{REPO}/refs?include_prs=true")
    assert [item["name"] for item in refs["pullRequests"]] == ["1", "2"]


async def test_commits_at_once_follow_each_other(client: Client) -> None:
    answers = await asyncio.gather(*(client.commit(plain(f"{n}", b"")) for n in range(10)))
    assert {answer.status for answer in answers} == {200}
    assert await files_of(client) == [str(n) for n in range(10)]
    assert len(await client.get_json(f"{REPO}/commits/main")) == 11


async def batch(client: Client, operation: str = "upload", **more: Any) -> Any:
    value = {"operation": operation, "objects": [{"oid": OID, "size": len(CONTENT)}], **more}
    answer = await client.post_json(BATCH, value)
    assert (answer.status, answer.header("Content-Type")) == (200, "application/vnd.git-lfs+json")
    return answer.json()


@pytest.mark.parametrize(
    ("transfers", "expected"),
    [(["basic", "multipart", "xet"], "xet"), (["basic", "multipart"], "basic"), (None, "basic")],
    ids=str,
)
async def test_xet_is_chosen_where_it_is_offered(
    client: Client, transfers: Any, expected: str
) -> None:
    assert (await batch(client, transfers=transfers))["transfer"] == expected


async def test_an_lfs_upload_becomes_a_xet_file(client: Client) -> None:
    (item,) = (await batch(client))["objects"]
    href = item["actions"]["upload"]["href"]
    assert (await client.ask("PUT", href, CONTENT, token="")).status == 200
    assert "actions" not in (await batch(client))["objects"][0]
    value = {"path": "big.bin", "oid": OID, "size": len(CONTENT)}
    assert (await client.commit(("lfsFile", value))).status == 200
    answer = await client.get("/me/repo/resolve/main/big.bin")
    assert answer.content == CONTENT
    assert "X-Xet-Hash" in answer.headers


async def test_an_lfs_download_leads_to_the_bridge(client: Client) -> None:
    (item,) = (await batch(client, "download"))["objects"]
    assert item["error"]["code"] == 404
    (item,) = (await batch(client))["objects"]
    await client.ask("PUT", item["actions"]["upload"]["href"], CONTENT, token="")
    (item,) = (await batch(client, "download"))["objects"]
    answer = await client.get(item["actions"]["download"]["href"], token="")
    assert answer.content == CONTENT


@pytest.mark.parametrize(
    "content",
    [CONTENT[:-1], CONTENT + b"x", b"", bytes(len(CONTENT))],
    ids=["short", "long", "none", "other"],
)
async def test_a_bad_lfs_upload_is_refused_and_leaves_nothing_behind(
    client: Client, content: bytes
) -> None:
    (item,) = (await batch(client))["objects"]
    before = list_files(client.origin.library.root)
    answer = await client.ask("PUT", item["actions"]["upload"]["href"], content, token="")
    assert answer.status == 400
    assert list_files(client.origin.library.root) == before


async def test_an_lfs_url_cannot_be_changed_and_expires(client: Client, clock: Clock) -> None:
    (item,) = (await batch(client))["objects"]
    href = item["actions"]["upload"]["href"]
    for bad in (
        href.replace(OID, "ab" * 32),
        href.replace("size=", "size=1"),
        href.partition("?")[0],
    ):
        assert (await client.ask("PUT", bad, CONTENT, token="")).status == 403
    clock.now += 3600
    assert (await client.ask("PUT", href, CONTENT, token="")).status == 403


@pytest.mark.parametrize(
    "value",
    [
        {"operation": "upload"},
        {"operation": "other", "objects": []},
        {"operation": "upload", "objects": [{}]},
        {"operation": "upload", "objects": [{"oid": "x", "size": 1}]},
        {"operation": "upload", "objects": [{"oid": OID, "size": -1}]},
        {"operation": "upload", "objects": [{"oid": OID, "size": True}]},
    ],
    ids=str,
)
async def test_a_strange_batch_is_refused(client: Client, value: Any) -> None:
    assert (await client.post_json(BATCH, value)).status == 422


async def test_what_was_uploaded_outlives_a_restart(client: Client, clock: Clock) -> None:
    await client.add(FILE, "a.bin")
    await client.commit(plain("b.txt", b"hello"))
    again = Client(Origin(client.origin.library.root, clock=clock))
    assert (await again.get("/me/repo/resolve/main/a.bin")).content == FILE.content
    assert (await again.get("/me/repo/resolve/main/b.txt")).content == b"hello"
    assert (await again.commit(large("c.bin", FILE))).status == 200
