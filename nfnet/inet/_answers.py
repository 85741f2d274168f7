"""Build packets that answer another one: its receiver's answer, a TCP reset, an ICMP error.

The functions take a packet as bytes from its IP header on, and return the packets to send, with correct lengths and
checksums. ``length`` is the packet's size in bytes, if only its beginning was copied (`Packet.cap_len`): sequence
numbers count all its data, however much was copied. ``broadcast`` is True if its destination is the broadcast address
of a network, which only a host in that network knows.

The packets are untrusted input. `answer` raises ArgumentError for packets that have no answer; `resets` and `refusals`
return an empty list if no notice is allowed (RFC 1122, RFC 4443), because then the packet can only be dropped.
"""

from __future__ import annotations

import os
import struct
from typing import NamedTuple

from ..errors import ArgumentError
from ._headers import (
    CHECKSUM,
    ICMP,
    ICMPV6,
    SIZES,
    TCP,
    UDP,
    TcpFlag,
    Upper,
    end_of,
    jumbo_length,
    read_tcp,
    upper_of,
    where_in,
)
from ._rewriting import finish_ip, set_checksum

_TTL = 64
_MAX_LENGTH = 0xFFFF
# TCP's initial window (RFC 6928), in segments that fit into every IPv6 path.
_SEGMENT = 1220
MAX_TCP_DATA = 10 * _SEGMENT
_TIMESTAMPS, _SIGNATURES = 8, (19, 29)  # options of TCP: RFC 7323; MD5 (RFC 2385) and AO (RFC 5925)
_WITH_PORTS = frozenset((UDP, 33, 132, 136))  # DCCP, SCTP, UDP-Lite
_FRAGMENT = 44

# Of ICMP and of ICMPv6, by IP version.
_ECHO = {4: (8, 0), 6: (128, 129)}  # request and reply
_UNREACHABLE = {4: 3, 6: 1}
_PORT_UNREACHABLE = {4: 3, 6: 4}
_PROHIBITED = {4: 13, 6: 1}  # communication administratively prohibited
_MAX_ERROR = {4: 576, 6: 1280}  # bytes of a whole error (RFC 1812, RFC 4443)
_REDIRECT_V6 = 137
# RFC 1122: unreachable, source quench, redirect, time exceeded, parameter problem. In ICMPv6, all types below 128.
_ERRORS_V4 = frozenset((3, 4, 5, 11, 12))


class _Packet(NamedTuple):
    """A packet that is to be answered."""

    data: bytes
    version: int
    source: bytes
    destination: bytes
    upper: Upper
    end: int
    """The offset of its end, which can be beyond the copied data."""
    is_unicast: bool
    """Whether it is from one host to one host, by its addresses."""

    @property
    def no_answer(self) -> str:
        """Return why the packet cannot be answered; empty if it can."""
        if not self.is_unicast:
            return "a packet to or from a multicast, broadcast or unspecified address has no answer"
        if self.upper.fragment:
            return "a fragment has no answer: connection tracking puts packets together"
        return (
            "a packet that is source-routed, or has a home address option, has no answer" if self.upper.rerouted else ""
        )


class _Segment(NamedTuple):
    """The parts of a TCP segment that are needed for an answer."""

    source_port: int
    destination_port: int
    seq: int
    ack: int
    flags: TcpFlag
    end: int
    """The sequence number after it: SYN and FIN count as one."""
    size: int
    """The size of its data in bytes."""
    options: bytes


def answer(packet: bytes, data: bytes, length: int | None = None, broadcast: bool = False) -> list[bytes]:
    """Return the packets with which the receiver would have answered ``data``.

    UDP: a datagram. ICMP and ICMPv6: the reply to an echo request. TCP: ``data`` in as many segments as needed, the
    last one with FIN, and a reset to the receiver, because it did not send them. For that the packet must contain data.
    """
    asked = _read(packet, length, broadcast)
    if asked.no_answer:
        raise ArgumentError(asked.no_answer)
    number = asked.upper.protocol
    if number == UDP:
        return [_udp_answer(asked, data)]
    if number == TCP:
        return _tcp_answer(asked, data)
    if number == (ICMP if asked.version == 4 else ICMPV6):
        return [_echo_reply(asked, data)]
    raise ArgumentError(f"only UDP, TCP and echo requests of ICMP can be answered, not protocol {number}")


