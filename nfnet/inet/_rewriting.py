"""Change packets, and correct their lengths and checksums so that a receiver accepts them."""

from __future__ import annotations

import socket
import struct
from ipaddress import IPv4Address, IPv6Address

from .._arguments import check, wrong_type
from ..errors import ArgumentError
from ..protocol.nfqnl import SkbInfo
from ._headers import (
    CHECKSUM,
    ICMP,
    SIZES,
    TCP,
    UDP,
    TcpFlag,
    Upper,
    end_of,
    jumbo_length,
    upper_of,
    usual_transport,
    where_in,
)

# Fields of the transport header: offset, size, and the protocols that have the field.
_FIELDS = (
    ("source_port", 0, 2, (TCP, UDP)),
    ("destination_port", 2, 2, (TCP, UDP)),
    ("seq", 4, 4, (TCP,)),
    ("ack", 8, 4, (TCP,)),
    ("flags", 13, 1, (TCP,)),
    ("window", 14, 2, (TCP,)),
)
_NO_FIELDS = (None,) * len(_FIELDS)

Address = str | IPv4Address | IPv6Address

_MAX_PACKET = 0xFFFF
_CSUM_NOT_READY, _GSO = int(SkbInfo.CSUM_NOT_READY), int(SkbInfo.GSO)
_NO_TRANSPORT = "not a packet that begins with a whole TCP, UDP or ICMP header"
_REROUTED = "a packet that is source-routed, or has a home address option, cannot be given a checksum"
_put = struct.Struct(">H").pack_into  # a number of 16 bits, at an offset
# Protocols whose packets can get other addresses, because their checksums do not cover addresses.
_WITHOUT_ADDRESSES = frozenset((2, 4, 41, 47, 50, 132))  # IGMP, IPv4, IPv6, GRE, ESP, SCTP


def checksum(data: bytes | bytearray) -> int:
    """Return the Internet checksum (RFC 1071) of the bytes, 16 bits, for a header in network byte order."""
    return _complement(_number(data))


# The bytes are read as one long number. Because 2^16 is 1 modulo 2^16-1, the remainder of that number is the one's
# complement sum of its words, and the remainder of a sum of such numbers is the sum of all their words.


def _number(data: bytes | bytearray) -> int:
    """Return the bytes as one number, with a zero byte appended to an odd number of them."""
    number = int.from_bytes(data, "big")
    return number << 8 if len(data) & 1 else number


def _complement(total: int) -> int:
    """Return the complement of the one's complement sum, 16 bits; only if all words are 0 is that sum 0."""
    return -total % 0xFFFF if total else 0xFFFF


