"""Plain HTTP beside HTTPS: redirects, ACME challenges (RFC 8555, 8.3), and HSTS."""

import asyncio
import os
import re
import stat
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from xetserve.app.route_table import check_method
from xetserve.errors import RequestError
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Handler, Request, Response, error_response

MAX_CHALLENGE: Final = 64 * 1024  # bytes
RETRY: Final = (("Retry-After", "5"),)
_FOLDER: Final = (".well-known", "acme-challenge")
_PREFIX: Final = f"/{'/'.join(_FOLDER)}/"
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,255}")
_PORT: Final = re.compile(r":[0-9]*$")


class Redirect:
    """A handler that redirects to HTTPS, except for ACME challenges.

    Args:
        port: of the HTTPS server.
        webroot: folder with .well-known/acme-challenge, where an ACME client such as certbot writes
            its answers.
        hosts: accepted host names.
        has_certificate: returns whether the HTTPS server has one; before, nothing is redirected.
    """

    def __init__(
        self,
        port: int,
        webroot: Path | None = None,
        hosts: HostPolicy | None = None,
        has_certificate: Callable[[], bool] = lambda: True,
    ) -> None:
        self._hosts = hosts or HostPolicy()
        self._port = "" if port == 443 else f":{port}"
        self._webroot = webroot
        self._has_certificate = has_certificate

    async def handle(self, request: Request) -> Response:
        """Answer a request with a redirect, or with an ACME answer."""
        try:
            if self._webroot is not None and request.raw_path.startswith(_PREFIX):
                check_method(request)
                return await self._get_challenge(self._webroot, request)
            self._hosts.check(request)
            if not self._has_certificate():
                raise RequestError(503, "this server has no TLS certificate yet", RETRY)
            return self._redirect(request)
        except RequestError as exc:
            return error_response(exc.status, str(exc), exc.headers)

    def _redirect(self, request: Request) -> Response:
        host = _PORT.sub("", request.headers.get("host") or "")
        if not host:
            raise RequestError(400, "the request has no Host field, which the redirect needs")
        if not request.target.startswith("/"):  # OPTIONS *
            raise RequestError(404, "this server answers such requests over HTTPS only")
        # 308 keeps the method (RFC 9110, 15.4.9). It must not be cached: the settings may change.
        location = f"https://{host}{self._port}{request.prefix}{request.target}"
        return Response(308, [("Location", location), ("Cache-Control", "no-store")])

    async def _get_challenge(self, webroot: Path, request: Request) -> Response:
        token = request.raw_path.removeprefix(_PREFIX)
        if not _TOKEN.fullmatch(token):
            raise RequestError(404, "the path does not end in an ACME token")
        content = await asyncio.to_thread(_read_file, webroot, (*_FOLDER, token))
        if content is None:
            raise RequestError(404, "there is no answer for this ACME token")
        return Response(
            200, [("Content-Type", "text/plain"), ("Cache-Control", "no-store")], content
        )


def _read_file(root: Path, parts: tuple[str, ...]) -> bytes | None:
    """Return the content of a regular file below root, without following links below it.

    None: there is no such file, or it is larger than MAX_CHALLENGE.
    """
    follow = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        with ExitStack() as opened:
            at = os.open(root, follow | os.O_DIRECTORY)
            opened.callback(os.close, at)
            for index, part in enumerate(parts):
                is_folder = index < len(parts) - 1
                flags = follow | os.O_NOFOLLOW | (os.O_DIRECTORY if is_folder else 0)
                at = os.open(part, flags, dir_fd=at)
                opened.callback(os.close, at)
            found = os.fstat(at)
            if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_CHALLENGE:
                return None
            content = os.read(at, MAX_CHALLENGE + 1)
    except OSError:
        return None
    return content if len(content) <= MAX_CHALLENGE else None


def insist_on_https(handler: Handler, max_age: Callable[[], int]) -> Handler:
    """Return a handler that adds Strict-Transport-Security to answers over TLS (RFC 6797, 7.2).

    Args:
        max_age: returns its max-age in seconds; 0: the field is not sent.
    """

    async def handle(request: Request) -> Response:
        response = await handler(request)
        if request.secure and (seconds := max_age()):
            response.headers.append(("Strict-Transport-Security", f"max-age={seconds}"))
        return response

    return handle
