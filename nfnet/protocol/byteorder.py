"""Conversion of datagrams in a recording from a machine of the other byte order into that of this machine.

Only the structures in `netlink` are in the byte order of a machine: the headers of messages and attributes, at all
depths, and the kernel's reports of errors. The data of NFQUEUE and NFLOG attributes is big-endian on all machines.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from ..errors import DecodeError
from . import layout, netlink, nfqnl, nfulnl
from .netlink import HOST, NESTED, PREFIX, ByteOrder, ErrorAttribute
from .nfnetlink import BODY, Table

_TABLES = {**nfqnl.TABLES, **nfulnl.TABLES}
_MAX_DEPTH = 32  # nf_tables has less than ten
_ERROR_NUMBERS = (ErrorAttribute.OFFS, ErrorAttribute.MISS_TYPE, ErrorAttribute.MISS_NEST)

_OTHER_PREFIX = ">" if PREFIX == "<" else "<"
_other_attribute_header = struct.Struct(_OTHER_PREFIX + layout.attribute_header.format[1:])


def order_of(datagram: bytes, expected: ByteOrder, size: int | None = None) -> ByteOrder:
    """Return a datagram's byte order: ``expected``, unless the length in its first header is valid only in the other.

    ``size`` is the size of the whole datagram in bytes, if ``datagram`` is only its beginning.
    """
    size = len(datagram) if size is None else size
    other: ByteOrder = "big" if expected == "little" else "little"
    for order in (expected, other):
        if netlink.HEADER_SIZE <= int.from_bytes(datagram[:4], order) <= size:
            return order
    return expected


def order_of_attributes(data: bytes, start: int, expected: ByteOrder, size: int) -> ByteOrder:
    """Return the byte order of attributes that begin at ``start``, by the length in the header of the first one.

    ``size`` is the size of the whole data in bytes.
    """
    other: ByteOrder = "big" if expected == "little" else "little"
    for order in (expected, other):
        if netlink.ATTRIBUTE_HEADER_SIZE <= int.from_bytes(data[start : start + 2], order) <= size - start:
            return order
    return expected


def to_host(datagram: bytes, order: ByteOrder, size: int | None = None) -> bytes:
    """Return a datagram of byte order ``order`` in the byte order of this machine. Raises DecodeError if it is damaged.

    The messages can be those of any netfilter subsystem. Which attributes contain attributes is known from our tables,
    or from NLA_F_NESTED for attributes that are not in a table. ``size`` is as for `order_of`.
    """
    if order == HOST:
        return datagram
    data = bytearray(datagram)
    for start, _ in netlink.split_messages(datagram, order, size):
        length, kind, flags, _, _ = _turn_header(data, start)
        end = start + length
        if kind == netlink.NLMSG_ERROR:
            _turn_answer(data, start, end, flags)
        else:
            _turn_body(data, start, end, kind)
    return bytes(data)


def attributes_to_host(data: bytes, start: int, order: ByteOrder, table: Table, size: int | None = None) -> bytes:
    """Return data whose attributes, from ``start`` on, are converted like those of a datagram; see `to_host`.

    ``table`` describes the attributes. The bytes before ``start`` stay unchanged.
    """
    if order == HOST:
        return data
    turned = bytearray(data)
    _turn_attributes(turned, start, len(data) if size is None else size, table)
    return bytes(turned)


def _turner(format: str) -> Callable[[bytearray, int], tuple[int, ...]]:
    """Return a function that converts the numbers of a structure at an offset, and returns them."""
    theirs, ours = struct.Struct(_OTHER_PREFIX + format), struct.Struct(PREFIX + format)

    def turn(data: bytearray, offset: int) -> tuple[int, ...]:
        numbers = theirs.unpack_from(data, offset)
        ours.pack_into(data, offset, *numbers)
        return numbers

    return turn


_turn_header = _turner(layout.compile_struct(netlink.header).format[1:])
_turn_nlmsgerr = _turner(layout.compile_struct(netlink.nlmsgerr).format[1:])
_turn_attribute_header = _turner(layout.attribute_header.format[1:])


def _turn_body(data: bytearray, start: int, end: int, kind: int) -> None:
    """Convert the attributes of a message. Control messages have none."""
    if kind >= netlink.NLMSG_MIN_TYPE:
        _turn_attributes(data, start + BODY, end, _TABLES.get(kind, {}))


def _turn_answer(data: bytearray, start: int, end: int, flags: int) -> None:
    place = start + netlink.HEADER_SIZE
    if end - place < netlink.nlmsgerr.sizeof():
        raise DecodeError("answer of the kernel cut short", end)
    if len(data) - place < netlink.nlmsgerr.sizeof():
        return
    _, length, kind, *_ = _turn_nlmsgerr(data, place)
    place += 4
    echoed = netlink.HEADER_SIZE if flags & netlink.Flag.CAPPED else length
    if echoed <= end - place:  # old kernels echo only the header of an acknowledged request, without setting CAPPED
        _turn_body(data, place, place + echoed, kind)
    if flags & netlink.Flag.ACK_TLVS:
        _turn_error_attributes(data, place + (echoed + 3 & ~3), end)


def _turn_error_attributes(data: bytearray, start: int, end: int) -> None:
    for number, _, first, last in _turning(data, start, end):
        if number in _ERROR_NUMBERS:
            _turn_number(data, first, last)
        elif number == ErrorAttribute.POLICY:
            for _, _, low, high in _turning(data, first, last):  # NL_POLICY_TYPE_ATTR_*: each is one number
                _turn_number(data, low, high)


def _turn_attributes(data: bytearray, start: int, end: int, table: Table, depth: int = 0) -> None:
    if depth > _MAX_DEPTH:
        raise DecodeError(f"attributes nested more than {_MAX_DEPTH} deep", start)
    for number, flagged, first, last in _turning(data, start, end):
        row = table.get(number)
        if row is not None and row.nested is not None:
            _turn_attributes(data, first, last, row.nested, depth + 1)
        elif (row is None and flagged) or (row is not None and row.schema is netlink.attributes):
            _turn_attributes(data, first, last, {}, depth + 1)


def _turning(data: bytearray, start: int, end: int) -> Iterator[tuple[int, bool, int, int]]:
    """Convert the headers of attributes. Yield number, whether NLA_F_NESTED is set, start and end of data for each."""
    for number, first, last in layout.walk(data, start, end, header=_other_attribute_header):
        _, kind = _turn_attribute_header(data, first - netlink.ATTRIBUTE_HEADER_SIZE)
        yield number, bool(kind & NESTED), first, last


def _turn_number(data: bytearray, start: int, end: int) -> None:
    data[start:end] = data[start:end][::-1]
