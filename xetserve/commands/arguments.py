"""The arguments of every command.

They are apart from the commands, so that `--help`, `--version` and a wrong flag are answered
without an import of the code that a command runs.
"""

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, NoReturn

from xetserve import __version__
from xetserve.config.load import add_flags, suggest
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS

DESCRIPTION: Final = """\
Serve the files of a Xet-backed Hub (Hugging Face) to plain HTTP clients. The server rebuilds each
file from the CAS, verifies every chunk and streams it in bounded memory.

  xetserve                              serve on port 8080
  curl --fail-with-body http://localhost:8080/OWNER/REPO/resolve/main/PATH -o FILE

A private file needs -H "Authorization: Bearer hf_...". The default command is `serve`.
`xetserve help` lists the chapters of the documentation.
"""
SERVE_HELP: Final = """\
Every setting can be given as a flag, as an environment variable (in brackets) or in the TOML file
that --config names. A flag overrides a variable, and a variable overrides the file. Upstream
connections use HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY and SSL_CERT_FILE.
"""
KINDS: Final = ("model", "dataset", "space", "kernel")  # types of repositories
TARGETS: Final = ("systemd", "docker", "podman")
DEFAULT_JOBS: Final = "4"
DEFAULT_LINES: Final = "100"
DEFAULT_TIMEOUT: Final = "30"
DEFAULT_PROBE_TIMEOUT: Final = "4"  # less than the 5 s that container engines are told to wait
DEPLOYED: Final = "xetserve"  # name of the deployed container
_CHOICE: Final = re.compile(r"invalid choice: '(?P<wrong>[^']*)' \(choose from (?P<known>.*)\)")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence and say which command lists the flags."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        # With abbreviations, --token, which does not exist, would be taken for --token-file.
        super().__init__(*args, **{"allow_abbrev": False, **keywords})
        self.hint = f"; see `{self.prog} --help`"
        self.set_defaults(parser=self)  # the parser of a subcommand comes last, and stays

    def error(self, message: str) -> NoReturn:
        """Print the error; exit with status 2."""
        if (match := _CHOICE.search(message)) is not None:
            message += suggest(match["wrong"], re.findall(r"[\w-]+", match["known"]))
        self.exit(2, f"xetserve: {message}{self.hint}\n")

    def refuse(self, arguments: list[str]) -> NoReturn:
        """Refuse arguments that the command does not have; exit with status 2."""
        flags = [each.partition("=")[0] for each in arguments if each.startswith("-")]
        if not flags:
            self.error(f"{arguments[0]!r} is one argument too many")
        # argparse has no public list of the flags of a parser.
        hint = suggest(flags[0], self._option_string_actions)
        self.error(f"unknown flag {flags[0]}{hint}")


