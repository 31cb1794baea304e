"""Requests of clients, as their sources have them: a table of all, and llama.cpp and hf-hub in
Rust step by step.
"""

import asyncio
import hashlib
import json
import re
import urllib.parse
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.client_site import (
    BUCKET,
    EMPTY,
    KERNEL,
    LARGE,
    MANY,
    MODEL,
    NUM_MANY,
    SECRET,
    ClientSite,
)
from tests.e2e.clients import Connection, Reply
from tests.e2e.conftest import serve_arguments
from tests.e2e.hub import TOKEN
from tests.peers import ScriptedPeer, answering, http_answer

DOCUMENT = ("Content-Type", "application/json")
MOUNT = ("User-Agent", "hf-mount/0.9.2; fs/nfs")
FORM = ("Content-Type", "application/x-www-form-urlencoded")


class Shape(NamedTuple):
    """A request, with its status from a server that is plain for its client, and from a native one.

    {commit} in the target is that of the repository in the target.
    """

    client: str
    request: str
    plain: int
    native: int
    body: bytes | None = None
    fields: tuple[tuple[str, str], ...] = ()


JSON = ("Content-Type", "application/json")
HF = ("User-Agent", "unknown/None; hf_hub/2.4.0; python/3.11.7; hf_xet/1.8.0")
K = f"/api/kernels/{KERNEL}"
B = f"/api/buckets/{BUCKET}"
SHAPES = [
    Shape("kernels 0.17.2", f"GET {K}/refs", 200, 200),
    Shape("kernels 0.17.2", f"GET {K}/tree/{{commit}}/build?recursive=false&expand=false",
          200, 200),
    Shape("kernels 0.17.2", f"GET {K}/revision/{{commit}}", 200, 200),
    Shape("kernels 0.17.2", f"HEAD /kernels/{KERNEL}/resolve/{{commit}}/build/model-Q8_0.gguf",
          200, 200),
    Shape("kernels 0.17.2", f"GET /kernels/{KERNEL}/resolve/{{commit}}/build/model-Q8_0.gguf",
          200, 200),
    Shape("hf-xet 1.8.0", f"GET {K}/xet-read-token/{{commit}}", 404, 200),
    Shape("hf-xet 1.8.0", f"GET {K}/xet-write-token/main", 404, 403),
    Shape("hf-hub 1.1.0", f"GET /api/models/{MODEL}/xet-read-token/main", 404, 200),
    Shape("huggingface_hub 2.4.0", f"POST {K}/paths-info/main", 200, 200,
          b"paths=build&expand=True", (FORM,)),
    Shape("huggingface_hub 2.4.0", f"GET {K}/commits/main", 200, 200),
    # The origin has no converted revisions here: the request passes, and the answer names it.
    Shape("DuckDB, as documented for hf://",
          f"HEAD /{MODEL}/resolve/~parquet/default/train/0.parquet", 404, 404),
    Shape("polars 2.1.0", f"GET /{MODEL.replace('/', '%2F')}/resolve/main/quants/model-Q8_0.gguf",
          206, 206, fields=(("Range", "bytes=-262144"), ("User-Agent", "polars/0.55.1"))),
    Shape("polars for R, by its issues",
          f"GET /{MODEL.replace('/', '%2F')}/resolve/main/README.md", 200, 200),
    Shape("huggingface_hub 2.4.0",
          f"GET /api/resolve-cache/models/{MODEL}/{{commit}}/deep%2Fer%2Fw%C3%B6rter.txt",
          200, 200),
    Shape("encodeURIComponent", f"GET /{MODEL}/resolve/main/quants%2Fmodel-Q8_0.gguf", 200, 200),
    Shape("polars 2.1.0", f"GET /api/models/{MODEL.replace('/', '%2F')}/tree/main", 200, 200),
    Shape("polars 2.1.0", f"GET /api/models/{MODEL}/tree/~parquet?recursive=true", 404, 404),
    Shape("huggingface_hub 2.4.0", "GET /api/buckets/me?search=b", 200, 200, fields=(HF,)),
    Shape("huggingface_hub 2.4.0", f"GET {B}", 200, 200, fields=(HF,)),
    Shape("huggingface_hub 2.4.0", f"GET {B}/tree?recursive=true", 200, 200, fields=(HF,)),
    Shape("huggingface_hub 2.4.0", f"GET {B}/tree/build%2Fmodel-Q8_0.gguf", 200, 200),
    Shape("huggingface_hub 2.4.0", f"POST {B}/paths-info", 200, 200,
          b'{"paths": ["build/model-Q8_0.gguf"]}', (HF, JSON)),
    Shape("huggingface_hub 2.4.0", f"HEAD /buckets/{BUCKET}/resolve/build%2Fmodel-Q8_0.gguf",
          200, 200, fields=(HF,)),
    Shape("huggingface_hub 2.4.0", f"GET /buckets/{BUCKET}/resolve/build/model-Q8_0.gguf",
          206, 206, fields=(HF, ("Range", "bytes=5-99"))),
    Shape("huggingface_hub 2.4.0", f"POST {B}/batch", 403, 403, b"{}", (HF,)),
    Shape("hf-xet 1.8.0", f"GET {B}/xet-read-token", 404, 200),
    Shape("hf-xet 1.8.0", f"GET {B}/xet-write-token", 404, 403),
    Shape("hf-mount 0.9.2", f"GET {B}/xet-read-token", 404, 200,
          fields=(("User-Agent", "hf-mount/0.9.2; fs/nfs"),)),
    Shape("hf-mount 0.9.2", f"GET /api/models/{MODEL}", 200, 200, None, (MOUNT,)),
    Shape("hf-mount 0.9.2", f"GET /api/models/{MODEL}/xet-read-token/main", 404, 200, None,
          (MOUNT,)),
    # Uploads
    Shape("hf 2.4.0", "POST /api/repos/create", 403, 403, b'{"name": "x"}', (DOCUMENT,)),
    Shape("hf 2.4.0", f"POST /api/models/{MODEL}/preupload/main", 403, 403, b"{}", (DOCUMENT,)),
    Shape("hf 2.4.0", f"POST /api/models/{MODEL}/commit/main", 403, 403, b"{}", (DOCUMENT,)),
    Shape("hf 2.4.0", f"POST /api/models/{MODEL}/branch/b", 403, 403, b"{}", (DOCUMENT,)),
    Shape("hf 2.4.0", "POST /api/buckets/o/n/batch", 403, 403, b"{}", (DOCUMENT,)),
    Shape("hf 2.4.0", "POST /api/buckets/o/n", 403, 403, b"{}", (DOCUMENT,)),
    Shape("huggingface_hub 0.36.2", f"POST /{MODEL}.git/info/lfs/objects/batch", 403, 403,
          b'{"operation": "upload", "objects": []}', (DOCUMENT,)),
    Shape("git 2.39.5", f"GET /{MODEL}/info/refs?service=git-receive-pack", 403, 403),
    # Links
    Shape("curl", f"GET /{MODEL}/blob/main/README.md", 307, 307),
    Shape("curl", f"GET /{MODEL}", 404, 404),
    Shape("curl", f"GET /{MODEL}/tree/main", 404, 404),
    Shape("curl", f"GET /download/models/{MODEL}/README.md", 200, 200),
    Shape("curl", f"GET /download/{MODEL}/README.md?revison=main", 400, 400),
]  # fmt: skip

