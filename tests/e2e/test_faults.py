"""Upstream trouble that passes: the download completes, byte for byte. Trouble that lasts: the
right status.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Launcher, sha256_of
from tests.e2e.clients import curl, file_url, head, run
from tests.e2e.conftest import REPO, Site, serve_arguments
from tests.e2e.faults import PASSING


@pytest.mark.parametrize("name", ["big-edited.bin", "repeats.bin"])
@pytest.mark.parametrize("fault", PASSING)
def test_the_download_completes(patient_site: Site, tmp_path: Path, fault: str, name: str) -> None:
    # A stall costs 3 of the 8 seconds that a client waits for a head, and a busy machine the rest.
    site = patient_site
    site.control.set_faults(**PASSING[fault])
    done = run(curl(file_url(site, name), tmp_path / "out"))
    assert done.returncode == 0, done.stderr + site.server.log[-3000:]
    assert sha256_of(tmp_path / "out") == site.uploaded.digests[name]


@pytest.mark.parametrize(
    ("faults", "status"),
    [
        pytest.param({"hub_status_burst": {"status": 500, "count": 99}}, 502, id="Hub 500"),
        pytest.param({"hub_status_burst": {"status": 503, "count": 99}}, 503, id="Hub 503"),
        pytest.param(
            {"hub_status_burst": {"status": 429, "count": 99, "retry_after": 77}}, 429, id="Hub 429"
        ),
        pytest.param({"cas_status_burst": {"status": 500, "count": 99}}, 502, id="CAS 500"),
        pytest.param({"data_status_burst": {"status": 500, "count": 99}}, 502, id="data 500"),
        pytest.param({"data_403_first": 99}, 502, id="data 403"),
        pytest.param({"latency": {"hub": 30, "cas": 0, "data": 0}}, 504, id="silent Hub"),
        pytest.param({"latency": {"hub": 0, "cas": 0, "data": 30}}, 504, id="silent data host"),
    ],
)
def test_lasting_trouble_has_a_status(
    site: Site, launcher: Launcher, tmp_path: Path, faults: dict[str, Any], status: int
) -> None:
    # A server of its own with little patience, so that the test has it, too.
    server = launcher.start(*serve_arguments(site.origin.url, "--upstream-timeout", "2"))
    site.control.set_faults(**faults)
    url = f"{server.url}/download/{REPO}/random.bin"
    dump = tmp_path / "headers"
    command = curl(url, tmp_path / "out", "-w", "%{http_code}", "-D", str(dump))
    command.remove("-f")
    assert run(command).stdout == str(status)
    assert json.loads((tmp_path / "out").read_text())["error"]
    if status == 429:
        assert "Retry-After: 77" in dump.read_text()


def test_a_stopped_origin_is_bad_gateway(site: Site, launcher: Launcher, tmp_path: Path) -> None:
    server = launcher.start(
        *serve_arguments("http://127.0.0.1:9", "--upstream-timeout", "2"),
    )
    url = f"{server.url}/download/{REPO}/random.bin"
    assert run(curl(url, tmp_path / "out", "-w", "%{http_code}")).stdout == "502"


def test_lasting_trouble_in_the_middle_cuts_the_download(
    site: Site, launcher: Launcher, tmp_path: Path
) -> None:
    limits = ("--upstream-timeout", "1", "--outage-patience", "2")
    server = launcher.start(*serve_arguments(site.origin.url, *limits))
    site.control.set_faults(reset_first=10_000)
    done = run(curl(f"{server.url}/download/{REPO}/big.bin", tmp_path / "out"))
    assert done.returncode in (18, 56)
    assert 0 < (tmp_path / "out").stat().st_size < (site.uploaded.folder / "big.bin").stat().st_size


def test_a_second_question_for_an_expired_plan_is_for_the_same_range(
    site: Site, tmp_path: Path
) -> None:
    head(site, file_url(site, "random.bin"))
    site.control.set_faults(data_403_first=1)
    site.control.reset_requests()
    assert run(curl(file_url(site, "random.bin"), tmp_path / "out")).returncode == 0
    asked = [item["range"] for item in site.control.requests() if item["kind"] == "cas"]
    assert len(asked) > len(set(asked))
