import argparse
import dataclasses
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xetserve.config.load import add_flags, load_config, read_secrets
from xetserve.config.parsers import (
    parse_access_log,
    parse_address,
    parse_age,
    parse_audience,
    parse_base_path,
    parse_body_budget,
    parse_bool,
    parse_compression,
    parse_cors,
    parse_count,
    parse_datasets_server,
    parse_file,
    parse_folder,
    parse_head_size,
    parse_hosts,
    parse_listen_hosts,
    parse_log_format,
    parse_log_level,
    parse_min_budget,
    parse_mode,
    parse_networks,
    parse_optional_count,
    parse_optional_seconds,
    parse_password,
    parse_port,
    parse_proxy_headers,
    parse_rate,
    parse_repo,
    parse_repo_management,
    parse_seconds,
    parse_secret,
    parse_secrets,
    parse_size,
    parse_tls_version,
    parse_upstream_networks,
    parse_url,
    parse_workers,
    parse_xet_mode,
)
from xetserve.config.schema import SECTIONS, Config, check_together
from xetserve.config.text import format_value
from xetserve.errors import ConfigError

MIB = 1024 * 1024
OTHER_SECRETS = [random.Random(seed).randbytes(16).hex() for seed in range(2)]

FIELDS = [setting for fields in SECTIONS.values() for setting in dataclasses.fields(fields)]
SETTINGS = [
    pytest.param(section, setting, id=f"{section}.{setting.name}")
    for section, fields in SECTIONS.items()
    for setting in dataclasses.fields(fields)
]
every_setting = pytest.mark.parametrize(("section", "setting"), SETTINGS)
SECRETS = [setting for setting in FIELDS if setting.metadata["is_secret"]]
every_flag = pytest.mark.parametrize(
    ("section", "setting"), [each for each in SETTINGS if each.values[1] not in SECRETS]
)

# A value other than the default for each parser: text, and what it becomes.
OTHER_VALUES: dict[Callable[[str], Any], tuple[str, Any]] = {
    parse_base_path: ("/hf/", "/hf"),
    parse_listen_hosts: ("192.0.2.1, [::1]", "192.0.2.1,::1"),
    parse_port: ("9999", 9999),
    parse_workers: ("auto", 0),
    parse_bool: ("yes", True),
    parse_seconds: ("12.5", 12.5),
    parse_size: ("77MiB", 77 * MIB),
    parse_min_budget: ("77MiB", 77 * MIB),
    parse_body_budget: ("7MiB", 7 * MIB),
    parse_url: ("http://hub.example/x/", "http://hub.example/x"),
    parse_repo: ("other/repo", "other/repo"),
    parse_head_size: ("12KiB", 12 * 1024),
    parse_cors: ("https://page.example", "https://page.example"),
    parse_hosts: ("Models.example., *.Lab", "models.example,*.lab"),
    parse_compression: ("OFF", "off"),
    parse_count: ("77", 77),
    parse_optional_count: ("77", 77),
    parse_optional_seconds: ("77.5", 77.5),
    parse_rate: ("77.5", 77.5),
    parse_folder: ("/var/cache/xetserve", "/var/cache/xetserve"),
    parse_file: ("/run/xetserve.sock", "/run/xetserve.sock"),
    parse_mode: ("0600", "600"),
    parse_tls_version: ("1.3", "1.3"),
    parse_networks: ("10.0.0.0/8, ::1, Unix", "10.0.0.0/8,::1,unix"),
    parse_upstream_networks: ("10.0.0.0/8, FD00::/8", "10.0.0.0/8,fd00::/8"),
    parse_proxy_headers: ("Forwarded", "forwarded"),
    parse_xet_mode: ("Native", "native"),
    parse_repo_management: ("On", "on"),
    parse_datasets_server: (
        "https://datasets-server.hub.example/",
        "https://datasets-server.hub.example",
    ),
    parse_log_level: ("DEBUG", "debug"),
    parse_access_log: ("JSON", "json"),
    parse_log_format: ("JSON", "json"),
    parse_audience: ("Token", "token"),
    parse_address: (" [::1]:9100", "[::1]:9100"),
}
BAD_VALUES: dict[Callable[[str], Any], str] = {
    parse_base_path: "hf",
    parse_listen_hosts: "0.0.0.0:80",
    parse_port: "70000",
    parse_workers: "0",
    parse_bool: "maybe",
    parse_seconds: "-1",
    parse_size: "1e3",
    parse_min_budget: "1MiB",
    parse_body_budget: "1023KiB",
    parse_url: "hub.example",
    parse_repo: "repo",
    parse_head_size: "255",
    parse_cors: "page.example",
    parse_hosts: "models.example:80",
    parse_compression: "on",
    parse_count: "0",
    parse_optional_count: "-1",
    parse_optional_seconds: "-1",
    parse_rate: "-1",
    parse_folder: " ",
    parse_file: " ",
    parse_mode: "rw",
    parse_tls_version: "1.1",
    parse_networks: "10.0.0.1/8",
    parse_upstream_networks: "10.0.0.1/8",
    parse_proxy_headers: "via",
    parse_xet_mode: "xet",
    parse_repo_management: "true",
    parse_datasets_server: "datasets-server",
    parse_log_level: "loud",
    parse_access_log: "xml",
    parse_address: "9100",
    parse_log_format: "off",
    parse_audience: "friends",
}