LLAMA = [("User-Agent", "llama-cpp/b9999-0123abc"), ("Accept", "application/json")]
RUST = [("User-Agent", "unknown/None; hf-hub/0.5.0; rust/unknown")]


def ask_json(connection: Connection, path: str, token: str | None) -> object:
    reply = connection.ask(path, LLAMA, token=token)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert "link" not in reply.headers
    return json.loads(reply.body)


@pytest.fixture(scope="module")
def servers(
    _running_client_site: ClientSite, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Process]]:
    """A server of each mode."""
    launched = Launcher(tmp_path_factory.mktemp("servers"))
    try:
        yield {
            mode: launched.start(
                *serve_arguments(_running_client_site.origin.url, "--xet-mode", mode)
            )
            for mode in ("plain", "native")
        }
    finally:
        launched.stop_all()


@pytest.mark.parametrize("mode", ["plain", "native"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.client}: {shape.request}")
def test_a_shape(
    client_site: ClientSite, servers: dict[str, Process], shape: Shape, mode: str
) -> None:
    method, target = shape.request.split(" ")
    with closing(Connection(servers[mode].url)) as connection:
        if "{commit}" in target:
            target = target.replace("{commit}", find_commit(connection, target))
        reply = connection.ask(target, shape.fields, method, body=shape.body)
    assert reply.status == (shape.plain if mode == "plain" else shape.native)
    # Nothing leads past the server.
    told = f"{reply.headers} {reply.body.decode('latin-1')}"
    assert client_site.origin.url.removeprefix("http://") not in told
    if mode == "plain":
        assert '"xetHash":"' not in told.replace(" ", "")
        assert "x-xet-" not in told


def find_commit(connection: Connection, target: str) -> str:
    """Return the commit of the main branch of the repository in a target."""
    path = target.removeprefix("/api").removeprefix("/resolve-cache")
    kind, owner, name, *_ = path.split("/")[1:]
    return str(json.loads(connection.ask(f"/api/{kind}/{owner}/{name}").body)["sha"])


class TestLlama:
    """common/hf-cache.cpp and common/download.cpp."""

    @pytest.mark.parametrize(("repo", "token"), [(MODEL, None), (SECRET, TOKEN)])
    def test_a_model_is_found_and_downloaded(
        self, client_site: ClientSite, repo: str, token: str | None
    ) -> None:
        connection = Connection(client_site.server.url)
        refs = ask_json(connection, f"/api/models/{repo}/refs", token)
        assert isinstance(refs, dict)
        (commit,) = [b["targetCommit"] for b in refs["branches"] if b["name"] == "main"]
        tree = ask_json(connection, f"/api/models/{repo}/tree/{commit}?recursive=true", token)
        assert isinstance(tree, list)
        (entry,) = [e for e in tree if e["path"] == LARGE]
        content = client_site.files[LARGE]
        assert (entry["type"], entry["size"]) == ("file", len(content))
        assert entry["lfs"]["oid"] == hashlib.sha256(content).hexdigest()
        assert not [e for e in tree if "xetHash" in e]

        path = f"/{repo}/resolve/{commit}/{urllib.parse.quote(LARGE)}"
        head = connection.ask(path, LLAMA[:1], method="HEAD", token=token)
        assert (head.status, head.headers["content-length"]) == (200, str(len(content)))
        assert (head.headers["accept-ranges"], head.headers["etag"]) == (
            "bytes", f'"{entry["lfs"]["oid"]}"',
        )  # fmt: skip
        whole = connection.ask(path, LLAMA[:1], token=token)
        assert (whole.status, whole.body) == (200, content)
        fields = [*LLAMA[:1], ("Range", f"bytes={len(content) - 1000}-")]
        rest = connection.ask(path, fields, token=token)
        assert (rest.status, rest.body) == (206, content[-1000:])
        connection.close()

    def test_a_long_list_comes_as_a_whole(self, client_site: ClientSite) -> None:
        connection = Connection(client_site.server.url)
        target = f"/api/models/{MANY}/tree/main?recursive=true"
        tree = ask_json(connection, target, None)
        assert isinstance(tree, list)
        paths = [entry["path"] for entry in tree if entry["type"] == "file"]
        assert len(set(paths) - {".gitattributes"}) == NUM_MANY
        pages = [entry for entry in client_site.control.requests() if "/tree/" in entry["path"]]
        assert len(pages) > 1
        first = connection.ask(target, [("User-Agent", "curl/8")])
        assert 'rel="next"' in first.headers["link"]
        assert json.loads(first.body) == tree[: len(json.loads(first.body))]
        connection.close()


# Requests about what the origin does not have: a scripted Hub answers them.
PASSED = [
    ("huggingface_hub 2.4.0", "POST /oauth/device", b"client_id=c"),
    ("huggingface_hub 2.4.0", "POST /oauth/token", b"grant_type=refresh_token&refresh_token=r"),
    ("huggingface_hub 2.4.0", "GET /api/jobs/o/5/logs", None),
    ("huggingface_hub 2.4.0", "GET /api/jobs/o/5/metrics", None),
    ("huggingface_hub 2.4.0", "GET /api/spaces/o/n/logs/run", None),
    ("huggingface_hub 2.4.0", "GET /api/buckets/o/n/events?since=2026-01-01T00:00:00Z", None),
    *(
        ("datasets 5.2.0", f"GET /{name}?dataset=o/n", None)
        for name in ("parquet", "info", "splits", "is-valid", "size", "rows")
    ),
    ("git 2.39.5", "GET /o/n/info/refs?service=git-upload-pack", None),
    ("git 2.39.5", "POST /datasets/o/n.git/git-upload-pack", b"0014command=ls-refs\n0000"),
]


def fields_of(client: str) -> list[tuple[str, str]]:
    host = [("Host", "datasets-server.files.test")] if client.startswith("datasets ") else []
    return [("User-Agent", client), *host]


async def test_requests_that_go_to_the_hub(launcher: Launcher) -> None:
    async with ScriptedPeer(answering(http_answer(200, b"{}"))) as hub:
        flags = ("--datasets-server", hub.base)
        server = await asyncio.to_thread(launcher.start, *serve_arguments(hub.base, *flags))

        def ask() -> list[int]:
            with closing(Connection(server.url)) as connection:
                return [
                    connection.ask(target, fields_of(client), method, body=body).status
                    for client, (method, target), body in (
                        (client, request.split(" "), body) for client, request, body in PASSED
                    )
                ]

        assert await asyncio.to_thread(ask) == [200] * len(PASSED)
        asked = [request for request in hub.requests if request.path != "/"]
    assert [f"{each.method} {each.target}" for each in asked] == [row[1] for row in PASSED]
    assert [each.body or None for each in asked] == [row[2] for row in PASSED]
    for each, (client, _, _) in zip(asked, PASSED, strict=True):
        assert re.fullmatch(rf"xetserve/[0-9.]+ {client}", each.get("user-agent") or "")


class TestMount:
    """hf-mount's hub_api.rs and setup.rs: all files natively, whatever their size."""

    def test_a_server_for_all_kinds_of_clients(self, client_site: ClientSite) -> None:
        connection = Connection(client_site.server.url)
        for agent, is_told in ((MOUNT, True), (("User-Agent", "hf_hub/2.4.0"), False)):
            tree = connection.ask(f"/api/models/{MODEL}/tree/main?expand=true", [agent])
            hashes = {entry["path"]: entry.get("xetHash") for entry in json.loads(tree.body)}
            assert (hashes[LARGE] is not None) is is_told
            head = connection.ask(f"/{MODEL}/resolve/main/{LARGE}", [agent], "HEAD")
            assert (head.status, head.headers.get("x-xet-hash")) == (200, hashes[LARGE])
        tree = connection.ask(f"/api/models/{MODEL}/tree/main", [MOUNT])
        (name,) = [e["xetHash"] for e in json.loads(tree.body) if e["path"] == LARGE]
        reply = connection.ask(f"/api/models/{MODEL}/xet-read-token/main", [MOUNT])
        access = json.loads(reply.body)
        assert access["casUrl"].startswith(client_site.server.url)
        terms = connection.ask(f"/v1/reconstructions/{name}", [MOUNT], token=access["accessToken"])
        assert terms.status == 200
        assert sum(t["unpacked_length"] for t in json.loads(terms.body)["terms"]) == len(
            client_site.files[LARGE]
        )
        connection.close()


class TestRust:
    """hf-hub's api/sync.rs: metadata by a GET of the first byte, no redirects off the host."""

    def probe(self, connection: Connection, path: str) -> Reply:
        quoted = urllib.parse.quote(path)
        fields = [*RUST, ("Range", "bytes=0-0")]
        return connection.ask(f"/{MODEL}/resolve/main/{quoted}", fields)

    def test_every_file(self, client_site: ClientSite) -> None:
        connection = Connection(client_site.server.url)
        reply = connection.ask(f"/api/models/{MODEL}/revision/main", RUST)
        info = json.loads(reply.body)
        names = {sibling["rfilename"] for sibling in info["siblings"]} - {".gitattributes"}
        assert names == set(client_site.files)
        for name in names:
            content = client_site.files[name]
            first = self.probe(connection, name)
            assert first.headers["x-repo-commit"] == info["sha"]
            assert first.headers["etag"].strip('"')
            assert int(first.headers["content-range"].rpartition("/")[2]) == len(content)
            assert (first.status, first.body) == (206 if content else 200, content[:1])
            path = f"/{MODEL}/resolve/main/{urllib.parse.quote(name)}"
            assert connection.ask(path, RUST).body == content
        connection.close()

    def test_nothing_is_not_too_little(self, client_site: ClientSite) -> None:
        connection = Connection(client_site.server.url)
        for name in (EMPTY, "empty.txt"):
            reply = self.probe(connection, name)
            assert (reply.status, reply.headers["content-length"]) == (200, "0")
            assert reply.headers["content-range"] == "bytes */0"
        connection.close()
