"""IPv4 and IPv6 packets with TCP or UDP inside: replace the data, and mend what depends on it.

For handlers that rewrite packets: the kernel takes a replacement as it is, and mends neither lengths nor checksums.
"""

from __future__ import annotations

import socket
from typing import NamedTuple

from .errors import ArgumentError

_MAX_PACKET = 0xFFFF
# IPv6 extension headers that may come before the transport header: hop-by-hop and destination options. Not the
# routing header, under which the checksum covers another destination than the one in the IP header.
_EXTENSIONS = (0, 60)
_FRAGMENT_HEADER = 44
_EXTENSIONS_WITH_ROUTING = (*_EXTENSIONS, 43, _FRAGMENT_HEADER)
_FRAGMENT = 0x3FFF  # of IPv4: "more fragments" and the fragment offset


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


def protocol(packet: bytes) -> int | None:
    """What an IP packet carries, by its number (6 TCP, 17 UDP, ...), behind IPv6's extension headers; None if unknown.

    It is the header's word: nothing beyond it is looked at, and a fragment may have it without being one's beginning.
    """
    found = _upper_layer(packet, _EXTENSIONS_WITH_ROUTING)
    return None if found is None else found[0]


def _upper_layer(packet: bytes, extensions: tuple[int, ...]) -> tuple[int, int] | None:
    """The protocol that an IP packet carries, and the offset of its header."""
    version = packet[0] >> 4 if packet else 0
    if version == 4 and len(packet) >= 20:
        return packet[9], (packet[0] & 0xF) * 4
    if version != 6 or len(packet) < 40:
        return None
    protocol, header = packet[6], 40
    while protocol in extensions and len(packet) >= header + 8:
        units = 0 if protocol == _FRAGMENT_HEADER else packet[header + 1]
        protocol, header = packet[header], header + (units + 1) * 8
    return protocol, header


def transport(packet: bytes) -> Transport | None:
    """Find the TCP or UDP header of an IP packet; None if it has none, or not the whole of it, or is a fragment."""
    found = _upper_layer(packet, _EXTENSIONS)
    if found is None:
        return None
    protocol, header = found
    if packet[0] >> 4 == 4 and (header < 20 or int.from_bytes(packet[6:8], "big") & _FRAGMENT):
        return None
    end = min(len(packet), _end(packet))
    data = header
    if protocol == socket.IPPROTO_UDP:
        data += 8
    elif protocol == socket.IPPROTO_TCP and header + 20 <= end:
        data += max(packet[header + 12] >> 4, 5) * 4
    return Transport(protocol, header, data) if header < data <= end else None


def get_data(packet: bytes) -> bytes | None:
    """What TCP or UDP carries in an IP packet; None if that is not what it is."""
    where = transport(packet)
    return None if where is None else packet[where.data : _end(packet)]


def replace_data(packet: bytes, data: bytes) -> bytes:
    """The same IP packet with other TCP or UDP data: lengths and checksums are right, whatever they were before.

    Mind TCP: a peer that gets more or fewer bytes than were sent will disagree about sequence numbers.
    Raises ArgumentError if it is no whole TCP or UDP packet, is a fragment, or would be longer than 65,535 bytes.
    """
    where = transport(packet)
    if where is None or _end(packet) > len(packet):
        raise ArgumentError("not a whole, unfragmented IPv4 or IPv6 packet with TCP or UDP in it")
    if where.data + len(data) > _MAX_PACKET:
        raise ArgumentError(f"the packet would have {where.data + len(data)} bytes and may have {_MAX_PACKET}")
    new = bytearray(packet[: where.data]) + data
    size = len(new) - where.header
    if where.protocol == socket.IPPROTO_UDP:
        new[where.header + 4 : where.header + 6] = size.to_bytes(2, "big")
    if new[0] >> 4 == 4:
        new[2:4] = len(new).to_bytes(2, "big")
        new[10:12] = b"\0\0"
        new[10:12] = checksum(bytes(new[: (new[0] & 0xF) * 4])).to_bytes(2, "big")
        addresses = new[12:20]
    else:
        new[4:6] = (len(new) - 40).to_bytes(2, "big")
        addresses = new[8:40]
    place = where.header + (6 if where.protocol == socket.IPPROTO_UDP else 16)
    new[place : place + 2] = b"\0\0"
    pseudo_header = addresses + size.to_bytes(4, "big") + where.protocol.to_bytes(4, "big")
    total = checksum(bytes(pseudo_header + new[where.header :]))
    if total == 0 and where.protocol == socket.IPPROTO_UDP:
        total = 0xFFFF  # 0 stands for "no checksum"
    new[place : place + 2] = total.to_bytes(2, "big")
    return bytes(new)


def _end(packet: bytes) -> int:
    """Where the packet ends by its own header; link layers may have padded it."""
    if packet[0] >> 4 == 4:
        return int.from_bytes(packet[2:4], "big")
    return 40 + int.from_bytes(packet[4:6], "big")
