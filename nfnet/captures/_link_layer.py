"""Link-layer headers: where in a record the network layer begins, its protocol, and the fields of the header.

`LINK_LAYERS` has a row for each link type. Whatever the bytes are, reading a header takes few steps and little memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from ..errors import DecodeError
from ..protocol.netlink import ByteOrder
from ._format import ARPHRD_NETLINK, PACKET_TYPES, Direction
from ._link_types import LinkType

IPV4, IPV6 = 0x0800, 0x86DD
_PPPOE_SESSION = 0x8864
_MPLS = frozenset((0x8847, 0x8848))
_MOST_LABELS = 16
_TAGS = frozenset((0x8100, 0x88A8, 0x9100))  # 802.1Q, 802.1ad, and the number used before 802.1ad
_MOST_TAGS = 8  # VLAN_MAX_DEPTH
_LEAST_ETHERTYPE = 0x0600  # a smaller number in this field is a length, and an LLC header follows
ETHERNET_HEADER = 14
_FAMILIES = {2: IPV4, 10: IPV6, 23: IPV6, 24: IPV6, 28: IPV6, 30: IPV6}  # AF_INET; AF_INET6 of each system
_PPP_PROTOCOLS = {0x21: IPV4, 0x57: IPV6, 0x0281: 0x8847, 0x0283: 0x8848}
_NLPIDS = {0xCC: IPV4, 0x8E: IPV6}
_CISCO = (0x0F, 0x8F)  # the first byte of a Cisco HDLC frame: unicast, broadcast
_ETH_P_802_2 = 4  # Linux's substitute for the EtherType if an LLC header follows

_u16 = struct.Struct("!H").unpack_from
_u32 = struct.Struct("!I").unpack_from
_two = struct.Struct("!HH").unpack_from
_cooked = struct.Struct("!HHH8sH").unpack_from
_cooked2 = struct.Struct("!HHIHBB8s").unpack_from
_radiotap_header = struct.Struct("<BxHI").unpack_from
_ppi_header = struct.Struct("<BBHI").unpack_from
_pktap_header = struct.Struct("<III24xI").unpack_from


class Tag(NamedTuple):
    """A VLAN tag: its EtherType, and 16 bits of priority, drop eligibility and VLAN id."""

    protocol: int
    tci: int


class Frame(NamedTuple):
    """The fields of a link-layer header.

    ``start`` is the offset of the network layer, and ``protocol`` its EtherType, 0 if it has none or cannot be read.
    ``tags`` are the VLAN tags, the outermost first; ``header`` is where an Ethernet header without tags ends, 0 for
    other link layers. ``source`` is the sender's link-layer address, b"" if there is none; ``interface`` the kernel's
    index of the interface.
    """

    start: int
    protocol: int
    source: bytes = b""
    tags: tuple[Tag, ...] = ()
    header: int = 0
    direction: Direction | None = None
    interface: int | None = None


Reader = Callable[[bytes, int, ByteOrder], Frame]
"""Reads a header at an offset of a record. Raises struct.error or IndexError if it is incomplete."""


class LinkLayer(NamedTuple):
    """A link type that contains packets; ``what`` is a description for people."""

    read: Reader
    what: str


def read_frame(link_type: int, data: bytes, byteorder: ByteOrder) -> Frame:
    """Return the fields of the link-layer header of a record, of a link type in `LINK_LAYERS`.

    ``byteorder`` is that of the file. Raises DecodeError if the header is incomplete.
    """
    try:
        return LINK_LAYERS[link_type].read(data, 0, byteorder)
    except (struct.error, IndexError):
        name = LinkType(link_type).name
        raise DecodeError(f"{len(data)} bytes are too few for a header of {name}", len(data)) from None


# --- after link-layer headers


def _network(data: bytes, start: int, ethertype: int, source: bytes = b"", *, header: int = 0) -> Frame:
    """Read what follows an EtherType or a length: tags, LLC, PPPoE or labels, up to the network layer."""
    tags: tuple[Tag, ...] = ()
    while ethertype in _TAGS and len(tags) < _MOST_TAGS:
        tci, inner = _two(data, start)
        tags += (Tag(ethertype, tci),)
        ethertype, start = inner, start + 4
    if ethertype < _LEAST_ETHERTYPE:
        ethertype, start = _llc(data, start)
    elif ethertype == _PPPOE_SESSION:
        start, ethertype = _after_ppp(data, start + 6)[:2]
    elif ethertype in _MPLS:
        ethertype, start = _labelled(data, start, ethertype)
    return Frame(start, ethertype, source, tags, header)


def _llc(data: bytes, start: int) -> tuple[int, int]:
    """Return the EtherType after an LLC header, 0 if there is none, and the offset after the header."""
    if data[start : start + 3] == b"\xaa\xaa\x03":  # SNAP
        return (_u16(data, start + 6)[0] if data[start + 3 : start + 6] in _PLAIN_SNAP else 0), start + 8
    return (IPV4 if data[start : start + 3] == b"\x06\x06\x03" else 0), start + 3


def _labelled(data: bytes, start: int, ethertype: int) -> tuple[int, int]:
    """Return the EtherType after MPLS labels, and its offset: IP's if the packet looks like IP, else the labels'."""
    for place in range(start, start + 4 * _MOST_LABELS, 4):
        if data[place + 2] & 1:  # the last label
            return _BY_VERSION.get(data[place + 4] >> 4, ethertype), place + 4
    return ethertype, start


_BY_VERSION = {4: IPV4, 6: IPV6}
_PLAIN_SNAP = (b"\0\0\0", b"\0\0\xf8")  # an EtherType follows: RFC 1042, and for bridges


def _after_ppp(data: bytes, start: int) -> Frame:
    """Read what follows the PPP protocol number, of one or two bytes, at ``start``."""
    number, size = (data[start], 1) if data[start] & 1 else (_u16(data, start)[0], 2)
    ethertype = _PPP_PROTOCOLS.get(number)
    return Frame(start + size, 0) if ethertype is None else _network(data, start + size, ethertype)


# --- link types


def _ethernet(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    ethertype = _u16(data, start + 12)[0]
    end = start + ETHERNET_HEADER
    return _network(data, end, ethertype, data[start + 6 : start + 12], header=end)


def _raw(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return Frame(start, _BY_VERSION.get(data[start] >> 4, 0))


def _ipv4(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return Frame(start, IPV4)


def _ipv6(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return Frame(start, IPV6)


def _null(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    """An address family, in the byte order of the recording machine, which can differ from that of the file."""
    family = _u32(data, start)[0]
    if family > 0xFFFF:
        family = int.from_bytes(family.to_bytes(4, "little"), "big")
    return Frame(start + 4, _FAMILIES.get(family, 0))


def _enc(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return _null(data, start, byteorder)._replace(start=start + 12)


def _linux_cooked(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    kind, arphrd, length, address, protocol = _cooked(data, start)
    return _linux(data, start + 16, kind, arphrd, address[:length], protocol)


def _linux_cooked2(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    protocol, _, interface, arphrd, kind, length, address = _cooked2(data, start)
    frame = _linux(data, start + 20, kind, arphrd, address[:length], protocol)
    return frame._replace(interface=interface or None)


def _linux(data: bytes, start: int, kind: int, arphrd: int, address: bytes, protocol: int) -> Frame:
    direction = PACKET_TYPES.get(kind)
    if arphrd == ARPHRD_NETLINK or (protocol < _LEAST_ETHERTYPE and protocol != _ETH_P_802_2):
        return Frame(start, 0, address, direction=direction)
    return _network(data, start, protocol, address)._replace(direction=direction)


def _ppp(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    """PPP, with or without the address and control bytes of HDLC; or Cisco's HDLC, whose bytes differ."""
    if data[start] in _CISCO:
        return _network(data, start + 4, _u16(data, start + 2)[0])
    if data[start : start + 2] == b"\xff\x03":
        start += 2
    return _after_ppp(data, start)


