"""Host names of this server (RFC 9110, 7.4): refuse requests for any other name.

This protects against DNS rebinding. An attacker's page can make its own host name resolve to this
server's address; the browser then treats the server as the page's own origin. The Host field still
holds the attacker's name, so the server can refuse the request. A page has no such control over IP
addresses and localhost, so the server always accepts those.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from xetserve.errors import RequestError
from xetserve.http.messages import Request

# Health checks use any host name; their responses hold nothing confidential.
PROBES: Final = frozenset({"/health", "/healthz", "/ready"})
# Clients put this before the host of HF_ENDPOINT to ask the Hub's service for parts of datasets.
DATASETS_LABEL: Final = "datasets-server."
_PORT: Final = re.compile(r":[0-9]*\Z")


@dataclass(frozen=True, slots=True)
class HostPolicy:
    """The accepted host names, in lower case; "*.name" accepts all subdomains of name.

    If names is empty, every host is accepted.
    """

    names: Sequence[str] = ()

    @classmethod
    def parse(cls, text: str) -> "HostPolicy":
        """Parse the setting: names separated by commas, or an empty text."""
        return cls(tuple(text.split(",")) if text else ())

    def check(self, request: Request) -> None:
        """Check the host of a request.

        Raises:
            RequestError: 421, the host is not one of this server's names.
        """
        if request.raw_path not in PROBES and not self.knows(request.host):
            raise RequestError(421, "this host name is not in the setting [http] hosts")

    def knows(self, host: str) -> bool:
        """Return whether a Host field, with or without a port and DATASETS_LABEL, names this
        server.
        """
        if not self.names:
            return True
        name = _PORT.sub("", host).lower().removesuffix(".").removeprefix(DATASETS_LABEL)
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
