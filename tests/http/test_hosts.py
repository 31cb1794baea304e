"""Names that a server answers under, and those that it does not."""

import pytest

from xetserve.errors import RequestError
from xetserve.http.hosts import HostPolicy
from xetserve.http.messages import Headers, Request

POLICY = HostPolicy.parse("models.example,*.lab.example")


@pytest.mark.parametrize(
    ("host", "is_known"),
    [
        pytest.param("models.example", True, id="the name"),
        pytest.param("Models.Example:8080", True, id="other case, with a port"),
        pytest.param("models.example.", True, id="with the root's dot"),
        pytest.param("a.models.example", False, id="below it"),
        pytest.param("one.lab.example", True, id="below a star"),
        pytest.param("one.two.lab.example", True, id="far below a star"),
        pytest.param("lab.example", False, id="the star's own name"),
        pytest.param("evillab.example", False, id="only looks like it"),
        pytest.param("evil.example", False, id="another name"),
        pytest.param("models.example.evil.example", False, id="only begins like it"),
        pytest.param("localhost:8080", True, id="localhost"),
        pytest.param("localhost.evil.example", False, id="only begins like localhost"),
        pytest.param("127.0.0.1:8080", True, id="an address"),
        pytest.param("[2001:db8::1]:80", True, id="an IPv6 address"),
        pytest.param("127.0.0.1.evil.example", False, id="only begins like an address"),
        pytest.param("2130706433", False, id="a number"),
        pytest.param(":80", False, id="a port alone"),
        pytest.param("Datasets-Server.models.example:80", True, id="with the label for datasets"),
        pytest.param("datasets-server.localhost", True, id="localhost with that label"),
        pytest.param("datasets-server.evil.example", False, id="that label is no name"),
        pytest.param("datasets-server.", False, id="that label alone"),
    ],
)
def test_which_names_are_known(host: str, is_known: bool) -> None:
    assert POLICY.knows(host) is is_known


def test_without_names_any_is_answered() -> None:
    assert HostPolicy.parse("").knows("evil.example")


def ask(path: str, host: str | None) -> None:
    POLICY.check(Request("GET", path, Headers([] if host is None else [("host", host)])))


def test_another_name_is_misdirected() -> None:
    with pytest.raises(RequestError, match=r"\[http\] hosts") as caught:
        ask("/metrics", "evil.example")
    assert caught.value.status == 421


@pytest.mark.parametrize("path", ["/health", "/healthz", "/ready", "/ready?x=1"])
def test_probes_are_answered_under_any_name(path: str) -> None:
    ask(path, "evil.example")


def test_an_old_client_that_names_nobody_is_answered() -> None:
    ask("/metrics", None)
