"""Results: figures with the values of all runs, and their goals."""

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on a figure's median."""

    limit: float
    at_most: bool

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:g}"

    def is_met(self, value: float) -> bool:
        """Return whether a value meets the goal."""
        return value <= self.limit if self.at_most else value >= self.limit


def at_least(limit: float) -> Goal:
    """Return a goal with a lower bound."""
    return Goal(limit, at_most=False)


def at_most(limit: float) -> Goal:
    """Return a goal with an upper bound."""
    return Goal(limit, at_most=True)


@dataclass(slots=True)
class Figure:
    """One quantity with a value for each run. is_estimate: computed from others, not measured."""

    section: str
    name: str
    unit: str = ""
    goal: Goal | None = None
    is_estimate: bool = False
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def is_met(self) -> bool | None:
        """Return whether the median meets the goal; None without a goal."""
        return None if self.goal is None else self.goal.is_met(self.median)


class Results:
    """Figures and remarks by section, in the order in which they were added."""

    def __init__(self) -> None:
        self.section = ""
        self.figures: dict[tuple[str, str], Figure] = {}
        self.remarks: list[tuple[str, str]] = []
        self.about: dict[str, Any] = {}

    def note(self, name: str, value: float, unit: str = "", goal: Goal | None = None) -> None:
        """Add one run's value to a figure of the current section."""
        figure = self.figures.setdefault(
            (self.section, name), Figure(self.section, name, unit, goal)
        )
        figure.values.append(value)

    def estimate(self, name: str, value: float, unit: str) -> None:
        """Add a computed figure to the current section."""
        self.figures[self.section, name] = Figure(
            self.section, name, unit, is_estimate=True, values=[value]
        )

    def remark(self, text: str) -> None:
        """Add a sentence to the current section, once."""
        if (self.section, text) not in self.remarks:
            self.remarks.append((self.section, text))

    def find(self, section: str, name: str) -> Figure | None:
        """Return a figure; None: it was not measured."""
        return self.figures.get((section, name))

    def median(self, section: str, name: str) -> float | None:
        """Return a figure's median; None: it was not measured."""
        figure = self.find(section, name)
        return None if figure is None else figure.median

    def sections(self) -> Iterable[str]:
        """Yield each section once."""
        names = [section for section, _ in self.figures]
        return dict.fromkeys(names + [section for section, _ in self.remarks])

    def in_section(self, section: str) -> list[Figure]:
        """Return the figures of a section."""
        return [figure for figure in self.figures.values() if figure.section == section]

    def to_json(self) -> str:
        """Return all results as JSON, with medians, minima and maxima."""
        figures = []
        for figure in self.figures.values():
            summary = {"median": figure.median, "min": figure.low, "max": figure.high}
            figures.append({**asdict(figure), **summary, "is_met": figure.is_met})
        value = {"about": self.about, "figures": figures, "remarks": self.remarks}
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def parse_results(text: str) -> Results:
    """Parse the text that to_json returns.

    Raises:
        ValueError, KeyError: text has another form.
    """
    value = json.loads(text)
    results = Results()
    results.about = value["about"]
    results.remarks = [(section, remark) for section, remark in value["remarks"]]
    for item in value["figures"]:
        goal = None if item["goal"] is None else Goal(**item["goal"])
        figure = Figure(
            item["section"], item["name"], item["unit"], goal, item["is_estimate"], item["values"]
        )
        results.figures[figure.section, figure.name] = figure
    return results
