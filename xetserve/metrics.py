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
CACHE_HITS = Counter("xetserve_cache_hits_total", "Xorb ranges that the disk cache had.")
CACHE_MISSES = Counter("xetserve_cache_misses_total", "Xorb ranges that it did not have.")
CACHE_BYTES = Counter("xetserve_cache_bytes_total", "Packed bytes that came from the disk cache.")
CACHE_STORED_BYTES = Counter("xetserve_cache_stored_bytes_total", "Packed bytes written to it.")
CACHE_EVICTIONS = Counter(
    "xetserve_cache_evictions_total", "Entries removed from it to make room for others."
)
CACHE_DAMAGED = Counter(
    "xetserve_cache_damaged_total", "Entries removed from it because they were not as written."
)
CACHE_ABANDONED = Counter(
    "xetserve_cache_abandoned_total", "Ranges that were fetched but not kept.", ("cause",)
)
METADATA_HITS = Counter(
    "xetserve_metadata_hits_total", "Questions that were answered from what is known.", ("kind",)
)
METADATA_MISSES = Counter(
    "xetserve_metadata_misses_total", "Questions that the Hub or the CAS was asked.", ("kind",)
)
METADATA_STALE = Counter(
    "xetserve_metadata_stale_total",
    "Answers given although they were old, because nobody could be asked.",
    ("kind",),
)
METADATA_DAMAGED = Counter(
    "xetserve_metadata_damaged_total", "Stored answers dropped because they were not as written."
)
ACCEPT_PAUSES = Counter(
    "xetserve_accept_pauses_total", "Times that no client could be accepted.", ("cause",)
)
CONNECTIONS_REFUSED = Counter(
    "xetserve_connections_refused_total", "Connections answered and closed at once.", ("status",)
)
REQUESTS_REFUSED = Counter(
    "xetserve_requests_refused_total", "Requests beyond a limit of the operator's.", ("limit",)
)
CLIENT_TIMEOUTS = Counter(
    "xetserve_client_timeouts_total",
    "Clients given up because they were too slow.",
    ("waited_for",),
)
ENTRIES_FAILED = Counter(
    "xetserve_entries_failed_total",
    "Connections that ended before a request could be read.",
    ("cause",),
)
