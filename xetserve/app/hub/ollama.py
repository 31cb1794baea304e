"""Serve models to ollama: the Hub's manifests unchanged, and blobs from here without a redirect."""

from typing import Final

from xetserve.app.hub.by_sha256 import ObjectService, is_sha256
from xetserve.app.hub.passthrough import EXACT, PassThrough
from xetserve.app.hub.paths import ObjectPath
from xetserve.app.route_table import Call
from xetserve.errors import RequestError
from xetserve.http.messages import Response, json_response

_ALGORITHM: Final = "sha256:"


class OllamaService:
    """Answers /v2/ and, for a repository, manifests and blobs."""

    def __init__(self, api: PassThrough, objects: ObjectService) -> None:
        self._api = api
        self._objects = objects

    async def answer_ping(self, call: Call[None]) -> Response:
        """Answer the question whether there is a registry (OCI distribution-spec, end-1)."""
        return json_response(200, {}, [("Docker-Distribution-Api-Version", "registry/2.0")])

    async def answer_manifest(self, call: Call[ObjectPath]) -> Response:
        """Answer GET and HEAD for a manifest.

        Raises:
            UpstreamError: the Hub fails or refuses.
        """
        # It does not mention Xet, and its digest forbids any change.
        return await self._api.answer(call.request, call.token, native_above=EXACT)

    async def answer_blob(self, call: Call[ObjectPath]) -> Response:
        """Answer GET and HEAD for a blob.

        Raises:
            RequestError: 404, the name is not sha256: and 64 hex digits.
            UpstreamError: the Hub or the CAS fails or refuses.
            IntegrityError: the data is damaged.
        """
        request, token = call.request, call.token
        repo, name = call.target
        digest = name.removeprefix(_ALGORITHM)
        if digest == name or not is_sha256(digest):
            raise RequestError(404, "the name of a blob must be sha256: and 64 hex digits")
        # Blobs that the Hub generates, such as templates, are not files of the repository.
        target = request.raw_path
        return await self._objects.get(
            request, repo, "main", digest, token, lambda hub: hub.look_up(target, token)
        )
