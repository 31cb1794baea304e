"""Apply a content coding to small text answers, for clients that accept one."""

from typing import Final

from xetserve.http.cors import add_vary
from xetserve.http.encoding import CODINGS, encode_content
from xetserve.http.messages import Request, Response
from xetserve.http.negotiation import IDENTITY, choose_coding

MIN_SIZE: Final = 1024  # bytes; a smaller answer fits into one packet anyway
_TEXTS: Final = ("application/json", "text/html", "text/plain")


def pack_document(request: Request, response: Response) -> None:
    """Code an answer in place, if its body is a complete text of at least MIN_SIZE bytes."""
    body = response.body
    media_type = (dict(response.headers).get("Content-Type") or "").partition(";")[0]
    if not isinstance(body, bytes) or len(body) < MIN_SIZE or media_type not in _TEXTS:
        return
    add_vary(response.headers, "Accept-Encoding")
    coding = choose_coding(request.headers, CODINGS)
    if coding != IDENTITY:
        response.body = encode_content(coding, body)
        response.headers.append(("Content-Encoding", coding))
