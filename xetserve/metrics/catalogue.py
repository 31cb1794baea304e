"""The catalogue of all metrics. No I/O.

Names follow the conventions of Prometheus: base units, and _total for counters.
"""

from typing import Final

from xetserve.metrics.instruments import Counter, Gauge, Histogram, Registry, SharedGauge

REGISTRY: Final = Registry()

# The values of the label "route"; every request has one of them.
ROUTES: Final = (
    "page", "health", "ready", "metrics", "status", "operator", "download", "download-hash",
    "resolve", "raw", "link", "api", "manage", "lfs", "git", "registry", "login", "reconstruction",
    "xorb", "options", "other",
)  # fmt: skip


# Requests of clients, and responses to them.

BUILD_INFO = Gauge(
    REGISTRY,
    "xetserve_build_info",
    "1; the labels have the versions.",
    ("version", "python"),
    unite=max,
)
CONFIG_RELOADED = SharedGauge(
    REGISTRY,
    "xetserve_config_last_reload_successful",
    "1: the last reload was applied; 0: it failed, and the settings before it are in force.",
)
CONFIG_RELOAD_TIME = SharedGauge(
    REGISTRY,
    "xetserve_config_last_reload_timestamp_seconds",
    "Time of the last successful reload, or of the start.",
)
CONFIG_INFO = SharedGauge(
    REGISTRY,
    "xetserve_config_info",
    "1; the label has the SHA-256 of the configuration file that was last loaded, if any.",
    ("sha256",),
)
TLS_EXPIRY = SharedGauge(
    REGISTRY,
    "xetserve_tls_certificate_expiry_seconds",
    "Unix time at which the TLS certificate of new connections expires.",
)
UPGRADED = SharedGauge(
    REGISTRY,
    "xetserve_last_upgrade_successful",
    "0: the last SIGUSR2 started no server that took over, and this one goes on; else 1.",
)
WORKERS = Gauge(REGISTRY, "xetserve_workers", "Running worker processes.")
WORKER_RESTARTS = Counter(
    REGISTRY, "xetserve_worker_restarts_total", "Workers started to replace a dead one."
)
DRAINING = Gauge(REGISTRY, "xetserve_draining", "1 while the server drains.", unite=max)
DEGRADED = Gauge(
    REGISTRY,
    "xetserve_degraded",
    "1 while the Hub does not answer (hub), or nothing can be written to the cache (cache).",
    ("cause",),
    unite=max,
)
CONNECTIONS = Gauge(REGISTRY, "xetserve_connections", "Open connections of clients.")
ACTIVE_REQUESTS = Gauge(REGISTRY, "xetserve_active_requests", "Active requests.")
REQUESTS = Counter(
    REGISTRY,
    "xetserve_requests_total",
    "Answered requests, by status.",
    ("route", "status"),
)
CUT_REQUESTS = Counter(
    REGISTRY,
    "xetserve_cut_requests_total",
    "Responses that were not sent to their end: the client left, or the server cut them.",
    ("route",),
)
SENT_BYTES = Counter(
    REGISTRY, "xetserve_sent_bytes_total", "Body bytes sent to clients.", ("route",)
)
FIRST_BYTE = Histogram(
    REGISTRY,
    "xetserve_first_byte_seconds",
    "Time from a request's head until the first body bytes are sent.",
    ("route",),
    bounds=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
DURATION = Histogram(
    REGISTRY,
    "xetserve_request_duration_seconds",
    "Time from a request's head to the end of its response.",
    ("route",),
    bounds=(0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0),
)
METADATA_HITS = Counter(
    REGISTRY,
    "xetserve_metadata_hits_total",
    "Metadata requests answered from the cache.",
    ("kind",),
)
METADATA_MISSES = Counter(
    REGISTRY,
    "xetserve_metadata_misses_total",
    "Metadata requests sent to the Hub or the CAS.",
    ("kind",),
)
METADATA_STALE = Counter(
    REGISTRY,
    "xetserve_metadata_stale_total",
    "Stale answers served because the upstream was unavailable.",
    ("kind",),
)
METADATA_DAMAGED = Counter(
    REGISTRY,
    "xetserve_metadata_damaged_total",
    "Stored answers dropped because they were damaged.",
)
ACCEPT_PAUSES = Counter(
    REGISTRY,
    "xetserve_accept_pauses_total",
    "Pauses of accepting after accept() failed.",
    ("cause",),
)
CONNECTIONS_REFUSED = Counter(
    REGISTRY,
    "xetserve_connections_refused_total",
    "Connections refused with a response and closed.",
    ("status",),
)
REQUESTS_REFUSED = Counter(
    REGISTRY,
    "xetserve_requests_refused_total",
    "Requests refused because of a limit.",
    ("limit",),
)
CLIENT_TIMEOUTS = Counter(
    REGISTRY,
    "xetserve_client_timeouts_total",
    "Clients that were cut because they were too slow.",
    ("waited_for",),
)
ENTRIES_FAILED = Counter(
    REGISTRY,
    "xetserve_entries_failed_total",
    "Connections that failed before their first request.",
    ("cause",),
)

# Upstreams; the label "upstream" is hub, cas or data.

UPSTREAM_REQUESTS = Counter(
    REGISTRY, "xetserve_upstream_requests_total", "Requests sent.", ("upstream",)
)
UPSTREAM_FAILURES = Counter(
    REGISTRY,
    "xetserve_upstream_failures_total",
    "Requests without a response, or with status 429 or 5xx, retried ones included.",
    ("upstream",),
)
UPSTREAM_THROTTLED = Counter(
    REGISTRY, "xetserve_upstream_throttled_total", "Requests with status 429.", ("upstream",)
)
UPSTREAM_RETRIES = Counter(
    REGISTRY,
    "xetserve_upstream_retries_total",
    "Retried requests.",
    ("upstream", "cause"),
)
UPSTREAM_BYTES = Counter(
    REGISTRY, "xetserve_upstream_bytes_total", "Body bytes received.", ("upstream",)
)
UPSTREAM_LAST_ANSWER = Gauge(
    REGISTRY,
    "xetserve_upstream_last_answer_timestamp_seconds",
    "Time of the last response with a status below 500; 0: none yet.",
    ("upstream",),
    unite=max,
)
UPSTREAM_CONNECTIONS = Gauge(
    REGISTRY,
    "xetserve_upstream_connections",
    "Open connections to upstreams, in use (active) or not (idle).",
    ("state",),
)
EXPIRED_URLS = Counter(
    REGISTRY,
    "xetserve_expired_urls_total",
    "Expired data URLs that were requested again from the CAS.",
)

# Data from upstream to client.

INTEGRITY_FAILURES = Counter(
    REGISTRY,
    "xetserve_integrity_failures_total",
    "Responses cut because the data did not match its hash.",
)
PROOFS = Counter(
    REGISTRY,
    "xetserve_proofs_total",
    "Files read in the background to prove them after a cut.",
    ("result",),
)
STRANGE_GRANTS = Counter(
    REGISTRY,
    "xetserve_strange_grants_total",
    "Data requests refused because another instance made the URL before the file was proven.",
)
READERS = Gauge(REGISTRY, "xetserve_readers", "Responses that are being rebuilt from file data.")
WINDOWS = Gauge(REGISTRY, "xetserve_windows", "Windows of files that are planned but not finished.")
FETCHES = Gauge(
    REGISTRY, "xetserve_fetches", "Xorb ranges that are being fetched or held for followers."
)
FETCH_WAITS = Counter(
    REGISTRY,
    "xetserve_fetch_waits_total",
    "Pauses of a fetch until its client had read data or the budget had room.",
)
BUDGET_HELD = Gauge(REGISTRY, "xetserve_budget_held_bytes", "File data held in memory.")
BUDGET_LIMIT = Gauge(REGISTRY, "xetserve_budget_limit_bytes", "The value of memory_budget.")
BUDGET_REFUSALS = Counter(
    REGISTRY,
    "xetserve_budget_refusals_total",
    "Prefetches not started because the budget had no room.",
)
CACHE_HITS = Counter(REGISTRY, "xetserve_cache_hits_total", "Xorb ranges found in the disk cache.")
CACHE_MISSES = Counter(REGISTRY, "xetserve_cache_misses_total", "Xorb ranges not found in it.")
CACHE_BYTES = Counter(
    REGISTRY, "xetserve_cache_bytes_total", "Packed bytes read from the disk cache."
)
CACHE_PROVEN_BYTES = Counter(
    REGISTRY,
    "xetserve_cache_proven_bytes_total",
    "Packed bytes of them that native clients got without decoding, since they were proven before.",
)
CACHE_STORED_BYTES = Counter(
    REGISTRY, "xetserve_cache_stored_bytes_total", "Packed bytes written to it."
)
CACHE_EVICTIONS = Counter(
    REGISTRY,
    "xetserve_cache_evictions_total",
    "Entries removed from it to make room.",
)
CACHE_DAMAGED = Counter(
    REGISTRY,
    "xetserve_cache_damaged_total",
    "Entries removed from it because they were damaged.",
)
CACHE_ABANDONED = Counter(
    REGISTRY,
    "xetserve_cache_abandoned_total",
    "Ranges that were fetched but not stored.",
    ("cause",),
)
CACHE_SIZE = Gauge(
    REGISTRY, "xetserve_cache_size_bytes", "Approximate bytes in the cache folder.", unite=max
)
CACHE_LIMIT = Gauge(
    REGISTRY, "xetserve_cache_limit_bytes", "The value of cache_size; 0: no cache.", unite=max
)
CACHE_TROUBLE = Gauge(
    REGISTRY,
    "xetserve_cache_trouble",
    "1: nothing can be kept because the disk fails or is full, or cache_size is too small.",
    ("cause",),
    unite=max,
)
CACHE_UNPROVEN = Gauge(
    REGISTRY,
    "xetserve_cache_unproven_entries",
    "Entries in it that no proven file or xorb covers, at the last sweep.",
    unite=max,
)

LOOP_LAG = Histogram(
    REGISTRY,
    "xetserve_loop_lag_seconds",
    "Delay of a task that wakes ten times a second.",
    bounds=(0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
)
LOOP_LAG_MAX = Gauge(
    REGISTRY, "xetserve_loop_lag_max_seconds", "The longest delay since the start.", unite=max
)

# Processes, under the standard names of Prometheus clients. The supervisor is not included.

CPU_SECONDS = Counter(
    REGISTRY, "process_cpu_seconds_total", "CPU time of all workers, ended ones included."
)
RESIDENT_MEMORY = Gauge(
    REGISTRY,
    "process_resident_memory_bytes",
    "Resident memory of all workers; shared pages count for each.",
)
OPEN_FILES = Gauge(REGISTRY, "process_open_fds", "Open files of all workers.")
MAX_FILES = Gauge(REGISTRY, "process_max_fds", "Limit of open files of all workers.")
START_TIME = Gauge(REGISTRY, "process_start_time_seconds", "Start time of the server.", unite=min)
