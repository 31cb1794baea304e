"""The units as they are shipped, as systemd's own tools see them. A real boot with them:
boot.py.
"""

import dataclasses
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import need_program
from tests.e2e.dataset import MIB
from xetserve.config.load import load_config
from xetserve.config.parsers import parse_size
from xetserve.config.schema import SECTIONS
from xetserve.ops.supervisor import STOP_GRACE

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = "xetserve.service"
PROGRAM = "/opt/xetserve/bin/xetserve"
BASE = 40 * MIB
PER_CONNECTION = 256 * 1024


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units, with a program that there is."""
    for unit in UNITS.iterdir():
        text = unit.read_text().replace(PROGRAM, sys.executable)
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@pytest.fixture(scope="module")
def settings() -> dict[str, list[str]]:
    """What is set in the service, with all its values."""
    found = defaultdict(list)
    for name, value in re.findall(r"^(\w+)=(.*)$", (UNITS / SERVICE).read_text(), re.MULTILINE):
        found[name].append(value)
    return found


@pytest.fixture(scope="module")
def environ(settings: dict[str, list[str]]) -> dict[str, str]:
    """The environment that the service sets."""
    return dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_program("systemd-analyze"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_systemd_finds_nothing_wrong(units: Path) -> None:
    done = analyze(units, "verify", f"./{SERVICE}", "./xetserve.socket")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_service_is_exposed_by_no_more_than_one_of_ten(units: Path) -> None:
    done = analyze(units, "security", "--offline=true", "--threshold=10", f"./{SERVICE}")
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_its_environment_is_one_that_the_server_takes(environ: dict[str, str]) -> None:
    config = load_config({}, environ)
    assert config.limits.max_connections == 1024
    assert config.cache.cache_dir == "%C/xetserve"


def test_web_pages_read_nothing_by_default(environ: dict[str, str]) -> None:
    assert environ["XETSERVE_CORS"] == "off"


def test_memory_is_what_the_server_may_need_and_a_tenth(
    settings: dict[str, list[str]], environ: dict[str, str]
) -> None:
    config = load_config({}, environ)
    budgets = config.memory.memory_budget + config.memory.body_budget
    bound = BASE + budgets + config.limits.max_connections * PER_CONNECTION
    assert 1.1 * bound <= parse_size(settings["MemoryMax"][0]) <= 1.25 * bound


def test_stopping_may_take_as_long_as_draining_does(
    settings: dict[str, list[str]], environ: dict[str, str]
) -> None:
    server = load_config({}, environ).server
    needed = server.drain_delay + server.drain_timeout + STOP_GRACE
    assert needed < float(settings["TimeoutStopSec"][0]) <= needed + 10


def test_there_are_files_for_all_connections(
    settings: dict[str, list[str]], environ: dict[str, str]
) -> None:
    wanted = load_config({}, environ).limits.max_connections
    assert int(settings["LimitNOFILE"][0]) // 2 > wanted


def test_every_secret_and_every_key_may_be_a_credential(settings: dict[str, list[str]]) -> None:
    secrets = {
        field.name
        for section in SECTIONS.values()
        for field in dataclasses.fields(section)
        if field.metadata["is_secret"] or field.name in ("tls_cert", "tls_key")
    }
    assert set(settings["LoadCredential"]) == {f"xetserve.{name}" for name in secrets}
