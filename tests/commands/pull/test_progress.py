"""What is shown of something that goes on, on a terminal and elsewhere."""

import pytest

from tests.commands.pull.screen import Screen
from xetserve.base.sizes import format_size
from xetserve.commands.pull.progress import Progress, format_seconds, show


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (1.5e9, "1.5 GB"), (2e18, "2000.0 PB")],
)
def test_sizes(size: float, text: str) -> None:
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59.4, "59s"), (61, "1m01s"), (7260, "2h01m")]
)
def test_times(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_what_could_steer_a_terminal_is_shown_harmless() -> None:
    assert show("größe-大.bin") == "größe-大.bin"
    assert show("a\x1b[2Jb\n\u202e") == "a\\u001b[2Jb\\u000a\\u202e"


def test_elsewhere_there_is_a_line_for_each_thing() -> None:
    screen, clock = Screen(is_terminal=False), Clock()
    progress = Progress("files", 2, 100, screen, clock)
    for name in ("one", "two"):
        clock.now += 1
        progress.add(50)
        progress.finish(name)
    progress.print_line("that is all")
    progress.close()
    assert screen.getvalue() == "one\ntwo\nthat is all\n"


def test_on_a_terminal_one_line_is_drawn_again() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    progress = Progress("files", 2, 100_000, screen, clock)
    for _ in range(10):
        clock.now += 1
        progress.add(5_000)
    progress.finish("one")
    assert "\n" not in screen.getvalue()
    last = screen.getvalue().rpartition("\r")[2]
    assert "1/2 files, 50.0 kB of 100.0 kB, 5.0 kB/s, 10s left" in last
    progress.print_line("trouble")
    before, _, after = screen.getvalue().partition("trouble\n")
    assert before.endswith(" \r")  # the line has made room
    assert after.startswith("\r")
    progress.close()
    assert screen.getvalue().endswith(" \r")


def test_what_is_not_known_is_not_shown() -> None:
    clock = Clock()
    progress = Progress("files", 0, 0, Screen(is_terminal=True), clock)
    clock.now += 1
    progress.add(10)
    assert progress.describe() == "0 files, 10 B, 10 B/s"


def test_a_line_that_is_drawn_too_often_is_not() -> None:
    screen, clock = Screen(is_terminal=True), Clock()
    progress = Progress("files", 1, 10, screen, clock)
    for _ in range(100):
        progress.add(1)
        clock.now += 0.001
    assert screen.getvalue().count("\r") == 0
