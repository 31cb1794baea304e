"""Turn errors into responses. This is the only place that decides what a failure reveals."""

import logging
import math
import re
from collections.abc import Iterable
from typing import Final

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
# huggingface_hub tries 5 times more: for about 160 s, with tries of 8 s.
HUB_CLIENT_DELAY: Final = 20  # seconds, for Retry-After
_HUB_CLIENT: Final = re.compile(r"\bhf_hub/")
_TO_THE_END: Final = re.compile(r"bytes=[0-9]+-")


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


def is_hub_client_download(request: Request) -> bool:
    """Return whether huggingface_hub downloads a file over plain HTTP, or the rest of one.

    It leaves after 10 s without a byte, and asks again: for the rest, or for the whole file if it
    has less than 10 MB. If the answer then is 502, 503 or 504, the download fails. The only status
    for which it waits is 429, so trouble that may pass has to have that one.
    """
    span = request.headers.get("range")
    return (
        request.method == "GET"
        and "/resolve/" in request.raw_path
        and (span is None or _TO_THE_END.fullmatch(span) is not None)
        and _HUB_CLIENT.search(request.headers.get("user-agent") or "") is not None
    )


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
        if is_failure and error.retriable and is_hub_client_download(request):
            status = 429
            if not any(name == "Retry-After" for name, _ in headers):
                headers.append(("Retry-After", str(HUB_CLIENT_DELAY)))
        return error_response(status, f"{error}{note}{advice}", headers)
    if isinstance(error, IntegrityError | FormatError):
        text = "request %s: damaged data: %s"
        LOG_LIMIT.log(logger, logging.ERROR, error, text, request.request_id, error)
        return error_response(502, f"the upstream's data is damaged: {error}")
    raise error
