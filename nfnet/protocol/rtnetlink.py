"""NETLINK_ROUTE requests that find out whether an address belongs to this machine. Facts: ``linux/rtnetlink.h``."""

from __future__ import annotations

import socket
from enum import IntEnum

from .._construct import Default, FormatField, GreedyBytes, Int8ub, Struct
from ..errors import DecodeError
from . import netlink
from .netlink import HEADER_SIZE, PREFIX

NETLINK_ROUTE = 0
RTM_GETROUTE = 26
RTA_DST = 1


class RouteType(IntEnum):
    """``RTN_*``: the types of routes whose packets the kernel delivers on this machine."""

    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5


_zero = Default(Int8ub, 0)

# struct rtmsg, in which only the flags have more than one byte; attributes follow.
rtmsg = Struct(
    "family" / Int8ub,
    "destination_length" / _zero,
    "source_length" / _zero,
    "tos" / _zero,
    "table" / _zero,
    "protocol" / _zero,
    "scope" / _zero,
    "type" / _zero,
    "flags" / Default(FormatField(PREFIX, "L"), 0),
    "attributes" / Default(GreedyBytes, b""),
)


def build_request(address: bytes) -> bytes:
    """Return a request for the route of packets to an address of 4 or 16 bytes."""
    family = socket.AF_INET if len(address) == 4 else socket.AF_INET6
    attributes = netlink.build_attributes([(RTA_DST, address)])
    body = rtmsg.build({"family": family, "destination_length": len(address) * 8, "attributes": attributes})
    return netlink.build_message(RTM_GETROUTE, netlink.Flag.REQUEST, 0, bytes(body))


def is_local(datagram: bytes) -> bool:
    """Return whether the route in the kernel's answer delivers packets on this machine. Raises DecodeError."""
    if netlink.is_answer(datagram):
        netlink.parse_answer(datagram)
        return False  # there is no route
    if len(datagram) < HEADER_SIZE + 12:
        raise DecodeError("answer of rtnetlink cut short", len(datagram))
    return rtmsg.parse(datagram[HEADER_SIZE:]).type in list(RouteType)
