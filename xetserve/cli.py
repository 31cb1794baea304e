"""The roof: read the arguments, and run the command that they name."""

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
Serve the files of a Xet-backed Hub (Hugging Face) to plain HTTP clients: rebuilt from the CAS,
verified chunk by chunk, streamed in bounded memory.

  xetserve                              serve on port 8080
  curl -f http://localhost:8080/OWNER/REPO/resolve/main/PATH -o FILE

A private file needs -H "Authorization: Bearer hf_...". Without a command, `serve` is meant.
`xetserve help` lists the chapters of the documentation.
"""
SETTINGS_HELP = """\
Every setting can be given as a flag, as an environment variable (in brackets) or in the TOML file
that --config names; the first one found in this order counts. HTTPS_PROXY, HTTP_PROXY, NO_PROXY and
SSL_CERT_FILE are honoured for upstream connections.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; gives the exit status: 0, 1 for a failure, 2 for a bad setting."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ROOT_FLAGS):
        arguments.insert(0, "serve")
    options = _make_parser().parse_args(arguments)
    try:
        if options.run in (run_config, run_deploy, run_help):  # they need no settings of ours
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
        description="Read the files of a repository from the Hub into the disk cache "
        "(--cache-dir), verified. What is there is not fetched again. It may run beside servers "
        "that use the same folder.",
    )
    add_flags_of_pull(pull)
    pull.set_defaults(run=run_pull)

    cache = commands.add_parser(
        "cache",
        help="look at the disk cache, check it, make room in it, carry it elsewhere",
        description="Look after the disk cache (--cache-dir). All of it may be done while servers "
        "use it.",
    )
    add_flags_of_cache(cache)
    cache.set_defaults(run=run_cache)

    config = commands.add_parser(
        "config",
        help="print a template of the configuration file, check settings, show those that count",
        description="Look after the settings.",
    )
    add_flags_of_config(config)
    config.set_defaults(run=run_config)

    doctor = commands.add_parser(
        "doctor",
        help="see whether a server with these settings would work here",
        description="Look at everything between here and a file: settings, limits, cache, proxy, "
        "DNS, Hub, clock, token, CAS, data. Each line is ok, warn or fail, with what to do; the "
        "status is 1 if something fails.",
    )
    add_flags_of_doctor(doctor)
    doctor.set_defaults(run=run_doctor)

    deploy = commands.add_parser(
        "deploy",
        help="install, upgrade, roll back or remove the service on this machine",
        description="Look after the service on this machine, run by systemd, Docker or Podman.",
    )
    add_flags_of_deploy(deploy)
    deploy.set_defaults(run=run_deploy)

    origin = commands.add_parser(
        "origin",
        help="run a small Hub and CAS on a folder",
        description="Run a small Hub and CAS on a folder. It takes uploads from the official "
        "clients (HF_ENDPOINT=http://HOST:PORT) and keeps what they send in DIR.",
    )
    add_flags_of_origin(origin)
    origin.set_defaults(run=run_origin)

    demo = commands.add_parser(
        "demo",
        help="see it work: a generated repository, an origin, the server, one download",
        description="Generate a repository, serve it from an origin, put xetserve in front of it "
        "and download a file. Then keep serving, for trying it with curl.",
    )
    add_flags_of_demo(demo)
    demo.set_defaults(run=run_demo)

    chapters = commands.add_parser(
        "help",
        help="list the chapters of the documentation, or print one",
        description="List the chapters of the documentation, or print one: through PAGER (or less) "
        "on a terminal, else as it is.",
    )
    add_flags_of_help(chapters)
    chapters.set_defaults(run=run_help)
    return parser
