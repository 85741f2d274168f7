"""The kinds of sets, and functions that read and show their elements.

An element is stored in the kernel's form, as bytes: an address has 4 or 16 bytes; a network has its first and its last
address, 8 or 32 bytes. So elements of one length sort by their bytes, and the length determines the IP version.
"""

from __future__ import annotations

import ipaddress
import math
import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from .._arguments import check, network_error, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from ._expressions import Datatype
from ._values import IFNAMSIZ, NoWordsError, Span, interface_text, nft_interface, read_interface

Element = str | int
"""An element that a set returns: an int for a port or a mark, text for all others."""

NEVER = math.inf
"""The deadline of an element without a timeout."""


class Part(NamedTuple):
    """A set in the kernel, in which all elements have the same type."""

    datatype: Datatype
    """The type of the elements, which nft needs to show them."""
    name: str
    """nft's name of the type."""
    size: int
    """The size of an address, a port or a mark in bytes."""
    version: int | None = None
    """4 or 6 if only packets of that IP version have such elements."""
    order: int = 2
    """nft's number of the byte order: 2 for network order, 1 for host order."""


class Kind(NamedTuple):
    """A kind of set."""

    parts: tuple[Part, ...]
    intervals: bool
    """Whether an element has a first and a last value."""
    read: Callable[[Any], bytes]
    """Converts an argument to bytes. Raises ArgumentError."""
    show: Callable[[bytes], Element]
    """Converts bytes to the element that the program gets."""
    nft: Callable[[bytes], str]
    """Converts bytes to words of nft. Raises NoWordsError."""

    def part(self, data: bytes) -> int:
        """Return the index of the part to which an element belongs."""
        return 0 if len(data) == self.parts[0].size << self.intervals else 1


# --- addresses and networks

_MAPPED = bytes(10) + b"\xff\xff"  # ::ffff:192.0.2.1: IPv4 as an IPv6 socket shows it
_ADDRESS = "an address, as text or of the module ipaddress"
_NETWORK = "a network, an address or a range of addresses, as text or of the module ipaddress"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PARTS = (Part(Datatype.IPADDR, "ipv4_addr", 4, 4), Part(Datatype.IP6ADDR, "ipv6_addr", 16, 6))


