"""Listening sockets from settings: TCP with or without TLS, redirects to https, a Unix socket."""

import errno
import socket
from collections.abc import Mapping, MutableMapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from xetserve.app.middleware.https import Redirect
from xetserve.config.parsers import OFF
from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.http.hosts import HostPolicy
from xetserve.net.listener import bind_sockets, is_loopback
from xetserve.net.preamble import Endpoint
from xetserve.net.tls import VERSIONS, ServerTls
from xetserve.net.unix_socket import UnixSocket, bind_unix_socket
from xetserve.ops.socket_activation import take_sockets

REDIRECT_NAME = "redirect"  # the name of an inherited socket for redirects

_ADVICE: Final = {
    errno.EADDRINUSE: "`ss -ltnp` shows the process that has it; stop it, or choose another {}",
    errno.EACCES: "this user may not use a port below 1024: choose a higher {}",
    errno.EADDRNOTAVAIL: "no interface of this machine has the address: choose another --host",
    errno.EAFNOSUPPORT: "this machine has no IPv6: choose another --host, such as 0.0.0.0",
}


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All listening sockets of a server.

    tls: the TLS settings of new connections; None: no TLS.
    unix: the Unix socket that this process created; None: there is none.
    bound: endpoints that this process bound; the others are inherited.
    """

    all: list[Endpoint]
    tls: ServerTls | None = None
    unix: UnixSocket | None = None
    bound: list[Endpoint] = field(default_factory=list)

    @property
    def sockets(self) -> list[socket.socket]:
        """Return the listening sockets."""
        return [endpoint.sock for endpoint in self.all]

    def describe(self) -> str:
        """Return the addresses of all endpoints as text, for the log."""
        return ", ".join(_describe(endpoint) for endpoint in self.all)

    def describe_exposed(self) -> str:
        """Return the addresses that other machines can reach as text; "": there are none."""
        return ", ".join(_describe(each) for each in self.all if not _is_local(each.sock))

    def has_certificate(self) -> bool:
        """Return whether there is a certificate for TLS; true without TLS."""
        return self.tls is None or self.tls.context is not None

    def remove_files(self) -> None:
        """Remove the file of the Unix socket."""
        if self.unix is not None:
            self.unix.remove()


def open_endpoints(
    config: Config, environ: MutableMapping[str, str], *, with_tls: bool
) -> Endpoints:
    """Take the inherited sockets, and bind further sockets that the settings name.

    Inherited sockets replace host and port. An inherited socket with the name "redirect" replaces
    redirect_port.

    Args:
        with_tls: use the TLS settings.

    Raises:
        ConfigError: an address is in use, a certificate is invalid, or nothing redirects though
            acme_webroot is set.
    """
    server = config.server
    tls = make_tls(config, environ) if with_tls else None
    inherited = take_sockets(environ)
    with ExitStack() as failing:

        def keep(socks: list[socket.socket]) -> list[socket.socket]:
            for sock in socks:
                failing.callback(sock.close)
            return socks

        sockets = [each.sock for each in inherited if each.name != REDIRECT_NAME or tls is None]
        redirects = [each.sock for each in inherited if each.sock not in sockets]
        keep(sockets + redirects)
        if not sockets and server.port != OFF:
            sockets = keep(_bind(server.host, server.port, "--port"))
        # A Unix socket needs no TLS: its data does not leave the machine.
        found = [Endpoint(sock, None if sock.family == socket.AF_UNIX else tls) for sock in sockets]
        if tls is not None and config.tls.redirect_port != OFF and not redirects:
            redirects = keep(_bind(server.host, config.tls.redirect_port, "--redirect-port"))
        if tls is not None and config.tls.acme_webroot and not redirects:
            raise ConfigError(
                "acme_webroot needs redirect_port, or a socket of the service manager with the "
                f"name {REDIRECT_NAME}"
            )
        if redirects and tls is not None:
            redirect = _make_redirect(config, tls, found)
            found += [Endpoint(sock, handler=redirect.handle) for sock in redirects]
        unix: UnixSocket | None = None
        if server.unix_socket:
            unix = _bind_unix(Path(server.unix_socket), int(server.unix_socket_mode, 8))
            found.append(Endpoint(unix.sock))
        if config.status.status_listen:
            host, _, port = config.status.status_listen.rpartition(":")
            own = keep(_bind(host.strip("[]"), int(port), "--status-listen"))
            found += [Endpoint(sock, for_operators=True) for sock in own]
        failing.pop_all()
    handed_over = {each.sock for each in inherited}
    bound = [each for each in found if each.sock not in handed_over]
    return Endpoints(found, tls, unix, bound)


def check_idle_exit(config: Config, endpoints: Endpoints) -> None:
    """Check that a service manager can restart a server with idle_exit for the next client.

    Raises:
        ConfigError: the server bound a socket itself, which is closed when the server exits.
    """
    if config.server.idle_exit and endpoints.bound:
        where = ", ".join(_describe(endpoint) for endpoint in endpoints.bound)
        endpoints.remove_files()
        raise ConfigError(
            "idle_exit needs sockets that a service manager passes (LISTEN_FDS): "
            f"after an idle exit, nothing would start the server for clients of {where}"
        )


def make_tls(config: Config, environ: Mapping[str, str]) -> ServerTls | None:
    """Load the certificate that the settings name; None: they name none.

    With acme_webroot, the first certificate may still have to be made. RUNTIME_DIRECTORY, the
    folder that systemd makes for a running service, may have a renewed pair.

    Raises:
        ConfigError: the certificate or its key is invalid.
    """
    tls = config.tls
    if not tls.tls_cert:
        return None
    folder = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return ServerTls(
        Path(tls.tls_cert),
        Path(tls.tls_key),
        VERSIONS[tls.tls_min],
        renewed=Path(folder) if folder else None,
        may_wait=bool(tls.acme_webroot),
    )


def _make_redirect(config: Config, tls: ServerTls, found: list[Endpoint]) -> Redirect:
    ports = [each.sock.getsockname()[1] for each in found if each.tls is not None]
    target = config.tls.redirect_target or (ports[0] if ports else 443)
    webroot = Path(config.tls.acme_webroot) if config.tls.acme_webroot else None
    hosts = HostPolicy.parse(config.http.hosts)
    return Redirect(target, webroot, hosts, lambda: tls.context is not None)


def _bind(hosts: str, port: int, flag: str) -> list[socket.socket]:
    try:
        return bind_sockets(hosts, port)
    except OSError as exc:
        host = str(exc.filename)
        host = f"[{host}]" if ":" in host else host
        reason = exc.strerror or str(exc)
        if advice := _ADVICE.get(exc.errno or 0):
            reason += f": {advice.format(flag)}"
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}") from None


def _bind_unix(path: Path, mode: int) -> UnixSocket:
    try:
        return bind_unix_socket(path, mode)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {path}: {exc.strerror or exc}") from None


def _is_local(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0])


def _describe(endpoint: Endpoint) -> str:
    sock = endpoint.sock
    if sock.family == socket.AF_UNIX:
        return f"unix:{sock.getsockname()}"
    host, port = sock.getsockname()[:2]
    scheme = "http" if endpoint.tls is None else "https"
    note = "" if endpoint.handler is None else " (redirects)"
    note = " (figures)" if endpoint.for_operators else note
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{note}"
