"""Reading IPv4 and IPv6, TCP, UDP and ICMP headers."""

from __future__ import annotations

import socket
from collections.abc import Container, Iterator
from enum import IntFlag
from typing import NamedTuple

from .._caching import lru_cache
from .._construct import Bytes, Int8ub, Int16ub, Int32ub, Struct
from ..protocol.layout import compile_struct

ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60  # IPv6 extension headers
_NO_NEXT_HEADER = 59
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION))
# RFC 8200 has a use for five. A sender could put hundreds into a packet to make it slow to read; the kernel's flow
# dissector has the same limit (MAX_FLOW_DISSECT_HDRS).
_MAX_EXTENSIONS = 15
_IPV4_FRAGMENT = 0x3FFF  # "more fragments" and the fragment offset
_HOME_ADDRESS = 201  # a destination option; with it the checksum covers another source than the header's
_JUMBO_PAYLOAD = 0xC2  # a hop-by-hop option, the length of an IPv6 packet of more than 65,575 bytes (RFC 2675)
_SOURCE_ROUTES = (131, 137)  # IPv4 options; with them the checksum covers another destination than the header's
IP_VERSIONS = {0x0800: 4, 0x86DD: 6}  # by EtherType
_VLANS = frozenset((0x8100, 0x88A8))
_VLAN_DEPTH = 8  # VLAN_MAX_DEPTH
# By IP version: the protocols with known checksums, and the offset of the checksum in the header.
CHECKSUM = {4: {ICMP: 2, TCP: 16, UDP: 6}, 6: {ICMPV6: 2, TCP: 16, UDP: 6}}

