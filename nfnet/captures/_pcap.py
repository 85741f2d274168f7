"""Capture files: pcap and pcapng, read and written record by record.

Recordings of netlink have link type NETLINK, as a Linux ``nlmon`` device or Wireshark saves them; NFLOG is what
``tcpdump -i nflog:N`` saves; RAW, IPV4 and IPV6 are packets alone. A file of any size is read in constant memory.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Iterator
from enum import IntEnum
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from construct import (
    Const,
    ConstructError,
    Default,
    Int16ub,
    Int16ul,
    Int32ub,
    Int32ul,
    Int64sb,
    Int64sl,
    Padding,
    Struct,
)

from .._io import at_fork
from .._io.private_files import create, empty, lock, unlock
from ..errors import CaptureError, DecodeError
from ..protocol import byteorder
from ..protocol.layout import compile_struct
from ..protocol.netlink import HOST, ByteOrder
from ..protocol.nfnetlink import NETLINK_NETFILTER

# No record of ours is larger: a datagram of log messages has 256 KiB. No memory is taken for what claims to be.
MAX_RECORD = 1 << 20
_MAX_BLOCK = MAX_RECORD + 4096  # with its header and options
_SKIP = 1 << 16  # what is not read is skipped in pieces of this size
# All that grows with a file are the interfaces of a section of pcapng.
MAX_INTERFACES = 1 << 12


class LinkType(IntEnum):
    """``LINKTYPE_*``: what the records of a file are."""

    RAW = 101
    IPV4 = 228
    IPV6 = 229
    NFLOG = 239
    NETLINK = 253


class Record(NamedTuple):
    """One record of a capture.

    ``time_ns`` is in nanoseconds since 1970, UTC; None for the simple packets of pcapng, which have no time.
    ``original_length`` is larger than ``data`` if that was cut short. ``byteorder`` is that of the file, "little" or
    "big". ``offset`` is where the record begins in the file, and ``data_offset`` where its data do. ``number`` counts
    all records of the file from 1, as Wireshark does. Only pcapng has comments.
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

    @property
    def size(self) -> int:
        """How many bytes the data had before they were cut short."""
        return max(len(self.data), self.original_length)

    def error(self, what: str, place: int = 0) -> CaptureError:
        """The error that says what is wrong at ``place`` of the data."""
        return CaptureError(what, self.data_offset + place, self.number)


class _Schemas(NamedTuple):
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
    # The same, fast, for what there is one of for every record.
    fast_pcap_record: struct.Struct
    fast_block_header: struct.Struct
    fast_enhanced_packet: struct.Struct
    fast_simple_packet: struct.Struct
    fast_option: struct.Struct


