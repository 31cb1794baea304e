"""The handler: one request in, one response out."""

from xetserve.app.auth import fingerprint, get_token
from xetserve.app.casface import CasFace
from xetserve.app.documents import pack_document
from xetserve.app.files import FileService, Upstreams
from xetserve.app.hubface import HubFace
from xetserve.app.responses import from_error
from xetserve.app.router import check_method, split_path
from xetserve.app.status import Readiness, get_health, get_ready, get_usage
from xetserve.app.xetmode import XetMode
from xetserve.errors import RequestError, XetserveError
from xetserve.http.cors import METHODS, CorsPolicy
from xetserve.http.messages import Request, Response
from xetserve.xet.sealing import Sealer


class Application:
    """What our clients see.

    Args:
        allow_anonymous: serve the download routes without a token, too.
        compression: code answers for clients that ask for it.
        cors: which web pages may read answers.
        readiness: what /ready tells.
        mode: who is told of Xet.
        sealer: seals what native clients bring back; needed unless the mode is plain.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        allow_anonymous: bool,
        compression: bool = True,
        cors: CorsPolicy | None = None,
        readiness: Readiness | None = None,
        mode: XetMode | None = None,
        sealer: Sealer | None = None,
    ) -> None:
        self._hub = upstreams.hub
        self._files = FileService(upstreams, compression=compression)
        mode = mode or XetMode()
        self._cas_face: CasFace | None = None
        if not mode.is_plain and sealer is not None:
            self._cas_face = CasFace(upstreams, self._files.fetches, sealer)
        self._hub_face = HubFace(self._files, upstreams.hub, upstreams.limits, mode, self._cas_face)
        self._readiness = readiness or Readiness()
        self._wants_token = not allow_anonymous
        self._compression = compression
        self._cors = cors or CorsPolicy()

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
        if request.method == "OPTIONS":
            return self._cors.answer_options(request)
        if self._hub.is_own(request.headers):
            raise RequestError(508, "this server is its own Hub")
        if self._hub_face.is_for(request):
            takes_basic = self._hub_face.takes_basic(request)
            token = self._get_token(request, required=False, takes_basic=takes_basic)
            return await self._hub_face.answer(request, token)
        if self._cas_face is not None and self._cas_face.is_for(request):
            return await self._cas_face.answer(request)
        match split_path(request.raw_path):
            case [""]:
                check_method(request, METHODS)
                return get_usage(request)
            case ["health"]:
                check_method(request, METHODS)
                return get_health(request)
            case ["ready"]:
                check_method(request, METHODS)
                return get_ready(request, self._readiness)
            case ["download", owner, name, *path] if path:
                check_method(request, METHODS)
                token = self._get_token(request, required=self._wants_token)
                return await self._files.get_file(request, owner, name, path, token)
            case ["download-hash", text]:
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
