"""Load settings from flags, environment, credentials and a TOML file, in this order of priority.

All errors are collected. A server start reports the first one, `xetserve config check` all.
"""

import argparse
import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from xetserve.config.credentials import find_credentials, read_credential, read_secret_file
from xetserve.config.parsers import parse_bool, parse_file, parse_password, parse_tokens
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS, Config, Sections
from xetserve.config.service_links import find_service_links
from xetserve.config.text import format_value
from xetserve.errors import ConfigError

PREFIX: Final = "XETSERVE_"
CONFIG_VARIABLE: Final = "XETSERVE_CONFIG"
DEFAULT: Final = "default"
# One environment may be for a server and an origin: neither refuses what the other one needs.
_ALL_SETTINGS: Final = [
    setting
    for section in (*SECTIONS.values(), *ORIGIN_SECTIONS.values())
    for setting in dataclasses.fields(section)
]


@dataclass(slots=True)
class Loaded:
    """Loaded settings with their sources.

    schema: the sections that were loaded.
    origins: setting -> source of its value: DEFAULT, a flag, a variable, a credential or the file.
    errors: messages; a setting with an error has its default in config.
    """

    config: Config = field(default_factory=Config)
    path: str | None = None
    schema: Sections = field(default_factory=lambda: SECTIONS)
    origins: dict[str, str] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def add_flags(
    parser: argparse.ArgumentParser,
    sections: Sequence[str] = tuple(SECTIONS),
    without: Sequence[str] = (),
    schema: Sections = SECTIONS,
) -> None:
    """Add --config and a flag for every setting of the sections, except those in without."""
    parser.add_argument("--config", metavar="FILE", help=f"TOML file [{CONFIG_VARIABLE}]")
    for name in sections:
        group = parser.add_argument_group(f"[{name}]")
        for setting in dataclasses.fields(schema[name]):
            meta = setting.metadata
            if setting.name in without or not meta["has_flag"]:
                continue
            is_switch = meta["parse"] is parse_bool
            group.add_argument(
                flag_of(setting.name),
                dest=setting.name,
                metavar=meta["metavar"],
                nargs="?" if is_switch else None,
                const="true" if is_switch else None,
                help=f"{meta['help']} [{', '.join(meta['variables'])}; "
                f"default: {format_value(setting) or 'not set'}]",
            )


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return "--" + name.replace("_", "-")


def load_config(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    config_file: str | None = None,
    schema: Sections = SECTIONS,
) -> Config:
    """Load the settings from all sources.

    Args:
        flags: setting name -> value of the flag; None: the flag was not given.
        config_file: path of the TOML file; None: use XETSERVE_CONFIG.
        schema: the sections that the file may have; the others keep their defaults.

    Raises:
        ConfigError: a key is unknown or a value is invalid.
    """
    loaded = load_all(flags, environ, config_file, schema)
    if loaded.errors:
        raise ConfigError(loaded.errors[0])
    return loaded.config


def find_file(config_file: str | None, environ: Mapping[str, str]) -> str | None:
    """Return the path of the TOML file that a flag or XETSERVE_CONFIG names."""
    return config_file or environ.get(CONFIG_VARIABLE) or None


def load_all(
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    config_file: str | None = None,
    schema: Sections = SECTIONS,
) -> Loaded:
    """Load the settings as load_config does, but collect all errors in the result."""
    loaded = Loaded(path=find_file(config_file, environ), schema=schema)
    tables: dict[str, Any] = {}
    if loaded.path:
        try:
            tables = _read_file(loaded.path)
        except ConfigError as exc:
            loaded.errors.append(str(exc))
    links = find_service_links(environ)
    environ = {name: value for name, value in environ.items() if name not in links}
    _check_environment(environ, loaded)
    credentials: Mapping[str, Path] = {}
    known = {setting.name for setting in _ALL_SETTINGS}
    try:
        credentials = find_credentials(environ, known)
    except ConfigError as exc:
        loaded.errors.append(str(exc))
    loaded.errors += [
        f"unknown credential {file.name}{suggest(name, known)}"
        for name, file in credentials.items()
        if name not in known
    ]
    sections = {}
    for name, section in schema.items():
        table = tables.pop(name, {})
        if not isinstance(table, dict):
            loaded.errors.append(f"{loaded.path}: [{name}] must be a table")
            table = {}
        sections[name] = _load_section(section, name, table, flags, environ, credentials, loaded)
    loaded.errors += [
        f"{loaded.path}: unknown section or key {key!r}{suggest(key, schema)}" for key in tables
    ]
    loaded.config = Config(**sections)
    return loaded


def _read_file(path: str) -> dict[str, Any]:
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from None
    except (ValueError, RecursionError) as exc:  # TOML, UTF-8, very long numbers, deep nesting
        raise ConfigError(f"{path} is not TOML: {exc}") from None


