"""Settings: one frozen dataclass for each section.

Every setting is declared once, with its environment variables, its parser and its help text.
load.py and template.py use these declarations for the command line, the environment, the file, the
templates and the tables of the documentation. An unknown key or an invalid value stops the start
with a message that names it. The first line of a section's docstring appears above its table in
the documentation.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from xetserve.config.parsers import (
    MIN_BODY_BUDGET,
    MIN_BUDGET,
    OFF,
    parse_access_log,
    parse_address,
    parse_audience,
    parse_base_path,
    parse_body_budget,
    parse_bool,
    parse_compression,
    parse_cors,
    parse_count,
    parse_datasets_server,
    parse_file,
    parse_folder,
    parse_head_size,
    parse_hosts,
    parse_imports,
    parse_listen_hosts,
    parse_log_format,
    parse_log_level,
    parse_min_budget,
    parse_mode,
    parse_networks,
    parse_optional_count,
    parse_optional_seconds,
    parse_optional_url,
    parse_password,
    parse_port,
    parse_proxy_headers,
    parse_rate,
    parse_repo,
    parse_repo_management,
    parse_seconds,
    parse_secrets,
    parse_size,
    parse_tls_version,
    parse_tokens,
    parse_upstream_networks,
    parse_url,
    parse_workers,
    parse_xet_mode,
)
from xetserve.errors import ConfigError

# Measured: Python, uvloop and codecs, and what each of several workers adds.
BASE_MEMORY: Final = 40 * 1024 * 1024  # bytes
WORKER_MEMORY: Final = 20 * 1024 * 1024  # bytes


def _setting(
    default: Any,
    parse: Callable[[str], Any],
    variables: str,
    help_text: str,
    *,
    metavar: str = "",
    is_secret: bool = False,
    has_flag: bool = True,
) -> Any:
    """Declare a setting.

    A secret has no flag, because other users can see command lines, and is never printed.

    Args:
        variables: names of environment variables; the first one that is set counts.
        has_flag: whether the setting has a flag of its name, if it is not secret.
    """
    return field(
        default=default,
        repr=not is_secret,
        metadata={
            "parse": parse,
            "variables": tuple(variables.split()),
            "help": help_text,
            "metavar": metavar,
            "is_secret": is_secret,
            "has_flag": has_flag and not is_secret,
        },
    )


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """Where the server listens, with how many processes, and how it stops. Times in seconds."""

    host: str = _setting(
        "0.0.0.0",
        parse_listen_hosts,
        "XETSERVE_HOST",
        "addresses to listen on, separated by commas; :: is every address, also of IPv4 unless "
        "the list has an IPv4 address",
        metavar="ADDRESSES",
    )
    port: int = _setting(
        8080,
        parse_port,
        "XETSERVE_PORT PORT",
        "TCP port; 0: any free one, off: none",
        metavar="PORT",
    )
    unix_socket: str = _setting(
        "",
        parse_file,
        "XETSERVE_UNIX_SOCKET",
        "path of a Unix socket to listen on in addition, for plain HTTP",
        metavar="FILE",
    )
    unix_socket_mode: str = _setting(
        "660",
        parse_mode,
        "XETSERVE_UNIX_SOCKET_MODE",
        "permissions of the Unix socket's file; users with write permission may connect",
        metavar="MODE",
    )
    workers: int = _setting(
        1,
        parse_workers,
        "XETSERVE_WORKERS",
        "processes behind the port; they share the memory budget. auto: one per core",
        metavar="N",
    )
    drain_timeout: float = _setting(
        30.0,
        parse_seconds,
        "XETSERVE_DRAIN_TIMEOUT",
        "seconds that active downloads may continue after SIGTERM",
        metavar="SECONDS",
    )
    drain_delay: float = _setting(
        0.0,
        parse_optional_seconds,
        "XETSERVE_DRAIN_DELAY",
        "seconds after SIGTERM in which the server still accepts clients and /ready is 503",
        metavar="SECONDS",
    )
    idle_exit: float = _setting(
        0.0,
        parse_optional_seconds,
        "XETSERVE_IDLE_EXIT",
        "seconds without a connection after which the server exits, for a service manager that "
        "holds the sockets and starts it again; 0: never",
        metavar="SECONDS",
    )
    write_timeout: float = _setting(
        60.0,
        parse_seconds,
        "XETSERVE_WRITE_TIMEOUT",
        "seconds after which the server cuts a client that reads no byte",
        metavar="SECONDS",
    )


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """TLS to clients, and the port that redirects to it. Times in seconds."""

    tls_cert: str = _setting(
        "",
        parse_file,
        "XETSERVE_TLS_CERT",
        "PEM file with the certificate, followed by the intermediate ones; with it, the port "
        "speaks TLS",
        metavar="FILE",
    )
    tls_key: str = _setting(
        "",
        parse_file,
        "XETSERVE_TLS_KEY",
        "PEM file with the certificate's private key, without a passphrase",
        metavar="FILE",
    )
    tls_min: str = _setting(
        "1.2",
        parse_tls_version,
        "XETSERVE_TLS_MIN",
        "oldest version of TLS: 1.2 or 1.3",
        metavar="V",
    )
    tls_check_interval: float = _setting(
        10.0,
        parse_seconds,
        "XETSERVE_TLS_CHECK_INTERVAL",
        "seconds between two checks for changed certificate files",
        metavar="SECONDS",
    )
    handshake_timeout: float = _setting(
        10.0,
        parse_seconds,
        "XETSERVE_HANDSHAKE_TIMEOUT",
        "seconds for the TLS handshake, and for a PROXY header before it",
        metavar="SECONDS",
    )
    hsts_max_age: int = _setting(
        0,
        parse_optional_count,
        "XETSERVE_HSTS_MAX_AGE",
        "seconds for which browsers use only https (Strict-Transport-Security); 0: do not send "
        "the header",
        metavar="SECONDS",
    )
    redirect_port: int = _setting(
        OFF,
        parse_port,
        "XETSERVE_REDIRECT_PORT",
        "TCP port that redirects plain HTTP to https; off: none",
        metavar="PORT",
    )
    redirect_target: int = _setting(
        0,
        parse_port,
        "XETSERVE_REDIRECT_TARGET",
        "port to which redirect_port sends clients; 0: the port of the TLS listener",
        metavar="PORT",
    )
    acme_webroot: str = _setting(
        "",
        parse_folder,
        "XETSERVE_ACME_WEBROOT",
        "folder whose .well-known/acme-challenge the server publishes on redirect_port",
        metavar="DIR",
    )


@dataclass(frozen=True, slots=True)
class ProxiesConfig:
    """Reverse proxies in front of the server."""

    trusted_proxies: str = _setting(
        "",
        parse_networks,
        "XETSERVE_TRUSTED_PROXIES",
        "networks of trusted proxies, separated by commas; the server believes what they send "
        "about their clients. unix: every peer on the Unix socket",
        metavar="NETWORKS",
    )
    proxy_headers: str = _setting(
        "x-forwarded",
        parse_proxy_headers,
        "XETSERVE_PROXY_HEADERS",
        "header fields that trusted proxies set: x-forwarded (X-Forwarded-For, -Proto, -Host, "
        "-Port, -Prefix), forwarded (RFC 7239) or off",
        metavar="KIND",
    )
    proxy_protocol: bool = _setting(
        False,
        parse_bool,
        "XETSERVE_PROXY_PROTOCOL",
        "accept only connections from trusted proxies, each with a PROXY header, version 1 or 2",
        metavar="BOOL",
    )


@dataclass(frozen=True, slots=True)
class HubConfig:
    """The Hub and the CAS behind the server, and how clients may use them."""

    hub_url: str = _setting(
        "https://huggingface.co",
        parse_url,
        "XETSERVE_HUB_URL",
        "URL of the Hub; the server does not read HF_ENDPOINT, which is a setting of clients",
        metavar="URL",
    )
    datasets_server: str = _setting(
        "auto",
        parse_datasets_server,
        "XETSERVE_DATASETS_SERVER",
        "URL of the Hub's host for parts of datasets; requests for datasets-server. before the "
        "name of this server go there, with the client's token. auto: that of huggingface.co if "
        "hub_url is https://huggingface.co, else off",
        metavar="URL",
    )
    allow_anonymous: bool = _setting(
        False,
        parse_bool,
        "XETSERVE_ALLOW_ANONYMOUS",
        "serve /download and /download-hash also without a token; the Hub decides on access",
        metavar="BOOL",
    )
    hash_repo: str = _setting(
        "jedisct1/MiMo-7B-RL-GGUF",
        parse_repo,
        "XETSERVE_HASH_REPO",
        "public model repository whose read token serves /download-hash without ?repo=",
        metavar="OWNER/NAME",
    )
    repo_management: str = _setting(
        "auto",
        parse_repo_management,
        "XETSERVE_REPO_MANAGEMENT",
        "which changes of repositories are sent to the Hub. on: creating, moving, deleting, "
        "settings; off: none; auto: all except creation by Hub clients, which begin an upload "
        "with it. Uploads are always refused",
        metavar="MODE",
    )
    xet_mode: str = _setting(
        "auto",
        parse_xet_mode,
        "XETSERVE_XET_MODE",
        "which clients are offered native Xet. plain: none; native: Hub clients, for all Xet "
        "files; auto: Hub clients, for files larger than native_from",
        metavar="MODE",
    )
    native_from: int = _setting(
        50 * 1000**3,
        parse_size,
        "XETSERVE_NATIVE_FROM",
        "size in bytes above which auto offers a file natively; 0: all files",
        metavar="SIZE",
    )
    native_secret: str = _setting(
        "",
        parse_secrets,
        "XETSERVE_NATIVE_SECRET",
        "secret of at least 32 characters (openssl rand -hex 32) that signs tokens and data URLs "
        "of native clients. Servers behind one address must share it. Without it, each start "
        "creates a new one. Of several, separated by commas, the first signs and all verify",
        metavar="SECRET",
        is_secret=True,
    )
    upstream_networks: str = _setting(
        "auto",
        parse_upstream_networks,
        "XETSERVE_UPSTREAM_NETWORKS",
        "networks, separated by commas, that redirects, CAS URLs and data URLs may lead to "
        "besides public addresses. public: none. auto: private networks if hub_url has a private "
        "address, and also loopback if hub_url has a loopback address",
        metavar="NETWORKS",
    )
    upstream_timeout: float = _setting(
        8.0,
        parse_seconds,
        "XETSERVE_UPSTREAM_TIMEOUT",
        "seconds without a byte for the client, retries included, after which a download fails; "
        "client libraries give up after 10",
        metavar="SECONDS",
    )
    outage_patience: float = _setting(
        300.0,
        parse_optional_seconds,
        "XETSERVE_OUTAGE_PATIENCE",
        "seconds without a byte for the client after which a download whose body has begun fails, "
        "if that is more than upstream_timeout; until then failures of the upstream are retried",
        metavar="SECONDS",
    )
    offline: bool = _setting(
        False,
        parse_bool,
        "XETSERVE_OFFLINE",
        "open no connection to an upstream: serve content stored in cache_dir of any age, and "
        "answer 504 for other content",
        metavar="BOOL",
    )


@dataclass(frozen=True, slots=True)
class MetadataConfig:
    """How long answers of Hub and CAS are cached, per token. Times in seconds, sizes in bytes."""

    metadata_ttl: float = _setting(
        30.0,
        parse_optional_seconds,
        "XETSERVE_METADATA_TTL",
        "seconds for which answers and permissions of the Hub and the CAS are reused; 0: request "
        "them each time",
        metavar="SECONDS",
    )
    negative_ttl: float = _setting(
        5.0,
        parse_optional_seconds,
        "XETSERVE_NEGATIVE_TTL",
        "seconds for which a refusal (401, 403, 404) is reused",
        metavar="SECONDS",
    )
    stale_for: float = _setting(
        3600.0,
        parse_optional_seconds,
        "XETSERVE_STALE_FOR",
        "maximum age, in seconds, of answers that are served while the Hub or the CAS fails or "
        "answers 429; those about a full commit id may have any age. 0: a failure is an error at "
        "once",
        metavar="SECONDS",
    )
    stale_permission: float = _setting(
        3600.0,
        parse_optional_seconds,
        "XETSERVE_STALE_PERMISSION",
        "seconds for which such answers are served to a token after the Hub last let it read the "
        "repository",
        metavar="SECONDS",
    )
    metadata_size: int = _setting(
        16 * 1024 * 1024,
        parse_size,
        "XETSERVE_METADATA_SIZE",
        "maximum bytes of answers cached in memory; cache_dir holds 16 times as many",
        metavar="SIZE",
    )


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The form of responses, and the host names that the server accepts."""

    cors: str = _setting(
        "*",
        parse_cors,
        "XETSERVE_CORS",
        "web pages that may read responses: * for all, off for none, or a list of origins, "
        "separated by commas",
        metavar="ORIGINS",
    )
    hosts: str = _setting(
        "",
        parse_hosts,
        "XETSERVE_HOSTS",
        "accepted host names, separated by commas (*.name: all subdomains); others get 421. "
        "Addresses and localhost are always accepted. Empty: any name",
        metavar="NAMES",
    )
    base_path: str = _setting(
        "",
        parse_base_path,
        "XETSERVE_BASE_PATH",
        "path that the server's URLs begin with, such as /hf, behind a proxy that has other "
        "services, too",
        metavar="PATH",
    )
    compression: str = _setting(
        "auto",
        parse_compression,
        "XETSERVE_COMPRESSION",
        "auto: compress content that shrinks with zstd, and small texts also with gzip, for "
        "clients that accept it; or off",
        metavar="MODE",
    )
    download_length: bool = _setting(
        False,
        parse_bool,
        "XETSERVE_DOWNLOAD_LENGTH",
        "give downloads a Content-Length where the size is known, as ?length=1 does for one: "
        "clients show progress and split files, and the body is neither chunked nor compressed",
        metavar="BOOL",
    )


