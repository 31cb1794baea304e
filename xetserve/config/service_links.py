"""Environment variables that Kubernetes and Docker make for a service, which are not settings.

Unless enableServiceLinks is false, a pod has variables for each Service of its namespace. Those of
Services named xetserve, or xetserve-something, begin as ours do:

    XETSERVE_SERVICE_HOST=10.96.0.11             XETSERVE_PORT=tcp://10.96.0.11:8080
    XETSERVE_SERVICE_PORT=8080                   XETSERVE_PORT_8080_TCP=tcp://10.96.0.11:8080
    XETSERVE_SERVICE_PORT_HTTP=8080              XETSERVE_PORT_8080_TCP_PROTO=tcp  (_PORT, _ADDR)

Links between containers of Docker have the right half, and XETSERVE_NAME and XETSERVE_ENV_... .
"""

import re
from collections.abc import Mapping
from typing import Final

PREFIX: Final = "XETSERVE"
_URL: Final = re.compile(r"(?:tcp|udp|sctp)://\S+")
# The name of a service, before a variable that no setting looks like.
_HOST: Final = re.compile(r"(\w+)_SERVICE_HOST")
_PORT: Final = re.compile(r"(\w+?)_PORT(?:_\d+_(?:TCP|UDP|SCTP))?")
_REST: Final = re.compile(
    r"_SERVICE_HOST|_SERVICE_PORT(?:_\w+)?|_PORT_\d+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?"
    r"|_NAME|_ENV_\w+"
)


def find_service_links(environ: Mapping[str, str]) -> set[str]:
    """Return the names of variables that describe services, and begin as ours do.

    A variable ..._PORT is one only if it has a URL: XETSERVE_PORT=8080 is a setting.
    """
    ours = {name: value for name, value in environ.items() if name.startswith(f"{PREFIX}_")}
    urls = {name for name, value in ours.items() if _URL.fullmatch(value)}
    marks = [_HOST.fullmatch(name) for name in ours] + [_PORT.fullmatch(name) for name in urls]
    services = {mark[1] for mark in marks if mark is not None}
    return {
        name
        for name in ours
        for service in services
        if name.startswith(service)
        if _REST.fullmatch(name, len(service)) or (name == f"{service}_PORT" and name in urls)
    }
