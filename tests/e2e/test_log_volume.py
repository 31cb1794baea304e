"""What a server logs while an upstream fails for every request: a line for each cause."""

import http.client
import re
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.balancers import find_port
from tests.e2e.clients import Connection, path_of
from tests.e2e.conftest import Site, serve_arguments

NUM_REQUESTS: Final = 200
NUM_CLIENTS: Final = 20
# There may be several causes: an overdue answer is one of its own, and so are retries.
MAX_LINES: Final = 16


def burst(kind: str, status: int) -> dict[str, Any]:
    return {f"{kind}_status_burst": {"status": status, "count": 1_000_000}}


# Faults of the origin, and the words of the line about requests that they fail.
FAULTS: Final = {
    "Hub 502": (burst("hub", 502), "the Hub answered 502"),
    "Hub 429": (burst("hub", 429), "the Hub answered 429"),
    "Hub silent": ({"latency": {"hub": 5.0}}, "the upstream has not answered within"),
    "CAS 500": (burst("cas", 500), "the CAS answered 500"),
    "data 503": (burst("data", 503), "the data host answered 503"),
    "data resets": ({"reset_first": 1_000_000}, "the data host"),
}


def start(launcher: Launcher, hub_url: str) -> Process:
    """A server that gives up soon, for IPv4 and IPv6, with a log as operators have it."""
    arguments = serve_arguments(hub_url, "--upstream-timeout", "0.3", "--outage-patience", "0")
    arguments[arguments.index("debug")] = "info"
    arguments[arguments.index("127.0.0.1")] = "::"
    return launcher.start(*arguments)


def fail(server: Process) -> int:
    """Send requests; return how many failed. Stop the server, which logs what it left out."""
    port = urllib.parse.urlsplit(server.url).port

    def ask(number: int) -> bool:
        connection = Connection(f"http://127.0.0.1:{port}")
        try:
            return connection.ask(path_of("random.bin")).status >= 429
        except (http.client.HTTPException, OSError):
            return True  # cut
        finally:
            connection.close()

    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        count = sum(threads.map(ask, range(NUM_REQUESTS)))
    assert server.stop() == 0
    return count


def check_log(server: Process, count: int, words: str) -> None:
    """Check that each failure is in a line, or among those that were left out."""
    assert count > NUM_REQUESTS / 2
    lines = [line for line in server.log.splitlines() if re.search(r" (WARNING|ERROR) ", line)]
    assert len(lines) <= MAX_LINES, "\n".join(lines)
    ends = [line for line in lines if re.search(r" xetserve\.(app\.errors|net\.server_conn)", line)]
    assert any(words in line for line in ends), "\n".join(lines)
    rests = [re.search(r": (\d+) more within 60 s, the last: request ", line) for line in ends]
    assert sum(1 if rest is None else int(rest[1]) for rest in rests) == count
    assert "::ffff:" not in server.log
    assert server.log.count(' 127.0.0.1 "GET /download/') == NUM_REQUESTS  # the access log


@pytest.mark.parametrize("fault", FAULTS)
def test_an_upstream_that_fails_all_requests_has_a_few_lines(
    site: Site, launcher: Launcher, fault: str
) -> None:
    faults, words = FAULTS[fault]
    server = start(launcher, site.origin.url)
    site.control.set_faults(**faults)
    check_log(server, fail(server), words)


def test_a_hub_that_is_not_there_has_a_few_lines(launcher: Launcher) -> None:
    server = start(launcher, f"http://127.0.0.1:{find_port()}")
    check_log(server, fail(server), "the Hub: cannot connect to 127.0.0.1: Connection refused")
