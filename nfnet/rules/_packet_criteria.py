"""Criteria for fields in the headers of packets."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from .._arguments import check, check_choice, wrong_type
from ..errors import ArgumentError
from ._compared import Compared, Field, Listed
from ._criterion import Condition
from ._expressions import (
    EQUAL,
    META_L4PROTO,
    NETWORK_HEADER,
    NOT_EQUAL,
    TRANSPORT_HEADER,
    Datatype,
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
# In IPv6 these are extension headers, which the kernel skips to find the protocol (net/ipv6/exthdrs_core.c).
_SKIPPED = (0, 43, 44, 60)


class Protocol(Listed):
    """The protocol of the transport layer."""

    merge_adjacent = False
    description = "the protocol"
    syntax = '"tcp", "udp", "icmp" (of IPv4), "icmpv6" (of IPv6), "sctp" or a number'

    def field(self, version: int | None) -> Field:
        return Field(meta(META_L4PROTO), 1, Datatype.INET_PROTOCOL)

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        if isinstance(value, str):
            yield read_choice(name, value, _PROTOCOLS)
            return
        what = f"a number or one of {', '.join(map(repr, _PROTOCOLS))}, or a list of such"
        value = check(name, value, 0, 0xFF, what=what)
        yield Span(value, value, 4 if value in _SKIPPED else None)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return "meta l4proto"

    def nft_value(self, span: Span, version: int | None) -> str:
        name = self._name(span.first, version)
        return "ipv6-icmp" if name == "icmpv6" else name

    @staticmethod
    def _name(value: int, version: int | None) -> str:
        """Return the name of a protocol in `_PROTOCOLS`, or its number."""
        return next(
            (name for name, span in _PROTOCOLS.items() if span.first == value and span.version in (None, version)),
            str(value),
        )

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        if span.first == 0:
            raise NoWordsError("protocol 0, which iptables takes for every protocol")
        return f"{negation}-p {self._name(span.first, version)}"

    def command_values(self, condition: Condition) -> list[str]:
        return [self._name(span.first, span.version) for span in condition.spans]

    def parse_value(self, text: str) -> Any:
        return number_or_name(text)


# --- addresses


class AddressOf(Listed):
    """The address of the sender or of the receiver."""

    set_kinds = ("address", "network")
    syntax = 'an address, a network ("192.0.2.0/24") or a range ("192.0.2.1-192.0.2.9"), IPv4 or IPv6'
    iptables_repeats = True
    names_version = True

    def __init__(self, description: str, ordinal: int, nft: str, iptables: str) -> None:
        self.description, self._ordinal, self._nft, self._iptables = description, ordinal, nft, iptables

    def field(self, version: int | None) -> Field:
        size = 4 if version == 4 else 16
        datatype = Datatype.IPADDR if version == 4 else Datatype.IP6ADDR
        return Field(payload(NETWORK_HEADER, self._offset(version), size), size, datatype)

    def _offset(self, version: int | None) -> int:
        return 12 + 4 * self._ordinal if version == 4 else 8 + 16 * self._ordinal

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        return read_addresses(name, value)

    def steps(self, condition: Condition, version: int | None) -> Iterator[Step]:
        spans = self.spans(condition, version)
        length = prefix_length(spans[0], version or 4) if len(spans) == 1 else None
        if length is None or spans[0].first == spans[0].last:
            yield from super().steps(condition, version)
            return
        field = self.field(version)
        value, operator = field.pack(spans[0].first), NOT_EQUAL if condition.negated else EQUAL
        if length % 8 == 0 and length:  # like nft: whole bytes need no mask
            yield payload(NETWORK_HEADER, self._offset(version), length // 8)
            yield compare(value[: length // 8], operator)
        else:
            bits = 8 * field.size
            yield field.load
            yield masked(((1 << bits) - (1 << bits - length)).to_bytes(field.size, "big"))
            yield compare(value, operator)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return f"{'ip' if version == 4 else 'ip6'} {self._nft}"

    def nft_value(self, span: Span, version: int | None) -> str:
        return addresses_text(span, version or 4)

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        spans = self.spans(condition, version)
        if condition.negated and len(spans) > 1:  # iptables accepts -s once, but -m iprange several times
            matches = [f"-m iprange ! --{self._iptables}-range {self._range(span, version)}" for span in spans]
            return [" ".join(matches)]
        return super().iptables(condition, version, protocol)

    def _range(self, span: Span, version: int) -> str:
        return "-".join(addresses_text(Span(value, value), version) for value in span[:2])

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        if prefix_length(span, version) is None:
            return f"-m iprange {negation}--{self._iptables}-range {self._range(span, version)}"
        return f"{negation}-{self._iptables[0]} {addresses_text(span, version)}"


# --- ports


class Port(Listed):
    """The port of the sender or of the receiver."""

    set_kinds = ("port",)
    protocols = ("tcp", "udp", "sctp")
    syntax = '53, ``range(1024, 2048)`` or "1024-2047"; protocol must be TCP, UDP or SCTP, or several of these'

    def __init__(self, description: str, offset: int, word: str) -> None:
        self.description, self._offset, self._word = description, offset, word

    def field(self, version: int | None) -> Field:
        return Field(payload(TRANSPORT_HEADER, self._offset, 2), 2, Datatype.INET_SERVICE)

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        yield number_range(name, value, 0xFFFF, "a port")

    def nft_name(self, version: int | None, protocol: str) -> str:
        return f"{protocol or 'th'} {self._word}"

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        spans = self.spans(condition, version)
        negation = "! " if condition.negated else ""
        if len(spans) == 1:
            return [self.iptables_value(spans[0], version, negation)]
        if sum(1 + (span.first != span.last) for span in spans) > _MAX_MULTIPORT:
            raise NoWordsError(f"more than {_MAX_MULTIPORT} ports, or ends of ranges, in a rule")
        ports = ",".join(span_text(span.first, span.last, ":") for span in spans)
        return [f"-m multiport {negation}--{self._word}s {ports}"]

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        return f"{negation}--{self._word} {span_text(span.first, span.last, ':')}"


# --- numbers


class Number(Listed):
    """A number, several numbers, or ranges of numbers. Such a criterion needs only a row, no class of its own.

    description: the property, for the documentation.
    what: a value, for error messages.
    fields: the field; or a field for IPv4 packets and one for IPv6 packets.
    nft: nft's name of the field; if there are two fields, without "ip " and "ip6 ".
    iptables: the option, with {} for the negation; None if iptables has none.
    names: names of some numbers.
    iptables_max: the greatest number that iptables accepts.
    iptables_ranges: whether iptables accepts ranges.
    """

    iptables_repeats = True

    def __init__(
        self,
        description: str,
        what: str,
        fields: Field | Mapping[int, Field],
        nft: str,
        iptables: str | None,
        *,
        names: Mapping[str, int] = MappingProxyType({}),
        iptables_max: int = 0xFFFF,
        iptables_ranges: bool = True,
    ) -> None:
        self.description, self._what, self._nft, self._iptables = description, what, nft, iptables
        self._fields = {4: fields, 6: fields} if isinstance(fields, Field) else fields
        self.names_version = not isinstance(fields, Field)
        self._names = names
        self._iptables_max, self._iptables_ranges = iptables_max, iptables_ranges
        self.merge_adjacent = iptables_ranges  # otherwise iptables could not express a list of adjacent numbers
        self.syntax = f'{what}, a range or text like "0-{self.field(None).greatest if names else 100}"'

    def field(self, version: int | None) -> Field:
        return self._fields[version or 4]

    def differs_by_version(self, condition: Condition) -> bool:
        return self.names_version

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        number = self._names.get(value, value) if isinstance(value, str) else value
        yield number_range(name, number, self.field(None).greatest, self._what)

    def nft_name(self, version: int | None, protocol: str) -> str:
        if not self.names_version:
            return self._nft
        return f"{'ip' if version == 4 else 'ip6'} {self._nft}"

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        if self._iptables is None:
            raise NoWordsError(self.description)
        if span.last > self._iptables_max:
            raise NoWordsError(f"{self.description} of more than {self._iptables_max}")
        if span.first != span.last and not self._iptables_ranges:
            raise NoWordsError(f"ranges of {self.description}")
        return f"{self._iptables.format(negation)} {span_text(span.first, span.last, ':')}"

    def command_values(self, condition: Condition) -> list[str]:
        names = {Span(number, number): name for name, number in self._names.items()}
        return [names.get(span, span_text(span.first, span.last)) for span in condition.spans]


# --- TCP

_FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16, "urg": 32, "ece": 64, "cwr": 128}


class TcpFlags(Compared):
    """The flags of TCP segments. The condition's mask contains the flags that the argument names."""

    description = "the flags of TCP segments"
    syntax = '"syn,!ack": flags that must be set, or with ! must not be set; protocol must be TCP. No lists'
    merge_adjacent = False
    protocols = ("tcp",)

    def field(self, version: int | None) -> Field:
        return Field(payload(TRANSPORT_HEADER, 13, 1), 1, Datatype.TCP_FLAG)

    def read(self, name: str, value: Any, negated: bool) -> Condition:
        if not isinstance(value, str):
            raise wrong_type(name, value, "text like 'syn,!ack'")
        mask = flags = 0
        for word in value.split(","):
            flag = word.strip().removeprefix("!").strip()
            check_choice(f"a flag in {name}", flag, tuple(_FLAGS))
            if mask & _FLAGS[flag]:
                raise ArgumentError(f"{name} is {value!r}, which contains {flag} twice")
            mask |= _FLAGS[flag]
            flags |= 0 if "!" in word else _FLAGS[flag]
        return Condition((Span(flags, flags),), mask, negated)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return "tcp flags"

    def nft_value(self, span: Span, version: int | None) -> str:
        return f"{span.first:#x}"

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        (span,) = condition.spans
        mask = condition.mask or 0
        named, set_ = (
            ",".join(name.upper() for name, bit in _FLAGS.items() if bits & bit) for bits in (mask, span.first)
        )
        if mask & (_FLAGS["ece"] | _FLAGS["cwr"]):
            raise NoWordsError("the TCP flags ece and cwr")
        return [f"{'! ' if condition.negated else ''}--tcp-flags {named} {set_ or 'NONE'}"]

    def command_values(self, condition: Condition) -> list[str]:
        bits = condition.spans[0].first
        return [("" if bits & bit else "!") + name for name, bit in _FLAGS.items() if (condition.mask or 0) & bit]

    def parse(self, text: str) -> Any:
        return text


