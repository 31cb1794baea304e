"""Counters, gauges and histograms, and cells that several processes read."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.metrics.instruments import (
    CELLS_SIZE,
    CellReader,
    Counter,
    Family,
    Gauge,
    Histogram,
    Registry,
)


class Process:
    """A process with some instruments."""

    def __init__(self, buffer: memoryview) -> None:
        self.registry = Registry()
        self.hits = Counter(self.registry, "hits_total", "Hits.", ("kind",))
        self.plain = Counter(self.registry, "plain_total", "Plain.")
        self.held = Gauge(self.registry, "held", "Held.")
        self.oldest = Gauge(self.registry, "oldest", "Oldest.", unite=min)
        self.times = Histogram(self.registry, "times", "Times.", ("kind",), bounds=(1, 2.5))
        self.registry.move_to(buffer)


def make_buffer() -> memoryview:
    return memoryview(bytearray(CELLS_SIZE))


def shown(families: list[Family]) -> dict[str, float]:
    return {
        family.name
        + sample.suffix
        + "".join(f"|{name}={value}" for name, value in sample.labels): sample.value
        for family in families
        for sample in family.samples
    }


def test_what_several_have_counted_is_put_together() -> None:
    buffers = [make_buffer(), make_buffer()]
    for number, buffer in enumerate(buffers, 1):
        process = Process(buffer)
        process.hits.add("a", amount=number)
        process.hits.add(f"only {number}")
        process.held.set(10 * number)
        process.oldest.set(100 * number)
        process.times.observe(0.5 * number, "x")
        process.times.observe(2.5, "x")
        process.times.observe(99, "x")
    found = shown(process.registry.collect(CellReader(buffer).read() for buffer in buffers))
    assert found == {
        "hits_total|kind=a": 3,
        "hits_total|kind=only 1": 1,
        "hits_total|kind=only 2": 1,
        "plain_total": 0,
        "held": 30,
        "oldest": 100,
        "times_bucket|kind=x|le=1.0": 2,
        "times_bucket|kind=x|le=2.5": 4,
        "times_bucket|kind=x|le=+Inf": 6,
        "times_sum|kind=x": 204.5,
        "times_count|kind=x": 6,
    }


def test_whoever_takes_a_place_goes_on_counting_and_begins_with_empty_gauges() -> None:
    buffer = make_buffer()
    first = Process(buffer)
    first.hits.add("a", amount=5)
    first.held.set(7)
    first.times.observe(1, "x")
    second = Process(buffer)
    second.hits.add("a")
    second.hits.add("b")
    second.times.observe(2, "x")
    found = shown(second.registry.collect([CellReader(buffer).read()]))
    assert found["hits_total|kind=a"] == 6
    assert found["hits_total|kind=b"] == 1
    assert found["held"] == 0
    assert found["times_count|kind=x"] == 2


def test_the_gauges_of_the_dead_mean_nothing_and_their_counters_stay() -> None:
    living, dead = make_buffer(), make_buffer()
    for buffer in (living, dead):
        process = Process(buffer)
        process.hits.add("a")
        process.held.set(1)
    found = process.registry.collect([CellReader(living).read()], [CellReader(dead).read()])
    assert shown(found)["hits_total|kind=a"] == 2
    assert shown(found)["held"] == 1


def test_a_reader_sees_what_is_added_later() -> None:
    buffer = make_buffer()
    process, reader = Process(buffer), CellReader(buffer)
    assert ("hits_total", ("late",)) not in reader.read()
    process.hits.add("late")
    assert reader.read()["hits_total", ("late",)] == [1.0]


def test_labels_that_find_no_room_are_counted_nowhere_and_hurt_nobody() -> None:
    buffer = make_buffer()
    process = Process(buffer)
    process.hits.add("before")
    for number in range(5000):
        process.times.observe(1, str(number))
    process.hits.add("before")
    found = CellReader(buffer).read()
    assert found["hits_total", ("before",)] == [2.0]
    assert ("times", ("4999",)) not in found
    assert all(math.isfinite(value) for values in found.values() for value in values)


def test_a_gauge_knows_its_own_value() -> None:
    process = Process(make_buffer())
    process.held.add(amount=3)
    process.held.add(amount=-1)
    assert process.held.get() == 2


def test_a_counter_tells_what_this_process_has_counted() -> None:
    process = Process(make_buffer())
    process.hits.add("a")
    process.hits.add("b", amount=2)
    assert process.hits.values == {("a",): 1, ("b",): 2}
    assert process.hits.values["never",] == 0
    assert process.hits.total == 3


def test_a_label_that_is_missing_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        Process(make_buffer()).hits.add()


@given(st.lists(st.tuples(st.text(max_size=20), st.floats(0, 1e9), st.integers(0, 1)), max_size=60))
def test_whatever_is_counted_by_two_is_the_sum(
    events: list[tuple[str, float, int]],
) -> None:
    buffers = [make_buffer(), make_buffer()]
    processes = [Process(buffer) for buffer in buffers]
    expected: dict[str, float] = {}
    for label, amount, number in events:
        processes[number].hits.add(label, amount=amount)
        expected[label] = expected.get(label, 0) + amount
    merged = processes[0].hits.merge(CellReader(buffer).read() for buffer in buffers)
    assert {labels[0]: pytest.approx(values[0]) for labels, values in merged.items()} == expected
