"""Settings that a service manager hands over as files."""

import os
from pathlib import Path

import pytest

from xetserve.config.credentials import read_secret_file
from xetserve.config.load import load_config
from xetserve.config.schema import Config
from xetserve.errors import ConfigError

SECRET = "thirty-two or more characters in fact"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "credentials"
    folder.mkdir()
    return folder


def load(folder: Path, config_file: str | None = None, **environ: str) -> Config:
    return load_config({}, {"CREDENTIALS_DIRECTORY": str(folder), **environ}, config_file)


def test_the_text_of_a_credential_is_the_value(folder: Path) -> None:
    (folder / "xetserve.native_secret").write_text(f"{SECRET}\n")
    (folder / "xetserve.upstream_timeout").write_text("3")
    config = load(folder)
    assert config.hub.native_secret == SECRET
    assert config.hub.upstream_timeout == 3


def test_of_a_file_the_value_is_its_path(folder: Path) -> None:
    (folder / "xetserve.tls_key").write_bytes(b"\xff")
    assert load(folder).tls.tls_key == str(folder / "xetserve.tls_key")


def test_it_counts_before_the_file_and_after_the_environment(folder: Path, tmp_path: Path) -> None:
    (folder / "xetserve.upstream_timeout").write_text("3")
    in_file = tmp_path / "xetserve.toml"
    in_file.write_text("[hub]\nupstream_timeout = 4\n")
    assert load(folder, str(in_file)).hub.upstream_timeout == 3
    given = load(folder, str(in_file), XETSERVE_UPSTREAM_TIMEOUT="5")
    assert given.hub.upstream_timeout == 5


def test_others_are_none_of_our_business(folder: Path) -> None:
    (folder / "token").write_text("x")
    assert load(folder) == Config()
    assert load(folder / "nothing") == Config()
    assert load_config({}, {"CREDENTIALS_DIRECTORY": ""}) == Config()


def test_stores_of_the_service_manager_may_follow(folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in ("tls_cert", "tls_key", "tls_key.bak"):
        (store / f"xetserve.{name}").write_text("x")
    (folder / "xetserve.tls_key").write_text("y")
    environ = {"CREDENTIALS_DIRECTORY": f"{folder}:{tmp_path}/absent:{store}"}
    tls = load_config({}, environ).tls
    assert tls.tls_cert == str(store / "xetserve.tls_cert")
    assert tls.tls_key == str(folder / "xetserve.tls_key")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("colour", b"red", "unknown credential xetserve.colour", id="unknown"),
        pytest.param(
            "native_secret",
            b"secretword",
            "credential xetserve.native_secret must have at least 32 characters: "
            "create one with `openssl rand -hex 32`$",
            id="bad, and not shown",
        ),
        pytest.param("native_secret", b"\xff" * 20, "is not UTF-8", id="no text"),
        pytest.param("native_secret", None, "cannot read the credential", id="not readable"),
        pytest.param("native_secret", b"x" * 70_000, "has more than 65536 bytes", id="too large"),
    ],
)
def test_what_is_no_good_stops_the_start(
    folder: Path, name: str, content: bytes | None, message: str
) -> None:
    file = folder / f"xetserve.{name}"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_a_secret_file_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a secret\n")
    (tmp_path / "link").symlink_to("data")
    assert read_secret_file(tmp_path / "link") == "a secret"


def test_a_secret_that_everybody_may_change_is_none(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("a secret")
    path.chmod(0o666)
    with pytest.raises(ValueError, match="chmod o-w"):
        read_secret_file(path)


def test_the_other_end_of_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "secret")
    with pytest.raises(ValueError, match="not a regular file"):
        read_secret_file(tmp_path / "secret")
