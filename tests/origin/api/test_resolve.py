import hashlib
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.origin.client import BASE, Client, XorbFile, plain
from tests.origin.conftest import Clock
from xetserve.origin.api.resolve import make_disposition
from xetserve.origin.app import Origin
from xetserve.origin.store.git_ids import hash_object

FILE = XorbFile([bytes(range(256)) * 4, b"\1" * 5000, b"end"])
CONTENT = FILE.content
SIZE = len(CONTENT)
TEXT = b"hello\n"
TEXT_OID = "ce013625030ba8dba906f756967f9e9ca394464a"
NAME = "sub dir/größe.bin"


@pytest.fixture
async def filled(client: Client) -> Client:
    await client.add(FILE, NAME)
    assert (await client.commit(plain("a.txt", TEXT), plain("empty", b""))).status == 200
    return client


def url(name: str, revision: str = "main") -> str:
    return f"/me/repo/resolve/{revision}/{quote(name)}"


async def head_of(client: Client) -> str:
    return str((await client.get_json("/api/models/me/repo"))["sha"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_xet_file_comes_with_all_that_clients_ask_for(filled: Client, method: str) -> None:
    answer = await filled.ask(method, url(NAME))
    head = await head_of(filled)
    assert (answer.status, answer.response.content_length) == (200, SIZE)
    assert answer.content == (CONTENT if method == "GET" else b"")
    fields = {name: value for name, value in answer.headers if name != "Last-Modified"}
    assert fields == {
        "X-Repo-Commit": head,
        "ETag": f'"{FILE.sha256}"',
        "X-Linked-Etag": f'"{FILE.sha256}"',
        "X-Linked-Size": str(SIZE),
        "X-Xet-Hash": FILE.file_name,
        "Link": f'<{BASE}/api/models/me/repo/xet-read-token/{head}>; rel="xet-auth", '
        f'<{BASE}/v1/reconstructions/{FILE.file_name}>; rel="xet-reconstruction-info"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "X-Content-Type-Options": "nosniff",
        "Content-Disposition": "inline; filename*=UTF-8''gr%C3%B6%C3%9Fe.bin; "
        'filename="gr??e.bin";',
    }
    assert parsedate_to_datetime(answer.header("Last-Modified"))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_plain_file_has_its_git_id_and_no_trace_of_xet(filled: Client, method: str) -> None:
    answer = await filled.ask(method, url("a.txt"))
    assert (answer.status, answer.response.content_length) == (200, len(TEXT))
    assert answer.header("ETag") == f'"{TEXT_OID}"'
    assert answer.header("Content-Type") == "text/plain"
    assert not {"X-Xet-Hash", "X-Linked-Size", "X-Linked-Etag", "Link"} & {
        n for n, _ in answer.headers
    }


@pytest.mark.parametrize(
    ("header", "status", "content"),
    [
        pytest.param("bytes=0-0", 206, CONTENT[:1], id="first byte"),
        pytest.param("bytes=1000-1100", 206, CONTENT[1000:1101], id="over a chunk's end"),
        pytest.param("bytes=6000-", 206, CONTENT[6000:], id="open end"),
        pytest.param("bytes=-5", 206, CONTENT[-5:], id="suffix"),
        pytest.param(f"bytes=0-{SIZE * 2}", 206, CONTENT, id="more than there is"),
        pytest.param("bytes=0-1,5-6", 200, CONTENT, id="several are ignored"),
        pytest.param("bytes=x", 200, CONTENT, id="malformed is ignored"),
        pytest.param(f"bytes={SIZE}-", 416, None, id="past the end"),
        pytest.param("bytes=-0", 416, None, id="empty suffix"),
    ],
)
async def test_ranges(filled: Client, header: str, status: int, content: bytes | None) -> None:
    answer = await filled.get(url(NAME), headers=[("Range", header)])
    assert answer.status == status
    if content is None:
        assert answer.header("Content-Range") == f"bytes */{SIZE}"
        return
    assert answer.content == content
    if status == 206:
        start = CONTENT.index(content) if len(content) > 5 else None
        assert answer.header("Content-Range").endswith(f"/{SIZE}")
        if start is not None:
            assert answer.header("Content-Range").startswith(f"bytes {start}-")


async def test_a_plain_file_has_ranges_too(filled: Client) -> None:
    answer = await filled.get(url("a.txt"), headers=[("Range", "bytes=1-2")])
    assert (answer.status, answer.content) == (206, TEXT[1:3])


async def test_a_range_does_not_count_for_head(filled: Client) -> None:
    answer = await filled.ask("HEAD", url(NAME), headers=[("Range", "bytes=0-0")])
    assert (answer.status, answer.response.content_length) == (200, SIZE)


@pytest.mark.parametrize(
    ("header", "status"), [(None, 200), ("bytes=0-0", 416), ("bytes=-1", 416)], ids=str
)
async def test_an_empty_file(filled: Client, header: str | None, status: int) -> None:
    answer = await filled.get(url("empty"), headers=[("Range", header)] if header else [])
    assert answer.status == status
    if status == 200:
        assert (answer.content, answer.response.content_length) == (b"", 0)


async def test_a_resumed_download_is_of_the_same_version(filled: Client) -> None:
    ranged = ("Range", "bytes=5-")
    same = await filled.get(url("a.txt"), headers=[ranged, ("If-Range", f'"{TEXT_OID}"')])
    other = await filled.get(url("a.txt"), headers=[ranged, ("If-Range", '"other"')])
    assert (same.status, other.status) == (206, 200)


@pytest.mark.parametrize(
    ("header", "status"),
    [(f'"{TEXT_OID}"', 304), (f'W/"{TEXT_OID}"', 304), (f'"x", "{TEXT_OID}"', 304), ('"x"', 200)],
)
async def test_what_the_client_has_is_not_sent_again(
    filled: Client, header: str, status: int
) -> None:
    answer = await filled.get(url("a.txt"), headers=[("If-None-Match", header)])
    assert answer.status == status
    assert answer.header("ETag") == f'"{TEXT_OID}"'


async def test_revisions_are_branches_tags_commits_and_pull_requests(filled: Client) -> None:
    first = await head_of(filled)
    await filled.post_json("/api/models/me/repo/tag/main", {"tag": "v/1"})
    await filled.commit(plain("a.txt", b"new"))
    await filled.commit(plain("a.txt", b"pull"), to="main?create_pr=1")
    found = {
        revision: (await filled.get(url("a.txt", quote(revision, safe="")))).content
        for revision in ("main", first, "v/1", "refs/pr/1", "refs/heads/main")
    }
    assert list(found.values()) == [b"new", TEXT, TEXT, b"pull", b"new"]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        pytest.param(url("absent"), (404, "EntryNotFound"), id="no file"),
        pytest.param(url("sub dir"), (404, "EntryNotFound"), id="a folder"),
        pytest.param(url("a.txt", "x"), (404, "RevisionNotFound"), id="no revision"),
        pytest.param("/me/absent/resolve/main/x", (404, "RepoNotFound"), id="no repository"),
        pytest.param("/datasets/me/repo/resolve/main/a.txt", (404, "RepoNotFound"), id="type"),
    ],
)
async def test_what_is_not_there(filled: Client, target: str, expected: tuple[int, str]) -> None:
    answer = await filled.get(target)
    assert (answer.status, answer.header("X-Error-Code")) == expected
    if expected[1] == "EntryNotFound":
        assert answer.header("X-Repo-Commit") == await head_of(filled)


