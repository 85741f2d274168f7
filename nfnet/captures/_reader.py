"""Reads capture files, pcap and pcapng, record by record: a file of any size takes the same memory."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from itertools import count
from typing import BinaryIO, NamedTuple

from .._construct import ConstructError
from ..errors import CaptureError
from ..protocol.netlink import ByteOrder
from . import _compression
from ._format import (
    MAGIC_SIZE,
    MAX_RECORD,
    MODIFIED,
    NANOSECONDS,
    ORDERS,
    PACKET_TYPES,
    PCAP_MAGICS,
    SCHEMAS,
    SECTION_MAGIC,
    Block,
    Direction,
    Option,
    Schemas,
)

_MAX_BLOCK = MAX_RECORD + 4096  # with its header and options
_SKIP = 1 << 16  # bytes that are not needed are skipped in pieces of this size
# Only the interfaces of a pcapng section take memory that grows with the file.
MAX_INTERFACES = 1 << 12


class Record(NamedTuple):
    """One record of a capture.

    ``time_ns`` is in nanoseconds since 1970, UTC; None for the simple packets of pcapng, which have no time.
    ``original_length`` is larger than ``data`` if the data were cut short. ``byteorder`` is that of the file, "little"
    or "big". ``offset`` is the position of the record in the (decompressed) file, and ``data_offset`` that of its data,
    in bytes. ``number`` counts all records of the file from 1, as Wireshark does.

    Only pcapng has comments and names of interfaces. ``interface`` is an interface's number: in pcapng its position in
    the section, from 1; in Kuznetzov's pcap the kernel's index. ``direction`` is None if the record does not contain
    it. ``link_types`` are those of all interfaces that the section of the file has described so far.
    """

    time_ns: int | None
    link_type: int
    data: bytes
    original_length: int
    byteorder: ByteOrder
    offset: int
    data_offset: int
    number: int
    comment: str | None = None
    interface: int | None = None
    interface_name: str | None = None
    direction: Direction | None = None
    link_types: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """The size of the data in bytes, before they were cut short."""
        return max(len(self.data), self.original_length)

    def error(self, what: str, place: int = 0) -> CaptureError:
        """Return the error for a problem at offset ``place`` of the data."""
        return CaptureError(what, self.data_offset + place, self.number)


class _Source:
    """Reads complete pieces of a file, and raises CaptureError if one is incomplete."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._pieces = [head]  # of the requested piece, which is incomplete so far
        self._held = len(head)  # bytes in them
        self.offset = 0

    def take(self, size: int, what: str, record: int | None = None, *, may_end: bool = False) -> bytes | None:
        """Return the next ``size`` bytes; None if they have not all arrived yet: then call this again.

        At the end of the file, return b"" if it ``may_end`` here; otherwise, and inside a piece, raise CaptureError.
        """
        while self._held < size:
            data = self._stream.read(size - self._held)
            if data is None:  # a non-blocking pipe
                return None
            if not data:
                if may_end and not self._held:
                    return b""
                raise CaptureError(f"the file ends in the middle of {what}", self.offset + self._held, record)
            self._pieces.append(data)
            self._held += len(data)
        data, self._pieces, self._held = b"".join(self._pieces), [], 0
        self.offset += size
        return data


