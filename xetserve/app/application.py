"""The handler: one request in, one response out."""

import secrets

from xetserve.app.auth import fingerprint, get_token
from xetserve.app.download.service import FileService, Upstreams
from xetserve.app.errors import from_error
from xetserve.app.hub.api import HubService
from xetserve.app.hub.xet_mode import XetMode
from xetserve.app.native.cas_api import CasService
from xetserve.app.paths import check_method, split_path
from xetserve.app.status.service import StatusService
from xetserve.app.text_compression import pack_document
from xetserve.errors import RequestError, XetserveError
from xetserve.http.cors import METHODS, CorsPolicy
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Request, Response
from xetserve.xet.signing import Sealer


class Application:
    """What our clients see.

    Args:
        allow_anonymous: serve the download routes without a token, too.
        compression: code answers for clients that ask for it.
        cors: which web pages may read answers.
        hosts: which names requests may be for.
        status: answers what is asked about the server itself.
        mode: who is told of Xet.
        sealer: seals what native clients bring back; needed unless the mode is plain.
        instance: see CasService; "": one is made up.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        allow_anonymous: bool,
        compression: bool = True,
        cors: CorsPolicy | None = None,
        hosts: HostPolicy | None = None,
        status: StatusService | None = None,
        mode: XetMode | None = None,
        sealer: Sealer | None = None,
        instance: str = "",
    ) -> None:
        self._hub = upstreams.hub
        self._files = FileService(upstreams, compression=compression)
        mode = mode or XetMode()
        self._cas_face: CasService | None = None
        if not mode.is_plain and sealer is not None:
            self._cas_face = CasService(upstreams, sealer, instance or secrets.token_hex(6))
        self._hub_face = HubService(
            self._files, upstreams.hub, upstreams.engine.limits, mode, self._cas_face
        )
        self._status = status or StatusService()
        self._wants_token = not allow_anonymous
        self._compression = compression
        self._cors = cors or CorsPolicy()
        self._hosts = hosts or HostPolicy()

    async def handle(self, request: Request) -> Response:
        """Answer a request; failures become error responses."""
        try:
            response = await self._route(request)
        except XetserveError as exc:
            response = from_error(exc, request)
            # Trouble may pass, and a token may be given: nobody is to remember a refusal.
            response.headers.append(("Cache-Control", "no-store"))
        if self._compression:
            pack_document(request, response)
        self._cors.add_to(response, request)
        return response

    async def _route(self, request: Request) -> Response:
        record = request.record
        self._hosts.check(request)
        if request.method == "OPTIONS":
            record.route = "options"
            return self._cors.answer_options(request)
        if self._hub.is_own(request.headers):
            raise RequestError(508, "this server is its own Hub")
        if self._status.is_for(request):
            return await self._status.answer(request)
        if self._hub_face.is_for(request):
            record.route = self._hub_face.name_route(request)
            takes_basic = self._hub_face.takes_basic(request)
            token = self._get_token(request, required=False, takes_basic=takes_basic)
            return await self._hub_face.answer(request, token)
        if self._cas_face is not None and self._cas_face.is_for(request):
            record.route = self._cas_face.name_route(request)
            return await self._cas_face.answer(request)
        match split_path(request.raw_path):
            case ["download", owner, name, *path] if path:
                record.route = "download"
                check_method(request, METHODS)
                token = self._get_token(request, required=self._wants_token)
                return await self._files.get_file(request, owner, name, path, token)
            case ["download-hash", text]:
                record.route = "download-hash"
                check_method(request, METHODS)
                token = self._get_token(request, required=self._wants_token)
                return await self._files.get_by_hash(request, text, token)
        raise RequestError(404, "there is nothing at this path; / tells what there is")

    def _get_token(
        self, request: Request, *, required: bool, takes_basic: bool = False
    ) -> str | None:
        token = get_token(request, required=required, takes_basic=takes_basic)
        if token is not None:
            request.record.token = fingerprint(token)
        return token
