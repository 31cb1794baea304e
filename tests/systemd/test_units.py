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
from xetserve.config.schema import ORIGIN_SECTIONS, SECTIONS, Sections
from xetserve.ops.supervisor import STOP_GRACE
from xetserve.origin.api.uploads import MAX_LINE_SIZE
from xetserve.xet.shard import MAX_SHARD_SIZE

UNITS = Path(__file__).parents[2] / "systemd"
SERVICE = "xetserve.service"
ORIGIN = "xetserve-origin.service"
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


def read_unit(name: str) -> dict[str, list[str]]:
    """Give what is set in a unit, with all its values."""
    found = defaultdict(list)
    for key, value in re.findall(r"^(\w+)=(.*)$", (UNITS / name).read_text(), re.MULTILINE):
        found[key].append(value)
    return found


def read_environment(settings: dict[str, list[str]]) -> dict[str, str]:
    """Give the environment that a service sets."""
    return dict(pair.split("=", 1) for line in settings["Environment"] for pair in line.split())


@pytest.fixture(scope="module")
def settings() -> dict[str, list[str]]:
    """What is set in the service, with all its values."""
    return read_unit(SERVICE)


@pytest.fixture(scope="module")
def environ(settings: dict[str, list[str]]) -> dict[str, str]:
    """The environment that the service sets."""
    return read_environment(settings)


def analyze(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [need_program("systemd-analyze"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    "names", [(SERVICE, "xetserve.socket", "xetserve-redirect.socket"), (ORIGIN,)]
)
def test_systemd_finds_nothing_wrong(units: Path, names: tuple[str, ...]) -> None:
    done = analyze(units, "verify", *(f"./{name}" for name in names))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", [SERVICE, ORIGIN])
def test_the_service_is_exposed_by_no_more_than_one_of_ten(units: Path, name: str) -> None:
    done = analyze(units, "security", "--offline=true", "--threshold=10", f"./{name}")
    assert done.returncode == 0, done.stdout
    assert "Overall exposure level" in done.stdout


def test_its_environment_is_one_that_the_server_takes(environ: dict[str, str]) -> None:
    config = load_config({}, environ)
    assert config.limits.max_connections == 1024
    assert config.cache.cache_dir == "%C/xetserve"


@pytest.mark.parametrize(("unit", "schema"), [(SERVICE, SECTIONS), (ORIGIN, ORIGIN_SECTIONS)])
def test_a_reload_checks_the_file_of_the_service_first(
    unit: str, schema: Sections, tmp_path: Path
) -> None:
    found = read_unit(unit)
    check, signal = found["ExecReload"]
    assert signal == "/bin/kill -HUP $MAINPID"
    program, *arguments = check.removeprefix("+").split()
    (start,) = found["ExecStart"]
    assert start.split()[0] == program == PROGRAM
    assert arguments[-2:] == start.split()[-2:]
    arguments[-1] = str(tmp_path / "settings.toml")
    for text, status in (("", 0), ("[log]\naccess_log = 3\n", 1)):
        Path(arguments[-1]).write_text(text)
        command = [sys.executable, "-m", "xetserve", *arguments]
        environ = read_environment(found)
        done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False)
        assert done.returncode == status


def test_web_pages_read_nothing_by_default(environ: dict[str, str]) -> None:
    assert environ["XETSERVE_CORS"] == "off"


def test_memory_is_what_two_servers_may_need_during_an_upgrade_and_a_tenth(
    settings: dict[str, list[str]], environ: dict[str, str]
) -> None:
    config = load_config({}, environ)
    budgets = config.memory.memory_budget + config.memory.body_budget
    bound = 2 * (BASE + budgets) + config.limits.max_connections * PER_CONNECTION
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


def test_the_origin_finds_its_folder_and_its_tokens(tmp_path: Path) -> None:
    settings = read_unit(ORIGIN)
    environ = read_environment(settings)
    assert settings["LoadCredential"] == ["xetserve.tokens"]
    (tmp_path / "xetserve.tokens").write_text("hf_abc=ann\n")
    credentials = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    config = load_config({}, environ | credentials, None, ORIGIN_SECTIONS)
    (folder,) = settings["StateDirectory"]
    assert (config.origin.dir, config.origin.tokens) == (f"%S/{folder}", "hf_abc=ann")
    assert load_config({}, environ, None, ORIGIN_SECTIONS).server.host == "127.0.0.1"


def test_the_origin_has_room_for_what_it_takes() -> None:
    settings = read_unit(ORIGIN)
    config = load_config({}, read_environment(settings), None, ORIGIN_SECTIONS)
    connections = config.limits.max_connections * PER_CONNECTION
    commits = 8 * 5 * MAX_LINE_SIZE
    bound = BASE + 2 * MAX_SHARD_SIZE + commits + connections
    assert 1.1 * bound <= parse_size(settings["MemoryMax"][0]) <= 1.25 * bound
    assert int(settings["LimitNOFILE"][0]) // 2 > config.limits.max_connections
    server = config.server
    needed = server.drain_delay + server.drain_timeout + STOP_GRACE
    assert needed < float(settings["TimeoutStopSec"][0]) <= needed + 10


def test_both_units_have_the_same_sandbox() -> None:
    """What the origin does not need to differ in is what the server has."""
    differing = {
        *(
            "Description",
            "Documentation",
            "Requires",
            "Wants",
            "After",
            "ExecStart",
            "ExecReload",
            "Environment",
        ),
        *("EnvironmentFile", "LoadCredential", "MemoryMax", "CacheDirectory", "CacheDirectoryMode"),
        *(
            "StateDirectory",
            "StateDirectoryMode",
            "RuntimeDirectory",
            "RuntimeDirectoryMode",
            "TimeoutStartSec",
            "IPAddressAllow",
            "Also",
        ),
    }
    server, origin = (
        {key: value for key, value in read_unit(name).items() if key not in differing}
        for name in (SERVICE, ORIGIN)
    )
    assert origin == server
