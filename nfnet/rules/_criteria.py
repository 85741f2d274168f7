"""Which packets a rule is for: a row for each thing that may be asked of them, in `CRITERIA`."""

from __future__ import annotations

import ipaddress
import os
import pwd
import shlex
import socket
from collections.abc import Callable, Iterable, Iterator
from enum import IntFlag
from typing import Any, NamedTuple

from .._arguments import check, check_choice, wrong_type
from ..errors import ArgumentError
from ..protocol import netlink
from ..protocol.layout import build_attribute

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# An expression: its name, and the data of its attributes by number (linux/netfilter/nf_tables.h).
Expression = tuple[str, dict[int, bytes]]

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")

_REGISTER = 1
_META_PROTOCOL, _META_MARK, _META_IIFNAME, _META_OIFNAME, _META_SKUID = 1, 3, 6, 7, 10
_META_NFPROTO, _META_L4PROTO = 15, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL, _LESS_OR_EQUAL, _GREATER_OR_EQUAL = 0, 1, 3, 5
_CT_STATE = 0
_TRACKED_AT = -200  # NF_IP_PRI_CONNTRACK
_IFNAMSIZ = 16


class NoWordsError(Exception):
    """A program has no words for something; the message says for what."""


class Criterion(NamedTuple):
    """Something that a rule may ask of packets, by an argument of `nfnet.rules.queue`.

    read: makes the value, which the next three get, of the argument, whose name it gets too. Raises ArgumentError.
    expressions: lets packets through that match.
    nft: the same in nft's words. Raises NoWordsError.
    iptables: the same in iptables' words, quoted for the shell. Raises NoWordsError.
    hooks: those at which it can match.
    lacks: what packets do not have at the other hooks.
    word: makes the argument of a word of the command line. Raises ArgumentError.
    """

    read: Callable[[str, Any], Any]
    expressions: Callable[[Any], Iterable[Expression]]
    nft: Callable[[Any], str]
    iptables: Callable[[Any], str]
    hooks: tuple[str, ...] = (*HOOKS, "ingress")
    lacks: str = ""
    word: Callable[[str], Any] = str


