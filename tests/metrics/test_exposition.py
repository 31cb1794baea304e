"""The text that Prometheus reads, read by its official parser."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from xetserve.metrics.exposition import format_families
from xetserve.metrics.instruments import (
    CELLS_SIZE,
    CellReader,
    Counter,
    Family,
    Histogram,
    Registry,
    Sample,
)

VALUES = st.floats(allow_nan=False, allow_infinity=False)


@given(st.text(), st.text(), VALUES)
def test_any_text_and_any_number_come_back(label: str, help_text: str, value: float) -> None:
    # The parser takes lines as Python's splitlines has them, and blanks at the end of a help text
    # for nothing.
    label, help_text = ("".join(t.splitlines()) for t in (label, help_text))
    family = Family("x", "gauge", help_text, [Sample("", (("kind", label),), value)])
    (found,) = text_string_to_metric_families(format_families([family]))
    (sample,) = found.samples
    assert (sample.labels, sample.value) == ({"kind": label}, value)


@pytest.mark.parametrize("label", ['"', "\\", "\n", 'a\\"b\n', "\\n"])
def test_what_would_end_a_label_is_escaped(label: str) -> None:
    family = Family("x", "gauge", label, [Sample("", (("kind", label),), 1)])
    text = format_families([family])
    assert len(text.splitlines()) == 3
    (found,) = text_string_to_metric_families(text)
    assert found.samples[0].labels == {"kind": label}


def test_kinds_and_values_are_as_they_were() -> None:
    registry = Registry()
    counter = Counter(registry, "hits_total", "All hits.")
    times = Histogram(registry, "times_seconds", "Times.", ("route",), bounds=(0.5, 1))
    buffer = memoryview(bytearray(CELLS_SIZE))
    registry.move_to(buffer)
    counter.add(amount=1_234_567_890_123_456)
    for value in (0.25, 0.75, 3):
        times.observe(value, "a")
    text = format_families(registry.collect([CellReader(buffer).read()]))
    hits, found = text_string_to_metric_families(text)
    assert (hits.type, hits.documentation) == ("counter", "All hits.")
    assert hits.samples[0].value == 1_234_567_890_123_456
    assert found.type == "histogram"
    assert [(s.name, s.labels.get("le"), s.value) for s in found.samples] == [
        ("times_seconds_bucket", "0.5", 1),
        ("times_seconds_bucket", "1.0", 2),
        ("times_seconds_bucket", "+Inf", 3),
        ("times_seconds_sum", None, 4),
        ("times_seconds_count", None, 3),
    ]
