"""What is inside a packet: IPv4 and IPv6, TCP, UDP and ICMP; read it, and change it so that a receiver takes it.

For handlers that look and change: the kernel takes a replacement as it is, and mends neither lengths nor checksums.
All of this works on plain bytes, from the IP header on: ``packet.payload`` of a queue or a log. Readers return None for
bytes that are no such packet, or have not the whole header of it.
"""

from __future__ import annotations

import socket
from enum import IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from construct import Bytes, Int8ub, Int16ub, Int32ub, Struct

from .checks import check
from .errors import ArgumentError
from .protocol.layout import compile_struct

_MAX_PACKET = 0xFFFF
_ICMP, _TCP, _UDP, _ICMPV6 = 1, 6, 17, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60  # IPv6 extension headers
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION))
_IPV4_FRAGMENT = 0x3FFF  # "more fragments" and the fragment offset
_HOME_ADDRESS = 201  # a destination option, under which it covers another source
_SOURCE_ROUTES = (131, 137)  # IPv4 options under which the checksum covers another destination than the header's
# What may go to another address although nothing here mends it: addresses are in no checksum of theirs.
_WITHOUT_ADDRESSES = frozenset((2, 4, 41, 47, 50, 132))  # IGMP, IPv4, IPv6, GRE, ESP, SCTP
# By IP version, whose checksums are known here, and where they are in the header.
_CHECKSUM = {4: {_ICMP: 2, _TCP: 16, _UDP: 6}, 6: {_ICMPV6: 2, _TCP: 16, _UDP: 6}}

_ipv4 = Struct(
    "version" / Int8ub,  # and the header's length, in 4 bytes
    "tos" / Int8ub,
    "length" / Int16ub,
    "id" / Int16ub,
    "fragment" / Int16ub,
    "ttl" / Int8ub,
    "protocol" / Int8ub,
    "checksum" / Int16ub,
    "source" / Bytes(4),
    "destination" / Bytes(4),
)
_ipv6 = Struct(
    "version" / Int32ub,  # and traffic class and flow label
    "length" / Int16ub,
    "protocol" / Int8ub,
    "ttl" / Int8ub,
    "source" / Bytes(16),
    "destination" / Bytes(16),
)
_tcp = Struct(
    "source_port" / Int16ub,
    "destination_port" / Int16ub,
    "seq" / Int32ub,
    "ack" / Int32ub,
    "offset" / Int8ub,
    "flags" / Int8ub,
    "window" / Int16ub,
    "checksum" / Int16ub,
    "urgent" / Int16ub,
)
_ports = Struct("source_port" / Int16ub, "destination_port" / Int16ub)
_udp = Struct("source_port" / Int16ub, "destination_port" / Int16ub, "length" / Int16ub, "checksum" / Int16ub)
_icmp = Struct("type" / Int8ub, "code" / Int8ub, "checksum" / Int16ub, "rest" / Bytes(4))

_read_ipv4 = compile_struct(_ipv4).unpack_from
_read_ipv6 = compile_struct(_ipv6).unpack_from
_read_tcp = compile_struct(_tcp).unpack_from
_read_udp = compile_struct(_udp).unpack_from
_read_icmp = compile_struct(_icmp).unpack_from
_read_ports = compile_struct(_ports).unpack_from
_SIZES = {_ICMP: _icmp.sizeof(), _TCP: _tcp.sizeof(), _UDP: _udp.sizeof(), _ICMPV6: _icmp.sizeof()}

_inet_ntop = socket.inet_ntop
_AF_INET, _AF_INET6 = socket.AF_INET, socket.AF_INET6

Address = str | IPv4Address | IPv6Address


class TcpFlag(IntFlag):
    """The control bits of TCP."""

    FIN = 0x01
    SYN = 0x02
    RST = 0x04
    PSH = 0x08
    ACK = 0x10
    URG = 0x20
    ECE = 0x40
    CWR = 0x80


class Ip(NamedTuple):
    """An IPv4 or IPv6 header. ``protocol`` is that behind IPv6's extension headers, and ``header`` where it begins."""

    version: int
    source: str
    destination: str
    protocol: int
    ttl: int
    """Time to live, the hop limit of IPv6."""
    tos: int
    """Type of service, the traffic class of IPv6: DSCP and ECN."""
    length: int
    """Of the whole packet in bytes, as the header says."""
    header: int
    fragment: bool
    """Whether it is a fragment; only the first one has the header of TCP, say."""


