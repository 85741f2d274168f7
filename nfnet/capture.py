"""Capture files: pcap and pcapng, read and written record by record.

Recordings of netlink have link type NETLINK, as a Linux ``nlmon`` device or Wireshark saves them; NFLOG is what
``tcpdump -i nflog:N`` saves; RAW, IPV4 and IPV6 are packets alone. A file of any size is read in constant memory.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator
from enum import IntEnum
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

from ._io import at_fork
from ._io.private_files import create, empty, lock, unlock
from .errors import CaptureError
from .protocol import byteorder
from .protocol.layout import compile_struct
from .protocol.netlink import HOST, ByteOrder
from .protocol.nfnetlink import NETLINK_NETFILTER

# No record is larger: a datagram of log messages has 256 KiB. Whatever claims to be is no capture of ours, and memory
# is not taken for it.
MAX_RECORD = 1 << 20
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

    ``time_ns`` is in nanoseconds since 1970, UTC. ``original_length`` is larger than ``data`` if that was cut short.
    ``byteorder`` is that of the file, "little" or "big". ``offset`` is where the record begins in the file. Only
    pcapng has comments.
    """

    time_ns: int
    link_type: int
    data: bytes
    original_length: int
    byteorder: ByteOrder
    offset: int
    comment: str | None = None


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
    read_option: Any  # the same, fast
    length: Any
    # For each packet: a record of pcap; an enhanced packet block of pcapng from its type to its lengths; and what else
    # a block has.
    pack_pcap_record: Callable[..., bytes]
    pack_enhanced_packet: Callable[..., bytes]
    pack_option: Callable[..., bytes]
    pack_length: Callable[..., bytes]


def _schemas(order: ByteOrder) -> _Schemas:
    little = order == "little"
    u16, u32 = (Int16ul, Int32ul) if little else (Int16ub, Int32ub)
    s64 = Int64sl if little else Int64sb
    pcap_record = Struct("seconds" / u32, "fraction" / u32, "length" / u32, "original_length" / u32)
    block_header = Struct("type" / u32, "length" / u32)
    enhanced_packet = Struct(
        "interface" / u32, "time_high" / u32, "time_low" / u32, "length" / u32, "original_length" / u32
    )
    option = Struct("code" / u16, "length" / u16)

    def compiled(*schemas: Any) -> struct.Struct:
        fields = "".join(compile_struct(schema).format[1:] for schema in schemas)
        return struct.Struct(("<" if little else ">") + fields)

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
        simple_packet=Struct("original_length" / u32),
        option=option,
        read_option=compiled(option).unpack_from,
        length=u32,
        pack_pcap_record=compiled(pcap_record).pack,
        pack_enhanced_packet=compiled(block_header, enhanced_packet).pack,
        pack_option=compiled(option).pack,
        pack_length=compiled(u32).pack,
    )


_BYTE_ORDER_MAGIC = 0x1A2B3C4D
_SECTION, _INTERFACE, _SIMPLE, _ENHANCED = 0x0A0D0D0A, 1, 3, 6
_END, _COMMENT, _FLAGS, _TSRESOL, _TSOFFSET = 0, 1, 2, 9, 14
_SCHEMAS: dict[ByteOrder, _Schemas] = {"little": _schemas("little"), "big": _schemas("big")}
_ENHANCED_SIZE = 32  # of an enhanced packet block without the packet and its options
_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D

# What stands before a netlink datagram (LINKTYPE_NETLINK), in network byte order.
netlink_header = Struct(
    "packet_type" / Default(Int16ub, 4),  # outgoing, as nlmon has it for both directions
    "arphrd" / Const(824, Int16ub),
    Padding(10),
    "family" / Int16ub,
)


def netfilter_datagram(record: Record) -> bytes | None:
    """The datagram in a record of link type NETLINK, in the byte order of this machine; None if it is not netfilter's.

    In the record it is in that of the machine that recorded it, which is that of the file. But programs that copy
    captures write files of their own order, and leave what is in the records as it was: then the length of the first
    message tells. Raises CaptureError for a record without the pseudo-header, and DecodeError for a damaged datagram,
    if it has to be turned.
    """
    size = netlink_header.sizeof()
    try:
        header = netlink_header.parse(record.data)
    except ConstructError:
        raise CaptureError("record without the header of netlink captures", record.offset) from None
    if header.family != NETLINK_NETFILTER:
        return None
    datagram = record.data[size:]
    size = max(len(record.data), record.original_length) - size
    return byteorder.to_host(datagram, byteorder.order_of(datagram, record.byteorder, size))