def replace_data(packet: bytes, data: bytes) -> bytes:
    """Return the same IP packet with other TCP or UDP data: `rewrite` with only ``data``."""
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
    skbinfo: SkbInfo | int = 0,
) -> bytes:
    """Return the IP packet with changed fields, and with correct lengths and checksums, even if they were wrong before.

    data: the data after the TCP, UDP or ICMP header.
    source, destination: addresses, of the packet's family.
    source_port, destination_port: the ports of TCP or UDP.
    seq, ack, flags, window: fields of the TCP header.
    ttl, tos: fields of the IP header; with IPv6 the hop limit and the traffic class.
    skbinfo: the state of a packet of a queue with ``gso=True`` (`Packet.skbinfo`); `Packet.rewrite` passes it. With
        CSUM_NOT_READY the checksum is finished for every change, because the kernel does not do that after a packet's
        bytes were replaced. With GSO the checksum of UDP becomes the sum of the pseudo-header, from which the kernel
        computes the checksums of the segments.

    In a fragment only fields of the IP header can be changed, and ports in the first one; addresses must be changed in
    all fragments. With TCP, a peer that gets more or fewer bytes than were sent will disagree about sequence numbers.

    Raises ArgumentError for other or incomplete packets, and for changes that cannot be made correct: data of a
    fragment, addresses with a routing header or a protocol with an unknown checksum, a packet of more than 65,535
    bytes, a jumbogram, an unfinished checksum in a tunnelled packet, and shorter data of a super-packet.
    """
    state = check("skbinfo", skbinfo, 0, 0xFFFFFFFF) if skbinfo != 0 else 0
    segments, unfinished = bool(state & _GSO), bool(state & (_GSO | _CSUM_NOT_READY))
    usual = None if unfinished else usual_transport(packet)
    begin: int | None  # of the data
    if usual is not None:
        number, header, begin, end = usual
        fragment, beginning, rerouted = 0, True, False
    else:
        upper = upper_of(packet, routing=True)
        end = 0 if upper is None else end_of(packet)
        if upper is None or not upper.whole or end > len(packet) or end < upper.header:
            raise ArgumentError("not a whole IPv4 or IPv6 packet")
        if packet[0] >> 4 == 6 and packet[4:6] == b"\0\0" and jumbo_length(packet) is not None:
            raise ArgumentError("a jumbogram cannot be rewritten")
        if unfinished:
            _check_unfinished(packet, end, upper, segments)
        where = where_in(packet, upper, CHECKSUM[packet[0] >> 4])
        begin = None if where is None else where.data
        number, header, fragment, beginning, rerouted, _ = upper
    fields = source_port, destination_port, seq, ack, flags, window
    if data is not None:
        if type(data) is not bytes:
            try:
                data = bytes(memoryview(data))
            except TypeError:
                raise wrong_type("data", data, "bytes") from None
        only = source is None and destination is None and ttl is None and tos is None and fields == _NO_FIELDS
        if only and usual is not None and (replaced := _with_data(packet, usual, data)) is not None:
            return replaced
    new = bytearray(packet[:end])
    if ttl is not None or tos is not None:
        _set_ip(new, ttl, tos)
    changed = False
    if source is not None or destination is not None:
        for name, address, low in (("source", source, True), ("destination", destination, False)):
            if address is not None:
                _set_address(new, name, address, low)
        changed = _addresses(new) != _addresses(packet)
        if rerouted:
            raise ArgumentError("a packet that is source-routed, or has a home address option, must keep its addresses")
        if number not in CHECKSUM[packet[0] >> 4] and number not in _WITHOUT_ADDRESSES:
            raise ArgumentError(
                f"addresses cannot be changed in packets of protocol {number}, whose checksum is unknown"
            )

    if fields != _NO_FIELDS:
        if begin is None:
            raise ArgumentError(_NO_TRANSPORT)
        for (name, place, size, protocols), value in zip(_FIELDS, fields):
            if value is None:
                continue
            if number not in protocols:
                raise ArgumentError(f"{name} cannot be changed in packets of protocol {number}")
            limit = (1 << 8 * size) - 1
            new[header + place : header + place + size] = check(name, value, 0, limit).to_bytes(size, "big")
        changed = True
    if data is not None:
        if begin is None:
            raise ArgumentError(_NO_TRANSPORT)
        if fragment:
            raise ArgumentError("the data of a fragment cannot be replaced: its checksum covers all fragments")
        if segments and begin + len(data) < len(new):
            # The kernel drops a super-packet that is not longer than a segment, without an error, and does not report
            # the size of segments.
            raise ArgumentError("the data of a super-packet cannot become shorter")
        new[begin:] = data
        changed = True
    if len(new) > _MAX_PACKET + (40 if new[0] >> 4 == 6 else 0):
        raise ArgumentError(f"the packet would have {len(new)} bytes and may have {_MAX_PACKET}")

    if fragment:
        if beginning:
            _adjust_checksum(new, number, header, packet[:end])
    elif rerouted:
        if changed:
            raise ArgumentError(_REROUTED)
        if unfinished and not segments:
            _finish_checksum(new, number, header)
    elif segments and number != TCP:
        # Tunnels can leave the checksum out.
        if number == UDP and end >= header + SIZES[UDP] and packet[header + 6 : header + 8] != b"\0\0":
            set_checksum(new, number, header, data is not None, begun=True)
    elif (changed or unfinished) and number in CHECKSUM[packet[0] >> 4] and len(new) >= header + SIZES[number]:
        set_checksum(new, number, header, data is not None)
    finish_ip(new)
    return bytes(new)


def _with_data(packet: bytes, usual: tuple[int, int, int, int], data: bytes) -> bytes | None:
    """Return the packet with other data, as `rewrite` does, in a third of the time; None if it would be too large.

    usual: what `usual_transport` returns for the packet.
    """
    number, header, begin, _ = usual
    size = begin - header + len(data)
    if header + size > _MAX_PACKET:
        return None
    length = size.to_bytes(2, "big")
    if header == 20:  # IPv4
        before, behind = packet[:2] + (header + size).to_bytes(2, "big") + packet[4:10], packet[12:20]
        ip, addresses = before + _complement(_number(before + behind)).to_bytes(2, "big") + behind, behind
    else:
        ip, addresses = packet[:4] + length + packet[6:40], packet[8:40]
    if number == UDP:
        before, behind = packet[header : header + 4] + length, data
    else:
        before, behind = packet[header : header + 16], packet[header + 18 : begin] + data
    value = _sent(number, _complement(_number(addresses + before + behind) + size + number))
    return ip + before + value.to_bytes(2, "big") + behind