# --- ICMP

# Names of message types, with their numbers in ICMP and in ICMPv6.
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


class IcmpType(Listed):
    """The type of ICMP and ICMPv6 messages."""

    description = "the type of ICMP and ICMPv6 messages"
    syntax = '"echo-request" and the like, or a number; protocol must be "icmp", "icmpv6" or both'
    merge_adjacent = False
    protocols = ("icmp", "icmpv6")

    def field(self, version: int | None) -> Field:
        datatype = Datatype.ICMP_TYPE if version == 4 else Datatype.ICMP6_TYPE
        return Field(payload(TRANSPORT_HEADER, 0, 1), 1, datatype)

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        if isinstance(value, str):
            check_choice(name, value, tuple(_ICMP_TYPES))
            for version, found in zip((4, 6), _ICMP_TYPES[value], strict=True):
                if found is not None:
                    yield Span(found, found, version)
        else:
            choices = ", ".join(map(repr, _ICMP_TYPES))
            value = check(name, value, 0, 0xFF, what=f"a number or one of {choices}, or a list of such")
            yield Span(value, value)

    def check_protocols(self, name: str, condition: Any, protocols: Sequence[str]) -> None:
        super().check_protocols(name, condition, protocols)
        if len(protocols) > 1 and any(span.version is None for span in condition.spans):
            raise ArgumentError(f"{name} has a number, which is another type in ICMPv6: give the name")

    def nft_name(self, version: int | None, protocol: str) -> str:
        return f"{'icmp' if version == 4 else 'icmpv6'} type"

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        return f"{negation}--{'icmp' if version == 4 else 'icmpv6'}-type {span.first}"

    def command_values(self, condition: Condition) -> list[str]:
        named = {span: name for name in _ICMP_TYPES for span in self.read_value("", name)}
        return list(dict.fromkeys(named.get(span, str(span.first)) for span in condition.spans))

    def parse_value(self, text: str) -> Any:
        return number_or_name(text)
