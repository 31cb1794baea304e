"""Counting connections."""

import pytest

from xetserve.net.connection_count import ConnectionCount, client_key


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        pytest.param(("192.0.2.7", 1234), "192.0.2.7", id="IPv4"),
        pytest.param(("::ffff:192.0.2.7", 1, 0, 0), "192.0.2.7", id="IPv4 on an IPv6 socket"),
        pytest.param(("2001:db8:1:2:3:4:5:6", 1, 0, 0), "2001:db8:1:2::/64", id="IPv6: its /64"),
        pytest.param(("fe80::1%eth0", 1, 0, 2), "fe80::/64", id="with a zone"),
        pytest.param("", "", id="Unix"),
        pytest.param("/run/x.sock", "", id="named Unix"),
        pytest.param(b"", "", id="abstract Unix"),
    ],
)
def test_a_client_is_its_address(address: object, expected: str) -> None:
    assert client_key(address) == expected


def test_without_limits_there_is_always_room() -> None:
    census = ConnectionCount()
    for _ in range(1000):
        census.add("a")
    assert census.find_excess("a") is None
    assert census.num_connections == 1000


def test_all_together_are_limited() -> None:
    census = ConnectionCount(max_connections=2)
    census.add("a")
    assert census.find_excess("b") is None
    census.add("b")
    excess = census.find_excess("c")
    assert excess is not None
    assert excess[0] == 503
    census.remove("a")
    assert census.find_excess("c") is None


def test_one_client_is_limited_and_others_are_not() -> None:
    census = ConnectionCount(max_per_client=2)
    census.add("a")
    census.add("a")
    excess = census.find_excess("a")
    assert excess is not None
    assert excess[0] == 429
    assert census.find_excess("b") is None
    census.remove("a")
    assert census.find_excess("a") is None


def test_unix_sockets_are_one_client_only_by_name() -> None:
    census = ConnectionCount(max_per_client=1)
    census.add("")
    assert census.find_excess("") is None


def test_clients_that_have_left_are_forgotten() -> None:
    census = ConnectionCount(max_per_client=1)
    for number in range(100):
        census.add(str(number))
        census.remove(str(number))
    assert not census._num_of


def test_limits_may_change_while_clients_are_there() -> None:
    census = ConnectionCount(max_connections=5, max_per_client=5)
    census.add("a")
    census.add("a")
    census.set_limits(2, 1)
    assert census.find_excess("b") is not None
    assert census.find_excess_of("a") is not None
    assert census.find_excess_of("b") is None
    census.set_limits(0, 0)
    assert census.find_excess("a") is None
