"""Which packets a rule is for: as expressions of nf_tables, and as the words of nft and iptables."""

from __future__ import annotations

import ipaddress
import os
import pwd
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from .checks import check, check_choice
from .errors import ArgumentError
from .protocol import netlink
from .protocol.layout import build_attribute

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# An expression: its name, and the data of its attributes by number (linux/netfilter/nf_tables.h).
Expression = tuple[str, dict[int, bytes]]

_PROTOCOLS = {
    "icmp": socket.IPPROTO_ICMP,
    "tcp": socket.IPPROTO_TCP,
    "udp": socket.IPPROTO_UDP,
    "icmpv6": socket.IPPROTO_ICMPV6,
    "sctp": socket.IPPROTO_SCTP,
}
_WITH_PORTS = ("tcp", "udp", "sctp")
_REGISTER = 1
_META_PROTOCOL, _META_MARK, _META_IIFNAME, _META_OIFNAME, _META_SKUID, _META_NFPROTO, _META_L4PROTO = (
    1,
    3,
    6,
    7,
    10,
    15,
    16,
)
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_EQUAL, _NOT_EQUAL, _LESS_OR_EQUAL, _GREATER_OR_EQUAL = 0, 1, 3, 5
_CT_STATE = 0
_IFNAMSIZ = 16