class Tcp(NamedTuple):
    """A TCP header, and what it carries, as far as it was copied."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: TcpFlag
    window: int
    options: bytes
    data: bytes


class Udp(NamedTuple):
    """A UDP header, and what it carries, as far as it was copied."""

    source_port: int
    destination_port: int
    data: bytes


class Icmp(NamedTuple):
    """An ICMP or ICMPv6 header: ``rest`` are its last four bytes, identifier and sequence number of an echo."""

    type: int
    code: int
    rest: bytes
    data: bytes


class Flow(NamedTuple):
    """The five-tuple; ports are None for other protocols than TCP, UDP, UDP-Lite, SCTP and DCCP, and for fragments."""

    protocol: int
    source: str
    source_port: int | None
    destination: str
    destination_port: int | None


class Transport(NamedTuple):
    """Where the transport layer of a packet is: ``protocol`` (6 TCP, 17 UDP), offsets of its header and its data."""

    protocol: int
    header: int
    data: int


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of the bytes, 16 bits, as it goes into a header in network byte order."""
    if len(data) % 2:
        data += b"\0"
    # Read as one long number: 2^16 is 1 modulo 2^16-1, so the remainder is the one's complement sum of its words.
    total = int.from_bytes(data, "big")
    return ~(total % 0xFFFF or (0xFFFF if total else 0)) & 0xFFFF


# --- reading


class _Upper(NamedTuple):
    """What is behind the IP header."""

    protocol: int
    header: int
    fragment: int  # 0 for none, else the field: whether more follow, and the offset
    beginning: bool  # whether the transport header is here: not in a later fragment
    rerouted: bool  # whether the checksum covers another destination than the header has
    whole: bool  # whether all headers before it are here


def _upper(packet: bytes) -> _Upper | None:
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header = (packet[0] & 0xF) * 4
        if header < 20:
            return None
        fragment = (packet[6] << 8 | packet[7]) & _IPV4_FRAGMENT
        rerouted = header > 20 and _is_source_routed(packet[20:header])
        return _Upper(packet[9], header, fragment, not fragment & 0x1FFF, rerouted, len(packet) >= header)
    if version != 6 or len(packet) < 40:
        return None
    protocol, header = packet[6], 40
    fragment, beginning, rerouted = 0, True, False
    while protocol in _EXTENSIONS and beginning:
        if len(packet) < header + 8:
            return _Upper(protocol, header, fragment, beginning, rerouted, False)
        size = (packet[header + 1] + 1) * 8
        if protocol == _FRAGMENT:
            size = 8
            field = packet[header + 2] << 8 | packet[header + 3]
            fragment, beginning = field & 0xFFF9, not field & 0xFFF8
        elif protocol == _ROUTING:
            rerouted |= packet[header + 3] != 0  # segments left
        elif protocol == _DESTINATION:
            rerouted |= _has_home_address(packet[header + 2 : header + size])
        protocol, header = packet[header], header + size
    return _Upper(protocol, header, fragment, beginning, rerouted, len(packet) >= header)


def _is_source_routed(options: bytes) -> bool:
    place = 0
    while place < len(options) and options[place]:
        if options[place] in _SOURCE_ROUTES:
            return True
        place += 1 if options[place] == 1 else max(options[place + 1] if place + 1 < len(options) else 2, 2)
    return False


def _has_home_address(options: bytes) -> bool:
    place = 0
    while place < len(options):
        if options[place] == _HOME_ADDRESS:
            return True
        place += 1 if options[place] == 0 else 2 + (options[place + 1] if place + 1 < len(options) else 0)
    return False


def protocol(packet: bytes) -> int | None:
    """What an IP packet carries, by its number (6 TCP, 17 UDP, ...), behind IPv6's extension headers; None if unknown.

    It is the header's word: nothing beyond it is looked at, and a fragment may have it without being one's beginning.
    """
    upper = _upper(packet)
    return None if upper is None or (upper.protocol in _EXTENSIONS and packet[0] >> 4 == 6) else upper.protocol


