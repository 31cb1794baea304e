"""What passes through a server between client and upstream: who has asked, and by which way (RFC 9110, 7.6)."""

import re
from typing import Final

from xetserve.http.messages import Headers

MAX_AGENT_SIZE: Final = 512  # characters of a client's User-Agent that are passed on

_VIA_ITEM: Final = re.compile(r"[^\s,]+[ \t]+([^\s,]+)")


def extend_agent(own: str, headers: Headers) -> str:
    """Give a User-Agent of ours with the client's behind it."""
    return f"{own} {(headers.get('user-agent') or '')[:MAX_AGENT_SIZE]}".strip()


def extend_via(headers: Headers, name: str) -> str:
    """Give the Via of a message that has come with these headers, and that `name` passes on."""
    return ", ".join([*headers.get_all("via"), f"1.1 {name}"])


def has_passed(headers: Headers, name: str) -> bool:
    """Tell whether a message was passed on by `name` before."""
    values = ",".join(headers.get_all("via"))
    return any(match[1] == name for match in _VIA_ITEM.finditer(values))
