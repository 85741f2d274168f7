"""Requests to the connection tracking table (ctnetlink); the layout of what they carry is that of `conntrack`."""

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
    """Attributes of an entry, by CTA number; the value of a nested one is a dict again."""
    parts = []
    for number, value in values.items():
        row = rows[number]
        data = row.build(value) if row.nested is None else build_attributes(value, row.nested)
        parts.append(build_attribute(number, data))
    return b"".join(parts)


def dump_marked(mark: int, mask: int) -> bytes:
    """Ask for all entries whose mark, of the bits of ``mask``, is ``mark``."""
    return _build(Operation.GET, build_attributes({CTA.MARK: mark, CTA.MARK_MASK: mask}), flags=_DUMP, seq=1)


def create(there: Endpoints, mark: int, timeout: int) -> bytes:
    """Make an entry for a connection of which no packet has got through, for so many seconds from its last packet on.

    Of UDP or TCP, untranslated, in zone 0. Answered with EEXIST if there is one.
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
    """Change the bits of ``mask`` of the marks of entries, messages of a dump; a message for each.

    Those that are gone are answered with ENOENT.
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
    """The attributes by which the kernel finds the entry again, as they came."""
    found = b""
    for number, start, end in walk(entry, BODY, len(entry)):
        if number in (CTA.TUPLE_ORIG, CTA.ZONE):
            found += entry[start - netlink.ATTRIBUTE_HEADER_SIZE : end]
            found += bytes(-len(found) % 4)
    return found
