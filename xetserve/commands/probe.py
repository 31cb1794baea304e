"""`xetserve probe`: ask the server of this machine whether it works, for health checks.

The address comes from the same settings as those of the server. In a container, the server is
process 1, and the flags that it was started with count as well. Errors in settings do not fail a
probe: a server that runs keeps the settings of its start.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from xetserve.commands.output import write_output
from xetserve.config.load import add_flags, load_all
from xetserve.config.parsers import OFF, parse_seconds
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS, Config, Sections
from xetserve.deploy.local_server import HEALTH, READY, Address, Answer, ask, format_probe
from xetserve.errors import ConfigError

COMMAND_LINE: Final = Path("/proc/1/cmdline")
TLS_NEEDED: Final = 400  # status of plain HTTP on a port that speaks TLS
_SECTIONS: Final = ("server", "tls", "proxies")  # those that say how a server listens
# Every address -> one of this machine. A container without IPv6 has a :: but no ::1.
_LOCAL: Final = {"0.0.0.0": "127.0.0.1", "::": "localhost"}


def run_probe(options: argparse.Namespace, command_line: Path = COMMAND_LINE) -> int:
    """Ask the server; return the exit status: 0 if it works, else 1.

    Args:
        command_line: that of process 1, with zero bytes as in /proc.

    Raises:
        ConfigError: the timeout is invalid.
    """
    try:
        timeout = parse_seconds(options.timeout)
    except ValueError as exc:
        raise ConfigError(f"--timeout {exc}") from None
    schema, started = _read_flags(command_line)
    given = {name: value for name, value in vars(options).items() if value is not None}
    flags = {**vars(started), **given}
    loaded = load_all(flags, os.environ, flags.get("config"), schema)
    path = READY if options.ready else HEALTH
    answer, reason = None, ""
    try:
        address = find_address(loaded.config)
        address, answer = _ask(
            address, path, timeout, may_wait=bool(loaded.config.tls.acme_webroot)
        )
        sentence = f"{address.url}{path} answers {describe_answer(answer)}"
    except ConfigError as exc:
        address, reason = Address("127.0.0.1", 0), str(exc)
        sentence = reason
    except OSError as exc:
        reason = exc.strerror or str(exc)
        sentence = f"no answer of {address.url}{path}: {reason}"
    if answer is None and loaded.errors:
        sentence += f" (and the settings have an error: {loaded.errors[0]})"
    is_good = answer is not None and answer.status == 200
    if options.json:
        write_output(format_probe(address, answer, reason) + "\n")
    elif is_good:
        write_output(f"{sentence}\n")
    else:
        sys.stderr.write(f"xetserve: {sentence}\n")
    return 0 if is_good else 1


def _ask(address: Address, path: str, timeout: float, *, may_wait: bool) -> tuple[Address, Answer]:
    """Send a GET; return the response, and the address with what the server speaks there.

    Args:
        may_wait: whether the server may wait for its first certificate: it speaks plain HTTP then.

    Raises:
        OSError: there is no response.
    """
    try:
        return address, ask(address, path, timeout)
    except OSError as exc:
        if not (address.tls and may_wait) or isinstance(exc, TimeoutError):
            raise
        plain = address._replace(tls=False)
        answer = ask(plain, path, timeout)
        if answer.status == TLS_NEEDED:  # the first error is the right one
            raise
        return plain, answer


def find_address(config: Config) -> Address:
    """Return where a server with these settings listens.

    Raises:
        ConfigError: the settings do not say it.
    """
    server = config.server
    needs_header = config.proxies.proxy_protocol
    if server.port not in (OFF, 0):
        hosts = server.host.split(",")
        host = next((_LOCAL[each] for each in hosts if each in _LOCAL), hosts[0])
        return Address(host, server.port, bool(config.tls.tls_cert), needs_header)
    if server.unix_socket:
        return Address(server.unix_socket, None, needs_header=needs_header)
    raise ConfigError("the settings name no port to ask: give --port or --unix-socket")


def describe_answer(answer: Answer) -> str:
    """Return the status and what the body says, as text."""
    fields = answer.fields
    text = f"{answer.status}"
    if "status" in fields:
        text += f": {fields['status']}"
    if "version" in fields:
        text += f", version {fields['version']}"
    reason = fields.get("error") or fields.get("cause")
    return f"{text}: {reason}" if reason else text


def _read_flags(command_line: Path) -> tuple[Sections, argparse.Namespace]:
    """Return the sections and the flags of a server that is process 1; without one no flags."""
    try:
        words = command_line.read_text("utf-8", "surrogateescape").split("\0")
    except OSError:
        words = []
    command, arguments = _find_arguments(words)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(parser, _SECTIONS)
    started, _ = parser.parse_known_args(arguments)
    return (ORIGIN_SECTIONS if command == "origin" else SECTIONS), started


def _find_arguments(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Return the command and the arguments in a command line of xetserve.

    An interpreter or a small init may stand in front: `tini -- xetserve serve`.
    """
    for number, word in enumerate(words):
        if word.rpartition("/")[2] == "xetserve":
            rest = words[number + 1 :]
            command = rest[0] if rest and not rest[0].startswith("-") else "serve"
            return (command, rest) if command in ("serve", "origin") else (command, ())
    return "", ()
