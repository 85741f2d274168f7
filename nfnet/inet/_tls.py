"""The name of the server that a TLS client asks for."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import Enum
from typing import Final, Literal

from construct import Int8ub, Int16ub, Struct

from .._printable import printable
from ..protocol.layout import compile_struct

MAX_HELLO = 16_384  # bytes of a stream, after which nothing is incomplete any more
# So many records, extensions or names are read. Real hellos have one or two records, some twenty extensions and one
# name; thousands would take as long to read as a hundred hellos, and for each segment anew.
_MOST = 64

_HANDSHAKE_RECORD = b"\x16\x03"  # its type, and the first byte of the version, which never became another
_RECORD_HEADER = 5
_CLIENT_HELLO = 1  # of handshake messages
_MESSAGE_HEADER = 4
_SESSION_ID = 38  # where it is in a hello: behind the message's header, a version and 32 random bytes
_SERVER_NAME = 0  # of extensions
_HOST_NAME = 0  # of server names

_EXTENSION = compile_struct(Struct("type" / Int16ub, "length" / Int16ub))
_NAME = compile_struct(Struct("type" / Int8ub, "length" / Int16ub))


class Incomplete(Enum):
    """The answer while more of the stream is needed: `INCOMPLETE`, the only member. It is false, as None is."""

    INCOMPLETE = "incomplete"

    def __bool__(self) -> Literal[False]:
        return False


INCOMPLETE: Final = Incomplete.INCOMPLETE


class _Ended(Exception):  # noqa: N818 - not an error
    """The bytes end before what is to be read."""


def server_name(data: bytes | None) -> str | Incomplete | None:
    """The host name in the ClientHello with which a TLS stream begins (SNI), in lower case, without a dot at its end.

    ``data`` is the beginning of the stream, as `Beginnings.add` returns it. There are three answers:

    - the name, as soon as it is among the bytes. It is printable ASCII: any other byte is shown as ``[c3]``. That it is
      the name of a host, or no IP address, is not checked.
    - None: there is none, and more data would not change that. Also if the stream is no TLS; if it is TLS without the
      extension, such as an SSL 2.0 hello; if the hello is malformed; if the name is not in the first 16 KiB of the
      stream, or behind 64 records or extensions, which no ordinary client sends; and for None.
    - `INCOMPLETE`: more of the stream is needed; never for 16 KiB or more.

    A handler has to accept packets while the hello is incomplete, since some senders send the rest only then. Nothing
    is lost by that: it decides about the packet that completes the hello, without which no server can answer.

    With Encrypted ClientHello (ECH) it is the name in the outer hello, that of the operator and not of the site.

    Raises TypeError if ``data`` are no bytes.
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
    """The first handshake message in the records, as far as it goes, and whether more data would not add to it."""
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
    """The first host name in a hello, b"" for none. Raises _Ended if the message ends before that can be said."""
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
    """Of each field in a list its type, and where its content begins and ends; the head has the type and the length.

    Ends before a field that is longer than the list.
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
