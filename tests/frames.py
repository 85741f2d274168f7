"""Hand-made samples of all link-layer headers, for several tests, which also compare them with tshark's reading."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from nfnet.captures import LinkType
from nfnet.protocol.nfnetlink import Hook

SOURCE, TARGET = bytes.fromhex("02a1b2c3d4e5"), bytes.fromhex("020102030405")
SNAP = bytes.fromhex("aaaa03000000")
IPV4, IPV6 = b"\x08\x00", b"\x86\xdd"
ETHERNET = TARGET + SOURCE


class Sample(NamedTuple):
    """The header before an IPv4 packet and before an IPv6 packet, and the attributes that nfnet reads from them."""

    link_type: int
    before: bytes
    before_ipv6: bytes
    hwaddr: bytes | None = None
    hook: Hook = Hook.PREROUTING
    interface: int | None = None


def tagged(*tags: tuple[int, int]) -> bytes:
    return b"".join(struct.pack("!HH", *tag) for tag in tags)


def ending(link_type: int, before: bytes, **said: object) -> Sample:
    """Return a header that ends in the EtherType."""
    return Sample(link_type, before + IPV4, before + IPV6, **said)  # type: ignore[arg-type]


def cooked(kind: int, arphrd: int = 1, address: bytes = SOURCE) -> bytes:
    return struct.pack("!HHH8s", kind, arphrd, len(address), address)


def cooked2(kind: int, interface: int, ethertype: bytes, after: bytes = b"") -> bytes:
    return ethertype + struct.pack("!HIHBB8s", 0, interface, 1, kind, 6, SOURCE) + after


def wireless(first: int, second: int, *, more: bytes = b"", fourth: bytes = b"") -> bytes:
    """Return 802.11, LLC and SNAP headers. The first two bytes determine the position of the source address."""
    other = bytes.fromhex("06ffffffffff")
    if second & 3 == 3:
        addresses, fourth = (other, other, TARGET), SOURCE
    else:
        addresses = {0: (TARGET, SOURCE, other), 1: (other, SOURCE, TARGET), 2: (TARGET, other, SOURCE)}[second & 3]
    one, two, three = addresses
    return bytes((first, second, 0, 0)) + one + two + three + b"\x10\0" + fourth + more + SNAP


def pktap(link_type: int, flags: int = 0, kind: int = 1) -> bytes:
    return struct.pack("<III24sI68x", 108, kind, link_type, b"en0", flags)


def radiotap(present: int, fields: bytes = b"") -> bytes:
    return struct.pack("<BBHI", 0, 0, 8 + len(fields), present) + fields


PPPOE = b"\x11\x00\x00\x07\x00\x40"
LABELS = b"\x00\x01\x00\x40" + b"\x00\x02\x01\x40"  # the second one is the last

SAMPLES: dict[str, Sample] = {
    "Ethernet": ending(LinkType.ETHERNET, ETHERNET, hwaddr=SOURCE),
    "VLAN": ending(LinkType.ETHERNET, ETHERNET + tagged((0x8100, 0x2005)), hwaddr=SOURCE),
    "QinQ": ending(LinkType.ETHERNET, ETHERNET + tagged((0x88A8, 7), (0x8100, 5)), hwaddr=SOURCE),
    "old QinQ": ending(LinkType.ETHERNET, ETHERNET + tagged((0x9100, 7), (0x8100, 5)), hwaddr=SOURCE),
    "LLC and SNAP": ending(LinkType.ETHERNET, ETHERNET + b"\0\x40" + SNAP, hwaddr=SOURCE),
    "PPPoE": Sample(
        LinkType.ETHERNET,
        ETHERNET + b"\x88\x64" + PPPOE + b"\0\x21",
        ETHERNET + b"\x88\x64" + PPPOE + b"\0\x57",
        hwaddr=SOURCE,
    ),
    "MPLS": Sample(LinkType.ETHERNET, ETHERNET + b"\x88\x47" + LABELS, ETHERNET + b"\x88\x47" + LABELS, hwaddr=SOURCE),
    "cooked, in": ending(LinkType.LINUX_SLL, cooked(0), hwaddr=SOURCE, hook=Hook.INPUT),
    "cooked, multicast": ending(LinkType.LINUX_SLL, cooked(2), hwaddr=SOURCE, hook=Hook.INPUT),
    "cooked, others'": ending(LinkType.LINUX_SLL, cooked(3), hwaddr=SOURCE, hook=Hook.FORWARD),
    "cooked, out": ending(LinkType.LINUX_SLL, cooked(4), hook=Hook.OUTPUT),
    "cooked, VLAN": ending(LinkType.LINUX_SLL, cooked(0) + tagged((0x8100, 5)), hwaddr=SOURCE, hook=Hook.INPUT),
    "cooked, LLC": ending(LinkType.LINUX_SLL, cooked(0) + b"\0\x04" + SNAP, hwaddr=SOURCE, hook=Hook.INPUT),
    "cooked, no address": ending(LinkType.LINUX_SLL, cooked(0, 65534, b""), hook=Hook.INPUT),
    "cooked 2, in": Sample(
        LinkType.LINUX_SLL2, cooked2(0, 3, IPV4), cooked2(0, 3, IPV6), hwaddr=SOURCE, hook=Hook.INPUT, interface=3
    ),
    "cooked 2, out": Sample(
        LinkType.LINUX_SLL2, cooked2(4, 70000, IPV4), cooked2(4, 70000, IPV6), hook=Hook.OUTPUT, interface=70000
    ),
    "null": Sample(LinkType.NULL, b"\x02\0\0\0", b"\x1e\0\0\0"),
    "null, big-endian": Sample(LinkType.NULL, b"\0\0\0\x02", b"\0\0\0\x1c"),
    "loop": Sample(LinkType.LOOP, b"\0\0\0\x02", b"\0\0\0\x18"),
    "raw": Sample(LinkType.RAW, b"", b""),
    "raw, as BSD had it": Sample(12, b"", b""),
    "raw, as OpenBSD had it": Sample(14, b"", b""),
    "IPv4": Sample(LinkType.IPV4, b"", b""),
    "IPv6": Sample(LinkType.IPV6, b"", b""),
    "PPP": Sample(LinkType.PPP, b"\xff\x03\0\x21", b"\xff\x03\0\x57"),
    "PPP, MPLS": Sample(LinkType.PPP, b"\xff\x03\x02\x81" + LABELS, b"\xff\x03\x02\x81" + LABELS),
    "PPP, short": Sample(LinkType.PPP, b"\x21", b"\x57"),
    "PPP in HDLC": Sample(LinkType.PPP_HDLC, b"\xff\x03\0\x21", b"\xff\x03\0\x57"),
    "Cisco's HDLC among PPP": ending(LinkType.PPP_HDLC, b"\x0f\0"),
    "PPPoE alone": Sample(LinkType.PPP_ETHER, PPPOE + b"\0\x21", PPPOE + b"\0\x57"),
    "pppd, in": Sample(LinkType.PPP_PPPD, b"\0\x03\0\x21", b"\0\x03\0\x57", hook=Hook.INPUT),
    "pppd, out": Sample(LinkType.PPP_PPPD, b"\x01\x03\0\x21", b"\x01\x03\0\x57", hook=Hook.OUTPUT),
    "PPP, in": Sample(LinkType.PPP_WITH_DIR, b"\0\xff\x03\0\x21", b"\0\xff\x03\0\x57", hook=Hook.INPUT),
    "PPP, out": Sample(LinkType.PPP_WITH_DIR, b"\x01\xff\x03\0\x21", b"\x01\xff\x03\0\x57", hook=Hook.OUTPUT),
    "Cisco's HDLC": ending(LinkType.C_HDLC, b"\x0f\0"),
    "Cisco's HDLC, out": ending(LinkType.C_HDLC_WITH_DIR, b"\x01\x0f\0", hook=Hook.OUTPUT),
    "Frame Relay": Sample(LinkType.FRELAY, b"\x18\x41\x03\xcc", b"\x18\x41\x03\x8e"),
    "Frame Relay, SNAP": ending(LinkType.FRELAY, b"\x18\x41\x03\0\x80\0\0\0"),
    "Frame Relay, Cisco": ending(LinkType.FRELAY, b"\x18\x41"),
    "Frame Relay, in": Sample(LinkType.FRELAY_WITH_DIR, b"\0\x18\x41\x03\xcc", b"\0\x18\x41\x03\x8e", hook=Hook.INPUT),
    "ATM": ending(LinkType.ATM_RFC1483, SNAP),
    "802.11, in a cell": ending(LinkType.IEEE802_11, wireless(0x08, 0), hwaddr=SOURCE),
    "802.11, to the access point": ending(LinkType.IEEE802_11, wireless(0x08, 1), hwaddr=SOURCE),
    "802.11, from the access point": ending(LinkType.IEEE802_11, wireless(0x08, 2), hwaddr=SOURCE),
    "802.11, four addresses": ending(LinkType.IEEE802_11, wireless(0x08, 3), hwaddr=SOURCE),
    "802.11, QoS": ending(LinkType.IEEE802_11, wireless(0x88, 1, more=b"\0\0"), hwaddr=SOURCE),
    "802.11, QoS and HT": ending(LinkType.IEEE802_11, wireless(0x88, 0x81, more=bytes(6)), hwaddr=SOURCE),
    "radiotap": ending(LinkType.IEEE802_11_RADIOTAP, radiotap(0) + wireless(0x08, 1), hwaddr=SOURCE),
    "radiotap, padded": ending(
        LinkType.IEEE802_11_RADIOTAP,
        radiotap(3, bytes(8) + b"\x20\0") + wireless(0x88, 1, more=b"\0\0" + b"\0\0"),
        hwaddr=SOURCE,
    ),
    "radiotap, more fields": ending(
        LinkType.IEEE802_11_RADIOTAP,
        radiotap(0xA0000002, struct.pack("<I", 0) + b"\x20\0\0\0") + wireless(0x88, 1, more=bytes(4)),
        hwaddr=SOURCE,
    ),
    "AVS": ending(
        LinkType.IEEE802_11_AVS, struct.pack("!II", 0x80211001, 64) + bytes(56) + wireless(0x08, 1), hwaddr=SOURCE
    ),
    "PPI": ending(LinkType.PPI, struct.pack("<BBHI", 0, 0, 8, 105) + wireless(0x08, 1), hwaddr=SOURCE),
    "PKTAP": ending(LinkType.PKTAP, pktap(1) + ETHERNET, hwaddr=SOURCE),
    "PKTAP, received": Sample(LinkType.PKTAP, pktap(12, 1), pktap(12, 1), hook=Hook.INPUT),
    "PKTAP, sent": ending(LinkType.PKTAP, pktap(1, 2) + ETHERNET, hook=Hook.OUTPUT),
    "FDDI": ending(LinkType.FDDI, b"\x50" + ETHERNET + SNAP, hwaddr=SOURCE),
    "ENC": Sample(LinkType.ENC, b"\x02\0\0\0" + bytes(8), b"\x18\0\0\0" + bytes(8)),
}

# Records without an IP packet: the link type, the record, the EtherType by which nfnet counts it.
NOT_IP: dict[str, tuple[int, bytes, int]] = {
    "ARP": (LinkType.ETHERNET, ETHERNET + b"\x08\x06" + bytes(28), 0x0806),
    "ARP with a tag": (LinkType.ETHERNET, ETHERNET + tagged((0x8100, 5)) + b"\x08\x06" + bytes(28), 0x0806),
    "spanning tree": (LinkType.ETHERNET, ETHERNET + b"\0\x26\x42\x42\x03" + bytes(40), 0),
    "Cisco's SNAP": (LinkType.ETHERNET, ETHERNET + b"\0\x26\xaa\xaa\x03\0\0\x0c\x20\0" + bytes(40), 0),
    "PPPoE discovery": (LinkType.ETHERNET, ETHERNET + b"\x88\x63\x11\x09" + bytes(40), 0x8863),
    "LCP in PPPoE": (LinkType.ETHERNET, ETHERNET + b"\x88\x64" + PPPOE + b"\xc0\x21" + bytes(40), 0),
    "Ethernet in MPLS": (LinkType.ETHERNET, ETHERNET + b"\x88\x47\0\x01\x01\x40" + bytes(40), 0x8847),
    "labels without end": (LinkType.ETHERNET, ETHERNET + b"\x88\x47" + bytes(400), 0x8847),
    "tags without end": (LinkType.ETHERNET, ETHERNET + tagged((0x8100, 5)) * 100, 0x8100),
    "IPv4 that is IPv6": (LinkType.ETHERNET, ETHERNET + IPV4 + b"\x60" + bytes(40), 0x0800),
    "IPv4 without anything": (LinkType.ETHERNET, ETHERNET + IPV4, 0x0800),
    "netlink": (LinkType.LINUX_SLL, cooked(4, 824) + b"\0\x0c" + bytes(20), 0),
    "CAN": (LinkType.LINUX_SLL, cooked(4, 280) + b"\0\x0c" + bytes(20), 0),
    "AppleTalk on a loopback": (LinkType.NULL, b"\x10\0\0\0" + bytes(20), 0),
    "raw, version 0": (LinkType.RAW, bytes(20), 0),
    "LCP": (LinkType.PPP, b"\xff\x03\xc0\x21" + bytes(20), 0),
    "LMI": (LinkType.FRELAY, b"\0\x01\x03\x08" + bytes(20), 0),
    "an address of Frame Relay without end": (LinkType.FRELAY, bytes(20), 0),
    "a beacon": (LinkType.IEEE802_11, b"\x80\0" + bytes(40), 0),
    "no data": (LinkType.IEEE802_11, b"\x48\x01" + bytes(40), 0),
    "encrypted": (LinkType.IEEE802_11, b"\x08\x41" + bytes(40), 0),
    "several in one": (LinkType.IEEE802_11, wireless(0x88, 1, more=b"\x80\0") + IPV4 + b"E" + bytes(40), 0),
    "PPI in PPI": (LinkType.PPI, struct.pack("<BBHI", 0, 0, 8, 192) * 9, 0),
    "PPI in PKTAP": (LinkType.PKTAP, (pktap(192) + struct.pack("<BBHI", 0, 0, 8, 258)) * 2, 0),
    "PKTAP around something else": (LinkType.PKTAP, pktap(189) + bytes(40), 0),
    "PKTAP of another kind": (LinkType.PKTAP, pktap(1, kind=0) + ETHERNET + IPV4 + b"E" + bytes(40), 0),
    "beacon of FDDI": (LinkType.FDDI, b"\xc2" + ETHERNET + SNAP + IPV4 + b"E" + bytes(40), 0),
    "PPI around something else": (LinkType.PPI, struct.pack("<BBHI", 0, 0, 8, 189) * 9, 0),
}


def write_pcap(path: Path, link_type: int, *records: bytes, cuts: Sequence[int] = ()) -> Path:
    """Return a pcap file with these records, a second apart; ``cuts`` contains how many bytes of each were captured."""
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, link_type)
    for number, (record, cut) in enumerate(zip_longest(records, cuts)):
        kept = record[:cut]
        data += struct.pack("<IIII", 1_700_000_000 + number, 123456, len(kept), len(record)) + kept
    path.write_bytes(data)
    return path
