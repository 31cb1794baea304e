"""Serve the Hub's own URLs, so that HF_ENDPOINT may name this server.

Files are always served from here, where the Hub may redirect; API requests are forwarded. A token
is optional: the Hub decides what a client may read.
"""

from typing import Final

from xetserve.app.download.service import FileService
from xetserve.app.hub.by_sha256 import ObjectService
from xetserve.app.hub.git_http import GitApi
from xetserve.app.hub.git_lfs import LfsApi
from xetserve.app.hub.llama_cpp import is_llama_cpp
from xetserve.app.hub.ollama import OllamaService
from xetserve.app.hub.passthrough import EXACT, PassThrough
from xetserve.app.hub.paths import is_about_bucket
from xetserve.app.hub.repo_api import ManagementApi
from xetserve.app.hub.writes import AUTO, UPLOADS_REFUSED, Commands
from xetserve.app.hub.xet_mode import ALL_FILES, XetMode
from xetserve.app.native.cas_api import CasService, ask_for_token
from xetserve.app.paths import ResolvePath
from xetserve.app.route_table import Call
from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response
from xetserve.pipeline.engine import ReadLimits
from xetserve.upstream.hub.client import HubClient

# Browsers must not run code from files of strangers, which come from our host.
_INERT: Final = (
    ("X-Content-Type-Options", "nosniff"),
    ("Content-Security-Policy", "default-src 'none'; sandbox"),
)


class HubService:
    """Answers the Hub's own URLs.

    Args:
        mode: which clients are told of Xet.
        cas: serves those clients natively; None: no client is told of Xet.
        management: the setting repo_management.
    """

    def __init__(
        self,
        files: FileService,
        hub: HubClient,
        limits: ReadLimits,
        mode: XetMode,
        cas: CasService | None,
        management: str = AUTO,
    ) -> None:
        self._files = files
        self._api = PassThrough(hub, limits)
        self._commands = Commands(hub, limits, management)
        self.management = ManagementApi(self._commands)
        objects = ObjectService(files, hub, limits)
        self.lfs = LfsApi(hub, objects, limits)
        self.git = GitApi(hub, limits)
        self.registry = OllamaService(self._api, objects)
        self._mode = mode
        self._cas = cas

    async def answer_file(self, call: Call[ResolvePath]) -> Response:
        """Answer GET and HEAD for a file.

        Raises:
            RequestError, UpstreamError, IntegrityError: see FileService.get_resolved.
        """
        native_above = self._find_limit(call.request)
        return await self._files.get_resolved(
            call.request, call.target, call.token, native_above=native_above
        )

    async def answer_raw(self, call: Call[str]) -> Response:
        """Answer GET and HEAD for a file as git stores it: of a large one, the LFS pointer.

        Raises:
            UpstreamError: the Hub fails or refuses.
        """
        response = await self._api.answer(call.request, call.token, native_above=EXACT)
        names = {name for name, _ in _INERT}
        kept = [field for field in response.headers if field[0] not in names]
        response.headers = [*kept, *_INERT]
        return response

    async def answer_question(self, call: Call[str]) -> Response:
        """Forward an API request to the Hub.

        Raises:
            RequestError: 413, the body is too long.
            UpstreamError: the Hub fails or does not answer.
        """
        native_above = self._find_limit(call.request)
        return await self._api.answer(call.request, call.token, native_above=native_above)

    async def answer_tree(self, call: Call[str]) -> Response:
        """Answer with a list of files, in one page for clients that read only the first one.

        Raises:
            UpstreamError: the Hub fails or does not answer.
        """
        return await self._api.answer(
            call.request,
            call.token,
            native_above=self._find_limit(call.request),
            joins_pages=is_llama_cpp(call.request.headers),
        )

    async def answer_command(self, call: Call[str]) -> Response:
        """Forward a command to the Hub.

        Raises:
            RequestError: 403, the operator does not allow it; 413, the body is too long.
            UpstreamError: the Hub fails or does not answer.
        """
        return await self._commands.pass_on(call.request, call.token)

    async def answer_login(self, call: Call[None]) -> Response:
        """Forward a step of a login to the Hub.

        Raises:
            RequestError: 413, the body is too long.
            UpstreamError: the Hub fails or does not answer.
        """
        return await self._commands.pass_login(call.request)

    async def answer_read_token(self, call: Call[str]) -> Response:
        """Answer with an access token for a native client.

        Raises:
            RequestError: 404, this server does not serve native clients.
            UpstreamError: the Hub fails or issues no token.
        """
        cas = self._check_native()
        asked = ask_for_token(call.request)
        answer = await self._api.answer(asked, call.token, native_above=None, may_have_token=True)
        return await cas.make_token_answer(answer, call.request.base_url)

    async def refuse_write_token(self, call: Call[str]) -> Response:
        """Refuse a token for uploads.

        Raises:
            RequestError: always: 403, or 404 if this server does not serve native clients.
        """
        self._check_native()
        raise RequestError(403, UPLOADS_REFUSED)

    def _check_native(self) -> CasService:
        if self._cas is None:
            raise RequestError(404, "files come over plain HTTP from this server")
        return self._cas

    def _find_limit(self, request: Request) -> int | None:
        limit = None if self._cas is None else self._mode.find_limit(request)
        # The client for buckets downloads natively or not at all, whatever the size.
        return ALL_FILES if limit is not None and is_about_bucket(request.raw_path) else limit