def write(folder: Path, text: str) -> str:
    path = folder / "xetserve.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def flag_of(setting: dataclasses.Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def get(config: Config, section: str, name: str) -> Any:
    return getattr(getattr(config, section), name)


def parse_flags(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_flags(parser)
    return vars(parser.parse_args(arguments))


# Declarations


@every_setting
def test_a_default_reads_as_itself(section: str, setting: dataclasses.Field[Any]) -> None:
    parse = setting.metadata["parse"]
    value = parse(str(setting.default))
    assert value == setting.default
    assert type(value) is type(setting.default)


@every_setting
def test_a_setting_is_named_the_same_everywhere(
    section: str, setting: dataclasses.Field[Any]
) -> None:
    assert setting.metadata["variables"][0] == f"XETSERVE_{setting.name.upper()}"
    assert setting.metadata["help"]


def test_names_are_used_once() -> None:
    # A flag has no section, so two sections cannot share a name.
    names = [setting.name for setting in FIELDS]
    assert len(set(names)) == len(names)


def test_without_anything_the_defaults_count() -> None:
    assert load_config({}, {}) == Config()
    assert load_config(parse_flags(), {}) == Config()


@every_setting
def test_a_setting_cannot_be_changed(section: str, setting: dataclasses.Field[Any]) -> None:
    config = Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(config, section), setting.name, None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, section, None)


# Flags before environment before file


@every_flag
def test_flags_win_over_environment_and_environment_over_file(
    section: str, setting: dataclasses.Field[Any], tmp_path: Path
) -> None:
    parse = setting.metadata["parse"]
    text, value = OTHER_VALUES[parse]
    default, bad = str(setting.default), BAD_VALUES[parse]
    variable = setting.metadata["variables"][0]
    flag = flag_of(setting)

    in_file = write(tmp_path, f"[{section}]\n{setting.name} = '{text}'\n")
    assert get(load_config({}, {}, in_file), section, setting.name) == value
    assert get(load_config({}, {variable: text}), section, setting.name) == value
    assert get(load_config(parse_flags(flag, text), {}), section, setting.name) == value

    # What is further down does not count, not even where it is bad.
    config = load_config(parse_flags(flag, text), {variable: default}, in_file)
    assert get(config, section, setting.name) == value
    in_file = write(tmp_path, f"[{section}]\n{setting.name} = '{bad}'\n")
    config = load_config({}, {variable: text}, in_file)
    assert get(config, section, setting.name) == value
    config = load_config(parse_flags(flag, text), {variable: bad}, in_file)
    assert get(config, section, setting.name) == value

    # And nothing else has changed.
    expected = dataclasses.replace(
        Config(), **{section: dataclasses.replace(SECTIONS[section](), **{setting.name: value})}
    )
    assert config == expected


@every_flag
def test_a_bad_value_is_named_with_its_source(
    section: str, setting: dataclasses.Field[Any], tmp_path: Path
) -> None:
    bad = BAD_VALUES[setting.metadata["parse"]]
    variable, flag = setting.metadata["variables"][0], flag_of(setting)
    in_file = write(tmp_path, f"[{section}]\n{setting.name} = '{bad}'\n")
    sources: list[tuple[str, dict[str, Any], dict[str, str], str | None]] = [
        (flag, parse_flags(f"{flag}={bad}"), {}, None),
        (variable, {}, {variable: bad}, None),
        (f"{in_file}: {section}.{setting.name}", {}, {}, in_file),
    ]
    for source, flags, environ, config_file in sources:
        with pytest.raises(ConfigError) as caught:
            load_config(flags, environ, config_file)
        assert str(caught.value).startswith(f"{source} must ")
        assert str(caught.value).endswith(f", not {bad!r}")


@pytest.mark.parametrize(
    ("section", "setting"), [each for each in SETTINGS if each.values[1] in SECRETS]
)
def test_a_secret_is_read_from_file_or_environment_and_never_shown(
    section: str, setting: dataclasses.Field[Any], tmp_path: Path
) -> None:
    (variable,) = setting.metadata["variables"]
    secret = "correct horse battery staple and long"
    in_file = write(tmp_path, f"[{section}]\n{setting.name} = '{secret}'\n")
    for config in (load_config({}, {}, in_file), load_config({}, {variable: secret})):
        assert get(config, section, setting.name) == secret
        assert secret not in repr(config)
    with pytest.raises(ConfigError) as caught:
        load_config({}, {variable: "short"})
    length = 32 if setting.name == "native_secret" else 16
    advice = "create one with `openssl rand -hex 32`"
    assert str(caught.value) == f"{variable} must have at least {length} characters: {advice}"
    parser = argparse.ArgumentParser()
    add_flags(parser)
    assert f"{flag_of(setting)} " not in parser.format_help()


def test_the_operator_token_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("correct horse battery\n")
    config = read_secrets(load_config({"operator_token_file": str(path)}, {}))
    assert config.status.operator_token == "correct horse battery"
    assert "correct" not in repr(config)
    assert read_secrets(Config()) == Config()


