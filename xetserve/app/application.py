"""The handler: one request in, one response out."""

import secrets

from xetserve.app.auth import MISSING_TOKEN, fingerprint, get_token, unauthorized
from xetserve.app.download.service import FileService, Upstreams
from xetserve.app.errors import from_error
from xetserve.app.hub.api import HubService
from xetserve.app.hub.datasets_server import DatasetsServer
from xetserve.app.hub.writes import AUTO
from xetserve.app.hub.xet_mode import XetMode
from xetserve.app.native.cas_api import CasService
from xetserve.app.route_table import Auth, Call, check_method
from xetserve.app.routes import STATUS_ROUTES, make_routes
from xetserve.app.status.service import StatusService
from xetserve.app.text_compression import pack_document
from xetserve.errors import RequestError, XetserveError
from xetserve.http.cors import CorsPolicy, add_vary
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Request, Response
from xetserve.xet.signing import Sealer


class Application:
    """The handler of all requests: it checks, routes and answers them.

    Args:
        allow_anonymous: serve the download routes without a token, too.
        compression: compress answers for clients that accept it.
        download_length: see FileService.
        cors: which web pages may read answers.
        hosts: which host names requests may have.
        status: answers the routes about the server itself.
        mode: which clients are told of Xet.
        management: the setting repo_management.
        sealer: seals access tokens and grants of native clients; required unless the mode is plain.
        instance: see CasService; "": a random one.
    """

    def __init__(
        self,
        upstreams: Upstreams,
        *,
        allow_anonymous: bool,
        compression: bool = True,
        download_length: bool = False,
        cors: CorsPolicy | None = None,
        hosts: HostPolicy | None = None,
        status: StatusService | None = None,
        mode: XetMode | None = None,
        management: str = AUTO,
        sealer: Sealer | None = None,
        instance: str = "",
    ) -> None:
        self._hub = upstreams.hub
        files = FileService(upstreams, compression=compression, download_length=download_length)
        mode = mode or XetMode()
        cas: CasService | None = None
        if not mode.is_plain and sealer is not None:
            cas = CasService(upstreams, sealer, instance or secrets.token_hex(6))
        hub = HubService(files, upstreams.hub, upstreams.engine.limits, mode, cas, management)
        self.routes = make_routes(
            status or StatusService(), hub, cas, files, allow_anonymous=allow_anonymous
        )
        self._datasets: DatasetsServer | None = None
        if upstreams.datasets_server is not None:
            self._datasets = DatasetsServer(
                upstreams.datasets_server, upstreams.engine.limits, upstreams.hub.bases
            )
        self._compression = compression
        self._cors = cors or CorsPolicy()
        self._hosts = hosts or HostPolicy()

    async def handle(self, request: Request) -> Response:
        """Answer a request; failures become error responses."""
        try:
            response = await self._route(request)
        except XetserveError as exc:
            response = from_error(exc, request)
            # Caches must not store an error: it may pass, or the client may send a token next time.
            response.headers.append(("Cache-Control", "no-store"))
        if self._compression:
            pack_document(request, response)
        self._cors.add_to(response, request)
        return response

    async def _route(self, request: Request) -> Response:
        self._hosts.check(request)
        if request.method == "OPTIONS":
            request.record.route = "options"
            return self._cors.answer_options(request)
        if self._hub.is_own(request.headers):
            raise RequestError(508, "this server is its own Hub: its hub_url leads back to it")
        is_for_datasets = self._datasets is not None and self._datasets.serves(request)
        routes = self._datasets.routes if self._datasets and is_for_datasets else self.routes
        route, path = routes.match(request.raw_path, request.prefix)
        request.record.route = route.name
        if request.for_operators and route.name not in STATUS_ROUTES:
            raise RequestError(404, "this address has the figures of the server, and no files")
        # Order of checks: a malformed request, then a wrong method, then a missing token.
        token = _read_token(request, route.auth)
        call = Call(request, route.read(path), token)
        try:
            check_method(request, route.allowed, route.no_writes)
            if token is None and route.auth is Auth.REQUIRED:
                raise unauthorized(MISSING_TOKEN)
            response = await route.handler(call)
        except XetserveError as exc:
            if route.refuse is None:
                raise
            response = route.refuse(exc, request)
        add_vary(response.headers, *route.vary)
        return response


def _read_token(request: Request, auth: Auth) -> str | None:
    """Return the Hub token of a request; None: it has none, or the route takes none.

    Raises:
        RequestError: 401, it is malformed.
    """
    if auth not in (Auth.OPTIONAL, Auth.BASIC, Auth.REQUIRED):
        return None
    token = get_token(request, required=False, takes_basic=auth is Auth.BASIC)
    if token is not None:
        request.record.token = fingerprint(token)
    return token
