"""Which names this server answers under (RFC 9110, 7.4).

A page of somebody else's can have its own name lead to this server's address, and then counts as
the same origin (DNS rebinding): the request still tells that name. No page can bring an address
with it, so addresses and localhost are always answered.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from xetserve.errors import RequestError
from xetserve.http.messages import Request

# Health checks come under whatever name; their answers hold nothing that is worth a visit.
PROBES: Final = frozenset({"/health", "/healthz", "/ready"})
_PORT: Final = re.compile(r":[0-9]*\Z")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """Names in lower case, "*.name" for all below one; no names: any Host is answered."""

    names: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str) -> "HostPolicy":
        """Read a setting: names with commas between them, or nothing."""
        return cls(tuple(text.split(",")) if text else ())

    def check(self, request: Request) -> None:
        """Check the name that a request is for.

        Raises:
            RequestError: 421, it is none of ours.
        """
        if request.raw_path not in PROBES and not self.knows(request.host):
            raise RequestError(421, "this server has another name: [http] hosts lists those it has")

    def knows(self, host: str) -> bool:
        """Return whether a Host field, with a port or without, is one of ours."""
        if not self.names:
            return True
        name = _PORT.sub("", host).lower().removesuffix(".")
        if name == "localhost" or _is_address(name):
            return True
        return any(
            name.endswith(known[1:]) if known.startswith("*.") else name == known
            for known in self.names
        )


def _is_address(name: str) -> bool:
    literal = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        ip_address(literal)
    except ValueError:
        return False
    return True