@pytest.mark.parametrize(
    ("content", "environ", "message"),
    [
        pytest.param(b"short", {}, "must have at least 16 characters", id="short"),
        pytest.param(b"\n", {}, "is empty", id="empty"),
        pytest.param(b"\xff" * 20, {}, "is not UTF-8", id="not a text"),
        pytest.param(None, {}, "No such file", id="missing"),
        pytest.param(b"x" * 16, {}, "can be guessed", id="guessed"),
        pytest.param(
            b"correct horse battery",
            {"XETSERVE_OPERATOR_TOKEN": "staple battery horse"},
            "exclude",
            id="both",
        ),
    ],
)
def test_a_file_that_has_no_token_stops_the_start(
    tmp_path: Path, content: bytes | None, environ: dict[str, str], message: str
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_secrets(load_config({"operator_token_file": str(path)}, environ))


@pytest.mark.parametrize(
    ("environ", "port"),
    [
        pytest.param({}, 8080, id="none"),
        pytest.param({"PORT": "1234"}, 1234, id="PORT"),
        pytest.param({"XETSERVE_PORT": "4321"}, 4321, id="XETSERVE_PORT"),
        pytest.param({"PORT": "1234", "XETSERVE_PORT": "4321"}, 4321, id="ours wins"),
        pytest.param({"PORT": "1234", "XETSERVE_PORT": ""}, 1234, id="empty is not set"),
        pytest.param({"PORT": ""}, 8080, id="empty PORT"),
        pytest.param({"PORT": "0"}, 0, id="any free one"),
    ],
)
def test_port_comes_from_either_variable(environ: dict[str, str], port: int) -> None:
    assert load_config({}, environ).server.port == port


@pytest.mark.parametrize("value", ["http", "65536", "-1", "80 ", "8080/tcp"])
def test_a_bad_port_names_the_variable_that_was_set(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^PORT must be a port number, 0 to 65535, or off, not "):
        load_config({}, {"PORT": value})


def test_an_empty_variable_leaves_the_file_to_count(tmp_path: Path) -> None:
    in_file = write(tmp_path, "[server]\nport = 81\n")
    assert load_config({}, {"PORT": "", "XETSERVE_PORT": ""}, in_file).server.port == 81


@pytest.mark.parametrize("value", ["", " "], ids=["nothing", "a blank"])
def test_an_empty_flag_is_a_value(value: str) -> None:
    with pytest.raises(ConfigError, match="--host must be addresses"):
        load_config(parse_flags("--host", value), {})


# Flags


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        pytest.param([], False, id="not given"),
        pytest.param(["--allow-anonymous"], True, id="alone"),
        pytest.param(["--allow-anonymous", "false"], False, id="switched off"),
        pytest.param(["--allow-anonymous=on"], True, id="switched on"),
        pytest.param(["--allow-anonymous", "--port", "1"], True, id="before another"),
    ],
)
def test_a_switch_needs_no_value(arguments: list[str], expected: bool) -> None:
    assert load_config(parse_flags(*arguments), {}).hub.allow_anonymous is expected


def test_a_switch_can_be_switched_off_against_the_environment() -> None:
    environ = {"XETSERVE_ALLOW_ANONYMOUS": "true"}
    assert load_config({}, environ).hub.allow_anonymous
    assert not load_config(parse_flags("--allow-anonymous=no"), environ).hub.allow_anonymous


def test_a_command_may_leave_a_flag_out() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ("server", "log"), without=("workers",))
    given = vars(parser.parse_args([]))
    assert "workers" not in given
    # What the environment or the file says does not disturb it.
    assert load_config(given, {"XETSERVE_WORKERS": "4"}).server.workers == 4


@pytest.mark.parametrize(
    ("budget", "num_workers", "share"),
    [
        pytest.param(128 * MIB, 1, 128 * MIB, id="one has it all"),
        pytest.param(128 * MIB, 3, 128 * MIB // 3, id="three have a third each"),
        pytest.param(128 * MIB, 64, 8 * MIB, id="never too little to go on"),
    ],
)
def test_workers_share_the_budget(budget: int, num_workers: int, share: int) -> None:
    config = load_config({"memory_budget": str(budget), "port": "5"}, {}).for_worker(num_workers)
    assert config.memory.memory_budget == share
    assert config.memory.body_budget == max(MIB, 32 * MIB // num_workers)
    assert config.server.port == 5


def test_workers_share_connections_and_requests_rounded_up() -> None:
    settings = {
        "max_connections": "10",
        "max_connections_per_client": "3",
        "max_active_requests": "0",
        "token_request_rate": "7",
    }
    config = load_config(settings, {}).for_worker(3)
    assert config.limits.max_connections == 4
    assert config.limits.max_connections_per_client == 1
    assert config.admission.max_active_requests == 0, "no limit stays no limit"
    assert config.admission.token_request_rate == 7, "rates are each worker's own"


@pytest.mark.parametrize("value", ["1", "2", "1024"])
def test_workers_may_be_a_number(value: str) -> None:
    assert load_config({"workers": value}, {}).server.workers == int(value)


@pytest.mark.parametrize("value", ["0", "-1", "1025", "many", "2.5", ""])
def test_workers_are_at_least_one(value: str) -> None:
    with pytest.raises(ConfigError, match="--workers must be a number of processes"):
        load_config({"workers": value}, {})


def test_flags_of_a_command_are_those_of_its_sections() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, ("log",))
    assert vars(parser.parse_args([])) == {
        "config": None,
        "log_level": None,
        "log_format": None,
        "access_log": None,
    }


def test_help_names_flag_variables_and_default() -> None:
    parser = argparse.ArgumentParser(prog="xetserve")
    add_flags(parser)
    text = re.sub(r"\s+", " ", parser.format_help())
    for setting in FIELDS:
        if setting in SECRETS:
            continue
        assert flag_of(setting) in text
        variables = ", ".join(setting.metadata["variables"])
        assert f"[{variables}; default: {format_value(setting) or 'not set'}]" in text


def test_other_options_of_a_command_are_not_settings() -> None:
    flags = {**parse_flags("--port", "5"), "dir": "/x", "run": print, "tokens": ["a"]}
    assert load_config(flags, {}).server.port == 5


# Settings beside each other

TLS = {"tls_cert": "c.pem", "tls_key": "k.pem"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tls_cert": "c.pem"}, "tls_cert and tls_key must be set together"),
        ({"tls_key": "k.pem"}, "tls_cert and tls_key must be set together"),
        ({"redirect_port": "80"}, "redirect_port needs TLS"),
        (
            {**TLS, "redirect_port": "80", "port": "off", "unix_socket": "/x"},
            "redirect_port needs a port",
        ),
        ({"acme_webroot": "/var/www"}, "acme_webroot needs TLS"),
        ({**TLS, "redirect_target": "off"}, "redirect_target must be a port"),
        ({"proxy_protocol": "on"}, "proxy_protocol needs trusted_proxies"),
        ({"port": "off"}, "no listener is set"),
        ({"offline": "on"}, "offline needs a cache_dir"),
        ({"metrics": "token"}, "metrics = token needs operator_token"),
    ],
)
def test_settings_that_make_no_sense_together(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_together(load_config(settings, {}))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"port": "off", "unix_socket": "/run/x"},
        {**TLS, "redirect_port": "80", "acme_webroot": "/var/www", "redirect_target": "443"},
        {"proxy_protocol": "on", "trusted_proxies": "unix"},
        {"offline": "on", "cache_dir": "/var/cache/x"},
    ],
)
def test_settings_that_do(settings: dict[str, str]) -> None:
    check_together(load_config(settings, {}))


