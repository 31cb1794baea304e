"""Lines about upstreams that stop answering, and that answer again."""

import logging

import pytest

from xetserve.net.url import Origin
from xetserve.upstream.health import FAILURES_IN_A_ROW, MAX_UPSTREAMS, PAUSE, UpstreamHealth

HUB = Origin("https", "hub.test", 443)
DATA = Origin("http", "data.test", 81)


def fail(health: UpstreamHealth, kind: str = "hub", origin: Origin = HUB, count: int = 1) -> None:
    for _ in range(count):
        health.note_failure(kind, origin, "status 503")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING)
    return caplog


def test_each_change_is_one_line(lines: pytest.LogCaptureFixture) -> None:
    health = UpstreamHealth()
    fail(health, count=FAILURES_IN_A_ROW + 5)
    fail(health, "data", DATA, FAILURES_IN_A_ROW)
    health.note_answer("hub", HUB)
    health.note_answer("hub", HUB)
    assert lines.messages == [
        "the Hub at hub.test fails: status 503",
        "the data host at data.test:81 fails: status 503",
        "the Hub at hub.test answers again, after 0 s",
    ]


def test_single_failures_are_no_change(lines: pytest.LogCaptureFixture) -> None:
    health = UpstreamHealth()
    for _ in range(5):
        fail(health, count=FAILURES_IN_A_ROW - 1)
        health.note_answer("hub", HUB)
    fail(health)
    assert lines.messages == []


def test_any_number_of_hosts_takes_little_memory() -> None:
    health = UpstreamHealth()
    for port in range(MAX_UPSTREAMS + 50):
        fail(health, "data", Origin("http", "data.test", port))
    assert len(health._upstreams) == MAX_UPSTREAMS


def test_an_upstream_that_changes_all_the_time_has_a_line_a_minute(
    lines: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    health = UpstreamHealth(lambda: now)
    for _ in range(200):
        fail(health, count=FAILURES_IN_A_ROW)
        health.note_answer("hub", HUB)
        now += 0.25
    now += 10  # a minute after the first line
    fail(health, count=FAILURES_IN_A_ROW)
    assert lines.messages == [
        "the Hub at hub.test fails: status 503",
        "the Hub at hub.test answers again, after 0 s",
        "the Hub at hub.test fails, 199 times since the last such line: status 503",
    ]


def test_an_outage_that_lasts_has_a_line_however_soon_it_begins(
    lines: pytest.LogCaptureFixture,
) -> None:
    now = 1000.0
    health = UpstreamHealth(lambda: now)
    for _ in range(2):
        fail(health, count=FAILURES_IN_A_ROW)
        health.note_answer("hub", HUB)
    fail(health, count=FAILURES_IN_A_ROW)
    lines.clear()
    now += PAUSE
    fail(health)
    now += 60
    health.note_answer("hub", HUB)
    assert lines.messages == [
        "the Hub at hub.test fails, 2 times since the last such line: status 503",
        "the Hub at hub.test answers again, after 120 s",
    ]
    assert len(health._upstreams) == 0