@dataclass(frozen=True, slots=True)
class MemoryConfig:
    """How much memory the server may hold. Sizes in bytes; workers share them."""

    memory_budget: int = _setting(
        128 * 1024 * 1024,
        parse_min_budget,
        "XETSERVE_MEMORY_BUDGET",
        "maximum bytes of file data held between upstream and clients",
        metavar="SIZE",
    )
    body_budget: int = _setting(
        32 * 1024 * 1024,
        parse_body_budget,
        "XETSERVE_BODY_BUDGET",
        "maximum bytes of request bodies held at a time; further bodies wait 5 s, then get 503",
        metavar="SIZE",
    )


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The disk cache. Sizes in bytes."""

    cache_dir: str = _setting(
        "",
        parse_folder,
        "XETSERVE_CACHE_DIR",
        "folder of the disk cache, which several processes may share; empty: no cache",
        metavar="DIR",
    )
    cache_size: int = _setting(
        32 * 1024**3,
        parse_size,
        "XETSERVE_CACHE_SIZE",
        "maximum bytes of the disk cache; the least recently used entries are removed first",
        metavar="SIZE",
    )
    cache_min_free: int = _setting(
        1024**3,
        parse_size,
        "XETSERVE_CACHE_MIN_FREE",
        "bytes of the file system that the disk cache leaves free",
        metavar="SIZE",
    )


@dataclass(frozen=True, slots=True)
class StatusConfig:
    """Who may see the state of the server."""

    metrics: str = _setting(
        "public",
        parse_audience,
        "XETSERVE_METRICS",
        "who may read /metrics, /status and /: public, token (clients with the operator token) "
        "or off",
        metavar="WHO",
    )
    status_listen: str = _setting(
        "",
        parse_address,
        "XETSERVE_STATUS_LISTEN",
        "address, HOST:PORT, of a listener for /metrics, /status and the page with figures, "
        "without TLS and PROXY headers; the other listeners then have no figures",
        metavar="ADDRESS",
    )
    operator_token: str = _setting(
        "",
        parse_password,
        "XETSERVE_OPERATOR_TOKEN",
        "token that shows the names of files, repositories and clients at /status and /; at "
        "least 16 characters",
        metavar="TOKEN",
        is_secret=True,
    )
    operator_token_file: str = _setting(
        "",
        parse_file,
        "XETSERVE_OPERATOR_TOKEN_FILE",
        "file that holds the operator token; it must not be writable by every user",
        metavar="FILE",
    )


@dataclass(frozen=True, slots=True)
class LimitsConfig:
    """Limits on connections and requests. Times in seconds, sizes in bytes."""

    max_connections: int = _setting(
        10_000,
        parse_optional_count,
        "XETSERVE_MAX_CONNECTIONS",
        "maximum connections at a time, 503 beyond; 0: no limit. Never more than half of the "
        "files that the process may open",
        metavar="N",
    )
    max_connections_per_client: int = _setting(
        0,
        parse_optional_count,
        "XETSERVE_MAX_CONNECTIONS_PER_CLIENT",
        "maximum connections of one address (IPv6: one /64), 429 beyond; 0: no limit",
        metavar="N",
    )
    max_requests_per_connection: int = _setting(
        10_000,
        parse_optional_count,
        "XETSERVE_MAX_REQUESTS_PER_CONNECTION",
        "requests after which a connection is closed; 0: no limit",
        metavar="N",
    )
    keep_alive_timeout: float = _setting(
        100.0,
        parse_optional_seconds,
        "XETSERVE_KEEP_ALIVE_TIMEOUT",
        "seconds for which a client may be silent before and between requests; then its "
        "connection is closed. 0: no limit",
        metavar="SECONDS",
    )
    head_timeout: float = _setting(
        20.0,
        parse_optional_seconds,
        "XETSERVE_HEAD_TIMEOUT",
        "seconds for a request's head from its first byte on, 408 beyond; 0: no limit",
        metavar="SECONDS",
    )
    body_timeout: float = _setting(
        30.0,
        parse_optional_seconds,
        "XETSERVE_BODY_TIMEOUT",
        "seconds for which the data of a request's body may pause, 408 beyond; 0: no limit",
        metavar="SECONDS",
    )
    min_body_rate: int = _setting(
        500,
        parse_size,
        "XETSERVE_MIN_BODY_RATE",
        "minimum rate of a request's body, in bytes a second; a slower body uses up "
        "body_timeout, then 408; 0: no limit",
        metavar="SIZE",
    )
    min_write_rate: int = _setting(
        0,
        parse_size,
        "XETSERVE_MIN_WRITE_RATE",
        "minimum rate at which a client reads its response, in bytes a second, on average over "
        "write_timeout; a slower client is cut. 0: no limit",
        metavar="SIZE",
    )

    max_url_size: int = _setting(
        8 * 1024,
        parse_head_size,
        "XETSERVE_MAX_URL_SIZE",
        "longest URL of a request; 414 beyond",
        metavar="SIZE",
    )
    max_head_size: int = _setting(
        32 * 1024,
        parse_head_size,
        "XETSERVE_MAX_HEAD_SIZE",
        "largest head of a request, URL included; 431 beyond",
        metavar="SIZE",
    )
    max_header_fields: int = _setting(
        100,
        parse_count,
        "XETSERVE_MAX_HEADER_FIELDS",
        "maximum number of header fields of a request; 431 beyond",
        metavar="N",
    )
    max_trailer_size: int = _setting(
        8 * 1024,
        parse_head_size,
        "XETSERVE_MAX_TRAILER_SIZE",
        "maximum bytes of trailer fields after a chunked request body; 431 beyond",
        metavar="SIZE",
    )


@dataclass(frozen=True, slots=True)
class AdmissionConfig:
    """Limits on requests and rates. Rates hold for each worker process by itself."""

    max_active_requests: int = _setting(
        0,
        parse_optional_count,
        "XETSERVE_MAX_ACTIVE_REQUESTS",
        "maximum active requests at a time, 503 beyond; 0: no limit",
        metavar="N",
    )
    token_request_rate: float = _setting(
        0.0,
        parse_rate,
        "XETSERVE_TOKEN_REQUEST_RATE",
        "maximum requests a second with one token, 429 beyond; 0: no limit",
        metavar="N",
    )
    address_request_rate: float = _setting(
        0.0,
        parse_rate,
        "XETSERVE_ADDRESS_REQUEST_RATE",
        "maximum requests a second from one address, 429 beyond; 0: no limit",
        metavar="N",
    )
    token_byte_rate: int = _setting(
        0,
        parse_size,
        "XETSERVE_TOKEN_BYTE_RATE",
        "maximum bytes a second to one token; responses are slowed down, not refused; 0: no limit",
        metavar="SIZE",
    )
    address_byte_rate: int = _setting(
        0,
        parse_size,
        "XETSERVE_ADDRESS_BYTE_RATE",
        "maximum bytes a second to one address; responses are slowed down, not refused; "
        "0: no limit",
        metavar="SIZE",
    )
    rate_burst: float = _setting(
        10.0,
        parse_seconds,
        "XETSERVE_RATE_BURST",
        "seconds of a rate that may be used at once",
        metavar="SECONDS",
    )


@dataclass(frozen=True, slots=True)
class LogConfig:
    """Logs, which go to standard error."""

    log_level: str = _setting(
        "info",
        parse_log_level,
        "XETSERVE_LOG_LEVEL",
        "lowest level that is logged: debug, info, warning or error",
        metavar="LEVEL",
    )
    log_format: str = _setting(
        "text",
        parse_log_format,
        "XETSERVE_LOG_FORMAT",
        "format of all lines: text or json",
        metavar="FORM",
    )
    access_log: str = _setting(
        "text",
        parse_access_log,
        "XETSERVE_ACCESS_LOG",
        "format of the line that is logged for each request: text, json or off; log_level has no "
        "effect on it, and it is not text if log_format is json",
        metavar="FORM",
    )


@dataclass(frozen=True, slots=True)
class OriginServerConfig(ServerConfig):
    """Where the origin listens, and how it stops. Times in seconds."""

    host: str = _setting(
        "127.0.0.1",
        parse_listen_hosts,
        "XETSERVE_HOST",
        "addresses to listen on, separated by commas; 0.0.0.0: every IPv4 address of this machine",
        metavar="ADDRESSES",
    )
    workers: int = _setting(
        1,
        parse_workers,
        "XETSERVE_WORKERS",
        "without effect: an origin runs in one process",
        metavar="N",
    )


@dataclass(frozen=True, slots=True)
class OriginConfig:
    """The folder of the origin, its tokens, and where its data is fetched."""

    dir: str = _setting(
        "",
        parse_folder,
        "XETSERVE_ORIGIN_DIR",
        "folder for repositories, xorbs and shards",
        metavar="DIR",
        has_flag=False,  # it is the argument of the command
    )
    imports: str = _setting(
        "",
        parse_imports,
        "XETSERVE_ORIGIN_IMPORTS",
        "local folders to import as repositories before serving: OWNER/NAME=FOLDER, one a line. "
        "Put datasets/, spaces/ or kernels/ in front of a dataset, space or kernel",
        metavar="LINES",
        has_flag=False,  # --import adds one
    )
    tokens: str = _setting(
        "",
        parse_tokens,
        "XETSERVE_ORIGIN_TOKENS",
        "tokens and their users: TOKEN=USER, one a line. Without any, everybody may read and write "
        "everything",
        metavar="LINES",
        is_secret=True,
    )
    tokens_file: str = _setting(
        "",
        parse_file,
        "XETSERVE_ORIGIN_TOKENS_FILE",
        "file with further tokens, in the same form",
        metavar="FILE",
    )
    data_url: str = _setting(
        "",
        parse_optional_url,
        "XETSERVE_ORIGIN_DATA_URL",
        "base of data URLs, where a web server has the xorbs; empty: the origin itself",
        metavar="URL",
    )
    bridge_url: str = _setting(
        "",
        parse_optional_url,
        "XETSERVE_ORIGIN_BRIDGE_URL",
        "redirect downloads to this base, as the Hub does; empty: answer them directly",
        metavar="URL",
    )


@dataclass(frozen=True, slots=True)
class Config:
    """All settings of a server or an origin. In the TOML file each section is a table."""

    server: ServerConfig = field(default_factory=ServerConfig)
    tls: TlsConfig = field(default_factory=TlsConfig)
    proxies: ProxiesConfig = field(default_factory=ProxiesConfig)
    hub: HubConfig = field(default_factory=HubConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    http: HttpConfig = field(default_factory=HttpConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    status: StatusConfig = field(default_factory=StatusConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    log: LogConfig = field(default_factory=LogConfig)
    origin: OriginConfig = field(default_factory=OriginConfig)

    def get_memory(self, num_workers: int) -> int:
        """Return the bytes that num_workers processes may need, without those of connections."""
        processes = BASE_MEMORY + (num_workers * WORKER_MEMORY if num_workers > 1 else 0)
        budget = max(self.memory.memory_budget, num_workers * MIN_BUDGET)
        return processes + budget + max(self.memory.body_budget, num_workers * MIN_BODY_BUDGET)

    def for_worker(self, num_workers: int) -> "Config":
        """Return the settings of one of num_workers processes.

        Each process has an equal part of the memory budget (at least MIN_BUDGET), the body budget
        (at least MIN_BODY_BUDGET), the answer cache, and the limits of connections and requests.
        Parts are rounded up.
        """

        def part(limit: int) -> int:
            return -(-limit // num_workers)

        budget = max(MIN_BUDGET, self.memory.memory_budget // num_workers)
        bodies = max(MIN_BODY_BUDGET, self.memory.body_budget // num_workers)
        limits = self.limits
        return dataclasses.replace(
            self,
            memory=dataclasses.replace(self.memory, memory_budget=budget, body_budget=bodies),
            metadata=dataclasses.replace(
                self.metadata, metadata_size=part(self.metadata.metadata_size)
            ),
            limits=dataclasses.replace(
                limits,
                max_connections=part(limits.max_connections),
                max_connections_per_client=part(limits.max_connections_per_client),
            ),
            admission=dataclasses.replace(
                self.admission, max_active_requests=part(self.admission.max_active_requests)
            ),
        )


Sections = Mapping[str, type]

# Of a server, and of `xetserve origin`.
SECTIONS: Final[Sections] = {
    "server": ServerConfig,
    "tls": TlsConfig,
    "proxies": ProxiesConfig,
    "hub": HubConfig,
    "metadata": MetadataConfig,
    "http": HttpConfig,
    "memory": MemoryConfig,
    "cache": CacheConfig,
    "status": StatusConfig,
    "limits": LimitsConfig,
    "admission": AdmissionConfig,
    "log": LogConfig,
}
ORIGIN_SECTIONS: Final[Sections] = {
    "origin": OriginConfig,
    "server": OriginServerConfig,
    "proxies": ProxiesConfig,
    "limits": LimitsConfig,
    "log": LogConfig,
}


def check_together(config: Config) -> None:
    """Check that the settings of a server do not contradict each other.

    Raises:
        ConfigError: they do; the message has the first conflict.
    """
    for conflict in find_conflicts(config):
        raise ConfigError(conflict)


def find_conflicts(config: Config) -> Iterator[str]:
    """Yield a message for each conflict between settings."""
    tls, proxies = config.tls, config.proxies
    if config.server.port == OFF and not config.server.unix_socket:
        yield "no listener is set: port is off and unix_socket is empty"
    if bool(tls.tls_cert) != bool(tls.tls_key):
        yield "tls_cert and tls_key must be set together"
    if tls.redirect_port != OFF and not tls.tls_cert:
        yield "redirect_port needs TLS: tls_cert and tls_key"
    if tls.redirect_port != OFF and config.server.port == OFF:
        yield "redirect_port needs a port to send clients to"
    if tls.acme_webroot and not tls.tls_cert:
        yield "acme_webroot needs TLS: tls_cert and tls_key, which need not exist yet"
    if tls.redirect_target == OFF:
        yield "redirect_target must be a port"
    if config.hub.offline and not config.cache.cache_dir:
        yield "offline needs a cache_dir with stored content"
    status = config.status
    if status.metrics == "token" and not (status.operator_token or status.operator_token_file):
        yield "metrics = token needs operator_token or operator_token_file"
    if proxies.proxy_protocol and not proxies.trusted_proxies:
        yield "proxy_protocol needs trusted_proxies: only they may connect"