class _Source:
    """Reads whole pieces, and says where a file stops short of one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.offset = 0

    def take(self, size: int, what: str) -> bytes:
        data = self._stream.read(size)
        while len(data) < size and (more := self._stream.read(size - len(data))):
            data += more
        if len(data) < size:
            raise CaptureError(f"the file ends in the middle of {what}", self.offset + len(data))
        self.offset += size
        return data

    def at_end(self, first: int) -> bytes:
        """The next bytes, or nothing at the end of the file."""
        data = self._stream.read(1)
        if not data:
            return b""
        self.offset += 1
        return data + self.take(first - 1, "a header")

    def parse(self, schema: Any, what: str, head: bytes = b"") -> Any:
        data = head + self.take(schema.sizeof() - len(head), what)
        try:
            return schema.parse(data)
        except ConstructError:
            raise CaptureError(f"{what} that makes no sense", self.offset - len(data)) from None


def read(source: str | os.PathLike[str] | BinaryIO) -> Iterator[Record]:
    """The records of a pcap or pcapng file, of either byte order, one at a time.

    Raises CaptureError for what is no such file, or is damaged, or stops in the middle of a record; the records
    before that come first. Raises OSError if the file cannot be opened.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as stream:
            yield from read(stream)
        return
    file = _Source(source)
    head = file.at_end(4)
    if not head:
        raise CaptureError("the file is empty", 0)
    for schemas in _SCHEMAS.values():
        magic = schemas.length.parse(head)
        if magic in (_MICROSECONDS, _NANOSECONDS):
            yield from _read_pcap(file, schemas, head, 1 if magic == _NANOSECONDS else 1000)
            return
        if magic == _SECTION:
            yield from _read_pcapng(file, head)
            return
    raise CaptureError("neither pcap nor pcapng", 0)


def _read_pcap(file: _Source, schemas: _Schemas, head: bytes, unit: int) -> Iterator[Record]:
    header = file.parse(schemas.pcap_header, "the file header", head)
    while True:
        start = file.offset
        first = file.at_end(schemas.pcap_record.sizeof())
        if not first:
            return
        record = schemas.pcap_record.parse(first)
        if record.length > MAX_RECORD:
            raise CaptureError(f"record of {record.length} bytes", start)
        data = file.take(record.length, "a record")
        time_ns = record.seconds * 1_000_000_000 + record.fraction * unit
        link_type = header.link_type & 0xFFFF
        yield Record(time_ns, link_type, data, record.original_length, schemas.byteorder, start)


class _Interface(NamedTuple):
    link_type: int
    snaplen: int
    units: int  # in a second
    offset: int  # seconds


def _read_pcapng(file: _Source, head: bytes) -> Iterator[Record]:
    schemas = _SCHEMAS["little"]
    interfaces: list[_Interface] = []
    start = 0
    while head:
        if schemas.length.parse(head) == _SECTION:  # reads the same in both byte orders
            length_bytes = file.take(4, "a section header")
            magic = file.take(4, "a section header")
            schemas = _SCHEMAS["little" if magic == _BYTE_ORDER_MAGIC.to_bytes(4, "little") else "big"]
            if schemas.length.parse(magic) != _BYTE_ORDER_MAGIC:
                raise CaptureError("section of unknown byte order", start)
            length, known, interfaces = schemas.length.parse(length_bytes), magic, []
        else:
            length, known = schemas.length.parse(file.take(4, "a block header")), b""
        if length % 4 or not 12 + len(known) <= length <= MAX_RECORD + 4096:
            raise CaptureError(f"block of {length} bytes", start)
        body = known + file.take(length - 12 - len(known), "a block")
        if schemas.length.parse(file.take(4, "a block")) != length:
            raise CaptureError("block whose two lengths differ", start)
        kind = schemas.length.parse(head)
        if kind == _INTERFACE:
            if len(interfaces) >= MAX_INTERFACES:
                raise CaptureError(f"section of more than {MAX_INTERFACES} interfaces", start)
            interfaces.append(_parse_interface(schemas, body, start))
        elif kind in (_ENHANCED, _SIMPLE):
            yield _parse_packet(schemas, kind, body, interfaces, start)
        start = file.offset
        head = file.at_end(4)


