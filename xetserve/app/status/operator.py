"""Authentication of the operator, who may see names of files, repositories and clients.

A client sends the operator token as a bearer token, as a password (RFC 7617, for curl -u), or in
the form on the page, which sets a cookie. The cookie does not hold the token. It holds an expiry
time and a keyed hash of it, so that every worker and every server with the same token can check it.
The operator token is not a Hub token, and is never sent upstream.
"""

import hmac
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qs

from blake3 import blake3

from xetserve.app.auth import get_token
from xetserve.app.errors import CHALLENGE
from xetserve.errors import RequestError
from xetserve.http.messages import Request, Response

COOKIE: Final = "xetserve_operator"
LIFETIME: Final = 12 * 3600  # seconds
MAX_FORM_SIZE: Final = 8192  # bytes
_CONTEXT: Final = "xetserve 2026 cookie of the operator"
_NO_STORE: Final = ("Cache-Control", "no-store")


class Operator:
    """Checks whether requests are the operator's.

    Args:
        token: the operator token; "": none is set, and no request is the operator's.
        clock: returns Unix seconds.
    """

    def __init__(self, token: str = "", clock: Callable[[], float] = time.time) -> None:
        self.token = token
        self._clock = clock

    def is_operator(self, request: Request) -> bool:
        """Return whether a request has the operator token or a valid cookie."""
        if not self.token:
            return False
        if self._is_cookie_good(_find_cookie(request)):
            return True
        try:
            token = get_token(request, required=False, takes_basic=True)
        except RequestError:
            return False
        return token is not None and self._is_token(token)

    def insist(self, request: Request) -> None:
        """Check that a request is the operator's.

        Raises:
            RequestError: 401, it is not.
        """
        if not self.is_operator(request):
            raise RequestError(401, "this needs the operator token", [CHALLENGE])

    async def log_in(self, request: Request) -> Response | None:
        """Answer the form to log in or out: redirect to the page, and set or clear the cookie.

        Returns:
            the redirect; None: the token is wrong.

        Raises:
            RequestError: 404, no operator token is set; 413, the body has more than MAX_FORM_SIZE
                bytes.
        """
        if not self.token:
            raise RequestError(404, "this server has no operator token")
        text = (await request.body.read(MAX_FORM_SIZE)).decode("ascii", "replace")
        values = parse_qs(text).get("token", [""])
        if "logout" in parse_qs(text, keep_blank_values=True):
            return _lead_back(request, "", 0)
        if len(values) != 1 or not self._is_token(values[0].strip()):
            return None
        expires = str(int(self._clock()) + LIFETIME)
        return _lead_back(request, f"{expires}.{self._sign(expires)}", LIFETIME)

    def _is_token(self, token: str) -> bool:
        return hmac.compare_digest(token.encode(), self.token.encode())

    def _is_cookie_good(self, value: str) -> bool:
        expires, _, mac = value.partition(".")
        if not (expires.isascii() and expires.isdigit() and len(expires) < 16):
            return False
        is_ours = hmac.compare_digest(mac.encode(), self._sign(expires).encode())
        return is_ours and int(expires) > self._clock()

    def _sign(self, expires: str) -> str:
        key = blake3(self.token.encode(), derive_key_context=_CONTEXT).digest()
        return blake3(expires.encode(), key=key).hexdigest()


def _lead_back(request: Request, value: str, max_age: int) -> Response:
    secure = "; Secure" if request.secure else ""
    path = f"{request.prefix}/"
    cookie = f"{COOKIE}={value}; Path={path}; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}"
    return Response(303, [("Location", "./"), ("Set-Cookie", cookie), _NO_STORE])


def _find_cookie(request: Request) -> str:
    for field in request.headers.get_all("cookie"):
        for pair in field.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == COOKIE:
                return value
    return ""
