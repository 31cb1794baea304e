"""Counting work, where time would be measured otherwise: steps of patterns, lines of code,
characters that are copied.

A pattern is run here by an interpreter that tries what Python's engine tries, in the same order,
and counts each look at a character. Lines are counted by a tracer, and with each line the text that
it has made.
"""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from types import CodeType, FrameType
from typing import Any

import pytest

Text = str | bytes | bytearray
# From a position on: called with where it ends, it tells whether the rest matches too.
Rest = Callable[[int], bool]
Step = Callable[[str, int, Rest], bool]

_CATEGORIES = {
    sre.CATEGORY_DIGIT: "0123456789",
    sre.CATEGORY_SPACE: " \t\n\r\f\v",
    sre.CATEGORY_WORD: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_",
}
# What stands for a class of characters, the first one of these that it holds.
_USUAL = "a0 \t,;=\"\\<>/:?%-.[]{}()'\n\x00"


class Steps:
    """Counts."""

    def __init__(self) -> None:
        self.count = 0


class CountedPattern:
    """A pattern that counts the steps of its engine, and gives what the real one gives."""

    def __init__(self, pattern: re.Pattern[Any], steps: Steps) -> None:
        self._pattern = pattern
        self._steps = steps
        tree = _parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
        self._is_folded = bool(pattern.flags & re.IGNORECASE)
        self.tree = tree
        self._run = self._compile(tree)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pattern, name)

    def fullmatch(self, text: Text, *bounds: int) -> Any:
        self._count(text, "fullmatch", *bounds)
        return self._pattern.fullmatch(text, *bounds)

    def match(self, text: Text, *bounds: int) -> Any:
        self._count(text, "match", *bounds)
        return self._pattern.match(text, *bounds)

    def search(self, text: Text, *bounds: int) -> Any:
        self._count(text, "search", *bounds)
        return self._pattern.search(text, *bounds)

    def finditer(self, text: Text, *bounds: int) -> Any:
        position, last = bounds[0] if bounds else 0, len(text)
        while position <= last:  # an iterator is asked for as long as somebody wants more
            self._count(text, "search", position)
            found = self._pattern.search(text, position)
            if found is None:
                return
            yield found
            position = max(found.end(), position + 1)

    def findall(self, text: Text) -> Any:
        self.count_all(text, "finditer")
        return self._pattern.findall(text)

    def sub(self, new: Any, text: Text) -> Any:
        self.count_all(text, "finditer")
        return self._pattern.sub(new, text)

    def count_all(self, text: Text, method: str) -> int:
        """Use the pattern on a text to its end; gives the steps that it took."""
        before, position = self._steps.count, 0
        while position <= len(text):
            end = self._count(
                text, method if method in ("fullmatch", "match") else "search", position
            )
            if end is None or method in ("fullmatch", "search"):
                break
            position = max(end, position + 1)
        return self._steps.count - before

    def _count(self, text: Text, method: str, start: int = 0, end: int | None = None) -> int | None:
        plain = text if isinstance(text, str) else bytes(text).decode("latin-1")
        plain = plain[:end]
        ends: list[int] = []

        def finish(position: int) -> bool:
            if method == "fullmatch" and position != len(plain):
                return False
            ends.append(position)
            return True

        for begin in range(start, len(plain) + 1 if method == "search" else start + 1):
            self._steps.count += 1
            if self._run(plain, begin, finish):
                return ends[0]
        return None

    # From a parsed pattern to functions

    def _compile(self, nodes: Iterable[Any]) -> Step:
        steps = [self._compile_node(op, value) for op, value in nodes]

        def run(text: str, position: int, rest: Rest, number: int = 0) -> bool:
            if number == len(steps):
                return rest(position)
            return steps[number](text, position, lambda end: run(text, end, rest, number + 1))

        return run

    def _compile_node(self, op: Any, value: Any) -> Step:
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._compile_character(op, value)
        if op is sre.SUBPATTERN:
            return self._compile(value[3])
        if op is sre.ATOMIC_GROUP:
            return _make_atomic(self._compile(value))
        if op is sre.BRANCH:
            return _make_branch([self._compile(each) for each in value[1]])
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            least, most, inner = value
            return self._compile_repeat(int(least), int(most), inner, is_lazy=op is sre.MIN_REPEAT)
        if op is sre.POSSESSIVE_REPEAT:
            least, most, inner = value
            return _make_atomic(self._compile_repeat(int(least), int(most), inner, is_lazy=False))
        if op in (sre.ASSERT, sre.ASSERT_NOT):
            return self._compile_look(value, is_wanted=op is sre.ASSERT)
        if op is sre.AT:
            return self._compile_place(value)
        raise AssertionError(f"cannot count {op} in {self._pattern.pattern!r}")

    def _compile_character(self, op: Any, value: Any) -> Step:
        held = self._list_held(op, value)

        def run(text: str, position: int, rest: Rest) -> bool:
            self._steps.count += 1
            return text[position : position + 1] in held and rest(position + 1)

        return run

    def _list_held(self, op: Any, value: Any) -> frozenset[str]:
        held = {char for char in map(chr, range(256)) if is_held(op, value, char)}
        if self._is_folded:
            held |= {case for char in held for case in (char.lower(), char.upper())}
        return frozenset(held)

    def _compile_repeat(self, least: int, most: int, nodes: Any, *, is_lazy: bool) -> Step:
        if len(nodes) == 1 and nodes[0][0] in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            return self._compile_run(least, most, *nodes[0], is_lazy=is_lazy)
        inner = self._compile(nodes)

        def run(text: str, position: int, rest: Rest, number: int = 0) -> bool:
            self._steps.count += 1

            def again(end: int) -> bool:
                return end > position and run(text, end, rest, number + 1)

            if is_lazy and number >= least and rest(position):
                return True
            if number < most and inner(text, position, again):
                return True
            return not is_lazy and number >= least and rest(position)

        return run

    def _compile_run(self, least: int, most: int, op: Any, value: Any, *, is_lazy: bool) -> Step:
        """Repeat one character: a loop, as in the real engine."""
        held = self._list_held(op, value)

        def run(text: str, position: int, rest: Rest) -> bool:
            end = position
            while end < len(text) and end - position < most and text[end] in held:
                end += 1
            self._steps.count += end - position
            ends = range(position + least, end + 1)
            for each in ends if is_lazy else reversed(ends):
                self._steps.count += 1
                if rest(each):
                    return True
            return False

        return run

    def _compile_look(self, value: Any, *, is_wanted: bool) -> Step:
        assert value[0] == 1, "looks ahead only"
        inner = self._compile(value[1])

        def run(text: str, position: int, rest: Rest) -> bool:
            return inner(text, position, lambda _: True) is is_wanted and rest(position)

        return run

    def _compile_place(self, place: Any) -> Step:
        def run(text: str, position: int, rest: Rest) -> bool:
            self._steps.count += 1
            if place is sre.AT_BOUNDARY:
                word = _CATEGORIES[sre.CATEGORY_WORD]
                sides = [text[position - 1 : position], text[position : position + 1]]
                is_there = len({bool(side) and side in word for side in sides}) == 2
            elif place in (sre.AT_END, sre.AT_END_STRING):
                is_there = position == len(text)
            else:
                is_there = position == 0
            return is_there and rest(position)

        return run


