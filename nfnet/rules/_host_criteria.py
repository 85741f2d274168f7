"""Criteria about properties that this machine assigns to packets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .._arguments import check, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from . import _cgroups
from ._compared import Compared, Field, Listed
from ._criterion import IP_FAMILIES, Condition, Criterion, Hooks
from ._expressions import (
    CT_STATE,
    EQUAL,
    NOT_EQUAL,
    Datatype,
    Expression,
    Lookup,
    Step,
    compare,
    ct,
    fib_type,
    limit,
    masked,
    meta,
    socket_cgroup,
)
from ._values import (
    HOOKS,
    IFNAMSIZ,
    INTERFACE,
    NoWordsError,
    Span,
    check_words,
    interface_text,
    joined,
    nft_interface,
    number,
    number_or_name,
    read_choice,
    read_interface,
    read_list,
    span_text,
)

_TRACKED = Hooks(
    HOOKS, "connection", "at prerouting and output with a `priority` above -200, after connection tracking"
)

# --- interfaces


class Interface(Listed):
    """The incoming or outgoing interface of packets."""

    merge_adjacent = False
    set_kinds = ("interface",)
    syntax = 'its name, or the beginning of names: "eth*"'

    def __init__(self, description: str, key: int, nft: str, iptables: str, hooks: Hooks) -> None:
        self.description, self._key, self._nft, self._iptables = description, key, nft, iptables
        self.hooks = hooks

    def field(self, version: int | None) -> Field:
        return Field(meta(self._key), IFNAMSIZ, Datatype.IFNAME)

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        return read_interface(name, value)

    def interfaces(self, condition: Condition) -> list[str]:
        names = [] if condition.negated else self.command_values(condition)
        return [name for name in names if not name.endswith("*")]

    def steps(self, condition: Condition, version: int | None) -> Iterator[Step]:
        if len(condition.spans) == 1 and condition.spans[0].first != condition.spans[0].last:  # the beginning of names
            field = self.field(version)
            yield field.load
            beginning = field.pack(condition.spans[0].first).rstrip(b"\0")
            yield compare(beginning, NOT_EQUAL if condition.negated else EQUAL)
        else:
            yield from super().steps(condition, version)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return self._nft

    def nft_value(self, span: Span, version: int | None) -> str:
        return nft_interface(interface_text(span))

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        name = interface_text(span)
        check_words(INTERFACE, name)
        if name.endswith("*"):
            return f"{negation}{self._iptables} {shlex.quote(f'{name[:-1]}+')}"
        if name.endswith("+"):
            raise NoWordsError(f"the interface {name}, because + at the end means all interfaces that begin like that")
        return f"{negation}{self._iptables} {shlex.quote(name)}"

    def command_values(self, condition: Condition) -> list[str]:
        return [interface_text(span) for span in condition.spans]


# --- marks


class Mark(Compared):
    """A mark, or the bits of it that are in the condition's mask."""

    merge_adjacent = False
    set_kinds = ("mark",)
    syntax = "a number, or a pair of a number and a mask of the bits that are compared"

    def __init__(self, description: str, load: Expression, nft: str, iptables: str) -> None:
        self.description, self._load, self._nft, self._iptables = description, load, nft, iptables

    def field(self, version: int | None) -> Field:
        return Field(self._load, 4, Datatype.MARK, host_order=True)

    def read(self, name: str, value: Any, negated: bool) -> Condition:
        masks: set[int] = set()

        def read_value(name: str, value: Any) -> Iterator[Span]:
            mask = 0xFFFFFFFF
            if isinstance(value, tuple) and len(value) == 2:
                value, mask = value[0], check(f"the mask of {name}", value[1], 1, 0xFFFFFFFF)
            value = check(name, value, 0, 0xFFFFFFFF, what="an integer, a pair of value and mask, or a list of such")
            if value & ~mask:
                raise ArgumentError(f"{name} {value:#x} has bits that its mask {mask:#x} leaves out: nothing matches")
            masks.add(mask)
            yield Span(value, value)

        spans = list(read_value(name, value)) if isinstance(value, tuple) else read_list(name, value, read_value)
        if len(masks) > 1:
            raise ArgumentError(f"{name} has several masks, of which a rule can have one: make a rule for each")
        (mask,) = masks
        return Condition(joined(spans, False), None if mask == 0xFFFFFFFF else mask, negated)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return self._nft

    def nft_value(self, span: Span, version: int | None) -> str:
        return f"{span.first:#x}"

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        mask = "" if condition.mask is None else f"/{condition.mask:#x}"
        negation = "! " if condition.negated else ""
        words = [f"-m {self._iptables} {negation}--mark {span.first:#x}{mask}" for span in condition.spans]
        return [" ".join(words)] if condition.negated else words

    def command_values(self, condition: Condition) -> list[str]:
        return [
            f"{span.first:#x}" + ("" if condition.mask is None else f"/{condition.mask:#x}") for span in condition.spans
        ]

    def parse_value(self, text: str) -> Any:
        value, slash, mask = text.partition("/")
        return (number(value), number(mask)) if slash else number(value)


