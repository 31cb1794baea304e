"""Values of settings as text, in the form that their parsers read."""

import dataclasses
from typing import Any, Final

from xetserve.config.parsers import parse_size

_UNITS: Final = (
    ("TiB", 2**40),
    ("TB", 10**12),
    ("GiB", 2**30),
    ("GB", 10**9),
    ("MiB", 2**20),
    ("KiB", 2**10),
)


def format_value(setting: dataclasses.Field[Any], value: Any = None) -> str:
    """Return the text of a value; value None: of the default."""
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


def _format_size(size: int) -> str:
    for unit, factor in _UNITS:
        if size and size % factor == 0:
            text = f"{size // factor}{unit}"
            assert parse_size(text) == size
            return text
    return str(size)
