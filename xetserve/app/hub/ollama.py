"""Models as ollama pulls them: manifests from the Hub as they are, blobs from here, never by a
redirect.
"""

from typing import Final

from xetserve.app.hub.by_sha256 import ObjectService, is_sha256
from xetserve.app.hub.passthrough import PassThrough
from xetserve.app.hub.paths import check_api_path, parse_registry_path
from xetserve.app.hub.xet_mode import ALL_FILES
from xetserve.app.paths import check_method
from xetserve.errors import RequestError
from xetserve.http.cors import METHODS
from xetserve.http.messages import Request, Response

_ALGORITHM: Final = "sha256:"


class OllamaService:
    """Answers /v2/{owner}/{name}/manifests/{tag} and /v2/{owner}/{name}/blobs/{digest}."""

    def __init__(self, api: PassThrough, objects: ObjectService) -> None:
        self._api = api
        self._objects = objects

    def is_for(self, request: Request) -> bool:
        """Return whether a request is one of these."""
        return parse_registry_path(request.raw_path) is not None

    async def answer(self, request: Request, token: str | None) -> Response:
        """Answer a request.

        Raises:
            RequestError, UpstreamError, IntegrityError: it cannot be answered.
        """
        found = parse_registry_path(request.raw_path)
        assert found is not None
        what, (repo, name) = found
        check_method(request, METHODS)
        check_api_path(request.raw_path)
        if what == "manifests":
            # There is nothing of Xet in it, and its digest is of what it is.
            return await self._api.answer(request, token, native_above=ALL_FILES)
        digest = name.removeprefix(_ALGORITHM)
        if digest == name or not is_sha256(digest):
            raise RequestError(404, "a blob is named sha256:, and 64 hex digits")
        # What the Hub makes up itself, such as a template, is no file of the repository.
        target = request.raw_path
        return await self._objects.get(
            request, repo, "main", digest, token, lambda hub: hub.look_up(target, token)
        )