def _make_branch(branches: Sequence[Step]) -> Step:
    def run(text: str, position: int, rest: Rest) -> bool:
        for branch in branches:  # noqa: SIM110 - any() would run deep inside of C
            if branch(text, position, rest):
                return True
        return False

    return run


def _make_atomic(inner: Step) -> Step:
    def run(text: str, position: int, rest: Rest) -> bool:
        ends: list[int] = []

        def finish(end: int) -> bool:
            ends.append(end)
            return True

        return inner(text, position, finish) and rest(ends[0])

    return run


def is_held(op: Any, value: Any, char: str) -> bool:
    """Tell whether a character is one of a class."""
    if op is sre.ANY:
        return char != "\n"
    if op is sre.LITERAL:
        return bool(ord(char) == value)
    if op is sre.NOT_LITERAL:
        return bool(ord(char) != value)
    is_negated = value[0][0] is sre.NEGATE
    return is_negated is not any(_is_in(each, char) for each in value)


def _is_in(item: Any, char: str) -> bool:
    kind, value = item
    if kind is sre.RANGE:
        return bool(value[0] <= ord(char) <= value[1])
    if kind is sre.CATEGORY:
        if value in _CATEGORIES:
            return char in _CATEGORIES[value]
        opposite = getattr(sre, value.name.replace("_NOT_", "_"))
        return char not in _CATEGORIES[opposite]
    return kind is sre.LITERAL and bool(ord(char) == value)


