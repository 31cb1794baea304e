"""Where `xetserve probe` asks, by the settings and by the command line of a container's server."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import clean_environment
from xetserve.commands.arguments import parse_arguments
from xetserve.commands.probe import describe_answer, find_address, run_probe
from xetserve.config.load import load_config
from xetserve.deploy.local_server import Address, Answer
from xetserve.errors import ConfigError

TLS = {"tls_cert": "/c", "tls_key": "/k"}
PROXY = {"trusted_proxies": "192.0.2.1", "proxy_protocol": "on"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, Address("127.0.0.1", 8080)),
        ({"host": "::", "port": "1"}, Address("localhost", 1)),
        ({"host": "::1,127.0.0.1", "port": "1"}, Address("::1", 1)),
        ({"host": "192.0.2.1,[::]", "port": "1"}, Address("localhost", 1)),
        ({"host": "192.0.2.1, 0.0.0.0"}, Address("127.0.0.1", 8080)),
        ({"host": "192.0.2.1"}, Address("192.0.2.1", 8080)),
        ({**TLS, **PROXY}, Address("127.0.0.1", 8080, tls=True, needs_header=True)),
        ({"unix_socket": "/s"}, Address("127.0.0.1", 8080)),
        ({"unix_socket": "/s", "port": "off", **TLS}, Address("/s")),
        ({"unix_socket": "/s", "port": "0", **PROXY}, Address("/s", needs_header=True)),
    ],
)
def test_where_to_ask(flags: dict[str, str], expected: Address) -> None:
    assert find_address(load_config(flags, {})) == expected


def test_nowhere_to_ask() -> None:
    with pytest.raises(ConfigError, match="name no port"):
        find_address(load_config({"port": "off"}, {}))


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        pytest.param("xetserve serve --port 1 --workers 2", "http://127.0.0.1:1", id="flags"),
        pytest.param("xetserve --port=1", "http://127.0.0.1:1", id="the default command"),
        pytest.param(
            "/usr/bin/python3 /usr/bin/xetserve serve --port 1 --tls-cert /c --tls-key /k",
            "https://127.0.0.1:1",
            id="through an interpreter",
        ),
        pytest.param("/sbin/docker-init -- xetserve --port 1", "http://127.0.0.1:1", id="--init"),
        pytest.param("python -m xetserve serve --port 1", "http://127.0.0.1:1", id="-m"),
        pytest.param("xetserve serve --config {file}", "http://127.0.0.1:2", id="a file"),
        pytest.param(
            "xetserve origin /data --token a=b --port 1", "http://127.0.0.1:1", id="an origin"
        ),
        pytest.param("/sbin/init --port 1", "http://127.0.0.1:3", id="another process"),
        pytest.param("xetserve doctor --port 1", "http://127.0.0.1:3", id="another command"),
    ],
)
def test_the_flags_of_process_1_count(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    asked: str,
) -> None:
    for name in ("XETSERVE_CONFIG", "CREDENTIALS_DIRECTORY", "PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XETSERVE_PORT", "3")
    file = tmp_path / "xetserve.toml"
    file.write_text("[server]\nport = 2\n")
    if "{file}" in command:
        monkeypatch.delenv("XETSERVE_PORT")
    words = command.format(file=file).split()
    line = tmp_path / "cmdline"
    line.write_text("".join(f"{word}\0" for word in words))
    assert run_probe(parse_arguments(["probe"]), line) == 1
    assert capsys.readouterr().err.startswith(f"xetserve: no answer of {asked}/health: ")
    assert run_probe(parse_arguments(["probe", "--port", "4"]), line) == 1
    assert ":4/health: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"status": "ok", "version": "1"}', "200: ok, version 1"),
        (b'{"status": "degraded", "cause": "hub"}', "200: degraded: hub"),
        (b'{"status": "x", "cause": "hub", "error": "no answer"}', "200: x: no answer"),
        (b"<html>", "200"),
        (b"[]", "200"),
    ],
)
def test_what_an_answer_says(body: bytes, expected: str) -> None:
    assert describe_answer(Answer("", 200, body)) == expected


def test_a_probe_loads_little() -> None:
    """It runs every few seconds, in the memory of the container."""
    code = (
        "import sys; from xetserve.cli import main; main(['probe', '--port', '1']);"
        "print([each for each in sys.modules if each in ('asyncio', 'uvloop', 'h11', 'ssl',"
        "'http.client', 'email', 'subprocess', 'logging', 'blake3', 'zstandard')])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, env=clean_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
