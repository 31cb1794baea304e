"""Requests: check a head as a whole and reject ambiguous requests.

Source: RFC 9112, 3 and 6; RFC 9110, 7.2 and 10.1.1.
"""

import re
from ipaddress import IPv6Address
from string import ascii_letters, digits
from typing import Final

from xetserve.errors import RequestError
from xetserve.http.framing import ChunkedFraming, Framing, LengthFraming
from xetserve.http.head import Head, RequestLimits
from xetserve.http.messages import Headers, Request

MAX_HOST_SIZE: Final = 255  # characters without the port: the limit of DNS (RFC 3986, 3.2.2)

# uri-host [ ":" port ] (RFC 3986, 3.2.2): an IPv6 literal, perhaps with a zone, or a name. Each URL
# in a response repeats the host, so its length is limited.
_HOST: Final = re.compile(
    rf"(?:\[(?P<literal>[0-9A-Za-z:.%_~-]{{1,{MAX_HOST_SIZE}}})\]"
    rf"|(?:[0-9A-Za-z._~!$&'()*+,;=-]|%[0-9A-Fa-f]{{2}}){{0,{MAX_HOST_SIZE}}})"
    r"(?::(?P<port>[0-9]{0,5}))?"
)
_ABSOLUTE: Final = re.compile(r"https?://(?P<authority>[^/?]*)(?P<rest>.*)", re.IGNORECASE)
_UNRESERVED: Final = frozenset(ascii_letters + digits + "-._~")  # RFC 3986, 2.3
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")


def read_request(head: Head) -> Request:
    """Make a request from a head; its target is in origin-form or "*".

    Raises:
        RequestError: the head is ambiguous, or needs a feature that this server does not have.
    """
    headers = Headers(head.fields)
    hosts = headers.get_all("host")
    if len(hosts) > 1 or (not hosts and head.version != "1.0"):
        raise RequestError(400, "there must be one Host field (RFC 9112, 3.2)")
    if hosts and not is_host(hosts[0]):
        raise RequestError(400, "the Host field must be a host, or host and port (RFC 9112, 3.2)")
    if head.version != "1.0" and any(
        item.strip(" \t").lower() not in ("", "100-continue")
        for value in headers.get_all("expect")
        for item in value.split(",")
    ):
        raise RequestError(417, "the only supported Expect is 100-continue (RFC 9110, 10.1.1)")
    if head.method == "CONNECT":
        raise RequestError(501, "CONNECT is not supported: this server is not a proxy")
    if "#" in head.target:
        raise RequestError(400, "the request target must not have a fragment (RFC 9112, 3.2)")
    target = head.target
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is not None:
        authority, target = absolute["authority"], _add_path(absolute["rest"], head.method)
        if not is_host(authority) or authority.startswith(":") or not authority:
            raise RequestError(400, "the request target must have a host (RFC 9110, 4.2)")
        others = [field for field in head.fields if field[0] != "host"]
        # The Host field is ignored (RFC 9112, 3.2.2).
        headers = Headers([("host", authority), *others])
    if not target.startswith("/") and (head.method, target) != ("OPTIONS", "*"):
        raise RequestError(400, "the request target must be a path or an http URL")
    return Request(head.method, normalize_target(target), headers, head.version)


def normalize_target(target: str) -> str:
    """Return the normal form of a request target, which is checked here and sent upstream.

    In the path, escapes of unreserved characters are decoded and other escapes are written in upper
    case (RFC 3986, 6.2.2): "/a/%7eb%2f?c" becomes "/a/~b%2F?c". Dot segments stay, so that the
    application can refuse them. A path with a broken escape stays as it is, because decoding could
    turn it into a path that was not checked.
    """
    path, mark, query = target.partition("?")
    if "%" in path and not _BROKEN_ESCAPE.search(path):
        path = _ESCAPE.sub(_normalize_escape, path)
    return path + mark + query


def _normalize_escape(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    return char if char in _UNRESERVED else match[0].upper()


def find_framing(request: Request, limits: RequestLimits) -> Framing:
    """Return the framing of the request's body.

    Raises:
        RequestError: the framing is ambiguous, or the transfer coding is not supported.
    """
    codings = request.headers.get_all("transfer-encoding")
    lengths = request.headers.get_all("content-length")
    if not codings:
        if len(lengths) > 1 or (lengths and not _LENGTH.fullmatch(lengths[0])):
            raise RequestError(400, "Content-Length must be one number (RFC 9112, 6.3)")
        return LengthFraming(int(lengths[0]) if lengths else 0)
    if lengths:
        raise RequestError(
            400, "a request must not have Transfer-Encoding and Content-Length (RFC 9112, 6.3)"
        )
    if request.http_version == "1.0":
        raise RequestError(400, "HTTP/1.0 has no Transfer-Encoding (RFC 9112, 6.1)")
    names = [name.strip(" \t").lower() for name in ",".join(codings).split(",")]
    if names[-1] != "chunked" or names.count("chunked") > 1:
        raise RequestError(400, "Transfer-Encoding must end with chunked (RFC 9112, 6.3)")
    if len(names) > 1:
        raise RequestError(501, "the only supported Transfer-Encoding is chunked")
    return ChunkedFraming(limits)


def _add_path(rest: str, method: str) -> str:
    """Return the target behind an authority; for OPTIONS no path means "*" (RFC 9112, 3.2.4)."""
    if not rest and method == "OPTIONS":
        return "*"
    return rest if rest.startswith("/") else f"/{rest}"


def has_port(host: str) -> bool:
    """Return whether a valid Host field has a port."""
    match = _HOST.fullmatch(host)
    return match is not None and match["port"] is not None


def is_host(text: str) -> bool:
    """Return whether text is a valid Host field (RFC 9110, 7.2); an empty one is valid."""
    match = _HOST.fullmatch(text)
    if match is None or int(match["port"] or 0) > 65535:
        return False
    if match["literal"] is None:
        return True
    try:
        IPv6Address(match["literal"])
    except ValueError:
        return False
    return True
