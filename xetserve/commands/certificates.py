"""The flags of `xetserve deploy` for certificates."""

import argparse
import re
import time
from pathlib import Path
from typing import Final

from xetserve.base.certificate import read_validity
from xetserve.deploy.certificates import (
    Certbot,
    Pair,
    add_certbot,
    add_pair,
    add_pair_to_container,
    add_removal,
)
from xetserve.deploy.containers import ContainerTarget
from xetserve.deploy.machine import Machine
from xetserve.deploy.steps import Plan
from xetserve.deploy.systemd import SystemdTarget
from xetserve.errors import ConfigError
from xetserve.net.tls import make_server_context

_EMAIL: Final = re.compile(r"[^\s@-][^\s@]*@[^\s@]+")
# certbot cannot prove a wildcard with files.
_DOMAIN: Final = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z0-9-]*[A-Za-z0-9]"
)


def add_certificates(
    options: argparse.Namespace,
    machine: Machine,
    target: SystemdTarget | ContainerTarget,
    plan: Plan,
) -> None:
    """Add what the flags for certificates ask for to the plan of an action.

    Raises:
        ConfigError: the flags do not go together, or the pair cannot be used.
        DeployError: the service cannot have the certificate.
    """
    if options.action == "remove" and isinstance(target, SystemdTarget):
        add_removal(plan, machine, purge=options.purge)
    if options.action not in ("plan", "apply"):
        return
    pair = _read_pair(options.tls_cert, options.tls_key)
    certbot = _make_certbot(options)
    if pair is None and certbot is None:
        return
    if pair is not None and certbot is not None:
        raise ConfigError("--tls-cert and --certbot exclude each other: give only one")
    if isinstance(target, ContainerTarget):
        if pair is None:
            raise ConfigError(
                "--certbot is for --target systemd: for a container, run certbot on the host, and "
                "give the pair with --tls-cert and --tls-key"
            )
        add_pair_to_container(plan, machine, target, pair)
    elif pair is not None:
        add_pair(plan, machine, target, pair)
    elif certbot is not None:
        add_certbot(plan, machine, target, certbot)


def _read_pair(certificate: str | None, key: str | None) -> Pair | None:
    """Read a pair of files; None: none is given.

    Raises:
        ConfigError: a file is missing or cannot be used, they do not belong together, or the
            certificate is not valid now.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--tls-cert and --tls-key must be given together")
    make_server_context(Path(certificate), Path(key))
    pair = Pair(Path(certificate).read_bytes(), Path(key).read_bytes())
    try:
        validity = read_validity(pair.certificate)
    except ValueError as exc:
        raise ConfigError(f"cannot use {certificate}: {exc}") from None
    if validity.ends < time.time():
        raise ConfigError(f"the certificate in {certificate} expired at {_show(validity.ends)}")
    if validity.begins > time.time():
        begins = _show(validity.begins)
        raise ConfigError(f"the certificate in {certificate} is not valid before {begins}")
    return pair


def _show(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))


def _make_certbot(options: argparse.Namespace) -> Certbot | None:
    """Return what certbot needs to know; None: it is not wanted.

    Raises:
        ConfigError: a flag is missing, or is not a value that certbot takes.
    """
    given = (options.certbot, options.domain, options.certbot_server)
    if options.certbot is None and given != (None, None, None):
        raise ConfigError("--domain and --certbot-server need --certbot EMAIL")
    if options.certbot is None:
        return None
    if not options.domain:
        raise ConfigError("--certbot needs --domain NAME")
    if not _EMAIL.fullmatch(options.certbot):
        raise ConfigError(f"--certbot must be an address for e-mail, not {options.certbot!r}")
    for domain in options.domain:
        if not _DOMAIN.fullmatch(domain):
            raise ConfigError(f"--domain must be a name such as models.example, not {domain!r}")
    if not (options.certbot_server or "https://").startswith("https://"):
        raise ConfigError(
            f"--certbot-server must begin with https://, not {options.certbot_server!r}"
        )
    return Certbot(options.certbot, tuple(options.domain), options.certbot_server)
