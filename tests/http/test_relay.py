"""Who has asked, and by which way."""

import pytest

from xetserve.http.messages import Headers
from xetserve.http.relay import (
    MAX_AGENT_SIZE,
    extend_agent,
    extend_via,
    find_link,
    has_passed,
    select_answer_fields,
    select_request_fields,
)


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


def select(*fields: tuple[str, str]) -> list[tuple[str, str]]:
    return select_answer_fields(Headers(fields), ("http://hub.test",), "http://us.test:8080")


def test_what_goes_to_the_upstream() -> None:
    headers = Headers(
        [("host", "us"), ("accept", "a/b"), ("authorization", "Bearer x"), ("cookie", "c"),
         ("range", "bytes=0-"), ("if-none-match", '"x"'), ("content-type", "x/y")]
    )  # fmt: skip
    assert select_request_fields(headers) == [
        ("Accept", "a/b"),
        ("Content-Type", "x/y"),
        ("If-None-Match", '"x"'),
    ]


def test_what_goes_to_the_client() -> None:
    assert select(
        ("content-type", "application/json"), ("x-total-count", "7"),
        ("connection", "close, x-hop"), ("X-Hop", "1"), ("Transfer-Encoding", "chunked"),
        ("content-length", "5"),
        ("content-encoding", "gzip"), ("set-cookie", "a=b"), ("strict-transport-security", "x"),
        ("access-control-allow-origin", "*"), ("X-Xet-Hash", "0"), ("x-xet-refresh-route", "/"),
        ("x-request-id", "theirs"), ("ratelimit", "r"), ("etag", '"abc"'),
    ) == [
        ("Content-Type", "application/json"),
        ("X-Total-Count", "7"),
        ("Ratelimit", "r"),
        ("ETag", 'W/"abc"'),
    ]  # fmt: skip


def test_a_weak_tag_stays_as_it_is() -> None:
    assert select(("ETag", 'W/"abc"')) == [("ETag", 'W/"abc"')]


@pytest.mark.parametrize(
    ("link", "expected"),
    [
        ('<http://hub.test/api/x?cursor=a,b>; rel="next"',
         '<http://us.test:8080/api/x?cursor=a,b>; rel="next"'),
        ("<http://hub.test/a>;rel=next", "<http://us.test:8080/a>;rel=next"),
        ("</api/x?cursor=1>; rel=\"next\"", "</api/x?cursor=1>; rel=\"next\""),
        ("<http://hub.test.evil/a>; rel=next", "<http://hub.test.evil/a>; rel=next"),
        ("<http://other/a>; rel=x, <http://hub.test>; rel=\"next\"; title=\"a, b\"",
         "<http://other/a>; rel=x, <http://us.test:8080>; rel=\"next\"; title=\"a, b\""),
        ('<http://hub.test/t>; rel="xet-auth", <http://hub.test/r>; rel=xet-reconstruction-info',
         ""),
        ('<http://hub.test/t>; rel="xet-auth", <http://hub.test/n>; rel="next"',
         '<http://us.test:8080/n>; rel="next"'),
        ("<http://hub.test/t>; title=x; REL = Xet-Auth", ""),
    ],
)  # fmt: skip
def test_links_lead_to_us_and_not_to_xet(link: str, expected: str) -> None:
    assert select(("link", link)) == ([("Link", expected)] if expected else [])


def test_a_location_leads_to_us() -> None:
    assert select(("location", "http://hub.test/a")) == [("Location", "http://us.test:8080/a")]
    assert select(("location", "http://cdn.test/a")) == [("Location", "http://cdn.test/a")]


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ('<http://h/a>; rel="next"', "http://h/a"),
        ('</x>; rel=prev, </y?a=b,c>; rel="last next"', "/y?a=b,c"),
        ('</x>; title="rel=next"; rel=prev', None),
        ("</x>; rel=nextish", None),
        ("</x>", None),
        ("", None),
    ],
)
def test_a_link_is_found_by_its_relation(value: str, url: str | None) -> None:
    assert find_link(value, "next") == url