def test_no_port_is_shown_as_it_is_written() -> None:
    assert str(load_config({"port": "OFF"}, {}).server.port) == "off"
    assert str(load_config({"port": "443"}, {}).server.port) == "443"


# The file


def test_a_file_may_set_everything(tmp_path: Path) -> None:
    in_file = write(
        tmp_path,
        """
        # numbers, switches and texts as TOML has them
        [server]
        host = "::1"
        port = 8_000
        drain_timeout = 5
        write_timeout = 2.5
        [hub]
        hub_url = "https://hub.example"
        allow_anonymous = true
        hash_repo = "a/b"
        upstream_timeout = 1e1
        [memory]
        memory_budget = 0x1000000
        [log]
        log_level = "warning"
        """,
    )
    config = load_config({}, {}, in_file)
    assert (config.server.host, config.server.port) == ("::1", 8000)
    assert (config.server.drain_timeout, config.server.write_timeout) == (5.0, 2.5)
    assert (config.hub.hub_url, config.hub.hash_repo) == ("https://hub.example", "a/b")
    assert (config.hub.allow_anonymous, config.hub.upstream_timeout) == (True, 10.0)
    assert (config.memory.memory_budget, config.log.log_level) == (16 * MIB, "warning")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("# nothing\n", id="a comment"),
        pytest.param("[server]\n[log]\n", id="empty tables"),
    ],
)
def test_a_file_may_set_nothing(tmp_path: Path, text: str) -> None:
    assert load_config({}, {}, write(tmp_path, text)) == Config()


def test_keys_may_be_dotted(tmp_path: Path) -> None:
    in_file = write(tmp_path, "server.port = 81\nlog = {log_level = 'error'}\n")
    config = load_config({}, {}, in_file)
    assert (config.server.port, config.log.log_level) == (81, "error")


def test_the_environment_may_name_the_file(tmp_path: Path) -> None:
    in_file = write(tmp_path, "[server]\nport = 81\n")
    environ = {"XETSERVE_CONFIG": in_file}
    assert load_config({}, environ).server.port == 81
    flags = parse_flags("--config", in_file)
    assert load_config(flags, {}, flags["config"]).server.port == 81


def test_the_flag_names_another_file_than_the_environment(tmp_path: Path) -> None:
    in_file = write(tmp_path, "[server]\nport = 81\n")
    environ = {"XETSERVE_CONFIG": str(tmp_path / "missing.toml")}
    assert load_config({}, environ, in_file).server.port == 81


