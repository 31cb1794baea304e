"""Whom a request comes from, when proxies say so."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.http.messages import Headers, Request
from xetserve.http.proxy_headers import (
    FORWARDED,
    MAX_HOPS,
    X_FORWARDED,
    Forwarding,
    TrustedProxies,
    normalize_address,
)

TRUSTED = "10.0.0.0/8,2001:db8:1::/48,unix"
PROXY = "10.0.0.1"


def ask(
    fields: list[tuple[str, str]],
    *,
    kind: str = X_FORWARDED,
    peer: str = PROXY,
    trusted: str = TRUSTED,
    secure: bool = False,
) -> tuple[str, bool, str]:
    """Give the peer, whether it is secure, and the host that the request has in the end."""
    request = Request("GET", "/", Headers([("host", "own"), *fields]), peer=peer, secure=secure)
    Forwarding(TrustedProxies(trusted), kind).apply(request)
    assert len(request.headers.get_all("host")) == 1
    return request.peer, request.secure, request.host


# Who is trusted


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.1.2.3", True),
        ("11.1.2.3", False),
        ("::ffff:10.1.2.3", True),
        ("2001:db8:1:5::1", True),
        ("2001:db8:2::1", False),
        ("", True),
        ("fe80::1%eth0", False),
        ("nonsense", False),
    ],
)
def test_addresses_are_trusted_by_their_network(address: str, expected: bool) -> None:
    assert (address in TrustedProxies(TRUSTED)) is expected


def test_nobody_is_trusted_unless_somebody_is_named() -> None:
    nobody = TrustedProxies("")
    assert not nobody
    assert "" not in nobody
    assert "127.0.0.1" not in nobody
    assert TrustedProxies("unix")
    assert "" not in TrustedProxies("10.0.0.0/8")


def test_what_is_no_network_is_an_error() -> None:
    with pytest.raises(ValueError, match="host bits"):
        TrustedProxies("10.0.0.1/8")


# X-Forwarded-*

CASES = {
    "nothing": ([], PROXY),
    "one client": ([("x-forwarded-for", "203.0.113.7")], "203.0.113.7"),
    "with a port": ([("x-forwarded-for", "203.0.113.7:555")], "203.0.113.7"),
    "IPv6": ([("x-forwarded-for", "2001:DB8::7")], "2001:db8::7"),
    "IPv6 in brackets": ([("x-forwarded-for", "[2001:db8::7]")], "2001:db8::7"),
    "IPv6 with a port": ([("x-forwarded-for", "[2001:db8::7]:55")], "2001:db8::7"),
    "IPv4 in IPv6": ([("x-forwarded-for", "::ffff:203.0.113.7")], "203.0.113.7"),
    "the client made something up": (
        [("x-forwarded-for", "198.51.100.1, 203.0.113.7")],
        "203.0.113.7",
    ),
    "the client names a trusted one": (
        [("x-forwarded-for", "10.9.9.9, 203.0.113.7")],
        "203.0.113.7",
    ),
    "two proxies": ([("x-forwarded-for", "203.0.113.7, 10.0.0.2")], "203.0.113.7"),
    "two proxies and an invention": (
        [("x-forwarded-for", "1.1.1.1, 203.0.113.7, 10.0.0.2")],
        "203.0.113.7",
    ),
    "two fields": (
        [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "203.0.113.7")],
        "203.0.113.7",
    ),
    "trusted ones alone": ([("x-forwarded-for", "10.0.0.3, 10.0.0.2")], "10.0.0.3"),
    "no address": ([("x-forwarded-for", "203.0.113.7, unknown")], PROXY),
    "nonsense behind a proxy": ([("x-forwarded-for", "<script>, 10.0.0.2")], "10.0.0.2"),
    "empty members": ([("x-forwarded-for", ", 203.0.113.7, ,")], "203.0.113.7"),
    "empty": ([("x-forwarded-for", "")], PROXY),
    "the other kind": ([("forwarded", "for=203.0.113.7")], PROXY),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_client_is_the_last_address_that_is_not_trusted(name: str) -> None:
    fields, expected = CASES[name]
    assert ask(fields)[0] == expected


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("kind", [X_FORWARDED, FORWARDED])
def test_of_strangers_nothing_is_believed(name: str, kind: str) -> None:
    fields = [*CASES[name][0], ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil")]
    fields.append(("forwarded", "for=1.2.3.4;proto=https;host=evil"))
    assert ask(fields, kind=kind, peer="203.0.113.99") == ("203.0.113.99", False, "own")
    assert ask(fields, kind=kind, trusted="") == (PROXY, False, "own")


def test_a_unix_socket_may_be_trusted() -> None:
    assert ask([("x-forwarded-for", "203.0.113.7")], peer="")[0] == "203.0.113.7"
    assert ask([("x-forwarded-for", "203.0.113.7")], peer="", trusted="10.0.0.0/8")[0] == ""


@pytest.mark.parametrize(
    ("value", "secure", "expected"),
    [
        ("https", False, True),
        ("HTTPS", False, True),
        ("http", True, False),
        ("http, https", False, True),
        ("gopher", False, False),
        ("gopher", True, True),
        ("", True, True),
    ],
)
def test_the_scheme_is_what_the_proxy_says(value: str, secure: bool, expected: bool) -> None:
    fields = [("x-forwarded-for", "203.0.113.7"), ("x-forwarded-proto", value)]
    assert ask(fields, secure=secure)[1] is expected


def test_the_scheme_comes_without_an_address_too() -> None:
    assert ask([("x-forwarded-proto", "https"), ("x-forwarded-host", "a")]) == (PROXY, True, "a")


def test_lists_go_together_hop_by_hop() -> None:
    fields = [
        ("x-forwarded-for", "1.1.1.1, 203.0.113.7, 10.0.0.2"),
        ("x-forwarded-proto", "http, https, http"),
        ("x-forwarded-host", "invented, wanted, inner"),
    ]
    assert ask(fields) == ("203.0.113.7", True, "wanted")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.example", "a.example"),
        ("a.example:8443", "a.example:8443"),
        ("[::1]:8443", "[::1]:8443"),
        ("a b", "own"),
        ("a/b", "own"),
        ("a.example:99999", "own"),
        (":80", "own"),
        ('"><script>', "own"),
        ("", "own"),
    ],
)
def test_a_host_has_to_be_one(value: str, expected: str) -> None:
    assert ask([("x-forwarded-host", value)])[2] == expected


@pytest.mark.parametrize(
    ("host", "port", "proto", "expected"),
    [
        pytest.param("a", "8443", "https", "a:8443", id="another port"),
        pytest.param("a", "443", "https", "a", id="the port of https"),
        pytest.param("a", "80", "https", "a:80", id="the port of http"),
        pytest.param("a", "80", "http", "a", id="the port of http, with http"),
        pytest.param("[::1]", "8080", "http", "[::1]:8080", id="IPv6"),
        pytest.param("a:81", "8080", "http", "a:81", id="the host has one"),
        pytest.param("[::1]:81", "8080", "http", "[::1]:81", id="the IPv6 host has one"),
        pytest.param("", "8080", "", "own:8080", id="the host is our own"),
        pytest.param("a, b", "81, 82", "http", "b:82", id="lists"),
        pytest.param("a", "0", "http", "a", id="port 0"),
        pytest.param("a", "65536", "http", "a", id="too high"),
        pytest.param("a", "8080/x", "http", "a", id="no port"),
        pytest.param("a", "", "http", "a", id="empty"),
    ],
)
def test_a_port_counts_for_a_host_without_one(
    host: str, port: str, proto: str, expected: str
) -> None:
    fields = [("x-forwarded-host", host), ("x-forwarded-port", port), ("x-forwarded-proto", proto)]
    assert ask([("x-forwarded-for", "203.0.113.7"), *fields])[2] == expected
    assert ask(fields, peer="203.0.113.99")[2] == "own"
    assert ask(fields, kind=FORWARDED)[2] == "own"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/hf", "/hf"),
        ("/hf/", "/hf"),
        ("/a/b.c", "/a/b.c"),
        ("/outer, /inner", "/inner"),
        ("/", ""),
        ("", ""),
        ("hf", ""),
        ("//evil.test", ""),
        ("/a/../b", ""),
        ("/a/./b", ""),
        ("/.well-known", "/.well-known"),
        ("/a%2f", ""),
        ('/"><script>', ""),
        ("/a?b", ""),
        ("/" + "a" * 255, ""),
        ("https://evil.test/a", ""),
    ],
)
def test_a_prefix_stands_before_the_paths_of_links(value: str, expected: str) -> None:
    fields = [("host", "own"), ("x-forwarded-prefix", value), ("x-forwarded-for", "203.0.113.7")]
    for kind, peer, found in (
        (X_FORWARDED, PROXY, expected),
        (FORWARDED, PROXY, ""),
        (X_FORWARDED, "203.0.113.99", ""),
    ):
        request = Request("GET", "/a", Headers(fields), peer=peer)
        Forwarding(TrustedProxies(TRUSTED), kind).apply(request)
        assert (request.target, request.base_url) == ("/a", f"http://own{found}")


# Forwarded

FORWARDED_CASES = {
    "one": ("for=203.0.113.7;proto=https;host=a.example", ("203.0.113.7", True, "a.example")),
    "another case": ("For=203.0.113.7;PROTO=https;Host=a", ("203.0.113.7", True, "a")),
    "quoted": ('for="[2001:db8::7]:4711";host="a:8080"', ("2001:db8::7", False, "a:8080")),
    "a quoted port": ('for="203.0.113.7:80"', ("203.0.113.7", False, "own")),
    "escaped": ('for="203\\.0.113.7"', ("203.0.113.7", False, "own")),
    "by is nothing to us": ("by=10.0.0.1;for=203.0.113.7", ("203.0.113.7", False, "own")),
    "two hops": (
        "for=203.0.113.7;proto=https, for=10.0.0.2;proto=http",
        ("203.0.113.7", True, "own"),
    ),
    "an invention": (
        "for=1.1.1.1;proto=https;host=evil, for=203.0.113.7;proto=http;host=a",
        ("203.0.113.7", False, "a"),
    ),
    "a separator in quotes": ('for=203.0.113.7;x="a,b;c"', ("203.0.113.7", False, "own")),
    "unknown": ("for=203.0.113.7, for=unknown", (PROXY, False, "own")),
    "hidden": ("for=203.0.113.7, for=_hidden;proto=https", (PROXY, True, "own")),
    "no address": ("proto=https", (PROXY, True, "own")),
    "spaces around": (" for=203.0.113.7 ; proto=https ", ("203.0.113.7", True, "own")),
    "empty elements": (",for=203.0.113.7,,", ("203.0.113.7", False, "own")),
    "malformed": ("for=203.0.113.7;proto", (PROXY, False, "own")),
    "malformed before": ('for="1.1.1.1, for=203.0.113.7', (PROXY, False, "own")),
    "spaces within": ("for = 203.0.113.7", (PROXY, False, "own")),
    "said twice": ("for=203.0.113.7;for=1.1.1.1", (PROXY, False, "own")),
    "unquoted IPv6": ("for=2001:db8::7", (PROXY, False, "own")),
    "empty": ("", (PROXY, False, "own")),
}


@pytest.mark.parametrize("name", FORWARDED_CASES)
def test_forwarded(name: str) -> None:
    value, expected = FORWARDED_CASES[name]
    assert ask([("forwarded", value)], kind=FORWARDED) == expected


def test_several_fields_are_one_list() -> None:
    fields = [("forwarded", "for=203.0.113.7"), ("forwarded", "for=10.0.0.2")]
    assert ask(fields, kind=FORWARDED)[0] == "203.0.113.7"


def test_the_other_kind_is_the_clients_own_word() -> None:
    fields = [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https")]
    assert ask(fields, kind=FORWARDED) == (PROXY, False, "own")


# Any text at all


@pytest.mark.parametrize("kind", [X_FORWARDED, FORWARDED])
def test_long_chains_come_to_an_end(kind: str) -> None:
    addresses = [f"10.0.{index >> 8}.{index & 255}" for index in range(1000)]
    if kind == X_FORWARDED:
        fields = [("x-forwarded-for", ",".join(addresses))]
    else:
        fields = [("forwarded", ",".join(f"for={address}" for address in addresses))]
    assert ask(fields, kind=kind)[0] == addresses[-MAX_HOPS]


@given(
    st.text(st.characters(max_codepoint=255), max_size=200)
    | st.text('for=10.2:[]",; \\unkown_phst', max_size=200),
    st.sampled_from([X_FORWARDED, FORWARDED]),
)
def test_any_field_is_read_or_ignored(value: str, kind: str) -> None:
    names = ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"]
    peer, _, host = ask([(name, value) for name in names], kind=kind)
    assert peer == normalize_address(peer)
    assert all(char.isprintable() and char not in ' "<>/' for char in host)


@given(st.ip_addresses(), st.integers(0, 65535))
def test_addresses_are_normalized(address: object, port: int) -> None:
    text = str(address)
    bracketed = f"[{text}]" if ":" in text else text
    assert normalize_address(f"{bracketed}:{port}") == normalize_address(bracketed)
    assert normalize_address(text) == normalize_address(bracketed)
    assert normalize_address(text)