def _check_environment(environ: Mapping[str, str], loaded: Loaded) -> None:
    known = {CONFIG_VARIABLE}
    for setting in _ALL_SETTINGS:
        known.update(setting.metadata["variables"])
    for name in environ:
        if name.startswith(PREFIX) and name not in known:
            loaded.errors.append(f"unknown environment variable {name}{suggest(name, known)}")


def _load_section(
    section: type,
    name: str,
    table: dict[str, Any],
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    credentials: Mapping[str, Path],
    loaded: Loaded,
) -> Any:
    values: dict[str, Any] = {}
    settings = {setting.name: setting for setting in dataclasses.fields(section)}
    for setting in settings.values():
        loaded.origins[setting.name] = DEFAULT
        try:
            found = _find_value(setting, name, table, flags, environ, credentials, loaded.path)
        except ConfigError as exc:
            loaded.errors.append(str(exc))
            continue
        if found is None:
            continue
        source, text = found
        try:
            values[setting.name] = setting.metadata["parse"](text)
            loaded.origins[setting.name] = source
        except ValueError as exc:
            shown = re.sub(r"//[^/\s]*@", "//***@", text)  # a URL may hold a password
            found_text = "" if setting.metadata["is_secret"] else f", not {shown!r}"
            loaded.errors.append(f"{source} {exc}{found_text}")
    for key in table:
        if key not in settings:
            hint = suggest(key, settings) or _find_section(key, loaded.schema)
            loaded.errors.append(f"{loaded.path}: unknown key {key!r} in [{name}]{hint}")
    return section(**values)


def _find_value(
    setting: dataclasses.Field[Any],
    section: str,
    table: dict[str, Any],
    flags: Mapping[str, str | None],
    environ: Mapping[str, str],
    credentials: Mapping[str, Path],
    path: str | None,
) -> tuple[str, str] | None:
    """Return (source, text) of a setting; None: no source sets it.

    Raises:
        ConfigError: the file has a list or table as its value.
    """
    flag = flags.get(setting.name)
    if flag is not None:
        return flag_of(setting.name), flag
    for variable in setting.metadata["variables"]:
        if environ.get(variable, "") != "":
            return variable, environ[variable]
    if setting.name in credentials:
        file = credentials[setting.name]
        # For a setting that names a file to be read later, the value is the credential's path.
        is_file = setting.metadata["parse"] is parse_file
        return f"credential {file.name}", str(file) if is_file else read_credential(file)
    if setting.name in table:
        value = table[setting.name]
        where = f"{path}: {section}.{setting.name}"
        if isinstance(value, bool):
            return where, "true" if value else "false"
        if isinstance(value, str | int | float):
            return where, str(value)
        raise ConfigError(f"{where} must be a single value")
    return None


def suggest(wrong: str, known: Iterable[str]) -> str:
    """Return "; did you mean ...?" with the closest known word; "" if none is close."""
    close = get_close_matches(wrong, list(known), n=1, cutoff=0.7)
    return f"; did you mean {close[0]!r}?" if close else ""


def _find_section(key: str, schema: Sections) -> str:
    """Return "; it belongs in [SECTION]" for a known key; "" for an unknown one."""
    for name, section in schema.items():
        if key in {setting.name for setting in dataclasses.fields(section)}:
            return f"; it belongs in [{name}]"
    return ""


def read_secrets(config: Config) -> Config:
    """Return the settings with the secrets read from the files that they name.

    Raises:
        ConfigError: a file cannot be read, or does not hold a valid secret.
    """
    status = config.status
    if not status.operator_token_file:
        return config
    if status.operator_token:
        raise ConfigError("operator_token and operator_token_file exclude each other")
    token = _read_secret(status.operator_token_file, parse_password)
    return dataclasses.replace(config, status=dataclasses.replace(status, operator_token=token))


def read_tokens(config: Config, more: Sequence[str] = ()) -> Config:
    """Return the settings of an origin with the tokens of the file that they name, and more.

    Args:
        more: values of --token.

    Raises:
        ConfigError: the file cannot be read, a token has no user, or one has two.
    """
    origin = config.origin
    found = [origin.tokens] if origin.tokens else []
    if origin.tokens_file:
        found.append(_read_secret(origin.tokens_file, parse_tokens))
    try:
        found += map(parse_tokens, more)
    except ValueError:
        raise ConfigError("--token must be TOKEN=USER") from None
    try:
        tokens = parse_tokens("\n".join(found))
    except ValueError as exc:
        raise ConfigError(f"--token, tokens and tokens_file {exc}") from None
    return dataclasses.replace(config, origin=dataclasses.replace(origin, tokens=tokens))


def _read_secret(file: str, parse: Callable[[str], str]) -> str:
    try:
        secret = parse(read_secret_file(Path(file)))
    except OSError as exc:
        raise ConfigError(f"cannot read {file}: {exc.strerror}") from None
    except ValueError as exc:
        raise ConfigError(f"{file} {exc}") from None
    if not secret:
        raise ConfigError(f"{file} is empty")
    return secret