# Texts that a pattern might take long for


def make_attacks(pattern: CountedPattern, sizes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Make texts that begin as the pattern wants, go on with something again and again, and end
    well or badly.

    Args:
        sizes: how often it is repeated; there is a text for each.
    """
    seen = set()
    for repeats, choice in ((1, 0), (1, -1), (2, 0), (2, -1)):
        sample = "".join(_sample(pattern.tree, repeats, choice))
        pumps = {" ", "a", "0", *sample[:40]}
        for cut in range(min(len(sample), 40) + 1):
            for pump in pumps | {sample[cut : cut + width] for width in (2, 3, 5)}:
                for end in ("", "\x00"):
                    texts = tuple(sample[:cut] + pump * size + end for size in sizes)
                    if texts not in seen:
                        seen.add(texts)
                        yield texts


def _sample(nodes: Iterable[Any], repeats: int, choice: int) -> Iterator[str]:
    """Write something that the pattern matches, more or less."""
    for op, value in nodes:
        if op in (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN):
            own = chr(value) if op is sre.LITERAL else ""
            others = _USUAL + "".join(map(chr, range(33, 256)))
            yield own or next(char for char in others if is_held(op, value, char))
        elif op is sre.SUBPATTERN:
            yield from _sample(value[3], repeats, choice)
        elif op is sre.ATOMIC_GROUP:
            yield from _sample(value, repeats, choice)
        elif op is sre.BRANCH:
            yield from _sample(value[1][choice], repeats, choice)
        elif op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            for _ in range(min(max(value[0], repeats), value[1])):
                yield from _sample(value[2], repeats, choice)


def is_linear(costs: tuple[int, int, int]) -> bool:
    """Tell whether costs at sizes of n, 2n and 4n grow as the size does; of a square, the
    increments grow fourfold.
    """
    first, second, third = costs
    if third <= 2 * second:
        return True  # also where something has another length from a bound on
    return third - second <= 2.6 * abs(second - first) + 64


# Lines of code


class LineCounter:
    """Counts the lines of the package that run, and the characters of every text that they make."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._known: dict[tuple[int, str], object] = {}
        self._codes: dict[CodeType, bool] = {}

    @contextmanager
    def counting(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._trace)
        try:
            yield
        finally:
            sys.settrace(before)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        code = frame.f_code
        is_ours = self._codes.get(code)
        if is_ours is None:
            is_ours = self._codes[code] = "/xetserve/" in code.co_filename
        if not is_ours:
            return None
        self._look(frame)
        return self._trace

    def _look(self, frame: FrameType) -> None:
        self._steps.count += 1
        local = frame.f_locals
        self._charge(id(frame), local)
        owner = local.get("self")
        if hasattr(owner, "__dict__"):
            self._charge(id(owner), vars(owner))

    def _charge(self, owner: int, values: dict[str, Any]) -> None:
        for name, value in values.items():
            is_text = type(value) in (str, bytes, bytearray) and len(value) > 32
            if is_text and self._known.get((owner, name)) is not value:
                self._known[owner, name] = value
                self._steps.count += len(value) // 32


@contextmanager
def deep_calls() -> Iterator[None]:
    """Allow the engine to call itself for each repetition of a group; others rely on the usual
    limit.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(50_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def count_patterns(monkeypatch: pytest.MonkeyPatch, steps: Steps, rooms: Sequence[str]) -> None:
    """Let all patterns of the modules of some rooms count their steps, as far as they are
    imported.
    """
    counted: dict[int, CountedPattern] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith(tuple(f"xetserve.{room}." for room in rooms)):
            continue
        for attribute, value in list(vars(module).items()):
            if isinstance(value, re.Pattern):
                if id(value) not in counted:
                    counted[id(value)] = CountedPattern(value, steps)
                monkeypatch.setattr(module, attribute, counted[id(value)])
