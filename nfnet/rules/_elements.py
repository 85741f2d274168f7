"""What can be in a set, and which intervals the kernel gets for networks and ports that overlap.

An element is kept as the kernel has it, as bytes: an address is 4 or 16 of them; a network the first address and then
the last, 8 or 32. So elements of one length are in order as their bytes are, and the length tells what they are of.
"""

from __future__ import annotations

import heapq
import ipaddress
import math
import operator
import re
import socket
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from .._arguments import check, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from ._values import IFNAMSIZ, NoWordsError, Span, interface_text, nft_interface, read_interface

Element = str | int
"""An element as a set gives it back: a port or a mark is an int, all others are text."""

NEVER = math.inf
"""When an element expires that has no time-out."""


class Part(NamedTuple):
    """A set in the kernel, in which all elements have the same type."""

    type: int
    """nft's number of it, by which ``nft list`` knows how to show elements (datatype.h of nftables)."""
    name: str
    """What nft calls it."""
    size: int
    """Bytes of an address, a port or a mark."""
    version: int | None = None
    """4 or 6 if packets of the other IP version have no such elements."""
    order: int = 2
    """nft's number of the byte order: 2 for that of the network, 1 for that of this machine."""


class Kind(NamedTuple):
    """A kind of set."""

    parts: tuple[Part, ...]
    intervals: bool
    """Whether an element has a first and a last."""
    read: Callable[[Any], bytes]
    """Makes the bytes of what the program gives. Raises ArgumentError."""
    show: Callable[[bytes], Element]
    """Makes of the bytes what the program gets."""
    nft: Callable[[bytes], str]
    """Makes of them what nft takes. Raises NoWordsError."""

    def part(self, data: bytes) -> int:
        """The number of the part to which an element belongs."""
        return 0 if len(data) == self.parts[0].size << self.intervals else 1


# --- addresses and networks

_MAPPED = bytes(10) + b"\xff\xff"  # of ::ffff:192.0.2.1, as programs see IPv4 that listen for IPv6
_ADDRESS = "an address, as text or of the module ipaddress"
_NETWORK = "a network, an address or a range of addresses, as text or of the module ipaddress"
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PARTS = (Part(7, "ipv4_addr", 4, 4), Part(8, "ipv6_addr", 16, 6))


def _pack(text: str) -> bytes:
    """The bytes of an address. Raises ValueError."""
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except OSError:
        pass
    try:
        return _plain(socket.inet_pton(socket.AF_INET6, text))
    except OSError:
        pass
    _check_zone(text)
    return ipaddress.ip_address(text).packed  # which says what is wrong


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
        raise ArgumentError(f"no network: {error}") from None
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
        network = ipaddress.ip_network(text)  # which says what is wrong, or knows masks like 255.255.255.0
        return network.network_address.packed + network.broadcast_address.packed
    return first + (number | hosts).to_bytes(size, "big")


# What the addresses of a network differ in, by the text of its prefix length.
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
    (span,) = read_interface("an element", value)
    return b"".join(number.to_bytes(IFNAMSIZ, "big") for number in span[:2])


def _show_interface(data: bytes) -> str:
    return interface_text(Span(*(int.from_bytes(end, "big") for end in (data[:IFNAMSIZ], data[IFNAMSIZ:]))))


def _nft_interface(data: bytes) -> str:
    name = _show_interface(data)
    if _read_interface(name) != data:
        raise NoWordsError("names of interfaces that begin like others, which stay longer")
    return nft_interface(name)


def _nft(show: Callable[[bytes], Element]) -> Callable[[bytes], str]:
    return lambda data: str(show(data))


KINDS = {
    "address": Kind(_PARTS, False, _read_address, _show_address, _nft(_show_address)),
    "network": Kind(_PARTS, True, _read_network, _show_network, _nft(_show_network)),
    "port": Kind((Part(13, "inet_service", 2),), True, _read_ports, _show_ports, _nft(_show_ports)),
    "mark": Kind((Part(19, "mark", 4, order=1),), False, _read_mark, _show_mark, _nft(_show_mark)),
    "interface": Kind((Part(41, "ifname", IFNAMSIZ),), True, _read_interface, _show_interface, _nft_interface),
}


# --- what is in a part


class Change(NamedTuple):
    """What a change of elements is for the kernel. Nothing is changed until ``make`` is called."""

    gone: list[bytes]
    come: list[tuple[bytes, float]]
    """With the time of `time.monotonic` at which they expire."""
    make: Callable[[], object]


