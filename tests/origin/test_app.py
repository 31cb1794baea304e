import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.origin.client import Client, XorbFile, list_files, plain
from xetserve.origin.app import Origin

FILE = XorbFile([b"a" * 100, b"b" * 200])


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("POST", "/", 404),
        ("GET", "/nothing", 404),
        ("GET", "/health", 200),
        ("HEAD", "/healthz", 200),
        ("GET", "/ready", 200),
        ("POST", "/ready", 404),
        ("GET", "/me/repo", 200),
        ("GET", "/me/repo/zebras/main", 404),
        ("GET", "/datasets", 404),
        ("GET", "/datasets/", 404),
        ("GET", "/me/repo/resolve/main", 404),
        ("POST", "/me/repo/resolve/main/x", 404),
        ("GET", "/api", 404),
        ("GET", "/api/", 404),
        ("GET", "/api/models", 200),
        ("GET", "/api/zebras", 404),
        ("GET", "/api/zebras/me/repo", 404),
        ("POST", "/api/models/me/repo/refs", 404),
        ("GET", "/api/models/me/repo/preupload/main", 404),
        ("POST", "/me/repo/info/lfs/objects/batch", 404),
        ("GET", "/data", 404),
        ("GET", "/data/a/b", 404),
        ("GET", "/data/x", 403),
        ("GET", "/bridge/x", 404),
        ("GET", "/bridge/models/me%2Frepo/x", 403),
        ("POST", "/bridge/models/me%2Frepo/x", 404),
        ("GET", "/lfs/models/me%2Frepo/x", 404),
        ("PUT", "/lfs/models/me%2Frepo/x", 403),
        ("GET", "/v1", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "//", 404),
        ("GET", "/%00/%ff/resolve/main/x", 404),
    ],
)
async def test_statuses(client: Client, method: str, target: str, status: int) -> None:
    answer = await client.ask(method, target)
    assert answer.status == status
    if status >= 400:
        assert answer.json()["error"]


PIECES = (
    *(
        "api",
        "models",
        "datasets",
        "me",
        "repo",
        "me%2Frepo",
        "resolve",
        "main",
        "x.bin",
        "tree",
        "blob",
        "discussions",
        "refs",
    ),
    *(
        "revision",
        "paths-info",
        "preupload",
        "commit",
        "branch",
        "tag",
        "repos",
        "create",
        "commits",
        "settings",
        "auth-check",
        "delete",
        "manifests",
        "blobs",
    ),
    *("xet-read-token", "xet-write-token", "repo.git", "info", "lfs", "objects", "batch", "bridge"),
    *("v1", "v2", "reconstructions", "xorbs", "shards", "files", "chunks", "default", "data", ""),
    *("0" * 64, FILE.xorb_name, FILE.file_name, FILE.sha256, "..", "%00", "%ff", "%2e%2e", "%"),
)
BODIES = st.binary(max_size=30) | st.sampled_from(
    (
        b"[]",
        b"{}",
        b'{"name": "a"}',
        b'{"files": [{}]}',
        b'{"key": "header", "value": {"summary": 1}}',
    )
)
VALUES = st.sampled_from(("bytes=0-1", "bytes=-", "\xe9", "Bearer x", "Bearer xet_.", "x", ""))


@settings(
    deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS")),
    st.lists(st.sampled_from(PIECES), max_size=8),
    st.text("?&=%aX1-,", max_size=12),
    BODIES,
    st.dictionaries(
        st.sampled_from(("Range", "Authorization", "If-None-Match", "If-Range")), VALUES
    ),
)
async def test_whatever_is_asked_the_origin_is_not_at_fault(
    client: Client,
    method: str,
    path: list[str],
    query: str,
    body: bytes,
    headers: dict[str, str],
) -> None:
    target = "/" + "/".join(path) + query
    answer = await client.ask(method, target, body, headers=headers.items(), token="")
    assert 200 <= answer.status < 500
    assert answer.error is None