def resets(packet: bytes, length: int | None = None, broadcast: bool = False) -> list[bytes]:
    """Return resets to the sender and to the receiver of a TCP segment, in this order.

    For a segment that is a reset, only the receiver gets one, because the sender has closed the connection. Raises
    ArgumentError for a packet without a complete TCP header.
    """
    asked = _read(packet, length, broadcast)
    segment = _read_segment(asked)
    if asked.is_unicast:
        return [*_reset_to_sender(asked, segment), *_resets_to_receiver(asked, segment)]
    return []


def refusals(packet: bytes, length: int | None = None, broadcast: bool = False) -> list[bytes]:
    """Return at most one notice to the sender that the packet was refused: a TCP reset, or an ICMP or ICMPv6 error.

    The error is "port unreachable" for protocols with ports, and "administratively prohibited" for others. Raises
    ArgumentError if it is not an IP packet.
    """
    asked = _read(packet, length, broadcast)
    if not asked.is_unicast or not asked.upper.beginning:
        return []
    if asked.upper.protocol != TCP:
        return _icmp_error(asked)
    is_whole = where_in(asked.data, asked.upper, (TCP,)) is not None
    return _reset_to_sender(asked, _read_segment(asked)) if is_whole else []


def mend(packet: bytes) -> bytes:
    """Return the same IP packet with correct lengths and checksums. It ends where the bytes end.

    Checksums that cannot be computed stay: those of a fragment, of a packet with a source route, and of protocols other
    than TCP, UDP, ICMP and ICMPv6. Raises ArgumentError if it is not an IP packet.
    """
    new = bytearray(packet)
    version = new[0] >> 4 if new else 0
    if version == 6 and len(new) >= 40 and jumbo_length(packet) is not None:
        raise ArgumentError("a jumbogram cannot be sent")
    header = {4: 20, 6: 40}.get(version)
    if header is None or len(new) < header:
        raise ArgumentError("not an IPv4 or IPv6 packet, from the IP header on")
    if len(new) > _MAX_LENGTH + (40 if version == 6 else 0):
        raise ArgumentError(f"the packet has {len(new)} bytes and may have {_MAX_LENGTH}")
    if version == 4 and not 20 <= (new[0] & 15) * 4 <= len(new):
        raise ArgumentError(f"the packet has an impossible IP header length: {(new[0] & 15) * 4} of {len(new)} bytes")
    finish_ip(new)
    upper = upper_of(bytes(new), routing=True)
    if upper is None or not upper.whole or upper.fragment or upper.rerouted:
        return bytes(new)
    number = upper.protocol
    if number in CHECKSUM[version] and len(new) >= upper.header + SIZES[number]:
        set_checksum(new, number, upper.header, resized=True)
    return bytes(new)


