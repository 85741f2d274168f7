"""The server name in the hello of a TLS client (SNI)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, Literal

from .._construct import Int8ub, Int16ub, Struct
from .._printable import printable
from ..protocol.layout import compile_struct

MAX_HELLO = 16_384  # bytes of a stream; with so many the answer is final
# The maximum number of records, extensions or names that are read. Real hellos have one or two records, about twenty
# extensions and one name. A hello with thousands would take as long as a hundred hellos, again for each segment.
_MOST = 64

_HANDSHAKE_RECORD = b"\x16\x03"  # its type, and the first byte of the version, which is the same in all versions
_RECORD_HEADER = 5
_CLIENT_HELLO = 1  # of handshake messages
_MESSAGE_HEADER = 4
_SESSION_ID = 38  # its offset in a hello: after the message's header, a version and 32 random bytes
_SERVER_NAME = 0  # of extensions
_HOST_NAME = 0  # of server names

_EXTENSION = compile_struct(Struct("type" / Int16ub, "length" / Int16ub))
_NAME = compile_struct(Struct("type" / Int8ub, "length" / Int16ub))


class Incomplete(Enum):
    """The result while more of the stream is needed: `INCOMPLETE`, the only member. It is false, like None."""

    INCOMPLETE = "incomplete"

    def __bool__(self) -> Literal[False]:
        return False


INCOMPLETE: Final = Incomplete.INCOMPLETE


class _Ended(Exception):  # noqa: N818 - not an error
    """The bytes end before the field that is needed."""


def server_name(data: bytes | None) -> str | Incomplete | None:
    """Return the host name in the ClientHello at the beginning of a TLS stream (SNI).

    The name is in lower case, without a dot at its end. ``data`` is the beginning of the stream, as `Beginnings.add`
    returns it. There are three results:

    - the name, as soon as ``data`` contains it. It is printable ASCII: any other byte is shown as ``[c3]``. It is not
      checked to be the name of a host, or not an IP address.
    - None: the stream has no name, and more data will not change that. The stream is not TLS; or it is TLS without the
      extension, such as an SSL 2.0 hello; or the hello is malformed; or the name is not in the first 16 KiB of the
      stream, or comes after 64 records or extensions, which no ordinary client sends; or ``data`` is None.
    - `INCOMPLETE`: more of the stream is needed; never for 16 KiB or more.

    A handler must accept packets while the hello is incomplete, because some clients send the rest only then. This is
    safe: the handler decides about the packet that completes the hello, without which no server can answer.

    With Encrypted ClientHello (ECH) it is the name in the outer hello, which is the operator's and not the site's.

    Raises TypeError if ``data`` is not bytes.
    """
    if data is None:
        return None
    data = bytes(memoryview(data)[:MAX_HELLO])
    hello, is_all = _first_message(data)
    try:
        name = _host_name(hello)
    except _Ended:
        return None if is_all or len(data) == MAX_HELLO else INCOMPLETE
    return printable(name.decode("ascii", "surrogateescape")).lower().removesuffix(".") or None


def _first_message(data: bytes) -> tuple[bytes, bool]:
    """Return the known part of the first handshake message in the records, and whether more data cannot extend it."""
    message, place = b"", 0
    for _ in range(_MOST):
        header = data[place : place + _RECORD_HEADER]
        if not header.startswith(_HANDSHAKE_RECORD[: len(header)]):
            break
        if len(header) < _RECORD_HEADER:
            return message, False
        place += _RECORD_HEADER
        size = int.from_bytes(header[3:], "big")
        message += data[place : place + size]
        place += size
        if len(message) >= _MESSAGE_HEADER:
            end = _MESSAGE_HEADER + int.from_bytes(message[1:_MESSAGE_HEADER], "big")
            if len(message) >= end:
                return message[:end], True
    return message, True


def _host_name(hello: bytes) -> bytes:
    """Return the first host name in a hello, or b"" for none. Raises _Ended if the message ends too early to tell."""
    if _number(hello, 0, 1) != _CLIENT_HELLO:
        return b""
    place = _SESSION_ID
    for size in (1, 2, 1):  # of the lengths of session ID, cipher suites and compression methods
        place += size + _number(hello, place, size)
    end = place + 2 + _number(hello, place, 2)
    for extension, start, stop in _fields(hello, place + 2, end, _EXTENSION):
        if extension == _SERVER_NAME:
            for kind, first, last in _fields(hello, start + 2, stop, _NAME):
                if kind == _HOST_NAME:
                    if last > len(hello):
                        raise _Ended
                    return hello[first:last]
            break
    return b""


def _fields(data: bytes, place: int, end: int, head: struct.Struct) -> Iterator[tuple[int, int, int]]:
    """Yield type, start and end of the content of each field in a list. ``head`` reads type and length of a field.

    Stops at a field that extends beyond the list.
    """
    for _ in range(_MOST):
        if place >= end:
            return
        start = place + head.size
        if start > len(data):
            raise _Ended
        kind, size = head.unpack_from(data, place)
        place = start + size
        if place > end:
            return
        yield kind, start, place


def _number(data: bytes, place: int, size: int) -> int:
    if place + size > len(data):
        raise _Ended
    return int.from_bytes(data[place : place + size], "big")
