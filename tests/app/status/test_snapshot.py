"""The figures of several workers, as a person reads them."""

from typing import Any

import pytest

from xetserve.app.status.active_streams import Stage, StreamTable
from xetserve.app.status.page import format_size, format_time, make_page
from xetserve.app.status.snapshot import HISTORY, PLACE_SIZE, Snapshot
from xetserve.metrics import catalogue as metrics
from xetserve.metrics.instruments import CELLS_SIZE


class Workers:
    """Two workers and a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.alive = [True, True]
        self.places = [memoryview(bytearray(PLACE_SIZE)) for _ in range(2)]
        self.tables = [StreamTable(place[CELLS_SIZE:]) for place in self.places]
        self.figures = Snapshot(self.places, self.alive.__getitem__, lambda: self.now)

    def be(self, number: int) -> None:
        """Count as this worker from now on."""
        metrics.REGISTRY.move_to(self.places[number][:CELLS_SIZE])

    def describe(self, *, with_names: bool = True) -> dict[str, Any]:
        return self.figures.describe(with_names=with_names)

    def pass_time(self, seconds: float, sent: int = 0) -> None:
        if sent:
            metrics.SENT_BYTES.add("download", amount=sent)
        self.now += seconds
        self.figures.sample()


@pytest.fixture
def workers() -> Any:
    yield Workers()
    metrics.REGISTRY.move_to(memoryview(bytearray(CELLS_SIZE)))


def test_totals_are_those_of_all(workers: Workers) -> None:
    for number in (0, 1):
        workers.be(number)
        metrics.WORKERS.set(1)
        metrics.START_TIME.set(900)
        metrics.REQUESTS.add("download", "200", amount=number + 1)
        metrics.UPSTREAM_BYTES.add("data", amount=10)
        metrics.BUDGET_HELD.set(7)
        metrics.CACHE_LIMIT.set(100)
        metrics.CACHE_SIZE.set(40 + number)
    found = workers.describe()
    assert (found["workers"], found["uptime"]) == (2, 100)
    assert found["requests"]["total"] == 3
    assert found["upstream"]["bytes"] == {"data": 20}
    assert found["memory"]["budget_held"] == 14
    assert (found["cache"]["size"], found["cache"]["limit"]) == (41, 100)
    workers.alive[0] = False
    found = workers.describe()
    assert (found["workers"], found["requests"]["total"]) == (1, 3)
    assert found["memory"]["budget_held"] == 7


def test_without_a_cache_there_is_none_to_tell_of(workers: Workers) -> None:
    assert workers.describe()["cache"] is None


def test_streams_are_shown_oldest_first_and_the_dead_have_none(workers: Workers) -> None:
    for number, started in ((1, 990.0), (0, 995.0)):
        text = {"route": "resolve", "file": f"{number}.bin", "repo": "o/n", "client": "::1"}
        stream = workers.tables[number].open(text, 100, started)
        assert stream is not None
        stream.note(50, Stage.READING)
    first, second = workers.describe()["streams"]
    assert first == {
        "route": "resolve", "seconds": 10.0, "sent": 50, "size": 100, "rate": 5, "stage": "reading",
        "file": "1.bin", "repo": "o/n", "client": "::1", "id": None,
    }  # fmt: skip
    assert second["file"] == "0.bin"
    workers.alive[1] = False
    (left,) = workers.describe(with_names=False)["streams"]
    assert left["seconds"] == 5.0
    assert "file" not in left


def test_a_rate_is_that_of_late(workers: Workers) -> None:
    workers.be(0)
    stream = workers.tables[0].open({}, None, workers.now)
    assert stream is not None
    for second in range(1, 31):
        stream.note(second * (1000 if second <= 20 else 0) or 20_000, Stage.SENDING)
        workers.pass_time(1, sent=1000 if second <= 20 else 0)
    (shown,) = workers.describe()["streams"]
    assert (shown["rate"], shown["size"]) == (0, None)
    assert workers.describe()["sent_rate"] == 0
    rates = [round(sent) for sent, _ in workers.figures.rates()]
    assert rates[5:18] == [1000] * 13
    assert rates[-3:] == [0, 0, 0]


def test_only_so_much_is_remembered(workers: Workers) -> None:
    for _ in range(HISTORY + 50):
        workers.pass_time(1)
    assert len(workers.figures.history) == HISTORY


def test_a_clock_that_goes_back_makes_no_rate(workers: Workers) -> None:
    workers.pass_time(1)
    workers.pass_time(-500)
    workers.pass_time(1)
    assert all(rate >= 0 for pair in workers.figures.rates() for rate in pair)
    assert workers.describe()["sent_rate"] >= 0


async def test_gauges_are_brought_up_to_date_by_those_who_know(workers: Workers) -> None:
    called = []

    async def refresh() -> None:
        called.append(True)

    workers.figures.on_refresh(refresh)
    await workers.figures.refresh()
    assert called == [True]


def test_a_page_shows_only_so_many_streams(workers: Workers) -> None:
    for table in workers.tables:
        for _ in range(40):
            table.open({"route": "xorb"}, 0, 990.0)
    page = make_page(
        "http://h", workers.describe(), [(1.0, 2.0)], is_operator=False, may_log_in=False
    )
    assert page.count("packed data for a native client") == 50
    assert "and 30 more" in page


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"), (999, "999 B"), (999.6, "1.0 kB"), (1000, "1.0 kB"), (99_400, "99.4 kB"),
        (99_600, "100 kB"), (999_499, "999 kB"), (999_500, "1.0 MB"), (1.5e9, "1.5 GB"),
        (5e15, "5000 TB"),
    ],
)  # fmt: skip
def test_sizes_are_for_people(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h")],
)
def test_times_are_for_people(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
