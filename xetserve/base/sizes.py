"""Sizes in bytes as text for people."""

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def format_size(size: float) -> str:
    """Return a number of bytes as text with decimal units."""
    for unit in _UNITS:
        if size < 1000 or unit == _UNITS[-1]:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError
