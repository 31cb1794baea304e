"""The command line: parse the arguments and run the command that they name."""

import argparse
import os
import sys
from collections.abc import Sequence

from xetserve import __version__
from xetserve.commands.cache import add_flags_of_cache, run_cache
from xetserve.commands.config import add_flags_of_config, run_config
from xetserve.commands.demo.command import add_flags_of_demo, run_demo
from xetserve.commands.deploy import add_flags_of_deploy, run_deploy
from xetserve.commands.doctor.command import add_flags_of_doctor, run_doctor
from xetserve.commands.help import add_flags_of_help, run_help
from xetserve.commands.origin import add_flags_of_origin, run_origin
from xetserve.commands.pull.command import add_flags_of_pull, run_pull
from xetserve.commands.serve.command import run_serve
from xetserve.config.load import add_flags, load_config
from xetserve.errors import ConfigError
from xetserve.ops.logs import set_up_logging

DESCRIPTION = """\
Serve the files of a Xet-backed Hub (Hugging Face) to plain HTTP clients. The server rebuilds each
file from the CAS, verifies every chunk and streams it in bounded memory.

  xetserve                              serve on port 8080
  curl -f http://localhost:8080/OWNER/REPO/resolve/main/PATH -o FILE

A private file needs -H "Authorization: Bearer hf_...". The default command is `serve`.
`xetserve help` lists the chapters of the documentation.
"""
SETTINGS_HELP = """\
Every setting can be given as a flag, as an environment variable (in brackets) or in the TOML file
that --config names. A flag overrides a variable, and a variable overrides the file. Upstream
connections use HTTPS_PROXY, HTTP_PROXY, NO_PROXY and SSL_CERT_FILE.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return the exit status: 0, 1 for a failure, 2 for an invalid setting."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ROOT_FLAGS):
        arguments.insert(0, "serve")
    options = _make_parser().parse_args(arguments)
    try:
        if options.run in (run_config, run_deploy, run_help):  # they do not use the settings
            return int(options.run(options))
        config = load_config(vars(options), os.environ, options.config)
        set_up_logging(config.log.log_level)
        return int(options.run(options, config))
    except ConfigError as exc:
        sys.stderr.write(f"xetserve: {exc}\n")
        return 2


_ROOT_FLAGS = ("-h", "--help", "--version")


def _make_parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="xetserve", description=DESCRIPTION, formatter_class=layout
    )
    parser.add_argument("--version", action="version", version=f"xetserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    serve = commands.add_parser(
        "serve", help="serve files (the default)", description=SETTINGS_HELP, formatter_class=layout
    )
    add_flags(serve)
    serve.set_defaults(run=run_serve)

    pull = commands.add_parser(
        "pull",
        help="fill the disk cache with a repository",
        description="Download the files of a repository from the Hub into the disk cache "
        "(--cache-dir) and verify them. Data that is already in the cache is not fetched again. "
        "The command may run beside servers that use the same folder.",
    )
    add_flags_of_pull(pull)
    pull.set_defaults(run=run_pull)

    cache = commands.add_parser(
        "cache",
        help="show, verify, shrink, export or import the disk cache",
        description="Manage the disk cache (--cache-dir). All commands may run while servers use "
        "the cache.",
    )
    add_flags_of_cache(cache)
    cache.set_defaults(run=run_cache)

    config = commands.add_parser(
        "config",
        help="print a template of the configuration file, check or show the settings",
        description="Print, check or show the settings.",
    )
    add_flags_of_config(config)
    config.set_defaults(run=run_config)

    doctor = commands.add_parser(
        "doctor",
        help="check whether a server with these settings would work on this machine",
        description="Check everything that a download needs: settings, limits, cache, proxy, DNS, "
        "Hub, clock, token, CAS and data. Each line reports ok, warn or fail, and what to do. The "
        "exit status is 1 if a check fails.",
    )
    add_flags_of_doctor(doctor)
    doctor.set_defaults(run=run_doctor)

    deploy = commands.add_parser(
        "deploy",
        help="install, upgrade, roll back or remove the service on this machine",
        description="Manage the service on this machine; systemd, Docker or Podman runs it.",
    )
    add_flags_of_deploy(deploy)
    deploy.set_defaults(run=run_deploy)

    origin = commands.add_parser(
        "origin",
        help="run a small Hub and CAS that store repositories in a folder",
        description="Run a small Hub and CAS that store repositories in DIR. The official clients "
        "can upload to it (HF_ENDPOINT=http://HOST:PORT).",
    )
    add_flags_of_origin(origin)
    origin.set_defaults(run=run_origin)

    demo = commands.add_parser(
        "demo",
        help="show a download: a generated repository, an origin and the server",
        description="Generate a repository, serve it from an origin, start xetserve in front of it "
        "and download a file. Then keep serving, so that you can try it with curl.",
    )
    add_flags_of_demo(demo)
    demo.set_defaults(run=run_demo)

    chapters = commands.add_parser(
        "help",
        help="list the chapters of the documentation, or print one",
        description="List the chapters of the documentation, or print one. On a terminal the text "
        "goes through PAGER (or less).",
    )
    add_flags_of_help(chapters)
    chapters.set_defaults(run=run_help)
    return parser