def _schemas(order: ByteOrder) -> _Schemas:
    little = order == "little"
    u16, u32 = (Int16ul, Int32ul) if little else (Int16ub, Int32ub)
    s64 = Int64sl if little else Int64sb
    pcap_record = Struct("seconds" / u32, "fraction" / u32, "length" / u32, "original_length" / u32)
    block_header = Struct("type" / u32, "length" / u32)
    enhanced_packet = Struct(
        "interface" / u32, "time_high" / u32, "time_low" / u32, "length" / u32, "original_length" / u32
    )
    simple_packet = Struct("original_length" / u32)
    option = Struct("code" / u16, "length" / u16)

    def fast(schema: Any) -> struct.Struct:
        return struct.Struct(("<" if little else ">") + compile_struct(schema).format[1:])

    return _Schemas(
        order,
        pcap_header=Struct(
            "magic" / u32,
            "major" / Default(u16, 2),
            "minor" / Default(u16, 4),
            Padding(8),
            "snaplen" / Default(u32, MAX_RECORD),
            "link_type" / u32,  # the upper bits say how long the frame check sequence is
        ),
        pcap_record=pcap_record,
        block_header=block_header,
        section_header=Struct(
            "magic" / Const(_BYTE_ORDER_MAGIC, u32),
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
        fast_block_header=fast(block_header),
        fast_enhanced_packet=fast(enhanced_packet),
        fast_simple_packet=fast(simple_packet),
        fast_option=fast(option),
    )


_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = _KINDS = 0x0A0D0D0A, 1, 3, 6  # of blocks
_END, _COMMENT, _FLAGS, _TSRESOL, _TSOFFSET = 0, 1, 2, 9, 14
_SCHEMAS: dict[ByteOrder, _Schemas] = {"little": _schemas("little"), "big": _schemas("big")}
_ENHANCED_SIZE = 32  # of an enhanced packet block without the packet and its options
_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D

# What files begin with.
MAGIC_SIZE = 4
_SECTION_MAGIC = _SECTION.to_bytes(4, "big")  # the same in both byte orders
_PCAP_MAGICS = {
    magic.to_bytes(4, order): (schemas, unit)
    for order, schemas in _SCHEMAS.items()
    for magic, unit in ((_MICROSECONDS, 1000), (_NANOSECONDS, 1))
}
_ORDERS = {_BYTE_ORDER_MAGIC.to_bytes(4, order): order for order in _SCHEMAS}

# What stands before a netlink datagram (LINKTYPE_NETLINK), in network byte order.
netlink_header = Struct(
    "packet_type" / Default(Int16ub, 4),  # outgoing, as nlmon has it for both directions
    "arphrd" / Const(824, Int16ub),
    Padding(10),
    "family" / Int16ub,
)
NETLINK_HEADER_SIZE: int = netlink_header.sizeof()


def netfilter_datagram(record: Record) -> bytes | None:
    """The datagram in a record of link type NETLINK, in the byte order of this machine; None if it is not netfilter's.

    In the record it is in that of the machine that recorded it, which is that of the file. But programs that copy
    captures write files of their own order, and leave what is in the records as it was: then the length of the first
    message tells. If the record was cut short the datagram is, too. Raises CaptureError for a record without the
    pseudo-header, and for a damaged datagram, if it has to be turned.
    """
    try:
        header = netlink_header.parse(record.data)
    except ConstructError:
        raise record.error("no header of netlink captures") from None
    if header.family != NETLINK_NETFILTER:
        return None
    datagram, size = record.data[NETLINK_HEADER_SIZE:], record.size - NETLINK_HEADER_SIZE
    try:
        return byteorder.to_host(datagram, byteorder.order_of(datagram, record.byteorder, size), size)
    except DecodeError as error:
        raise record.error(error.what, NETLINK_HEADER_SIZE + error.offset) from None


class _Source:
    """Reads whole pieces, and says where a file stops short of one."""

    def __init__(self, stream: BinaryIO, head: bytes) -> None:
        self._stream = stream
        self._pieces = [head]  # of what was asked for and is not whole yet
        self._held = len(head)  # bytes in them
        self.offset = 0

    def take(self, size: int, what: str, record: int | None = None, *, may_end: bool = False) -> bytes | None:
        """The next bytes; None if they are not all there yet, which is to be asked again.

        At the end of the file b"" if it ``may_end`` here; else, and in the middle, CaptureError.
        """
        while self._held < size:
            data = self._stream.read(size - self._held)
            if data is None:  # a pipe that does not block
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
    """The records of a pcap or pcapng file, of either byte order, one at a time.

    Raises CaptureError for what is no such file, or is damaged, or stops in the middle of a record; the records
    before that come first. Raises OSError if the file cannot be opened or read.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            yield from read(stream)
        return
    for item in scan(source):
        if item is None:
            raise BlockingIOError(errno.EAGAIN, "the file does not block and has no more yet")
        if isinstance(item, CaptureError):
            raise item
        yield item


def scan(stream: BinaryIO, head: bytes = b"") -> Iterator[Record | CaptureError | None]:
    """As `read`, but a damaged record is there as the error that says so, and what is behind it follows.

    An error that makes the rest unreadable is the last. None means that there is no more yet, where ``stream`` is a
    pipe that does not block. ``head`` are bytes that were read from it before, four at most.
    """
    file = _Source(stream, head)
    try:
        while (magic := file.take(MAGIC_SIZE, "a header", may_end=True)) is None:
            yield None
        if not magic:
            raise CaptureError("the file is empty", 0)
        if magic == _SECTION_MAGIC:
            yield from _read_pcapng(file)
        elif magic in _PCAP_MAGICS:
            yield from _read_pcap(file, magic)
        else:
            raise CaptureError("neither pcap nor pcapng", 0)
    except CaptureError as error:
        yield error


def is_capture(head: bytes) -> bool:
    """Whether a file that begins with these MAGIC_SIZE bytes is pcap or pcapng."""
    return head == _SECTION_MAGIC or head in _PCAP_MAGICS


def _read_pcap(file: _Source, magic: bytes) -> Iterator[Record | None]:
    schemas, unit = _PCAP_MAGICS[magic]
    while (rest := file.take(schemas.pcap_header.sizeof() - MAGIC_SIZE, "the file header")) is None:
        yield None
    link_type = schemas.pcap_header.parse(magic + rest).link_type & 0xFFFF
    size = schemas.fast_pcap_record.size
    for number in count(1):
        start = file.offset
        while (head := file.take(size, "a record", number, may_end=True)) is None:
            yield None
        if not head:
            return
        seconds, fraction, length, original_length = schemas.fast_pcap_record.unpack(head)
        if length > MAX_RECORD:  # garbage, as a rule, and where the next one begins is not known
            raise CaptureError(f"record of {length} bytes", start, number)
        while (data := file.take(length, "a record", number)) is None:
            yield None
        time_ns, order = seconds * 1_000_000_000 + fraction * unit, schemas.byteorder
        yield Record(time_ns, link_type, data, original_length, order, start, start + size, number)


class _Interface(NamedTuple):
    link_type: int
    snaplen: int
    units: int  # in a second
    offset: int  # seconds


class _Block(NamedTuple):
    """A block of pcapng, of a kind that is read here; of ``size`` bytes of its body at most _MAX_BLOCK are kept."""

    schemas: _Schemas
    kind: int
    body: bytes
    size: int
    offset: int
    number: int | None  # of the record that it is


def _blocks(file: _Source) -> Iterator[_Block | None]:
    schemas = _SCHEMAS["little"]
    records = start = 0
    first = _SECTION_MAGIC  # of the block's header
    while True:
        while (rest := file.take(8 - len(first), "a block header", may_end=not first)) is None:
            yield None
        if not rest:
            return
        head, magic = first + rest, b""
        if head.startswith(_SECTION_MAGIC):
            while (word := file.take(4, "a section header")) is None:
                yield None
            if word not in _ORDERS:
                raise CaptureError("section of unknown byte order", start)
            schemas, magic = _SCHEMAS[_ORDERS[word]], word
        kind, length = schemas.fast_block_header.unpack(head)
        size = length - 12 - len(magic)
        if length % 4 or size < 0:
            raise CaptureError(f"block of {length} bytes", start)
        number = None
        if kind in (_ENHANCED, _SIMPLE):
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
    interfaces: list[_Interface | None] = []  # of the section; None for one whose description is damaged
    for block in _blocks(file):
        if block is None:
            yield None
        elif block.kind == _SECTION:
            interfaces = []
        elif block.kind == _INTERFACE:
            if len(interfaces) >= MAX_INTERFACES:
                raise CaptureError(f"section of more than {MAX_INTERFACES} interfaces", block.offset)
            try:
                interfaces.append(_parse_interface(block))
            except CaptureError as error:
                interfaces.append(None)
                yield error
        else:
            try:
                item: Record | CaptureError = _parse_packet(block, interfaces)
            except CaptureError as error:
                item = error
            yield item


def _options(block: _Block, place: int) -> Iterator[tuple[int, bytes]]:
    data = block.body
    while place + 4 <= len(data):
        code, length = block.schemas.fast_option.unpack_from(data, place)  # a block has room for 260,000 of them
        if code == _END:
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
    units, offset = 1_000_000, 0
    for code, value in _options(block, schema.sizeof()):
        if code == _TSRESOL and len(value) == 1:
            exponent = value[0] & 0x7F
            if exponent > 63:
                raise CaptureError("time stamps of impossible resolution", block.offset)
            units = int(2**exponent if value[0] & 0x80 else 10**exponent)
        elif code == _TSOFFSET and len(value) == 8:
            offset = int.from_bytes(value, block.schemas.byteorder, signed=True)
    return _Interface(head.link_type, head.snaplen, units, offset)


def _parse_packet(block: _Block, interfaces: list[_Interface | None]) -> Record:
    schemas, simple, start, number = block.schemas, block.kind == _SIMPLE, block.offset, block.number
    assert number is not None
    head = schemas.fast_simple_packet if simple else schemas.fast_enhanced_packet
    room = block.size - head.size
    if room < 0:
        raise CaptureError("packet that is too short", start, number)
    which = high = low = size = 0
    if simple:
        (original_length,) = head.unpack_from(block.body)
    else:
        which, high, low, size, original_length = head.unpack_from(block.body)
    interface = interfaces[which] if which < len(interfaces) else None
    if interface is None:
        what = "whose description is damaged" if which < len(interfaces) else "which the file does not describe"
        raise CaptureError(f"packet of interface {which}, {what}", start, number)
    if simple:
        size = min(original_length, interface.snaplen or original_length)
    if size > room:
        raise CaptureError(f"packet of {size} bytes in a block that has {room}", start, number)
    data = block.body[head.size : head.size + min(size, MAX_RECORD)]
    if len(data) < size:  # larger than any of ours: as if it had been cut short
        original_length = max(size, original_length)
    comment = time_ns = None
    if not simple:
        time_ns = interface.offset * 1_000_000_000 + (high << 32 | low) * 1_000_000_000 // interface.units
        if len(block.body) == block.size:
            for code, value in _options(block, head.size + (size + 3 & ~3)):
                if code == _COMMENT:
                    comment = value.decode("utf-8", "replace")
    order, data_offset = schemas.byteorder, start + 8 + head.size
    return Record(time_ns, interface.link_type, data, original_length, order, start, data_offset, number, comment)


class Writer:
    """Writes a capture file of one link type.

    path: the name of the file: pcapng, or pcap with nanoseconds if it ends in ``.pcap``.
    link_type: what the data of its records are.
    begin: whether what was in the file is removed now. If False, that happens when `begin` is called.

    It has the byte order of this machine, as what is written to it must have. The file is made anew, readable by its
    owner alone, for packets may hold secrets; see `create`. Raises OSError, EBUSY if there is another writer of the
    same file.
    """

    def __init__(self, path: str | os.PathLike[str], link_type: LinkType, *, begin: bool = True) -> None:
        # First an object that has the file, then the lock: if a signal handler raises here, it lets go of both.
        self._file = _LockedFile(os.fspath(path), "w", opener=lambda name, flags: create(name))
        self._stream: BinaryIO = io.BufferedWriter(self._file, 1 << 16)
        self._pcapng = Path(os.fspath(path)).suffix != ".pcap"
        self._schemas = _SCHEMAS[HOST]
        self._link_type = link_type
        at_fork.register(self._file)
        try:
            lock(self._file.fileno(), path)
            if begin:
                self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Remove what is in the file, and write its header. Once, and before everything else. Raises OSError."""
        link_type = self._link_type
        empty(self._file.fileno())
        if self._pcapng:
            self._block(_SECTION, self._schemas.section_header.build({"magic": _BYTE_ORDER_MAGIC, "major": 1}))
            resolution = self._option(_TSRESOL, b"\x09") + self._option(_END, b"")
            self._block(_INTERFACE, self._schemas.interface.build({"link_type": link_type}) + resolution)
        else:
            self._stream.write(self._schemas.pcap_header.build({"magic": _NANOSECONDS, "link_type": link_type}))

    def write(self, time_ns: int, data: bytes, *, original_length: int | None = None, comment: str = "") -> None:
        """Append a record; the comment goes into pcapng alone."""
        length = len(data) if original_length is None else original_length
        if self._pcapng:
            body = _padded(data)
            if comment:
                body += self._option(_COMMENT, comment.encode("utf-8", "replace")) + self._option(_END, b"")
            size = _ENHANCED_SIZE + len(body)
            head = self._schemas.fast_block_header.pack(_ENHANCED, size) + self._schemas.fast_enhanced_packet.pack(
                0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length
            )
            self._stream.write(head + body + size.to_bytes(4, HOST))
        else:
            seconds, fraction = divmod(time_ns, 1_000_000_000)
            self._stream.write(self._schemas.fast_pcap_record.pack(seconds, fraction, len(data), length) + data)

    def flush(self) -> None:
        """Put everything on its way to the disk."""
        self._stream.flush()

    def close(self) -> None:
        """May be called twice."""
        self._stream.close()

    def _option(self, code: int, value: bytes) -> bytes:
        return self._schemas.fast_option.pack(code, len(value)) + _padded(value)

    def _block(self, kind: int, body: bytes) -> None:
        length = len(body) + 12
        head = self._schemas.block_header.build({"type": kind, "length": length})
        self._stream.write(head + body + self._schemas.length.build(length))


class _LockedFile(io.FileIO, at_fork.AtFork):
    """A file of which this process is the only writer."""

    def close(self) -> None:
        if not self.closed:
            unlock(self.fileno())
        super().close()

    def after_fork(self) -> None:
        # A child neither keeps the lock nor writes, as it ends, what its parent has in its buffer and will write.
        io.FileIO.close(self)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
