"""Requests to the connection tracking table (ctnetlink). `conntrack` has the layout of their attributes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import IntEnum
from typing import Any

from . import netlink, nfnetlink
from .conntrack import CTA, CTA_TABLE, Endpoints, tuple_of
from .layout import build_attribute, walk
from .netlink import Flag
from .nfnetlink import BODY, Family, Subsystem, Table, message_type

_CREATE, _EXCLUSIVE, _DUMP = 0x400, 0x200, 0x300  # NLM_F_*


class Operation(IntEnum):
    """``IPCTNL_MSG_CT_*``."""

    NEW = 0
    GET = 1
    DELETE = 2


def _build(operation: Operation, attributes: bytes, *, family: int = 0, flags: int = 0, seq: int = 0) -> bytes:
    kind = message_type(Subsystem.CTNETLINK, operation)
    return nfnetlink.build_message(kind, 0, attributes, family=family, flags=Flag.REQUEST | flags, seq=seq)


def build_attributes(values: Mapping[int, Any], rows: Table = CTA_TABLE) -> bytes:
    """Return the attributes of an entry, from values by CTA number; the value of a nested one is another dict."""
    parts = []
    for number, value in values.items():
        row = rows[number]
        data = row.build(value) if row.nested is None else build_attributes(value, row.nested)
        parts.append(build_attribute(number, data))
    return b"".join(parts)


def dump_marked(mark: int, mask: int) -> bytes:
    """Return a request for all entries whose mark, in the bits of ``mask``, is ``mark``."""
    return _build(Operation.GET, build_attributes({CTA.MARK: mark, CTA.MARK_MASK: mask}), flags=_DUMP, seq=1)


def create(there: Endpoints, mark: int, timeout: int) -> bytes:
    """Return a request to create the entry of a connection none of whose packets was accepted.

    The entry expires ``timeout`` seconds after the last packet. The connection is one of UDP or TCP, without NAT, in
    zone 0. The kernel answers with EEXIST if the entry exists.
    """
    back = Endpoints(there.destination, there.source, there.protocol, there.destination_port, there.source_port)
    values: dict[int, Any] = {
        CTA.TUPLE_ORIG: tuple_of(there),
        CTA.TUPLE_REPLY: tuple_of(back),
        CTA.TIMEOUT: timeout,
        CTA.MARK: mark,
    }
    family = Family.IPV6 if ":" in str(there.source) else Family.IPV4
    return _build(Operation.NEW, build_attributes(values), family=family, flags=_CREATE | _EXCLUSIVE)


def set_marks(entries: Iterable[bytes], mark: int, mask: int) -> bytes:
    """Return requests, one for each entry, that change the bits of ``mask`` in its mark.

    ``entries`` are messages of a dump. The kernel answers with ENOENT for an entry that no longer exists.
    """
    change = build_attributes({CTA.MARK: mark, CTA.MARK_MASK: mask})
    frame = _build(Operation.NEW, change)
    header, zeros = frame[4 : netlink.HEADER_SIZE], frame[netlink.HEADER_SIZE + 1 : BODY]
    messages: list[bytes] = []
    for entry in entries:
        identity = _identity(entry)
        length = (len(frame) + len(identity)).to_bytes(4, netlink.HOST)
        family = entry[netlink.HEADER_SIZE : netlink.HEADER_SIZE + 1]
        messages += length, header, family, zeros, identity, change
    return b"".join(messages)


def _identity(entry: bytes) -> bytes:
    """Return the attributes by which the kernel finds the entry again, unchanged."""
    found = b""
    for number, start, end in walk(entry, BODY, len(entry)):
        if number in (CTA.TUPLE_ORIG, CTA.ZONE):
            found += entry[start - netlink.ATTRIBUTE_HEADER_SIZE : end]
            found += bytes(-len(found) % 4)
    return found
