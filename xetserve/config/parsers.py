"""Parsers: read the value of one setting from text.

Each function raises ValueError with the required form, to be put behind the name of the setting.
"""

import re
from collections import Counter
from fractions import Fraction
from ipaddress import ip_address, ip_network
from math import log2
from typing import Final
from urllib.parse import urlsplit

from xetserve.base.path_prefix import PATH_PREFIX

MIN_BUDGET: Final = 8 * 1024 * 1024  # bytes
MIN_SECRET_LENGTH: Final = 32  # characters: 128 bits in hex digits
MIN_PASSWORD_LENGTH: Final = 16
MIN_BITS_PER_CHARACTER: Final = 2.5
MAKE_SECRET: Final = "create one with `openssl rand -hex 32`"
MIN_BODY_BUDGET: Final = 1024 * 1024  # bytes; the size of the largest accepted body

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,19})?)\s*(?:([KMGT])(i)?)?B?", re.ASCII | re.IGNORECASE)
_ORIGIN = re.compile(r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:]+\])(?::\d{1,5})?")
_HOST_NAME = re.compile(r"(?:\*\.)?[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63}){0,31}")
_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_MAX_SIZE = 2**63 - 1


class _NoPort(int):
    """The port value that disables a TCP listener."""

    def __str__(self) -> str:
        return "off"


OFF: Final = _NoPort(-1)


def parse_port(text: str) -> int:
    """Parse a TCP port, 0 to 65535; 0 lets the system choose, and "off" returns OFF."""
    if text.strip().lower() == "off":
        return OFF
    if not re.fullmatch(r"\d{1,5}", text, re.ASCII) or int(text) > 65535:
        raise ValueError("must be a port number, 0 to 65535, or off")
    return int(text)


def parse_bool(text: str) -> bool:
    """Parse true or false."""
    value = text.strip().lower()
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be true or false")


def parse_seconds(text: str) -> float:
    """Parse a time in seconds, above 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ValueError("must be a number of seconds above 0")
    return value


def parse_age(text: str) -> float:
    """Parse an age in seconds, or with a unit: 45m, 12h, 30d."""
    match = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip().lower(), re.ASCII)
    if match is None:
        raise ValueError("must be a time such as 3600, 45m, 12h or 30d")
    return int(match[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[match[2]]


def parse_size(text: str) -> int:
    """Parse a size in bytes, or with a unit: 128MiB and 128M are equal, 128MB is decimal."""
    match = _SIZE.fullmatch(text.strip())
    size = _MAX_SIZE + 1
    if match is not None:
        number, unit, binary = match.groups(default="")
        decimal = not binary and match[0].lower().endswith("b")
        # A float would lose bytes above 2**53.
        size = int(Fraction(number) * (1000 if decimal else 1024) ** _UNITS[unit.lower()])
    if size > _MAX_SIZE:
        raise ValueError("must be a size such as 134217728, 128MiB or 2GB")
    return size


def parse_url(text: str) -> str:
    """Parse an http(s) base URL; drop a slash at its end."""
    url = text.strip()
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    # Printable ASCII, but no "?" or "#": appended paths would become part of the query.
    if not usable or "@" in parts.netloc or not re.fullmatch(r"[!\"$->@-~]+", url):
        raise ValueError("must be an http or https URL, without credentials or query")
    return url.rstrip("/")


def parse_datasets_server(text: str) -> str:
    """Parse where the Hub's datasets-server is: auto, off, or a URL as parse_url does."""
    value = text.strip().lower()
    try:
        return value if value in ("auto", "off") else parse_url(text)
    except ValueError as exc:
        raise ValueError(f"{exc}; or auto or off") from None


def parse_base_path(text: str) -> str:
    """Parse a path that begins with a slash; drop one at its end. Empty: none."""
    path = text.strip().rstrip("/")
    if not PATH_PREFIX.fullmatch(path):
        raise ValueError("must be a path such as /hf, of letters, digits and . _ ~ -")
    return path


def parse_optional_url(text: str) -> str:
    """Parse a base URL as parse_url does; empty: none."""
    return parse_url(text) if text.strip() else ""


