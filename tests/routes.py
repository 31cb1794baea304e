"""The route table of the application without what is behind it: handlers record their calls."""

from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

from xetserve.app.application import Application
from xetserve.app.hub.paths import find_api_verb
from xetserve.app.route_table import Call, RouteTable
from xetserve.app.routes import make_routes
from xetserve.http.messages import Headers, Request, Response

NO_METHODS = ("FOO", "get")
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE")


def make_table(*, is_native: bool = True, allow_anonymous: bool = False) -> RouteTable:
    """Make the table with handlers that nobody may call."""
    status, hub, cas, files = MagicMock(), MagicMock(), MagicMock(), MagicMock()
    return make_routes(
        status, hub, cas if is_native else None, files, allow_anonymous=allow_anonymous
    )


TABLE = make_table()


class RecordingApplication:
    """An application whose handlers record their calls and answer 200."""

    def __init__(self, *, is_native: bool = True, allow_anonymous: bool = False) -> None:
        self.calls: list[Call[Any]] = []
        upstreams = MagicMock()
        upstreams.hub.is_own.return_value = False
        self._app = Application(upstreams, allow_anonymous=allow_anonymous)
        table = make_table(is_native=is_native, allow_anonymous=allow_anonymous)
        routes = [replace(route, handler=self._record) for route in table.routes]
        self._app.routes = RouteTable(routes, find_api_verb)

    async def ask(self, method: str, path: str, *fields: tuple[str, str]) -> tuple[str, Response]:
        """Send a request.

        Returns: the name of its route, and the response.
        """
        request = Request(method, path, Headers([("host", "h"), *fields]))
        response = await self._app.handle(request)
        return request.record.route, response

    async def _record(self, call: Call[Any]) -> Response:
        self.calls.append(call)
        return Response(200)
