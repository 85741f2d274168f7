"""What may be asked of packets: what is in their headers."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from typing import Any

from .._arguments import check, check_choice, wrong_type
from ..errors import ArgumentError
from ._criterion import Asked, Compared
from ._expressions import (
    EQUAL,
    META_L4PROTO,
    NETWORK_HEADER,
    NOT_EQUAL,
    TRANSPORT_HEADER,
    Expression,
    Step,
    compare,
    masked,
    meta,
    payload,
)
from ._values import (
    NoWordsError,
    Span,
    addresses_text,
    number_or_name,
    number_range,
    prefix_length,
    read_addresses,
    read_choice,
    span_text,
)

_MAX_MULTIPORT = 15  # of iptables; a range counts as two


# --- protocols

_PROTOCOLS = {
    "icmp": Span(socket.IPPROTO_ICMP, socket.IPPROTO_ICMP, 4),
    "tcp": Span(socket.IPPROTO_TCP, socket.IPPROTO_TCP),
    "udp": Span(socket.IPPROTO_UDP, socket.IPPROTO_UDP),
    "icmpv6": Span(socket.IPPROTO_ICMPV6, socket.IPPROTO_ICMPV6, 6),
    "sctp": Span(socket.IPPROTO_SCTP, socket.IPPROTO_SCTP),
}
# In IPv6 these are the numbers of headers that the kernel skips to find the protocol (net/ipv6/exthdrs_core.c).
_SKIPPED = (0, 43, 44, 60)


class Protocol(Compared):
    kind, size, touching = 12, 1, False
    about = "the protocol"
    takes = '"tcp", "udp", "icmp" (of IPv4), "icmpv6" (of IPv6), "sctp" or a number'

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        if isinstance(value, str):
            yield read_choice(name, value, _PROTOCOLS)
            return
        what = f"a number or one of {', '.join(map(repr, _PROTOCOLS))}, or a list of such"
        value = check(name, value, 0, 0xFF, what=what)
        yield Span(value, value, 4 if value in _SKIPPED else None)

    def load(self, version: int | None) -> Expression:
        return meta(META_L4PROTO)

    def key(self, version: int | None, protocol: str) -> str:
        return "meta l4proto"

    def name(self, value: int, version: int | None) -> str:
        """Of a protocol as `_PROTOCOLS` has it, or its number."""
        return next(
            (name for name, span in _PROTOCOLS.items() if span.first == value and span.version in (None, version)),
            str(value),
        )

    def show(self, span: Span, version: int | None) -> str:
        name = self.name(span.first, version)
        return "ipv6-icmp" if name == "icmpv6" else name

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        if span.first == 0:
            raise NoWordsError("protocol 0, which there means every protocol")
        return f"{negation}-p {self.name(span.first, version)}"

    def text(self, asked: Asked) -> list[str]:
        return [self.name(span.first, span.version) for span in asked.spans]

    def parse_one(self, text: str) -> Any:
        return number_or_name(text)


# --- addresses


class AddressOf(Compared):
    set_kinds = ("address", "network")
    takes = 'an address, a network ("192.0.2.0/24") or a range ("192.0.2.1-192.0.2.9"), IPv4 or IPv6'

    def __init__(self, about: str, place: int, nft: str, iptables: str) -> None:
        self.about, self._place, self._nft, self._iptables = about, place, nft, iptables

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        return read_addresses(name, value)

    def bytes_of(self, version: int | None) -> int:
        return 4 if version == 4 else 16

    def _offset(self, version: int | None) -> int:
        return 12 + 4 * self._place if version == 4 else 8 + 16 * self._place

    def load(self, version: int | None) -> Expression:
        return payload(NETWORK_HEADER, self._offset(version), self.bytes_of(version))

    def set_kind(self, version: int | None) -> int:
        return 7 if version == 4 else 8

    def steps(self, asked: Asked, version: int | None) -> Iterator[Step]:
        spans = self._joined(asked, version)
        length = prefix_length(spans[0], version or 4) if len(spans) == 1 else None
        if length is None or spans[0].first == spans[0].last:
            yield from super().steps(asked, version)
            return
        value, operator = self._pack(spans[0].first, version), NOT_EQUAL if asked.negated else EQUAL
        if length % 8 == 0 and length:  # as nft does: whole bytes need no mask
            yield payload(NETWORK_HEADER, self._offset(version), length // 8)
            yield compare(value[: length // 8], operator)
        else:
            size = self.bytes_of(version)
            yield self.load(version)
            yield masked(((1 << 8 * size) - (1 << 8 * size - length)).to_bytes(size, "big"))
            yield compare(value, operator)

    def key(self, version: int | None, protocol: str) -> str:
        return f"{'ip' if version == 4 else 'ip6'} {self._nft}"

    def show(self, span: Span, version: int | None) -> str:
        return addresses_text(span, version or 4)

    iptables_repeats = True

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        spans = self._joined(asked, version)
        if asked.negated and len(spans) > 1:  # one range after the other
            matches = [f"-m iprange ! --{self._iptables}-range {self._range(span, version)}" for span in spans]
            return [" ".join(matches)]
        return super().iptables(asked, version, protocol)

    def _range(self, span: Span, version: int) -> str:
        return "-".join(addresses_text(Span(value, value), version) for value in span[:2])

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        if prefix_length(span, version) is None:
            return f"-m iprange {negation}--{self._iptables}-range {self._range(span, version)}"
        return f"{negation}-{self._iptables[0]} {addresses_text(span, version)}"


# --- ports


class Port(Compared):
    kind, size = 13, 2
    set_kinds = ("port",)
    protocols = ("tcp", "udp", "sctp")
    takes = '53, ``range(1024, 2048)`` or "1024-2047"; protocol must be TCP, UDP or SCTP, or several of these'

    def __init__(self, about: str, offset: int, word: str) -> None:
        self.about, self._offset, self._word = about, offset, word

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        yield number_range(name, value, 0xFFFF, "a port")

    def load(self, version: int | None) -> Expression:
        return payload(TRANSPORT_HEADER, self._offset, 2)

    def key(self, version: int | None, protocol: str) -> str:
        return f"{protocol or 'th'} {self._word}"

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        spans = self._joined(asked, version)
        if len(spans) == 1:
            return [self.iptables_match(spans[0], version, "! " if asked.negated else "")]
        if sum(1 + (span.first != span.last) for span in spans) > _MAX_MULTIPORT:
            raise NoWordsError(f"more than {_MAX_MULTIPORT} ports, or ends of ranges, in a rule")
        ports = ",".join(span_text(span.first, span.last, ":") for span in spans)
        return [f"-m multiport {'! ' if asked.negated else ''}--{self._word}s {ports}"]

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        return f"{negation}--{self._word} {span_text(span.first, span.last, ':')}"


# --- packets


class Number(Compared):
    """A number that can be loaded, or several, or ranges: for this a row alone is enough.

    nft, iptables: the words before it; the latter with {} for the negation. None if iptables has none.
    most: the highest; of_iptables: the highest for which iptables has words.
    """

    iptables_repeats = True

    def __init__(
        self,
        about: str,
        what: str,
        load: Expression,
        nft: str,
        iptables: str | None,
        *,
        size: int = 4,
        host_order: bool = False,
        of_iptables: int = 0xFFFF,
    ) -> None:
        self.about, self._what, self._load, self._nft, self._iptables = about, what, load, nft, iptables
        self.kind, self.size, self.host_order, self._of_iptables = 4, size, host_order, of_iptables
        self.takes = f'{what}, a range or text like "0-100"'

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        yield number_range(name, value, (1 << 8 * self.size) - 1, self._what)

    def load(self, version: int | None) -> Expression:
        return self._load

    def key(self, version: int | None, protocol: str) -> str:
        return self._nft

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        if self._iptables is None:
            raise NoWordsError(self.about)
        if span.last > self._of_iptables:
            raise NoWordsError(f"{self.about} of more than {self._of_iptables}")
        return f"{self._iptables.format(negation)} {span_text(span.first, span.last, ':')}"


_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}


class TcpFlags(Compared):
    about = "the flags of TCP segments"
    takes = '"syn,!ack": those that must be set, and with ! those that must not; protocol must be TCP. No lists'
    kind, size, touching = 15, 1, False
    protocols = ("tcp",)

    def read(self, name: str, value: Any, negated: bool) -> Asked:
        if not isinstance(value, str):
            raise wrong_type(name, value, "text like 'syn,!ack'")
        mask = flags = 0
        for word in value.split(","):
            flag = word.strip().removeprefix("!").strip()
            check_choice(f"a flag in {name}", flag, tuple(_FLAGS))
            if mask & _FLAGS[flag]:
                raise ArgumentError(f"{name} is {value!r}, which says {flag} twice")
            mask |= _FLAGS[flag]
            flags |= 0 if "!" in word else _FLAGS[flag]
        return Asked((Span(flags, flags),), mask, negated)

    def read_one(self, name: str, value: Any) -> Iterable[Span]:
        raise NotImplementedError

    def load(self, version: int | None) -> Expression:
        return payload(TRANSPORT_HEADER, 13, 1)

    def key(self, version: int | None, protocol: str) -> str:
        return "tcp flags"

    def show(self, span: Span, version: int | None) -> str:
        return f"{span.first:#x}"

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        (span,) = asked.spans
        names = [
            ",".join(name.upper() for name, bit in _FLAGS.items() if bits & bit)
            for bits in (asked.mask or 0, span.first)
        ]
        if (asked.mask or 0) > 63:
            raise NoWordsError("the TCP flags ece and cwr")
        return [f"{'! ' if asked.negated else ''}--tcp-flags {names[0]} {names[1] or 'NONE'}"]

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        raise NotImplementedError

    def text(self, asked: Asked) -> list[str]:
        bits = asked.spans[0].first
        return [("" if bits & bit else "!") + name for name, bit in _FLAGS.items() if (asked.mask or 0) & bit]

    def parse(self, text: str) -> Any:
        return text


# Types of messages in ICMP, and in ICMPv6, by the names that people have for them.
_ICMP_TYPES: dict[str, tuple[int | None, int | None]] = {
    "echo-request": (8, 128),
    "echo-reply": (0, 129),
    "destination-unreachable": (3, 1),
    "packet-too-big": (None, 2),
    "time-exceeded": (11, 3),
    "parameter-problem": (12, 4),
    "redirect": (5, 137),
    "router-advertisement": (9, 134),
    "router-solicitation": (10, 133),
    "neighbour-solicitation": (None, 135),
    "neighbour-advertisement": (None, 136),
    "timestamp-request": (13, None),
    "timestamp-reply": (14, None),
}


class IcmpType(Compared):
    about = "the type of ICMP and ICMPv6 messages"
    takes = '"echo-request" and the like, or a number; protocol must be "icmp", "icmpv6" or both'
    size, touching = 1, False
    protocols = ("icmp", "icmpv6")

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        if isinstance(value, str):
            check_choice(name, value, tuple(_ICMP_TYPES))
            for version, found in zip((4, 6), _ICMP_TYPES[value], strict=True):
                if found is not None:
                    yield Span(found, found, version)
        else:
            choices = ", ".join(map(repr, _ICMP_TYPES))
            value = check(name, value, 0, 0xFF, what=f"a number or one of {choices}, or a list of such")
            yield Span(value, value)

    def load(self, version: int | None) -> Expression:
        return payload(TRANSPORT_HEADER, 0, 1)

    def set_kind(self, version: int | None) -> int:
        return 14 if version == 4 else 29

    def key(self, version: int | None, protocol: str) -> str:
        return f"{'icmp' if version == 4 else 'icmpv6'} type"

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        return f"{negation}--{'icmp' if version == 4 else 'icmpv6'}-type {span.first}"

    def text(self, asked: Asked) -> list[str]:
        named = {span: name for name in _ICMP_TYPES for span in self.read_one("", name)}
        return list(dict.fromkeys(named.get(span, str(span.first)) for span in asked.spans))

    def parse_one(self, text: str) -> Any:
        return number_or_name(text)
