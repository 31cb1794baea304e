"""Settings that change while a server runs."""

import dataclasses
import logging

import pytest

from xetserve.commands.serve.reload import Live, is_live
from xetserve.config.load import load_config
from xetserve.config.schema import SECTIONS, Config
from xetserve.errors import ConfigError


class Source:
    """Where settings are read from."""

    def __init__(self, **settings: str) -> None:
        self.settings = settings
        self.error = ""

    def __call__(self) -> Config:
        if self.error:
            raise ConfigError(self.error)
        return load_config(self.settings, {})


def messages(caplog: pytest.LogCaptureFixture) -> list[tuple[int, str]]:
    return [(record.levelno, record.message) for record in caplog.records]


def test_whoever_asks_has_the_settings_now_and_whenever_they_change() -> None:
    source = Source(max_url_size="300")
    live = Live(source(), source)
    seen: list[int] = []
    live.on_change(lambda config: seen.append(config.limits.max_url_size))
    source.settings = {"max_url_size": "400"}
    assert live.reload()
    assert seen == [300, 400]
    assert live.config.limits.max_url_size == 400


def test_what_cannot_change_stays_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    source = Source(port="80", log_level="info")
    live = Live(source(), source)
    source.settings = {"port": "81", "log_level": "debug", "memory_budget": "64MiB"}
    assert live.reload()
    assert live.config == load_config({"port": "80", "log_level": "debug"}, {})
    assert messages(caplog) == [
        (logging.WARNING, "a restart is needed to change port, memory_budget"),
        (logging.INFO, "reloaded; changed: log_level"),
    ]


def test_bad_settings_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(max_url_size="300")
    live = Live(source(), source)
    seen: list[Config] = []
    live.on_change(seen.append)
    source.error = "no good"
    assert not live.reload()
    assert len(seen) == 1
    assert messages(caplog) == [(logging.ERROR, "nothing reloaded: no good")]


class BadTls:
    def reload(self) -> None:
        raise ConfigError("the certificate is no good")


def test_a_bad_certificate_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    source = Source(max_url_size="300")
    live = Live(source(), source)
    live.tls = BadTls()  # type: ignore[assignment]
    source.settings = {"max_url_size": "400"}
    assert not live.reload()
    assert live.config.limits.max_url_size == 300
    assert "the certificate is no good" in caplog.text


def test_settings_that_can_change() -> None:
    """What the configuration chapter says. A new setting has to be put on one side on purpose."""
    live = {
        setting.name
        for section, fields in SECTIONS.items()
        for setting in dataclasses.fields(fields)
        if is_live(section, setting.name)
    }
    whole = {"status", "limits", "admission", "proxies", "log"}
    others = {
        setting.name
        for section, fields in SECTIONS.items()
        if section not in whole
        for setting in dataclasses.fields(fields)
    }
    assert "status_listen" not in live
    assert live & others == {"write_timeout", "handshake_timeout", "hsts_max_age"}