class Match:
    """Packets of which all that is given is true. Raises ArgumentError, also if there can be none."""

    def __init__(self, **given: Any) -> None:
        self._values: dict[str, Any] = {}
        for name, criterion in CRITERIA.items():
            if given.get(name) is not None:
                self._values[name] = criterion.read(name, given[name])
        self._check_ports()
        if "mark" in self._values and self._values["mark"] == self._values.get("not_mark"):
            raise ArgumentError(f"mark and not_mark are both {self._values['mark']:#x}: no packet matches")
        self.version = self._only_version()

    def _check_ports(self) -> None:
        protocol = self._values.get("protocol")
        for name in ("source_port", "destination_port"):
            if name in self._values:
                if protocol is None or not protocol.has_ports:
                    raise ArgumentError(f"{name} needs protocol to be 'tcp', 'udp' or 'sctp'")
                self._values[name] = self._values[name]._replace(protocol=protocol.name)

    def _only_version(self) -> int | None:
        """4 or 6 if something says so."""
        found: dict[str, int] = {}
        for name in ("source", "destination", "protocol"):
            value = self._values.get(name)
            if value is not None and value.version is not None:
                found[name] = value.version
        if len(set(found.values())) > 1:
            if "protocol" not in found:
                raise ArgumentError("source and destination must both be IPv4 or both be IPv6")
            protocol = self._values["protocol"]
            raise ArgumentError(
                f"protocol {protocol.name} is found in IPv{protocol.version} only, and does not go with the addresses"
            )
        return next(iter(found.values()), None)

    def check_place(self, family: str, hook: str, priority: int) -> None:
        """Raises ArgumentError if no packet matches there."""
        if self.version is not None and family == ("ip6" if self.version == 4 else "ip"):
            what = f"IPv{self.version} addresses do"
            if "source" not in self._values and "destination" not in self._values:
                what = f"protocol {self._values['protocol'].name} is found in IPv{self.version} only, and does"
            raise ArgumentError(f"{what} not go with family {family!r}")
        for name in self._values:
            hooks = [at for at in CRITERIA[name].hooks if (family, at, name) not in _NEVER]
            if hook not in hooks:
                place = f"the hook {hook!r}" + (" of a bridge" if family == "bridge" else "")
                others = ", ".join(at for at in hooks if at != "ingress" or family == "inet")
                raise ArgumentError(
                    f"{name} never matches at {place}, where no {CRITERIA[name].lacks} is known: it is for the hooks"
                    f" {others}"
                )
        # At output a bridge sees packets that the IP layer has tracked.
        tracked = ("prerouting",) if family == "bridge" else ("prerouting", "output")
        if "state" in self._values and hook in tracked and priority <= _TRACKED_AT:
            raise ArgumentError(
                f"priority is {priority} and must be above {_TRACKED_AT} for state: that is where, at the hook"
                f" {hook!r}, connection tracking looks at packets"
            )

    def has(self, name: str) -> bool:
        """Whether an argument is given."""
        return name in self._values

    def interfaces(self) -> Iterator[str]:
        """Names of interfaces that must exist."""
        for name in ("in_interface", "out_interface"):
            if name in self._values and not self._values[name].endswith("*"):
                yield self._values[name]

    def expressions(self, family: str) -> Iterator[Expression]:
        """What lets packets through to the end of the rule, in a table of the family."""
        if self.version is not None:
            yield from _of_version(self.version, family)
        for name, value in self._values.items():
            yield from CRITERIA[name].expressions(value)

    def nft(self, family: str) -> list[str]:
        """The same in nft's words. Raises NoWordsError."""
        words = {name: CRITERIA[name].nft(value) for name, value in self._values.items()}
        if "source_port" in words or "destination_port" in words:
            del words["protocol"]  # "tcp dport 80" says it
        if self.version is not None and "source" not in words and "destination" not in words:
            if family == "inet":
                words = {"version": f"meta nfproto ipv{self.version}", **words}
            elif family in ("bridge", "netdev"):
                words = {"version": f"meta protocol {'ip' if self.version == 4 else 'ip6'}", **words}
        return list(words.values())

    def iptables(self) -> list[str]:
        """The same in iptables' words, quoted for the shell. Raises NoWordsError."""
        return [CRITERIA[name].iptables(value) for name, value in self._values.items()]


# --- expressions, and words of a command line


def be32(number: int) -> bytes:
    """Numbers in attributes of nf_tables."""
    return number.to_bytes(4, "big")


def _host32(number: int) -> bytes:
    """Numbers in its registers."""
    return number.to_bytes(4, netlink.HOST)


def _value(data: bytes) -> bytes:
    return build_attribute(1, data)  # NFTA_DATA_VALUE


def _meta(key: int, value: bytes, operator: int = _EQUAL) -> Iterator[Expression]:
    yield "meta", {1: be32(_REGISTER), 2: be32(key)}
    yield _compare(value, operator)


def _compare(value: bytes, operator: int = _EQUAL) -> Expression:
    return "cmp", {1: be32(_REGISTER), 2: be32(operator), 3: _value(value)}


def _payload(base: int, offset: int, length: int) -> Expression:
    return "payload", {1: be32(_REGISTER), 2: be32(base), 3: be32(offset), 4: be32(length)}


def _masked(mask: bytes) -> Expression:
    values = {4: _value(mask), 5: _value(bytes(len(mask)))}
    return "bitwise", {1: be32(_REGISTER), 2: be32(_REGISTER), 3: be32(len(mask)), **values}


def _number(text: str) -> int:
    """A number on a command line. Raises ArgumentError."""
    try:
        return int(text, 0)
    except ValueError:
        raise ArgumentError(f"{text!r} is no number") from None


