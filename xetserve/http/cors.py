"""Cross-origin requests (Fetch standard, "CORS protocol"): decide which pages may read responses.

A page must send its own token, so a response holds nothing that the page could not fetch from the
Hub itself. The only cookie that the server reads, the operator's, is SameSite=Strict, and responses
to requests with cookies are not exposed to pages. The default therefore allows every origin.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xetserve.http.messages import Request, Response

ALLOW: Final = "GET, HEAD, OPTIONS"
MAX_AGE: Final = 86_400  # seconds; browsers cap the lifetime of a preflight at 2 to 24 hours

# Request fields that a page may send besides those that browsers always allow.
_ALLOWED_FIELDS: Final = (
    "Authorization", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since",
    "If-Unmodified-Since", "Cache-Control", "X-Request-Id",
)  # fmt: skip
_EXPOSED_FIELDS: Final = (
    "Accept-Ranges", "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Range",
    "Date", "ETag", "Link", "Repr-Digest", "Retry-After", "Vary", "WWW-Authenticate",
    "X-Error-Code", "X-Error-Message", "X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit",
    "X-Request-Id", "X-Total-Count", "X-Xet-Hash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """The origins whose pages may read responses.

    origins: "*" for all, or scheme://host[:port] each; an empty sequence disables CORS.
    """

    origins: Sequence[str] = ("*",)

    @classmethod
    def parse(cls, text: str) -> "CorsPolicy":
        """Parse the setting: "*", "off", or origins separated by commas."""
        return cls(() if text == "off" else tuple(text.split(",")))

    def add_to(self, response: Response, request: Request) -> None:
        """Add the fields that let an allowed page read the response."""
        origin = self._find_origin(request)
        if origin is not None:
            response.headers += [
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Expose-Headers", ", ".join(_EXPOSED_FIELDS)),
            ]
        if self.origins and "*" not in self.origins:
            add_vary(response.headers, "Origin")

    def answer_options(self, request: Request) -> Response:
        """Return the response to OPTIONS: the methods, and for a preflight the allowed fields."""
        headers: list[tuple[str, str]] = [("Allow", ALLOW)]
        is_preflight = "origin" in request.headers and (
            "access-control-request-method" in request.headers
        )
        if is_preflight and self._find_origin(request) is not None:
            headers += [
                ("Access-Control-Allow-Methods", ALLOW),
                ("Access-Control-Allow-Headers", ", ".join(_ALLOWED_FIELDS)),
                ("Access-Control-Max-Age", str(MAX_AGE)),
            ]
        return Response(204, headers)

    def _find_origin(self, request: Request) -> str | None:
        """Return the value of Access-Control-Allow-Origin; None: the origin is not allowed."""
        if "*" in self.origins:
            return "*"
        origin = request.headers.get("origin")
        return origin if origin in self.origins else None


def add_vary(headers: list[tuple[str, str]], *names: str) -> None:
    """Add request fields to Vary, unless it lists them already."""
    known = [value for name, value in headers if name == "Vary"]
    listed = [part.strip() for value in known for part in value.split(",")]
    present = {part.lower() for part in listed}
    new = [name for name in names if name.lower() not in present]
    if new:
        headers[:] = [field for field in headers if field[0] != "Vary"]
        headers.append(("Vary", ", ".join([*listed, *new])))
