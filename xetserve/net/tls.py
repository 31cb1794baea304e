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

FIRST: Final = 1.0  # seconds; the most between two looks for a first certificate

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

    Args:
        renewed: a folder where a pair with the same file names may appear, which is used instead.
            A service cannot change its credentials, so renewals are put there.
        may_wait: wait for the files if they do not exist yet, as those of a first certificate.

    Attributes:
        context: of new connections; None: the files do not exist yet.
        expiry: Unix seconds at which its certificate expires; None: unknown.

    Raises:
        ConfigError: see make_server_context.
    """

    def __init__(
        self,
        certificate: Path,
        key: Path,
        minimum: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2,
        *,
        renewed: Path | None = None,
        may_wait: bool = False,
    ) -> None:
        self._pairs = [(certificate, key)]
        if renewed is not None:
            self._pairs.insert(0, (renewed / certificate.name, renewed / key.name))
        self._minimum = minimum
        self._loaded = self._look()
        self._suspected: object = None  # signature of the files that the last check could not load
        self._rejected: object = None  # signature of the files for which an error was logged
        self.context: ssl.SSLContext | None = None
        self.expiry: float | None = None
        if may_wait and _are_absent(*self._find_pair()):
            logger.warning("no TLS certificate yet: waiting for %s and %s", certificate, key)
        else:
            self._load()

    def reload(self) -> None:
        """Load the files for new connections; existing connections keep their certificate.

        A first certificate that does not exist yet is no error.

        Raises:
            ConfigError: see make_server_context. The previous certificate stays in use.
        """
        if self.context is not None or not _are_absent(*self._find_pair()):
            logger.info("TLS certificate loaded from %s", self._load())

    def _load(self) -> Path:
        """Load the files; return the path of the certificate."""
        found = self._look()
        certificate, key = self._find_pair()
        self.context = make_server_context(certificate, key, self._minimum)
        self.expiry = _find_expiry(certificate)
        self._loaded, self._suspected = found, None
        return certificate

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
                what = "not loaded" if self.context is None else "not changed"
                logger.error("TLS certificate %s: %s", what, exc)
            self._suspected = found

    async def follow(self, interval: float) -> NoReturn:
        """Check now and every interval seconds, until cancelled; more often for the first one."""
        while True:
            self.check()
            await asyncio.sleep(interval if self.context is not None else min(interval, FIRST))

    def _find_pair(self) -> tuple[Path, Path]:
        """Return the first complete pair, or else the last one."""
        whole = (pair for pair in self._pairs if all(map(_sign, pair)))
        return next(whole, self._pairs[-1])

    def _look(self) -> tuple[_Signature, ...]:
        return tuple(_sign(path) for pair in self._pairs for path in pair)


def _find_expiry(certificate: Path) -> float | None:
    """Return when the certificate in a file expires; log it if it has."""
    try:
        expiry = read_validity(certificate.read_bytes()).ends
    except (OSError, ValueError) as exc:
        logger.warning("cannot see when %s expires: %s", certificate, exc)
        return None
    if expiry < time.time():
        date = time.strftime("%Y-%m-%d", time.gmtime(expiry))
        logger.warning("the TLS certificate in %s expired on %s", certificate, date)
    return expiry


def _are_absent(*paths: Path) -> bool:
    """Return whether a file does not exist. One that cannot be examined may exist."""
    for path in paths:
        try:
            os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            continue
    return False


def _sign(path: Path) -> _Signature:
    """Return the signature of the file at a path, following symbolic links."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size