def test_an_empty_variable_names_no_file() -> None:
    assert load_config({}, {"XETSERVE_CONFIG": ""}) == Config()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("port = 80", "unknown section or key 'port'", id="key outside a table"),
        pytest.param("[servers]\nport = 80", "section or key 'servers'", id="unknown table"),
        pytest.param("[server]\nprot = 80", r"unknown key 'prot' in \[server\]", id="unknown key"),
        pytest.param("[server]\nPort = 80", "unknown key 'Port'", id="upper case"),
        pytest.param("[hub]\nport = 80", r"unknown key 'port' in \[hub\]", id="another table's"),
        pytest.param("[server.port]\nx = 1", "server.port must be a single value",
                     id="table in it"),
        pytest.param("server = 5", r"\[server\] must be a table", id="number for a table"),
        pytest.param("[[server]]\nport = 1", r"\[server\] must be a table", id="list of tables"),
        pytest.param("[server]\nport = [80]", "server.port must be a single value", id="list"),
        pytest.param("[server]\nhost = 1979-05-27", "server.host must be a single", id="date"),
        pytest.param("[server]\nport = true", "server.port must be a port number", id="true"),
        pytest.param("[server]\nport = 80.0", "server.port must be a port number", id="decimals"),
        pytest.param("[server]\nport = -80", "server.port must be a port number", id="negative"),
        pytest.param("[server]\nhost = ''", "server.host must be addresses", id="empty text"),
        pytest.param("[server]\ndrain_timeout = inf", "must be a number of sec", id="infinity"),
        pytest.param("[server]\ndrain_timeout = nan", "must be a number of sec", id="nan"),
        pytest.param("[server]\ndrain_timeout = 0", "must be a number of seconds", id="no time"),
        pytest.param("[hub]\nallow_anonymous = 2", "must be true or false, not '2'", id="number"),
        pytest.param("[memory]\nmemory_budget = '1e8'", "must be a size", id="size with exponent"),
        pytest.param("[memory]\nmemory_budget = 5", "must be at least 8MiB", id="small budget"),
        pytest.param("[memory]\nbody_budget = 5", "must be at least 1MiB", id="small for bodies"),
        pytest.param("[server]\nport = 80\nport = 81", "is not TOML", id="a key twice"),
        pytest.param("[server\n", "is not TOML", id="syntax"),
        pytest.param("\ufeff[server]\n", "is not TOML", id="byte order mark"),
        pytest.param("x = '\0'", "is not TOML", id="NUL"),
        pytest.param("x = " + "9" * 5000, "is not TOML", id="number of 5000 digits"),
        pytest.param("x = " + "[" * 100_000, "is not TOML", id="deep nesting"),
    ],
)  # fmt: skip
def test_a_bad_file_stops_the_start(tmp_path: Path, text: str, message: str) -> None:
    in_file = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config({}, {}, in_file)
    assert str(caught.value).startswith(in_file)


