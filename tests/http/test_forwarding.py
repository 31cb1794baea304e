"""Who has asked, and by which way."""

import pytest

from xetserve.http.forwarding import MAX_AGENT_SIZE, extend_agent, extend_via, has_passed
from xetserve.http.messages import Headers


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        (None, "xetserve/1"),
        ("", "xetserve/1"),
        ("curl/8.0", "xetserve/1 curl/8.0"),
        ("x" * 1000, "xetserve/1 " + "x" * MAX_AGENT_SIZE),
    ],
)
def test_the_clients_name_stands_behind_ours(client: str | None, expected: str) -> None:
    headers = Headers([] if client is None else [("User-Agent", client)])
    assert extend_agent("xetserve/1", headers) == expected


def test_via_grows_by_every_hop() -> None:
    assert extend_via(Headers(), "a") == "1.1 a"
    assert extend_via(Headers([("via", "1.0 x, 1.1 y (c)"), ("Via", "1.1 z")]), "a") == (
        "1.0 x, 1.1 y (c), 1.1 z, 1.1 a"
    )


@pytest.mark.parametrize(
    ("via", "expected"),
    [
        ((), False),
        (("1.1 me",), True),
        (("1.1 other, HTTP/1.1  me (comment)",), True),
        (("1.1 other", "1.1 me"), True),
        (("1.1 meme, 1.1 other",), False),
        (("me",), False),
        (("1.1 other (1.1 me)",), False),
    ],
)
def test_who_has_passed_it_on(via: tuple[str, ...], expected: bool) -> None:
    headers = Headers([("Via", value) for value in via])
    assert has_passed(headers, "me") is expected