def read(source: str | os.PathLike[str] | BinaryIO) -> Iterator[Record]:
    """Yield the records of a pcap or pcapng file, of either byte order, compressed or not.

    Raises CaptureError if the file has another format, is damaged, or ends in the middle of a record, after yielding
    the records before that. Raises OSError if the file cannot be opened or read.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            yield from read(stream)
        return
    for item in scan(source):
        if item is None:
            raise BlockingIOError(errno.EAGAIN, "the file does not block and has no more data yet")
        if isinstance(item, CaptureError):
            raise item
        yield item


def scan(stream: BinaryIO, head: bytes = b"") -> Iterator[Record | CaptureError | None]:
    """Like `read`, but yield a CaptureError for a damaged record, and continue with the next record.

    If the rest of the file is unreadable, the error is the last item. None means that a non-blocking pipe has no more
    data yet. ``head`` contains bytes that were read from ``stream`` before, four at most.
    """
    file = _Source(stream, head)
    try:
        while (magic := file.take(MAGIC_SIZE, "a header", may_end=True)) is None:
            yield None
        if _compression.is_compressed(magic):
            file = _Source(_compression.decompressed(stream, magic), b"")
            while (magic := file.take(MAGIC_SIZE, "a header", may_end=True)) is None:
                yield None
        if not magic:
            raise CaptureError("the file is empty", 0)
        if magic == SECTION_MAGIC:
            yield from _read_pcapng(file)
        elif magic in PCAP_MAGICS:
            yield from _read_pcap(file, magic)
        else:
            hint = "if Wireshark opens it: editcap -F pcapng FILE converted.pcapng"
            raise CaptureError(f"neither pcap nor pcapng; {hint}", 0)
    except CaptureError as error:
        # Without its traceback, which refers to this frame: otherwise only the garbage collector would free the data.
        yield error.with_traceback(None)


def is_capture(head: bytes) -> bool:
    """Return whether a file that begins with these MAGIC_SIZE bytes is pcap, pcapng or a compressed file."""
    return head == SECTION_MAGIC or head in PCAP_MAGICS or _compression.is_compressed(head)


def _read_pcap(file: _Source, magic: bytes) -> Iterator[Record | None]:
    schemas, kind = PCAP_MAGICS[magic]
    unit = 1 if kind == NANOSECONDS else 1000
    while (rest := file.take(schemas.pcap_header.sizeof() - MAGIC_SIZE, "the file header")) is None:
        yield None
    link_type = schemas.pcap_header.parse(magic + rest).link_type & 0xFFFF
    link_types = frozenset((link_type,))
    header = schemas.fast_modified_record if kind == MODIFIED else schemas.fast_pcap_record
    size = header.size
    interface = direction = None
    for number in count(1):
        start = file.offset
        while (head := file.take(size, "a record", number, may_end=True)) is None:
            yield None
        if not head:
            return
        if kind == MODIFIED:
            seconds, fraction, length, original_length, interface, _, packet_type = header.unpack(head)
            direction = PACKET_TYPES.get(packet_type)
        else:
            seconds, fraction, length, original_length = header.unpack(head)
        if length > MAX_RECORD:  # usually garbage, and the position of the next record is unknown
            raise CaptureError(f"record of {length} bytes", start, number)
        while (data := file.take(length, "a record", number)) is None:
            yield None
        yield Record(
            seconds * 1_000_000_000 + fraction * unit,
            link_type,
            data,
            original_length,
            schemas.byteorder,
            start,
            start + size,
            number,
            interface=interface or None,
            direction=direction,
            link_types=link_types,
        )


class _Interface(NamedTuple):
    link_type: int
    snaplen: int
    units: int  # in a second
    offset: int  # seconds
    name: str | None


class _Section:
    """The contents of a pcapng section so far."""

    def __init__(self) -> None:
        self.interfaces: list[_Interface | None] = []  # None for one whose description is damaged
        self.link_types: frozenset[int] = frozenset()

    def add(self, interface: _Interface | None) -> None:
        self.interfaces.append(interface)
        if interface is not None and interface.link_type not in self.link_types:
            self.link_types |= {interface.link_type}


class _Block(NamedTuple):
    """A pcapng block of a type that is read here; of its ``size`` bytes of body at most _MAX_BLOCK are kept."""

    schemas: Schemas
    kind: int
    body: bytes
    size: int
    offset: int
    number: int | None  # of the record in this block, or None


_KINDS = frozenset(Block)
_PACKETS = frozenset((Block.OBSOLETE, Block.SIMPLE, Block.ENHANCED))


def _blocks(file: _Source) -> Iterator[_Block | None]:
    schemas = SCHEMAS["little"]
    records = start = 0
    first = SECTION_MAGIC  # of the block's header
    while True:
        while (rest := file.take(8 - len(first), "a block header", may_end=not first)) is None:
            yield None
        if not rest:
            return
        head, magic = first + rest, b""
        if head.startswith(SECTION_MAGIC):
            while (word := file.take(4, "a section header")) is None:
                yield None
            if word not in ORDERS:
                raise CaptureError("section of unknown byte order", start)
            schemas, magic = SCHEMAS[ORDERS[word]], word
        kind, length = schemas.fast_block_header.unpack(head)
        size = length - 12 - len(magic)
        if length % 4 or size < 0:
            raise CaptureError(f"block of {length} bytes", start)
        number = None
        if kind in _PACKETS:
            number = records = records + 1
        kept = min(size, _MAX_BLOCK) if kind in _KINDS else 0
        while (body := file.take(kept, "a block", number)) is None:
            yield None
        left = size - kept
        while left:
            if (piece := file.take(min(left, _SKIP), "a block", number)) is None:
                yield None
            else:
                left -= len(piece)
        while (word := file.take(4, "a block", number)) is None:
            yield None
        if word != head[4:]:
            raise CaptureError("block whose two lengths differ", start, number)
        if kind in _KINDS:
            yield _Block(schemas, kind, body, size, start, number)
        start, first = file.offset, b""


def _read_pcapng(file: _Source) -> Iterator[Record | CaptureError | None]:
    section = _Section()
    for block in _blocks(file):
        if block is None:
            yield None
        elif block.kind == Block.SECTION:
            section = _Section()
        elif block.kind == Block.INTERFACE:
            if len(section.interfaces) >= MAX_INTERFACES:
                raise CaptureError(f"section of more than {MAX_INTERFACES} interfaces", block.offset)
            try:
                section.add(_parse_interface(block))
            except CaptureError as error:
                section.add(None)
                yield error.with_traceback(None)
        else:
            try:
                item: Record | CaptureError = _parse_packet(block, section)
            except CaptureError as error:
                item = error.with_traceback(None)
            yield item


def _options(block: _Block, place: int) -> Iterator[tuple[int, bytes]]:
    data = block.body
    while place + 4 <= len(data):
        code, length = block.schemas.fast_option.unpack_from(data, place)  # fast: a block has room for 260,000
        if code == Option.END:
            return
        if place + 4 + length > len(data):
            raise CaptureError(f"option {code} that is longer than its block", block.offset, block.number)
        yield code, data[place + 4 : place + 4 + length]
        place += 4 + (length + 3 & ~3)


def _parse_interface(block: _Block) -> _Interface:
    schema = block.schemas.interface
    try:
        head = schema.parse(block.body)
    except ConstructError:
        raise CaptureError("interface that is too short", block.offset) from None
    units, offset, name = 1_000_000, 0, None
    for code, value in _options(block, schema.sizeof()):
        if code == Option.IF_NAME:
            name = _text(value)[:_LONGEST_NAME] or None
        elif code == Option.IF_TSRESOL and len(value) == 1:
            exponent = value[0] & 0x7F
            if exponent > 63:
                raise CaptureError("time stamps of impossible resolution", block.offset)
            units = int(2**exponent if value[0] & 0x80 else 10**exponent)
        elif code == Option.IF_TSOFFSET and len(value) == 8:
            offset = int.from_bytes(value, block.schemas.byteorder, signed=True)
    return _Interface(head.link_type, head.snaplen, units, offset, name)


_LONGEST_NAME = 256  # characters: those of Windows have 50, of Linux 15


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode("utf-8", "replace")


def _parse_packet(block: _Block, section: _Section) -> Record:
    schemas, kind, start, number = block.schemas, block.kind, block.offset, block.number
    assert number is not None
    head = _head_of(schemas, kind)
    room = block.size - head.size
    if room < 0:
        raise CaptureError("packet that is too short", start, number)
    which = high = low = size = 0
    if kind == Block.SIMPLE:
        (original_length,) = head.unpack_from(block.body)
    elif kind == Block.OBSOLETE:
        which, _, high, low, size, original_length = head.unpack_from(block.body)
    else:
        which, high, low, size, original_length = head.unpack_from(block.body)
    interfaces = section.interfaces
    interface = interfaces[which] if which < len(interfaces) else None
    if interface is None:
        what = "whose description is damaged" if which < len(interfaces) else "which the file does not describe"
        raise CaptureError(f"packet of interface {which}, {what}", start, number)
    if kind == Block.SIMPLE:
        size = min(original_length, interface.snaplen or original_length)
    if size > room:
        raise CaptureError(f"packet of {size} bytes in a block that has {room}", start, number)
    data = block.body[head.size : head.size + min(size, MAX_RECORD)]
    if len(data) < size:  # larger than any record of nfnet: treated as cut short
        original_length = max(size, original_length)
    comment = time_ns = direction = None
    if kind != Block.SIMPLE:
        time_ns = interface.offset * 1_000_000_000 + (high << 32 | low) * 1_000_000_000 // interface.units
        if len(block.body) == block.size:
            for code, value in _options(block, head.size + (size + 3 & ~3)):
                if code == Option.COMMENT:
                    comment = value.decode("utf-8", "replace")
                elif code == Option.PACKET_FLAGS and len(value) == 4:
                    direction = _direction(int.from_bytes(value, schemas.byteorder))
    return Record(
        time_ns,
        interface.link_type,
        data,
        original_length,
        schemas.byteorder,
        start,
        start + 8 + head.size,
        number,
        comment,
        which + 1,
        interface.name,
        direction,
        section.link_types,
    )


def _head_of(schemas: Schemas, kind: int) -> struct.Struct:
    if kind == Block.SIMPLE:
        return schemas.fast_simple_packet
    return schemas.fast_obsolete_packet if kind == Block.OBSOLETE else schemas.fast_enhanced_packet


_PROMISCUOUS = 4  # reception type: a packet for another machine


def _direction(flags: int) -> Direction | None:
    if flags & 3 == 2:
        return Direction.OUTGOING
    if flags & 3 == 1:
        return Direction.FOREIGN if flags >> 2 & 7 == _PROMISCUOUS else Direction.INCOMING
    return None