def fragments(packet: bytes, mtu: int) -> list[bytes]:
    """Return the packet in fragments of at most ``mtu`` bytes, as its sender can make them.

    Raises ArgumentError for packets that must not be fragmented: IPv4 with "don't fragment", a fragment, and IPv6 with
    extension headers.
    """
    upper = upper_of(packet)
    if upper is None or upper.fragment or (packet[0] >> 4 == 6 and upper.header != 40):
        raise ArgumentError("a fragment, or a packet with extension headers, cannot be fragmented")
    if packet[0] >> 4 == 4:
        if packet[6] & 0x40:
            raise ArgumentError("its header forbids fragmentation (DF)")
        header, extra = bytearray(packet[: upper.header]), b""
        if not header[4:6].strip(b"\0"):  # an id that identifies the fragments; 0 means none
            header[4:6] = (int.from_bytes(os.urandom(2), "big") or 1).to_bytes(2, "big")
    else:
        header = bytearray(packet[:40])
        extra = struct.pack("!BBH4s", header[6], 0, 0, os.urandom(4))
        header[6] = _FRAGMENT
    room = (mtu - len(header) - len(extra)) // 8 * 8
    if room < 8:
        raise ArgumentError(f"an MTU of {mtu} bytes has no room for it")
    data = packet[upper.header :]
    found = []
    for start in range(0, len(data), room):
        new, more = header.copy(), start + room < len(data)
        if extra:
            new += extra[:2] + (start | more).to_bytes(2, "big") + extra[4:]
        else:
            new[6:8] = (start // 8 | more << 13).to_bytes(2, "big")
        new += data[start : start + room]
        finish_ip(new)
        found.append(bytes(new))
    return found


# --- reading the packet to be answered


def _read(packet: bytes, length: int | None, broadcast: bool) -> _Packet:
    upper = upper_of(packet, routing=True)
    if upper is None or not upper.whole:
        raise ArgumentError("not an IPv4 or IPv6 packet, or not the whole of its headers")
    version = packet[0] >> 4
    if version == 4:
        source, destination = packet[12:16], packet[16:20]
        is_unicast = 0 < source[0] < 224 and destination[0] < 224
    else:
        source, destination = packet[8:24], packet[24:40]
        is_unicast = source[0] != 0xFF and source != bytes(16) and destination[0] != 0xFF
    return _Packet(packet, version, source, destination, upper, end_of(packet, length), is_unicast and not broadcast)


def _read_segment(asked: _Packet) -> _Segment:
    where = where_in(asked.data, asked.upper, (TCP,))
    if asked.upper.protocol != TCP:
        raise ArgumentError(f"only TCP has resets, and this is protocol {asked.upper.protocol}: see reject()")
    if where is None:
        raise ArgumentError("not the whole TCP header: a larger copy_range is needed")
    source_port, destination_port, seq, ack, _, bits, _, _, _ = read_tcp(asked.data, where.header)
    flags = TcpFlag(bits)
    options = asked.data[where.header + SIZES[TCP] : where.data]
    size = max(asked.end - where.data, 0)
    end = (seq + size + (TcpFlag.SYN in flags) + (TcpFlag.FIN in flags)) & 0xFFFFFFFF
    return _Segment(source_port, destination_port, seq, ack, flags, end, size, options)


def _options(options: bytes) -> list[tuple[int, bytes]]:
    """Return kind and data of the options of a TCP header, up to the first malformed one."""
    found, place = [], 0
    while place < len(options) and options[place]:
        if options[place] == 1:  # padding
            place += 1
            continue
        size = options[place + 1] if place + 1 < len(options) else 0
        if size < 2 or place + size > len(options):
            break
        found.append((options[place], options[place + 2 : place + size]))
        place += size
    return found


# --- building


def _packet(
    version: int, source: bytes, destination: bytes, protocol: int, body: bytes, *, fragment: bool = False
) -> bytes:
    """Build an IP packet. ``fragment``: whether routers can fragment it, with IPv4; with IPv6 only the sender can."""
    if version == 4:
        flags = 0 if fragment else 0x4000
        header = struct.pack("!BBHHHBBH", 0x45, 0, 0, 0, flags, _TTL, protocol, 0)
    else:
        header = struct.pack("!IHBB", 6 << 28, 0, protocol, _TTL)
    return mend(header + source + destination + body)


def _back(asked: _Packet, body: bytes, protocol: int | None = None, *, fragment: bool = False) -> bytes:
    """Build a packet from the receiver of the given one to its sender."""
    number = asked.upper.protocol if protocol is None else protocol
    return _packet(asked.version, asked.destination, asked.source, number, body, fragment=fragment)


def _udp_answer(asked: _Packet, data: bytes) -> bytes:
    if where_in(asked.data, asked.upper, (UDP,)) is None:
        raise ArgumentError("not the whole UDP header: a larger copy_range is needed")
    ports = asked.data[asked.upper.header : asked.upper.header + 4]
    _check_size(asked, data, SIZES[UDP])
    return _back(asked, ports[2:] + ports[:2] + bytes(4) + data, fragment=True)


def _echo_reply(asked: _Packet, data: bytes) -> bytes:
    request, reply = _ECHO[asked.version]
    where = where_in(asked.data, asked.upper, (asked.upper.protocol,))
    kind = None if where is None else asked.data[where.header]
    if where is None or kind != request:
        raise ArgumentError(f"of ICMP only an echo request can be answered, not type {kind}")
    _check_size(asked, data, where.data - where.header)
    return _back(asked, bytes((reply, 0, 0, 0)) + asked.data[where.header + 4 : where.data] + data, fragment=True)


def _check_size(asked: _Packet, data: bytes, header: int) -> None:
    most = _MAX_LENGTH - header - (20 if asked.version == 4 else 0)
    if len(data) > most:
        raise ArgumentError(f"data has {len(data)} bytes and may have {most}")


def _tcp_answer(asked: _Packet, data: bytes) -> list[bytes]:
    segment = _read_segment(asked)
    if segment.flags & (TcpFlag.ACK | TcpFlag.SYN | TcpFlag.RST) != TcpFlag.ACK or not segment.size:
        raise ArgumentError(
            "of TCP only a segment that carries data, of an open connection, can be answered: see reset()"
        )
    if any(kind in _SIGNATURES for kind, _ in _options(segment.options)):
        raise ArgumentError("the segment is signed (TCP-MD5 or TCP-AO): its sender would ignore an answer")
    if len(data) > MAX_TCP_DATA:
        text = f"data has {len(data)} bytes and may have {MAX_TCP_DATA} with TCP"
        raise ArgumentError(f"{text}: lost segments are not sent again")
    # A receiver with timestamps can drop segments without timestamps, or with older ones than it has seen (RFC 7323).
    # It echoes the newest timestamp that it has seen from its peer.
    options = b""
    for kind, value in _options(segment.options):
        if kind == _TIMESTAMPS and len(value) == 8:
            options = bytes((1, 1, _TIMESTAMPS, 10)) + value[4:] + value[:4]
    found = []
    for start in range(0, len(data) or 1, _SEGMENT):
        piece = data[start : start + _SEGMENT]
        flags = TcpFlag.ACK | TcpFlag.PSH
        if start + _SEGMENT >= len(data):
            flags |= TcpFlag.FIN
        ports = (segment.destination_port, segment.source_port)
        header = _tcp(ports, segment.ack + start, segment.end, flags, window=0xFFFF, options=options)
        found.append(_back(asked, header + piece))
    return [*found, *_resets_to_receiver(asked, segment)]


def _reset_to_sender(asked: _Packet, segment: _Segment) -> list[bytes]:
    """Return the reset for a segment that belongs to no connection (RFC 9293, 3.10.7.1); nothing for a reset."""
    ports = (segment.destination_port, segment.source_port)
    if TcpFlag.RST in segment.flags:
        return []
    if TcpFlag.ACK in segment.flags:
        return [_back(asked, _tcp(ports, segment.ack, 0, TcpFlag.RST))]
    return [_back(asked, _tcp(ports, 0, segment.end, TcpFlag.RST | TcpFlag.ACK))]


def _resets_to_receiver(asked: _Packet, segment: _Segment) -> list[bytes]:
    """Return resets as the sender would send them to abort the connection.

    A receiver accepts a reset only with the sequence number that it expects (RFC 5961): the segment's own, or, if the
    segment is a retransmission of one received before, the number after it. A receiver that waits for the answer to its
    SYN also checks the acknowledgement number.
    """
    ports = (segment.source_port, segment.destination_port)
    flags = TcpFlag.RST | (segment.flags & TcpFlag.ACK)
    ack = segment.ack if TcpFlag.ACK in segment.flags else 0
    return [
        _packet(asked.version, asked.source, asked.destination, TCP, _tcp(ports, seq, ack, flags))
        for seq in dict.fromkeys((segment.seq, segment.end))
    ]


def _tcp(ports: tuple[int, int], seq: int, ack: int, flags: TcpFlag, *, window: int = 0, options: bytes = b"") -> bytes:
    words = (20 + len(options)) // 4
    return struct.pack("!HHIIBBHHH", *ports, seq & 0xFFFFFFFF, ack, words << 4, flags, window, 0, 0) + options


def _icmp_error(asked: _Packet) -> list[bytes]:
    version, number = asked.version, asked.upper.protocol
    own = ICMP if version == 4 else ICMPV6
    if number == own:
        kind = asked.data[asked.upper.header] if len(asked.data) > asked.upper.header else None
        is_error = kind in _ERRORS_V4 if version == 4 else kind is not None and (kind < 128 or kind == _REDIRECT_V6)
        if kind is None or is_error:
            return []
    code = _PORT_UNREACHABLE[version] if number in _WITH_PORTS else _PROHIBITED[version]
    headers = (20 if version == 4 else 40) + 8
    quoted = asked.data[: min(asked.end, _MAX_ERROR[version] - headers)]
    return [_back(asked, struct.pack("!BBHI", _UNREACHABLE[version], code, 0, 0) + quoted, own)]