@pytest.mark.parametrize(
    ("site", "status"),
    [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)],
)
async def test_pages_of_other_sites_change_nothing(client: Client, site: str, status: int) -> None:
    fields = [("Sec-Fetch-Site", site), ("Content-Type", "text/plain")]
    body = b'{"name": "evil/model"}'
    assert (await client.ask("POST", "/api/repos/create", body, headers=fields)).status == status
    assert (await client.get("/me/repo", headers=fields)).status == 200  # a link may lead here


@pytest.mark.parametrize(
    ("number", "status", "text"),
    [
        (errno.ENOSPC, 507, "the disk of the origin is full"),
        (errno.EROFS, 500, "the disk of the origin cannot be used; its log has details"),
    ],
)
async def test_trouble_with_the_disk_is_a_sentence(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    status: int,
    text: str,
) -> None:
    def fail(path: Path, content: bytes) -> None:
        path.write_bytes(content[:1])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("xetserve.origin.store.library._write_aside", fail)
    answer = await client.commit(plain("a.txt", b"a"))
    assert (answer.status, answer.json()["error"]) == (status, text)
    assert answer.header("X-Error-Message") == text
    (record,) = caplog.records
    assert record.getMessage() == f"{client.origin.library.root}: {os.strerror(number)}"
    assert record.exc_info is None
    assert list_files(client.origin.library.root / "tmp") == set()


async def test_requests_are_recorded_by_kind(client: Client) -> None:
    await client.add(FILE, "x.bin")
    token = await client.get_cas_token()
    plan = await client.get_json(f"/v2/reconstructions/{FILE.file_name}", token=token)
    await client.ask("DELETE", "/_test/requests")
    assert await client.get_json("/_test/requests") == []
    (entry,) = plan["xorbs"][FILE.xorb_name]
    fields = [("Range", "bytes=0-1"), ("User-Agent", "me/1"), ("Cookie", "a=b")]
    await client.get(entry["url"], headers=fields, token="")
    await client.get("/me/repo/resolve/main/x.bin?x=1", token="hf_me")
    await client.get(f"/v1/reconstructions/{FILE.file_name}", token="xet_")
    await client.get("/bridge/models/me%2Frepo/x")
    seen = await client.get_json("/_test/requests")
    assert [(item["kind"], item["status"]) for item in seen] == [
        ("data", 403),
        ("hub", 200),
        ("cas", 401),
        ("bridge", 403),
    ]
    assert seen[0] == {
        "method": "GET",
        "target": entry["url"].removeprefix("http://hub.test"),
        "path": f"/data/{FILE.xorb_name}",
        "kind": "data",
        "authorization": None,
        "cookie": "a=b",
        "range": "bytes=0-1",
        "user_agent": "me/1",
        "status": 403,
    }
    assert seen[1]["authorization"] == "Bearer hf_me"
    assert seen[1]["path"] == "/me/repo/resolve/main/x.bin"


async def test_without_test_controls_there_are_none(client: Client) -> None:
    plain = Client(Origin(client.origin.library.root))
    assert (await plain.post_json("/_test/faults", {})).status == 404
    assert (await plain.get("/_test/requests")).status == 404
    assert (await plain.ask("DELETE", "/_test/requests")).status == 404


async def test_controls_replace_what_was_set_before(client: Client) -> None:
    await client.set_faults(hub_status_burst={"status": 500, "count": 99})
    assert (await client.get("/")).status == 500
    await client.set_faults(cas_status_burst={"status": 503, "count": 1, "retry_after": 3})
    assert (await client.get("/")).status == 200
    answer = await client.get("/v1/reconstructions/x")
    assert (answer.status, answer.header("Retry-After")) == (503, "3")
    assert (await client.get("/v1/reconstructions/x")).status == 400


async def test_strange_controls_are_refused_and_change_nothing(client: Client) -> None:
    await client.set_faults(hub_status_burst={"status": 500, "count": 99})
    assert (await client.post_json("/_test/faults", {"typo": 1})).status == 400
    assert (await client.get("/")).status == 500
    assert (await client.get("/_test/other")).status == 404


async def test_closing_is_fine_at_any_time(client: Client) -> None:
    await client.origin.aclose()
    assert (await client.get("/")).status == 200
