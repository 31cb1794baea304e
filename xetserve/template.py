"""Settings as text: the commented template of a configuration file, as TOML or as environment, and those that count.

All of it is made from the declarations in config.py, so that it says what is.
"""

import dataclasses
import json
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from xetserve import __version__
from xetserve.config import SECTIONS
from xetserve.sources import DEFAULT, Loaded, flag_of
from xetserve.values import parse_size

WIDTH: Final = 110
MASK: Final = "***"
_UNITS: Final = (("TiB", 2**40), ("TB", 10**12), ("GiB", 2**30), ("GB", 10**9), ("MiB", 2**20), ("KiB", 2**10))  # fmt: skip

_TOML_HEAD: Final = """\
# Settings of xetserve {version}. What stands behind a # without a space is a default: take the # away to change it.
# Flags and environment variables win over this file. Sizes: 1048576, 128MiB, 50GB. Times are in seconds.
# After a change: xetserve config check --config FILE
"""
_ENV_HEAD: Final = """\
# Environment of xetserve {version}, for `docker run --env-file FILE` and EnvironmentFile= of systemd.
# One NAME=value a line, without quotes or spaces around; all behind the = is the value. Flags win over it,
# and it wins over the TOML file. After a change: xetserve config check --env-file FILE
"""


def make_toml_template() -> str:
    """Give a TOML file with every setting, commented out, with its default."""
    lines = [_TOML_HEAD.format(version=__version__)]
    for name, section in SECTIONS.items():
        lines.append(f"[{name}]")
        for setting in dataclasses.fields(section):
            lines += [*_describe(setting), f"#{setting.name} = {format_toml(setting)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def make_env_template() -> str:
    """Give an environment file with every setting, commented out, with its default."""
    lines = [_ENV_HEAD.format(version=__version__)]
    for section in SECTIONS.values():
        for setting in dataclasses.fields(section):
            variable = setting.metadata["variables"][0]
            lines += [*_describe(setting), f"#{variable}={format_value(setting)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def format_value(setting: dataclasses.Field[Any], value: Any = None) -> str:
    """Give the text that a value is read from; value None: the default."""
    value = setting.default if value is None else value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if setting.metadata["metavar"] == "SIZE":
        return _format_size(value)
    return (
        "auto"
        if setting.metadata["metavar"] == "N" and setting.name == "workers" and not value
        else str(value)
    )


def format_toml(setting: dataclasses.Field[Any], value: Any = None) -> str:
    """Give a value as TOML; value None: the default."""
    text = format_value(setting, value)
    value = setting.default if value is None else value
    is_bare = isinstance(value, bool) or (
        isinstance(value, int | float) and text.replace(".", "").isdigit()
    )
    # A basic string of TOML is one of JSON, but for DEL.
    return text if is_bare else json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def iter_effective(loaded: Loaded) -> Iterator[tuple[str, dataclasses.Field[Any], str, str]]:
    """Give (section, setting, its value as TOML, where it comes from); secrets are masked."""
    for name, section in SECTIONS.items():
        values = getattr(loaded.config, name)
        for setting in dataclasses.fields(section):
            value = getattr(values, setting.name)
            if setting.metadata["is_secret"] and value:
                value = MASK
            yield (
                name,
                setting,
                format_toml(setting, value),
                loaded.origins.get(setting.name, DEFAULT),
            )


def format_effective(loaded: Loaded) -> str:
    """Give the settings that count as TOML, each with where it comes from."""
    lines = []
    last = None
    for section, setting, value, origin in iter_effective(loaded):
        if section != last:
            lines += ["", f"[{section}]"] if last else [f"[{section}]"]
            last = section
        lines.append(f"{setting.name} = {value}".ljust(44) + f"  # {origin}")
    return "\n".join(lines) + "\n"


def _describe(setting: dataclasses.Field[Any]) -> list[str]:
    meta = setting.metadata
    names = [*(() if meta["is_secret"] else (flag_of(setting.name),)), *meta["variables"]]
    text = meta["help"][0].upper() + meta["help"][1:]
    default = format_value(setting)
    lines = textwrap.wrap(f"{text}.", WIDTH, break_long_words=False, break_on_hyphens=False)
    lines.append(f"Default: {default or 'not set'}. {meta['metavar']}: {', '.join(names)}")
    return [f"# {line}" for line in lines]


def _format_size(size: int) -> str:
    for unit, factor in _UNITS:
        if size and size % factor == 0:
            text = f"{size // factor}{unit}"
            assert parse_size(text) == size
            return text
    return str(size)
