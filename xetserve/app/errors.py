"""Turn errors into responses. This is the only place that decides what a failure reveals."""

import logging
import math

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
        level = logging.WARNING if is_failure else logging.INFO
        logger.log(level, "request %s: %s", request.request_id, error)
        headers = list(error.headers)
        if isinstance(error, UpstreamBusy) and error.retry_after is not None:
            headers.append(("Retry-After", str(math.ceil(error.retry_after))))
        if isinstance(error, UpstreamDenied) and error.status == 401:
            headers.append(CHALLENGE)
        status = 502 if error.status == 416 else error.status
        return error_response(status, f"{error}{advice}", headers)
    if isinstance(error, IntegrityError | FormatError):
        logger.error("request %s: damaged data: %s", request.request_id, error)
        return error_response(502, f"the upstream's data is damaged: {error}")
    raise error
