"""What may be asked of packets: what this machine knows of them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from .._arguments import check, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from . import _cgroups
from ._criterion import IP_FAMILIES, Asked, Compared, Criterion
from ._expressions import (
    CT_STATE,
    EQUAL,
    NOT_EQUAL,
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

# --- interfaces


class Interface(Compared):
    kind, size, touching = 41, IFNAMSIZ, False
    set_kinds = ("interface",)
    takes = 'its name, or how that begins: "eth*"'

    def __init__(self, about: str, key: int, nft: str, iptables: str, hooks: tuple[str, ...], lacks: str) -> None:
        self.about, self._key, self._nft, self._iptables = about, key, nft, iptables
        self.hooks, self.lacks = hooks, lacks

    @property
    def is_host_ordered(self) -> bool:
        return True  # as nft has it for all text

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        return read_interface(name, value)

    def load(self, version: int | None) -> Expression:
        return meta(self._key)

    def steps(self, asked: Asked, version: int | None) -> Iterator[Step]:
        if len(asked.spans) == 1 and asked.spans[0].first != asked.spans[0].last:  # how the name begins
            yield self.load(version)
            beginning = self._pack(asked.spans[0].first, version).rstrip(b"\0")
            yield compare(beginning, NOT_EQUAL if asked.negated else EQUAL)
        else:
            yield from super().steps(asked, version)

    def key(self, version: int | None, protocol: str) -> str:
        return self._nft

    def show(self, span: Span, version: int | None) -> str:
        return nft_interface(interface_text(span))

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        name = interface_text(span)
        check_words(INTERFACE, name)
        if name.endswith("*"):
            return f"{negation}{self._iptables} {shlex.quote(f'{name[:-1]}+')}"
        if name.endswith("+"):
            raise NoWordsError(f"the interface {name}, which there means all whose names begin so")
        return f"{negation}{self._iptables} {shlex.quote(name)}"

    def text(self, asked: Asked) -> list[str]:
        return [interface_text(span) for span in asked.spans]


# --- marks


class Mark(Compared):
    """A mark, or those of its bits that a mask has."""

    kind, host_order, touching = 19, True, False
    set_kinds = ("mark",)
    takes = "a number, or a pair of number and mask, which says which bits are looked at"

    def __init__(self, about: str, load: Expression, nft: str, iptables: str) -> None:
        self.about, self._load, self._nft, self._iptables = about, load, nft, iptables

    def read(self, name: str, value: Any, negated: bool) -> Asked:
        masks: set[int] = set()

        def read_one(name: str, value: Any) -> Iterator[Span]:
            mask = 0xFFFFFFFF
            if isinstance(value, tuple) and len(value) == 2:
                value, mask = value[0], check(f"the mask of {name}", value[1], 1, 0xFFFFFFFF)
            value = check(name, value, 0, 0xFFFFFFFF, what="an integer, a pair of value and mask, or a list of such")
            if value & ~mask:
                raise ArgumentError(f"{name} {value:#x} has bits that its mask {mask:#x} leaves out: nothing matches")
            masks.add(mask)
            yield Span(value, value)

        spans = list(read_one(name, value)) if isinstance(value, tuple) else read_list(name, value, read_one)
        if len(masks) > 1:
            raise ArgumentError(f"{name} has several masks, of which a rule can have one: make a rule for each")
        (mask,) = masks
        return Asked(joined(spans, False), None if mask == 0xFFFFFFFF else mask, negated)

    def read_one(self, name: str, value: Any) -> Iterable[Span]:
        raise NotImplementedError

    def load(self, version: int | None) -> Expression:
        return self._load

    def key(self, version: int | None, protocol: str) -> str:
        return self._nft

    def show(self, span: Span, version: int | None) -> str:
        return f"{span.first:#x}"

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        mask = "" if asked.mask is None else f"/{asked.mask:#x}"
        negation = "! " if asked.negated else ""
        words = [f"-m {self._iptables} {negation}--mark {span.first:#x}{mask}" for span in asked.spans]
        return [" ".join(words)] if asked.negated else words

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        raise NotImplementedError

    def text(self, asked: Asked) -> list[str]:
        return [f"{span.first:#x}" + ("" if asked.mask is None else f"/{asked.mask:#x}") for span in asked.spans]

    def parse_one(self, text: str) -> Any:
        value, slash, mask = text.partition("/")
        return (number(value), number(mask)) if slash else number(value)


class ConnectionMark(Mark):
    hooks, lacks, is_tracked = HOOKS, "connection", True


# --- connections

# What connection tracking says of a packet (NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h): always one.
_STATES = {"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}


class State(Criterion):
    about = "what connection tracking says"
    takes = '"new", "established", "related", "invalid" or "untracked"'
    hooks, lacks, is_tracked = HOOKS, "connection", True

    def read(self, name: str, value: Any, negated: bool) -> Asked:
        choices = {state: Span(bit, bit) for state, bit in _STATES.items()}

        def read_one(name: str, value: Any) -> Iterator[Span]:
            yield read_choice(name, value, choices)

        if not isinstance(value, Iterable):
            raise wrong_type(name, value, f"one of {', '.join(map(repr, choices))}, or a list of such")
        asked = Asked(joined(read_list(name, value, read_one), False), None, negated)
        if negated and len(asked.spans) == len(_STATES):
            raise ArgumentError(f"{name} leaves no state: no packet matches")
        return asked

    def steps(self, asked: Asked, version: int | None) -> Iterator[Step]:
        yield ct(CT_STATE)
        yield masked(sum(span.first for span in asked.spans).to_bytes(4, netlink.HOST))
        yield compare(bytes(4), EQUAL if asked.negated else NOT_EQUAL)

    def nft(self, asked: Asked, version: int | None, protocol: str) -> str:
        states = self.text(asked)
        return f"ct state & ({' | '.join(states)}) == 0" if asked.negated else f"ct state {','.join(states)}"

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        return [f"-m conntrack {'! ' if asked.negated else ''}--ctstate {','.join(self.text(asked)).upper()}"]

    def text(self, asked: Asked) -> list[str]:
        return [name for name, bit in _STATES.items() for span in asked.spans if span.first == bit]


# --- users and groups


class Account(Compared):
    takes = "a number, a range or a name; numbers are those of the user namespace that owns the network namespace"
    host_order = True
    # At input the kernel may know the socket that will get the packet, and matches its user: not the sender's.
    hooks, lacks = ("output", "postrouting"), "local sender"
    iptables_repeats = True

    def __init__(
        self, about: str, kind: int, key: int, read: Callable[[str, Any], Iterator[Span]], nft: str, iptables: str
    ) -> None:
        self.about, self.kind, self._key, self._read = about, kind, key, read
        self._nft, self._iptables = nft, iptables

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        return self._read(name, value)

    def load(self, version: int | None) -> Expression:
        return meta(self._key)

    def key(self, version: int | None, protocol: str) -> str:
        return f"meta {self._nft}"

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        return f"-m owner {negation}--{self._iptables} {span_text(span.first, span.last)}"

    def parse_one(self, text: str) -> Any:
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
    takes = '"local", "unicast", "broadcast", "multicast", "anycast", "blackhole", "unreachable" or "prohibit"'
    kind, host_order, touching = 38, True, False
    families, hooks, lacks = IP_FAMILIES, HOOKS, "type of an address"

    def __init__(self, about: str, flag: int, nft: str, iptables: str) -> None:
        self.about, self._flag, self._nft, self._iptables = about, flag, nft, iptables

    def read_one(self, name: str, value: Any) -> Iterator[Span]:
        yield read_choice(name, value, _ADDRESS_TYPES)

    def load(self, version: int | None) -> Expression:
        return fib_type(self._flag)

    def key(self, version: int | None, protocol: str) -> str:
        return f"fib {self._nft} type"

    def show(self, span: Span, version: int | None) -> str:
        return next(name for name, known in _ADDRESS_TYPES.items() if known.first == span.first)

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        types = ",".join(self.show(span, version) for span in self._joined(asked, version)).upper()
        if not types:
            return [""]
        return [f"-m addrtype {'! ' if asked.negated else ''}--{self._iptables}-type {types}"]

    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        raise NotImplementedError


_NFT_ROOT = "/sys/fs/cgroup"


class Cgroup(Criterion):
    """Values are control groups, by their paths.

    It has no negation: the kernel loads the group's parent at a level, and nothing matches, not even a negation, where
    a socket's own group is at a lower level.
    """

    about = "the control group of the local sender or receiver"
    takes = 'a systemd unit ("sshd.service") or a path below the root of the control groups (version 2). No negation'
    families, hooks, lacks = IP_FAMILIES, ("prerouting", "input", "output"), "local socket"

    def read(self, name: str, value: Any, negated: bool) -> tuple[_cgroups.Group, ...]:
        if negated:
            text = "the kernel cannot say that of all sockets: put a rule for the group itself before this one"
            raise ArgumentError(f"{name}: {text}, install(accept(cgroup=...), ...)")
        if isinstance(value, str) or not isinstance(value, Iterable):
            value = [value]
        groups = tuple(dict.fromkeys(_cgroups.find(name, one) for one in value))
        if not groups:
            raise ArgumentError(f"{name} is empty, and must have at least one value; or leave it out")
        if len({group.level for group in groups}) > 1:
            raise ArgumentError(f"{name} has groups of several levels, of which a rule can have one: make a rule each")
        return groups

    def steps(self, asked: tuple[_cgroups.Group, ...], version: int | None) -> Iterator[Step]:
        ids = sorted(group.number().to_bytes(8, netlink.HOST) for group in asked)
        yield socket_cgroup(asked[0].level)
        if len(ids) == 1:
            yield compare(ids[0])
        else:
            yield Lookup(tuple((one, one) for one in ids), 46, True, False)

    def nft(self, asked: tuple[_cgroups.Group, ...], version: int | None, protocol: str) -> str:
        values = []
        for group in asked:
            check_words("a control group", group.path, '"')
            path = group.below(_NFT_ROOT)
            if path is None:
                raise NoWordsError(f"control groups that are not mounted below {_NFT_ROOT}")
            values.append(f'"{path}"')
        value = values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}"
        return f"socket cgroupv2 level {asked[0].level} {value}"

    def iptables(self, asked: tuple[_cgroups.Group, ...], version: int, protocol: str) -> list[str]:
        for group in asked:
            check_words("a control group", group.path)
        return [f"-m cgroup --path {shlex.quote(group.path)}" for group in asked]

    def text(self, asked: tuple[_cgroups.Group, ...]) -> list[str]:
        return [group.path for group in asked]


# --- how many


class _Limited(NamedTuple):
    packets: int
    unit: str
    burst: int
    over: bool


_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"(\d{1,10})(?:/(\w+))?(?: burst (\d{1,10}))?")


class Limit(Criterion):
    about = "how many packets match in a time"
    takes = '10 (a second) or "10/minute burst 20" (5 if not given); not_limit: those beyond. No lists'

    def read(self, name: str, value: Any, negated: bool) -> _Limited:
        unit, burst = "second", 5  # as nft and iptables have it
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

    def steps(self, asked: _Limited, version: int | None) -> Iterator[Step]:
        yield limit(asked.packets, _UNITS[asked.unit], asked.burst, asked.over)

    def nft(self, asked: _Limited, version: int | None, protocol: str) -> str:
        over = "over " if asked.over else ""
        return f"limit rate {over}{asked.packets}/{asked.unit} burst {asked.burst} packets"

    def iptables(self, asked: _Limited, version: int, protocol: str) -> list[str]:
        if asked.over:
            raise NoWordsError("packets beyond a limit")
        if asked.packets > 10000 * _UNITS[asked.unit] or not asked.burst:
            raise NoWordsError("limits that high, or without a burst")
        return [f"-m limit --limit {asked.packets}/{asked.unit} --limit-burst {asked.burst}"]

    def text(self, asked: _Limited) -> list[str]:
        return [f"{asked.packets}/{asked.unit} burst {asked.burst}"]

    def parse(self, text: str) -> Any:
        return text
