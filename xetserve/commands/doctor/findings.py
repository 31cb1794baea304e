"""Findings of `xetserve doctor`: their form, and the checks that need no network."""

import os
import resource
import shutil
import ssl
import tempfile
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, NamedTuple

from xetserve.base.regular_files import open_regular
from xetserve.base.sizes import format_size
from xetserve.config.schema import Config
from xetserve.pipeline.cache.health import USEFUL_SIZE
from xetserve.xet.compression import describe_slowness

STEP_TIMEOUT: Final = 10.0  # seconds for each step over the network
MIN_FILES: Final = 256
CLOCK_WARN: Final = 30.0  # seconds
CLOCK_FAIL: Final = 300.0  # seconds; read tokens and signed URLs are valid for minutes


class Level(StrEnum):
    """The result of a check. SKIP: it could not run because an earlier check failed."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIP = "skip"


class Finding(NamedTuple):
    """The result of one check, printed as a line. advice: what to do unless level is OK."""

    name: str
    level: Level
    text: str
    advice: str = ""


def advise_on_connection(text: str) -> str:
    """Return advice for a connection error with this text."""
    if "certificate" in text:
        return (
            "trust the CA that signed it: SSL_CERT_FILE; "
            "behind a proxy that opens TLS, that proxy's CA"
        )
    if "503" in text or "500" in text or "502" in text:
        return "the upstream has a problem: try again later"
    return "check the network, firewalls and HTTPS_PROXY"


def describe_error(exc: Exception) -> str:
    """Return the text of a check's error."""
    return str(exc) or "no answer in time"


def describe_time(began: float) -> str:
    """Return the duration of a check, in parentheses; began: its start on the monotonic clock."""
    return f" ({(time.monotonic() - began) * 1000:.0f} ms)"


def check_native_code() -> Finding:
    """Check that byte-grouped chunks are decoded by the C extension."""
    text, advice = describe_slowness()
    return Finding("native code", Level.WARN if text else Level.OK, text or "compiled", advice)


def check_files(max_connections: int) -> Finding:
    """Check the limit of open files: each client needs its socket and some upstream ones."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    text = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}"
    if hard == resource.RLIM_INFINITY or hard // 2 >= (max_connections or 1):
        return Finding("open files", Level.OK, text)
    advice = (
        "raise the hard limit: LimitNOFILE= of the unit, docker run --ulimit nofile=N, "
        "or limits.conf"
    )
    if hard < MIN_FILES:
        return Finding("open files", Level.FAIL, text, advice)
    usable = f"only {hard // 2} of max_connections {max_connections} can be used"
    return Finding("open files", Level.WARN, f"{text}: {usable}", advice)


def check_cache(config: Config) -> Finding:
    """Check whether the folder of the disk cache is writable and has enough free space."""
    if not config.cache.cache_dir:
        return Finding("cache", Level.OK, "off (cache_dir is not set)")
    folder = Path(config.cache.cache_dir)
    nearest = folder  # doctor creates no folder: its user may differ from the server's user
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"x")
            file.flush()
        usage = shutil.disk_usage(nearest)
    except OSError as exc:
        return Finding(
            "cache",
            Level.FAIL,
            f"cannot write to {nearest}: {exc.strerror or exc} (as user {os.geteuid()})",
            f"make the server's user the owner of {folder}, or set another cache_dir",
        )
    text = f"{folder}: {format_size(usage.free)} free"
    if nearest != folder:
        text += ", the server will create it"
    if usage.free <= config.cache.cache_min_free:
        return Finding(
            "cache",
            Level.FAIL,
            f"{text}, cache_min_free is {format_size(config.cache.cache_min_free)}: "
            "nothing would be cached",
            "free some space, or set another cache_dir",
        )
    if config.cache.cache_size < USEFUL_SIZE:
        return Finding(
            "cache",
            Level.WARN,
            f"{text}: of cache_size {format_size(config.cache.cache_size)}, nothing larger than "
            f"{format_size(config.cache.cache_size // 2)} at a time is kept",
            f"set cache_size to {format_size(USEFUL_SIZE)} or more",
        )
    used = _read_usage(folder)
    room = usage.free + used - config.cache.cache_min_free
    if room < config.cache.cache_size:
        return Finding(
            "cache",
            Level.WARN,
            f"{text}: room for {format_size(room)} "
            f"of cache_size {format_size(config.cache.cache_size)}",
            "free some space, or lower cache_size",
        )
    return Finding("cache", Level.OK, text)


def _read_usage(folder: Path) -> int:
    try:
        with open(open_regular(folder / "usage"), "rb") as file:
            return int(file.read(64) or b"0")
    except (OSError, ValueError):
        return 0


def check_ca(context: ssl.SSLContext, environ: Mapping[str, str], *, is_needed: bool) -> Finding:
    """Check whether CA certificates are installed."""
    if not is_needed:
        return Finding("CA", Level.OK, "not needed: hub_url is plain http")
    for name, exists in (("SSL_CERT_FILE", os.path.isfile), ("SSL_CERT_DIR", os.path.isdir)):
        if (path := environ.get(name)) and not exists(path):
            return Finding(
                "CA", Level.FAIL, f"{name} names {path}, which does not exist", f"correct {name}"
            )
    count = context.cert_store_stats()["x509_ca"]
    paths = ssl.get_default_verify_paths()
    if not count and not (paths.capath and os.path.isdir(paths.capath)):
        return Finding(
            "CA", Level.FAIL, "no CA certificates", "install ca-certificates, or set SSL_CERT_FILE"
        )
    source = environ.get("SSL_CERT_FILE") or environ.get("SSL_CERT_DIR") or "the system's"
    return Finding("CA", Level.OK, f"{count} from {source}" if count else f"from {source}")


def check_clock(date: str | None, now: float) -> Finding:
    """Compare this machine's clock with a Date field; now: Unix seconds when it arrived."""
    try:
        told = parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return Finding("clock", Level.WARN, "not compared: the Hub's response has no valid Date")
    ahead = now - told
    if abs(ahead) <= 1.5:  # the Date field has whole seconds
        return Finding("clock", Level.OK, "the same as the Hub's")
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the Hub's"
    if abs(ahead) < CLOCK_WARN:
        return Finding("clock", Level.OK, text)
    advice = (
        "set the clock (timedatectl set-ntp true): tokens and signed URLs expire within minutes"
    )
    return Finding("clock", Level.FAIL if abs(ahead) >= CLOCK_FAIL else Level.WARN, text, advice)