def add_flags_of_pull(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xetserve pull`."""
    parser.add_argument("repo", metavar="OWNER/NAME[@REVISION]", help="the repository")
    parser.add_argument(
        "--type",
        choices=KINDS,
        help="default: that of the prefix datasets/, spaces/ or kernels/, else model",
    )
    for flag, text in (("include", "pull only matching paths"), ("exclude", "skip matching paths")):
        parser.add_argument(
            f"--{flag}",
            action="append",
            default=[],
            metavar="GLOB",
            help=f"{text}; may be repeated, * also matches /",
        )
    parser.add_argument(
        "--token-file", metavar="FILE", help="read the Hub token from this file; default: HF_TOKEN"
    )
    parser.add_argument(
        "--jobs",
        metavar="N",
        default=DEFAULT_JOBS,
        help=f"files read at a time; default: {DEFAULT_JOBS}",
    )
    parser.add_argument(
        "--force", action="store_true", help="read the files even if they seem not to fit"
    )
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    # The other settings are about clients, which a pull has none of.
    of_clients = ("datasets_server", "allow_anonymous", "hash_repo", "repo_management", "xet_mode",
                  "native_from", "offline")  # fmt: skip
    sections = ("hub", "memory", "cache", "log")
    add_flags(parser, sections, without=(*of_clients, "body_budget", "access_log"))


def add_flags_of_cache(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `xetserve cache`."""
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add_flags(action, ("cache", "log"), without=("access_log",))
        action.add_argument("--json", action="store_true", help="print a summary as JSON")
        action.set_defaults(action=name)
        return action

    add("stats", "print what the cache holds")
    verify = add("verify", "read all entries and remove damaged ones")
    verify.add_argument("--dry-run", action="store_true", help="remove nothing")
    collect = add("gc", "remove the least recently used files")
    collect.add_argument("--to", metavar="SIZE", help="until the cache has at most this size")
    collect.add_argument(
        "--older-than",
        metavar="AGE",
        help="only files not used for this time (12h, 30d)",
    )
    export = add("export", "write the cache as one stream, for another site")
    export.add_argument(
        "--repo",
        action="append",
        default=[],
        metavar="OWNER/NAME[@REVISION]",
        help="export only the data of this repository; may be repeated. Put datasets/, spaces/ or "
        "kernels/ in front of a dataset, space or kernel",
    )
    export.add_argument(
        "--with-unproven",
        action="store_true",
        help="also export entries that no file hash or xorb hash proves",
    )
    export.add_argument("file", metavar="FILE", help="file to write; - is the standard output")
    take_in = add("import", "add the files of an export to the cache, after a check")
    take_in.add_argument("file", metavar="FILE", help="file to read; - is the standard input")
    take_in.add_argument(
        "--with-answers",
        action="store_true",
        help="also import the Hub's answers, for offline use. They cannot be verified: use this "
        "only if you trust the source",
    )


def add_flags_of_config(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `xetserve config`."""
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    template = actions.add_parser(
        "template",
        help="print a commented configuration file with every setting and its default",
        description="Print a commented configuration file with every setting and its default.",
    )
    form = template.add_mutually_exclusive_group()
    for name, text in (
        ("env", "print an environment file for containers instead of TOML"),
        ("markdown", "print Markdown tables with flags and variables, as in the documentation"),
    ):
        form.add_argument(f"--{name}", action="store_const", const=name, dest="form", help=text)
    template.add_argument("--origin", action="store_true", help="settings of `xetserve origin`")
    template.set_defaults(action="template", form="toml")
    for name, text in (
        ("check", "report all errors in the settings"),
        ("show", "print the effective settings and the source of each"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument(
            "--env-file",
            metavar="FILE",
            help="read XETSERVE_ variables from this file instead of the environment",
        )
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        action.add_argument("--origin", action="store_true", help="settings of `xetserve origin`")
        add_flags(action)
        action.set_defaults(action=name)


def add_flags_of_doctor(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xetserve doctor`."""
    parser.add_argument(
        "--file",
        metavar="OWNER/REPO/PATH",
        help="file to download; default: a file of hash_repo or of the token's owner",
    )
    parser.add_argument(
        "--revision", default="main", help="branch, tag or commit of the file; default: main"
    )
    parser.add_argument("--type", default="model", choices=KINDS, help="default: model")
    parser.add_argument(
        "--token-file", metavar="FILE", help="read the Hub token from this file; default: HF_TOKEN"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    add_flags(parser)


def add_flags_of_deploy(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands of `xetserve deploy`."""
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in (
        ("plan", "print the steps of apply without running them"),
        ("apply", "install or upgrade, start and check the service; on failure, roll back"),
        ("status", "print the running version and whether the service is ready"),
        ("logs", "print the service's log"),
        ("rollback", "return to the previous version"),
        ("remove", "remove the service; keep configuration and cache unless --purge is given"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.set_defaults(action=name)
        action.add_argument(
            "--target",
            choices=TARGETS,
            help="default: the one that has the service, or the first one that this machine has",
        )
        engines = action.add_argument_group(
            "docker and podman", "An upgrade keeps what was given before."
        )
        engines.add_argument("--name", help=f"name of the container; default: {DEPLOYED}")
        engines.add_argument(
            "--config-dir",
            metavar="DIR",
            help="configuration folder; at first /etc/xetserve",
        )
        engines.add_argument(
            "--publish",
            metavar="[ADDRESS:]PORT",
            help="address and port on this machine for clients; at first 8080",
        )
        if name in ("plan", "apply"):
            _add_flags_of_certificates(action)
        if name in ("plan", "apply", "rollback"):
            action.add_argument(
                "--timeout",
                metavar="SECONDS",
                default=DEFAULT_TIMEOUT,
                help=f"time limit for a start; default: {DEFAULT_TIMEOUT}",
            )
        if name in ("plan", "apply"):
            action.add_argument(
                "--from",
                dest="source",
                metavar="PATH",
                help="wheel, sdist or source folder to install (docker, podman: a folder); "
                "default: the clone that this runs from, or the deployed version",
            )
            action.add_argument(
                "--python",
                default=sys.executable,
                help="systemd: interpreter for the environment; default: this one",
            )
            engines.add_argument("--image", help="use this image instead of building one")
            engines.add_argument(
                "--rebuild",
                action="store_true",
                help="build the image without the builder's cache, or pull it, also if nothing "
                "has changed",
            )
            engines.add_argument(
                "--network",
                help="network of the container; host publishes no port; "
                "at first default, the engine's own",
            )
            engines.add_argument("--memory", help="memory limit; at first 512m")
            engines.add_argument(
                "--build-arg",
                action="append",
                metavar="NAME=VALUE",
                help="argument for the image build; may be repeated",
            )
        if name == "remove":
            action.add_argument(
                "--purge", action="store_true", help="also remove configuration and cache"
            )
        if name == "logs":
            action.add_argument("--follow", action="store_true", help="wait for new lines")
            action.add_argument(
                "--lines",
                metavar="N",
                default=DEFAULT_LINES,
                help=f"print the last N; default: {DEFAULT_LINES}",
            )
        if name != "logs":
            action.add_argument("--json", action="store_true", help="print the result as JSON")


def _add_flags_of_certificates(action: argparse.ArgumentParser) -> None:
    group = action.add_argument_group(
        "HTTPS", "A pair of files, or with systemd a certificate that certbot gets and renews."
    )
    group.add_argument(
        "--tls-cert", metavar="FILE", help="PEM file with the certificate and its chain"
    )
    group.add_argument("--tls-key", metavar="FILE", help="PEM file with its key")
    group.add_argument(
        "--certbot",
        metavar="EMAIL",
        help="get a certificate with certbot; agrees to the terms of the ACME server",
    )
    group.add_argument(
        "--domain",
        action="append",
        metavar="NAME",
        help="name for the certificate, which leads to port 80 of this machine; may be repeated",
    )
    group.add_argument(
        "--certbot-server",
        metavar="URL",
        help="directory of the ACME server; default: that of Let's Encrypt",
    )


def add_flags_of_origin(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xetserve origin`."""
    parser.add_argument(
        "dir",
        nargs="?",
        metavar="DIR",
        help="folder for repositories, xorbs and shards [XETSERVE_ORIGIN_DIR]",
    )
    parser.add_argument(
        "--import",
        dest="more_imports",
        action="append",
        default=[],
        metavar="OWNER/NAME=FOLDER",
        help="import a local folder as a repository before serving; may be repeated. Put "
        "datasets/, spaces/ or kernels/ in front of a dataset, space or kernel",
    )
    parser.add_argument(
        "--token",
        dest="more_tokens",
        action="append",
        default=[],
        metavar="TOKEN=USER",
        help="accept this token; other users of the machine can see it, so put secret ones into "
        "--tokens-file",
    )
    parser.add_argument("--test-controls", action="store_true", help=argparse.SUPPRESS)
    # The origin keeps its index of repositories in memory, so it runs in one process.
    add_flags(parser, tuple(ORIGIN_SECTIONS), ("workers",), ORIGIN_SECTIONS)


def add_flags_of_demo(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xetserve demo`."""
    parser.add_argument("--once", action="store_true", help="stop after the download")
    names = {setting.name for setting in dataclasses.fields(SECTIONS["server"])}
    add_flags(parser, ("server",), without=[*(names - {"host", "port"})])


def add_flags_of_probe(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `xetserve probe`."""
    parser.add_argument(
        "--ready",
        action="store_true",
        help="ask whether the server takes new clients (/ready) instead of whether it runs",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        default=DEFAULT_PROBE_TIMEOUT,
        help=f"time limit for an answer; default: {DEFAULT_PROBE_TIMEOUT}",
    )
    add_flags(parser)


def add_flags_of_help(parser: argparse.ArgumentParser) -> None:
    """Add the argument of `xetserve help`."""
    parser.add_argument("topic", nargs="?", metavar="TOPIC", help="name of a chapter")


class _Command(NamedTuple):
    summary: str
    description: str
    add_flags: Callable[[argparse.ArgumentParser], None]


COMMANDS: Final = {
    "serve": _Command("serve files (the default)", SERVE_HELP, add_flags),
    "pull": _Command(
        "fill the disk cache with a repository",
        "Download the files of a repository from the Hub into the disk cache (--cache-dir) and "
        "verify them. Data that is already in the cache is not fetched again. The command may run "
        "beside servers that use the same folder.",
        add_flags_of_pull,
    ),
    "cache": _Command(
        "show, verify, shrink, export or import the disk cache",
        "Manage the disk cache (--cache-dir). All commands may run while servers use the cache.",
        add_flags_of_cache,
    ),
    "config": _Command(
        "print a template of the configuration file, check or show the settings",
        "Print, check or show the settings.",
        add_flags_of_config,
    ),
    "doctor": _Command(
        "check whether a server with these settings would work on this machine",
        "Check everything that a download needs: settings, limits, cache, proxy, DNS, Hub, clock, "
        "token, CAS and data. Each line reports ok, warn or fail, and what to do. The exit status "
        "is 1 if a check fails.",
        add_flags_of_doctor,
    ),
    "probe": _Command(
        "ask a running server on this machine whether it works, for health checks",
        "Ask the server on this machine for /health, or for /ready with --ready, over what the "
        "settings say that it listens on: with TLS (the certificate is not verified), a PROXY "
        "header, or over the Unix socket. In a container the flags of process 1 count, too. The "
        "exit status is 0 if the answer is 200, else 1.",
        add_flags_of_probe,
    ),
    "deploy": _Command(
        "install, upgrade, roll back or remove the service on this machine",
        "Manage the service on this machine; systemd, Docker or Podman runs it.",
        add_flags_of_deploy,
    ),
    "origin": _Command(
        "run a small Hub and CAS that store repositories in a folder",
        "Run a small Hub and CAS that store repositories in DIR. The official clients can upload "
        "to it (HF_ENDPOINT=http://HOST:PORT).",
        add_flags_of_origin,
    ),
    "demo": _Command(
        "show a download: a generated repository, an origin and the server",
        "Generate a repository, serve it from an origin, start xetserve in front of it and "
        "download a file. Then keep serving, so that you can try it with curl.",
        add_flags_of_demo,
    ),
    "help": _Command(
        "list the chapters of the documentation, or print one",
        "List the chapters of the documentation, or print one. On a terminal the text goes "
        "through PAGER (or less).",
        add_flags_of_help,
    ),
}
_ROOT_FLAGS: Final = ("-h", "--help", "--version")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments; without a command they are those of `serve`.

    Raises:
        SystemExit: they are wrong, or ask for help.
    """
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _ROOT_FLAGS):
        arguments = ["serve", *arguments]
    parser = Parser(
        prog="xetserve",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"xetserve {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        wraps = command.description is not SERVE_HELP
        each = commands.add_parser(
            name,
            help=command.summary,
            description=command.description,
            formatter_class=(
                argparse.HelpFormatter if wraps else argparse.RawDescriptionHelpFormatter
            ),
        )
        if name == arguments[0]:
            command.add_flags(each)
        each.set_defaults(command=name)
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        options.parser.refuse(unknown)
    return options
