"""Repositories as a whole: listed, made, changed, removed."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.origin.client import BASE, Answer, Client, XorbFile, list_files
from xetserve.origin.app import Origin

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}


@pytest.fixture
def alice(tmp_path: Path) -> Client:
    """A client of an origin with two users."""
    return Client(Origin(tmp_path / "shared", tokens=TOKENS), "hf_alice")


async def delete(client: Client, value: dict[str, Any], **options: Any) -> Answer:
    return await client.ask(
        "DELETE", "/api/repos/delete", str(value).replace("'", '"').encode(), **options
    )


async def list_ids(client: Client, query: dict[str, Any], **options: Any) -> list[str]:
    """Follow the pages of a list."""
    target = f"/api/models?{urlencode(query)}"
    found: list[str] = []
    while target:
        answer = await client.get(target, **options)
        assert answer.status == 200
        found += [repo["id"] for repo in answer.json()]
        link = answer.headers.get("Link") or ""
        target = link.partition(">")[0].removeprefix(f"<{BASE}")
    return found


async def test_lists_and_their_pages(alice: Client) -> None:
    for name in ("alice/b", "alice/bert-small", "team/bert"):
        assert (await alice.create_repo(name)).status == 200
    assert (await alice.create_repo("alice/secret-bert", private=True)).status == 200
    everything = ["alice/b", "alice/bert-small", "alice/secret-bert", "team/bert"]
    assert await list_ids(alice, {}) == everything
    assert await list_ids(alice, {"limit": 1}) == everything
    assert await list_ids(alice, {"limit": 3}) == everything
    assert await list_ids(alice, {"search": "BERT", "author": "alice"}) == everything[1:3]
    for token in ("hf_bob", ""):
        assert await list_ids(alice, {}, token=token) == [
            everything[0],
            everything[1],
            everything[3],
        ]
    assert (await alice.get_json("/api/datasets")) == []
    assert (await alice.get("/api/models?limit=x")).status == 400


async def test_a_list_survives_a_restart(alice: Client) -> None:
    await alice.create_repo("alice/one")
    again = Client(Origin(alice.origin.library.root, tokens=TOKENS), "hf_alice")
    assert await list_ids(again, {}) == ["alice/one"]


async def test_visibility_changes(alice: Client) -> None:
    await alice.create_repo("alice/one", visibility="private")
    target = "/api/models/alice/one"
    assert (await alice.get(target, token="hf_bob")).status == 404
    answer = await alice.ask("PUT", f"{target}/settings", b'{"visibility": "public"}')
    assert (answer.status, answer.json()["private"]) == (200, False)
    assert (await alice.get(target, token="hf_bob")).status == 200
    answer = await alice.ask("PUT", f"{target}/settings", b'{"private": true}')
    assert (answer.status, answer.json()["private"]) == (200, True)
    again = Client(Origin(alice.origin.library.root, tokens=TOKENS), "hf_alice")
    assert (await again.get(target, token="hf_bob")).status == 404
    assert (await again.get(target)).status == 200


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b"x", b'{"private": "yes"}', b'{"visibility": "secret"}', b'{"gated": "yes"}'],
)
async def test_settings_that_are_none(alice: Client, body: bytes) -> None:
    await alice.create_repo("alice/one")
    answer = await alice.ask("PUT", "/api/models/alice/one/settings", body)
    assert answer.status == 400
    assert answer.json()["error"]


async def change(client: Client, path: str, value: dict[str, Any], **options: Any) -> Answer:
    method = "PUT" if path == "settings" else "POST"
    return await client.ask(
        method, f"/api/models/alice/one/{path}", json.dumps(value).encode(), **options
    )


async def read_all_ways(client: Client, file: XorbFile, **options: Any) -> set[tuple[int, str]]:
    """Read a file in every way that there is; give what is answered."""
    batch = {"operation": "download", "objects": [{"oid": file.sha256, "size": len(file.content)}]}
    answers = [
        await client.get("/alice/one/resolve/main/a.bin", **options),
        await client.ask("HEAD", "/alice/one/resolve/main/a.bin", **options),
        await client.get("/alice/one/raw/main/a.bin", **options),
        await client.get("/api/models/alice/one/xet-read-token/main", **options),
        await client.get("/api/models/alice/one/auth-check", **options),
        await client.get("/v2/alice/one/manifests/latest", **options),
        await client.get(f"/v2/alice/one/blobs/sha256:{file.sha256}", **options),
        await client.post_json("/alice/one.git/info/lfs/objects/batch", batch, **options),
    ]
    return {(answer.status, answer.headers.get("X-Error-Code") or "") for answer in answers}


async def test_a_gated_repository(alice: Client) -> None:
    await alice.create_repo("alice/one")
    file = XorbFile([b"GGUF" + b"x" * 1000])
    await alice.add(file, "a.bin", repo="models/alice/one")
    request = "user-access-request"
    assert (await change(alice, f"{request}/grant", {"user": "bob"})).status == 400  # not gated yet
    answer = await change(alice, "settings", {"gated": "manual"})
    assert answer.json() == {"private": False, "gated": "manual"}

    # Anyone may know what there is; its owner has it, and others do not.
    info = await alice.get_json("/api/models/alice/one", token="")
    assert (info["gated"], info["siblings"]) == ("manual", [{"rfilename": "a.bin"}])
    assert await read_all_ways(alice, file, token="") == {(401, "GatedRepo")}
    assert await read_all_ways(alice, file, token="hf_bob") == {(403, "GatedRepo")}
    assert {status for status, _ in await read_all_ways(alice, file)} <= {200, 404}

    # A grant survives a restart, and may be taken back.
    assert (await change(alice, f"{request}/grant", {"user": "bob"})).status == 200
    again = Client(Origin(alice.origin.library.root, tokens=TOKENS), "hf_alice")
    assert (await again.get("/alice/one/resolve/main/a.bin", token="hf_bob")).status == 200
    (found,) = await again.get_json(f"/api/models/alice/one/{request}/accepted")
    assert (found["user"]["user"], found["status"]) == ("bob", "accepted")
    back = {"requestId": found["requestId"], "status": "rejected"}
    assert (await change(again, f"{request}/handle", back)).status == 200
    assert await again.get_json(f"/api/models/alice/one/{request}/accepted") == []
    assert await read_all_ways(again, file, token="hf_bob") == {(403, "GatedRepo")}
    assert (await change(again, "settings", {"gated": False})).status == 200
    assert (await again.get("/alice/one/resolve/main/a.bin", token="")).status == 200


async def test_only_an_owner_grants_access(alice: Client) -> None:
    await alice.create_repo("alice/one")
    await change(alice, "settings", {"gated": "auto"})
    grant = "user-access-request/grant"
    assert (await change(alice, grant, {"user": "bob"}, token="hf_bob")).status == 403
    assert (await change(alice, grant, {"user": "bob"}, token="")).status == 401
    assert (await change(alice, grant, {"user": "carl"})).status == 404
    assert (await change(alice, grant, {})).status == 400
    assert (await change(alice, "user-access-request/handle", {"user": "bob"})).status == 400
    accepted = "/api/models/alice/one/user-access-request/accepted"
    assert (await alice.get(accepted, token="hf_bob")).status == 403
    assert await alice.get_json(accepted) == []


async def test_a_repository_is_deleted(alice: Client) -> None:
    await alice.create_repo("alice/one")
    await alice.add(XorbFile([b"x" * 1000]), "a.bin", repo="models/alice/one")
    value = {"name": "one", "organization": "alice", "type": "model"}
    assert (await delete(alice, value)).status == 200
    assert (await alice.get("/api/models/alice/one")).status == 404
    assert (await delete(alice, value)).header("X-Error-Code") == "RepoNotFound"
    root = alice.origin.library.root
    assert list_files(root / "repos") == set()
    assert await list_ids(alice, {}) == []
    assert (await alice.create_repo("alice/one")).status == 200
    assert (await alice.get_json("/api/models/alice/one"))["siblings"] == []


async def test_who_may_not(alice: Client) -> None:
    await alice.create_repo("alice/one")
    value = {"name": "one", "organization": "alice"}
    assert (await delete(alice, value, token="hf_bob")).status == 403
    assert (await delete(alice, value, token="")).status == 401
    settings = "/api/models/alice/one/settings"
    for token, status in (("hf_bob", 403), ("", 401)):
        answer = await alice.ask("PUT", settings, b'{"private": true}', token=token)
        assert answer.status == status
        check = "/api/models/alice/one/auth-check"
        assert (await alice.get(check, token=token)).status == 200
        assert (await alice.get(f"{check}/write", token=token)).status == status
    assert (await alice.get("/api/models/alice/one/auth-check/write")).status == 200
    assert (await alice.get("/api/models/alice/no/auth-check")).status == 404


async def test_a_space_has_an_sdk(alice: Client) -> None:
    assert (await alice.create_repo("alice/s", type="space")).status == 400
    assert (await alice.create_repo("alice/s", type="space", sdk="static")).status == 200
