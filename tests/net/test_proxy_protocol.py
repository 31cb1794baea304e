"""PROXY headers: good ones, bad ones, and any bytes at all."""

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xetserve.net.proxy_protocol import (
    V1_SIZE,
    V2_SIZE,
    BadProxyHeader,
    ProxyHeader,
    parse_header,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v1(
    source: str, target: str = "192.0.2.2", ports: str = "1234 443", kind: str = "TCP4"
) -> bytes:
    return f"PROXY {kind} {source} {target} {ports}\r\n".encode()


def v2(payload: bytes, *, command: int = 0x21, family: int = 0x11, length: int = -1) -> bytes:
    size = len(payload) if length < 0 else length
    return SIGNATURE + struct.pack("!BBH", command, family, size) + payload


def addresses(source: str, target: str) -> bytes:
    return ip_address(source).packed + ip_address(target).packed + struct.pack("!HH", 1234, 443)


FOUR = addresses("203.0.113.7", "192.0.2.2")
SIX = addresses("2001:db8::7", "2001:db8::2")
LONGEST_V1 = v1("ffff:" * 7 + "ffff", "ffff:" * 7 + "ffff", "65535 65535", "TCP6")

GOOD = {
    "v1, IPv4": (v1("203.0.113.7"), "203.0.113.7"),
    "v1, IPv6": (v1("2001:DB8::7", "::1", kind="TCP6"), "2001:db8::7"),
    "v1, the longest": (LONGEST_V1, "ffff:" * 7 + "ffff"),
    "v1, unknown": (b"PROXY UNKNOWN\r\n", None),
    "v1, unknown and more": (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
    "v2, IPv4": (v2(FOUR), "203.0.113.7"),
    "v2, IPv6": (v2(SIX, family=0x21), "2001:db8::7"),
    "v2, type-length-values": (v2(FOUR + b"\x04\x00\x03abc"), "203.0.113.7"),
    "v2, as large as it may be": (v2(FOUR + bytes(V2_SIZE - len(FOUR))), "203.0.113.7"),
    "v2, LOCAL": (v2(b"", command=0x20, family=0), None),
    "v2, LOCAL with addresses": (v2(FOUR, command=0x20), None),
    "v2, UNSPEC": (v2(b"", family=0), None),
    "v2, UNSPEC with something": (v2(b"something", family=0), None),
    "v2, a Unix socket": (v2(bytes(216), family=0x31), None),
    "v2, datagrams": (v2(FOUR, family=0x12), None),
}

BAD = {
    "HTTP": b"GET / HTTP/1.1\r\n",
    "TLS": b"\x16\x03\x01",
    "a letter of another case": b"PROXy",
    "v1, another protocol": v1("203.0.113.7", kind="UDP4"),
    "v1, another family": v1("203.0.113.7", kind="TCP6"),
    "v1, the target's family": v1("203.0.113.7", "::1"),
    "v1, no address": v1("203.0.113.256"),
    "v1, a name": v1("localhost"),
    "v1, leading zeros": v1("203.0.113.07"),
    "v1, two spaces": b"PROXY  TCP4 203.0.113.7 192.0.2.2 1 2\r\n",
    "v1, a tab": b"PROXY TCP4\t203.0.113.7 192.0.2.2 1 2\r\n",
    "v1, a part too few": b"PROXY TCP4 203.0.113.7 192.0.2.2 1\r\n",
    "v1, a part too many": b"PROXY TCP4 203.0.113.7 192.0.2.2 1 2 3\r\n",
    "v1, a port too large": v1("203.0.113.7", ports="65536 1"),
    "v1, a port with zeros": v1("203.0.113.7", ports="01 1"),
    "v1, a bare LF": b"PROXY TCP4 203.0.113.7 192.0.2.2 1 2\n" + b"x" * 80,
    "v1, without an end": b"PROXY UNKNOWN " + b"x" * V1_SIZE,
    "v1, nothing": b"PROXY \r\n",
    "v1, UNKNOWNS": b"PROXY UNKNOWNS\r\n",
    "v1, control characters": b"PROXY UNKNOWN \x00\r\n",
    "v2, version 1": v2(FOUR, command=0x11),
    "v2, version 3": v2(FOUR, command=0x31),
    "v2, an unknown command": v2(FOUR, command=0x22),
    "v2, an unknown family": v2(FOUR, family=0x41),
    "v2, an unknown transport": v2(FOUR, family=0x13),
    "v2, too short for IPv4": v2(FOUR[:-1]),
    "v2, too short for IPv6": v2(FOUR, family=0x21),
    "v2, too large": v2(b"", length=V2_SIZE + 1),
    "v2, a signature that goes astray": SIGNATURE[:-1] + b"\r",
}


@pytest.mark.parametrize("name", GOOD)
def test_a_header_is_read(name: str) -> None:
    data, source = GOOD[name]
    assert parse_header(data) == ProxyHeader(len(data), source)


@pytest.mark.parametrize("name", GOOD)
def test_what_follows_is_not_looked_at(name: str) -> None:
    data, source = GOOD[name]
    assert parse_header(data + b"\r\nGET / HTTP/1.1\r\n") == ProxyHeader(len(data), source)


@pytest.mark.parametrize("name", GOOD)
def test_a_header_may_come_in_pieces(name: str) -> None:
    data, _ = GOOD[name]
    assert all(parse_header(data[:size]) is None for size in range(len(data)))


@pytest.mark.parametrize("name", BAD)
def test_anything_else_is_refused(name: str) -> None:
    with pytest.raises(BadProxyHeader):
        parse_header(BAD[name])


def test_the_longest_line_is_as_long_as_a_line_may_be() -> None:
    assert len(LONGEST_V1) <= V1_SIZE
    filled = b"PROXY UNKNOWN ".ljust(V1_SIZE - 2, b"x") + b"\r\n"
    assert parse_header(filled) == ProxyHeader(V1_SIZE, None)
    with pytest.raises(BadProxyHeader):
        parse_header(b"PROXY UNKNOWN ".ljust(V1_SIZE - 1, b"x") + b"\r\n")


@given(st.ip_addresses(), st.integers(0, 65535), st.booleans(), st.binary(max_size=50))
def test_every_address_comes_through(address: object, port: int, is_v1: bool, rest: bytes) -> None:
    text = str(address)
    six = ":" in text
    if is_v1:
        kind = "TCP6" if six else "TCP4"
        header = v1(text, text, f"{port} {port}", kind)
    else:
        header = v2(addresses(text, text) + rest, family=0x21 if six else 0x11)
    found = parse_header(header + b"GET")
    assert found is not None
    assert found.size == len(header)
    assert found.source is not None
    expected = ip_address(text)
    assert ip_address(found.source) == (getattr(expected, "ipv4_mapped", None) or expected)


@pytest.mark.parametrize("is_v1", [True, False])
def test_a_mapped_address_is_the_one_of_ipv4(is_v1: bool) -> None:
    text = "::ffff:192.0.2.1"
    header = v1(text, text, kind="TCP6") if is_v1 else v2(addresses(text, text), family=0x21)
    found = parse_header(header + b"GET")
    assert found is not None
    assert found.source == "192.0.2.1"


@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=300).map(lambda rest: b"PROXY " + rest),
        st.binary(max_size=300).map(lambda rest: SIGNATURE + rest),
        st.text("PROXYTCP46 UNKW.:0123456789abcdef\r\n", max_size=150).map(
            lambda text: b"PROXY TCP" + text.encode()
        ),
    )
)
def test_any_bytes_are_read_or_refused_or_too_few(data: bytes) -> None:
    try:
        found = parse_header(data)
    except BadProxyHeader:
        return
    if found is None:
        # Of a header that is to be waited for there is never more than this.
        assert len(data) < max(V1_SIZE, V2_SIZE + 16)
        return
    assert 0 < found.size <= len(data)
    assert found.source is None or str(ip_address(found.source)) == found.source
    # How the bytes were cut makes no difference.
    assert parse_header(data[: found.size]) == found
    assert parse_header(data[: found.size - 1]) is None
