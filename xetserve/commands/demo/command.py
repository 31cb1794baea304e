"""`xetserve demo`: run a complete example on this machine."""

import argparse
import sys

from xetserve.commands.demo.site import DemoFailed, Screen
from xetserve.commands.demo.site import run_demo as run
from xetserve.commands.output import write_output
from xetserve.config.parsers import OFF
from xetserve.config.schema import Config
from xetserve.errors import ConfigError
from xetserve.ops.lifecycle import run_loop


def run_demo(options: argparse.Namespace, config: Config) -> int:
    """Run the demo; return the exit status."""
    if config.server.port == OFF:
        raise ConfigError("the demo needs a port: set --port to a number")
    screen = Screen(write_output, is_terminal=sys.stdout is not None and sys.stdout.isatty())
    host = config.server.host if options.host else "127.0.0.1"
    demo = run(host, config.server.port, once=options.once, screen=screen)
    try:
        run_loop(demo)
    except DemoFailed as exc:
        sys.stderr.write(f"xetserve demo: {exc}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