def _number_or_name(text: str) -> int | str:
    return _number(text) if text.isdecimal() else text


def _of_version(version: int, family: str) -> Iterator[Expression]:
    if family == "inet":
        yield from _meta(_META_NFPROTO, bytes([socket.AF_INET if version == 4 else socket.AF_INET6]))
    elif family in ("bridge", "netdev"):
        yield from _meta(_META_PROTOCOL, bytes.fromhex("0800" if version == 4 else "86dd"))


# --- protocols


class _Protocol(NamedTuple):
    number: int
    name: str
    version: int | None = None
    """4 or 6 if packets of the other one cannot have it."""

    @property
    def has_ports(self) -> bool:
        return self.name in ("tcp", "udp", "sctp")


_PROTOCOLS = {
    "icmp": _Protocol(socket.IPPROTO_ICMP, "icmp", 4),
    "tcp": _Protocol(socket.IPPROTO_TCP, "tcp"),
    "udp": _Protocol(socket.IPPROTO_UDP, "udp"),
    "icmpv6": _Protocol(socket.IPPROTO_ICMPV6, "icmpv6", 6),
    "sctp": _Protocol(socket.IPPROTO_SCTP, "sctp"),
}
# In IPv6 these are the numbers of headers that the kernel skips to find the protocol (net/ipv6/exthdrs_core.c).
_SKIPPED = (0, 43, 44, 60)


def _read_protocol(name: str, value: Any) -> _Protocol:
    if isinstance(value, str):
        check_choice(name, value, tuple(_PROTOCOLS))
        return _PROTOCOLS[value]
    number = check(name, value, 0, 0xFF, what=f"a number or one of {', '.join(map(repr, _PROTOCOLS))}")
    for known in _PROTOCOLS.values():
        if (known.number, known.version) == (number, None):
            return known
    return _Protocol(number, str(number), 4 if number in _SKIPPED else None)


def _iptables_protocol(protocol: _Protocol) -> str:
    if protocol.number == 0:
        raise NoWordsError("protocol 0, which there means every protocol")
    return f"-p {protocol.name}"


# --- addresses


def _read_network(name: str, value: Any) -> Network:
    what = f"{name} must be an address or a network"
    if not isinstance(value, (str, ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network,
                              ipaddress.IPv6Network)):  # fmt: skip
        raise wrong_type(name, value, "an address or a network, as text or of the module ipaddress")
    if "%" in str(value):
        raise ArgumentError(f"{what} without a zone: name the interface by in_interface or out_interface")
    try:
        return ipaddress.ip_network(value)
    except ValueError as error:
        raise ArgumentError(f"{what}: {error}") from None


def _in_network(network: Network, place: int) -> Iterator[Expression]:
    size = 4 if network.version == 4 else 16
    yield _payload(_NETWORK_HEADER, (12 if network.version == 4 else 8) + place * size, size)
    if network.prefixlen < size * 8:
        yield _masked(network.netmask.packed)
    yield _compare(network.network_address.packed)


def _network_text(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _address(place: int, nft: str, iptables: str) -> Criterion:
    return Criterion(
        read=_read_network,
        expressions=lambda network: _in_network(network, place),
        nft=lambda network: f"{'ip' if network.version == 4 else 'ip6'} {nft} {_network_text(network)}",
        iptables=lambda network: f"{iptables} {_network_text(network)}",
    )


# --- ports


class _Ports(NamedTuple):
    first: int
    last: int
    protocol: str = ""

    def text(self, separator: str) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}{separator}{self.last}"


