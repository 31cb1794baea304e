"""`xetserve config`: print a template of the configuration file, check or show the settings."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from xetserve.config.load import Loaded, add_flags, load_all, read_secrets
from xetserve.config.schema import find_conflicts
from xetserve.config.template import (
    format_effective,
    iter_effective,
    make_env_template,
    make_markdown,
    make_toml_template,
)
from xetserve.errors import ConfigError


def add_flags_of_config(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands to the command's parser."""
    actions = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    template = actions.add_parser(
        "template",
        help="print a commented configuration file with every setting and its default",
        description="Print a commented configuration file with every setting and its default.",
    )
    form = template.add_mutually_exclusive_group()
    form.add_argument(
        "--env",
        action="store_const",
        const=make_env_template,
        dest="make",
        help="print an environment file for containers instead of TOML",
    )
    form.add_argument(
        "--markdown",
        action="store_const",
        const=make_markdown,
        dest="make",
        help="print Markdown tables with flags and variables, as in the documentation",
    )
    template.set_defaults(act=_print_template, make=make_toml_template)
    for name, act, text in (
        ("check", _check, "report all errors in the settings"),
        ("show", _show, "print the effective settings and the source of each"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument(
            "--env-file",
            metavar="FILE",
            help="read XETSERVE_ variables from this file instead of the environment",
        )
        action.add_argument("--json", action="store_true", help="print the result as JSON")
        add_flags(action)
        action.set_defaults(act=act)


def run_config(options: argparse.Namespace) -> int:
    """Run the subcommand; return the exit status: 0, or 1 if a setting is invalid.

    Raises:
        ConfigError: the environment file cannot be read.
    """
    return int(options.act(options))


def _print_template(options: argparse.Namespace) -> int:
    sys.stdout.write(options.make())
    return 0


def _check(options: argparse.Namespace) -> int:
    loaded = _load(options)
    errors = _find_errors(loaded)
    if options.json:
        sys.stdout.write(json.dumps({"config": loaded.path, "errors": errors}) + "\n")
    elif errors:
        sys.stderr.writelines(f"xetserve: {error}\n" for error in errors)
    else:
        num_set = sum(origin != "default" for origin in loaded.origins.values())
        sys.stdout.write(
            f"{loaded.path or 'no file'}: good; {num_set} settings are not the default\n"
        )
    return 1 if errors else 0


def _show(options: argparse.Namespace) -> int:
    loaded = _load(options)
    errors = _find_errors(loaded)
    sys.stderr.writelines(f"xetserve: {error}\n" for error in errors)
    if options.json:
        settings: dict[str, dict[str, Any]] = {}
        for section, setting, value, origin in iter_effective(loaded):
            # The TOML literals of our settings are valid JSON.
            settings.setdefault(section, {})[setting.name] = {
                "value": json.loads(value),
                "from": origin,
            }
        sys.stdout.write(json.dumps(settings) + "\n")
    else:
        sys.stdout.write(format_effective(loaded))
    return 1 if errors else 0


def _load(options: argparse.Namespace) -> Loaded:
    environ: Mapping[str, str] = os.environ
    if options.env_file is not None:
        environ = read_env_file(Path(options.env_file))
    return load_all(vars(options), environ, options.config)


def _find_errors(loaded: Loaded) -> list[str]:
    """Return all errors; conflicts between settings are found only if each setting is valid."""
    errors = loaded.errors or list(find_conflicts(loaded.config))
    # The file may exist only on the server's machine. If it is readable here, check it.
    if not errors and os.access(loaded.config.status.operator_token_file, os.R_OK):
        try:
            read_secrets(loaded.config)
        except ConfigError as exc:
            errors.append(str(exc))
    return errors


def read_env_file(path: Path) -> dict[str, str]:
    """Read NAME=value lines as `docker run --env-file` does.

    Quotes and $ have no special meaning, and # starts a comment only at the start of a line.

    Raises:
        ConfigError: the file cannot be read, or a line is not NAME=value.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read {path}: {reason}") from None
    environ = {}
    for number, line in enumerate(text.splitlines(), 1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        # Without "=", Docker takes the value from its own environment, which is unknown here.
        if not equals or not name or name != name.strip():
            raise ConfigError(f"{path}:{number} must be NAME=value")
        environ[name] = value
    return environ
