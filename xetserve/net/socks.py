"""SOCKS 5: ask a proxy for a connection (RFC 1928), with user and password (RFC 1929).

client                                           proxy
05 01 00                  or 05 02 00 02   ──►
                                           ◄──   05 00 or 05 02    the method
01 len user len password                   ──►                     with 02 only
                                           ◄──   01 00
05 01 00 kind address port                 ──►
                                           ◄──   05 00 00 kind address port
"""

import ipaddress
from typing import Final

from xetserve.errors import BrokenStream
from xetserve.net.stream import ByteStream

_NO_LOGIN, _LOGIN, _NONE = 0x00, 0x02, 0xFF  # methods of authentication
_IPV4, _NAME, _IPV6 = 0x01, 0x03, 0x04  # kinds of address
_SIZES: Final = {_IPV4: 4, _IPV6: 16}
_REFUSALS: Final = {
    1: "general failure",
    2: "its rules do not allow it",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "no answer in time",
    7: "it does not know the command",
    8: "it does not know this kind of address",
}


class SocksRefused(BrokenStream):
    """The proxy cannot connect to the host; it may be able to connect to another address."""


async def open_socks(
    stream: ByteStream,
    host: str,
    port: int,
    login: tuple[str, str] | None,
    timeout: float | None,
) -> None:
    """Ask the proxy at the other end of a stream to connect to a host.

    Args:
        host: a name, which the proxy resolves, or an address.
        timeout: seconds without a byte.

    Raises:
        SocksRefused: the proxy cannot connect.
        BrokenStream: the proxy does not speak SOCKS 5, refuses the login, or host is not a name.
        TimeoutError: the proxy does not answer.
    """
    methods = bytes([_NO_LOGIN] if login is None else [_NO_LOGIN, _LOGIN])
    await stream.send_all([bytes([5, len(methods)]) + methods], timeout)
    version, method = await _read(stream, 2, timeout)
    if version != 5 or (method == _LOGIN and login is None):
        raise BrokenStream("the proxy does not speak SOCKS 5")
    if method == _LOGIN and login is not None:
        user, password = (each.encode() for each in login)
        message = b"\1" + bytes([len(user)]) + user + bytes([len(password)]) + password
        await stream.send_all([message], timeout)
        if (await _read(stream, 2, timeout))[1] != 0:
            raise BrokenStream("the proxy refuses user and password")
    elif method == _NONE:
        wanted = "a user and a password" if login is None else "another kind of login"
        raise BrokenStream(f"the proxy wants {wanted}")
    elif method != _NO_LOGIN:
        raise BrokenStream("the proxy does not speak SOCKS 5")
    await stream.send_all([b"\5\1\0" + _pack(host) + port.to_bytes(2, "big")], timeout)
    version, status, _, kind = await _read(stream, 4, timeout)
    if version != 5:
        raise BrokenStream("the proxy does not speak SOCKS 5")
    if status != 0:
        reason = _REFUSALS.get(status, f"failure {status}")
        raise SocksRefused(f"the proxy cannot connect to {host}: {reason}")
    size = _SIZES.get(kind) or (await _read(stream, 1, timeout))[0]
    await _read(stream, size + 2, timeout)  # the address that the proxy connects from


def _pack(host: str) -> bytes:
    """Return the kind and the bytes of an address or name."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        name = host.encode("ascii")
        if len(name) > 255:
            raise BrokenStream("not a host name") from None
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed


async def _read(stream: ByteStream, size: int, timeout: float | None) -> bytes:
    data = b""
    while len(data) < size:
        received = await stream.receive(timeout)
        if not received:
            raise BrokenStream("the proxy closed the connection")
        data += received
    stream.unread(data[size:])
    return data[:size]
