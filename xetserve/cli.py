"""The roof: read the arguments, build the objects, hand them to each other, run."""

import argparse
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from xetserve import __version__
from xetserve.config import ServerConfig, add_flags, load_config
from xetserve.errors import ConfigError
from xetserve.http.messages import Handler
from xetserve.net.connection import ConnectionLimits
from xetserve.net.listener import Listener, bind_sockets
from xetserve.ops.lifecycle import run_loop, serve_until_signal
from xetserve.ops.logs import set_up_logging
from xetserve.origin.app import Origin

logger = logging.getLogger("xetserve")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for a failure, 2 for a bad setting."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _make_parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options))
    except ConfigError as exc:
        sys.stderr.write(f"xetserve: {exc}\n")
        return 2
    except KeyboardInterrupt:
        return 130


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xetserve")
    parser.add_argument("--version", action="version", version=f"xetserve {__version__}")
    commands = parser.add_subparsers(required=True)
    origin = commands.add_parser("origin")
    add_flags(origin, ("server", "log"))
    origin.add_argument("dir")
    origin.add_argument("--test-controls", action="store_true")
    origin.set_defaults(run=_run_origin)
    return parser


def _run_origin(options: argparse.Namespace) -> int:
    config = load_config(vars(options), os.environ, options.config)
    set_up_logging(config.log.log_level)
    origin = Origin(Path(options.dir), test_controls=options.test_controls)
    return _serve(origin.handle, config.server, "origin", origin.aclose)


def _serve(
    handler: Handler, server: ServerConfig, name: str, aclose: Callable[[], Awaitable[None]]
) -> int:
    try:
        sockets = bind_sockets(server.host, server.port)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {server.host}:{server.port}: {exc.strerror}") from None

    async def on_ready() -> None:
        logger.info("%s listening on %s", name, sockets[0].getsockname())

    async def serve() -> None:
        listener = Listener(handler, ConnectionLimits(write_timeout=server.write_timeout))
        try:
            await serve_until_signal(
                listener, sockets, drain_timeout=server.drain_timeout, on_ready=on_ready
            )
        finally:
            await aclose()

    run_loop(serve())
    return 0
