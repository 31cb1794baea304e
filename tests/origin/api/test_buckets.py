"""Buckets of an origin."""

import json
from pathlib import Path

import pytest

from tests.origin.client import Client

CALL = "/api/buckets/me/files/paths-info"


@pytest.fixture
async def filled(client: Client, tmp_path: Path) -> Client:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/a.txt").write_bytes(b"text")
    await client.origin.library.import_folder("bucket", "me/files", tmp_path / "folder")
    return client


@pytest.mark.parametrize("paths", [["a.txt", "x"], "a.txt"])
async def test_paths_are_described(filled: Client, paths: object) -> None:
    answer = await filled.ask("POST", CALL, json.dumps({"paths": paths}).encode())
    assert [item["path"] for item in answer.json()] == ["a.txt"]


@pytest.mark.parametrize("paths", [None, [[]], [None], 3, {"a": 1}])
async def test_strange_paths_are_refused(filled: Client, paths: object) -> None:
    answer = await filled.ask("POST", CALL, json.dumps({"paths": paths}).encode())
    assert answer.status == 400