class Content(ABC):
    """The elements of a part, and when they expire. What is asked for is what has not expired ``now``."""

    def __init__(self) -> None:
        self.deadlines: dict[bytes, float] = {}
        self._crowded = 64

    @abstractmethod
    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        """The change by which elements go and others come, or get another deadline; those may be there or not."""

    @abstractmethod
    def segments(self, now: float) -> dict[bytes, bytes]:
        """What the kernel has, each with the element of which it is."""

    @abstractmethod
    def covers(self, data: bytes, now: float) -> bool:
        """Whether all that an element stands for is in the set."""

    def alive(self, now: float) -> list[bytes]:
        """The elements."""
        return [data for data, deadline in self.deadlines.items() if deadline > now]

    def has(self, data: bytes, now: float) -> bool:
        """Whether it is an element itself."""
        return self.deadlines.get(data, -NEVER) > now

    def tidy(self, now: float) -> None:
        """Forget what has expired, whenever there are twice as many elements as were left the last time."""
        if len(self.deadlines) >= self._crowded:
            left = {data: deadline for data, deadline in self.deadlines.items() if deadline > now}
            self._crowded = max(64, len(left) * 2)
            if len(left) < len(self.deadlines):
                self._replace(left)

    def _replace(self, deadlines: dict[bytes, float]) -> None:
        self.deadlines = deadlines

    def _changed(self, drop: Iterable[bytes], add: Mapping[bytes, float]) -> dict[bytes, float]:
        """All elements as they will be."""
        dropped = set(drop)
        return {**{data: at for data, at in self.deadlines.items() if data not in dropped}, **add}


class Points(Content):
    """Elements of which each is one address or mark."""

    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        drop = [data for data in drop if data in self.deadlines]
        gone = [data for data in dict.fromkeys([*drop, *add]) if self.has(data, now)]
        if not drop:
            make = partial(self.deadlines.update, add)
        elif len(drop) == 1 and not add:
            make = partial(self.deadlines.__delitem__, drop[0])
        else:
            make = partial(self._replace, self._changed(drop, add))
        return Change(gone, list(add.items()), make)

    def segments(self, now: float) -> dict[bytes, bytes]:
        alive = self.alive(now)
        return dict(zip(alive, alive))

    def covers(self, data: bytes, now: float) -> bool:
        return self.has(data, now)


