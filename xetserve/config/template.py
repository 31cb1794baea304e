"""Settings as text: templates (TOML, environment), tables (Markdown), and the effective settings.

All of it is made from the declarations in schema.py.
"""

import dataclasses
import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from xetserve import __version__
from xetserve.config.load import DEFAULT, Loaded, flag_of
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS, Sections
from xetserve.config.text import format_value

WIDTH: Final = 110
MASK: Final = "***"
# Words in help texts that are code: names of settings, paths, patterns.
_CODE: Final = re.compile(r"(?<![^\s(])(?:[a-z]+_[a-z_]+|[/?.*][\w./=*-]*[\w=*/]|[/*])(?![\w/])")

_TOML_HEAD: Final = """\
# Settings of xetserve {version}. A # without a space precedes a default: remove the # to change it.
# Flags and environment variables override this file. Sizes: 1048576, 128MiB, 50GB. Times: seconds.
# After a change: xetserve config check{option} --config FILE
"""
_ENV_HEAD: Final = """\
# Environment of xetserve {version}, for `docker run --env-file FILE` and EnvironmentFile= of
# systemd. One NAME=value a line, without quotes; everything after the = is the value. Flags
# override these variables, and these variables override the TOML file.
# After a change: xetserve config check{option} --env-file FILE
"""


def make_toml_template(schema: Sections = SECTIONS) -> str:
    """Return a TOML file with every setting, commented out, with its default."""
    lines = [_make_head(_TOML_HEAD, schema)]
    for name, section in schema.items():
        lines.append(f"[{name}]")
        for setting in dataclasses.fields(section):
            lines += [*_describe(setting), f"#{setting.name} = {format_toml(setting)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def make_env_template(schema: Sections = SECTIONS) -> str:
    """Return an environment file with every setting, commented out, with its default."""
    lines = [_make_head(_ENV_HEAD, schema)]
    for section in schema.values():
        for setting in dataclasses.fields(section):
            variable = setting.metadata["variables"][0]
            lines += [*_describe(setting), f"#{variable}={format_value(setting)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def make_markdown(schema: Sections = SECTIONS) -> str:
    """Return a Markdown table for each section, for the configuration chapter."""
    lines = []
    for name, section in schema.items():
        lines += [
            f"### `[{name}]`",
            "",
            (section.__doc__ or "").partition("\n")[0],
            "",
            "| Key | Flag | Environment variable | Default | Meaning |",
            "|---|---|---|---|---|",
            *(_make_row(setting) for setting in dataclasses.fields(section)),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _make_head(text: str, schema: Sections) -> str:
    option = " --origin" if schema is ORIGIN_SECTIONS else ""
    return text.format(version=__version__, option=option)


def _make_row(setting: dataclasses.Field[Any]) -> str:
    meta = setting.metadata
    default = format_value(setting)
    cells = (
        f"`{setting.name}`",
        f"`{flag_of(setting.name)}`" if meta["has_flag"] else "",
        ", ".join(f"`{variable}`" for variable in meta["variables"]),
        f"`{default}`" if default else "not set",
        _CODE.sub(r"`\g<0>`", meta["help"]),
    )
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def format_toml(setting: dataclasses.Field[Any], value: Any = None) -> str:
    """Return a value as TOML; value None: the default."""
    text = format_value(setting, value)
    value = setting.default if value is None else value
    is_bare = isinstance(value, bool) or (
        isinstance(value, int | float) and text.replace(".", "").isdigit()
    )
    # A JSON string is a basic string of TOML, except that TOML requires an escape for DEL.
    return text if is_bare else json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def iter_effective(loaded: Loaded) -> Iterator[tuple[str, dataclasses.Field[Any], str, str]]:
    """Yield (section, setting, value as TOML, source of the value); secrets are masked."""
    for name, section in loaded.schema.items():
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
    """Return the effective settings as TOML, each with the source of its value."""
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
    names = [*((flag_of(setting.name),) if meta["has_flag"] else ()), *meta["variables"]]
    text = meta["help"][0].upper() + meta["help"][1:]
    default = format_value(setting)
    lines = textwrap.wrap(f"{text}.", WIDTH, break_long_words=False, break_on_hyphens=False)
    lines.append(f"Default: {default or 'not set'}. {meta['metavar']}: {', '.join(names)}")
    return [f"# {line}" for line in lines]
