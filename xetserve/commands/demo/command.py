"""`xetserve demo`: run a complete example on this machine."""

import argparse
import sys

from xetserve.commands.demo.site import DemoFailed
from xetserve.commands.demo.site import run_demo as run
from xetserve.config.load import add_flags
from xetserve.config.parsers import OFF
from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.ops.lifecycle import run_loop


def add_flags_of_demo(parser: argparse.ArgumentParser) -> None:
    """Add the arguments to the command's parser."""
    parser.add_argument("--once", action="store_true", help="stop after the download")
    add_flags(parser, ("server", "log"), without=("workers", "idle_exit"))


def run_demo(options: argparse.Namespace, config: Config) -> int:
    """Run the demo; return the exit status."""
    if config.server.port == OFF:
        raise ConfigError("the demo needs a port: set --port to a number")
    host = config.server.host if options.host else "127.0.0.1"
    demo = run(host, config.server.port, once=options.once, write=_print)
    try:
        run_loop(demo)
    except DemoFailed as exc:
        sys.stderr.write(f"xetserve demo: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
