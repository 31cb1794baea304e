"""`xetserve doctor` as a process, with upstreams that are good and bad."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.conftest import clean_environment
from tests.e2e.conftest import REPO, TOKEN, Site
from tests.e2e.damage import find_record
from xetserve.xet.compression import Scheme
from xetserve.xet.xorb import CHUNK_HEADER_SIZE

WRONG_TOKEN = "hf_" + "w" * 34
GOOD = [
    "settings",
    "native code",
    "memory",
    "open files",
    "cache",
    "CA",
    "proxy",
    "DNS",
    "Hub",
    "clock",
    "token",
]
LAST = ["file", "read token", "CAS", "data", "speed"]


def examine(
    hub_url: str, *arguments: str, status: int, **environment: str
) -> dict[str, dict[str, Any]]:
    """Run it; gives its findings by name."""
    done = subprocess.run(
        [*(sys.executable, "-m", "xetserve", "doctor", "--json", "--hub-url", hub_url), *arguments],
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    assert WRONG_TOKEN not in done.stdout + done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] == (status == 0)
    found = {check["name"]: check for check in document["checks"]}
    assert len(found) == len(document["checks"])
    for check in document["checks"]:
        assert check["level"] in ("ok", "skip") or check["advice"]
    return found


def levels(found: dict[str, dict[str, Any]], *names: str) -> list[str]:
    return [found[name]["level"] for name in names]


def test_all_is_good(site: Site, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN + "\n")
    flags = ("--token-file", str(tmp_path / "token"), "--cache-dir", str(tmp_path / "cache"))
    small = ("--cache-size", "256MiB", "--cache-min-free", "0")
    found = examine(site.origin.url, "--file", f"{REPO}/big.bin", *flags, *small, status=0)
    assert list(found) == [*GOOD, *LAST]
    assert {name for name, check in found.items() if check["level"] != "ok"} == set(), found
    assert found["token"]["text"] == "valid, owner tester"
    assert found["data"]["text"].endswith("read and verified")
    assert not (tmp_path / "cache").exists()


def test_a_file_is_found_among_those_of_the_tokens_owner(site: Site) -> None:
    found = examine(site.origin.url, "--hash-repo", "no/body", status=0, HF_TOKEN=TOKEN)
    assert found["file"]["text"].startswith(f"{REPO}/")
    assert "verified" in found["data"]["text"]


def test_lines_for_people(site: Site) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "doctor", "--hub-url", site.origin.url],
        env=clean_environment(HF_TOKEN=WRONG_TOKEN, HTTP_PROXY=""),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "fail  token: the Hub refuses it (401)" in lines
    assert lines[lines.index("fail  token: the Hub refuses it (401)") + 1].startswith("      -> ")
    assert lines[-1].startswith("the server will not work: ")


def test_a_refused_token(site: Site) -> None:
    found = examine(site.origin.url, status=1, HF_TOKEN=WRONG_TOKEN)
    assert levels(found, "Hub", "clock", "token", "CAS") == ["ok", "ok", "fail", "skip"]


@pytest.mark.parametrize(
    ("faults", "failing"),
    [
        ({"cas_status_burst": {"status": 500, "count": 10_000}}, "CAS"),
        ({"data_status_burst": {"status": 500, "count": 10_000}}, "data"),
        ({"hub_status_burst": {"status": 503, "count": 10_000}}, "Hub"),
    ],
    ids=["no CAS", "no data", "no Hub"],
)
def test_an_upstream_in_trouble(site: Site, faults: dict[str, Any], failing: str) -> None:
    site.control.set_faults(**faults)
    flags = ("--file", f"{REPO}/big.bin", "--upstream-timeout", "2")
    found = examine(site.origin.url, *flags, status=1, HF_TOKEN=TOKEN)
    assert [name for name, check in found.items() if check["level"] == "fail"] == [failing]
    assert list(found)[: len(GOOD) - 3] == GOOD[:-3]


def test_damaged_data(site: Site) -> None:
    xorb, _, offset, size = find_record(site, Scheme.NONE, "damage/raw.bin")
    middle = offset + CHUNK_HEADER_SIZE + size // 2
    site.control.set_faults(flip_byte={"xorb": xorb, "offset": middle})
    flags = ("--file", f"{REPO}/damage/raw.bin", "--upstream-timeout", "2")
    found = examine(site.origin.url, *flags, status=1, HF_TOKEN=TOKEN)
    assert [name for name, check in found.items() if check["level"] == "fail"] == ["data"]


def test_a_file_that_is_not_there(site: Site) -> None:
    found = examine(site.origin.url, "--file", f"{REPO}/no/such.bin", status=1, HF_TOKEN=TOKEN)
    assert levels(found, "token", "file") == ["ok", "fail"]


def test_a_dead_proxy(site: Site) -> None:
    environment = {"HTTP_PROXY": "http://user:pass-word@127.0.0.1:1", "NO_PROXY": ""}
    found = examine(site.origin.url, status=1, **environment)
    assert levels(found, "proxy", "Hub") == ["fail", "skip"]
    assert "127.0.0.1:1: " in found["proxy"]["text"]
    assert "pass-word" not in json.dumps(found)


def test_a_hub_that_is_not_there(site: Site) -> None:
    found = examine("http://127.0.0.1:1", status=1)
    assert levels(found, "DNS", "Hub", "CAS") == ["ok", "fail", "skip"]
    found = examine("http://hub.invalid", status=1)
    assert levels(found, "DNS", "Hub") == ["fail", "skip"]


class _OldHub(BaseHTTPRequestHandler):
    """Answers everything with 404, and the time of another day."""

    protocol_version = "HTTP/1.1"
    date: ClassVar[str] = "Tue, 14 Nov 2023 22:13:20 GMT"

    def do_GET(self) -> None:
        self.send_response_only(404)
        self.send_header("Date", self.date)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def old_hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _OldHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_wrong_clock() -> None:
    with old_hub() as url:
        found = examine(url, status=1)
    assert levels(found, "Hub", "clock") == ["ok", "fail"]
    assert "ahead of the Hub's" in found["clock"]["text"]
    assert found["file"]["level"] == "warn"


def test_a_folder_that_cannot_be_used(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    found = examine(site.origin.url, "--cache-dir", str(tmp_path / "file" / "x"), status=1)
    assert found["cache"]["level"] == "fail"


def test_a_build_without_a_compiler_is_slow(site: Site, tmp_path: Path) -> None:
    # As where the extension was not built: its import fails.
    (tmp_path / "sitecustomize.py").write_text(
        'import sys\nsys.modules["xetserve.xet._bg4"] = None\n'
    )
    found = examine(site.origin.url, status=0, PYTHONPATH=str(tmp_path))
    assert found["native code"]["level"] == "warn"
    assert "C extension is missing" in found["native code"]["text"]
    assert "C compiler" in found["native code"]["advice"]


def test_offline_asks_nobody(site: Site, tmp_path: Path) -> None:
    site.control.reset_requests()
    flags = (
        "--offline",
        "--cache-dir",
        str(tmp_path),
        "--cache-size",
        "1MiB",
        "--cache-min-free",
        "0",
    )
    found = examine(site.origin.url, *flags, status=0)
    assert found["Hub"]["level"] == "skip"
    assert site.control.requests() == []


@pytest.mark.parametrize(
    "arguments", [("--file", "a/b"), ("--file", "a//b/../../x", "--revision", "..")]
)
def test_usage(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "xetserve", "doctor", *arguments],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
