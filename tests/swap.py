"""Convert netlink datagrams of one byte order to the other.

It shares no code with the package, whose own conversion it tests: numbers and layouts are written out again.
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

from nfnet.captures import read

HERE = {"little": "<", "big": ">"}[sys.byteorder]
THERE = {"little": ">", "big": "<"}[sys.byteorder]

# Attributes that contain attributes, from the outside to the inside.
_TUPLE: Any = {1: {}, 2: {}}
_CT: Any = {
    1: _TUPLE,
    2: _TUPLE,
    4: {1: {}, 2: {}, 3: {}},
    **{number: {} for number in (5, 9, 10, 15, 16, 20, 24)},
}
_NESTED: Any = {
    0x300: {11: _CT, 15: {}, 19: {}},
    0x301: {11: _CT, 15: {}, 19: {}},
    0x303: {},
    0x302: {},
    0x400: {18: _CT, 20: {}},
    0x401: {},
}
_CAPPED, _TLVS = 0x100, 0x200


def turn(datagram: bytes, order: str) -> bytes:
    """Convert a datagram of byte order ``order``, "<" or ">", to the other one."""
    done = b""
    while datagram:
        (length,) = struct.unpack_from(order + "I", datagram)
        message, datagram = datagram[:length], datagram[(length + 3) // 4 * 4 :]
        done += bytes(-len(done) % 4) + _message(message, order)
    return done


def _numbers(data: bytes, order: str, form: str) -> bytes:
    return struct.pack(("<" if order == ">" else ">") + form, *struct.unpack(order + form, data))


def _message(data: bytes, order: str) -> bytes:
    head, body = data[:16], data[16:]
    _, kind, flags, _, _ = struct.unpack(order + "IHHII", head)
    head = _numbers(head, order, "IHHII")
    if kind == 2:  # the errno, the request, and attributes about the error
        length = 16 if flags & _CAPPED else struct.unpack_from(order + "I", body, 4)[0]
        echo, rest = body[4 : 4 + length], body[4 + (length + 3) // 4 * 4 :]
        new = head + _numbers(body[:4], order, "i") + _message(echo, order)
        return new + bytes(-len(new) % 4) + _said(rest, order) if rest and flags & _TLVS else new
    if kind < 16 or not body:  # the end of several log messages; a request without its body
        return head + body
    return head + body[:4] + _attributes(body[4:], order, _NESTED[kind])


def _said(data: bytes, order: str) -> bytes:
    done = b""
    for number, value, padding in _each(data, order):
        kind = number & 0x3FFF
        if kind in (2, 5, 6):
            value = _numbers(value, order, "I")
        elif kind == 4:  # the violated policy: attributes with numbers
            value = b"".join(
                _numbers(struct.pack(order + "HH", 4 + len(v), n), order, "HH") + v[::-1] + p
                for n, v, p in _each(value, order)
            )
        done += _numbers(struct.pack(order + "HH", 4 + len(value), number), order, "HH") + value + padding
    return done


def _attributes(data: bytes, order: str, nested: Any) -> bytes:
    done = b""
    for number, value, padding in _each(data, order):
        inner = nested.get(number & 0x3FFF)
        if inner is not None:
            value = _attributes(value, order, inner)
        done += _numbers(struct.pack(order + "HH", 4 + len(value), number), order, "HH") + value + padding
    return done


def _each(data: bytes, order: str) -> list[tuple[int, bytes, bytes]]:
    found = []
    while data:
        length, number = struct.unpack_from(order + "HH", data)
        padded = (length + 3) // 4 * 4
        found.append((number, data[4:length], data[length:padded]))
        data = data[padded:]
    return found


def turn_file(source: Path, target: Path, *, framing: str = ">") -> None:
    """Convert a little-endian recording of netlink to a big-endian one; ``framing`` is the byte order of the file."""
    out = struct.pack(framing + "IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 0x100000, 253)
    for record in read(source):
        seconds, fraction = divmod(record.time_ns, 10**9)
        size = len(record.data)
        out += (
            struct.pack(framing + "IIII", seconds, fraction, size, size)
            + record.data[:16]
            + turn(record.data[16:], "<")
        )
    target.write_bytes(out)