class State(IntFlag):
    """What connection tracking says of a packet."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8
    UNTRACKED = 64


def be32(number: int) -> bytes:
    """Numbers in attributes of nf_tables."""
    return number.to_bytes(4, "big")


def _host32(number: int) -> bytes:
    """Numbers in its registers."""
    return number.to_bytes(4, netlink.HOST)


def _value(data: bytes) -> bytes:
    return build_attribute(1, data)  # NFTA_DATA_VALUE


def _meta(key: int) -> Expression:
    return "meta", {1: be32(_REGISTER), 2: be32(key)}


def _compare(value: bytes, operator: int = _EQUAL) -> Expression:
    return "cmp", {1: be32(_REGISTER), 2: be32(operator), 3: _value(value)}


def _payload(base: int, offset: int, length: int) -> Expression:
    return "payload", {1: be32(_REGISTER), 2: be32(base), 3: be32(offset), 4: be32(length)}


def _masked(mask: bytes) -> Expression:
    values = {4: _value(mask), 5: _value(bytes(len(mask)))}
    return "bitwise", {1: be32(_REGISTER), 2: be32(_REGISTER), 3: be32(len(mask)), **values}


@dataclass(frozen=True)
class Match:
    """Packets of which all of this is true; None is true of all. See `nfnet.rules.queue`.

    Raises ArgumentError, TypeError.
    """

    protocol: str | int | None = None
    source: Any = None
    destination: Any = None
    source_port: int | range | str | None = None
    destination_port: int | range | str | None = None
    in_interface: str | None = None
    out_interface: str | None = None
    mark: int | None = None
    not_mark: int | None = None
    state: str | Iterable[str] | None = None
    uid: int | str | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__  # this class is frozen for everybody else
        set_field(self, "protocol", _protocol(self.protocol))
        for name in ("source", "destination"):
            set_field(self, name, _network(name, getattr(self, name)))
        if self.source is not None and self.destination is not None and self.source.version != self.destination.version:
            raise ArgumentError("source and destination must both be IPv4 or both be IPv6")
        for name in ("source_port", "destination_port"):
            ports = _ports(name, getattr(self, name))
            set_field(self, name, ports)
            if ports is not None and self.protocol not in _WITH_PORTS:
                raise ArgumentError(f"{name} needs protocol to be 'tcp', 'udp' or 'sctp'")
        for name in ("in_interface", "out_interface"):
            _check_interface(name, getattr(self, name))
        for name in ("mark", "not_mark"):
            if getattr(self, name) is not None:
                set_field(self, name, check(name, getattr(self, name), 0, 0xFFFFFFFF))
        set_field(self, "state", _state(self.state))
        set_field(self, "uid", _uid(self.uid))

    @property
    def version(self) -> int | None:
        """4 or 6 if an address says so."""
        address = self.source or self.destination
        return None if address is None else int(address.version)

    def interfaces(self) -> Iterator[str]:
        """Names of interfaces that must exist."""
        for name in (self.in_interface, self.out_interface):
            if name is not None and not name.endswith("*"):
                yield name

    def expressions(self, family: str) -> Iterator[Expression]:
        """What lets packets through to the end of the rule, in a table of the family."""
        if self.version is not None:
            yield from _of_version(self.version, family)
        if self.protocol is not None:
            number = _PROTOCOLS.get(self.protocol, self.protocol) if isinstance(self.protocol, str) else self.protocol
            yield _meta(_META_L4PROTO)
            yield _compare(bytes([int(number)]))
        for network, place in ((self.source, 0), (self.destination, 1)):
            if network is not None:
                yield from _in_network(network, place)
        for ports, offset in ((self.source_port, 0), (self.destination_port, 2)):
            if isinstance(ports, range):
                yield _payload(_TRANSPORT_HEADER, offset, 2)
                yield from _between(ports)
        for interface, key in ((self.in_interface, _META_IIFNAME), (self.out_interface, _META_OIFNAME)):
            if interface is not None:
                yield _meta(key)
                name = os.fsencode(interface)
                yield _compare(name[:-1] if name.endswith(b"*") else name.ljust(_IFNAMSIZ, b"\0"))
        for mark, operator in ((self.mark, _EQUAL), (self.not_mark, _NOT_EQUAL)):
            if mark is not None:
                yield _meta(_META_MARK)
                yield _compare(_host32(mark), operator)
        if isinstance(self.state, State):
            yield "ct", {1: be32(_REGISTER), 2: be32(_CT_STATE)}
            yield _masked(_host32(self.state))
            yield _compare(bytes(4), _NOT_EQUAL)
        if self.uid is not None:
            yield _meta(_META_SKUID)
            yield _compare(_host32(int(self.uid)))

    def nft(self) -> list[str]:
        """The same in nft's words."""
        words: list[str] = []
        ip = "ip6" if self.version == 6 else "ip"
        for name, network in (("saddr", self.source), ("daddr", self.destination)):
            if network is not None:
                words += [ip, name, _network_text(network)]
        if self.protocol is not None and not (self.source_port or self.destination_port):
            words += ["meta l4proto", {"icmpv6": "ipv6-icmp"}.get(str(self.protocol), str(self.protocol))]
        for name, ports in (("sport", self.source_port), ("dport", self.destination_port)):
            if isinstance(ports, range):
                words += [str(self.protocol), name, _ports_text(ports, "-")]
        for name, interface in (("iifname", self.in_interface), ("oifname", self.out_interface)):
            if interface is not None:
                words += [name, f'"{interface}"']
        if self.mark is not None:
            words += ["meta mark", f"{self.mark:#x}"]
        if self.not_mark is not None:
            words += ["meta mark !=", f"{self.not_mark:#x}"]
        if isinstance(self.state, State):
            words += ["ct state", _state_text(self.state).lower()]
        if self.uid is not None:
            words += ["meta skuid", str(self.uid)]
        return words

    def iptables(self) -> list[str]:
        """The same in iptables' words."""
        words: list[str] = []
        if self.protocol is not None:
            words += ["-p", str(self.protocol)]
        for option, network in (("-s", self.source), ("-d", self.destination)):
            if network is not None:
                words += [option, _network_text(network)]
        for option, ports in (("--sport", self.source_port), ("--dport", self.destination_port)):
            if isinstance(ports, range):
                words += [option, _ports_text(ports, ":")]
        for option, interface in (("-i", self.in_interface), ("-o", self.out_interface)):
            if interface is not None:
                words += [option, interface.replace("*", "+")]
        if self.mark is not None:
            words += ["-m mark --mark", f"{self.mark:#x}"]
        if self.not_mark is not None:
            words += ["-m mark ! --mark", f"{self.not_mark:#x}"]
        if isinstance(self.state, State):
            words += ["-m conntrack --ctstate", _state_text(self.state)]
        if self.uid is not None:
            words += ["-m owner --uid-owner", str(self.uid)]
        return words


