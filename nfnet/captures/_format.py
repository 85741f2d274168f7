"""The layouts of pcap and pcapng files, in both byte orders, for the readers and writers."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Any, NamedTuple

from .._construct import Const, Default, Int8ub, Int16ub, Int16ul, Int32ub, Int32ul, Int64sb, Int64sl, Padding, Struct
from ..protocol.layout import compile_struct
from ..protocol.netlink import ByteOrder

# No record of nfnet is larger: a datagram of log messages has 256 KiB. Larger records get no memory.
MAX_RECORD = 1 << 20

BYTE_ORDER_MAGIC = 0x1A2B3C4D
MICROSECONDS, NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D
MODIFIED = 0xA1B2CD34  # Alexey Kuznetzov's variant, whose records also contain the interface and the direction


class Block(IntEnum):
    """The types of pcapng blocks that are read here."""

    SECTION = 0x0A0D0D0A
    INTERFACE = 1
    OBSOLETE = 2  # the Packet Block of the first drafts
    SIMPLE = 3
    ENHANCED = 6


class Option(IntEnum):
    """The pcapng options that are read or written here; some numbers mean something else in each type of block."""

    END = 0
    COMMENT = 1
    IF_NAME = 2
    PACKET_FLAGS = 2
    IF_TSRESOL = 9
    IF_TSOFFSET = 14


class Direction(IntEnum):
    """The direction of a packet in a capture: to this machine, from it, or between others."""

    INCOMING = 1
    OUTGOING = 2
    FOREIGN = 3


# Linux's names (``PACKET_*``): to this machine, broadcast, multicast, to another machine, from this machine.
PACKET_TYPES = {
    0: Direction.INCOMING,
    1: Direction.INCOMING,
    2: Direction.INCOMING,
    3: Direction.FOREIGN,
    4: Direction.OUTGOING,
}


class Schemas(NamedTuple):
    """The layouts of one byte order."""

    byteorder: ByteOrder
    pcap_header: Any
    pcap_record: Any
    block_header: Any
    section_header: Any
    interface: Any
    enhanced_packet: Any
    simple_packet: Any
    option: Any
    length: Any
    # Fast equivalents, for the structures that every record has.
    fast_pcap_record: struct.Struct
    fast_modified_record: struct.Struct
    fast_block_header: struct.Struct
    fast_enhanced_packet: struct.Struct
    fast_obsolete_packet: struct.Struct
    fast_simple_packet: struct.Struct
    fast_option: struct.Struct


def _schemas(order: ByteOrder) -> Schemas:
    little = order == "little"
    u16, u32 = (Int16ul, Int32ul) if little else (Int16ub, Int32ub)
    s64 = Int64sl if little else Int64sb
    pcap_record = Struct("seconds" / u32, "fraction" / u32, "length" / u32, "original_length" / u32)
    modified_record = Struct(
        "seconds" / u32,
        "fraction" / u32,
        "length" / u32,
        "original_length" / u32,
        "interface" / u32,
        "protocol" / u16,
        "packet_type" / Int8ub,
        Padding(1),
    )
    block_header = Struct("type" / u32, "length" / u32)
    enhanced_packet = Struct(
        "interface" / u32, "time_high" / u32, "time_low" / u32, "length" / u32, "original_length" / u32
    )
    obsolete_packet = Struct(
        "interface" / u16,
        "drops" / u16,
        "time_high" / u32,
        "time_low" / u32,
        "length" / u32,
        "original_length" / u32,
    )
    simple_packet = Struct("original_length" / u32)
    option = Struct("code" / u16, "length" / u16)

    def fast(schema: Any) -> struct.Struct:
        return struct.Struct(("<" if little else ">") + compile_struct(schema).format[1:])

    return Schemas(
        order,
        pcap_header=Struct(
            "magic" / u32,
            "major" / Default(u16, 2),
            "minor" / Default(u16, 4),
            Padding(8),
            "snaplen" / Default(u32, MAX_RECORD),
            "link_type" / u32,  # the upper bits contain the length of the frame check sequence
        ),
        pcap_record=pcap_record,
        block_header=block_header,
        section_header=Struct(
            "magic" / Const(BYTE_ORDER_MAGIC, u32),
            "major" / Const(1, u16),
            "minor" / Default(u16, 0),
            "section_length" / Default(s64, -1),
        ),
        interface=Struct("link_type" / u16, Padding(2), "snaplen" / Default(u32, 0)),
        enhanced_packet=enhanced_packet,
        simple_packet=simple_packet,
        option=option,
        length=u32,
        fast_pcap_record=fast(pcap_record),
        fast_modified_record=fast(modified_record),
        fast_block_header=fast(block_header),
        fast_enhanced_packet=fast(enhanced_packet),
        fast_obsolete_packet=fast(obsolete_packet),
        fast_simple_packet=fast(simple_packet),
        fast_option=fast(option),
    )


SCHEMAS: dict[ByteOrder, Schemas] = {"little": _schemas("little"), "big": _schemas("big")}
ENHANCED_SIZE = 32  # of an enhanced packet block without the packet and its options

# The magic bytes at the beginning of files.
MAGIC_SIZE = 4
SECTION_MAGIC = Block.SECTION.to_bytes(4, "big")  # the same in both byte orders
PCAP_MAGICS = {
    magic.to_bytes(4, order): (schemas, magic)
    for order, schemas in SCHEMAS.items()
    for magic in (MICROSECONDS, NANOSECONDS, MODIFIED)
}
ORDERS = {BYTE_ORDER_MAGIC.to_bytes(4, order): order for order in SCHEMAS}

ARPHRD_NETLINK = 824
# The header before a netlink datagram (LINKTYPE_NETLINK), in network byte order.
netlink_header = Struct(
    "packet_type" / Default(Int16ub, 4),  # outgoing; nlmon uses this value for both directions
    "arphrd" / Const(ARPHRD_NETLINK, Int16ub),
    Padding(10),
    "family" / Int16ub,
)
NETLINK_HEADER_SIZE: int = netlink_header.sizeof()
