"""Turn errors into responses. This is the only place that decides what a failure reveals."""

import logging
import math
from collections.abc import Iterable

from xetserve.base.log_limit import LOG_LIMIT
from xetserve.errors import (
    FormatError,
    IntegrityError,
    RequestError,
    UpstreamBusy,
    UpstreamDenied,
    UpstreamError,
    UpstreamOffline,
    XetserveError,
)
from xetserve.http.messages import Request, Response, error_response

logger = logging.getLogger(__name__)

CHALLENGE = ("WWW-Authenticate", 'Bearer realm="xetserve"')
# The Hub's codes of refusals that may be for want of a token.
_FOR_TOKENS = ("RepoNotFound", "GatedRepo")


def note_missing_token(request: Request, status: int, code: str | None) -> str:
    """Return what to add to the message of a refusal by the Hub; "": the client sent a token.

    The Hub does not say whether a repository is private or does not exist.
    """
    if "authorization" in request.headers or not (status == 401 or code in _FOR_TOKENS):
        return ""
    return " (no token came with the request)"


def add_note(fields: Iterable[tuple[str, str]], note: str) -> list[tuple[str, str]]:
    """Add a note to the Hub's message, which its clients show to people."""
    return [
        (name, value + note if name.lower() == "x-error-message" else value)
        for name, value in fields
    ]


def from_error(error: XetserveError, request: Request, advice: str = "") -> Response:
    """Return the response for a failure that happened before a head was sent.

    Our own messages hold no URL and no token. Error fields of the Hub are passed on, so that Hub
    clients recognise them.

    Args:
        advice: added to the message of an upstream's failure.
    """
    if isinstance(error, RequestError):
        return error_response(error.status, str(error), error.headers)
    if isinstance(error, UpstreamError):
        is_failure = error.status == 429 or error.status >= 500
        is_failure = is_failure and not isinstance(error, UpstreamOffline)
        if is_failure:
            text = "request %s: %s"
            LOG_LIMIT.log(logger, logging.WARNING, error, text, request.request_id, error)
        else:
            logger.info("request %s: %s", request.request_id, error)
        note = note_missing_token(request, error.status, error.code)
        headers = add_note(error.headers, note)
        if isinstance(error, UpstreamBusy) and error.retry_after is not None:
            headers.append(("Retry-After", str(math.ceil(error.retry_after))))
        if isinstance(error, UpstreamDenied) and error.status == 401:
            headers.append(CHALLENGE)
        status = 502 if error.status == 416 else error.status
        return error_response(status, f"{error}{note}{advice}", headers)
    if isinstance(error, IntegrityError | FormatError):
        text = "request %s: damaged data: %s"
        LOG_LIMIT.log(logger, logging.ERROR, error, text, request.request_id, error)
        return error_response(502, f"the upstream's data is damaged: {error}")
    raise error
