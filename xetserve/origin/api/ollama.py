"""Serve GGUF files of models to ollama, as the manifests and blobs of a registry.

    /v2/{id}/manifests/{tag}            tag: "latest", or the end of the file's name, as Q4_K_M
    /v2/{id}/blobs/sha256:{64 hex}      a GGUF file, or the configuration that a manifest names

Source: the OCI distribution specification; ollama server/download.go; hub-docs ollama.md.
"""

import hashlib
import json
from typing import Final

from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response
from xetserve.origin.api.hub import find_commit
from xetserve.origin.api.resolve import ResolveApi
from xetserve.origin.store.commits import Commit, Entry
from xetserve.origin.store.repos import Repo

MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG: Final = "application/vnd.docker.container.image.v1+json"
MODEL_LAYER: Final = "application/vnd.ollama.image.model"
_DIGEST: Final = "sha256:"


class OllamaApi:
    """The calls of ollama, about one model."""

    def __init__(self, resolve: ResolveApi) -> None:
        self._resolve = resolve

    async def manifest(self, repo: Repo, tag: str) -> Response:
        """Answer GET or HEAD /v2/{id}/manifests/{tag}."""
        model = _choose(await find_commit(repo, "main"), tag)
        if model is None:
            raise RequestError(404, f"no GGUF file is for the tag {tag}")
        config = _make_config(model)
        value = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "digest": _digest(config),
                "mediaType": CONFIG,
                "size": len(config),
            },
            "layers": [
                {
                    "digest": f"{_DIGEST}{model.sha256}",
                    "mediaType": MODEL_LAYER,
                    "size": model.size,
                }
            ],
        }
        return Response(200, [("Content-Type", MANIFEST)], json.dumps(value).encode())

    async def blob(self, request: Request, repo: Repo, digest: str) -> Response:
        """Answer GET or HEAD /v2/{id}/blobs/{digest}."""
        for model in _list_models(await find_commit(repo, "main")):
            if digest == f"{_DIGEST}{model.sha256}":
                return self._resolve.serve_object(request, repo, model)
            config = _make_config(model)
            if digest == _digest(config):
                return Response(200, [("Content-Type", CONFIG), ("ETag", f'"{digest}"')], config)
        raise RequestError(404, "no such blob")


def _list_models(commit: Commit) -> list[Entry]:
    return [
        entry
        for entry in commit.entries.values()
        if entry.path.endswith(".gguf") and entry.sha256 is not None
    ]


def _choose(commit: Commit, tag: str) -> Entry | None:
    """Return the file for a tag; "latest" is the first one."""
    ending = "" if tag == "latest" else tag.lower()
    found = (m for m in _list_models(commit) if m.path.lower()[:-5].endswith(ending))
    return next(found, None)


def _make_config(model: Entry) -> bytes:
    name = model.path.rpartition("/")[2].removesuffix(".gguf")
    value = {"model_format": "gguf", "model_type": name, "rootfs": {"type": "layers"}}
    return json.dumps(value).encode()


def _digest(data: bytes) -> str:
    return _DIGEST + hashlib.sha256(data).hexdigest()
