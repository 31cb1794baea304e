"""Pages for people: repositories, folders and commits."""

import re
from html import unescape
from pathlib import Path

import pytest

from tests.origin.client import Client, XorbFile, plain
from xetserve.origin.app import Origin

TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
FILE = XorbFile([b"x" * 1000, b"y" * 2000])


async def read(client: Client, target: str, **options: str) -> str:
    """Read a page, and check what every page promises."""
    answer = await client.get(target, **options)
    assert answer.status == 200, answer.content
    assert answer.header("Content-Type") == "text/html; charset=utf-8"
    assert answer.header("X-Content-Type-Options") == "nosniff"
    policy = answer.header("Content-Security-Policy")
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in policy + answer.content.decode().lower()
    return answer.content.decode()


def links(page: str) -> dict[str, str]:
    """The links of a page: text -> target."""
    found = re.findall(r'<a href="([^"]*)">([^<]*)</a>', page)
    return {unescape(text): unescape(target) for target, text in found}


async def test_the_index_lists_what_the_caller_may_see(tmp_path: Path) -> None:
    alice = Client(Origin(tmp_path / "origin", tokens=TOKENS), "hf_alice")
    assert "There is no repository that you may see." in await read(alice, "/")
    await alice.create_repo("alice/open")
    await alice.create_repo("alice/secret", private=True)
    await alice.create_repo("alice/data", type="dataset")
    await alice.ask("PUT", "/api/models/alice/open/settings", b'{"gated": "manual"}')
    page = await read(alice, "/")
    assert list(links(page)) == [
        "all repositories",
        "alice/open",
        "alice/secret",
        "datasets/alice/data",
    ]
    assert "model, gated" in page
    assert "model, private" in page
    for token in ("", "hf_bob"):
        page = await read(alice, "/", token=token)
        assert "secret" not in page
        assert links(page)["alice/open"] == "/alice/open"
    assert (await alice.get("/alice/secret", token="")).status == 401
    assert (await alice.get("/alice/secret", token="hf_bob")).status == 404
    await read(alice, "/alice/secret")
    await read(alice, "/alice/open", token="")  # the names of gated files are not secret


async def test_folders_lead_to_their_files(client: Client) -> None:
    await client.add(FILE, "deep/er/100% <b>&.bin")
    await client.commit(plain("deep/a.txt", b"hello"), plain("b.txt", b"hi"))
    root = await read(client, "/me/repo")
    assert await read(client, "/me/repo/") == root
    assert await read(client, "/me/repo/tree/main/") == root
    assert "2 B" in root
    deep = await read(client, links(root)["deep"])
    deeper = await read(client, links(deep)["er"])
    assert "<b>" not in deeper
    assert "3.0 kB" in deeper
    shown = links(deeper)
    assert (await client.get(shown["100% <b>&.bin"])).content == FILE.content
    assert await read(client, shown["deep"]) == deep
    assert links(await read(client, shown["main"])).keys() == links(root).keys()
    assert (await client.get("/me/repo/tree/main/no")).status == 404
    assert (await client.get("/me/repo/tree/no")).header("X-Error-Code") == "RevisionNotFound"
    answer = await client.get("/me/repo/blob/main/deep/a.txt")
    assert (answer.status, answer.header("Location")) == (302, "/me/repo/resolve/main/deep/a.txt")


async def test_branches_and_pull_requests(client: Client) -> None:
    await client.post_json("/api/models/me/repo/branch/feature%2Fx", {})
    await client.post_json("/api/models/me/repo/tag/main", {"tag": "v1"})
    await client.commit(plain("new.txt", b"new"), to="feature%2Fx")
    shown = links(await read(client, "/me/repo"))
    assert {"main", "feature/x", "v1"} <= shown.keys()
    assert "new.txt" in links(await read(client, shown["feature/x"]))
    assert "new.txt" not in links(await read(client, shown["v1"]))
    answer = await client.commit(plain("pr.txt", b"pr"), to="main?create_pr=1")
    page = await read(client, answer.json()["pullRequestUrl"])
    assert "pr.txt" in links(page)
    assert (await client.get("/me/repo/discussions/9")).status == 404


async def test_the_url_of_a_commit_is_a_page(client: Client) -> None:
    await client.commit(plain("a.txt", b"1"), plain("b.txt", b"1"), plain("c.txt", b"1"))
    answer = await client.commit(
        plain("a.txt", b"2"),
        plain("d&d.txt", b"1"),
        ("deletedFile", {"path": "b.txt"}),
    )
    page = await read(client, answer.json()["commitUrl"])
    cells = [re.sub("<[^>]*>", "", cell) for cell in re.findall("<td>(.*?)</td>", page)]
    assert cells == ["a.txt", "changed", "b.txt", "removed", "d&amp;d.txt", "added"]
    shown = links(page)
    assert "b.txt" not in shown
    assert (await client.get(shown["a.txt"])).content == b"2"
    assert "a.txt" in links(await read(client, shown["all files"]))
    (before,) = [target for text, target in shown.items() if re.fullmatch("[0-9a-f]{8}", text)]
    page = await read(client, before)
    assert page.count("<td>added</td>") == 3
    assert (await client.get("/me/repo/commit/" + 40 * "0")).status == 404


async def test_what_users_name_is_escaped(client: Client) -> None:
    header = '{"key": "header", "value": {"summary": "<i>&", "description": "</pre><i>\\"\\ud83d"}}'
    ok = header.replace("\\ud83d", "\\ud83d\\ude00")
    answer = await client.ask("POST", "/api/models/me/repo/commit/main", ok.encode())
    assert answer.status == 200
    for target in (answer.json()["commitUrl"], "/me/repo"):
        page = await read(client, target)
        assert "<i>" not in page
        assert "&lt;i&gt;&amp;" in page
    # A name may have half a surrogate pair.
    await client.post_json("/api/models/me/repo/tag/main", {"tag": "\ud83d<i>"})
    assert "<i>" not in await read(client, "/me/repo")


async def test_long_lists_have_pages(client: Client) -> None:
    await client.commit(*(plain(f"{number:03}.txt", b"x") for number in range(25)))
    seen: list[str] = []
    target = "/me/repo?limit=10"
    while target:
        shown = links(await read(client, target))
        target = shown.pop("more", "")
        seen += [text for text in shown if text.endswith(".txt")]
    assert seen == [f"{number:03}.txt" for number in range(25)]


@pytest.mark.parametrize("target", ["/", "/me/repo", "/me/repo/tree/main"])
async def test_only_reading(client: Client, target: str) -> None:
    assert (await client.ask("HEAD", target)).status == 200
    for method in ("POST", "PUT", "DELETE"):
        assert (await client.ask(method, target)).status == 404