def ip(packet: bytes) -> Ip | None:
    """The IP header."""
    upper = _upper(packet)
    if upper is None or not upper.whole:
        return None
    if packet[0] >> 4 == 4:
        _, tos, length, _, _, ttl, number, _, source, destination = _read_ipv4(packet)
        addresses = _inet_ntop(_AF_INET, source), _inet_ntop(_AF_INET, destination)
        return Ip(4, *addresses, number, ttl, tos, length, upper.header, bool(upper.fragment))
    first, length, _, ttl, source, destination = _read_ipv6(packet)
    addresses = _inet_ntop(_AF_INET6, source), _inet_ntop(_AF_INET6, destination)
    tos = first >> 20 & 0xFF
    return Ip(6, *addresses, upper.protocol, ttl, tos, 40 + length, upper.header, bool(upper.fragment))


_WITH_PORTS = frozenset((_TCP, _UDP, 33, 132, 136))


def flow(packet: bytes) -> Flow | None:
    """The five-tuple of an IP packet."""
    size = len(packet)
    if size >= 24 and packet[0] == 0x45 and not (packet[6] << 8 | packet[7]) & 0x1FFF:
        number, header = packet[9], 20  # what most packets are, without the calls
    else:
        upper = _upper(packet)
        if upper is None or not upper.whole:
            return None
        number, header = upper.protocol, upper.header
        if not upper.beginning:
            size = 0
    ports = _read_ports(packet, header) if number in _WITH_PORTS and size >= header + 4 else (None, None)
    if packet[0] >> 4 == 4:
        source, destination = _inet_ntop(_AF_INET, packet[12:16]), _inet_ntop(_AF_INET, packet[16:20])
    else:
        source, destination = _inet_ntop(_AF_INET6, packet[8:24]), _inet_ntop(_AF_INET6, packet[24:40])
    return Flow(number, source, ports[0], destination, ports[1])


def _where(packet: bytes, *protocols: int) -> Transport | None:
    """Where header and data of one of the protocols are, if the whole header is there."""
    upper = _upper(packet)
    if upper is None or upper.protocol not in protocols or not upper.beginning:
        return None
    header = upper.header
    end = min(len(packet), _end(packet))
    data = header + _SIZES[upper.protocol]
    if upper.protocol == _TCP and data <= end:
        data = header + max(packet[header + 12] >> 4, 5) * 4
    return Transport(upper.protocol, header, data) if data <= end else None


def tcp(packet: bytes) -> Tcp | None:
    """The TCP header of an IP packet; also of a first fragment."""
    where = _where(packet, _TCP)
    if where is None:
        return None
    source, destination, seq, ack, _, flags, window, _, _ = _read_tcp(packet, where.header)
    options = packet[where.header + _SIZES[_TCP] : where.data]
    return Tcp(source, destination, seq, ack, TcpFlag(flags), window, options, packet[where.data : _end(packet)])


def udp(packet: bytes) -> Udp | None:
    """The UDP header of an IP packet; also of a first fragment."""
    where = _where(packet, _UDP)
    if where is None:
        return None
    source, destination, length, _ = _read_udp(packet, where.header)
    end = min(_end(packet), where.header + length) if length else _end(packet)
    return Udp(source, destination, packet[where.data : end])


def icmp(packet: bytes) -> Icmp | None:
    """The ICMP header of an IPv4 packet, or the ICMPv6 header of an IPv6 packet; also of a first fragment."""
    where = _where(packet, _ICMP if packet and packet[0] >> 4 == 4 else _ICMPV6)
    if where is None:
        return None
    kind, code, _, rest = _read_icmp(packet, where.header)
    return Icmp(kind, code, rest, packet[where.data : _end(packet)])


def transport(packet: bytes) -> Transport | None:
    """Find the TCP or UDP header of an IP packet; None if it has none, or not the whole of it, or is a fragment."""
    upper = _upper(packet)
    return None if upper is None or upper.fragment else _where(packet, _TCP, _UDP)


def get_data(packet: bytes) -> bytes | None:
    """What TCP or UDP carries in an IP packet; None if that is not what it is."""
    where = transport(packet)
    if where is None:
        return None
    end = _end(packet)
    if where.protocol == _UDP and (length := int.from_bytes(packet[where.header + 4 : where.header + 6], "big")):
        end = min(end, where.header + length)
    return packet[where.data : end]


