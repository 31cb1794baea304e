"""Links to pages of the Hub that somebody has pasted."""

import json

import pytest

from tests.app.world import CONTENT, World, ask
from tests.routes import TABLE, RecordingApplication
from xetserve.app.hub.links import advise
from xetserve.errors import RequestError
from xetserve.http.messages import Headers, Request


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/o/n/blob/main/a.gguf", "/o/n/resolve/main/a.gguf"),
        ("/n/blob/v1/d/a%20b", "/n/resolve/v1/d/a%20b"),
        ("/datasets/o/n/blob/refs%2Fpr%2F1/a?download=true",
         "/datasets/o/n/resolve/refs%2Fpr%2F1/a?download=true"),
        ("/spaces/o/n/blob/main/app.py", "/spaces/o/n/resolve/main/app.py"),
        ("/kernels/o/n/blob/main/build.toml", "/kernels/o/n/resolve/main/build.toml"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_page_of_a_file_leads_to_the_file(method: str, path: str, expected: str) -> None:
    world = World()
    async with world.run() as client:
        status, headers, _ = await ask(client, path, method=method, token=None)
        assert (status, headers["location"]) == (307, f"http://files.test{expected}")
        assert world.hub.wires == []
        if method == "GET" and "a.gguf" in path:
            assert (await ask(client, expected))[2] == CONTENT


@pytest.mark.parametrize(
    ("path", "status"),
    [("/o/n/blob/main/", 404), ("/o/n/blob/main/../a", 400), ("/-o/n/blob/main/a", 404),
     ("/o/n/blob/a..b/a", 400)],
)  # fmt: skip
async def test_a_link_to_no_file(path: str, status: int) -> None:
    world = World()
    async with world.run() as client:
        assert (await ask(client, path))[0] == status


@pytest.mark.parametrize(
    ("path", "files", "folder"),
    [
        ("o/n", "/o/n/resolve/", "/api/models/o/n/tree/main "),
        ("o/n/", "/o/n/resolve/", "/api/models/o/n/tree/main "),
        ("gpt2", "/gpt2/resolve/", "/api/models/gpt2/tree/main "),
        ("o/n/tree/dev/d/e f", "/o/n/resolve/", "/api/models/o/n/tree/dev/d/e%20f "),
        ("gpt2/tree/dev", "/gpt2/resolve/", "/api/models/gpt2/tree/dev "),
        ("o/tree/tree/dev", "/o/tree/resolve/", "/api/models/o/tree/tree/dev "),
        ("datasets/o/n/viewer/default", "/datasets/o/n/resolve/", "/api/datasets/o/n/tree/main "),
        ("spaces/o/n/discussions/1", "/spaces/o/n/resolve/", "/api/spaces/o/n/tree/main "),
        ("o/n/resolve/main", "/o/n/resolve/", "/api/models/o/n/tree/main "),
    ],
)
def test_what_works_in_place_of_a_page(path: str, files: str, folder: str) -> None:
    text = advise(path.split("/"))
    assert f"files are at {files}REVISION/PATH" in text
    assert folder in text


@pytest.mark.parametrize(
    "path",
    ["download-hash", "download", "a/b/c", "-o/n", "datasets", "v2/x", "v1/x", "o/n/%25",
     "download/o/n", "buckets/o", "buckets", "buckets/o/n", "xorbs/x/y", "oauth/x", "health/x"],
)  # fmt: skip
def test_paths_of_nothing(path: str) -> None:
    with pytest.raises(RequestError) as caught:
        TABLE.match(f"/{path}", "/hf")
    assert caught.value.status == 404
    assert str(caught.value) == (
        "there is nothing at this path; /hf/ lists the paths of this server"
    )


@pytest.mark.parametrize("path", ["", "a/b/c", "-o/n", "datasets", "o/n/%\x00"])
def test_segments_of_nothing(path: str) -> None:
    assert advise(path.split("/")) == ""


def test_advised_paths_are_those_of_clients() -> None:
    with pytest.raises(RequestError) as caught:
        TABLE.match("/o/n/tree/main", "/hf")
    text = str(caught.value)
    assert "at /hf/o/n/resolve/" in text
    assert "and /hf/api/models/o/n/tree/main lists" in text
    assert text.endswith("; /hf/ lists the paths of this server")


async def test_an_error_names_paths_below_the_base_path() -> None:
    recording = RecordingApplication()
    recording._app.routes = TABLE
    request = Request("GET", "/o/n/tree/main", Headers([("host", "h")]), prefix="/hf")
    response = await recording._app.handle(request)
    assert b"at /hf/o/n/resolve/" in response.body  # type: ignore[operator]


async def test_a_page_is_404_with_advice() -> None:
    world = World()
    async with world.run() as client:
        status, _, body = await ask(client, "/datasets/o/n/tree/main")
    assert status == 404
    error = json.loads(body)["error"]
    assert error.startswith("there is nothing at this path; if o/n is a repository, ")
    assert error.endswith(
        "/api/datasets/o/n/tree/main lists them; / lists the paths of this server"
    )


@pytest.mark.parametrize(
    ("path", "repo"),
    [
        ("/download/o/n/d/a", "/o/n"),
        ("/download/models/o/n/d/a", "/o/n"),
        ("/download/datasets/o/n/d/a", "/datasets/o/n"),
        ("/download/datasets/o/n/d/a?type=dataset&revision=main", "/datasets/o/n"),
        ("/download/kernels/o/n/d/a?download=true", "/kernels/o/n"),
        ("/download/o/n/d/a?type=space", "/spaces/o/n"),
    ],
)
async def test_a_download_may_name_the_kind_in_its_path(path: str, repo: str) -> None:
    world = World()
    async with world.run() as client:
        assert (await ask(client, path))[2] == CONTENT
    assert world.hub.requests[0].target == f"{repo}/resolve/main/d/a"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("revison=v1", "unknown parameter 'revison': did you mean revision?"),
        ("checksums=sha256", "did you mean checksum?"),
        ("x", "unknown parameter 'x': it may have revision, type, checksum, length, download"),
        ("revision=v1&" + "y" * 5000, "unknown parameter 'yyyy"),
        ("type=dataset", "the path names a space, but ?type= a dataset"),
    ],
)
async def test_a_query_that_is_not_understood(query: str, text: str) -> None:
    world = World()
    async with world.run() as client:
        status, _, body = await ask(client, f"/download/spaces/o/n/a?{query}")
    assert (status, world.hub.wires) == (400, [])
    assert text in json.loads(body)["error"]
    assert len(body) < 300
