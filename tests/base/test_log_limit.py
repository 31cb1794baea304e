"""One line for each cause and minute, with the number of those left out."""

import logging

import pytest

from tests.waiting import until
from xetserve.base.log_limit import MAX_CAUSES, LogLimit, find_cause
from xetserve.base.request_id import REQUEST_ID

logger = logging.getLogger("xetserve.test")


def log(limit: LogLimit, number: int, cause: object) -> None:
    limit.log(logger, logging.WARNING, cause, "request %d: %s", number, cause)


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


async def test_others_of_a_cause_are_one_line(lines: pytest.LogCaptureFixture) -> None:
    limit = LogLimit()
    for number in range(200):
        log(limit, number, OSError("the Hub answered 502"))
        log(limit, number, OSError("the Hub answered 429"))
    limit.flush()
    assert lines.messages == [
        "request 0: the Hub answered 502",
        "request 0: the Hub answered 429",
        "199 more within 60 s, the last: request 199: the Hub answered 502",
        "199 more within 60 s, the last: request 199: the Hub answered 429",
    ]
    assert {record.name for record in lines.records} == {"xetserve.test"}


async def test_each_interval_has_a_line_until_the_cause_is_gone(
    lines: pytest.LogCaptureFixture,
) -> None:
    limit = LogLimit(interval=0.01)
    log(limit, 0, "refused")
    log(limit, 1, "refused")
    await until(lambda: len(lines.messages) == 2)
    log(limit, 2, "refused")
    await until(lambda: len(lines.messages) == 3)
    await until(lambda: not len(limit._causes))
    log(limit, 3, "refused")
    limit.flush()
    assert lines.messages == [
        "request 0: refused",
        "1 more within 0 s, the last: request 1: refused",
        "1 more within 0 s, the last: request 2: refused",
        "request 3: refused",
    ]


async def test_at_level_debug_nothing_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    limit = LogLimit()
    for number in range(3):
        log(limit, number, "refused")
    found = [(record.levelname, record.message) for record in caplog.records]
    assert found == [
        ("WARNING", "request 0: refused"),
        ("DEBUG", "request 1: refused"),
        ("DEBUG", "request 2: refused"),
    ]
    limit.flush()


async def test_any_number_of_causes_takes_little_memory(lines: pytest.LogCaptureFixture) -> None:
    limit = LogLimit()
    names = [f"cause {'x' * number}" for number in range(MAX_CAUSES + 10)]
    for name in names:
        log(limit, 0, name)
    assert len(limit._causes) == MAX_CAUSES
    assert len(lines.messages) == len(names)
    limit.flush()


def test_without_a_loop_every_line_is_written(lines: pytest.LogCaptureFixture) -> None:
    limit = LogLimit()
    for number in range(2):
        log(limit, number, "refused")
    assert len(lines.messages) == 2


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("the Hub answered 502", "the Hub answered 502"),
        ("the data host sent 4711 bytes too few", "the data host sent # bytes too few"),
        ("cannot connect to 127.0.0.1: refused", "cannot connect to #.#.#.#: refused"),
        (f"the CAS refused file {'ab12' * 16}", "the CAS refused file #"),
        (f"chunk 7 of xorb {'0' * 64}", "chunk # of xorb #"),
        ("the decade was added", "the decade was added"),
    ],
)
def test_a_cause_has_no_numbers_but_statuses(text: str, cause: str) -> None:
    assert find_cause(text) == cause


async def test_the_line_of_an_interval_belongs_to_no_request(
    lines: pytest.LogCaptureFixture,
) -> None:
    seen = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append((REQUEST_ID.get(), record.getMessage()))

    handler = Handler()
    logger.addHandler(handler)
    try:
        limit = LogLimit(interval=0.01)
        token = REQUEST_ID.set("abc")
        log(limit, 0, "refused")
        log(limit, 1, "refused")
        REQUEST_ID.reset(token)
        await until(lambda: len(seen) == 2)
    finally:
        logger.removeHandler(handler)
    assert [request_id for request_id, _ in seen] == ["abc", ""]
    limit.flush()
