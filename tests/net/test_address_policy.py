"""Which addresses may be connected to."""

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from xetserve.net.address_policy import AddressPolicy, Kind, find_kind, find_literal, unwrap
from xetserve.net.url import parse_url


@pytest.mark.parametrize(
    ("kind", "addresses"),
    [
        (Kind.PUBLIC, "1.1.1.1 8.8.8.8 99.84.1.1 100.63.255.255 100.128.0.0 172.15.0.1 172.32.0.1"),
        (Kind.PUBLIC, "192.0.1.1 223.255.255.255 2600::1 2a00:1450::1"),
        (Kind.PRIVATE, "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1 100.127.255.255"),
        (Kind.PRIVATE, "fc00::1 fdff::1"),
        (Kind.LOOPBACK, "127.0.0.1 127.255.255.255 ::1"),
        (Kind.LINK_LOCAL, "169.254.0.1 169.254.169.254 fe80::1 febf::1"),
        (Kind.RESERVED, "0.0.0.0 0.1.2.3 192.0.0.1 192.0.2.1 198.51.100.1 203.0.113.9"),
        (Kind.BENCHMARK, "198.18.0.1 198.19.255.255"),
        (Kind.RESERVED, "224.0.0.1 239.1.1.1 240.0.0.1 255.255.255.255 :: ::2 ::7f00:1 ff02::1"),
        (Kind.RESERVED, "2001::1 2001:db8::1 fec0::1 64:ff9b:1::a00:1 100::1 4000::1"),
    ],
)  # fmt: skip
def test_every_address_has_a_kind(kind: Kind, addresses: str) -> None:
    for address in addresses.split():
        assert find_kind(ip_address(address)) is kind, address


@pytest.mark.parametrize(
    ("carrier", "carried"),
    [
        pytest.param("::ffff:127.0.0.1", "127.0.0.1", id="mapped"),
        pytest.param("::ffff:0:10.0.0.1", "10.0.0.1", id="translated"),
        pytest.param("64:ff9b::169.254.169.254", "169.254.169.254", id="NAT64"),
        pytest.param("2002:a00:1::5", "10.0.0.1", id="6to4"),
        pytest.param("2600::1", "2600::1", id="none"),
    ],
)
def test_an_address_inside_of_another_is_what_counts(carrier: str, carried: str) -> None:
    assert unwrap(ip_address(carrier)) == ip_address(carried)


@pytest.mark.parametrize(
    ("host", "literal"),
    [
        pytest.param("10.0.0.1", "10.0.0.1", id="dotted"),
        pytest.param("10.0.0.1.", "10.0.0.1", id="a dot at its end"),
        pytest.param("2130706433", "127.0.0.1", id="one number"),
        pytest.param("0x7f.1", "127.0.0.1", id="hexadecimal, and short"),
        pytest.param("0177.0.0.1", "127.0.0.1", id="octal"),
        pytest.param("::1", "::1", id="IPv6"),
        pytest.param("fe80::1%nowhere", "fe80::1", id="with a zone"),
        pytest.param("LocalHost", "127.0.0.1", id="localhost"),
        pytest.param("a.localhost.", "127.0.0.1", id="below localhost"),
        pytest.param("hub.example", None, id="a name"),
        pytest.param("a..b", None, id="no name"),
    ],
)
def test_find_literal(host: str, literal: str | None) -> None:
    assert find_literal(host) == literal


ALL = ("1.1.1.1", "10.0.0.1", "127.0.0.1", "169.254.7.7", "169.254.169.254", "fd00:ec2::254",
       "224.0.0.1", "0.0.0.0", "64:ff9b::10.0.0.1", "198.18.0.7")  # fmt: skip


@pytest.mark.parametrize(
    ("hub", "networks", "allowed"),
    [
        pytest.param("1.2.3.4", None, {"1.1.1.1"}, id="a public Hub"),
        pytest.param("192.168.0.1", None, {"1.1.1.1", "10.0.0.1", "64:ff9b::10.0.0.1"},
                     id="a private Hub"),
        pytest.param("127.0.0.1", None,
                     {"1.1.1.1", "10.0.0.1", "64:ff9b::10.0.0.1", "127.0.0.1"}, id="one here"),
        pytest.param("169.254.1.1", None,
                     {"1.1.1.1", "10.0.0.1", "64:ff9b::10.0.0.1", "169.254.7.7"}, id="link-local"),
        pytest.param("198.18.0.1", None, {"1.1.1.1", "198.18.0.7"},
                     id="a proxy makes addresses up"),
        pytest.param("127.0.0.1", (), {"1.1.1.1"}, id="public ones only"),
        pytest.param("1.2.3.4", ("10.0.0.0/24", "224.0.0.1"),
                     {"1.1.1.1", "10.0.0.1", "64:ff9b::10.0.0.1", "224.0.0.1"}, id="listed ones"),
        pytest.param("1.2.3.4", ("169.254.0.0/16",), {"1.1.1.1", "169.254.7.7"},
                     id="a network does not allow the metadata service"),
        pytest.param("1.2.3.4", ("169.254.169.254/32", "fd00:ec2::254"),
                     {"1.1.1.1", "169.254.169.254", "fd00:ec2::254"}, id="but its address does"),
    ],
)  # fmt: skip
async def test_what_is_allowed(
    hub: str, networks: tuple[str, ...] | None, allowed: set[str]
) -> None:
    reach = AddressPolicy(parse_url(f"http://{hub}/").origin, networks)
    assert {address for address in ALL if await reach.allows(address)} == allowed


async def test_a_zone_changes_nothing() -> None:
    reach = AddressPolicy(parse_url("http://127.0.0.1/").origin)
    assert not await reach.allows("fe80::1%lo")
    assert await reach.allows("::1%lo")


async def test_the_hub_itself_is_free_its_other_ports_are_not() -> None:
    reach = AddressPolicy(parse_url("http://127.0.0.1:8000/").origin)
    assert reach.is_free(parse_url("http://127.0.0.1:8000/x").origin)
    assert not reach.is_free(parse_url("http://127.0.0.1:8001/x").origin)


@pytest.mark.parametrize(
    ("answer", "is_allowed"),
    [
        pytest.param(["1.2.3.4"], False, id="public"),
        pytest.param(["1.2.3.4", "10.1.1.1"], True, id="public, and private"),
        pytest.param(socket.gaierror(socket.EAI_NONAME, "no such name"), False, id="nowhere"),
        pytest.param(socket.gaierror(socket.EAI_AGAIN, "later"), False, id="not now"),
    ],
)
async def test_what_the_name_of_the_hub_leads_to_counts(
    answer: list[str] | OSError, is_allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FakeLoop:
        async def getaddrinfo(self, host: str, port: int, *, type: int) -> list[Any]:
            assert host == "hub.test"
            if isinstance(answer, OSError):
                raise answer
            return [(0, type, 6, "", (address, port)) for address in answer]

    running: Callable[[], Any] = FakeLoop
    monkeypatch.setattr(asyncio, "get_running_loop", running)
    reach = AddressPolicy(parse_url("https://hub.test/").origin)
    if isinstance(answer, OSError) and answer.errno != socket.EAI_NONAME:
        with pytest.raises(OSError, match="later"):
            await reach.allows("10.0.0.1")
        return
    assert await reach.allows("10.0.0.1") is is_allowed
