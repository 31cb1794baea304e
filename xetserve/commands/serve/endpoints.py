"""Listening sockets from settings: TCP with or without TLS, redirects to https, a Unix socket."""

import errno
import socket
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Final

from xetserve.app.middleware.https import Redirect
from xetserve.config.load import flag_of
from xetserve.config.parsers import OFF
from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.http.hosts import HostPolicy
from xetserve.net.listener import bind_sockets, is_loopback
from xetserve.net.preamble import Endpoint
from xetserve.net.tls import VERSIONS, ServerTls
from xetserve.net.unix_socket import UnixSocket, bind_unix_socket, find_unix_socket
from xetserve.ops.socket_activation import Inherited

REDIRECT_NAME = "redirect"  # the name of an inherited socket for redirects
# The names of sockets that a former generation of the server has bound begin so; then comes the
# name of the setting that they are for; behind UNIX comes the label of the Unix socket.
OWN: Final = "own."
UNIX: Final = f"{OWN}unix_socket/"

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
    files: the Unix sockets whose files this server removes at its end.
    files_of_former: those that belong to a former generation, until this one takes over.
    unused: Unix sockets of a former generation that the settings do not name any more.
    bound: endpoints that this server bound, in any generation; a service manager has the others.
    named: all sockets with the names by which a successor finds them.
    """

    all: list[Endpoint]
    tls: ServerTls | None = None
    files: list[UnixSocket] = field(default_factory=list)
    files_of_former: list[UnixSocket] = field(default_factory=list)
    unused: list[UnixSocket] = field(default_factory=list)
    bound: list[Endpoint] = field(default_factory=list)
    named: list[Inherited] = field(default_factory=list)

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
        """Remove the files of the Unix sockets, at the end."""
        for each in self.files:
            each.remove()

    def take_over(self) -> None:
        """Own the files of the former generation, which accepts no more clients."""
        self.files.extend(self.files_of_former)
        for each in self.unused:
            each.remove()
            each.sock.close()

    def leave_to_successor(self) -> None:
        """Leave the files to the next generation, which has taken over."""
        self.files.clear()


def open_endpoints(
    config: Config, inherited: list[Inherited], environ: Mapping[str, str], *, with_tls: bool
) -> Endpoints:
    """Use the inherited sockets, and bind further sockets that the settings name.

    Inherited sockets of a service manager replace host and port; one with the name "redirect"
    replaces redirect_port. Those that a former generation has bound are used where the settings
    still name their address.

    Args:
        with_tls: use the TLS settings.

    Raises:
        ConfigError: an address is in use, a certificate is invalid, or nothing redirects though
            acme_webroot is set.
    """
    server = config.server
    tls = make_tls(config, environ) if with_tls else None
    given = [each for each in inherited if not each.name.startswith(OWN)]
    kept: dict[str, list[socket.socket]] = {}
    former_unix: list[UnixSocket] = []
    for name, sock in inherited:
        if name.startswith(UNIX):
            former = find_unix_socket(sock, name.removeprefix(UNIX))
            if former is None:
                sock.close()
            else:
                former_unix.append(former)
        elif name.startswith(OWN):
            kept.setdefault(name.removeprefix(OWN), []).append(sock)
    named = list(given)
    with ExitStack() as failing:

        def keep(socks: list[socket.socket]) -> list[socket.socket]:
            for sock in socks:
                failing.callback(sock.close)
            return socks

        def bind(host: str, port: int, setting: str) -> list[socket.socket]:
            socks = keep(_bind(host, port, setting, kept.get(setting, [])))
            named.extend(Inherited(OWN + setting, sock) for sock in socks)
            return socks

        sockets = [each.sock for each in given if each.name != REDIRECT_NAME or tls is None]
        redirects = [each.sock for each in given if each.sock not in sockets]
        keep(sockets + redirects)
        if not sockets and server.port != OFF:
            sockets = bind(server.host, server.port, "port")
        # A Unix socket needs no TLS: its data does not leave the machine.
        found = [Endpoint(sock, None if sock.family == socket.AF_UNIX else tls) for sock in sockets]
        if tls is not None and config.tls.redirect_port != OFF and not redirects:
            redirects = bind(server.host, config.tls.redirect_port, "redirect_port")
        if tls is not None and config.tls.acme_webroot and not redirects:
            raise ConfigError(
                "acme_webroot needs redirect_port, or a socket of the service manager with the "
                f"name {REDIRECT_NAME}"
            )
        if redirects and tls is not None:
            redirect = _make_redirect(config, tls, found)
            found += [Endpoint(sock, handler=redirect.handle) for sock in redirects]
        files: list[UnixSocket] = []
        files_of_former: list[UnixSocket] = []
        if server.unix_socket:
            path = Path(server.unix_socket)
            files_of_former += [each for each in former_unix if each.path == path]
            if files_of_former:
                unix = files_of_former[0]
            else:
                unix = _bind_unix(path, int(server.unix_socket_mode, 8))
                failing.callback(unix.sock.close)
                failing.callback(unix.remove)
                files.append(unix)
            found.append(Endpoint(unix.sock))
            named.append(Inherited(UNIX + unix.label, unix.sock))
        if config.status.status_listen:
            host, _, port = config.status.status_listen.rpartition(":")
            own = bind(host.strip("[]"), int(port), "status_listen")
            found += [Endpoint(sock, for_operators=True) for sock in own]
        failing.pop_all()
    unused = [each for each in former_unix if each not in files_of_former]
    for sock in chain.from_iterable(kept.values()):
        sock.close()
    handed_over = {each.sock for each in given}
    bound = [each for each in found if each.sock not in handed_over]
    return Endpoints(found, tls, files, files_of_former, unused, bound, named)


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


def _bind(hosts: str, port: int, setting: str, kept: list[socket.socket]) -> list[socket.socket]:
    try:
        return bind_sockets(hosts, port, kept)
    except OSError as exc:
        host = str(exc.filename)
        host = f"[{host}]" if ":" in host else host
        reason = exc.strerror or str(exc)
        if advice := _ADVICE.get(exc.errno or 0):
            reason += f": {advice.format(flag_of(setting))}"
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
