"""/metrics, /status and the page of real servers, beside what their clients have counted."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Launcher
from tests.e2e.cached_site import replace_folder
from tests.e2e.clients import Connection, Reply, curl, file_url, run
from tests.e2e.conftest import REPO, TOKEN, Site, environment_without_home, serve_arguments
from tests.e2e.workers import worker_pids
from tests.waiting import wait_until
from xetserve.metrics.catalogue import ROUTES

NAMES = ("big.bin", "random.bin", "config.json", "big-edited.bin")
OPERATOR = "operator-token-0123"
SECRETS = (TOKEN, OPERATOR, *NAMES, REPO)
HTML = ("Accept", "text/html")

Key = tuple[str, frozenset[tuple[str, str]]]


def ask(site: Site, path: str, *fields: tuple[str, str], token: str | None = None) -> Reply:
    """Ask over a connection of its own, so that any worker may get it."""
    connection = Connection(site.server.url)
    try:
        return connection.ask(path, fields, token=token)
    finally:
        connection.close()


def scrape(site: Site) -> dict[Key, float]:
    """Give all samples, as the official parser reads them."""
    reply = ask(site, "/metrics")
    assert reply.status == 200
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    text = reply.body.decode()
    assert not any(secret in text for secret in SECRETS)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[Key, float], name: str, **labels: str) -> float:
    """Give the sum of the samples with this name and these labels."""
    wanted = set(labels.items())
    return sum(found for (key, of), found in samples.items() if key == name and wanted <= of)


@pytest.fixture(params=[1, 3], ids=["one", "three workers"])
def watched(site: Site, launcher: Launcher, request: pytest.FixtureRequest) -> Iterator[Site]:
    """The site with a server of its own, whose figures begin at zero."""
    flags = ("--workers", str(request.param))
    server = launcher.start(
        *serve_arguments(site.origin.url, *flags), XETSERVE_OPERATOR_TOKEN=OPERATOR
    )
    wait_until(lambda: "the Hub answers" in server.log)  # it has asked at the start
    yield replace(site, server=server)
    assert "Traceback" not in server.log


def test_totals_are_what_clients_have_counted(watched: Site, tmp_path: Path) -> None:
    before = scrape(watched)
    watched.control.reset_requests()
    write = ("-w", "%{http_code} %{size_download}")
    commands = [
        *(curl(file_url(watched, name), tmp_path / name, *write) for name in NAMES),
        *(curl(file_url(watched, NAMES[0]), tmp_path / str(n), *write) for n in range(4)),
        curl(file_url(watched, NAMES[1]), tmp_path / "part", "-r", "5-99", *write),
        curl(f"{watched.server.url}/{REPO}/resolve/main/random.bin", tmp_path / "hub", *write),
        curl(file_url(watched, "absent.bin"), tmp_path / "absent", "--no-fail", *write),
    ]
    clients = [
        subprocess.Popen(command, env=environment_without_home(), stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    told = [client.communicate(timeout=60)[0].split() for client in clients]
    assert [status for status, _ in told] == ["200"] * 8 + ["206", "200", "404"]
    sizes = [int(size) for _, size in told]
    # The client is gone before the server has counted it.
    wait_until(lambda: value(scrape(watched), "xetserve_requests_total", route="download") == 10)
    wait_until(lambda: value(scrape(watched), "xetserve_requests_total", route="resolve") == 1)
    wait_until(lambda: value(scrape(watched), "xetserve_readers") == 0)
    samples = scrape(watched)
    for status, count in (("200", 8), ("206", 1), ("404", 1)):
        found = value(samples, "xetserve_requests_total", route="download", status=status)
        assert found == count
    download, resolve = sizes[:9] + sizes[10:], sizes[9:10]
    assert value(samples, "xetserve_sent_bytes_total", route="download") == sum(download)
    assert value(samples, "xetserve_sent_bytes_total", route="resolve") == sum(resolve)
    for name in ("first_byte", "request_duration"):
        assert value(samples, f"xetserve_{name}_seconds_count", route="download") == 10
        assert value(samples, f"xetserve_{name}_seconds_sum", route="download") > 0
    asked = [item["kind"] for item in watched.control.requests()]
    for kind in ("hub", "cas", "data"):
        counted, earlier = (
            value(figures, "xetserve_upstream_requests_total", upstream=kind)
            for figures in (samples, before)
        )
        assert counted - earlier == asked.count(kind)
        assert value(samples, "xetserve_upstream_bytes_total", upstream=kind) > 0
    assert value(samples, "xetserve_cut_requests_total") == 0
    assert value(samples, "xetserve_integrity_failures_total") == 0
    for gauge in ("xetserve_budget_held_bytes", "xetserve_windows", "xetserve_draining"):
        assert value(samples, gauge) == 0
    routes = {dict(labels)["route"] for _, labels in samples if "route" in dict(labels)}
    assert routes <= set(ROUTES)


def test_whoever_is_asked_tells_the_same(watched: Site, tmp_path: Path) -> None:
    assert run(curl(file_url(watched, "random.bin"), tmp_path / "out")).returncode == 0
    wait_until(lambda: value(scrape(watched), "xetserve_requests_total", route="download") == 1)
    found = [scrape(watched) for _ in range(12)]
    for name in ("xetserve_sent_bytes_total", "xetserve_requests_total"):
        assert {value(samples, name, route="download") for samples in found} == {
            value(found[0], name, route="download")
        }
    requests = [value(samples, "xetserve_requests_total", route="metrics") for samples in found]
    assert requests == sorted(requests)
    assert len({value(samples, "process_start_time_seconds") for samples in found}) == 1


def test_a_worker_that_is_killed_takes_no_count_along(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    server = launcher.start(*serve_arguments(site.origin.url, "--workers", "3"))
    site = replace(site, server=server)
    for n in range(6):
        assert run(curl(file_url(site, "random.bin"), tmp_path / str(n))).returncode == 0
    wait_until(lambda: value(scrape(site), "xetserve_requests_total", route="download") == 6)
    before = scrape(site)
    for pid in worker_pids(server):
        # One after the other, so that each of them has lost its memory once.
        ending = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        assert select.select([ending], [], [], 30)[0]
        os.close(ending)
        wait_until(lambda: len({*worker_pids(server), pid}) == 4)  # noqa: B023 - waits here
    wait_until(lambda: value(scrape(site), "xetserve_workers") == 3)
    after = scrape(site)
    for key, count in before.items():
        if key[0].endswith(("_total", "_bucket", "_sum", "_count")):
            assert after[key] >= count, key
    assert value(after, "xetserve_requests_total", route="download") == 6
    assert value(after, "xetserve_worker_restarts_total") == 3
    assert value(after, "xetserve_loop_lag_seconds_count") > 0
    assert value(after, "process_start_time_seconds") == value(before, "process_start_time_seconds")


def test_a_download_is_seen_while_it_lasts(watched: Site, tmp_path: Path) -> None:
    parts = urllib.parse.urlsplit(watched.server.url)
    with socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30) as client:
        # One that reads a little and then no more: its window is full soon.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"GET /download/{REPO}/big.bin HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer {TOKEN}"
        client.sendall(f"{head}\r\n\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 200")
        wait_until(lambda: json.loads(ask(watched, "/status").body)["streams"] != [])
        size = (watched.uploaded.folder / "big.bin").stat().st_size
        wait_until(
            lambda: json.loads(ask(watched, "/status").body)["streams"][0]["stage"] == "sending"
        )
        for _ in range(6):
            reply = ask(watched, "/status", token=OPERATOR)
            (stream,) = json.loads(reply.body)["streams"]
            assert (stream["file"], stream["repo"], stream["size"]) == ("big.bin", REPO, size)
            assert (stream["route"], stream["client"]) == ("download", "127.0.0.1")
            assert 0 < stream["sent"] < size
            page = ask(watched, "/", HTML, token=OPERATOR).body.decode()
            assert "big.bin" in page
            assert REPO in page
            for text in (page, reply.body.decode()):
                assert TOKEN not in text
                assert OPERATOR not in text
            for path in ("/status", "/"):
                text = ask(
                    watched, path, HTML, token=TOKEN
                ).body.decode()  # the Hub's counts for nothing
                assert not any(secret in text for secret in SECRETS)
            assert "a private file" in text
        assert value(scrape(watched), "xetserve_active_requests") == 2  # and the one that asks
    wait_until(lambda: json.loads(ask(watched, "/status").body)["streams"] == [])
    wait_until(lambda: value(scrape(watched), "xetserve_cut_requests_total", route="download") == 1)
    wait_until(lambda: value(scrape(watched), "xetserve_active_requests") == 1)


def test_terminals_and_browsers_get_what_they_can_show(watched: Site, tmp_path: Path) -> None:
    assert run(curl(watched.server.url, tmp_path / "usage")).returncode == 0
    usage = (tmp_path / "usage").read_text()
    assert f"{watched.server.url}/download/OWNER/REPO" in usage
    assert "<" not in usage
    page = ask(watched, "/", HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "text/html" not in ask(watched, "/").headers["content-type"]


def test_the_form_logs_the_operator_in(watched: Site) -> None:
    connection = Connection(watched.server.url)
    fields = (("Content-Type", "application/x-www-form-urlencoded"), HTML)
    wrong = connection.ask("/operator", fields, "POST", body=b"token=" + b"x" * 20, token=None)
    assert (wrong.status, "set-cookie" in wrong.headers) == (403, False)
    form = urllib.parse.urlencode({"token": OPERATOR}).encode()
    done = connection.ask("/operator", fields, "POST", body=form, token=None)
    assert (done.status, done.headers["location"]) == (303, "./")
    connection.close()
    cookie = ("Cookie", done.headers["set-cookie"].partition(";")[0])
    for _ in range(6):  # whichever worker is asked
        assert b"you are the operator" in ask(watched, "/", HTML, cookie).body
    assert OPERATOR not in watched.server.log


def test_figures_can_be_withdrawn_while_the_server_runs(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    config, secret = tmp_path / "xetserve.toml", tmp_path / "token"
    secret.write_text(OPERATOR + "\n")
    config.write_text(f"[status]\noperator_token_file = '{secret}'\n")
    server = launcher.start(*serve_arguments(site.origin.url, "--config", str(config)))
    site = replace(site, server=server)
    assert ask(site, "/metrics").status == 200
    config.write_text(f"[status]\nmetrics = 'token'\noperator_token_file = '{secret}'\n")
    server.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(site, "/metrics").status == 401)
    assert ask(site, "/status").status == 401
    assert ask(site, "/metrics", token=OPERATOR).status == 200
    secret.write_text("another-operator-token\n")
    server.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(site, "/metrics", token=OPERATOR).status == 401)
    assert ask(site, "/metrics", token="another-operator-token").status == 200
    config.write_text("[status]\nmetrics = 'off'\n")
    server.popen.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(site, "/metrics").status == 404)
    assert ask(site, "/status").status == 404
    assert ask(site, "/health").status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
def test_figures_can_have_an_address_of_their_own(
    site: Site, launcher: Launcher, workers: str
) -> None:
    flags = ("--status-listen", "127.0.0.1:0", "--workers", workers)
    environ = {"XETSERVE_OPERATOR_TOKEN": OPERATOR}
    server = launcher.start(*serve_arguments(site.origin.url, *flags), **environ)
    found = re.search(r", (http://127\.0\.0\.1:\d+) \(figures\)", server.log)
    assert found is not None
    public, apart = Connection(server.url), Connection(found[1])
    name = f"/{REPO}/resolve/main/random.bin"
    for target in ("/metrics", "/status"):
        assert (public.ask(target, token=OPERATOR).status, apart.ask(target).status) == (404, 200)
    assert public.ask("/operator", method="POST", body=b"", token=None).status == 404
    assert b"process_start" not in public.ask("/metrics").body
    pages = [each.ask("/", [HTML], token=None).body for each in (public, apart)]
    assert [b"Sending" in page for page in pages] == [False, True]
    assert (public.ask(name).status, apart.ask(name).status) == (200, 404)
    assert public.ask("/health").status == apart.ask("/ready").status == 200
    public.close()
    apart.close()
    assert server.stop() == 0


def test_the_address_of_the_figures_expects_no_proxy(site: Site, launcher: Launcher) -> None:
    flags = ("--status-listen", "127.0.0.1:0", "--proxy-protocol", "--trusted-proxies", "192.0.2.1")
    server = launcher.start(*serve_arguments(site.origin.url, *flags))
    found = re.search(r", (http://127\.0\.0\.1:\d+) \(figures\)", server.log)
    assert found is not None
    connection = Connection(found[1])
    assert connection.ask("/metrics", token=None).status == 200
    connection.close()
    assert server.stop() == 0


def test_ready_once_the_hub_answers(site: Site, launcher: Launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    flags = ("--workers", "2", "--stale-for", "0")  # without a cache, nothing could be served
    server = launcher.start(*serve_arguments(f"http://127.0.0.1:{port}", *flags))
    site = replace(site, server=server)
    for _ in range(4):
        reply = ask(site, "/ready")
        assert reply.status == 503
        assert json.loads(reply.body)["status"] == "unready"
        assert "the Hub" in json.loads(reply.body)["error"]
    assert ask(site, "/healthz").status == 200
    launcher.start(
        *("origin", str(site.uploaded.origin_folder), "--host", "127.0.0.1", "--port", str(port))
    )
    wait_until(lambda: [ask(site, "/ready").status for _ in range(4)] == [200] * 4)


def test_degraded_with_a_cache_that_cannot_be_written_to(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    flags = ("--cache-dir", str(cache), "--cache-min-free", "0")
    site = replace(site, server=launcher.start(*serve_arguments(site.origin.url, *flags)))
    replace_folder(cache / "tmp")
    reply = ask(site, "/ready")
    assert reply.status == 200
    assert json.loads(reply.body) == {
        "status": "degraded", "cause": "cache", "error": "the disk cache cannot be written to",
    }  # fmt: skip
    (cache / "tmp").unlink()
    wait_until(lambda: json.loads(ask(site, "/ready").body) == {"status": "ready"})
    wait_until(lambda: list((cache / "tmp").iterdir()) == [])


@pytest.mark.parametrize("is_compiled", [True, False])
def test_a_build_without_a_compiler_says_so(
    site: Site, launcher: Launcher, tmp_path: Path, is_compiled: bool
) -> None:
    code = None if is_compiled else 'sys.modules["xetserve.xet._bg4"] = None'
    flags = serve_arguments(site.origin.url)
    started = replace(site, server=launcher.start(*flags, code=code))
    answer = json.loads(ask(started, "/status", token=OPERATOR).body)
    assert answer["native_code"] is is_compiled
    warning = "WARNING xetserve: the C extension is missing: byte grouping"
    assert (warning in started.server.log) is not is_compiled