def _pppd(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    """PPP with the direction in place of the address byte."""
    return _after_ppp(data, start + 2)._replace(direction=_DIRECTIONS.get(data[start]))


_DIRECTIONS = {0: Direction.INCOMING, 1: Direction.OUTGOING}


def _with_direction(read: Reader) -> Reader:
    def directed(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
        direction = Direction.OUTGOING if data[start] else Direction.INCOMING
        return read(data, start + 1, byteorder)._replace(direction=direction)

    return directed


def _pppoe(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return _after_ppp(data, start + 6)


def _cisco_hdlc(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return _network(data, start + 4, _u16(data, start + 2)[0])


def _frame_relay(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    """An address of two to four bytes, of which the last one is odd; then RFC 2427, or Cisco's EtherType."""
    end = start + 2
    while not data[end - 1] & 1:
        if end == start + 4:
            return Frame(end, 0)
        end += 1
    if data[end] != 3:  # not an unnumbered information frame
        return Frame(end + 2, _u16(data, end)[0])
    place = end + 1 + (data[end + 1] == 0)  # after the padding
    if data[place] == 0x80 and data[place + 1 : place + 4] in _PLAIN_SNAP:
        return _network(data, place + 6, _u16(data, place + 4)[0])
    return Frame(place + 1, _NLPIDS.get(data[place], 0))


def _wireless(data: bytes, start: int, byteorder: ByteOrder, *, padded: bool = False) -> Frame:
    """IEEE 802.11: data frames that are neither encrypted nor several in one (A-MSDU)."""
    first, second = data[start], data[start + 1]
    unreadable = Frame(start, 0)
    # Version 0, type data, a subtype with data, not protected.
    if first & 0x0F != 0x08 or first & 0x40 or second & 0x40:
        return unreadable
    size = 24
    source = start + 10
    if second & 3 == 3:  # between access points: a fourth address
        source, size = start + 24, 30
    elif second & 3 == 2:  # from an access point
        source = start + 16
    if first & 0x80:  # quality of service
        if data[start + size] & 0x80:
            return unreadable
        size += 6 if second & 0x80 else 2  # with HT Control or without
    if padded:
        size = size + 3 & ~3
    return _network(data, start + size, 0, data[source : source + 6])


def _radiotap(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    _, length, present = _radiotap_header(data, start)
    place, more = 8, present
    while more & 1 << 31 and place < length:
        more = int.from_bytes(data[start + place : start + place + 4], "little")
        place += 4
    padded = False
    if present & 2 and place < length:  # the flags are present
        if present & 1:  # after the time, which is aligned
            place = (place + 7 & ~7) + 8
        padded = bool(data[start + place] & 0x20)
    return _wireless(data, start + max(length, 8), byteorder, padded=padded)


def _avs(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    return _wireless(data, start + max(_u32(data, start + 4)[0], 8), byteorder)


def _fddi(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    if data[start] & 0x30 != 0x10:  # not a frame of LLC
        return Frame(start, 0)
    return _network(data, start + 13, 0, data[start + 7 : start + 13])


def _enclosed(data: bytes, start: int, link_type: int) -> Frame:
    """Read a packet of another link type behind a header that says which one."""
    inner = LINK_LAYERS.get(link_type)
    if inner is None or inner.read in (_ppi, _pktap):
        return Frame(start, 0)
    return inner.read(data, start, "little")


def _ppi(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    _, _, length, link_type = _ppi_header(data, start)
    return _enclosed(data, start + max(length, 8), link_type)


def _pktap(data: bytes, start: int, byteorder: ByteOrder) -> Frame:
    """PKTAP: always little-endian, since no older macOS has it."""
    length, kind, link_type, flags = _pktap_header(data, start)
    if kind != _PTH_TYPE_PACKET:
        return Frame(start, 0)
    return _enclosed(data, start + max(length, 40), link_type)._replace(direction=_PKTAP_DIRECTIONS.get(flags & 3))


_PTH_TYPE_PACKET = 1
_PKTAP_DIRECTIONS = {1: Direction.INCOMING, 2: Direction.OUTGOING}


_LLC = LinkLayer(lambda data, start, byteorder: _network(data, start, 0), "LLC/SNAP over ATM")
_RAW = LinkLayer(_raw, "IP packets without a link layer: tun and WireGuard devices, IP tunnels")

LINK_LAYERS: dict[int, LinkLayer] = {
    LinkType.ETHERNET: LinkLayer(
        _ethernet, "Ethernet, also with VLAN tags (802.1Q, QinQ), MPLS labels, and in PPPoE sessions"
    ),
    LinkType.LINUX_SLL: LinkLayer(_linux_cooked, "Linux cooked: `tcpdump -i any` until 2022"),
    LinkType.LINUX_SLL2: LinkLayer(
        _linux_cooked2, "Linux cooked, version 2: `tcpdump -i any`, which says the interface"
    ),
    LinkType.NULL: LinkLayer(_null, "the loopback of BSD, macOS and Windows (Npcap)"),
    LinkType.LOOP: LinkLayer(_null, "the loopback of OpenBSD"),
    LinkType.RAW: _RAW,
    12: _RAW,  # DLT_RAW, which old programs wrote
    14: _RAW,  # that of OpenBSD
    LinkType.IPV4: LinkLayer(_ipv4, "IPv4 packets"),
    LinkType.IPV6: LinkLayer(_ipv6, "IPv6 packets"),
    LinkType.PPP: LinkLayer(_ppp, "PPP"),
    LinkType.PPP_HDLC: LinkLayer(_ppp, "PPP in frames like HDLC's, or Cisco's HDLC"),
    LinkType.PPP_ETHER: LinkLayer(_pppoe, "PPPoE sessions, of NetBSD"),
    LinkType.PPP_PPPD: LinkLayer(_pppd, "PPP, of Linux's pppd"),
    LinkType.PPP_WITH_DIR: LinkLayer(_with_direction(_ppp), "PPP, with the direction"),
    LinkType.C_HDLC: LinkLayer(_cisco_hdlc, "Cisco's HDLC"),
    LinkType.C_HDLC_WITH_DIR: LinkLayer(_with_direction(_cisco_hdlc), "Cisco's HDLC, with the direction"),
    LinkType.FRELAY: LinkLayer(_frame_relay, "Frame Relay"),
    LinkType.FRELAY_WITH_DIR: LinkLayer(_with_direction(_frame_relay), "Frame Relay, with the direction"),
    LinkType.ATM_RFC1483: _LLC,
    LinkType.FDDI: LinkLayer(_fddi, "FDDI"),
    LinkType.IEEE802_11: LinkLayer(_wireless, "IEEE 802.11 (WLAN): data frames that are not encrypted"),
    LinkType.IEEE802_11_RADIOTAP: LinkLayer(_radiotap, "the same with a radiotap header: monitor mode"),
    LinkType.IEEE802_11_AVS: LinkLayer(_avs, "the same with an AVS header"),
    LinkType.PPI: LinkLayer(_ppi, "Per-Packet Information (Kismet, AirPcap) around one of the others"),
    LinkType.PKTAP: LinkLayer(_pktap, "PKTAP of macOS (`tcpdump -i any` there) around one of the others"),
    LinkType.ENC: LinkLayer(_enc, "the IPsec device of OpenBSD and FreeBSD"),
}
"""The reader for each link type, by its number."""
