"""What the log says of an outage: one line when it begins, and one when it ends."""

import pytest

from xetserve.base.request_id import REQUEST_ID
from xetserve.pipeline.flow.outage import Outage

ERROR = ConnectionError("refused")


def make_outage(patience: float = 300.0) -> Outage:
    token = REQUEST_ID.set("abc")
    try:
        return Outage(lambda: patience)
    finally:
        REQUEST_ID.reset(token)


def test_many_tries_are_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    outage = make_outage()
    for _ in range(9):
        outage.note_failure("fetch", ERROR)
    outage.note_success("fetch")
    begin, end = caplog.messages
    assert begin == "request abc: the upstream fails, trying again for up to 300 s: refused"
    assert end.startswith("request abc: goes on after 0.")


def test_one_failed_try_is_none(caplog: pytest.LogCaptureFixture) -> None:
    outage = make_outage()
    for what in ("fetch", "another"):
        outage.note_failure(what, ERROR)
        outage.note_success(what)
    assert caplog.messages == []


def test_tries_that_were_repeated_below_count(caplog: pytest.LogCaptureFixture) -> None:
    make_outage().note_failure("question", ERROR, num_tries=2)
    assert len(caplog.messages) == 1


def test_it_ends_with_the_last_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    outage = make_outage()
    for _ in range(3):
        outage.note_failure("fetch", ERROR)
        outage.note_failure("question", ERROR)
    outage.note_success("fetch")
    assert len(caplog.messages) == 1
    outage.note_success("question")
    outage.note_success("question")
    assert len(caplog.messages) == 2
    # The next one is told again.
    for _ in range(3):
        outage.note_failure("fetch", ERROR)
    assert len(caplog.messages) == 3


def test_nothing_is_told_of_a_response_that_does_not_wait_or_has_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    impatient, closed = make_outage(0.0), make_outage()
    closed.note_failure("fetch", ERROR)
    closed.note_failure("fetch", ERROR)
    caplog.clear()
    closed.close()
    closed.note_success("fetch")
    for outage in (impatient, closed):
        for _ in range(3):
            outage.note_failure("fetch", ERROR)
    assert caplog.messages == []
