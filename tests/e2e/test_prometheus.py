"""The dashboard and the alerts in Prometheus itself, which asks real servers."""

import json
import socket
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

import xetserve.ops
from tests.conftest import Launcher, need_program
from tests.e2e.balancers import find_port
from tests.e2e.clients import Connection, Reply, path_of
from tests.e2e.conftest import TOKEN, Site, serve_arguments
from tests.waiting import wait_until

FOLDER: Final = Path(xetserve.ops.__file__).parents[1] / "share/monitoring"
DASHBOARD: Final[dict[str, Any]] = json.loads((FOLDER / "dashboard.json").read_text())
PANELS: Final = {panel["title"]: panel for panel in DASHBOARD["panels"] if panel["type"] != "row"}
# Panels that may be empty: they show what happens only in trouble, or with TLS.
MAY_BE_EMPTY: Final = {
    "Time until the certificate expires",
    "Refused and slow clients",
    "Upstream failures and retries",
}


@dataclass
class Prometheus:
    """A running Prometheus that asks servers each second.

    answers: target that answers.
    silent: target that does not.
    """

    url: str
    answers: str
    silent: str

    def ask(self, path: str) -> Reply:
        connection = Connection(self.url)
        try:
            return connection.ask(path)
        finally:
            connection.close()

    def get(self, path: str, **parameters: str) -> Any:
        answer = json.loads(self.ask(f"{path}?{urllib.parse.urlencode(parameters)}").body)
        assert answer["status"] == "success", (parameters, answer)
        return answer["data"]

    def count_answers(self) -> float:
        """Return how often the server that answers was asked within five minutes."""
        ((_, count),) = self.query(
            f'count_over_time(xetserve_workers{{instance="{self.answers}"}}[5m])'
        )
        return count

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate an expression of the dashboard, for all jobs and instances."""
        for variable, value in {
            "job": "xetserve",
            "instance": ".*",
            "__rate_interval": "30s",
        }.items():
            expression = expression.replace(f"${variable}", value)
        found = self.get("/api/v1/query", query=expression)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found]


@pytest.fixture(scope="module")
def prometheus(
    _running_site: Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    tmp_path = tmp_path_factory.mktemp("prometheus")
    launched = Launcher(tmp_path)
    settings = tmp_path / "xetserve.toml"
    settings.write_text(f'[cache]\ncache_dir = "{tmp_path / "cache"}"\ncache_min_free = 0\n')
    server = launched.start(
        *serve_arguments(_running_site.origin.url, "--config", str(settings)),
        *("--metadata-ttl", "60"),
    )
    port = find_port()
    answers = urllib.parse.urlsplit(server.url).netloc
    reserved = socket.socket()  # bound, so that no other server takes the port, and not listening
    reserved.bind(("127.0.0.1", 0))
    silent = f"127.0.0.1:{reserved.getsockname()[1]}"
    (tmp_path / "prometheus.yml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(FOLDER / "alerts.yml")],
                "scrape_configs": [
                    {"job_name": "xetserve", "static_configs": [{"targets": [answers, silent]}]}
                ],
            }
        )
    )
    log = (tmp_path / "prometheus.log").open("wb")
    popen = subprocess.Popen(
        [
            need_program("prometheus"),
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=log,
    )
    log.close()
    running = Prometheus(f"http://127.0.0.1:{port}", answers, silent)

    def is_ready() -> bool:
        assert popen.poll() is None, (tmp_path / "prometheus.log").read_text()
        try:
            return running.ask("/-/ready").status == 200
        except OSError:  # it does not listen yet
            return False

    try:
        wait_until(is_ready)
        wait_until(lambda: running.query("count_over_time(xetserve_workers[1m]) >= 2"))
        connection = Connection(server.url)
        for _ in range(2):  # from the origin, and from the cache
            assert connection.ask(path_of("big.bin"), token=TOKEN).status == 200
        connection.close()
        # Rates need each series twice; requests are counted at their end, one after the other.
        seen = running.count_answers()
        wait_until(lambda: running.count_answers() >= seen + 3)
        yield running
    finally:
        popen.terminate()
        popen.wait()
        launched.stop_all()
        reserved.close()


def test_every_panel_shows_a_real_server(prometheus: Prometheus) -> None:
    empty = set()
    for title, panel in PANELS.items():
        found = [prometheus.query(target["expr"]) for target in panel["targets"]]
        if not any(found):
            empty.add(title)
    assert empty - MAY_BE_EMPTY == set()


def test_the_table_has_a_line_for_each_instance(prometheus: Prometheus) -> None:
    panel = PANELS["Instances"]
    (organize,) = [x["options"] for x in panel["transformations"] if x["id"] == "organize"]
    lines: dict[str, dict[str, object]] = {}
    for target in panel["targets"]:
        name = organize["renameByName"].get(f"Value #{target['refId']}")
        for labels, value in prometheus.query(target["expr"]):
            line = lines.setdefault(labels["instance"], {})
            cells = {organize["renameByName"][key]: text for key, text in labels.items()}
            cells.pop("Instance")
            assert not line.keys() & cells.keys()  # else there would be two lines
            line |= cells
            if name is not None:
                line[name] = value
    assert lines.keys() == {prometheus.answers, prometheus.silent}
    assert lines[prometheus.silent] == {"State": 3}
    line = lines[prometheus.answers]
    assert line.keys() == set(organize["renameByName"].values()) - {"Instance"}
    assert (line["State"], line["Reload"], line["Workers"]) == (0, 1, 1)


def test_a_start_is_marked(prometheus: Prometheus) -> None:
    starts, _, reloads = (note["expr"] for note in DASHBOARD["annotations"]["list"])
    ((labels, milliseconds),) = prometheus.query(starts)
    assert labels == {"instance": prometheus.answers, "version": xetserve.__version__}
    ((_, seconds),) = prometheus.query("process_start_time_seconds")
    assert milliseconds == pytest.approx(1000 * seconds)
    assert prometheus.query(reloads) == []


def test_no_alert_but_the_one_for_the_silent_target(prometheus: Prometheus) -> None:
    (group,) = prometheus.get("/api/v1/rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} == {"ok"}
    raised = {
        (rule["name"], alert["labels"]["instance"])
        for rule in group["rules"]
        for alert in rule["alerts"]
    }
    assert raised == {("XetserveDown", prometheus.silent)}