def _of_version(version: int, family: str) -> Iterator[Expression]:
    if family in ("inet", "netdev", "bridge"):
        if family == "inet":
            yield _meta(_META_NFPROTO)
            yield _compare(bytes([socket.AF_INET if version == 4 else socket.AF_INET6]))
        else:
            yield _meta(_META_PROTOCOL)
            yield _compare(bytes.fromhex("0800" if version == 4 else "86dd"))
    elif family != ("ip" if version == 4 else "ip6"):
        raise ArgumentError(f"IPv{version} addresses do not go with family {family!r}")


def _in_network(network: Network, place: int) -> Iterator[Expression]:
    size = 4 if network.version == 4 else 16
    yield _payload(_NETWORK_HEADER, (12 if network.version == 4 else 8) + place * size, size)
    if network.prefixlen < size * 8:
        yield _masked(network.netmask.packed)
    yield _compare(network.network_address.packed)


def _between(ports: range) -> Iterator[Expression]:
    first, last = ports[0].to_bytes(2, "big"), ports[-1].to_bytes(2, "big")
    if first == last:
        yield _compare(first)
    else:
        yield _compare(first, _GREATER_OR_EQUAL)
        yield _compare(last, _LESS_OR_EQUAL)


def _protocol(value: str | int | None) -> str | int | None:
    if isinstance(value, str):
        check_choice("protocol", value, tuple(_PROTOCOLS))
        return value
    if value is None:
        return None
    number = check("protocol", value, 0, 0xFF)
    return {number: name for name, number in _PROTOCOLS.items()}.get(number, number)


def _network(name: str, value: Any) -> Network | None:
    if value is None:
        return None
    try:
        return ipaddress.ip_network(value)
    except (ValueError, IndexError) as error:  # IndexError: of an empty tuple
        raise ArgumentError(f"{name} must be an address or a network: {error}") from None


def _ports(name: str, value: int | range | str | None) -> range | None:
    if value is None:
        return None
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if not _is_number(first) or not _is_number(last if dash else first):
            raise ArgumentError(f"{name} is {value!r} and must be a port, or two like 1024-2047")
        if dash and int(first) > int(last):
            raise ArgumentError(f"{name} is {value!r}, which ends before it begins")
        value = range(int(first), int(last if dash else first) + 1)
    if not isinstance(value, range):
        port = check(name, value, 0, 0xFFFF)
        value = range(port, port + 1)
    if value.step != 1 or not value:
        raise ArgumentError(f"{name} is {value} and must be a port, or a range of them without gaps")
    check(name, value[0], 0, 0xFFFF)
    check(name, value[-1], 0, 0xFFFF)
    return value


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 20  # Python refuses to read numbers of more than 4,300 digits


def _check_interface(name: str, value: str | None) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must be the name of an interface, not {type(value).__name__}")
    try:
        size = len(os.fsencode(value))
    except UnicodeEncodeError:  # surrogates that no file name gives
        size = 0
    if not 0 < size < _IFNAMSIZ or value == "*" or any(c in value for c in '/ \t\n"\0'):
        raise ArgumentError(
            f"{name} is {value!r} and must be the name of an interface, at most 15 bytes, or begin one: eth*"
        )


def _state(value: str | Iterable[str] | None) -> State | None:
    if value is None or isinstance(value, State):
        return value
    state = State(0)
    for name in [value] if isinstance(value, str) else value:
        check_choice("state", str(name), tuple(member.lower() for member in State.__members__))
        state |= State[name.upper()]
    if not state:
        raise ArgumentError("state must name at least one state")
    return state


def _uid(value: int | str | None) -> int | None:
    if isinstance(value, str):
        try:
            return pwd.getpwnam(value).pw_uid
        except (KeyError, ValueError):  # ValueError: a NUL or a surrogate in it
            raise ArgumentError(f"uid is {value!r}, and there is no user of that name") from None
    return None if value is None else check("uid", value, 0, 0xFFFFFFFE)


def _network_text(network: Network) -> str:
    return str(network.network_address if network.prefixlen == network.max_prefixlen else network)


def _ports_text(ports: range, separator: str) -> str:
    return str(ports[0]) if len(ports) == 1 else f"{ports[0]}{separator}{ports[-1]}"


def _state_text(state: State) -> str:
    return ",".join(name for name, member in State.__members__.items() if member in state)
