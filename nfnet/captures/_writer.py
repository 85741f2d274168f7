"""Writes capture files, pcap and pcapng, record by record."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from .._io import at_fork
from .._io.private_files import create, empty, lock, unlock
from ..protocol.netlink import HOST
from ._format import (
    BYTE_ORDER_MAGIC,
    ENHANCED_SIZE,
    MAX_RECORD,
    NANOSECONDS,
    SCHEMAS,
    SECTION_MAGIC,
    Block,
    Option,
)
from ._link_types import LinkType

_MAX_RECORD = MAX_RECORD + 4096  # with its header and comment


class Encoder:
    """Encodes capture files of one link type: pcapng, or pcap with nanoseconds.

    They have the byte order of this machine, which their contents must have, too.
    """

    def __init__(self, link_type: LinkType, *, pcapng: bool) -> None:
        self._link_type = link_type
        self._pcapng = pcapng
        self._schemas = SCHEMAS[HOST]

    def header(self) -> bytes:
        """Return the beginning of a file."""
        schemas = self._schemas
        if not self._pcapng:
            return bytes(schemas.pcap_header.build({"magic": NANOSECONDS, "link_type": self._link_type}))
        section = schemas.section_header.build({"magic": BYTE_ORDER_MAGIC, "major": 1})
        interface = schemas.interface.build({"link_type": self._link_type})
        resolution = self._option(Option.IF_TSRESOL, b"\x09") + self._option(Option.END, b"")
        return self._block(Block.SECTION, section) + self._block(Block.INTERFACE, interface + resolution)

    def record(self, time_ns: int, data: bytes, *, original_length: int | None = None, comment: str = "") -> bytes:
        """Return a record; the comment is written only to pcapng."""
        length = len(data) if original_length is None else original_length
        if not self._pcapng:
            seconds, fraction = divmod(time_ns, 1_000_000_000)
            return self._schemas.fast_pcap_record.pack(seconds, fraction, len(data), length) + data
        body = _padded(data)
        if comment:
            body += self._option(Option.COMMENT, comment.encode("utf-8", "replace")) + self._option(Option.END, b"")
        size = ENHANCED_SIZE + len(body)
        head = self._schemas.fast_block_header.pack(Block.ENHANCED, size) + self._schemas.fast_enhanced_packet.pack(
            0, time_ns >> 32, time_ns & 0xFFFFFFFF, len(data), length
        )
        return head + body + size.to_bytes(4, HOST)

    def _option(self, code: int, value: bytes) -> bytes:
        return self._schemas.fast_option.pack(code, len(value)) + _padded(value)

    def _block(self, kind: int, body: bytes) -> bytes:
        length = len(body) + 12
        head = self._schemas.block_header.build({"type": kind, "length": length})
        return bytes(head + body + self._schemas.length.build(length))


def is_pcapng(path: str | os.PathLike[str]) -> bool:
    """Return whether a file of this name will be pcapng: every one whose name does not end in ``.pcap``."""
    return Path(os.fspath(path)).suffix != ".pcap"


def whole_size(file: BinaryIO, header: bytes) -> int:
    """Return the size of a file without a part of a record at its end, which a killed process can leave.

    header: the `Encoder.header` with which nfnet began the file. A file that does not begin with it, or has something
        else than records behind it, is not one of nfnet's, or is damaged, and counts as whole.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(len(header)) != header:
        return size
    schemas = SCHEMAS[HOST]
    pcapng = header.startswith(SECTION_MAGIC)
    head_size = schemas.fast_block_header.size if pcapng else schemas.fast_pcap_record.size
    place = len(header)
    while size - place >= head_size:
        file.seek(place)
        head = file.read(head_size)
        if pcapng:
            kind, length = schemas.fast_block_header.unpack(head)
            good = kind == Block.ENHANCED and length >= ENHANCED_SIZE
        else:
            length = head_size + schemas.fast_pcap_record.unpack(head)[2]
            good = length > head_size
        if not good or length > _MAX_RECORD:
            return size
        if length > size - place:
            break
        place += length
    return place


class Writer:
    """Writes a capture file of one link type.

    path: the name of the file: pcapng, or pcap with nanoseconds if it ends in ``.pcap``.
    link_type: the link type of its records.
    begin: whether to remove the file's old contents now. If False, `begin` does that.

    It has the byte order of this machine, which the records must have, too. Only the owner can read the file, because
    packets can contain secrets. In a directory to which others can write, a link, FIFO or file of another user is
    refused with an OSError. Raises OSError, EBUSY if there is another writer of the same file.
    """

    def __init__(self, path: str | os.PathLike[str], link_type: LinkType, *, begin: bool = True) -> None:
        # First an object that owns the file, then the lock: if a signal handler raises here, the object releases both.
        self._file = _LockedFile(os.fspath(path), "w", opener=lambda name, flags: create(name))
        self._stream: BinaryIO = io.BufferedWriter(self._file, 1 << 16)
        self._encoder = Encoder(link_type, pcapng=is_pcapng(path))
        at_fork.register(self._file)
        try:
            lock(self._file.fileno(), path)
            if begin:
                self.begin()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Remove the file's old contents, and write its header. Call this once, first. Raises OSError."""
        empty(self._file.fileno())
        self._stream.write(self._encoder.header())

    def write(self, time_ns: int, data: bytes, *, original_length: int | None = None, comment: str = "") -> None:
        """Append a record; the comment is written only to pcapng."""
        self._stream.write(self._encoder.record(time_ns, data, original_length=original_length, comment=comment))

    def flush(self) -> None:
        """Write everything to the disk."""
        self._stream.flush()

    def close(self) -> None:
        """Close the file. Can be called twice."""
        self._stream.close()


class _LockedFile(io.FileIO, at_fork.AtFork):
    """A file of which this process is the only writer."""

    def close(self) -> None:
        if not self.closed:
            unlock(self.fileno())
        super().close()

    def after_fork(self) -> None:
        # A child must not keep the lock, nor write its copy of the buffer, which the parent will write.
        io.FileIO.close(self)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