def _read_ports(name: str, value: Any) -> _Ports:
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if not _is_number(first) or not _is_number(last if dash else first):
            raise ArgumentError(f"{name} is {value!r} and must be a port, or two like 1024-2047")
        if dash and int(first) > int(last):
            raise ArgumentError(f"{name} is {value!r}, which ends before it begins")
        value = range(int(first), int(last if dash else first) + 1)
    if not isinstance(value, range):
        what = "a port, a range of ports, or text like '1024-2047' (several others take a rule each)"
        port = check(name, value, 0, 0xFFFF, what=what)
        value = range(port, port + 1)
    if value.step != 1 or not value:
        raise ArgumentError(f"{name} is {value} and must be a port, or a range of them without gaps")
    return _Ports(check(name, value[0], 0, 0xFFFF), check(name, value[-1], 0, 0xFFFF))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # Python refuses to read numbers of more than 4,300 digits


def _between(ports: _Ports, offset: int) -> Iterator[Expression]:
    yield _payload(_TRANSPORT_HEADER, offset, 2)
    if ports.first == ports.last:
        yield _compare(ports.first.to_bytes(2, "big"))
    else:
        yield _compare(ports.first.to_bytes(2, "big"), _GREATER_OR_EQUAL)
        yield _compare(ports.last.to_bytes(2, "big"), _LESS_OR_EQUAL)


def _port(offset: int, word: str) -> Criterion:
    return Criterion(
        read=_read_ports,
        expressions=lambda ports: _between(ports, offset),
        nft=lambda ports: f"{ports.protocol} {word} {ports.text('-')}",
        iptables=lambda ports: f"--{word} {ports.text(':')}",
    )


# --- interfaces

# No name has these (dev_valid_name in net/core/dev.c): white space, which for the kernel is Latin-1, and two others.
_NEVER_IN_NAMES = b"\0\t\n\v\f\r \xa0/:"