def parse_imports(text: str) -> str:
    """Parse folders to import, OWNER/NAME=FOLDER, one a line; empty lines count for nothing."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not all(re.fullmatch(r"[^=\s]+=.+", line) for line in lines):
        raise ValueError("must be OWNER/NAME=FOLDER, one a line")
    return "\n".join(lines)


def parse_tokens(text: str) -> str:
    """Parse tokens with their users, TOKEN=USER, separated by spaces, commas or lines.

    A line that starts with # is a comment.
    """
    pairs = []
    for number, line in enumerate(text.splitlines(), 1):
        words = [] if line.lstrip().startswith("#") else re.split(r"[\s,]+", line.strip())
        for word in filter(None, words):
            if not re.fullmatch(r"[!-~]+=\w[\w.-]{0,95}", word, re.ASCII):
                raise ValueError(f"must be TOKEN=USER in line {number}")
            pairs.append(word)
    pairs = list(dict.fromkeys(pairs))
    if len(split_tokens("\n".join(pairs))) < len(pairs):
        raise ValueError("must not give one token to two users")
    return "\n".join(pairs)


def split_tokens(text: str) -> dict[str, str]:
    """Return token -> user of what parse_tokens returned."""
    pairs = (line.rpartition("=") for line in text.splitlines())
    return {token: user for token, _, user in pairs}


def parse_repo(text: str) -> str:
    """Parse a repository id, owner/name."""
    if not re.fullmatch(r"\w[\w.-]{0,95}/\w[\w.-]{0,95}", text.strip(), re.ASCII):
        raise ValueError("must be a repository: owner/name")
    return text.strip()


def parse_cors(text: str) -> str:
    """Parse the origins whose pages may read responses: "*", "off", or origins and commas."""
    parts = [part.strip() for part in text.lower().split(",")]
    if parts in (["*"], ["off"]):
        return parts[0]
    if not all(_ORIGIN.fullmatch(part) for part in parts):
        raise ValueError("must be *, off, or origins such as https://page.example, with commas")
    return ",".join(parts)


def parse_hosts(text: str) -> str:
    """Parse host names, separated by commas; "*.name" means all subdomains, empty means any."""
    names = [name.strip().removesuffix(".") for name in text.lower().split(",")]
    if names == [""]:
        return ""
    if not all(_HOST_NAME.fullmatch(name) for name in names):
        raise ValueError("must be names such as models.example or *.lab.example, with commas")
    return ",".join(names)


def parse_compression(text: str) -> str:
    """Parse the compression mode: auto or off."""
    value = text.strip().lower()
    if value not in ("auto", "off"):
        raise ValueError("must be auto or off")
    return value


def parse_repo_management(text: str) -> str:
    """Parse which changes of repositories pass: auto, on or off."""
    value = text.strip().lower()
    if value not in ("auto", "on", "off"):
        raise ValueError("must be auto, on or off")
    return value


def parse_xet_mode(text: str) -> str:
    """Parse the mode for native Xet clients: plain, native or auto."""
    value = text.strip().lower()
    if value not in ("plain", "native", "auto"):
        raise ValueError("must be plain, native or auto")
    return value


def parse_secret(text: str) -> str:
    """Parse a secret for key derivation; empty: none.

    It must be strong: an attacker with a signed value can test guesses offline.
    """
    return _check_strength(text.strip(), MIN_SECRET_LENGTH)


def parse_secrets(text: str) -> str:
    """Parse secrets separated by commas, of which the first one signs and all verify."""
    secrets = [parse_secret(each) for each in text.split(",")]
    if len(secrets) > 1 and "" in secrets:
        raise ValueError("has an empty secret beside a comma")
    return ",".join(secrets)


def parse_password(text: str) -> str:
    """Parse a secret that clients send, so guesses can be tested only online; empty: none."""
    return _check_strength(text.strip(), MIN_PASSWORD_LENGTH)


def _check_strength(secret: str, min_length: int) -> str:
    """Return a secret with enough characters and entropy that does not repeat a shorter text.

    Raises:
        ValueError: the secret is too short or can be guessed.
    """
    if not secret:
        return secret
    if len(secret) < min_length:
        raise ValueError(f"must have at least {min_length} characters: {MAKE_SECRET}")
    # Shannon's estimate, from how often each character occurs: 3.5 bits for random hex digits.
    counts = Counter(secret).values()
    bits = -sum(count * log2(count / len(secret)) for count in counts)
    if bits < MIN_BITS_PER_CHARACTER * min_length or secret in (secret + secret)[1:-1]:
        raise ValueError(f"can be guessed: {MAKE_SECRET}")
    return secret


def parse_audience(text: str) -> str:
    """Parse who may read the metrics: public, token or off."""
    value = text.strip().lower()
    if value not in ("public", "token", "off"):
        raise ValueError("must be public, token or off")
    return value


def parse_address(text: str) -> str:
    """Parse HOST:PORT, an IPv6 address in brackets; empty: none."""
    text = text.strip()
    match = re.fullmatch(r"(?:\[[0-9A-Fa-f:.]+\]|[^\s:\[\]]+):(\d{1,5})", text, re.ASCII)
    if text and (match is None or int(match[1]) > 65535):
        raise ValueError("must be HOST:PORT, for example 127.0.0.1:9100 or [::1]:9100")
    return text


def parse_listen_hosts(text: str) -> str:
    """Parse addresses and names to listen on, separated by commas, without ports."""
    hosts = [re.sub(r"^\[(.*)\]$", r"\1", each.strip()) for each in text.split(",")]
    if not all(map(_is_listen_host, hosts)):
        raise ValueError("must be addresses without a port, separated by commas")
    return ",".join(hosts)


def _is_listen_host(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return re.fullmatch(r"[\w-][\w.-]*", text, re.ASCII) is not None
    return True


def parse_log_level(text: str) -> str:
    """Parse a log level."""
    level = text.strip().lower()
    if level not in ("debug", "info", "warning", "error"):
        raise ValueError("must be debug, info, warning or error")
    return level


def parse_log_format(text: str) -> str:
    """Parse the form of log lines: text or json."""
    form = text.strip().lower()
    if form not in ("text", "json"):
        raise ValueError("must be text or json")
    return form


def parse_access_log(text: str) -> str:
    """Parse the form of the access log: off, text or json."""
    form = text.strip().lower()
    if form not in ("off", "text", "json"):
        raise ValueError("must be off, text or json")
    return form


def parse_workers(text: str) -> int:
    """Parse a number of processes, 1 to 1024; "auto" returns 0, one per core."""
    if text.strip().lower() == "auto":
        return 0
    if not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not 1 <= int(text) <= 1024:
        raise ValueError("must be a number of processes, 1 to 1024, or auto")
    return int(text)


def parse_min_budget(text: str) -> int:
    """Parse the memory budget, at least 8 MiB: one download needs that much."""
    size = parse_size(text)
    if size < MIN_BUDGET:
        raise ValueError("must be at least 8MiB")
    return size


def parse_body_budget(text: str) -> int:
    """Parse the budget of request bodies, at least 1 MiB: the largest accepted body."""
    size = parse_size(text)
    if size < MIN_BODY_BUDGET:
        raise ValueError("must be at least 1MiB")
    return size


def parse_head_size(text: str) -> int:
    """Parse a size limit for a part of a request's head, 256 bytes to 1 MiB."""
    size = parse_size(text)
    if not 256 <= size <= 1024 * 1024:
        raise ValueError("must be a size from 256 to 1MiB")
    return size


