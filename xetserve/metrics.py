"""Counters and gauges of the process. No I/O: they are read by whoever shows them."""

from collections import defaultdict


class Counter:
    """A number that only grows, for each combination of its labels' values."""

    def __init__(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> None:
        self.name = name
        self.help_text = help_text
        self.labels = labels
        self.values: dict[tuple[str, ...], float] = defaultdict(float)

    def add(self, *label_values: str, amount: float = 1) -> None:
        """Count amount for these label values."""
        self.values[label_values] += amount

    @property
    def total(self) -> float:
        """The sum over all labels."""
        return sum(self.values.values())


UPSTREAM_RETRIES = Counter(
    "xetserve_upstream_retries_total", "Requests that were tried again.", ("upstream", "cause")
)
UPSTREAM_BYTES = Counter(
    "xetserve_upstream_bytes_total", "Body bytes received from data hosts.", ()
)
INTEGRITY_FAILURES = Counter(
    "xetserve_integrity_failures_total", "Answers cut because the data was not what was promised."
)
EXPIRED_URLS = Counter(
    "xetserve_expired_urls_total", "Data URLs that had run out and were asked for again."
)
