"""Counters, gauges and histograms, and the memory that they count in. No I/O: memory is given, text
is made elsewhere.

The values of a process lie in one flat buffer, its cells. Where several processes serve, that
buffer is memory which all of them see, so that whichever is asked can tell the totals, exact and at
once, without asking the others. A process that takes a dead one's place goes on counting in its
cells: counters never fall, and nothing is lost, however it died.

    0       bytes of keys that are used     u64     written last: what it covers is complete
    8       values that are used            u64
    64      values                          f64 each; the first ones are for what finds no room
    ...     keys, one a line: JSON          [name, [label values], number of values]

Keys are only ever added. One process writes to a buffer; others read, and may see a histogram one
observation apart.
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
_SPARE: Final = 32  # values; no instrument has more for one set of labels

Labels = tuple[str, ...]
Key = tuple[str, Labels]
Reading = Mapping[Key, Sequence[float]]


class Sample(NamedTuple):
    """One line of what is shown: what follows the family's name, (label, value) pairs, value."""

    suffix: str
    labels: tuple[tuple[str, str], ...]
    value: float


class Family(NamedTuple):
    """All that is shown of an instrument; kind: counter, gauge or histogram."""

    name: str
    kind: str
    help_text: str
    samples: list[Sample]


class Cells:
    """The values of this process.

    Args:
        buffer: CELLS_SIZE bytes, zeros or what a process before us has left; None: memory of our
            own.
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
        """Return where the values of a key begin; they are made if they are not there yet."""
        start = self._index.get(key)
        if start is None:
            start = self._index[key] = self._make(key, width)
        return start

    def _make(self, key: Key, width: int) -> int:
        line = json.dumps([key[0], key[1], width]).encode() + b"\n"
        keys_end, start = self._header[0] + len(line), self._header[1]
        if keys_end > len(self._keys) or start + width > len(self.values):
            return 0  # labels are few by design; if they are not, counting must not fail
        self._keys[self._header[0] : keys_end] = line
        self._header[1] = start + width
        self._header[0] = keys_end
        return start


class CellReader:
    """Reads the cells of a process, this one or another."""

    def __init__(self, buffer: memoryview) -> None:
        self._header, self._values, self._keys = _split(buffer)
        self._size = 0
        self._places: dict[Key, tuple[int, int]] = {}

    def read(self) -> Reading:
        """Return the values as they are now."""
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
    """Give (start, number of values) by key."""
    places: dict[Key, tuple[int, int]] = {}
    start = _SPARE
    for line in data.splitlines():
        name, labels, width = json.loads(line)
        places[name, tuple(labels)] = (start, width)
        start += width
    return places


class Registry:
    """All instruments of a program, in the order in which they are shown."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.instruments: list[Instrument] = []

    def move_to(self, buffer: memoryview) -> None:
        """Count in a buffer from now on; counters go on from what is there, gauges begin at
        zero.
        """
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
        """Put together what several processes have counted.

        Args:
            ended: of processes whose gauges mean nothing any more.
        """
        living, ended = list(living), list(ended)
        families = []
        for each in self.instruments:
            readings = living if isinstance(each, Gauge) else [*living, *ended]
            families.append(each.collect(readings))
        return families


class Instrument:
    """What counter, gauge and histogram have in common.

    Args:
        labels: names of its labels. Each has few values, none of which a client chooses.
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
        """The cells are other ones now."""
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
        """Return this instrument's values over several readings, by labels."""
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
        """Return the sum over all labels, and over several readings."""
        return sum(values[0] for values in self.merge(readings).values())

    def _unite(self, column: tuple[float, ...]) -> float:
        return sum(column)

    def collect(self, readings: Iterable[Reading]) -> Family:
        """Return what is shown."""
        samples = [
            sample
            for labels, values in self.merge(readings).items()
            for sample in self._show(tuple(zip(self.labels, labels, strict=True)), values)
        ]
        return Family(self.name, self.kind, self.help_text, samples)

    def _show(self, labels: tuple[tuple[str, str], ...], values: list[float]) -> list[Sample]:
        return [Sample("", labels, values[0])]


class Counter(Instrument):
    """A number that only grows, for each combination of its labels' values."""

    kind = "counter"

    def add(self, *label_values: str, amount: float = 1) -> None:
        """Count amount for these label values."""
        place = self._places.get(label_values)
        if place is None:
            place = self._find(label_values)
        self._values[place] += amount

    @property
    def values(self) -> Mapping[Labels, float]:
        """What this process has counted, by labels."""
        found: dict[Labels, float] = defaultdict(float)
        found.update({labels: self._values[place] for labels, place in self._places.items()})
        return found

    @property
    def total(self) -> float:
        """The sum over all labels."""
        return sum(self.values.values())


class Gauge(Instrument):
    """A number that comes and goes.

    Args:
        unite: what several processes' values make together.
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
        """Say what it is."""
        self._values[self._find(label_values)] = value

    def add(self, *label_values: str, amount: float = 1) -> None:
        """Say how it has changed."""
        self._values[self._find(label_values)] += amount

    def get(self, *label_values: str) -> float:
        """Return this process's value."""
        return self._values[self._find(label_values)]

    def _unite(self, column: tuple[float, ...]) -> float:
        return self._function(column)


class Histogram(Instrument):
    """How often a value was in which range.

    Args:
        bounds: upper ends of the ranges, rising; what is above the last is counted as well.
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
        self.width = len(bounds) + 2  # one for each, what is above them, the sum
        assert self.width <= _SPARE, name

    def observe(self, value: float, *label_values: str) -> None:
        """Count a value."""
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