def parse_count(text: str) -> int:
    """Parse a count, 1 or more."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) or not int(text):
        raise ValueError("must be a number, 1 or more")
    return int(text)


def parse_optional_seconds(text: str) -> float:
    """Parse a time in seconds; 0: no limit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("must be a number of seconds, or 0 for no limit")
    return value


def parse_optional_count(text: str) -> int:
    """Parse a count; 0: no limit."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII):
        raise ValueError("must be a number, or 0 for no limit")
    return int(text)


def parse_rate(text: str) -> float:
    """Parse a rate per second; 0: no limit."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise ValueError("must be a number per second, or 0 for no limit")
    return value


def parse_file(text: str) -> str:
    """Parse the path of a file; empty: none."""
    if text and not text.strip():
        raise ValueError("must be the path of a file, or empty for none")
    return text.strip()


def parse_mode(text: str) -> str:
    """Parse the permissions of a file, three octal digits."""
    if not re.fullmatch(r"0?[0-7]{3}", text.strip(), re.ASCII):
        raise ValueError("must be three octal digits such as 660")
    return text.strip()[-3:]


def parse_tls_version(text: str) -> str:
    """Parse the oldest accepted TLS version: 1.2 or 1.3."""
    if text.strip() not in ("1.2", "1.3"):
        raise ValueError("must be 1.2 or 1.3")
    return text.strip()


def parse_networks(text: str) -> str:
    """Parse networks, separated by commas, such as 10.0.0.0/8, ::1; "unix" is valid too."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names:
        try:
            if name != "unix":
                ip_network(name)
        except ValueError:
            raise ValueError("must be networks such as 10.0.0.0/8, ::1 or unix") from None
    return ",".join(names)


def parse_upstream_networks(text: str) -> str:
    """Parse networks, separated by commas, such as 10.0.0.0/8, fd00::/8; or auto, or public."""
    names = [name.strip().lower() for name in text.split(",")]
    if names in (["auto"], ["public"]):
        return names[0]
    try:
        return ",".join(str(ip_network(name)) for name in names)
    except ValueError:
        raise ValueError(
            "must be networks such as 10.0.0.0/8, fd00::/8, or auto, or public"
        ) from None


def parse_proxy_headers(text: str) -> str:
    """Parse the kind of fields that proxies write: x-forwarded, forwarded or off."""
    kind = text.strip().lower()
    if kind not in ("x-forwarded", "forwarded", "off"):
        raise ValueError("must be x-forwarded, forwarded or off")
    return kind


def parse_folder(text: str) -> str:
    """Parse the path of a folder; empty: none."""
    if text and not text.strip():
        raise ValueError("must be the path of a folder, or empty for none")
    return text.strip()