def _end(packet: bytes) -> int:
    """Where the packet ends by its own header; link layers may have padded it."""
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4], "big")
    return 40 + int.from_bytes(packet[4:6], "big")


# --- changing


def replace_data(packet: bytes, data: bytes) -> bytes:
    """The same IP packet with other TCP or UDP data: `rewrite` with nothing else."""
    return rewrite(packet, data=data)


def rewrite(
    packet: bytes,
    *,
    data: bytes | None = None,
    source: Address | None = None,
    destination: Address | None = None,
    source_port: int | None = None,
    destination_port: int | None = None,
    ttl: int | None = None,
    tos: int | None = None,
    seq: int | None = None,
    ack: int | None = None,
    flags: TcpFlag | int | None = None,
    window: int | None = None,
) -> bytes:
    """The same IP packet with some things changed; lengths and checksums are right, whatever they were before.

    data: what TCP, UDP or ICMP carries, behind its header.
    source, destination: addresses, of the packet's family.
    source_port, destination_port: of TCP and UDP. seq, ack, flags, window: of TCP.
    ttl, tos: of IP; hop limit and traffic class of IPv6.

    Of a fragment only what is in the IP header can be changed, and ports in the first one; addresses have to be changed
    in all of them. Mind TCP: a peer that gets more or fewer bytes than were sent will disagree about sequence numbers.

    Raises ArgumentError for what is no such packet, or not the whole of it, and for what cannot be made right: data of
    a fragment, addresses under a routing header or a protocol whose checksum is not known here, a packet of more than
    65,535 bytes.
    """
    upper = _upper(packet)
    if upper is None or not upper.whole or _end(packet) > len(packet) or _end(packet) < upper.header:
        raise ArgumentError("not a whole IPv4 or IPv6 packet")
    if data is not None:
        data = bytes(memoryview(data))
    number, header, checksums = upper.protocol, upper.header, _CHECKSUM[packet[0] >> 4]
    new = bytearray(packet[: _end(packet)])
    _set_ip(new, ttl, tos)
    old_addresses = _addresses(new)
    for name, address, low in (("source", source, True), ("destination", destination, False)):
        if address is not None:
            _set_address(new, name, address, low)
    if source is not None or destination is not None:
        if upper.rerouted:
            raise ArgumentError("addresses of a packet that is routed by its own header cannot be changed")
        if number not in checksums and number not in _WITHOUT_ADDRESSES:
            raise ArgumentError(
                f"addresses cannot be changed in packets of protocol {number}, whose checksum is unknown"
            )

    fields = (
        ("source_port", source_port, 0, 2, (_TCP, _UDP)),
        ("destination_port", destination_port, 2, 2, (_TCP, _UDP)),
        ("seq", seq, 4, 4, (_TCP,)),
        ("ack", ack, 8, 4, (_TCP,)),
        ("flags", flags, 13, 1, (_TCP,)),
        ("window", window, 14, 2, (_TCP,)),
    )
    wanted = [
        (name, value, place, size, protocols) for name, value, place, size, protocols in fields if value is not None
    ]
    where = None
    if data is not None or wanted:
        where = _where(packet, *checksums)
        if where is None:
            raise ArgumentError("not a packet that begins with a whole TCP, UDP or ICMP header")
    old_header = bytes(new[header : header + _SIZES.get(number, 0)])
    for name, value, place, size, protocols in wanted:
        if number not in protocols:
            raise ArgumentError(f"{name} cannot be changed in packets of protocol {number}")
        limit = (1 << 8 * size) - 1
        new[header + place : header + place + size] = check(name, value or 0, 0, limit).to_bytes(size, "big")
    if data is not None and where is not None:
        if upper.fragment:
            raise ArgumentError("the data of a fragment cannot be replaced: its checksum covers all fragments")
        if where.data + len(data) > _MAX_PACKET + (40 if new[0] >> 4 == 6 else 0):
            raise ArgumentError(f"the packet would have {where.data + len(data)} bytes and may have {_MAX_PACKET}")
        new[where.data :] = data

    if upper.fragment:
        if upper.beginning:
            _adjust_checksum(new, number, header, old_addresses + old_header)
    elif number in checksums and len(new) >= header + _SIZES[number]:
        changed = where is not None or _addresses(new) != old_addresses
        if upper.rerouted and changed:
            raise ArgumentError("a packet that is routed by its own header cannot be given a checksum")
        if changed:
            _set_checksum(new, number, header, data is not None)
    _finish_ip(new)
    return bytes(new)


