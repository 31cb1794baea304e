"""Cross-origin requests (Fetch standard, "CORS protocol"): which pages may read our answers.

Our answers hold nothing that a page could not have without us: it has to bring its own token. The
one cookie that is looked at, the operator's, stays at home (SameSite=Strict, and answers to
requests with cookies are not for pages). So any origin may read them unless the operator says
otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from xetserve.http.messages import Request, Response

METHODS: Final = ("GET", "HEAD", "OPTIONS")
ALLOW: Final = ", ".join(METHODS)
MAX_AGE: Final = 86_400  # seconds that a preflight answer holds; browsers cap it at 2 to 24 hours

# What a page may send beyond what browsers let it send anyway.
_ALLOWED_FIELDS: Final = (
    "Authorization", "Range", "If-Range", "If-Match", "If-None-Match", "If-Modified-Since",
    "If-Unmodified-Since", "Cache-Control", "X-Request-Id",
)  # fmt: skip
_EXPOSED_FIELDS: Final = (
    "Accept-Ranges", "Content-Disposition", "Content-Encoding", "Content-Length", "Content-Range",
    "Date", "ETag", "Link", "Repr-Digest", "Retry-After", "Vary", "WWW-Authenticate", "X-Error-Code",
    "X-Error-Message", "X-Linked-Etag", "X-Linked-Size", "X-Repo-Commit", "X-Request-Id", "X-Total-Count",
    "X-Xet-Hash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CorsPolicy:
    """Which origins may read: "*" for all of them, or scheme://host[:port] each; none switches it
    off.
    """

    origins: Sequence[str] = ("*",)

    @classmethod
    def parse(cls, text: str) -> "CorsPolicy":
        """Read a setting: "*", "off", or origins with commas between them."""
        return cls(() if text == "off" else tuple(text.split(",")))

    def add_to(self, response: Response, request: Request) -> None:
        """Let the page that asks read an answer, if it may."""
        origin = self._find_origin(request)
        if origin is not None:
            response.headers += [
                ("Access-Control-Allow-Origin", origin),
                ("Access-Control-Expose-Headers", ", ".join(_EXPOSED_FIELDS)),
            ]
        if self.origins and "*" not in self.origins:
            add_vary(response.headers, "Origin")

    def answer_options(self, request: Request) -> Response:
        """Answer OPTIONS: which methods there are, and to a preflight what a page may send."""
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
        """Return what Access-Control-Allow-Origin has to say; None: nothing."""
        if "*" in self.origins:
            return "*"
        origin = request.headers.get("origin")
        return origin if origin in self.origins else None


def add_vary(headers: list[tuple[str, str]], *names: str) -> None:
    """Say that an answer depends on request fields, besides those that Vary has already."""
    known = [value for name, value in headers if name == "Vary"]
    listed = [part.strip() for value in known for part in value.split(",")]
    present = {part.lower() for part in listed}
    new = [name for name in names if name.lower() not in present]
    if new:
        headers[:] = [field for field in headers if field[0] != "Vary"]
        headers.append(("Vary", ", ".join([*listed, *new])))
