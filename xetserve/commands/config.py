"""`xetserve config`: print a template of the configuration file, check or show the settings."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from xetserve.commands.output import write_output
from xetserve.config.credentials import VARIABLE as CREDENTIALS
from xetserve.config.load import Loaded, load_all, read_secrets, read_tokens
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS, Sections, find_conflicts
from xetserve.config.template import (
    format_effective,
    iter_effective,
    make_env_template,
    make_markdown,
    make_toml_template,
)
from xetserve.errors import ConfigError
from xetserve.net.tls import make_server_context


def run_config(options: argparse.Namespace) -> int:
    """Run the subcommand; return the exit status: 0, or 1 if a setting is invalid.

    Raises:
        ConfigError: the environment file cannot be read.
    """
    return _ACTIONS[options.action](options)


def _print_template(options: argparse.Namespace) -> int:
    write_output(_TEMPLATES[options.form](_schema_of(options)))
    return 0


def _check(options: argparse.Namespace) -> int:
    loaded = _load(options)
    errors = _find_errors(loaded)
    if options.json:
        write_output(json.dumps({"config": loaded.path, "errors": errors}) + "\n")
    elif errors:
        sys.stderr.writelines(f"xetserve: {error}\n" for error in errors)
    else:
        num_changed = sum(
            getattr(getattr(loaded.config, section), setting.name) != setting.default
            for section, setting, _, _ in iter_effective(loaded)
        )
        count = "1 setting differs" if num_changed == 1 else f"{num_changed} settings differ"
        write_output(f"{loaded.path or 'no file'}: good; {count} from the default\n")
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
        write_output(json.dumps(settings) + "\n")
    else:
        write_output(format_effective(loaded))
    return 1 if errors else 0


_TEMPLATES: Final = {
    "toml": make_toml_template,
    "env": make_env_template,
    "markdown": make_markdown,
}
_ACTIONS: Final = {"template": _print_template, "check": _check, "show": _show}


def _load(options: argparse.Namespace) -> Loaded:
    environ: Mapping[str, str] = os.environ
    if options.env_file is not None:
        environ = read_env_file(Path(options.env_file))
        if CREDENTIALS in os.environ:
            environ = {CREDENTIALS: os.environ[CREDENTIALS], **environ}
    return load_all(vars(options), environ, options.config, _schema_of(options))


def _schema_of(options: argparse.Namespace) -> Sections:
    return ORIGIN_SECTIONS if options.origin else SECTIONS


def _find_errors(loaded: Loaded) -> list[str]:
    """Return all errors; conflicts between settings are found only if each setting is valid."""
    errors = loaded.errors or list(find_conflicts(loaded.config))
    # A file may exist only on the server's machine. If it is readable here, check it.
    tls = loaded.config.tls
    if not errors and all(os.access(file, os.R_OK) for file in (tls.tls_cert, tls.tls_key)):
        try:
            make_server_context(Path(tls.tls_cert), Path(tls.tls_key))
        except ConfigError as exc:
            errors.append(str(exc))
    files = (loaded.config.status.operator_token_file, loaded.config.origin.tokens_file)
    if not errors and any(os.access(file, os.R_OK) for file in files):
        try:
            read_tokens(read_secrets(loaded.config))
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
