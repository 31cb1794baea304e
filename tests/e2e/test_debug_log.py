"""The log with --log-level debug: the lines of one request tell its whole story, and no secret."""

import json
import re
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import Launcher, Process
from tests.e2e.clients import TIMEOUT, curl, run
from tests.e2e.conftest import REPO, TOKEN, Site, serve_arguments

NAME = "big.bin"
XORB = r"xorb [0-9a-f]{8}, chunks \d+\.\.\d+: "
RECONSTRUCTION = r"the CAS: GET http\S+/v2/reconstructions/[0-9a-f]{64} bytes=\d+-\d+: 200 after"
SECRETS = re.compile(r"(?i)signature|signed-range|expires=|grant=|access_?token=|bearer [^*]")


@pytest.fixture
def server(site: Site, launcher: Launcher, tmp_path: Path) -> Process:
    flags = ("--log-level", "debug", "--xet-mode", "native", "--cache-min-free", "0")
    cache = ("--cache-dir", str(tmp_path / "cache"), "--metadata-ttl", "60")
    return launcher.start(*serve_arguments(site.origin.url, *flags, *cache))


def download(server: Process, request_id: str, tmp_path: Path, query: str = "") -> None:
    url = f"{server.url}/download/{REPO}/{NAME}{query}"
    done = run(curl(url, tmp_path / request_id, "-H", f"X-Request-Id: {request_id}"))
    assert done.returncode == 0


def story(server: Process, request_id: str) -> list[str]:
    """The lines of a request, without time and id."""
    pattern = rf"(?m)^\S+ \S+ ([A-Z]+ [\w.]+: ){request_id} (.*)$"
    return [origin + text for origin, text in re.findall(pattern, server.log)]


def tells(lines: list[str], *patterns: str) -> bool:
    """Whether lines match the patterns, in their order."""
    rest = iter(lines)
    return all(any(re.search(pattern, line) for line in rest) for pattern in patterns)


def test_the_lines_of_a_request_tell_its_story(site: Site, server: Process, tmp_path: Path) -> None:
    site.control.set_faults(data_403_first=1, cas_status_burst={"status": 503, "count": 1})
    download(server, "cold", tmp_path, "?revision=main")
    download(server, "warm", tmp_path)
    assert server.stop() == 0
    cold, warm = story(server, "cold"), story(server, "warm")
    assert tells(
        cold,
        rf"DEBUG \S+ GET /download/{REPO}/{NAME} begins",
        rf"file 'model/{REPO} main {NAME}': not cached",
        rf"the Hub: HEAD http\S+/{REPO}/resolve/main/{NAME}: 200 after \d+ ms",
        r"the Hub: GET http\S+/xet-read-token/\S+: 200 after",
        r"the CAS: GET \S+ bytes=\d+-\d+: 503 after",
        r"cas: asking again in \d\.\d\d s: the CAS answered 503",
        RECONSTRUCTION,
        r"window 0\.\.\d+: \d+ pieces from \d+ fetches of \d+ bytes",
        r"cache: xorb \S+ chunks \d+\.\.\d+: miss",
        r"the data host: GET http\S+ bytes=\d+-\d+: 403 after",
        XORB + "the data URL was refused, asking for another",
        r"the data host: GET http\S+ bytes=\d+-\d+: 206 after",
        XORB + r"\d+ bytes from the data host in \d+ ms",
        rf'INFO xetserve.access: \S+ "GET /download/{REPO}/{NAME}\?revision=main" 200 ',
    ), "\n".join(cold)
    assert tells(
        warm,
        rf"file 'model/{REPO} main {NAME}': cached, \d+\.\d s old",
        r"plan '.*': cached, ",
        r"window 0\.\.",
        r"cache: xorb \S+ chunks \d+\.\.\d+: hit",
        XORB + r"\d+ bytes from the cache in \d+ ms",
        "INFO xetserve.access: ",
    ), "\n".join(warm)
    assert not any("data host" in line or "the Hub: " in line for line in warm)
    assert TOKEN not in server.log
    assert not SECRETS.search(re.sub(r"\w+=\*\*\*", "", server.log))


def test_lines_of_shared_work_have_the_id_of_a_request(
    site: Site, server: Process, tmp_path: Path
) -> None:
    names = ("one", "two", "three")
    with ThreadPoolExecutor() as threads:
        assert list(threads.map(lambda name: download(server, name, tmp_path), names))
    assert server.stop() == 0
    stories = [story(server, name) for name in names]
    assert all(tells(lines, r"window 0\.\.", "INFO xetserve.access: ") for lines in stories)
    assert any(tells(lines, XORB + r"\d+ bytes from the data host") for lines in stories)
    nameless = re.findall(
        r"(?m)^.*xetserve\.(?:pipeline|upstream)\S*: (?:xorb|the ).*$", server.log
    )
    assert nameless == []


def test_a_native_download(site: Site, server: Process) -> None:
    """What a client gets URLs for, and which of them it uses."""

    def ask(path: str, request_id: str, *fields: tuple[str, str]) -> bytes:
        headers = {"X-Request-Id": request_id, **dict(fields)}
        request = urllib.request.Request(f"{server.url}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            content: bytes = response.read()
            return content

    hub = ("Authorization", f"Bearer {TOKEN}")
    (entry,) = [
        entry
        for entry in json.loads(ask(f"/api/models/{REPO}/tree/main?recursive=true", "tree", hub))
        if entry["path"] == NAME
    ]
    given = json.loads(ask(f"/api/models/{REPO}/xet-read-token/main", "token", hub))
    cas = ("Authorization", f"Bearer {given['accessToken']}")
    plan = json.loads(ask(f"/v1/reconstructions/{entry['xetHash']}", "plan", cas))
    xorb, infos = next(iter(plan["fetch_info"].items()))
    url, span = infos[0]["url"], infos[0]["url_range"]
    ask(url.removeprefix(server.url), "data", ("Range", f"bytes={span['start']}-{span['end']}"))
    assert server.stop() == 0
    assert tells(
        story(server, "plan"),
        RECONSTRUCTION,
        rf"native: file {entry['xetHash']}, bytes 0\.\.\d+: \d+ terms, data URLs for \d+ xorbs",
    )
    assert tells(
        story(server, "data"),
        rf"native: xorb {xorb}, 1 of \d+ granted ranges, file {entry['xetHash']}",
        XORB + r"\d+ bytes from the data host in",
    )
    for secret in (TOKEN, given["accessToken"], url.partition("grant=")[2]):
        assert secret not in server.log
    assert not SECRETS.search(re.sub(r"\w+=\*\*\*", "", server.log))
