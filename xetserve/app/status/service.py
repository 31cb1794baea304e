"""Answer the routes about the server itself: /, /health, /ready, /metrics, /status, /operator."""

import re
from typing import Final

from xetserve import __version__
from xetserve.app.route_table import Call
from xetserve.app.status.operator import Operator
from xetserve.app.status.page import make_page
from xetserve.app.status.page_assets import POLICY
from xetserve.app.status.readiness import Readiness
from xetserve.app.status.snapshot import PLACE_SIZE, Snapshot
from xetserve.app.status.usage import make_usage_text
from xetserve.errors import RequestError
from xetserve.http.cors import add_vary
from xetserve.http.messages import Headers, Request, Response, json_response
from xetserve.metrics.exposition import CONTENT_TYPE, format_families

# The answers describe this moment only. Without the field, caches may choose a lifetime of their
# own, or answer while this server is down (RFC 9111, 4.2).
_NOT_STORED: Final = ("Cache-Control", "no-store")
_NOSNIFF: Final = ("X-Content-Type-Options", "nosniff")
_HTML: Final = re.compile(
    r"[ \t]*+text/html[ \t]*+(?:;[ \t]*+(?!q=0(?:\.0*)?[ \t]*(?:;|$))[^,]*)?", re.IGNORECASE
)


class StatusService:
    """Answers the routes about the server itself.

    Args:
        figures: the counters of all workers.
        operator: checks the operator token.
        readiness: checks the Hub and the cache.
        audience: who may see figures: "public", "token" (the operator) or "off" (nobody).
        is_apart: show figures only at the address for operators.
    """

    def __init__(
        self,
        figures: Snapshot | None = None,
        operator: Operator | None = None,
        readiness: Readiness | None = None,
        audience: str = "public",
        *,
        is_apart: bool = False,
    ) -> None:
        self._is_apart = is_apart
        self._figures = figures or Snapshot([memoryview(bytearray(PLACE_SIZE))])
        self._operator = operator or Operator()
        self._readiness = readiness or Readiness()
        self.audience = audience

    async def answer_page(self, call: Call[None]) -> Response:
        """Answer with the page for browsers, and with the usage as plain text for other clients."""
        request = call.request
        if wants_html(request.headers):
            return await self._get_page(request)
        headers = [("Content-Type", "text/plain; charset=utf-8"), _NOT_STORED, _NOSNIFF]
        add_vary(headers, "Accept")
        return Response(200, headers, make_usage_text(request.base_url).encode())

    async def answer_health(self, _: Call[None]) -> Response:
        """Answer 200: the process is running."""
        return json_response(200, {"status": "ok", "version": __version__}, [_NOT_STORED])

    async def answer_ready(self, _: Call[None]) -> Response:
        """Answer whether a load balancer should send clients here: 200, or 503 with the reason."""
        return await get_ready(self._readiness)

    async def answer_metrics(self, call: Call[None]) -> Response:
        """Answer with the metrics of all workers in the text format of Prometheus.

        Raises:
            RequestError: 401, this needs the operator token; 404, figures are switched off.
        """
        await self._refresh_figures(call.request)
        text = format_families(self._figures.collect())
        return Response(200, [("Content-Type", CONTENT_TYPE), _NOT_STORED], text.encode())

    async def answer_status(self, call: Call[None]) -> Response:
        """Answer with the figures of all workers as JSON.

        Raises:
            RequestError: 401, this needs the operator token; 404, figures are switched off.
        """
        await self._refresh_figures(call.request)
        with_names = self._operator.is_operator(call.request)
        return json_response(200, self._figures.describe(with_names=with_names), [_NOT_STORED])

    async def answer_operator(self, call: Call[None]) -> Response:
        """Answer the form to log in or out on the page.

        Raises:
            RequestError: 404, no operator token is set; 413, the body is too long.
        """
        self._check_address(call.request)
        response = await self._operator.log_in(call.request)
        return response or await self._get_page(call.request, was_refused=True)

    def _check_address(self, request: Request) -> None:
        """Check that figures may be seen at the address that the request came to.

        Raises:
            RequestError: 404, they may not.
        """
        if self._is_apart and not request.for_operators:
            raise RequestError(404, "this server does not publish figures at this address")

    async def _refresh_figures(self, request: Request) -> None:
        """Check that the client may see figures, and update them.

        Raises:
            RequestError: 401, this needs the operator token; 404, figures are switched off.
        """
        self._check_address(request)
        if self.audience == "off":
            raise RequestError(
                404, "this server does not publish figures: its setting status.metrics is off"
            )
        if self.audience == "token":
            self._operator.insist(request)
        await self._figures.refresh()

    async def _get_page(self, request: Request, *, was_refused: bool = False) -> Response:
        is_operator = self._operator.is_operator(request)
        is_here = request.for_operators or not self._is_apart
        may_see = self.audience == "public" or (self.audience == "token" and is_operator)
        may_see = may_see and is_here
        figures = None
        if may_see:
            await self._figures.refresh()
            figures = self._figures.describe(with_names=is_operator)
        page = make_page(
            request.base_url,
            figures,
            self._figures.rates(),
            is_operator=is_operator,
            may_log_in=bool(self._operator.token) and self.audience != "off" and is_here,
            was_refused=was_refused,
        )
        headers = [
            ("Content-Type", "text/html; charset=utf-8"),
            _NOT_STORED,
            ("Content-Security-Policy", POLICY),
            ("Referrer-Policy", "no-referrer"),
            _NOSNIFF,
        ]
        add_vary(headers, "Accept", "Cookie", "Authorization")
        return Response(403 if was_refused else 200, headers, page.encode(errors="replace"))


async def get_ready(readiness: Readiness) -> Response:
    """Answer whether a load balancer should send clients here: 200, or 503 with the reason."""
    if readiness.is_draining:
        return json_response(503, {"status": "draining"}, [("Retry-After", "1"), _NOT_STORED])
    obstacles = await readiness.find_obstacles()
    if not obstacles:
        return json_response(200, {"status": "ready"}, [_NOT_STORED])
    cause, reason = obstacles[0]
    is_degraded = cause in readiness.can_do_without
    value = {
        "status": "degraded" if is_degraded else "unready",
        "cause": cause,
        "error": reason,
    }
    if is_degraded:
        return json_response(200, value, [_NOT_STORED])
    return json_response(503, value, [("Retry-After", "5"), _NOT_STORED])


def wants_html(headers: Headers) -> bool:
    """Return whether Accept names text/html, as that of browsers does; curl sends */*."""
    return any(
        _HTML.fullmatch(item) for value in headers.get_all("accept") for item in value.split(",")
    )