def _read_interface(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_type(name, value, _NAME)
    try:
        data = os.fsencode(value)
    except UnicodeEncodeError:  # surrogates that no file name gives
        data = b""
    if not 0 < len(data) < _IFNAMSIZ or value in ("*", ".", "..") or any(byte in _NEVER_IN_NAMES for byte in data):
        raise ArgumentError(
            f"{name} is {value!r} and must be the name of an interface, at most 15 bytes, or begin one: eth*"
        )
    return value


def _by_name(key: int, name: str) -> Iterator[Expression]:
    data = os.fsencode(name)
    yield from _meta(key, data[:-1] if data.endswith(b"*") else data.ljust(_IFNAMSIZ, b"\0"))


def check_words(what: str, text: str, without: str = "") -> None:
    """Raises NoWordsError if ``text`` is not one line, or has one of the characters ``without``."""
    if not text.isprintable():
        raise NoWordsError(f"{what} with characters that cannot be printed")
    for character in without:
        if character in text:
            raise NoWordsError(f"{what} with {character} in it")


_NAME = "the name of an interface"


def nft_interface(name: str) -> str:
    """The name of an interface, or how it begins, for nft, where \\* is a letter. Raises NoWordsError."""
    check_words(_NAME, name, '"')
    if name.endswith("\\*"):
        raise NoWordsError("names of interfaces that begin so, for \\* is a letter there")
    return f'"{name}"'


def _iptables_interface(name: str) -> str:
    check_words(_NAME, name)
    if name.endswith("*"):
        return shlex.quote(f"{name[:-1]}+")
    if name.endswith("+"):
        raise NoWordsError(f"the interface {name}, which there means all whose names begin so")
    return shlex.quote(name)


def _interface(key: int, nft: str, iptables: str, hooks: tuple[str, ...], lacks: str) -> Criterion:
    return Criterion(
        read=_read_interface,
        expressions=lambda name: _by_name(key, name),
        nft=lambda name: f"{nft} {nft_interface(name)}",
        iptables=lambda name: f"{iptables} {_iptables_interface(name)}",
        hooks=hooks,
        lacks=lacks,
    )


# --- marks


def _read_mark(name: str, value: Any) -> int:
    return check(name, value, 0, 0xFFFFFFFF)


def _mark(operator: int, nft: str, iptables: str) -> Criterion:
    return Criterion(
        read=_read_mark,
        expressions=lambda mark: _meta(_META_MARK, _host32(mark), operator),
        nft=lambda mark: f"{nft} {mark:#x}",
        iptables=lambda mark: f"{iptables} {mark:#x}",
        word=_number,
    )


# --- connections


class _State(IntFlag):
    """What connection tracking says of a packet (NF_CT_STATE_BIT in linux/netfilter/nf_conntrack_common.h)."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64

    def text(self) -> str:
        return ",".join(name for name, member in _State.__members__.items() if member in self)


def _read_state(name: str, value: Any) -> _State:
    choices = tuple(member.lower() for member in _State.__members__)
    state = _State(0)
    if not isinstance(value, Iterable):
        raise wrong_type(name, value, f"one of {', '.join(map(repr, choices))}, or several of them")
    for one in [value] if isinstance(value, str) else value:
        check_choice(name, one, choices)
        state |= _State[one.upper()]
    if not state:
        raise ArgumentError("state must name at least one state")
    return state


def _in_state(state: _State) -> Iterator[Expression]:
    yield "ct", {1: be32(_REGISTER), 2: be32(_CT_STATE)}
    yield _masked(_host32(state))
    yield _compare(bytes(4), _NOT_EQUAL)


# --- users


def _read_uid(name: str, value: Any) -> int:
    if isinstance(value, str):
        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError):  # ValueError: a NUL or a surrogate in it
            raise ArgumentError(f"{name} is {value!r}, and there is no user of that name") from None
    return check(name, value, 0, 0xFFFFFFFE, what="the number of a user, or the name")


# The IP layer still knows at postrouting (since Linux 5.7) where a packet came in; a bridge does not.
_NEVER = {("bridge", "postrouting", "in_interface")}

# In the order in which packets are looked at, and words are said. Where a hook is left out the kernel was seen to
# match nothing there: see test_what_is_refused_never_matches.
CRITERIA: dict[str, Criterion] = {
    "protocol": Criterion(
        read=_read_protocol,
        expressions=lambda protocol: _meta(_META_L4PROTO, bytes([protocol.number])),
        nft=lambda protocol: f"meta l4proto {'ipv6-icmp' if protocol.name == 'icmpv6' else protocol.name}",
        iptables=_iptables_protocol,
        word=_number_or_name,
    ),
    "source": _address(0, "saddr", "-s"),
    "destination": _address(1, "daddr", "-d"),
    "source_port": _port(0, "sport"),
    "destination_port": _port(2, "dport"),
    "in_interface": _interface(
        _META_IIFNAME,
        "iifname",
        "-i",
        ("prerouting", "input", "forward", "postrouting", "ingress"),
        "incoming interface",
    ),
    "out_interface": _interface(
        _META_OIFNAME,
        "oifname",
        "-o",
        ("forward", "output", "postrouting"),
        "outgoing interface",
    ),
    "mark": _mark(_EQUAL, "meta mark", "-m mark --mark"),
    "not_mark": _mark(_NOT_EQUAL, "meta mark !=", "-m mark ! --mark"),
    "state": Criterion(
        read=_read_state,
        expressions=_in_state,
        nft=lambda state: f"ct state {state.text().lower()}",
        iptables=lambda state: f"-m conntrack --ctstate {state.text()}",
        hooks=HOOKS,
        lacks="connection",
        word=lambda text: text.split(","),
    ),
    "uid": Criterion(
        read=_read_uid,
        expressions=lambda uid: _meta(_META_SKUID, _host32(uid)),
        nft=lambda uid: f"meta skuid {uid}",
        iptables=lambda uid: f"-m owner --uid-owner {uid}",
        # At input the kernel may know the socket that will get the packet, and matches its user: not the sender's.
        hooks=("output", "postrouting"),
        lacks="local sender",
        word=_number_or_name,
    ),
}
