"""The Hub as clients know it, with us in its place: HF_ENDPOINT may name this server.

Files come from here, whatever the Hub would redirect to; questions are passed on. A token is
optional: the Hub decides who may read what.
"""

from typing import Final

from xetserve.app.download.service import FileService
from xetserve.app.hub.by_sha256 import ObjectService
from xetserve.app.hub.git_lfs import LfsApi
from xetserve.app.hub.ollama import OllamaService
from xetserve.app.hub.passthrough import PassThrough
from xetserve.app.hub.paths import (
    check_api_path,
    find_api_verb,
    is_raw_path,
    is_resolve_path,
    is_token_verb,
    parse_resolve_path,
)
from xetserve.app.hub.repo_api import ManagementApi
from xetserve.app.hub.writes import Commands, find_command_method
from xetserve.app.hub.xet_mode import ALL_FILES, XetMode
from xetserve.app.native.cas_api import CasService, ask_for_token
from xetserve.app.paths import check_method
from xetserve.errors import RequestError
from xetserve.http.cors import METHODS, add_vary
from xetserve.http.messages import Headers, Request, Response
from xetserve.pipeline.reader import ReadLimits
from xetserve.upstream.hub.client import HubClient

# Files of strangers, served from our host: nothing may run in a browser.
_INERT: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
)
# Clients that take the first page of a list for all of it.
_WITHOUT_PAGES: Final = ("llama-cpp", "llama.cpp")


def cannot_page(headers: Headers) -> bool:
    """Return whether a client needs lists in one page."""
    return (headers.get("user-agent") or "").lower().startswith(_WITHOUT_PAGES)


class HubService:
    """Answers the Hub's own URLs.

    Args:
        mode: who is told of Xet.
        cas: what those are led to; None: nobody is.
    """

    def __init__(
        self,
        files: FileService,
        hub: HubClient,
        limits: ReadLimits,
        mode: XetMode,
        cas: CasService | None,
    ) -> None:
        self._files = files
        self._api = PassThrough(hub, limits)
        self._commands = Commands(hub, limits)
        self._management = ManagementApi(self._commands)
        objects = ObjectService(files, hub, limits)
        self._lfs = LfsApi(hub, objects, limits)
        self._registry = OllamaService(self._api, objects)
        self._mode = mode
        self._cas = cas

    def is_for(self, request: Request) -> bool:
        """Return whether a request is for the Hub."""
        return (
            request.raw_path.startswith("/api/")
            or is_resolve_path(request.raw_path)
            or is_raw_path(request.raw_path)
            or self._lfs.is_for(request)
            or self._registry.is_for(request)
        )

    def name_route(self, request: Request) -> str:
        """Return what a request that is for the Hub is counted as."""
        path = request.raw_path
        if is_resolve_path(path):
            return "resolve"
        if self._lfs.is_for(request):
            return "lfs"
        if self._registry.is_for(request):
            return "registry"
        if is_raw_path(path):
            return "raw"
        is_command = self._management.is_for(request) or find_command_method(path) is not None
        return "manage" if is_command else "api"

    def takes_basic(self, request: Request) -> bool:
        """Return whether the client may have its token in Basic authentication, as git does."""
        return self._lfs.is_for(request)

    async def answer(self, request: Request, token: str | None) -> Response:
        """Answer a request.

        Raises:
            RequestError, UpstreamError, IntegrityError: it cannot be answered.
        """
        native_above = None if self._cas is None else self._mode.find_limit(request)
        response = await self._answer(request, token, native_above)
        if self._cas is not None:
            add_vary(response.headers, "User-Agent", "Accept")
        return response

    async def _answer(
        self, request: Request, token: str | None, native_above: int | None
    ) -> Response:
        wanted = parse_resolve_path(request.raw_path)
        if wanted is not None:
            check_method(request, METHODS)
            return await self._files.get_resolved(request, wanted, token, native_above=native_above)
        if self._lfs.is_for(request):
            return await self._lfs.answer(request, token)
        if self._registry.is_for(request):
            return await self._registry.answer(request, token)
        if self._management.is_for(request):
            return await self._management.answer(request, token)
        check_api_path(request.raw_path)
        if is_raw_path(request.raw_path):
            check_method(request, METHODS)
            response = await self._api.answer(request, token, native_above=ALL_FILES)
            names = {name for name, _ in _INERT}
            kept = [field for field in response.headers if field[0] not in names]
            response.headers = [*kept, *_INERT]
            return response
        command = find_command_method(request.raw_path)
        if command is not None:
            check_method(request, (command, "OPTIONS"))
            return await self._commands.pass_on(request, token)
        verb = find_api_verb(request.raw_path)
        check_method(request, ("POST", "OPTIONS") if verb == "paths-info" else METHODS)
        if is_token_verb(verb):
            if self._cas is None:
                raise RequestError(404, "files come over plain HTTP from this server")
            if verb == "xet-write-token":
                raise RequestError(403, "nothing can be uploaded through this server")
            # Whoever asks knows Xet, whatever it was told.
            answer = await self._api.answer(ask_for_token(request), token, native_above=None)
            return await self._cas.make_token_answer(answer, request.base_url)
        joins_pages = verb == "tree" and cannot_page(request.headers)
        return await self._api.answer(
            request, token, native_above=native_above, joins_pages=joins_pages
        )
