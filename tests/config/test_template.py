"""What is made from the declarations says what they say; so do the documents."""

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import xetserve
from xetserve.commands.config import read_env_file
from xetserve.config.load import flag_of, load_all
from xetserve.config.schema import SECTIONS, Config
from xetserve.config.template import (
    format_effective,
    format_toml,
    make_env_template,
    make_markdown,
    make_toml_template,
)
from xetserve.config.text import format_value
from xetserve.errors import ConfigError

README = Path(__file__).parents[2] / "README.md"
CHAPTER = Path(xetserve.__file__).parent / "docs" / "configuration.md"
SETTINGS = [
    pytest.param(section, setting, id=f"{section}.{setting.name}")
    for section, fields in SECTIONS.items()
    for setting in dataclasses.fields(fields)
]
every_setting = pytest.mark.parametrize(("section", "setting"), SETTINGS)


def uncomment(template: str) -> str:
    return re.sub(r"(?m)^#(?=\w)", "", template)


def test_a_template_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "toml").write_text(make_toml_template())
    (tmp_path / "env").write_text(make_env_template())
    assert all(not table for table in tomllib.loads(make_toml_template()).values())
    assert read_env_file(tmp_path / "env") == {}
    loaded = load_all({}, {}, str(tmp_path / "toml"))
    assert (loaded.config, loaded.errors) == (Config(), [])


def test_the_toml_template_has_every_setting_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_text(uncomment(make_toml_template()))
    loaded = load_all({}, {}, str(path))
    assert (loaded.config, loaded.errors) == (Config(), [])
    assert loaded.origins == {
        setting.name: f"{path}: {section}.{setting.name}"
        for section, fields in SECTIONS.items()
        for setting in dataclasses.fields(fields)
    }


def test_the_environment_template_has_every_setting_with_its_default(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text(uncomment(make_env_template()))
    environ = read_env_file(path)
    assert list(environ) == [
        setting.metadata["variables"][0]
        for fields in SECTIONS.values()
        for setting in dataclasses.fields(fields)
    ]
    loaded = load_all({}, environ)
    assert (loaded.config, loaded.errors) == (Config(), [])


@every_setting
def test_the_markdown_has_the_setting(section: str, setting: dataclasses.Field[Any]) -> None:
    _, _, table = make_markdown().partition(f"### `[{section}]`\n")
    (row,) = re.findall(rf"^\| `{setting.name}` \|.*\|$", table.partition("\n#")[0], re.MULTILINE)
    _, key, flag, variables, default, meaning, _ = (cell.strip() for cell in row.split("|"))
    assert key == f"`{setting.name}`"
    assert flag == ("" if setting.metadata["is_secret"] else f"`{flag_of(setting.name)}`")
    assert variables == ", ".join(f"`{name}`" for name in setting.metadata["variables"])
    assert default == (f"`{format_value(setting)}`" if format_value(setting) else "not set")
    assert meaning.replace("`", "") == setting.metadata["help"]


def test_the_configuration_chapter_has_the_tables() -> None:
    """To write them again, see .github/CONTRIBUTING.md."""
    _, _, rest = CHAPTER.read_text(encoding="utf-8").partition("<!-- settings: generated -->\n")
    tables, _, _ = rest.partition("<!-- end -->")
    assert tables == make_markdown()


def test_the_readme_has_ten_settings_with_their_defaults() -> None:
    known = {
        f"[{section}] {setting.name}": format_value(setting)
        for section, fields in SECTIONS.items()
        for setting in dataclasses.fields(fields)
    }
    rows = re.findall(r"^\| `(\[\w+] \w+)` \| (.+?) \|", README.read_text(), re.MULTILINE)
    assert len(rows) == 10
    for name, default in rows:
        assert default == (f"`{known[name]}`" if known[name] else "not set")


def test_the_settings_that_count_read_as_themselves(tmp_path: Path) -> None:
    environ = {
        "XETSERVE_WORKERS": "auto",
        "XETSERVE_PORT": "off",
        "XETSERVE_UNIX_SOCKET": '/run/"x"\\\u00e9 \t\x7f.sock',
        "XETSERVE_MIN_BODY_RATE": "1234",
        "XETSERVE_METADATA_TTL": "1.25",
        "XETSERVE_OFFLINE": "yes",
    }
    loaded = load_all({"host": "::1"}, environ)
    path = tmp_path / "again.toml"
    path.write_text(format_effective(loaded))
    again = load_all({}, {}, str(path))
    assert (again.config, again.errors) == (loaded.config, [])
    assert loaded.origins["host"] == "--host"
    assert loaded.origins["workers"] == "XETSERVE_WORKERS"
    assert loaded.origins["drain_delay"] == "default"


def test_a_secret_is_masked() -> None:
    secret = "correct horse battery staple and long"
    shown = format_effective(load_all({}, {"XETSERVE_NATIVE_SECRET": secret}))
    assert secret not in shown
    assert 'native_secret = "***"' in shown
    assert 'native_secret = ""' in format_effective(load_all({}, {}))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("native_from", 50 * 10**9, '"50GB"'),
        ("cache_size", 2**35, '"32GiB"'),
        ("cache_size", 1536, "1536"),
        ("cache_size", 0, "0"),
        ("drain_delay", 0.5, "0.5"),
        ("rate_burst", 10.0, "10"),
        ("unix_socket_mode", "660", '"660"'),
        ("offline", True, "true"),
    ],
)
def test_a_value_as_toml(name: str, value: object, expected: str) -> None:
    (setting,) = [
        setting
        for fields in SECTIONS.values()
        for setting in dataclasses.fields(fields)
        if setting.name == name
    ]
    assert format_toml(setting, value) == expected


def test_an_environment_file_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "env"
    path.write_text("# a comment\n\n  A=1\nB= x # no comment\nC=\nD='q'=\"z\"\n")
    assert read_env_file(path) == {"A": "1", "B": " x # no comment", "C": "", "D": "'q'=\"z\""}


@pytest.mark.parametrize("line", ["NAME", "=value", "A =1", "export A"])
def test_a_line_that_is_none(tmp_path: Path, line: str) -> None:
    path = tmp_path / "env"
    path.write_text(f"A=1\n{line}\n")
    with pytest.raises(ConfigError, match=r"env:2 must be NAME=value$"):
        read_env_file(path)


def test_everything_that_is_wrong_is_found_at_once(tmp_path: Path) -> None:
    path = tmp_path / "xetserve.toml"
    path.write_text(
        "[server]\nprot = 1\nhub_url = 'x'\nport = []\n[hubb]\n"
        "[cache]\ncache_size = 'x'\n[tls]\nqqq=1\n"
    )
    errors = load_all({"host": " "}, {"XETSERVE_LOG_LEVL": "x"}, str(path)).errors
    expected = [
        "unknown environment variable XETSERVE_LOG_LEVL; did you mean 'XETSERVE_LOG_LEVEL'?",
        "--host must be addresses without a port, separated by commas, not ' '",
        f"{path}: server.port must be a single value",
        f"{path}: unknown key 'prot' in [server]; did you mean 'port'?",
        f"{path}: unknown key 'hub_url' in [server]; it belongs in [hub]",
        f"{path}: cache.cache_size must be a size such as 134217728, 128MiB or 2GB, not 'x'",
        f"{path}: unknown key 'qqq' in [tls]",
        f"{path}: unknown section or key 'hubb'; did you mean 'hub'?",
    ]
    assert sorted(errors) == sorted(expected)