def _check_unfinished(packet: bytes, end: int, upper: Upper, segments: bool) -> None:
    """Refuse a packet with an unfinished checksum that neither the kernel nor nfnet can finish after a change.

    end: where the IP packet ends; bytes after it, such as the padding of a frame, do not belong to it.
    """
    number, header = upper.protocol, upper.header
    if upper.fragment:
        raise ArgumentError("the checksum of a fragment cannot be finished: it covers all fragments")
    if segments and number != TCP:
        return  # the kernel computes the segments' checksums from the partial one, or from the inner packet
    if segments and upper.rerouted:
        raise ArgumentError(_REROUTED)
    known = number in CHECKSUM[packet[0] >> 4] and end >= header + SIZES[number]
    if not known or (number == UDP and not upper.rerouted and not _is_begun(packet, header)):
        # The checksum of SCTP, or one in a tunnelled packet.
        raise ArgumentError(
            f"an unfinished checksum in a packet of protocol {number} that is not that of TCP, UDP or ICMP cannot be"
            " finished: leave the packet as it is, or open the queue without gso"
        )


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
    family, start, size = (socket.AF_INET, 12, 4) if packet[0] >> 4 == 4 else (socket.AF_INET6, 8, 16)
    if not isinstance(address, (str, IPv4Address, IPv6Address)):
        raise wrong_type(name, address, "an address")
    try:
        value = socket.inet_pton(family, str(address))
    except (OSError, ValueError):  # ValueError: a NUL or a surrogate in it
        raise ArgumentError(f"{name} is {str(address)!r} and must be an IPv{packet[0] >> 4} address") from None
    start += 0 if low else size
    packet[start : start + size] = value


def _addresses(packet: bytes | bytearray) -> bytes | bytearray:
    return packet[12:20] if packet[0] >> 4 == 4 else packet[8:40]


def finish_ip(packet: bytearray) -> None:
    """Set the length, and IPv4's header checksum."""
    if packet[0] >> 4 == 4:
        _put(packet, 2, len(packet))
        _put(packet, 10, 0)
        _put(packet, 10, _complement(int.from_bytes(packet[: (packet[0] & 0xF) * 4], "big")))
    else:
        _put(packet, 4, len(packet) - 40)


def set_checksum(packet: bytearray, number: int, header: int, resized: bool, begun: bool = False) -> None:
    """Set the checksum of the transport layer, or a partial one if ``begun``, and UDP's length."""
    size = len(packet) - header
    if number == UDP:
        if not resized and SIZES[UDP] <= (said := packet[header + 4] << 8 | packet[header + 5]) < size:
            size = said  # bytes after the UDP datagram stay unchanged
        _put(packet, header + 4, size)
    place = header + CHECKSUM[packet[0] >> 4][number]
    _put(packet, place, 0)
    total = 0 if number == ICMP else _pseudo_header(packet, size, number)
    if begun:
        _put(packet, place, ~_complement(total) & 0xFFFF)
    else:
        _put_checksum(packet, number, place, _complement(total + _number(packet[header : header + size])))


def _pseudo_header(packet: bytes | bytearray, size: int, number: int) -> int:
    return int.from_bytes(_addresses(packet), "big") + size + number


def _is_begun(packet: bytes, header: int) -> bool:
    """Return whether a UDP checksum is unfinished: only the sum of the pseudo-header."""
    length, there = packet[header + 4 : header + 6], packet[header + 6 : header + 8]
    size = int.from_bytes(length, "big") or end_of(packet) - header
    begun = ~_complement(_pseudo_header(packet, size, UDP)) & 0xFFFF
    return there != b"\0\0" and (int.from_bytes(there, "big") - begun) % 0xFFFF == 0


def _finish_checksum(packet: bytearray, number: int, header: int) -> None:
    """Finish a checksum like the kernel, which takes the field for the sum of the pseudo-header without a check."""
    _put_checksum(packet, number, header + CHECKSUM[packet[0] >> 4][number], checksum(packet[header:]))


def _adjust_checksum(packet: bytearray, number: int, header: int, before: bytes) -> None:
    """Update the checksum of a first fragment (RFC 1624), because the other fragments are not available."""
    if number not in CHECKSUM[packet[0] >> 4]:
        return
    end = header + SIZES[number]
    old, new = _addresses(before) + before[header:end], _addresses(packet) + packet[header:end]
    if old == new:
        return
    if len(packet) < header + SIZES[number]:
        raise ArgumentError("the fragment does not contain the complete header with the checksum")
    place = header + CHECKSUM[packet[0] >> 4][number]
    was = int.from_bytes(packet[place : place + 2], "big")
    if number == UDP and not was:
        return  # the packet has no checksum
    if number == ICMP:  # its checksum does not cover addresses
        skip = len(_addresses(packet))
        old, new = old[skip:], new[skip:]
    # RFC 1624: ~(~was + ~old + new). `checksum` returns the complement of a sum.
    _put_checksum(packet, number, place, _complement((~was & 0xFFFF) + checksum(old) + _number(new)))


def _put_checksum(packet: bytearray, number: int, place: int, value: int) -> None:
    _put(packet, place, _sent(number, value))


def _sent(number: int, value: int) -> int:
    """Return a checksum as it is sent: in UDP 0 means "no checksum"."""
    return 0xFFFF if number == UDP and not value else value