class ConnectionMark(Mark):
    """The mark of the packet's connection."""

    hooks, is_tracked = _TRACKED, True


# --- connections

# NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h. A packet has one of these states.
_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}


class State(Criterion):
    """The state of the packet's connection. The condition has one bit for each state."""

    description = "the state in connection tracking"
    syntax = '"new", "established", "related", "invalid" or "untracked"'
    hooks, is_tracked = _TRACKED, True

    def read(self, name: str, value: Any, negated: bool) -> Condition:
        choices = {state: Span(bit, bit) for state, bit in _STATES.items()}

        def read_value(name: str, value: Any) -> Iterator[Span]:
            yield read_choice(name, value, choices)

        if not isinstance(value, Iterable):
            raise wrong_type(name, value, f"one of {', '.join(map(repr, choices))}, or a list of such")
        condition = Condition(joined(read_list(name, value, read_value), False), None, negated)
        if negated and len(condition.spans) == len(_STATES):
            raise ArgumentError(f"{name} leaves no state: no packet matches")
        return condition

    def steps(self, condition: Condition, version: int | None) -> Iterator[Step]:
        yield ct(CT_STATE)
        yield masked(sum(span.first for span in condition.spans).to_bytes(4, netlink.HOST))
        yield compare(bytes(4), EQUAL if condition.negated else NOT_EQUAL)

    def nft(self, condition: Condition, version: int | None, protocol: str) -> str:
        states = self.command_values(condition)
        return f"ct state & ({' | '.join(states)}) == 0" if condition.negated else f"ct state {','.join(states)}"

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        states = ",".join(self.command_values(condition)).upper()
        return [f"-m conntrack {'! ' if condition.negated else ''}--ctstate {states}"]

    def command_values(self, condition: Condition) -> list[str]:
        return [name for name, bit in _STATES.items() for span in condition.spans if span.first == bit]


# --- users and groups


class Account(Listed):
    """The user or the group of the local program that sends the packet."""

    syntax = "a number, a range or a name; numbers are those of the user namespace that owns the network namespace"
    # At input the kernel can know the socket that will receive the packet, and then matches the receiver's user.
    hooks = Hooks(
        ("output", "postrouting"), "local sender", "at input the kernel knows at most the user of the receiver"
    )
    iptables_repeats = True

    def __init__(
        self,
        description: str,
        datatype: Datatype,
        key: int,
        read: Callable[[str, Any], Iterator[Span]],
        nft: str,
        iptables: str,
    ) -> None:
        self.description, self._datatype, self._key, self._read = description, datatype, key, read
        self._nft, self._iptables = nft, iptables

    def field(self, version: int | None) -> Field:
        return Field(meta(self._key), 4, self._datatype, host_order=True)

    def read_value(self, name: str, value: Any) -> Iterator[Span]:
        return self._read(name, value)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return f"meta {self._nft}"

    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        return f"-m owner {negation}--{self._iptables} {span_text(span.first, span.last)}"

    def parse_value(self, text: str) -> Any:
        return number_or_name(text)


# RTN_* in linux/rtnetlink.h. IPv6 has no broadcasts.
_ADDRESS_TYPES = {
    "unicast": Span(1, 1),
    "local": Span(2, 2),
    "broadcast": Span(3, 3, 4),
    "anycast": Span(4, 4),
    "multicast": Span(5, 5),
    "blackhole": Span(6, 6),
    "unreachable": Span(7, 7),
    "prohibit": Span(8, 8),
}


class AddressType(Compared):
    """The type that an address has for this machine."""

    syntax = '"local", "unicast", "broadcast", "multicast", "anycast", "blackhole", "unreachable" or "prohibit"'
    merge_adjacent = False
    families, hooks = IP_FAMILIES, Hooks(HOOKS, "type of an address")
    needs = "CONFIG_NFT_FIB"

    def __init__(self, description: str, flag: int, nft: str, iptables: str) -> None:
        self.description, self._flag, self._nft, self._iptables = description, flag, nft, iptables

    def field(self, version: int | None) -> Field:
        return Field(fib_type(self._flag), 4, Datatype.FIB_ADDR, host_order=True)

    def read(self, name: str, value: Any, negated: bool) -> Condition:
        spans = read_list(name, value, lambda name, value: [read_choice(name, value, _ADDRESS_TYPES)])
        return Condition(joined(spans, self.merge_adjacent), None, negated)

    def nft_name(self, version: int | None, protocol: str) -> str:
        return f"fib {self._nft} type"

    def nft_value(self, span: Span, version: int | None) -> str:
        return next(name for name, known in _ADDRESS_TYPES.items() if known.first == span.first)

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        types = ",".join(self.nft_value(span, version) for span in self.spans(condition, version)).upper()
        if not types:
            return [""]
        return [f"-m addrtype {'! ' if condition.negated else ''}--{self._iptables}-type {types}"]


