"""The text format of /metrics: write families of samples for Prometheus.

Source: Prometheus, "Exposition formats", text format 0.0.4.
"""

from collections.abc import Iterable
from typing import Final

from xetserve.metrics.instruments import Family, Sample

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def format_families(families: Iterable[Family]) -> str:
    """Return the text of /metrics."""
    lines = []
    for family in families:
        help_text = family.help_text.replace("\\", "\\\\").replace("\n", "\\n")
        lines.append(f"# HELP {family.name} {help_text}")
        lines.append(f"# TYPE {family.name} {family.kind}")
        lines += [_format_sample(family.name, sample) for sample in family.samples]
    return "\n".join([*lines, ""])


def _format_sample(name: str, sample: Sample) -> str:
    labels = ",".join(f'{label}="{_escape(value)}"' for label, value in sample.labels)
    braced = f"{{{labels}}}" if labels else ""
    return f"{name}{sample.suffix}{braced} {_format_value(sample.value)}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _format_value(value: float) -> str:
    """Return a number as text; whole numbers have no decimal point or exponent."""
    value = float(value)
    return str(int(value)) if value.is_integer() else repr(value)
