"""Compressed files: decompress a stream for `_reader` as the bytes arrive, in bounded memory."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, BinaryIO, NamedTuple

from ..errors import CaptureError

_PIECE = 1 << 16  # bytes of the compressed file that are read at once
_MEMORY = 80 << 20  # for the dictionary of xz, for which a file can demand gigabytes; ``xz -9`` uses 64 MiB


class _Gzip:
    """`zlib.decompressobj` with the interface that the other modules have."""

    def __init__(self, zlib: Any) -> None:
        self._inner = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return bytes(self._inner.decompress(self._inner.unconsumed_tail + data, max_length))


class _Format(NamedTuple):
    """A format: the magic bytes of its files, the module that reads it, and a function that makes a decompressor.

    ``command`` decompresses a file to standard output, for a Python without the module.
    """

    name: str
    magic: bytes
    command: str
    module: str
    make: Callable[[Any], Any]
    error: str  # the module's exception for damaged data


_FORMATS = (
    _Format("gzip", b"\x1f\x8b\x08", "gzip -dc", "zlib", _Gzip, "error"),
    _Format("bzip2", b"BZh", "bzip2 -dc", "bz2", lambda bz2: bz2.BZ2Decompressor(), ""),  # an OSError
    _Format(
        "xz",
        b"\xfd7zX",
        "xz -dc",
        "lzma",
        lambda lzma: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY),
        "LZMAError",
    ),
    _Format(
        "zstd", b"\x28\xb5\x2f\xfd", "zstd -dc", "compression.zstd", lambda zstd: zstd.ZstdDecompressor(), "ZstdError"
    ),
    _Format("lz4", b"\x04\x22\x4d\x18", "lz4 -dc", "", lambda _: None, ""),  # Python has no module for it
)


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins with these bytes, four at least, is compressed."""
    return any(head.startswith(row.magic) for row in _FORMATS)


def decompressed(stream: BinaryIO, head: bytes) -> BinaryIO:
    """Return the decompressed contents of a file, of which ``head`` was read before, as a stream.

    Its ``read`` returns None if that of ``stream`` does, and raises CaptureError for damaged data. Raises
    CaptureError if this Python cannot read the format.
    """
    (row,) = (row for row in _FORMATS if head.startswith(row.magic))
    try:
        module = import_module(row.module) if row.module else None
    except ImportError:
        module = None
    if module is None:
        command = f"{row.command} FILE | nfnet replay -"
        raise CaptureError(f"compressed with {row.name}, which this Python cannot read; decompress it: {command}", 0)
    return io.BufferedReader(_Decompressed(stream, head, row, module), _PIECE)


class _Decompressed(io.RawIOBase):
    """The members of a compressed file, one after the other."""

    def __init__(self, stream: BinaryIO, head: bytes, row: _Format, module: Any) -> None:
        self._stream, self._input = stream, head
        self._name = row.name
        self._new_member: Callable[[], Any] = partial(row.make, module)
        self._error: tuple[type[Exception], ...] = (getattr(module, row.error) if row.error else OSError, ValueError)
        self._member: Any = None  # None between two members
        self._offset = 0  # in the decompressed data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        data = self._read(len(buffer))
        if data is None:
            return None
        buffer[: len(data)] = data
        self._offset += len(data)
        return len(data)

    def _read(self, size: int) -> bytes | None:
        while True:
            ended = False
            if not self._input and (self._member is None or self._member.needs_input):
                more = self._stream.read(_PIECE)
                if more is None:  # a non-blocking pipe
                    return None
                self._input, ended = more, not more
            if self._member is None:
                if ended:
                    return b""
                self._input = self._input.lstrip(b"\0")  # xz pads its members with zeros, and tapes pad gzip files
                if not self._input:
                    continue
                self._member = self._new_member()
            member, piece, self._input = self._member, self._input, b""
            damage = ""
            try:
                data = bytes(member.decompress(piece, size))
            except self._error as error:
                damage = f"the {self._name} data are damaged: {error}"
            if damage:  # raised here, so that it does not refer to the other error, whose traceback keeps objects alive
                raise CaptureError(damage, self._offset)
            if member.eof:
                self._input, self._member = member.unused_data, None
            if data:
                return data
            if ended:
                raise CaptureError(f"the file ends in the middle of its {self._name} data", self._offset)