_NFT_ROOT = "/sys/fs/cgroup"


class Cgroup(Criterion):
    """The control group of the local socket. The condition is a tuple of groups.

    There is no negation: the kernel loads the ancestor of the socket's group at the given level. If the group itself is
    above that level the rule ends without a match, also if the comparison is negated.
    """

    description = "the control group of the local sender or receiver"
    syntax = 'a systemd unit ("sshd.service") or a path below the root of the control groups (version 2). No negation'
    families, hooks = IP_FAMILIES, Hooks(("prerouting", "input", "output"), "local socket")
    needs = "CONFIG_NFT_SOCKET, and Linux 5.13"

    def read(self, name: str, value: Any, negated: bool) -> tuple[_cgroups.Group, ...]:
        if negated:
            text = "the kernel cannot negate it for all sockets: put a rule for the group itself before this one"
            raise ArgumentError(f"{name}: {text}, install(accept(cgroup=...), ...)")
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        groups = tuple(dict.fromkeys(_cgroups.find(name, one) for one in value))
        if not groups:
            raise ArgumentError(f"{name} is empty, and must have at least one value; or leave it out")
        if len({group.level for group in groups}) > 1:
            raise ArgumentError(f"{name} has groups of several levels, of which a rule can have one: make a rule each")
        return groups

    def steps(self, condition: tuple[_cgroups.Group, ...], version: int | None) -> Iterator[Step]:
        ids = sorted(group.number().to_bytes(8, netlink.HOST) for group in condition)
        yield socket_cgroup(condition[0].level)
        if len(ids) == 1:
            yield compare(ids[0])
        else:
            yield Lookup(tuple((one, one) for one in ids), Datatype.CGROUPV2, True, False)

    def nft(self, condition: tuple[_cgroups.Group, ...], version: int | None, protocol: str) -> str:
        values = []
        for group in condition:
            check_words("a control group", group.path, '"')
            path = group.below(_NFT_ROOT)
            if path is None:
                raise NoWordsError(f"control groups that are not mounted below {_NFT_ROOT}")
            values.append(f'"{path}"')
        value = values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
        return f"socket cgroupv2 level {condition[0].level} {value}"

    def iptables(self, condition: tuple[_cgroups.Group, ...], version: int, protocol: str) -> list[str]:
        for group in condition:
            check_words("a control group", group.path)
        return [f"-m cgroup --path {shlex.quote(group.path)}" for group in condition]

    def command_values(self, condition: tuple[_cgroups.Group, ...]) -> list[str]:
        return [group.path for group in condition]


# --- how many


class _Limited(NamedTuple):
    packets: int
    unit: str
    burst: int
    over: bool


_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"(\d{1,10})(?:/(\w+))?(?: burst (\d{1,10}))?")


class Limit(Criterion):
    """A maximum rate of packets. The condition is a `_Limited`."""

    description = "the maximum rate of packets that match"
    is_last = True
    syntax = '10 (a second) or "10/minute burst 20" (default burst: 5); not_limit: packets beyond it. No lists'

    def read(self, name: str, value: Any, negated: bool) -> _Limited:
        unit, burst = "second", 5  # the defaults of nft and iptables
        if isinstance(value, str):
            found = _RATE.fullmatch(value.strip())
            if found is None:
                raise ArgumentError(f"{name} is {value!r} and must be like '10/second' or '10/second burst 20'")
            unit, burst = found[2] or unit, int(found[3] or burst)
            value = int(found[1])
            if unit not in _UNITS:
                raise ArgumentError(f"{name} is in packets a {unit}, and must be in {', '.join(_UNITS)}")
        what = "a number of packets a second, or text like '10/second burst 20'"
        packets = check(name, value, 1, 0xFFFFFFFF, what=what)
        return _Limited(packets, unit, check(f"the burst of {name}", burst, 0, 0xFFFFFFFF), negated)

    def steps(self, condition: _Limited, version: int | None) -> Iterator[Step]:
        yield limit(condition.packets, _UNITS[condition.unit], condition.burst, condition.over)

    def nft(self, condition: _Limited, version: int | None, protocol: str) -> str:
        over = "over " if condition.over else ""
        return f"limit rate {over}{condition.packets}/{condition.unit} burst {condition.burst} packets"

    def iptables(self, condition: _Limited, version: int, protocol: str) -> list[str]:
        if condition.over:
            raise NoWordsError("packets beyond a limit")
        if condition.packets > 10000 * _UNITS[condition.unit] or not condition.burst:
            raise NoWordsError("limits that high, or without a burst")
        return [f"-m limit --limit {condition.packets}/{condition.unit} --limit-burst {condition.burst}"]

    def command_values(self, condition: _Limited) -> list[str]:
        return [f"{condition.packets}/{condition.unit} burst {condition.burst}"]

    def parse(self, text: str) -> Any:
        return text
