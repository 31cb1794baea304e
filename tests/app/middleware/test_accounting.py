"""Metrics of requests that are answered."""

from xetserve.app.middleware.accounting import count_answer
from xetserve.http.messages import Record, Request
from xetserve.metrics.catalogue import CUT_REQUESTS, DURATION, FIRST_BYTE, REQUESTS


def test_an_answer_is_counted_by_what_it_was() -> None:
    before = REQUESTS.values["download", "206"], CUT_REQUESTS.values["download",]
    record = Record(206, 10, False, 0.1, 0.2, 0.3, route="download")
    count_answer(Request("GET", "/", record=record))
    assert REQUESTS.values["download", "206"] == before[0] + 1
    assert CUT_REQUESTS.values["download",] == before[1] + 1


def test_a_status_that_nobody_knows_makes_no_label_of_its_own() -> None:
    for status in range(430, 600):
        count_answer(Request("GET", "/", record=Record(status, is_complete=True, route="api")))
    statuses = {status for route, status in REQUESTS.values if route == "api"}
    assert {"4xx", "5xx", "500", "451"} <= statuses
    assert len(statuses) < 40


def test_what_sent_nothing_has_no_first_byte() -> None:
    def num(instrument: object) -> float:
        cells = instrument._registry.cells.values  # type: ignore[attr-defined]
        place = instrument._find(("raw",))  # type: ignore[attr-defined]
        num_bounds = len(instrument.bounds)  # type: ignore[attr-defined]
        return float(sum(cells[place : place + num_bounds + 1]))

    before = num(FIRST_BYTE), num(DURATION)
    count_answer(Request("GET", "/", record=Record(304, is_complete=True, route="raw")))
    assert (num(FIRST_BYTE), num(DURATION)) == (before[0], before[1] + 1)