def _set_ip(packet: bytearray, ttl: int | None, tos: int | None) -> None:
    version = packet[0] >> 4
    if ttl is not None:
        packet[8 if version == 4 else 7] = check("ttl", ttl, 0, 0xFF)
    if tos is not None:
        tos = check("tos", tos, 0, 0xFF)
        if version == 4:
            packet[1] = tos
        else:
            packet[0], packet[1] = 0x60 | tos >> 4, (tos & 0xF) << 4 | packet[1] & 0xF


def _set_address(packet: bytearray, name: str, address: Address, low: bool) -> None:
    family, start, size = (_AF_INET, 12, 4) if packet[0] >> 4 == 4 else (_AF_INET6, 8, 16)
    if not isinstance(address, (str, IPv4Address, IPv6Address)):
        raise TypeError(f"{name} must be an address, not {type(address).__name__}")
    try:
        value = socket.inet_pton(family, str(address))
    except (OSError, ValueError):  # ValueError: a NUL or a surrogate in it
        raise ArgumentError(f"{name} is {str(address)!r} and must be an IPv{packet[0] >> 4} address") from None
    start += 0 if low else size
    packet[start : start + size] = value


def _addresses(packet: bytearray) -> bytes:
    return bytes(packet[12:20] if packet[0] >> 4 == 4 else packet[8:40])


def _finish_ip(packet: bytearray) -> None:
    """Length, and IPv4's own checksum."""
    if packet[0] >> 4 == 4:
        packet[2:4] = len(packet).to_bytes(2, "big")
        packet[10:12] = b"\0\0"
        packet[10:12] = checksum(bytes(packet[: (packet[0] & 0xF) * 4])).to_bytes(2, "big")
    else:
        packet[4:6] = (len(packet) - 40).to_bytes(2, "big")


def _set_checksum(packet: bytearray, number: int, header: int, resized: bool) -> None:
    """The checksum of the transport layer, and UDP's length."""
    size = len(packet) - header
    if number == _UDP:
        said = int.from_bytes(packet[header + 4 : header + 6], "big")
        if not resized and _SIZES[_UDP] <= said < size:
            size = said  # what is behind it is not UDP's, and stays as it is
        packet[header + 4 : header + 6] = size.to_bytes(2, "big")
    place = header + _CHECKSUM[packet[0] >> 4][number]
    packet[place : place + 2] = b"\0\0"
    pseudo_header = b"" if number == _ICMP else _addresses(packet) + size.to_bytes(4, "big") + number.to_bytes(4, "big")
    _put_checksum(packet, number, place, checksum(pseudo_header + bytes(packet[header : header + size])))


def _adjust_checksum(packet: bytearray, number: int, header: int, old: bytes) -> None:
    """The checksum of a first fragment, from what changed (RFC 1624): the rest of what it covers is elsewhere."""
    if (
        number not in _CHECKSUM[packet[0] >> 4]
        or _addresses(packet) + bytes(packet[header : header + _SIZES[number]]) == old
    ):
        return
    if len(packet) < header + _SIZES[number]:
        raise ArgumentError("the fragment has not the whole header that holds the checksum")
    place = header + _CHECKSUM[packet[0] >> 4][number]
    before = int.from_bytes(packet[place : place + 2], "big")
    if number == _UDP and not before:
        return  # it has none
    new = _addresses(packet) + bytes(packet[header : header + _SIZES[number]])
    if number == _ICMP:  # does not cover addresses
        skip = len(_addresses(packet))
        old, new = old[skip:], new[skip:]
    # ~(~before + ~old + new), where `checksum` is the complement of a sum.
    total = (~before & 0xFFFF) + checksum(old) + (~checksum(new) & 0xFFFF)
    _put_checksum(packet, number, place, ~(total % 0xFFFF or (0xFFFF if total else 0)) & 0xFFFF)


def _put_checksum(packet: bytearray, number: int, place: int, value: int) -> None:
    if number == _UDP and not value:
        value = 0xFFFF  # 0 stands for "no checksum"
    packet[place : place + 2] = value.to_bytes(2, "big")
