"""Small answers of our own, coded for clients that ask for it."""

from typing import Final

from xetserve.http.cors import add_vary
from xetserve.http.encoding import CODINGS, encode_content
from xetserve.http.messages import Request, Response
from xetserve.http.negotiation import IDENTITY, choose_coding

MIN_SIZE: Final = 1024  # bytes; less fits into a packet anyway
_TEXTS: Final = ("application/json", "text/html", "text/plain")


def pack_document(request: Request, response: Response) -> None:
    """Apply a content coding to an answer whose body is a text and here as a whole."""
    body = response.body
    media_type = (dict(response.headers).get("Content-Type") or "").partition(";")[0]
    if not isinstance(body, bytes) or len(body) < MIN_SIZE or media_type not in _TEXTS:
        return
    add_vary(response.headers, "Accept-Encoding")
    coding = choose_coding(request.headers, CODINGS)
    if coding != IDENTITY:
        response.body = encode_content(coding, body)
        response.headers.append(("Content-Encoding", coding))