_ipv4 = Struct(
    "version" / Int8ub,  # and the header's length, in units of 4 bytes
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
read_tcp = compile_struct(_tcp).unpack_from
_read_udp = compile_struct(_udp).unpack_from
_read_icmp = compile_struct(_icmp).unpack_from
_read_ports = compile_struct(_ports).unpack_from
_NAMES = {ICMP: "ICMP", TCP: "TCP", UDP: "UDP", ICMPV6: "ICMPv6", 132: "SCTP"}
SIZES = {ICMP: _icmp.sizeof(), TCP: _tcp.sizeof(), UDP: _udp.sizeof(), ICMPV6: _icmp.sizeof()}

_inet_ntop = socket.inet_ntop
_AF_INET, _AF_INET6 = socket.AF_INET, socket.AF_INET6


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
    """An IPv4 or IPv6 header. ``protocol`` is the one after IPv6's extension headers, and ``header`` its offset."""

    version: int
    source: str
    destination: str
    protocol: int
    ttl: int
    """Time to live, the hop limit of IPv6."""
    tos: int
    """Type of service, the traffic class of IPv6: DSCP and ECN."""
    length: int
    """The length of the whole packet in bytes, from the header; see `ip` for a header with 0."""
    header: int
    fragment: bool
    """Whether it is a fragment; only the first one has the transport header."""


class Tcp(NamedTuple):
    """A TCP header and its data, as far as they were copied."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: TcpFlag
    window: int
    options: bytes
    data: bytes


class Udp(NamedTuple):
    """A UDP header and its data, as far as they were copied."""

    source_port: int
    destination_port: int
    data: bytes


class Icmp(NamedTuple):
    """An ICMP or ICMPv6 header. ``rest`` is its last four bytes: identifier and sequence number of an echo."""

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

    def __str__(self) -> str:
        """Return the flow in tcpdump's format: ``UDP 192.0.2.1.4242 > 192.0.2.2.53``."""
        name = _NAMES.get(self.protocol, f"protocol {self.protocol}")
        if self.source_port is None:
            return f"{name} {self.source} > {self.destination}"
        return f"{name} {self.source}.{self.source_port} > {self.destination}.{self.destination_port}"


class TransportHeader(NamedTuple):
    """The transport layer of a packet: ``protocol`` (6 TCP, 17 UDP), and the offsets of its header and its data."""

    protocol: int
    header: int
    data: int


class Upper(NamedTuple):
    """The layer after the IP header."""

    protocol: int
    header: int
    fragment: int  # 0 if not a fragment; otherwise the field with "more fragments" and the offset
    beginning: bool  # whether the packet has the transport header; False for later fragments
    rerouted: bool  # whether the checksum covers another address than the header's; False without ``routing``
    whole: bool  # whether all headers before this layer were copied


def upper_of(packet: bytes, routing: bool = False) -> Upper | None:
    """Return the layer after the IP header; options and routing headers are read only with ``routing``."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        header = (packet[0] & 0xF) * 4
        if header < 20:
            return None
        fragment = (packet[6] << 8 | packet[7]) & _IPV4_FRAGMENT
        rerouted = routing and header > 20 and _is_source_routed(packet[20:header])
        return Upper(packet[9], header, fragment, not fragment & 0x1FFF, rerouted, len(packet) >= header)
    if version != 6 or len(packet) < 40:
        return None
    protocol, header = packet[6], 40
    fragment, beginning, rerouted = 0, True, False
    left = _MAX_EXTENSIONS
    while protocol in _EXTENSIONS and beginning:
        if len(packet) < header + 8 or not left:
            return Upper(protocol, header, fragment, beginning, rerouted, False)
        left -= 1
        size = (packet[header + 1] + 1) * 8
        if protocol == _FRAGMENT:
            size = 8
            field = packet[header + 2] << 8 | packet[header + 3]
            fragment, beginning = field & 0xFFF9, not field & 0xFFF8
        elif not routing:
            pass
        elif protocol == _ROUTING:
            rerouted |= packet[header + 3] != 0  # segments left
        elif protocol == _DESTINATION:
            rerouted |= _has_home_address(packet[header + 2 : header + size])
        protocol, header = packet[header], header + size
    return Upper(protocol, header, fragment, beginning, rerouted, len(packet) >= header)


def _is_source_routed(options: bytes) -> bool:
    place = 0
    while place < len(options) and options[place]:
        if options[place] in _SOURCE_ROUTES:
            return True
        place += 1 if options[place] == 1 else max(options[place + 1] if place + 1 < len(options) else 2, 2)
    return False


def _has_home_address(options: bytes) -> bool:
    return any(kind == _HOME_ADDRESS for kind, _ in _options(options))


def _options(options: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and data of the options in an IPv6 extension header; empty data for one longer than the header."""
    place = 0
    while place < len(options):
        size = 1 if options[place] == 0 else 2 + (options[place + 1] if place + 1 < len(options) else 0)
        yield options[place], options[place + 2 : place + size] if place + size <= len(options) else b""
        place += size


def jumbo_length(packet: bytes) -> int | None:
    """Return the length in the jumbo payload option of an IPv6 packet, valid if the header has 0; None without one."""
    if packet[6] != _HOP_BY_HOP or len(packet) < 48:
        return None
    for kind, data in _options(packet[42 : 40 + (packet[41] + 1) * 8]):
        if kind == _JUMBO_PAYLOAD and len(data) == 4:
            return int.from_bytes(data, "big")
    return None


def ip_in(frame: bytes, ethertype: int, header: int = 0) -> bytes:
    """Return the IP packet in a frame, also after VLAN tags; b"" if the EtherType is not that of IP.

    ``header`` is the size of the link-layer header in bytes, and ``ethertype`` the kernel's EtherType for the rest.
    """
    if header and ethertype in _VLANS:
        ethertype = int.from_bytes(frame[header - 2 : header], "big")  # the tag can be in the header
    frame = frame[header:]
    for _ in range(_VLAN_DEPTH):
        if ethertype not in _VLANS:
            break
        ethertype, frame = int.from_bytes(frame[2:4], "big"), frame[4:]
    return frame if frame and frame[0] >> 4 == IP_VERSIONS.get(ethertype) else b""


def protocol(packet: bytes) -> int | None:
    """Return the protocol number of an IP packet (6 TCP, 17 UDP, ...), after IPv6's extension headers; None if unknown.

    Only the IP headers are read: the transport header can be invalid, or missing as in a later fragment.
    """
    upper = upper_of(packet)
    return None if upper is None or (upper.protocol in _EXTENSIONS and packet[0] >> 4 == 6) else upper.protocol


def ip(packet: bytes, length: int | None = None) -> Ip | None:
    """Return the IP header.

    A length of 0 in it means "as long as the packet": super-packets of more than 65,535 bytes have it (BIG TCP), and
    packets that a machine captured before its network card filled in the length. ``length`` is the size of the packet
    in bytes, if only its beginning was copied.
    """
    upper = upper_of(packet)
    if upper is None or not upper.whole:
        return None
    if packet[0] >> 4 == 4:
        _, tos, said, _, _, ttl, number, _, source, destination = _read_ipv4(packet)
        addresses = _inet_ntop(_AF_INET, source), _inet_ntop(_AF_INET, destination)
        end = said or end_of(packet, length)
        return Ip(4, *addresses, number, ttl, tos, end, upper.header, bool(upper.fragment))
    first, said, _, ttl, source, destination = _read_ipv6(packet)
    addresses = _inet_ntop(_AF_INET6, source), _inet_ntop(_AF_INET6, destination)
    tos, end = first >> 20 & 0xFF, 40 + said if said else end_of(packet, length)
    return Ip(6, *addresses, upper.protocol, ttl, tos, end, upper.header, bool(upper.fragment))


WITH_PORTS = frozenset((TCP, UDP, 33, 132, 136))


def flow(packet: bytes) -> Flow | None:
    """Return the five-tuple of an IP packet."""
    size = len(packet)
    # The common case, without calls: the ports follow the IP header directly, and its length includes them.
    first = packet[0] if size >= 24 else 0
    if first == 0x45 and not (packet[6] << 8 | packet[7]) & 0x1FFF and (packet[2] or packet[3] >= 24):
        number, header = packet[9], 20
    elif first >> 4 == 6 and size >= 44 and packet[6] in WITH_PORTS and (packet[4] or packet[5] >= 4):
        number, header = packet[6], 40
    else:
        upper = upper_of(packet)
        if upper is None or not upper.whole:
            return None
        number, header = upper.protocol, upper.header
        size = min(size, end_of(packet)) if upper.beginning else 0
    ports = _read_ports(packet, header) if number in WITH_PORTS and size >= header + 4 else (None, None)
    if packet[0] >> 4 == 4:
        source, destination = _inet_ntop(_AF_INET, packet[12:16]), _inet_ntop(_AF_INET, packet[16:20])
    else:
        source, destination = _inet_ntop(_AF_INET6, packet[8:24]), _inet_ntop(_AF_INET6, packet[24:40])
    return Flow(number, source, ports[0], destination, ports[1])


def where_is(packet: bytes, *protocols: int) -> TransportHeader | None:
    """Return the offsets of header and data of one of the protocols, if the complete header was copied."""
    return where_in(packet, upper_of(packet), protocols)


def where_in(packet: bytes, upper: Upper | None, protocols: Container[int]) -> TransportHeader | None:
    """Like `where_is`, with a known `Upper`."""
    if upper is None or upper.protocol not in protocols or not upper.beginning:
        return None
    header = upper.header
    end = min(len(packet), end_of(packet))
    data = header + SIZES[upper.protocol]
    if upper.protocol == TCP and data <= end:
        data = header + max(packet[header + 12] >> 4, 5) * 4
    return TransportHeader(upper.protocol, header, data) if data <= end else None


def usual_transport(packet: bytes) -> tuple[int, int, int, int] | None:
    """Return the protocol of a whole TCP or UDP packet, and the offsets of its header, its data and its end.

    None for packets that take longer to read: with IPv4 options, IPv6 extension headers, fragments, no length, and all
    that are not whole.
    """
    size = len(packet)
    first = packet[0] if size >= 28 else 0
    if first == 0x45 and not (packet[6] << 8 | packet[7]) & _IPV4_FRAGMENT:
        number, header, end = packet[9], 20, packet[2] << 8 | packet[3]
    elif first >> 4 == 6 and size >= 48:
        number, header, end = packet[6], 40, 40 + (packet[4] << 8 | packet[5])
    else:
        return None
    if number == UDP:
        data = header + 8
    elif number == TCP and size >= header + 20:
        data = header + max(packet[header + 12] >> 4, 5) * 4
    else:
        return None
    return (number, header, data, end) if data <= end <= size else None


@lru_cache(256)
def _names_of(flags: int) -> str:
    return ".".join(flag.name or "" for flag in TcpFlag if flag in TcpFlag(flags))


def describe(packet: bytes, length: int | None = None) -> str | None:
    """Describe an IP packet: flow, TCP flags or ICMP type, and length. The argument ``length`` is as for `ip`.

    ``TCP 192.0.2.1.40000 > 192.0.2.2.80 [SYN] 40 bytes``; None if it is not an IP packet.
    """
    header, five_tuple = ip(packet, length), flow(packet)
    if header is None or five_tuple is None:
        return None
    text = str(five_tuple)
    number = five_tuple.protocol
    if number == TCP and (where := where_is(packet, TCP)) is not None:
        text += f" [{_names_of(packet[where.header + 13])}]"
    elif number in (ICMP, ICMPV6) and (message := icmp(packet)) is not None:
        text += f" type {message.type} code {message.code}"
    return f"{text} {header.length} bytes{' (fragment)' if header.fragment else ''}"


def tcp(packet: bytes) -> Tcp | None:
    """Return the TCP header of an IP packet; also of a first fragment."""
    where = where_is(packet, TCP)
    if where is None:
        return None
    source, destination, seq, ack, _, flags, window, _, _ = read_tcp(packet, where.header)
    options = packet[where.header + SIZES[TCP] : where.data]
    return Tcp(source, destination, seq, ack, TcpFlag(flags), window, options, packet[where.data : end_of(packet)])


def udp(packet: bytes) -> Udp | None:
    """Return the UDP header of an IP packet; also of a first fragment."""
    where = where_is(packet, UDP)
    if where is None:
        return None
    source, destination, length, _ = _read_udp(packet, where.header)
    end = min(end_of(packet), where.header + length) if length else end_of(packet)
    return Udp(source, destination, packet[where.data : end])


def icmp(packet: bytes) -> Icmp | None:
    """Return the ICMP header of an IPv4 packet, or the ICMPv6 header of an IPv6 packet; also of a first fragment."""
    where = where_is(packet, ICMP if packet and packet[0] >> 4 == 4 else ICMPV6)
    if where is None:
        return None
    kind, code, _, rest = _read_icmp(packet, where.header)
    return Icmp(kind, code, rest, packet[where.data : end_of(packet)])


def transport(packet: bytes) -> TransportHeader | None:
    """Find the TCP or UDP header of an IP packet; None if that is missing or incomplete, or for a fragment."""
    upper = upper_of(packet)
    return None if upper is None or upper.fragment else where_is(packet, TCP, UDP)


def get_data(packet: bytes) -> bytes | None:
    """Return the data of a TCP or UDP packet; None for other packets."""
    where = transport(packet)
    if where is None:
        return None
    end = end_of(packet)
    if where.protocol == UDP and (length := int.from_bytes(packet[where.header + 4 : where.header + 6], "big")):
        end = min(end, where.header + length)
    return packet[where.data : end]


def end_of(packet: bytes, length: int | None = None) -> int:
    """Return the offset of the packet's end according to its header; link layers can add padding.

    If the header has 0, the packet ends where the bytes end, or at ``length`` if they are only its beginning.
    """
    if packet[0] >> 4 == 4:
        said = int.from_bytes(packet[2:4], "big")
    elif said := int.from_bytes(packet[4:6], "big"):
        said += 40
    elif packet[6] == _NO_NEXT_HEADER:
        said = 40  # the packet is only a header, so 0 is the correct length of the rest
    elif (jumbo := jumbo_length(packet) or 0) > 0xFFFF:  # others are invalid
        said = 40 + jumbo
    return said or (len(packet) if length is None else length)
