"""TLS contexts for upstream connections, and for listeners with certificates that are reloaded."""

import asyncio
import logging
import os
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from xetserve.base.certificate import read_validity
from xetserve.errors import ConfigError

logger = logging.getLogger(__name__)

VERSIONS: Final = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}

# Only ciphers with forward secrecy and authenticated encryption, as RFC 9325 (4.2) recommends. All
# ciphers of TLS 1.3 have both.
_CIPHERS_1_2: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"

# Device, inode, modification time and size of a file; None: the file does not exist.
_Signature = tuple[int, int, int, int] | None


def make_client_context() -> ssl.SSLContext:
    """Make the context for upstream connections.

    Certificates are checked against the system's CAs; SSL_CERT_FILE and SSL_CERT_DIR replace them.
    """
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def check_ca_files(environ: Mapping[str, str]) -> None:
    """Check the files and folders that replace the system's CAs.

    OpenSSL ignores a missing one, and then trusts no certificate at all.

    Raises:
        ConfigError: SSL_CERT_FILE or SSL_CERT_DIR cannot be used.
    """
    name = environ.get("SSL_CERT_FILE")
    if name is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=name)
        except ssl.SSLError:
            raise ConfigError(f"SSL_CERT_FILE: {name!r} holds no certificate in PEM form") from None
        except OSError as exc:
            raise ConfigError(f"SSL_CERT_FILE: cannot read {name!r}: {exc.strerror}") from None
    folders = environ.get("SSL_CERT_DIR")
    if folders is not None and not any(map(os.path.isdir, folders.split(os.pathsep))):
        raise ConfigError(f"SSL_CERT_DIR: there is no folder {folders!r}")


def make_server_context(
    certificate: Path, key: Path, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
) -> ssl.SSLContext:
    """Make the context for connections from clients.

    Args:
        certificate: PEM file: the server's certificate, then the intermediate certificates.
        key: PEM file, without a passphrase.

    Raises:
        ConfigError: a file cannot be read, is not valid, or the key is not the certificate's.
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
    # By default OpenSSL prompts for the passphrase on the terminal and waits.
    raise ConfigError("the TLS key must not have a passphrase")


class ServerTls:
    """A certificate with its key, and the context of new connections, reloaded on changes.

    Attributes:
        context: of new connections.
        expiry: Unix seconds at which its certificate expires; None: unknown.

    Raises:
        ConfigError: see make_server_context.
    """

    def __init__(
        self, certificate: Path, key: Path, minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._minimum = minimum
        self._loaded = self._look()
        self._suspected: object = None  # signature of the files that the last check could not load
        self._rejected: object = None  # signature of the files for which an error was logged
        self.context = make_server_context(certificate, key, minimum)
        self.expiry = self._find_expiry()

    def reload(self) -> None:
        """Load the files for new connections; existing connections keep their certificate.

        Raises:
            ConfigError: see make_server_context. The previous certificate stays in use.
        """
        found = self._look()
        self.context = make_server_context(self._certificate, self._key, self._minimum)
        self.expiry = self._find_expiry()
        self._loaded, self._suspected = found, None
        logger.info("TLS certificate loaded from %s", self._certificate)

    def check(self) -> None:
        """Reload the files if they have changed; log an invalid pair once and keep the old one.

        The two files do not change at the same moment. A pair is reported only if the next check
        finds the same files and still cannot load them.
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

    def _find_expiry(self) -> float | None:
        """Return when the certificate in the file expires; log it if it has."""
        try:
            expiry = read_validity(self._certificate.read_bytes()).ends
        except (OSError, ValueError) as exc:
            logger.warning("cannot see when %s expires: %s", self._certificate, exc)
            return None
        if expiry < time.time():
            date = time.strftime("%Y-%m-%d", time.gmtime(expiry))
            logger.warning("the TLS certificate in %s expired on %s", self._certificate, date)
        return expiry

    def _look(self) -> tuple[_Signature, _Signature]:
        return _sign(self._certificate), _sign(self._key)


def _sign(path: Path) -> _Signature:
    """Return the signature of the file at a path, following symbolic links."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
