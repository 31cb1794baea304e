"""GGUF files as ollama pulls them."""

import hashlib
from pathlib import Path

import pytest

from tests.origin.client import Client, XorbFile, large
from xetserve.origin.api.ollama import MANIFEST, MODEL_LAYER
from xetserve.origin.app import Origin

SMALL = XorbFile([b"GGUF" + b"\0" * 1000])
LARGE = XorbFile([b"GGUF" + b"\1" * 3000, b"\2" * 500])


@pytest.fixture
async def filled(client: Client) -> Client:
    for file in (SMALL, LARGE):
        await client.upload(file)
    await client.commit(large("model-Q4_K_M.gguf", SMALL), large("sub/model-Q8_0.gguf", LARGE))
    return client


@pytest.mark.parametrize(
    ("tag", "file"), [("latest", SMALL), ("Q4_K_M", SMALL), ("q8_0", LARGE), ("model-Q8_0", LARGE)]
)
async def test_a_manifest_and_its_blobs(filled: Client, tag: str, file: XorbFile) -> None:
    answer = await filled.get(f"/v2/me/repo/manifests/{tag}")
    assert (answer.status, answer.header("Content-Type")) == (200, MANIFEST)
    value = answer.json()
    (layer,) = value["layers"]
    assert layer == {
        "mediaType": MODEL_LAYER, "digest": f"sha256:{file.sha256}", "size": len(file.content),
    }  # fmt: skip
    for part in (layer, value["config"]):
        blob = await filled.get(f"/v2/me/repo/blobs/{part['digest']}")
        assert (blob.status, len(blob.content)) == (200, part["size"])
        assert f"sha256:{hashlib.sha256(blob.content).hexdigest()}" == part["digest"]


async def test_a_part_of_a_blob(filled: Client) -> None:
    target = f"/v2/me/repo/blobs/sha256:{LARGE.sha256}"
    answer = await filled.get(target, headers=[("Range", "bytes=3000-3009")])
    assert (answer.status, answer.content) == (206, LARGE.content[3000:3010])
    assert (await filled.ask("HEAD", target)).response.length == len(LARGE.content)


async def test_a_bridge_is_redirected_to(tmp_path: Path) -> None:
    client = Client(Origin(tmp_path / "origin", bridge_url="http://bridge.test"))
    await client.create_repo("me/repo")
    await client.add(SMALL, "a.gguf")
    answer = await client.get(f"/v2/me/repo/blobs/sha256:{SMALL.sha256}")
    assert answer.status == 307
    assert answer.header("Location").startswith("http://bridge.test/bridge/models/me%2Frepo/")


@pytest.mark.parametrize(
    "path", ["repo/manifests/Q2", "no/manifests/latest", "repo/blobs/sha256:00", "repo/blobs/x"]
)
async def test_what_there_is_not(filled: Client, path: str) -> None:
    assert (await filled.get(f"/v2/me/{path}")).status == 404
    assert (await filled.ask("POST", f"/v2/me/{path}")).status == 404