@pytest.mark.parametrize(
    ("kind", "prefix"), [("dataset", "/datasets"), ("space", "/spaces"), ("model", "")]
)
@pytest.mark.parametrize("name", ["o/n", "n"])
async def test_every_type_with_and_without_an_owner(
    client: Client, kind: str, prefix: str, name: str
) -> None:
    assert (await client.create_repo(name, type=kind, sdk="static")).status == 200
    await client.add(FILE, "a/b.bin", f"{kind}s/{name}")
    answer = await client.get(f"{prefix}/{name}/resolve/main/a/b.bin")
    assert answer.content == CONTENT
    link = f"{BASE}/api/{kind}s/{name}/xet-read-token/"
    assert answer.header("Link").startswith(f"<{link}")


@pytest.mark.parametrize(
    ("path", "as_attachment", "expected"),
    [
        ("a/b.bin", False, "inline; filename*=UTF-8''b.bin; filename=\"b.bin\";"),
        ("a b", True, "attachment; filename*=UTF-8''a%20b; filename=\"a b\";"),
        ('q"\\\n', False, "inline; filename*=UTF-8''q%22%5C%0A; filename=\"q???\";"),
        ("大", False, "inline; filename*=UTF-8''%E5%A4%A7; filename=\"?\";"),
    ],
)
def test_make_disposition(path: str, as_attachment: bool, expected: str) -> None:
    assert make_disposition(path, as_attachment) == expected


