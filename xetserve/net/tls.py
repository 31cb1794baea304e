"""TLS contexts: for upstream connections, and for our own listeners, whose certificates change
while we run.
"""

import asyncio
import logging
import os
import ssl
from pathlib import Path
from typing import Final, NoReturn

from xetserve.errors import ConfigError

logger = logging.getLogger(__name__)

VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# Forward secrecy and authenticated encryption only, as RFC 9325 (4.2) recommends. TLS 1.3 has
# nothing else.
_CIPHERS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# What a file is known by; None: it is not there.
_Signature = tuple[int, int, int, int] | None


def make_client_context() -> ssl.SSLContext:
    """Make the context for upstream connections.

    Certificates are checked against the system's CAs; SSL_CERT_FILE and SSL_CERT_DIR replace them.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def make_server_context(
    certificate: Path, key: Path, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
) -> ssl.SSLContext:
    """Make the context for our clients.

    Args:
        certificate: PEM file, the server's certificate first, then those between it and the root.
        key: PEM file, without a passphrase.

    Raises:
        ConfigError: one of them cannot be read or used, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = minimum
    context.set_ciphers(_CIPHERS_1_2)
    context.options |= (
        ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    )
    context.set_alpn_protocols(["http/1.1"])
    for path in (certificate, key):
        try:
            path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"cannot read {path}: {exc.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_refuse_passphrase)
    except ssl.SSLError as exc:
        reason = (exc.reason or "not PEM").lower().replace("_", " ")
        raise ConfigError(f"cannot use {certificate} with the key {key}: {reason}") from None
    return context


def _refuse_passphrase() -> NoReturn:
    # OpenSSL would ask for it on the terminal, and wait.
    raise ConfigError("the TLS key must not have a passphrase")


class ServerTls:
    """A certificate with its key, and the context of new connections; follows the files when they
    change.

    Raises:
        ConfigError: as make_server_context says.
    """

    def __init__(
        self, certificate: Path, key: Path, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._minimum = minimum
        self._loaded = self._look()
        self._suspected: object = None  # what could not be loaded at the last look
        self._rejected: object = None  # what was said to be no good
        self.context = make_server_context(certificate, key, minimum)

    def reload(self) -> None:
        """Take what the files hold now. Connections that there are keep what they have.

        Raises:
            ConfigError: it is no good; what was there stays.
        """
        found = self._look()
        self.context = make_server_context(self._certificate, self._key, self._minimum)
        self._loaded, self._suspected = found, None
        logger.info("TLS certificate loaded from %s", self._certificate)

    def check(self) -> None:
        """Reload if the files have changed; what is no good is left alone, and said once.

        Two files are not changed at the same moment: only a pair that is still there at the next
        look, and still no good, counts as bad.
        """
        found = self._look()
        if found in (self._loaded, self._rejected):
            return
        try:
            self.reload()
        except ConfigError as exc:
            if found == self._suspected:
                self._rejected = found
                logger.error("TLS certificate not changed: %s", exc)
            self._suspected = found

    async def follow(self, interval: float) -> NoReturn:
        """Check now and every interval seconds, until cancelled."""
        while True:
            self.check()
            await asyncio.sleep(interval)

    def _look(self) -> tuple[_Signature, _Signature]:
        return _sign(self._certificate), _sign(self._key)


def _sign(path: Path) -> _Signature:
    """Return what a path leads to now, through any links."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
