"""The Hub as clients know it, with us in its place: HF_ENDPOINT may name this server.

Files come from here, whatever the Hub would redirect to. A token is optional: the Hub decides who may read what.
"""

from xetserve.app.files import FileService
from xetserve.app.hubpaths import is_resolve_path, parse_resolve_path
from xetserve.app.router import check_method
from xetserve.errors import RequestError
from xetserve.http.cors import METHODS
from xetserve.http.messages import Request, Response


class HubFace:
    """Answers the Hub's own URLs."""

    def __init__(self, files: FileService) -> None:
        self._files = files

    def is_for(self, request: Request) -> bool:
        """Tell whether a request is for the Hub."""
        return is_resolve_path(request.raw_path)

    async def answer(self, request: Request, token: str | None) -> Response:
        """Answer a request.

        Raises:
            RequestError, UpstreamError, IntegrityError: it cannot be answered.
        """
        wanted = parse_resolve_path(request.raw_path)
        if wanted is None:
            raise RequestError(404, "the Hub has no such page")
        check_method(request, METHODS)
        return await self._files.get_resolved(request, wanted, token, hides_xet=True)