def _pack(text: str) -> bytes:
    """Return the bytes of an address. Raises ValueError."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        pass
    try:
        return _plain(socket.inet_pton(socket.AF_INET6, text))
    except OSError:
        pass
    _check_zone(text)
    return ipaddress.ip_address(text).packed  # raises a precise error


def _check_zone(text: str) -> None:
    if "%" in text:
        raise ValueError(f"{text!r} has a zone, which packets do not: leave it out")


def _plain(address: bytes) -> bytes:
    return address[12:] if address.startswith(_MAPPED) else address


def _read_address(value: Any) -> bytes:
    try:
        if isinstance(value, str):
            return _pack(value)
        if isinstance(value, _Address):
            _check_zone(str(value))
            return _plain(value.packed)
    except ValueError as error:
        hint = '; networks and ranges are for Set("network")' if re.search(r"[/-]", str(value)) else ""
        raise ArgumentError(f"no address: {error}{hint}") from None
    hint = ' (networks are for Set("network"))' if isinstance(value, _Network) else ""
    raise wrong_type("an element", value, _ADDRESS + hint)


def _show_address(data: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET if len(data) == 4 else socket.AF_INET6, data)


def _read_network(value: Any) -> bytes:
    try:
        if isinstance(value, str):
            address, slash, length = value.partition("/")
            if slash:
                return _network(address, length, value)
            first, dash, last = value.partition("-")
            if dash:
                return _range(value, _pack(first.strip()), _pack(last.strip()))
            return _pack(value) * 2
        if isinstance(value, (_Address, _Network)):
            _check_zone(str(value))
        if isinstance(value, _Address):
            return _plain(value.packed) * 2
        if isinstance(value, _Network):
            return value.network_address.packed + value.broadcast_address.packed
    except ValueError as error:
        raise ArgumentError(f"no network: {network_error(value, error)}") from None
    raise wrong_type("an element", value, _NETWORK)


def _network(address: str, length: str, text: str) -> bytes:
    version, size = (socket.AF_INET6, 16) if ":" in address else (socket.AF_INET, 4)
    try:
        first = socket.inet_pton(version, address)
        number, hosts = int.from_bytes(first, "big"), _HOSTS[size][length]
    except (OSError, KeyError):
        hosts = number = 1
    if number & hosts:
        _check_zone(text)
        network = ipaddress.ip_network(text)  # raises a precise error, or accepts a mask like 255.255.255.0
        return network.network_address.packed + network.broadcast_address.packed
    return first + (number | hosts).to_bytes(size, "big")


# The bits of the host part, by the size of an address and the text of a prefix length.
_HOSTS = {size: {str(length): (1 << size * 8 - length) - 1 for length in range(size * 8 + 1)} for size in (4, 16)}


def _range(text: str, first: bytes, last: bytes) -> bytes:
    if len(first) != len(last):
        raise ValueError(f"{text!r} is neither IPv4 nor IPv6")
    if first > last:
        raise ValueError(f"{text!r} ends before it begins")
    return first + last


def _show_network(data: bytes) -> str:
    size = len(data) // 2
    first, last = data[:size], data[size:]
    low, high = int.from_bytes(first, "big"), int.from_bytes(last, "big")
    hosts = low ^ high
    if not hosts:
        return _show_address(first)
    if not hosts & (hosts + 1) and not low & hosts:
        return f"{_show_address(first)}/{size * 8 - hosts.bit_length()}"
    return f"{_show_address(first)}-{_show_address(last)}"


# --- ports and marks

_PORTS = "a port, a range of ports, or text like '1024-2047'"


def _read_ports(value: Any) -> bytes:
    if isinstance(value, str):
        first, dash, last = (part.strip() for part in value.partition("-"))
        last = last if dash else first
        if not all(text.isascii() and text.isdecimal() and len(text) < 20 for text in (first, last)):
            raise ArgumentError(f"no port: {value!r}, which must be one, or two like 1024-2047")
        value = range(int(first), int(last) + 1)
        if not value:
            raise ArgumentError(f"no ports: '{first}-{last}' ends before it begins")
    if not isinstance(value, range):
        return check("a port", value, 0, 0xFFFF, what=_PORTS).to_bytes(2, "big") * 2
    if value.step != 1 or not value:
        raise ArgumentError(f"no ports: {value}, which must be a range of some, without gaps")
    return b"".join(check("a port", port, 0, 0xFFFF).to_bytes(2, "big") for port in (value[0], value[-1]))


def _show_ports(data: bytes) -> Element:
    first, last = int.from_bytes(data[:2], "big"), int.from_bytes(data[2:], "big")
    return first if first == last else f"{first}-{last}"


def _read_mark(value: Any) -> bytes:
    if isinstance(value, str):
        try:
            value = int(value, 0) if len(value) < 20 else -1
        except ValueError:
            raise ArgumentError(f"no mark: {value!r} is no number") from None
    return check("a mark", value, 0, 0xFFFFFFFF).to_bytes(4, netlink.HOST)


def _show_mark(data: bytes) -> int:
    return int.from_bytes(data, netlink.HOST)


# --- interfaces


def _read_interface(value: Any) -> bytes:
    span = next(read_interface("an element", value))  # no unpacking, in which PyPy would replace a TypeError
    return b"".join(number.to_bytes(IFNAMSIZ, "big") for number in span[:2])


def _show_interface(data: bytes) -> str:
    return interface_text(Span(*(int.from_bytes(end, "big") for end in (data[:IFNAMSIZ], data[IFNAMSIZ:]))))


def _nft_interface(data: bytes) -> str:
    name = _show_interface(data)
    if _read_interface(name) != data:
        raise NoWordsError("names of interfaces that overlap and expire at different times")
    return nft_interface(name)


def _nft(show: Callable[[bytes], Element]) -> Callable[[bytes], str]:
    return lambda data: str(show(data))


KINDS = {
    "address": Kind(_PARTS, False, _read_address, _show_address, _nft(_show_address)),
    "network": Kind(_PARTS, True, _read_network, _show_network, _nft(_show_network)),
    "port": Kind((Part(Datatype.INET_SERVICE, "inet_service", 2),), True, _read_ports, _show_ports, _nft(_show_ports)),
    "mark": Kind((Part(Datatype.MARK, "mark", 4, order=1),), False, _read_mark, _show_mark, _nft(_show_mark)),
    "interface": Kind(
        (Part(Datatype.IFNAME, "ifname", IFNAMSIZ),), True, _read_interface, _show_interface, _nft_interface
    ),
}
