"""What the process counts. No I/O: it is read by whoever shows it. Names follow Prometheus: base
units, _total.
"""

from typing import Final

from xetserve.metrics.instruments import Counter, Gauge, Histogram, Registry

REGISTRY: Final = Registry()

# Values of the label "route": every request has one of them.
ROUTES: Final = (
    "page", "health", "ready", "metrics", "status", "operator", "download", "download-hash",
    "resolve", "raw", "api", "manage", "lfs", "registry", "reconstruction", "xorb", "options",
    "other",
)  # fmt: skip


# What clients asked for, and what they got.

BUILD_INFO = Gauge(
    REGISTRY, "xetserve_build_info", "1, with what this is.", ("version", "python"), unite=max
)
WORKERS = Gauge(REGISTRY, "xetserve_workers", "Processes that serve.")
WORKER_RESTARTS = Counter(
    REGISTRY, "xetserve_worker_restarts_total", "Workers that took the place of one that had died."
)
DRAINING = Gauge(REGISTRY, "xetserve_draining", "1 once the server drains.", unite=max)
CONNECTIONS = Gauge(REGISTRY, "xetserve_connections", "Clients that are connected.")
ACTIVE_REQUESTS = Gauge(REGISTRY, "xetserve_active_requests", "Requests under way.")
REQUESTS = Counter(
    REGISTRY,
    "xetserve_requests_total",
    "Requests that were answered, well or badly.",
    ("route", "status"),
)
CUT_REQUESTS = Counter(
    REGISTRY,
    "xetserve_cut_requests_total",
    "Answers that did not leave to their end: the client left, or they were cut.",
    ("route",),
)
SENT_BYTES = Counter(
    REGISTRY, "xetserve_sent_bytes_total", "Body bytes that left for clients.", ("route",)
)
FIRST_BYTE = Histogram(
    REGISTRY,
    "xetserve_first_byte_seconds",
    "From a request's head to the first body bytes that have left.",
    ("route",),
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
DURATION = Histogram(
    REGISTRY,
    "xetserve_request_duration_seconds",
    "From a request's head to the end of its answer.",
    ("route",),
    bounds=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
METADATA_HITS = Counter(
    REGISTRY,
    "xetserve_metadata_hits_total",
    "Questions that were answered from what is known.",
    ("kind",),
)
METADATA_MISSES = Counter(
    REGISTRY,
    "xetserve_metadata_misses_total",
    "Questions that the Hub or the CAS was asked.",
    ("kind",),
)
METADATA_STALE = Counter(
    REGISTRY,
    "xetserve_metadata_stale_total",
    "Answers given although they were old, because nobody could be asked.",
    ("kind",),
)
METADATA_DAMAGED = Counter(
    REGISTRY,
    "xetserve_metadata_damaged_total",
    "Stored answers dropped because they were not as written.",
)
ACCEPT_PAUSES = Counter(
    REGISTRY,
    "xetserve_accept_pauses_total",
    "Times that no client could be accepted.",
    ("cause",),
)
CONNECTIONS_REFUSED = Counter(
    REGISTRY,
    "xetserve_connections_refused_total",
    "Connections answered and closed at once.",
    ("status",),
)
REQUESTS_REFUSED = Counter(
    REGISTRY,
    "xetserve_requests_refused_total",
    "Requests beyond a limit of the operator's.",
    ("limit",),
)
CLIENT_TIMEOUTS = Counter(
    REGISTRY,
    "xetserve_client_timeouts_total",
    "Clients given up because they were too slow.",
    ("waited_for",),
)
ENTRIES_FAILED = Counter(
    REGISTRY,
    "xetserve_entries_failed_total",
    "Connections that ended before a request could be read.",
    ("cause",),
)

# The Hub, the CAS, the data hosts: label "upstream" is hub, cas or data.

UPSTREAM_REQUESTS = Counter(
    REGISTRY, "xetserve_upstream_requests_total", "Requests sent.", ("upstream",)
)
UPSTREAM_FAILURES = Counter(
    REGISTRY,
    "xetserve_upstream_failures_total",
    "Requests without an answer, or with one of 429 or 5xx; those that were tried again, too.",
    ("upstream",),
)
UPSTREAM_RETRIES = Counter(
    REGISTRY,
    "xetserve_upstream_retries_total",
    "Requests that were tried again.",
    ("upstream", "cause"),
)
UPSTREAM_BYTES = Counter(
    REGISTRY, "xetserve_upstream_bytes_total", "Body bytes received.", ("upstream",)
)
UPSTREAM_LAST_ANSWER = Gauge(
    REGISTRY,
    "xetserve_upstream_last_answer_timestamp_seconds",
    "When one of them last answered with less than 500; 0: not yet.",
    ("upstream",),
    unite=max,
)
UPSTREAM_CONNECTIONS = Gauge(
    REGISTRY,
    "xetserve_upstream_connections",
    "Open connections to upstreams, in use (active) and kept (idle).",
    ("state",),
)
EXPIRED_URLS = Counter(
    REGISTRY,
    "xetserve_expired_urls_total",
    "Data URLs that had run out and were asked for again.",
)

# From there to here.

INTEGRITY_FAILURES = Counter(
    REGISTRY,
    "xetserve_integrity_failures_total",
    "Answers cut because the data was not what was promised.",
)
STRANGE_GRANTS = Counter(
    REGISTRY,
    "xetserve_strange_grants_total",
    "Data requests refused because the URL was another instance's, which had not proven the file.",
)
READERS = Gauge(REGISTRY, "xetserve_readers", "Answers that are being made of file data.")
WINDOWS = Gauge(REGISTRY, "xetserve_windows", "Windows of files that are planned and not finished.")
FETCHES = Gauge(
    REGISTRY, "xetserve_fetches", "Xorb ranges that are being fetched, or kept for followers."
)
FETCH_WAITS = Counter(
    REGISTRY,
    "xetserve_fetch_waits_total",
    "Times that a fetch stopped reading until its client had taken something, "
    "or the budget had room.",
)
BUDGET_HELD = Gauge(REGISTRY, "xetserve_budget_held_bytes", "File data that is held.")
BUDGET_LIMIT = Gauge(REGISTRY, "xetserve_budget_limit_bytes", "What memory_budget allows.")
BUDGET_REFUSALS = Counter(
    REGISTRY,
    "xetserve_budget_refusals_total",
    "Times that fetching ahead was not begun because the budget had no room.",
)
CACHE_HITS = Counter(REGISTRY, "xetserve_cache_hits_total", "Xorb ranges that the disk cache had.")
CACHE_MISSES = Counter(REGISTRY, "xetserve_cache_misses_total", "Xorb ranges that it did not have.")
CACHE_BYTES = Counter(
    REGISTRY, "xetserve_cache_bytes_total", "Packed bytes that came from the disk cache."
)
CACHE_STORED_BYTES = Counter(
    REGISTRY, "xetserve_cache_stored_bytes_total", "Packed bytes written to it."
)
CACHE_EVICTIONS = Counter(
    REGISTRY,
    "xetserve_cache_evictions_total",
    "Entries removed from it to make room for others.",
)
CACHE_DAMAGED = Counter(
    REGISTRY,
    "xetserve_cache_damaged_total",
    "Entries removed from it because they were not as written.",
)
CACHE_ABANDONED = Counter(
    REGISTRY,
    "xetserve_cache_abandoned_total",
    "Ranges that were fetched but not kept.",
    ("cause",),
)
CACHE_SIZE = Gauge(
    REGISTRY, "xetserve_cache_size_bytes", "Bytes in the cache's folder, about.", unite=max
)
CACHE_LIMIT = Gauge(
    REGISTRY, "xetserve_cache_limit_bytes", "What cache_size allows; 0: no cache.", unite=max
)
CACHE_UNPROVEN = Gauge(
    REGISTRY,
    "xetserve_cache_unproven_entries",
    "Entries in it that no proof of a file or xorb covers yet, when it was last swept.",
    unite=max,
)

LOOP_LAG = Histogram(
    REGISTRY,
    "xetserve_loop_lag_seconds",
    "How much later than it wanted a task came to its turn, ten times a second.",
    bounds=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LOOP_LAG_MAX = Gauge(
    REGISTRY, "xetserve_loop_lag_max_seconds", "The longest of them since the start.", unite=max
)

# The processes, under the names that everybody gives them. The supervisor is not among them.

CPU_SECONDS = Counter(
    REGISTRY, "process_cpu_seconds_total", "CPU time of all workers, those before them, too."
)
RESIDENT_MEMORY = Gauge(
    REGISTRY,
    "process_resident_memory_bytes",
    "Resident memory, all workers; pages they share count for each.",
)
OPEN_FILES = Gauge(REGISTRY, "process_open_fds", "Open files, all workers.")
MAX_FILES = Gauge(REGISTRY, "process_max_fds", "Files that may be open, all workers.")
START_TIME = Gauge(
    REGISTRY, "process_start_time_seconds", "When the server has started.", unite=min
)
