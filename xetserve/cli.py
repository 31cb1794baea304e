"""The command line: parse the arguments, import the command that they name, and run it.

Modules are imported inside functions: `--help` and `--version` do not need the code of a command,
and Ctrl-C during an import must not print a traceback.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from xetserve.commands.output import OutputFailed, report_os_error, write_output
from xetserve.errors import ConfigError

INTERRUPTED = 130  # exit status after Ctrl-C, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 1 for a failure, 2 for an invalid setting."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            with _dying_of_interrupts():
                run = _prepare(arguments)
            status = run()
        except SystemExit as exc:  # --help, --version, an error in the arguments
            status = int(exc.code or 0)
        if sys.stdout is not None:
            write_output()
        return status
    except ConfigError as exc:
        from xetserve.ops.logs import write_error

        write_error(str(exc))
        return 2
    except OutputFailed as exc:
        sys.stderr.write(f"xetserve: {exc}\n" if str(exc) else "")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as exc:
        report_os_error(exc)
        return 1


@contextmanager
def _dying_of_interrupts() -> Iterator[None]:
    """Make SIGINT end the process while the block runs, without an exception in an import."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield  # SIGINT is ignored in a background job, or handled by who calls us
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _prepare(arguments: list[str]) -> Callable[[], int]:
    """Return a function that runs the command.

    Raises:
        SystemExit: the arguments are wrong, or ask for help.
        ConfigError: a setting is invalid.
    """
    from xetserve.commands.arguments import parse_arguments

    options = parse_arguments(arguments)
    # These commands use no settings, or tolerate errors in them.
    match options.command:
        case "config":
            from xetserve.commands.config import run_config

            return lambda: run_config(options)
        case "deploy":
            from xetserve.commands.deploy import run_deploy

            return lambda: run_deploy(options)
        case "help":
            from xetserve.commands.help import run_help

            return lambda: run_help(options)
        case "probe":
            from xetserve.commands.probe import run_probe

            return lambda: run_probe(options)
    from xetserve.config.load import load_config
    from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS
    from xetserve.ops.logs import set_up_logging

    schema = ORIGIN_SECTIONS if options.command == "origin" else SECTIONS
    try:
        config = load_config(vars(options), os.environ, options.config, schema)
    except ConfigError as exc:
        hint = options.parser.hint if str(exc).startswith("--") else ""
        raise ConfigError(f"{exc}{hint}") from None
    set_up_logging(config.log.log_level, config.log.log_format)
    match options.command:
        case "cache":
            from xetserve.commands.cache import run_cache as run
        case "demo":
            from xetserve.commands.demo.command import run_demo as run
        case "doctor":
            from xetserve.commands.doctor.command import run_doctor as run
        case "origin":
            from xetserve.commands.origin import run_origin as run
        case "pull":
            from xetserve.commands.pull.command import run_pull as run
        case _:
            from xetserve.commands.serve.command import run_serve as run
    return lambda: run(options, config)
