"""Writes capture files, pcap and pcapng, record by record."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

from .._io import at_fork
from .._io.private_files import create, empty, lock, unlock
from ..protocol.netlink import HOST
from ._format import BYTE_ORDER_MAGIC, ENHANCED_SIZE, NANOSECONDS, SCHEMAS, Block, Option
from ._link_types import LinkType


class Encoder:
    """Makes the bytes of capture files of one link type: pcapng, or pcap with nanoseconds.

    They are in the byte order of this machine, as what is put into them must be.
    """

    def __init__(self, link_type: LinkType, *, pcapng: bool) -> None:
        self._link_type = link_type
        self._pcapng = pcapng
        self._schemas = SCHEMAS[HOST]

    def header(self) -> bytes:
        """What a file begins with."""
        schemas = self._schemas
        if not self._pcapng:
            return bytes(schemas.pcap_header.build({"magic": NANOSECONDS, "link_type": self._link_type}))
        section = schemas.section_header.build({"magic": BYTE_ORDER_MAGIC, "major": 1})
        interface = schemas.interface.build({"link_type": self._link_type})
        resolution = self._option(Option.IF_TSRESOL, b"\x09") + self._option(Option.END, b"")
        return self._block(Block.SECTION, section) + self._block(Block.INTERFACE, interface + resolution)

    def record(self, time_ns: int, data: bytes, *, original_length: int | None = None, comment: str = "") -> bytes:
        """A record; the comment goes into pcapng alone."""
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
    """Whether a file of this name is to be pcapng: each one whose name does not end in ``.pcap``."""
    return Path(os.fspath(path)).suffix != ".pcap"


class Writer:
    """Writes a capture file of one link type.

    path: the name of the file: pcapng, or pcap with nanoseconds if it ends in ``.pcap``.
    link_type: what the data of its records are.
    begin: whether what was in the file is removed now. If False, that happens when `begin` is called.

    It has the byte order of this machine, as what is written to it must have. The file is made anew, readable by its
    owner alone, for packets may hold secrets. Raises OSError, EBUSY if there is another writer of the
    same file.
    """

    def __init__(self, path: str | os.PathLike[str], link_type: LinkType, *, begin: bool = True) -> None:
        # First an object that has the file, then the lock: if a signal handler raises here, it lets go of both.
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
        """Remove what is in the file, and write its header. Once, and before everything else. Raises OSError."""
        empty(self._file.fileno())
        self._stream.write(self._encoder.header())

    def write(self, time_ns: int, data: bytes, *, original_length: int | None = None, comment: str = "") -> None:
        """Append a record; the comment goes into pcapng alone."""
        self._stream.write(self._encoder.record(time_ns, data, original_length=original_length, comment=comment))

    def flush(self) -> None:
        """Put everything on its way to the disk."""
        self._stream.flush()

    def close(self) -> None:
        """May be called twice."""
        self._stream.close()


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