class Intervals(Content):
    """Elements with a first and a last, which may overlap.

    The kernel's intervals must not. Where elements overlap it gets segments instead, and each is of the element that
    stays longest (of several the one that begins first). It expires with that, and so when the last element that has
    it expires: nothing need be done then.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sorted: list[bytes] | None = None  # the segments; None if that has to be worked out
        self._cut: dict[bytes, bytes] | None = None  # with their elements; None if each element is one segment

    def _replace(self, deadlines: dict[bytes, float]) -> None:
        self._sorted = None
        self.deadlines = deadlines

    def _known(self, now: float) -> list[bytes]:
        """The segments in order. Of elements that have expired there may be some."""
        if self._sorted is None:
            self.deadlines = {data: deadline for data, deadline in self.deadlines.items() if deadline > now}
            self._sorted, self._cut = _cut(self.deadlines)
        return self._sorted

    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        drop = [data for data in drop if data in self.deadlines]
        if 0 < len(drop) + len(add) <= _FEW:
            return self._plan_few(drop, add, now)
        known = self._known(now)
        if self._cut is None and not _overlap([*known, *(data for data in add if data not in self.deadlines)]):
            gone = [data for data in dict.fromkeys([*drop, *add]) if self.has(data, now)]
            return Change(gone, list(add.items()), partial(self._replace, self._changed(drop, add)))
        changed = {data: deadline for data, deadline in self._changed(drop, add).items() if deadline > now}
        _, cut = _cut(changed)
        after = dict(zip(changed, changed)) if cut is None else cut
        return self._change(self.segments(now), after, changed, partial(self._replace, changed))

    def _plan_few(self, drop: list[bytes], add: Mapping[bytes, float], now: float) -> Change:
        """Look at the region in which something may change, only."""
        known = self._known(now)
        changed = [*drop, *add]
        size = len(changed[0]) // 2
        first, last = min(data[:size] for data in changed), max(data[size:] for data in changed)
        # What they overlap, and what is next to that: it may become one with what is left.
        begin, end = bisect_left(known, first), bisect_left(known, _behind(last))
        if begin and known[begin - 1][size:] >= first:
            begin -= 1
        first, last = (
            min([first, *known[begin:end][:1]])[:size],
            max([last, *[segment[size:] for segment in known[begin:end][-1:]]]),
        )
        if begin and _add(known[begin - 1][size:], 1) == first:
            begin -= 1
            first = known[begin][:size]
        if end < len(known) and known[end][:size] == _add(last, 1):
            last = known[end][size:]
            end += 1
        if self._cut is None:
            here = known[begin:end]
        else:
            here = [data for data in self.deadlines if data[:size] <= last and data[size:] >= first]
        deadlines = {**{data: self.deadlines[data] for data in here if data not in drop}, **add}
        alive = [data for data, deadline in deadlines.items() if deadline > now]
        after = dict(_segments(alive, deadlines, first, last))
        before = {segment: self._element(segment) for segment in known[begin:end]}
        before = {segment: element for segment, element in before.items() if self.has(element, now)}
        is_cut = self._cut is not None or after.keys() != set(alive)
        make = partial(self._splice, drop, add, slice(begin, end), after, is_cut)
        return self._change(before, after, deadlines, make)

    def _element(self, segment: bytes) -> bytes:
        return segment if self._cut is None else self._cut[segment]

    def _change(
        self,
        before: dict[bytes, bytes],
        after: dict[bytes, bytes],
        deadlines: Mapping[bytes, float],
        make: Callable[[], object],
    ) -> Change:
        stays = {
            segment
            for segment, element in after.items()
            if before.get(segment) == element and deadlines[element] == self.deadlines[element]
        }
        gone = [segment for segment in before if segment not in stays]
        come = [(segment, deadlines[element]) for segment, element in after.items() if segment not in stays]
        return Change(gone, come, make)

    def _splice(
        self, drop: list[bytes], add: Mapping[bytes, float], place: slice, after: dict[bytes, bytes], is_cut: bool
    ) -> None:
        known = self._sorted
        self._sorted = None  # until all is right again
        self.deadlines.update(add)
        for data in drop:
            self.deadlines.pop(data, None)
        if known is None:
            return
        if is_cut:
            cut = self._cut if self._cut is not None else dict(zip(known, known))
            for segment in known[place]:
                del cut[segment]
            cut.update(after)
            self._cut = cut
        known[place] = after
        self._sorted = known

    def segments(self, now: float) -> dict[bytes, bytes]:
        self._known(now)
        pairs = dict(zip(self.deadlines, self.deadlines)) if self._cut is None else self._cut
        return {segment: element for segment, element in pairs.items() if self.deadlines[element] > now}

    def covers(self, data: bytes, now: float) -> bool:
        known = self._known(now)
        size = len(data) // 2
        first, last = data[:size], data[size:]
        while True:
            place = bisect_left(known, _behind(first)) - 1
            if place < 0:
                return False
            segment = known[place]
            if segment[size:] < first or not self.has(self._element(segment), now):
                return False
            if segment[size:] >= last:
                return True
            first = _add(segment[size:], 1)


_FEW = 16


def _behind(first: bytes) -> bytes:
    """What is in order behind all elements that begin there."""
    return first + b"\xff" * (len(first) + 1)


def _add(data: bytes, number: int) -> bytes:
    """The next address, or that before; empty if there is none."""
    if data == b"\xff" * len(data) and number > 0:
        return b""
    return (int.from_bytes(data, "big") + number).to_bytes(len(data), "big")


def _overlap(elements: Iterable[bytes]) -> bool:
    together = sorted(elements)
    if not together:
        return False
    size = len(together[0]) // 2
    return any(map(operator.ge, [data[size:] for data in together], [data[:size] for data in together[1:]]))


def _cut(deadlines: Mapping[bytes, float]) -> tuple[list[bytes], dict[bytes, bytes] | None]:
    """Segments that do not overlap, in order, and the element of each; None if each element is one segment."""
    if not _overlap(deadlines):
        return sorted(deadlines), None
    size = len(next(iter(deadlines))) // 2
    found = dict(_segments(deadlines, deadlines, bytes(size), b"\xff" * size))
    return list(found), found


def _segments(
    elements: Iterable[bytes], deadlines: Mapping[bytes, float], first: bytes, last: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """The segments between two places, in order, each with its element."""
    size = len(first)
    # Of those that begin together the one that ends last comes first.
    elements = sorted(sorted(elements, key=lambda data: data[size:], reverse=True), key=lambda data: data[:size])
    here: list[tuple[float, int]] = []  # those that begin before this place, that which stays longest first
    upcoming = 0
    while here or upcoming < len(elements):
        if not here:
            first = max(first, elements[upcoming][:size])
        while upcoming < len(elements) and elements[upcoming][:size] <= first:
            heapq.heappush(here, (-deadlines[elements[upcoming]], upcoming))
            upcoming += 1
        while here and elements[here[0][1]][size:] < first:
            heapq.heappop(here)
        if not here:
            continue
        longest = here[0][1]
        end = min(elements[longest][size:], last)
        while upcoming < len(elements) and elements[upcoming][:size] <= end:
            heapq.heappush(here, (-deadlines[elements[upcoming]], upcoming))
            upcoming += 1
            if here[0][1] != longest:
                end = _add(elements[upcoming - 1][:size], -1)
                break
        yield first + end, elements[longest]
        if end == last:
            return
        first = _add(end, 1)