def _parse(schema: Any, data: bytes, what: str, offset: int) -> Any:
    try:
        return schema.parse(data)
    except ConstructError:
        raise CaptureError(f"{what} that is too short", offset) from None


def _options(schemas: _Schemas, data: bytes, offset: int) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 4 <= len(data):
        code, length = schemas.read_option(data, place)  # a block has room for 260,000 of them
        if code == _END:
            return
        if place + 4 + length > len(data):
            raise CaptureError(f"option {code} that is longer than its block", offset)
        yield code, data[place + 4 : place + 4 + length]
        place += 4 + (length + 3 & ~3)


def _parse_interface(schemas: _Schemas, body: bytes, start: int) -> _Interface:
    head = _parse(schemas.interface, body, "interface", start)
    units, offset = 1_000_000, 0
    for code, value in _options(schemas, body[schemas.interface.sizeof() :], start):
        if code == _TSRESOL and len(value) == 1:
            exponent = value[0] & 0x7F
            if exponent > 63:
                raise CaptureError("time stamps of impossible resolution", start)
            units = int(2**exponent if value[0] & 0x80 else 10**exponent)
        elif code == _TSOFFSET and len(value) == 8:
            offset = int.from_bytes(value, schemas.byteorder, signed=True)
    return _Interface(head.link_type, head.snaplen, units, offset)


def _parse_packet(schemas: _Schemas, kind: int, body: bytes, interfaces: list[_Interface], start: int) -> Record:
    if kind == _SIMPLE:
        head = _parse(schemas.simple_packet, body, "packet", start)
        number, time, size = 0, 0, head.original_length
    else:
        head = _parse(schemas.enhanced_packet, body, "packet", start)
        number, time, size = head.interface, head.time_high << 32 | head.time_low, head.length
    if number >= len(interfaces):
        raise CaptureError(f"packet of interface {number}, which the file does not describe", start)
    interface = interfaces[number]
    if kind == _SIMPLE and interface.snaplen:
        size = min(size, interface.snaplen)
    place = (schemas.simple_packet if kind == _SIMPLE else schemas.enhanced_packet).sizeof()
    data = body[place : place + size]
    if len(data) < size:
        raise CaptureError(f"packet of {size} bytes in a block that has {len(data)}", start)
    comment = None
    if kind == _ENHANCED:
        for code, value in _options(schemas, body[place + (size + 3 & ~3) :], start):
            if code == _COMMENT:
                comment = value.decode("utf-8", "replace")
    time_ns = interface.offset * 1_000_000_000 + time * 1_000_000_000 // interface.units
    return Record(time_ns, interface.link_type, data, head.original_length, schemas.byteorder, start, comment)


class Writer:
    """Writes a capture file of one link type, to ``path``: pcapng, or pcap with nanoseconds if that ends in ``.pcap``.

    It has the byte order of this machine, as what is written to it must have. The file is made anew, whatever was in
    it, readable by its owner alone, for packets may hold secrets; see `files.create`. Without ``begin`` that happens
    only when `begin` is called. Raises OSError, EBUSY if there is another writer of the same file.
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
            head = self._schemas.pack_enhanced_packet(
                _ENHANCED, size, 0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length
            )
            self._stream.write(head + body + self._schemas.pack_length(size))
        else:
            seconds, fraction = divmod(time_ns, 1_000_000_000)
            self._stream.write(self._schemas.pack_pcap_record(seconds, fraction, len(data), length) + data)

    def flush(self) -> None:
        """Put everything on its way to the disk."""
        self._stream.flush()

    def close(self) -> None:
        """May be called twice."""
        self._stream.close()

    def _option(self, code: int, value: bytes) -> bytes:
        return self._schemas.pack_option(code, len(value)) + _padded(value)

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