async def test_a_download_is_an_attachment_on_request(filled: Client) -> None:
    answer = await filled.get(url("a.txt") + "?download=true")
    assert answer.header("Content-Disposition").startswith("attachment;")


@pytest.fixture
async def bridged(filled: Client, clock: Clock) -> Client:
    """The same repository, as an origin that redirects to a bridge serves it."""
    return Client(
        Origin(
            filled.origin.library.root,
            bridge_url="http://bridge.test",
            test_controls=True,
            clock=clock,
        )
    )


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_redirect_has_all_the_headers(bridged: Client, method: str) -> None:
    answer = await bridged.ask(method, url(NAME))
    assert answer.status == 302
    assert answer.header("Location").startswith("http://bridge.test/bridge/models/me%2Frepo/")
    assert answer.header("X-Xet-Hash") == FILE.file_name
    assert answer.header("X-Linked-Etag") == f'"{FILE.sha256}"'
    assert answer.header("X-Linked-Size") == str(SIZE)
    assert answer.header("X-Repo-Commit") == await head_of(bridged)
    assert answer.header("ETag") != answer.header("X-Linked-Etag")
    assert (await bridged.ask(method, url("a.txt"))).status == 200


async def test_the_bridge_serves_what_it_was_signed_for(bridged: Client, clock: Clock) -> None:
    location = (await bridged.get(url(NAME))).header("Location")
    target = location.removeprefix("http://bridge.test")
    answer = await bridged.get(target, token="")
    assert hashlib.sha256(answer.content).hexdigest() == FILE.sha256
    assert "gr%C3%B6%C3%9Fe.bin" in answer.header("Content-Disposition")
    part = await bridged.get(target, headers=[("Range", "bytes=5-9")], token="")
    assert (part.status, part.content) == (206, CONTENT[5:10])
    head = await bridged.ask("HEAD", target, token="")
    assert (head.status, head.response.content_length) == (200, SIZE)
    for bad in (target.replace(FILE.sha256, "ab" * 32), target.partition("?")[0], target[:-1]):
        assert (await bridged.get(bad, token="")).status == 403
    clock.now += 3600
    assert (await bridged.get(target, token="")).status == 403


async def test_a_file_that_is_damaged_on_disk_breaks_off(filled: Client) -> None:
    flip_last_byte(filled.origin.library.root / "xorbs" / FILE.xorb_name)
    answer = await filled.get(url(NAME))
    assert answer.error is not None
    assert len(answer.content) < SIZE


def flip_last_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_raw_is_what_git_has(filled: Client) -> None:
    listed = await filled.get_json("/api/models/me/repo/tree/main?recursive=true")
    files = [entry for entry in listed if entry["type"] == "file"]
    assert {"lfs" in entry for entry in files} == {True, False}
    for entry in files:
        answer = await filled.get(f"/me/repo/raw/main/{quote(entry['path'])}")
        assert answer.status == 200
        assert answer.header("ETag") == f'"{entry["oid"]}"'
        assert hash_object("blob", answer.content) == entry["oid"]
        assert answer.content.startswith(b"version https://git-lfs") == ("lfs" in entry)
    missing = await filled.get("/me/repo/raw/main/no")
    assert (missing.status, missing.header("X-Error-Code")) == (404, "EntryNotFound")
