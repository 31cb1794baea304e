"""Counters, gauges and histograms, and the memory that holds their values. No I/O.

All values of a process lie in one flat buffer, its cells. With several workers, the buffers are in
shared memory, so each worker can compute exact totals without messages to the others. A worker that
replaces a dead one continues with its cells: counters never decrease and lose nothing.

Layout of a buffer:

    0       used bytes of keys      u64     written last: the keys that it covers are complete
    8       used values             u64
    64      values                  f64 each; the first _SPARE ones are shared by keys without room
    ...     keys, one a line        JSON: [name, [label values], number of values]

Keys are only added. One process writes a buffer and others read it. A reader may see the values of
a histogram one observation apart.
"""

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

HEADER_SIZE: Final = 64  # bytes
NUM_VALUES: Final = 4096
KEYS_SIZE: Final = 64 * 1024  # bytes
CELLS_SIZE: Final = HEADER_SIZE + 8 * NUM_VALUES + KEYS_SIZE
_SPARE: Final = 32  # values; no instrument has more for one combination of labels

Labels = tuple[str, ...]
Key = tuple[str, Labels]
Reading = Mapping[Key, Sequence[float]]


class Sample(NamedTuple):
    """One line of output: suffix of the family's name, (label, value) pairs, and value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(NamedTuple):
    """The output of one instrument; kind: counter, gauge or histogram."""

    name: str
    kind: str
    help_text: str
    samples: list[Sample]


class Cells:
    """The values of this process.

    Args:
        buffer: CELLS_SIZE bytes, zeros or the cells of a dead process; None: allocate a buffer.
    """

    def __init__(self, buffer: memoryview | None = None) -> None:
        if buffer is None:
            buffer = memoryview(bytearray(CELLS_SIZE))
        self._header, self.values, self._keys = _split(buffer)
        self._index: dict[Key, int] = {}
        if not self._header[1]:
            self._header[1] = _SPARE
        for key, (start, _) in _parse_keys(bytes(self._keys[: self._header[0]])).items():
            self._index[key] = start

    def find(self, key: Key, width: int) -> int:
        """Return the index of the first value of a key; add the key if it is new."""
        start = self._index.get(key)
        if start is None:
            start = self._index[key] = self._make(key, width)
        return start

    def _make(self, key: Key, width: int) -> int:
        line = json.dumps([key[0], key[1], width]).encode() + b"\n"
        keys_end, start = self._header[0] + len(line), self._header[1]
        if keys_end > len(self._keys) or start + width > len(self.values):
            return 0  # the buffer is full, which is a bug: count in the spare values
        self._keys[self._header[0] : keys_end] = line
        self._header[1] = start + width
        self._header[0] = keys_end
        return start


class CellReader:
    """A reader of the cells of this or another process."""

    def __init__(self, buffer: memoryview) -> None:
        self._header, self._values, self._keys = _split(buffer)
        self._size = 0
        self._places: dict[Key, tuple[int, int]] = {}

    def read(self) -> Reading:
        """Return the current values."""
        size = self._header[0]
        if size != self._size:
            self._places = _parse_keys(bytes(self._keys[:size]))
            self._size = size
        return {
            key: self._values[start : start + width].tolist()
            for key, (start, width) in self._places.items()
        }


def _split(
    buffer: memoryview,
) -> "tuple[memoryview[int], memoryview[float], memoryview[int]]":
    values_end = HEADER_SIZE + 8 * NUM_VALUES
    return (
        buffer[:HEADER_SIZE].cast("Q"),
        buffer[HEADER_SIZE:values_end].cast("d"),
        buffer[values_end:CELLS_SIZE],
    )


def _parse_keys(data: bytes) -> dict[Key, tuple[int, int]]:
    """Return key -> (index of the first value, number of values)."""
    places: dict[Key, tuple[int, int]] = {}
    start = _SPARE
    for line in data.splitlines():
        name, labels, width = json.loads(line)
        places[name, tuple(labels)] = (start, width)
        start += width
    return places


class Registry:
    """All instruments of a program, in output order."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.instruments: list[Instrument] = []

    def move_to(self, buffer: memoryview) -> None:
        """Move all values to a buffer; counters continue from its values, gauges start at zero."""
        self.cells = Cells(buffer)
        for instrument in self.instruments:
            instrument.forget()
        gauges = {each.name for each in self.instruments if isinstance(each, Gauge)}
        for key, values in CellReader(buffer).read().items():
            if key[0] in gauges:
                start = self.cells.find(key, len(values))
                for at in range(start, start + len(values)):
                    self.cells.values[at] = 0.0

    def collect(self, living: Iterable[Reading], ended: Iterable[Reading] = ()) -> list[Family]:
        """Merge the values of several processes.

        Args:
            ended: readings of ended processes, whose gauges are ignored.
        """
        living, ended = list(living), list(ended)
        families = []
        for each in self.instruments:
            readings = living if isinstance(each, Gauge) else [*living, *ended]
            families.append(each.collect(readings))
        return families