def test_an_unknown_key_is_found_beside_flags_and_variables(tmp_path: Path) -> None:
    in_file = write(tmp_path, "[server]\nport = 1\nprot = 2\n")
    with pytest.raises(ConfigError, match="'prot'"):
        load_config({"port": "3"}, {"PORT": "4"}, in_file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = str(tmp_path / "missing.toml")
    for environ, config_file in (({}, path), ({"XETSERVE_CONFIG": path}, None)):
        with pytest.raises(ConfigError) as caught:
            load_config({}, environ, config_file)
        assert str(caught.value) == f"cannot read {path}: No such file or directory"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        load_config({}, {}, str(tmp_path))


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_bytes("[server]\nhost = 'caf\u00e9'".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not TOML"):
        load_config({}, {}, str(path))


# The environment


@pytest.mark.parametrize("name", ["XETSERVE_PROT", "XETSERVE_", "XETSERVE_SERVER_PORT"])
@pytest.mark.parametrize("value", ["", "1"], ids=["empty", "set"])
def test_an_unknown_variable_of_ours_stops_the_start(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"^unknown environment variable {name}(;|$)"):
        load_config({}, {name: value})


@pytest.mark.parametrize("name", ["PATH", "HOST", "xetserve_port", "MY_XETSERVE_PORT", "LOG_LEVEL"])
def test_variables_of_others_are_left_alone(name: str) -> None:
    assert load_config({}, {name: "x"}) == Config()


def test_the_environment_is_the_one_that_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "81")
    monkeypatch.setenv("XETSERVE_PROT", "81")
    assert load_config({}, {}) == Config()


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param("a" * 64, id="one character"),
        pytest.param("ab" * 32, id="two in turn"),
        pytest.param("0123456789abcdef" * 2, id="a text twice"),
        pytest.param("a" * 60 + "bcd", id="hardly more than one"),
    ],
)
@pytest.mark.parametrize("parse", [parse_secret, parse_password])
def test_a_secret_that_can_be_guessed_is_refused(parse: Callable[[str], str], secret: str) -> None:
    with pytest.raises(ValueError, match="can be guessed: create one with `openssl") as caught:
        parse(secret)
    assert secret not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(f"{OTHER_SECRETS[0]},short", "at least 32 characters", id="one is short"),
        pytest.param(f"{OTHER_SECRETS[0]},", "an empty secret beside a comma", id="one is missing"),
        pytest.param("a" * 40 + f",{OTHER_SECRETS[0]}", "can be guessed", id="one can be guessed"),
    ],
)
def test_each_of_several_secrets_must_be_good(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_secrets(text)


def test_several_secrets_are_taken_without_blanks() -> None:
    first, second = OTHER_SECRETS
    assert parse_secrets(f" {first}, {second}\n") == f"{first},{second}"
    assert parse_secrets(" ") == ""


@pytest.mark.parametrize("size", [16, 32, 64])
def test_a_random_secret_is_taken(size: int) -> None:
    source = random.Random(size)
    for _ in range(1000):
        secret = source.randbytes(size).hex()
        assert parse_secret(f" {secret}\n") == secret
        short = source.randbytes(12).hex()[:20]
        assert parse_password(short) == short


# Values


@pytest.mark.parametrize(
    ("parse", "text", "expected"),
    [
        pytest.param(parse_base_path, " /a.b/c_d~1/ ", "/a.b/c_d~1", id="base path"),
        pytest.param(parse_base_path, "/", "", id="base path, the root"),
        pytest.param(parse_listen_hosts, " ::,localhost ", "::,localhost", id="listen hosts"),
        pytest.param(parse_listen_hosts, "fe80::1%eth0", "fe80::1%eth0", id="listen host, zone"),
        pytest.param(parse_port, "0", 0, id="port 0"),
        pytest.param(parse_port, "65535", 65535, id="highest port"),
        pytest.param(parse_port, "080", 80, id="port with a zero"),
        pytest.param(parse_cors, " OFF", "off", id="no pages"),
        pytest.param(parse_cors, "*", "*", id="all pages"),
        pytest.param(
            parse_cors,
            "https://A.b, http://[::1]:80",
            "https://a.b,http://[::1]:80",
            id="two pages",
        ),
        pytest.param(parse_compression, " Auto ", "auto", id="compression"),
        pytest.param(parse_bool, "1", True, id="1"),
        pytest.param(parse_bool, "True", True, id="True"),
        pytest.param(parse_bool, " yes ", True, id="yes"),
        pytest.param(parse_bool, "ON", True, id="ON"),
        pytest.param(parse_bool, "0", False, id="0"),
        pytest.param(parse_bool, "false", False, id="false"),
        pytest.param(parse_bool, "No", False, id="No"),
        pytest.param(parse_bool, "off", False, id="off"),
        pytest.param(parse_seconds, "1", 1.0, id="a second"),
        pytest.param(parse_seconds, " 0.25 ", 0.25, id="a quarter of one"),
        pytest.param(parse_seconds, "1e-3", 0.001, id="a millisecond"),
        pytest.param(parse_size, "0", 0, id="no bytes"),
        pytest.param(parse_size, "1", 1, id="a byte"),
        pytest.param(parse_size, "1B", 1, id="a byte by name"),
        pytest.param(parse_size, "134217728", 128 * MIB, id="bytes"),
        pytest.param(parse_size, "128M", 128 * MIB, id="128M"),
        pytest.param(parse_size, "128MiB", 128 * MIB, id="128MiB"),
        pytest.param(parse_size, "128Mi", 128 * MIB, id="128Mi"),
        pytest.param(parse_size, "128mib", 128 * MIB, id="128mib"),
        pytest.param(parse_size, " 128 MiB ", 128 * MIB, id="128 MiB"),
        pytest.param(parse_size, "128MB", 128_000_000, id="128MB"),
        pytest.param(parse_size, "1k", 1024, id="1k"),
        pytest.param(parse_size, "1kB", 1000, id="1kB"),
        pytest.param(parse_size, "2G", 2 * 1024**3, id="2G"),
        pytest.param(parse_size, "2GB", 2 * 1000**3, id="2GB"),
        pytest.param(parse_size, "3TiB", 3 * 1024**4, id="3TiB"),
        pytest.param(parse_size, "3TB", 3 * 1000**4, id="3TB"),
        pytest.param(parse_size, "1.5GiB", 1536 * MIB, id="1.5GiB"),
        pytest.param(parse_size, "0.3kB", 300, id="0.3kB"),
        pytest.param(parse_size, "1.9", 1, id="no half bytes"),
        pytest.param(parse_size, str(2**53 + 1), 2**53 + 1, id="more than a float counts"),
        pytest.param(parse_size, str(2**63 - 1), 2**63 - 1, id="the largest"),
        pytest.param(parse_body_budget, "1MiB", MIB, id="least budget of bodies"),
        pytest.param(parse_min_budget, "8MiB", 8 * MIB, id="least budget"),
        pytest.param(parse_age, "0", 0.0, id="no age"),
        pytest.param(parse_age, " 90s ", 90.0, id="seconds"),
        pytest.param(parse_age, "45M", 2700.0, id="minutes"),
        pytest.param(parse_age, "12h", 43200.0, id="hours"),
        pytest.param(parse_age, "30d", 2592000.0, id="days"),
        pytest.param(parse_url, "https://h", "https://h", id="URL"),
        pytest.param(parse_url, " http://h:8080/ ", "http://h:8080", id="URL with a port"),
        pytest.param(parse_url, "https://h/a/b//", "https://h/a/b", id="URL with a path"),
        pytest.param(parse_url, "https://h/a@b", "https://h/a@b", id="at sign in the path"),
        pytest.param(parse_url, "http://[::1]:80", "http://[::1]:80", id="IPv6 URL"),
        pytest.param(parse_url, "HTTPS://Hub.Example", "HTTPS://Hub.Example", id="upper-case URL"),
        pytest.param(parse_repo, " a/b ", "a/b", id="repository"),
        pytest.param(parse_repo, "a-b_c.d/E.f-1_", "a-b_c.d/E.f-1_", id="repository with marks"),
        pytest.param(parse_optional_count, "0", 0, id="no limit of a number"),
        pytest.param(parse_optional_seconds, "0", 0.0, id="no limit of a time"),
        pytest.param(parse_optional_seconds, "1e3", 1000.0, id="time with an exponent"),
        pytest.param(parse_rate, "0.5", 0.5, id="every other second"),
        pytest.param(parse_log_level, " Info", "info", id="level"),
        pytest.param(parse_address, "127.0.0.1:0", "127.0.0.1:0", id="address"),
        pytest.param(parse_address, "metrics.local:65535", "metrics.local:65535", id="host"),
        pytest.param(parse_address, " ", "", id="no address"),
        pytest.param(parse_access_log, " Json", "json", id="form of the access log"),
        pytest.param(parse_access_log, "OFF", "off", id="no access log"),
        pytest.param(parse_log_level, "ERROR", "error", id="upper-case level"),
    ],
)
def test_a_value_is_read(parse: Callable[[str], Any], text: str, expected: Any) -> None:
    value = parse(text)
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        pytest.param(parse_age, "", id="no age"),
        pytest.param(parse_age, "-1", id="negative age"),
        pytest.param(parse_age, "1.5h", id="age with decimals"),
        pytest.param(parse_age, "1w", id="weeks"),
        pytest.param(parse_base_path, "hf", id="base path without a slash"),
        pytest.param(parse_base_path, "//hf", id="base path, two slashes"),
        pytest.param(parse_base_path, "/a/../b", id="base path, dots"),
        pytest.param(parse_base_path, "/a b", id="base path, a blank"),
        pytest.param(parse_base_path, "/a%20b", id="base path, an escape"),
        pytest.param(parse_base_path, "/" + "a" * 255, id="base path, too long"),
        pytest.param(parse_listen_hosts, "", id="no listen host"),
        pytest.param(parse_listen_hosts, "127.0.0.1,", id="an empty listen host"),
        pytest.param(parse_listen_hosts, "127.0.0.1 ::1", id="listen hosts without a comma"),
        pytest.param(parse_listen_hosts, "[::1]:80", id="listen host, a port"),
        pytest.param(parse_listen_hosts, "http://a", id="listen host, a URL"),
        pytest.param(parse_port, "", id="no port"),
        pytest.param(parse_port, "65536", id="port too high"),
        pytest.param(parse_port, "-1", id="negative port"),
        pytest.param(parse_port, "+1", id="port with a sign"),
        pytest.param(parse_port, "8 0", id="port with a blank"),
        pytest.param(parse_port, "80.0", id="port with decimals"),
        pytest.param(parse_port, "0x50", id="port in hex"),
        pytest.param(parse_port, "8_0", id="port with an underscore"),
        pytest.param(parse_port, "\u0668\u0660", id="port in another script"),
        pytest.param(parse_port, "\xb2", id="superscript port"),
        pytest.param(parse_port, "9" * 5000, id="port of 5000 digits"),
        pytest.param(parse_cors, "", id="no page"),
        pytest.param(parse_cors, "https://a.b/", id="page with a path"),
        pytest.param(parse_cors, "*, https://a.b", id="all pages and one"),
        pytest.param(parse_cors, "https://a.b,", id="page and a comma"),
        pytest.param(parse_cors, "ftp://a.b", id="page by ftp"),
        pytest.param(parse_cors, "https://*.b", id="page with a star"),
        pytest.param(parse_cors, "https://a.b\r\nX: y", id="page with a line end"),
        pytest.param(parse_compression, "", id="no compression"),
        pytest.param(parse_compression, "gzip", id="compression by name"),
        pytest.param(parse_bool, "", id="no switch"),
        pytest.param(parse_bool, "2", id="switch 2"),
        pytest.param(parse_bool, "y", id="switch y"),
        pytest.param(parse_bool, "none", id="switch none"),
        pytest.param(parse_seconds, "", id="no time"),
        pytest.param(parse_seconds, "0", id="0 seconds"),
        pytest.param(parse_seconds, "-0.1", id="negative time"),
        pytest.param(parse_seconds, "nan", id="nan"),
        pytest.param(parse_seconds, "inf", id="inf"),
        pytest.param(parse_seconds, "1e999", id="more than a float holds"),
        pytest.param(parse_seconds, "1e9", id="32 years"),
        pytest.param(parse_seconds, "5s", id="seconds with a unit"),
        pytest.param(parse_seconds, "9" * 5000, id="time of 5000 digits"),
        pytest.param(parse_size, "", id="no size"),
        pytest.param(parse_size, "M", id="a unit alone"),
        pytest.param(parse_size, "-1M", id="negative size"),
        pytest.param(parse_size, "1e3", id="exponent"),
        pytest.param(parse_size, "1.M", id="point without decimals"),
        pytest.param(parse_size, ".5M", id="point without a number"),
        pytest.param(parse_size, "1..5M", id="two points"),
        pytest.param(parse_size, "1,5M", id="comma"),
        pytest.param(parse_size, "1iB", id="binary what"),
        pytest.param(parse_size, "1i", id="binary nothing"),
        pytest.param(parse_size, "1PB", id="petabytes"),
        pytest.param(parse_size, "1MM", id="two units"),
        pytest.param(parse_size, "1\u212a", id="the kelvin sign"),
        pytest.param(parse_size, "\u0663", id="size in another script"),
        pytest.param(parse_size, "0x10", id="size in hex"),
        pytest.param(parse_size, "1_000", id="size with an underscore"),
        pytest.param(parse_size, str(2**63), id="one above the largest"),
        pytest.param(parse_size, "9" * 19 + "T", id="19 digits of terabytes"),
        pytest.param(parse_size, "9" * 400, id="400 digits"),
        pytest.param(parse_size, "9" * 5000, id="5000 digits"),
        pytest.param(parse_size, "0." + "9" * 5000, id="5000 decimals"),
        pytest.param(parse_min_budget, "8388607", id="one byte less than the least"),
        pytest.param(parse_min_budget, "8MB", id="8 decimal megabytes"),
        pytest.param(parse_min_budget, "much", id="budget without a number"),
        pytest.param(parse_url, "", id="no URL"),
        pytest.param(parse_url, "h", id="URL without a scheme"),
        pytest.param(parse_url, "//h", id="URL without a scheme but slashes"),
        pytest.param(parse_url, "ftp://h", id="ftp"),
        pytest.param(parse_url, "file:///etc", id="file"),
        pytest.param(parse_url, "https://", id="URL without a host"),
        pytest.param(parse_url, "https:///a", id="URL with a path alone"),
        pytest.param(parse_url, "https://:80", id="URL with a port alone"),
        pytest.param(parse_url, "https://user@h", id="user"),
        pytest.param(parse_url, "https://user:pw@h", id="user and password"),
        pytest.param(parse_url, "https://:pw@h", id="password"),
        pytest.param(parse_url, "https://@h", id="an at sign"),
        pytest.param(parse_url, "https://h?a=b", id="query"),
        pytest.param(parse_url, "https://h?", id="empty query"),
        pytest.param(parse_url, "https://h/#a", id="fragment"),
        pytest.param(parse_url, "https://h#", id="empty fragment"),
        pytest.param(parse_url, "https://h:0", id="URL with port 0"),
        pytest.param(parse_url, "https://h:65536", id="URL with a port too high"),
        pytest.param(parse_url, "https://h:http", id="URL with a port of letters"),
        pytest.param(parse_url, "http://[::1", id="open bracket"),
        pytest.param(parse_url, "http://[x]", id="no address in brackets"),
        pytest.param(parse_url, "https://h/a b", id="URL with a blank"),
        pytest.param(parse_url, "https://h/\r\nX: y", id="URL with a line break"),
        pytest.param(parse_url, "https://h\tx", id="URL with a tab"),
        pytest.param(parse_url, "https://h/\0", id="URL with NUL"),
        pytest.param(parse_url, "https://caf\u00e9.example", id="URL not ASCII"),
        pytest.param(parse_repo, "", id="no repository"),
        pytest.param(parse_repo, "a", id="name alone"),
        pytest.param(parse_repo, "a/", id="no name"),
        pytest.param(parse_repo, "/a", id="no owner"),
        pytest.param(parse_repo, "a/b/c", id="three parts"),
        pytest.param(parse_repo, "../b", id="dot segment for the owner"),
        pytest.param(parse_repo, "a/..", id="dot segment for the name"),
        pytest.param(parse_repo, "a/.b", id="leading dot"),
        pytest.param(parse_repo, "a/b c", id="repository with a blank"),
        pytest.param(parse_repo, "a/b?c", id="repository with a query"),
        pytest.param(parse_repo, "a/caf\u00e9", id="repository not ASCII"),
        pytest.param(parse_repo, "a/" + "b" * 97, id="name of 97 characters"),
        pytest.param(parse_optional_count, "1.5", id="part of a thing"),
        pytest.param(parse_optional_seconds, "nan", id="time that is no number"),
        pytest.param(parse_optional_seconds, "inf", id="time without an end"),
        pytest.param(parse_rate, "nan", id="rate that is no number"),
        pytest.param(parse_log_level, "", id="no level"),
        pytest.param(parse_address, "::1:9100", id="no brackets"),
        pytest.param(parse_address, "host:65536", id="no port of TCP"),
        pytest.param(parse_address, ":9100", id="no host"),
        pytest.param(parse_access_log, "", id="no form"),
        pytest.param(parse_access_log, "true", id="unknown form"),
        pytest.param(parse_log_level, "trace", id="unknown level"),
        pytest.param(parse_log_level, "10", id="level as a number"),
    ],
)
def test_a_value_is_refused(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"^must "):
        parse(text)


