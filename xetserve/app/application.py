"""The handler: one request in, one response out."""

from xetserve.app.auth import get_token
from xetserve.app.files import FileService, Upstreams
from xetserve.app.responses import from_error
from xetserve.app.router import check_method, split_path
from xetserve.app.status import get_health, get_usage
from xetserve.errors import RequestError, XetserveError
from xetserve.http.messages import Request, Response


class Application:
    """What our clients see.

    Args:
        allow_anonymous: serve the download routes without a token, too.
    """

    def __init__(self, upstreams: Upstreams, *, allow_anonymous: bool) -> None:
        self._files = FileService(upstreams)
        self._allow_anonymous = allow_anonymous

    async def handle(self, request: Request) -> Response:
        """Answer a request; failures become error responses."""
        try:
            return await self._route(request)
        except XetserveError as exc:
            return from_error(exc, request)

    async def _route(self, request: Request) -> Response:
        match split_path(request.raw_path):
            case [""]:
                check_method(request)
                return get_usage(request)
            case ["health"]:
                check_method(request)
                return get_health(request)
            case ["download", owner, name, *path] if path:
                check_method(request)
                token = self._get_token(request)
                return await self._files.get_file(request, owner, name, path, token)
            case ["download-hash", text]:
                check_method(request)
                return await self._files.get_by_hash(request, text, self._get_token(request))
        raise RequestError(404, "there is nothing at this path; / tells what there is")

    def _get_token(self, request: Request) -> str | None:
        return get_token(request, required=not self._allow_anonymous)
