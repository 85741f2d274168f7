"""The common parts of all netfilter subsystems: struct nfgenmsg, subsystem numbers, attribute tables and requests."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

from .._construct import Construct, ConstructError, Default, Int8ub, Int16ub, Struct
from ..errors import DecodeError
from . import layout, netlink
from .enumerations import OpenEnum

NETLINK_NETFILTER = 12  # not socket.NETLINK_NFLOG, which is the removed ULOG protocol
BODY = netlink.HEADER_SIZE + 4  # the offset of a message's attributes: after nlmsghdr and nfgenmsg


class Subsystem(IntEnum):
    """``NFNL_SUBSYS_*``: the upper byte of a message's type."""

    CTNETLINK = 1
    QUEUE = 3
    LOG = 4  # the kernel calls it ULOG
    NFTABLES = 10


class Family(OpenEnum):
    """``nfgen_family`` (``NFPROTO_*``): the family whose hooks the packet traverses."""

    UNSPEC = 0
    IPV4 = 2
    ARP = 3
    NETDEV = 5
    BRIDGE = 7
    IPV6 = 10


ETHERTYPES: dict[int, int] = {Family.IPV4: 0x0800, Family.IPV6: 0x86DD}
"""The EtherTypes of the families of IP."""


def family_of(packet: bytes) -> Family:
    """Return the family of an IP packet by its first byte: IPV6 for version 6, else IPV4."""
    return Family.IPV6 if packet and packet[0] >> 4 == 6 else Family.IPV4


class Hook(OpenEnum):
    """The point on the packet's path through the kernel, for the IPv4, IPv6 and bridge families (``NF_INET_*``)."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4
    INGRESS = 5


class ArpHook(OpenEnum):
    """The point on the path of an ARP packet (``NF_ARP_*``)."""

    IN = 0
    OUT = 1
    FORWARD = 2


class NetdevHook(OpenEnum):
    """The point on the path of a packet of the netdev family (``NF_NETDEV_*``)."""

    INGRESS = 0
    EGRESS = 1


# struct nfgenmsg. `resource` is the number of the queue or group, in network byte order like all that follows it.
nfgenmsg = Struct("family" / Int8ub, "version" / Default(Int8ub, 0), "resource" / Int16ub)


class Attribute(NamedTuple):
    """One row of an attribute table: the kernel's number and name, the layout of its data, and its meaning.

    The data of a nested attribute consists of attributes, described by the table ``nested``; its value is a dict.
    """

    number: int
    name: str
    schema: Construct  # a generic class only for type checkers
    meaning: str
    nested: Table | None = None

    def parse(self, data: bytes, offset: int = 0) -> Any:
        """Return the value in ``data``, which is at ``offset`` of its message. Raises DecodeError."""
        if self.nested is not None:
            return parse_attributes(data, self.nested, offset)
        try:
            return self.schema.parse(data)
        except ConstructError:
            raise DecodeError(f"{self.name} of {len(data)} bytes is too short", offset) from None

    def build(self, value: Any) -> bytes:
        """Return the data for a value. The value of a nested attribute is a dict from number to value."""
        if self.nested is not None:
            return build_attributes((self.nested[number], item) for number, item in value.items())
        return bytes(self.schema.build(value))


Table = Mapping[int, Attribute]


def table(*rows: Attribute) -> dict[int, Attribute]:
    """Return an attribute table: the rows by number."""
    return {row.number: row for row in rows}


def nested(number: int, name: str, rows: Table, meaning: str) -> Attribute:
    """Return a row for an attribute whose data consists of attributes."""
    return Attribute(number, name, netlink.attributes, meaning, rows)


def parse_attributes(data: bytes, rows: Table, offset: int = 0) -> dict[int, Any]:
    """Return the values, by number, of all attributes in ``data``, which is at ``offset`` of its message.

    If a number occurs twice, the last attribute counts, as in the kernel. The value of an attribute that is not in the
    table is its bytes. Raises DecodeError.
    """
    values: dict[int, Any] = {}
    for number, start, end in layout.walk(data, 0, len(data), offset):
        row = rows.get(number)
        values[number] = row.parse(data[start:end], offset + start) if row else data[start:end]
    return values


def build_attributes(items: Iterable[tuple[Attribute, Any]]) -> bytes:
    """Return attributes for rows and their values, each padded to a multiple of 4 bytes."""
    return netlink.build_attributes((row.number, row.build(value)) for row, value in items)


class FlagOption(NamedTuple):
    """A flag of a queue or a log group, set by the argument ``name`` of `nfnet.Queue` or `nfnet.Log`.

    ``optional``: whether some kernels in use lack the flag and refuse it (EOPNOTSUPP). ``remedy``: what the user can do
    about a refusal.
    """

    name: str
    flag: IntFlag
    optional: bool = False
    remedy: str = "it takes another kernel"


def message_type(subsystem: int, operation: int) -> int:
    """Return the ``nlmsg_type`` of an operation of a subsystem."""
    return subsystem << 8 | operation


def resource(message: bytes) -> int:
    """Return the number of the queue or group in a message."""
    return int.from_bytes(message[BODY - 2 : BODY], "big")


def build_config(
    type: int, resource: int, rows: Table, values: Mapping[int, Any], *, seq: int = 0, ack: bool = False
) -> bytes:
    """Return a configuration request with the attributes in ``values``, in their order, except those that are None."""
    data = build_attributes((rows[number], value) for number, value in values.items() if value is not None)
    flags = netlink.Flag.REQUEST | (netlink.Flag.ACK if ack else 0)
    return build_message(type, resource, data, flags=flags, seq=seq)


# Building a message with the schemas takes 25 µs, and a change of a set (`nfnet.rules.Set`) takes four messages.
pack_header = struct.Struct(netlink.PREFIX + layout.compile_struct(netlink.header).format[1:]).pack
_pack_body = layout.compile_struct(nfgenmsg).pack


def build_message(
    type: int, resource: int, attributes: bytes = b"", *, family: int = 0, flags: int = 0, seq: int = 0
) -> bytes:
    """Return a message of a subsystem about the queue or group ``resource``."""
    return (
        pack_header(netlink.HEADER_SIZE + 4 + len(attributes), type, flags, seq, 0)
        + _pack_body(family, 0, resource)
        + attributes
    )