def test_a_refused_url_is_shown_without_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config({}, {"XETSERVE_HUB_URL": "https://user:s3cret@hub.example/x"})
    assert str(caught.value).endswith("not 'https://***@hub.example/x'")


units = st.sampled_from(["", "B", "K", "kB", "KiB", "M", "MB", "mib", "g", "GB", "TiB"])


@settings(deadline=None)
@given(st.integers(0, 2**63 - 1), st.sampled_from(["", "B", " b"]))
def test_bytes_are_counted_exactly(size: int, unit: str) -> None:
    assert parse_size(f"{size}{unit}") == size


texts = (
    st.text(st.characters(exclude_characters="\0"))
    | st.text("0123456789.eE+-_ infa", max_size=25)
    | st.builds("{}{}".format, st.integers(), units)
    | st.builds("{}://{}".format, st.sampled_from(["http", "https"]), st.text("a:/@[]?#.0 %"))
)


@pytest.mark.parametrize("parse", OTHER_VALUES, ids=lambda parse: parse.__name__)
def test_any_text_is_read_or_refused(parse: Callable[[str], Any]) -> None:
    @settings(deadline=None, database=None)
    @given(texts)
    def check(text: str) -> None:
        value = complaint = None
        try:
            value = parse(text)
        except ValueError as exc:
            complaint = str(exc)
        if complaint is None:
            assert type(value) is type(OTHER_VALUES[parse][1])
            assert parse(str(value)) == value
        else:
            assert complaint.startswith("must ")

    check()


VARIABLES = [setting.metadata["variables"][0] for setting in FIELDS]


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["PORT", *VARIABLES]), texts, max_size=3))
def test_any_environment_is_read_or_refused(environ: dict[str, str]) -> None:
    complaint = None
    try:
        load_config({}, environ)
    except ConfigError as exc:
        complaint = str(exc)
    assert complaint is None or complaint.startswith(tuple(f"{name} must " for name in environ))