class Instrument:
    """The base of counter, gauge and histogram.

    Args:
        labels: names of the labels. Each label has few values, and clients cannot choose them.
    """

    kind = "untyped"
    width = 1

    def __init__(
        self, registry: Registry, name: str, help_text: str, labels: tuple[str, ...] = ()
    ) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self._registry = registry
        self._places: dict[Labels, int] = {}
        self._values = registry.cells.values
        registry.instruments.append(self)

    def forget(self) -> None:
        """Forget the indices of values, after the registry has changed its cells."""
        self._places.clear()
        self._values = self._registry.cells.values

    def _find(self, label_values: Labels) -> int:
        place = self._places.get(label_values)
        if place is None:
            assert len(label_values) == len(self.labels), self.name
            place = self._registry.cells.find((self.name, label_values), self.width)
            self._places[label_values] = place
        return place

    def merge(self, readings: Iterable[Reading]) -> dict[Labels, list[float]]:
        """Return label values -> this instrument's values, merged over several readings."""
        found: dict[Labels, list[Sequence[float]]] = {} if self.labels else {(): []}
        for reading in readings:
            for (name, labels), values in reading.items():
                if name == self.name and len(values) == self.width:
                    found.setdefault(labels, []).append(values)
        return {
            labels: [self._unite(column) for column in zip(*rows, strict=True)]
            if rows
            else [0.0] * self.width
            for labels, rows in sorted(found.items())
        }

    def total_of(self, readings: Iterable[Reading]) -> float:
        """Return the sum over all labels and several readings."""
        return sum(values[0] for values in self.merge(readings).values())

    def _unite(self, column: tuple[float, ...]) -> float:
        return sum(column)

    def collect(self, readings: Iterable[Reading]) -> Family:
        """Return the output of this instrument for several readings."""
        samples = [
            sample
            for labels, values in self.merge(readings).items()
            for sample in self._show(tuple(zip(self.labels, labels, strict=True)), values)
        ]
        return Family(self.name, self.kind, self.help_text, samples)

    def _show(self, labels: tuple[tuple[str, str], ...], values: list[float]) -> list[Sample]:
        return [Sample("", labels, values[0])]


class Counter(Instrument):
    """A number that only increases, for each combination of label values."""

    kind = "counter"

    def add(self, *label_values: str, amount: float = 1) -> None:
        """Add amount for these label values."""
        place = self._places.get(label_values)
        if place is None:
            place = self._find(label_values)
        self._values[place] += amount

    @property
    def values(self) -> Mapping[Labels, float]:
        """Return label values -> count of this process."""
        found: dict[Labels, float] = defaultdict(float)
        found.update({labels: self._values[place] for labels, place in self._places.items()})
        return found

    @property
    def total(self) -> float:
        """Return this process's sum over all labels."""
        return sum(self.values.values())


class Gauge(Instrument):
    """A number that increases and decreases.

    Args:
        unite: merges the values of several processes.
    """

    kind = "gauge"

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        labels: tuple[str, ...] = (),
        *,
        unite: Callable[[Iterable[float]], float] = sum,
    ) -> None:
        super().__init__(registry, name, help_text, labels)
        self._function = unite

    def set(self, value: float, *label_values: str) -> None:
        """Set the value for these label values."""
        self._values[self._find(label_values)] = value

    def add(self, *label_values: str, amount: float = 1) -> None:
        """Add amount, which may be negative, for these label values."""
        self._values[self._find(label_values)] += amount

    def get(self, *label_values: str) -> float:
        """Return this process's value."""
        return self._values[self._find(label_values)]

    def _unite(self, column: tuple[float, ...]) -> float:
        return self._function(column)


class SharedGauge(Instrument):
    """A gauge that every process of a server can compute: its values are in no cells.

    Labels may have any number of values over time, since only the current ones are shown.

    Attributes:
        source: returns label values -> value.
    """

    kind = "gauge"

    def __init__(
        self, registry: Registry, name: str, help_text: str, labels: tuple[str, ...] = ()
    ) -> None:
        super().__init__(registry, name, help_text, labels)
        self.source: Callable[[], Mapping[Labels, float]] = dict

    def merge(self, readings: Iterable[Reading]) -> dict[Labels, list[float]]:
        """Return label values -> value, of this process."""
        return {labels: [value] for labels, value in sorted(self.source().items())}


class Histogram(Instrument):
    """A count of observed values by range.

    Args:
        bounds: inclusive upper ends of the ranges, ascending; a last range without an end is added.
    """

    kind = "histogram"

    def __init__(
        self,
        registry: Registry,
        name: str,
        help_text: str,
        labels: tuple[str, ...] = (),
        *,
        bounds: Sequence[float],
    ) -> None:
        super().__init__(registry, name, help_text, labels)
        self.bounds = tuple(bounds)
        self.width = len(bounds) + 2  # one per bound, one above the last bound, the sum
        assert self.width <= _SPARE, name

    def observe(self, value: float, *label_values: str) -> None:
        """Count a value in its range."""
        values, place = self._values, self._find(label_values)
        values[place + bisect_left(self.bounds, value)] += 1
        values[place + self.width - 1] += value

    def _show(self, labels: tuple[tuple[str, str], ...], values: list[float]) -> list[Sample]:
        samples = []
        count = 0.0
        for bound, number in zip([*map(_format_bound, self.bounds), "+Inf"], values, strict=False):
            count += number
            samples.append(Sample("_bucket", (*labels, ("le", bound)), count))
        return [*samples, Sample("_sum", labels, values[-1]), Sample("_count", labels, count)]


def _format_bound(bound: float) -> str:
    return f"{float(bound)!r}"
