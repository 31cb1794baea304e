"""Bearer tokens (RFC 6750). Only their form is checked here; the Hub decides about their rights."""

import base64
import re
from typing import Final

from blake3 import blake3

from xetserve.app.errors import CHALLENGE
from xetserve.errors import RequestError
from xetserve.http.messages import Request

_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE | re.ASCII)
MAX_TOKEN_SIZE: Final = 4096  # characters
MISSING_TOKEN: Final = "send a Hub token: Authorization: Bearer hf_..."
EMPTY_TOKEN: Final = (
    "the token in the Authorization header is empty: is the variable with the token set?"
)
_FINGERPRINT_CONTEXT: Final = "xetserve 2026 fingerprint of a client's token"


def get_token(
    request: Request,
    *,
    required: bool,
    takes_basic: bool = False,
    max_size: int = MAX_TOKEN_SIZE,
) -> str | None:
    """Return the bearer token of a request; None: it has none, and none is required.

    Args:
        takes_basic: accept the token as the password of Basic authentication (RFC 7617), as git
            sends it.
        max_size: characters.

    Raises:
        RequestError: 401, a required token is missing, or the field is not exactly one bearer
            token.
    """
    values = request.headers.get_all("authorization")
    if not values:
        if required:
            raise unauthorized(MISSING_TOKEN)
        return None
    value = values[0].strip()
    if takes_basic and value[:6].lower() == "basic ":
        value = _read_basic(value[6:])
    if value.lower() == "bearer":
        raise unauthorized(EMPTY_TOKEN)
    match = _BEARER.fullmatch(value)
    if len(values) > 1 or match is None or len(match[1]) > max_size:
        raise unauthorized("the Authorization header must be: Bearer, a space, a Hub token")
    return match[1]


def _read_basic(credentials: str) -> str:
    """Return the Bearer value for Basic credentials; "": they are malformed."""
    try:
        text = base64.b64decode(credentials.strip(), validate=True).decode("ascii")
    except ValueError:
        return ""
    return f"Bearer {text.partition(':')[2]}".strip()


def fingerprint(token: str, length: int = 4) -> str:
    """Return a hash of a token in hex, which names it in logs and tables without revealing it.

    Args:
        length: bytes; 4 are enough for a person to tell tokens apart.
    """
    digest = blake3(token.encode(), derive_key_context=_FINGERPRINT_CONTEXT)
    return digest.hexdigest(length=length)


def unauthorized(message: str) -> RequestError:
    """Make the 401 for a request whose token is missing or malformed."""
    return RequestError(401, message, [CHALLENGE])
