"""The connection tracking entry that the kernel sends with a packet: NFQA_CT and NFULA_CT.

Facts: ``linux/netfilter/nfnetlink_conntrack.h``. Numbers are big-endian, except the id, which the kernel stores in host
byte order. The id is an opaque hash, useful only for comparison.
"""

from __future__ import annotations

import socket
from enum import IntEnum
from typing import Any, NamedTuple

from .._construct import Bytes, GreedyBytes, Int8ub, Int16ub, Int32ub, Int64ub, NullStripped, Struct
from .enumerations import OpenEnum, OpenFlag
from .nfnetlink import Attribute, nested, parse_attributes, table


class CtInfo(OpenEnum):
    """The relation of a packet to its connection (``enum ip_conntrack_info``); from 3 on, in reply direction."""

    ESTABLISHED = 0
    RELATED = 1
    NEW = 2
    ESTABLISHED_REPLY = 3
    RELATED_REPLY = 4


class Status(OpenFlag):
    """``IPS_*``: the status bits of a connection."""

    EXPECTED = 0x1
    SEEN_REPLY = 0x2
    ASSURED = 0x4
    CONFIRMED = 0x8
    SRC_NAT = 0x10
    DST_NAT = 0x20
    SEQ_ADJUST = 0x40
    SRC_NAT_DONE = 0x80
    DST_NAT_DONE = 0x100
    DYING = 0x200
    FIXED_TIMEOUT = 0x400
    TEMPLATE = 0x800
    UNTRACKED = 0x1000
    HELPER = 0x2000
    OFFLOAD = 0x4000
    HW_OFFLOAD = 0x8000


_text = NullStripped(GreedyBytes)

_IP = table(
    Attribute(1, "CTA_IP_V4_SRC", Bytes(4), "IPv4 source"),
    Attribute(2, "CTA_IP_V4_DST", Bytes(4), "IPv4 destination"),
    Attribute(3, "CTA_IP_V6_SRC", Bytes(16), "IPv6 source"),
    Attribute(4, "CTA_IP_V6_DST", Bytes(16), "IPv6 destination"),
)
_PROTO = table(
    Attribute(1, "CTA_PROTO_NUM", Int8ub, "IP protocol"),
    Attribute(2, "CTA_PROTO_SRC_PORT", Int16ub, "source port"),
    Attribute(3, "CTA_PROTO_DST_PORT", Int16ub, "destination port"),
    Attribute(4, "CTA_PROTO_ICMP_ID", Int16ub, "ICMP identifier"),
    Attribute(5, "CTA_PROTO_ICMP_TYPE", Int8ub, "ICMP type"),
    Attribute(6, "CTA_PROTO_ICMP_CODE", Int8ub, "ICMP code"),
    Attribute(7, "CTA_PROTO_ICMPV6_ID", Int16ub, "ICMPv6 identifier"),
    Attribute(8, "CTA_PROTO_ICMPV6_TYPE", Int8ub, "ICMPv6 type"),
    Attribute(9, "CTA_PROTO_ICMPV6_CODE", Int8ub, "ICMPv6 code"),
)
_TUPLE = table(
    nested(1, "CTA_TUPLE_IP", _IP, "addresses"),
    nested(2, "CTA_TUPLE_PROTO", _PROTO, "protocol and ports"),
    Attribute(3, "CTA_TUPLE_ZONE", Int16ub, "zone of this direction"),
)
_tcp_flags = Struct("flags" / Int8ub, "mask" / Int8ub)
_TCP = table(
    Attribute(1, "CTA_PROTOINFO_TCP_STATE", Int8ub, "state of the connection"),
    Attribute(2, "CTA_PROTOINFO_TCP_WSCALE_ORIGINAL", Int8ub, "window scale"),
    Attribute(3, "CTA_PROTOINFO_TCP_WSCALE_REPLY", Int8ub, "window scale in reply direction"),
    Attribute(4, "CTA_PROTOINFO_TCP_FLAGS_ORIGINAL", _tcp_flags, "tracking flags"),
    Attribute(5, "CTA_PROTOINFO_TCP_FLAGS_REPLY", _tcp_flags, "tracking flags in reply direction"),
)
_PROTOINFO = table(
    nested(1, "CTA_PROTOINFO_TCP", _TCP, "TCP"),
    nested(2, "CTA_PROTOINFO_DCCP", {}, "DCCP"),
    nested(3, "CTA_PROTOINFO_SCTP", {}, "SCTP"),
)
_COUNTERS = table(
    Attribute(1, "CTA_COUNTERS_PACKETS", Int64ub, "packets"),
    Attribute(2, "CTA_COUNTERS_BYTES", Int64ub, "bytes"),
)
_TIMES = table(
    Attribute(1, "CTA_TIMESTAMP_START", Int64ub, "ns since 1970"),
    Attribute(2, "CTA_TIMESTAMP_STOP", Int64ub, "ns since 1970"),
)
_SEQ_ADJ = table(
    Attribute(1, "CTA_SEQADJ_CORRECTION_POS", Int32ub, "sequence number from which the shift holds"),
    Attribute(2, "CTA_SEQADJ_OFFSET_BEFORE", Int32ub, "shift before it"),
    Attribute(3, "CTA_SEQADJ_OFFSET_AFTER", Int32ub, "shift after it"),
)
_SYNPROXY = table(
    Attribute(1, "CTA_SYNPROXY_ISN", Int32ub, "initial sequence number"),
    Attribute(2, "CTA_SYNPROXY_ITS", Int32ub, "initial timestamp"),
    Attribute(3, "CTA_SYNPROXY_TSOFF", Int32ub, "timestamp offset"),
)


class CTA(IntEnum):
    """``CTA_*``: attribute numbers of a connection tracking entry."""

    TUPLE_ORIG = 1
    TUPLE_REPLY = 2
    STATUS = 3
    PROTOINFO = 4
    HELP = 5
    NAT_SRC = 6
    TIMEOUT = 7
    MARK = 8
    COUNTERS_ORIG = 9
    COUNTERS_REPLY = 10
    USE = 11
    ID = 12
    NAT_DST = 13
    TUPLE_MASTER = 14
    SEQ_ADJ_ORIG = 15
    SEQ_ADJ_REPLY = 16
    SECMARK = 17
    ZONE = 18
    SECCTX = 19
    TIMESTAMP = 20
    MARK_MASK = 21
    LABELS = 22
    LABELS_MASK = 23
    SYNPROXY = 24


CTA_TABLE = table(
    nested(CTA.TUPLE_ORIG, "CTA_TUPLE_ORIG", _TUPLE, "addresses and ports of the first packet, before NAT"),
    nested(CTA.TUPLE_REPLY, "CTA_TUPLE_REPLY", _TUPLE, "addresses and ports of packets in reply direction"),
    Attribute(CTA.ZONE, "CTA_ZONE", Int16ub, "zone of both directions"),
    Attribute(CTA.ID, "CTA_ID", Bytes(4), "opaque id"),
    Attribute(CTA.STATUS, "CTA_STATUS", Int32ub, "IPS_* bits"),
    Attribute(CTA.TIMEOUT, "CTA_TIMEOUT", Int32ub, "seconds until the entry expires"),
    nested(CTA.PROTOINFO, "CTA_PROTOINFO", _PROTOINFO, "state of the protocol"),
    nested(CTA.COUNTERS_ORIG, "CTA_COUNTERS_ORIG", _COUNTERS, "traffic"),
    nested(CTA.COUNTERS_REPLY, "CTA_COUNTERS_REPLY", _COUNTERS, "traffic in reply direction"),
    nested(CTA.TIMESTAMP, "CTA_TIMESTAMP", _TIMES, "start and end of the connection"),
    nested(CTA.HELP, "CTA_HELP", table(Attribute(1, "CTA_HELP_NAME", _text, "name")), "helper module"),
    nested(CTA.SECCTX, "CTA_SECCTX", table(Attribute(1, "CTA_SECCTX_NAME", _text, "name")), "security context"),
    nested(CTA.TUPLE_MASTER, "CTA_TUPLE_MASTER", _TUPLE, "the connection that announced this one"),
    nested(CTA.SEQ_ADJ_ORIG, "CTA_SEQ_ADJ_ORIG", _SEQ_ADJ, "TCP sequence shift"),
    nested(CTA.SEQ_ADJ_REPLY, "CTA_SEQ_ADJ_REPLY", _SEQ_ADJ, "TCP sequence shift in reply direction"),
    nested(CTA.SYNPROXY, "CTA_SYNPROXY", _SYNPROXY, "SYN proxy"),
    Attribute(CTA.MARK, "CTA_MARK", Int32ub, "connection mark"),
    Attribute(CTA.MARK_MASK, "CTA_MARK_MASK", Int32ub, "bits of the mark to change (to the kernel)"),
    Attribute(CTA.LABELS, "CTA_LABELS", GreedyBytes, "connection labels, 16 bytes"),
    Attribute(CTA.LABELS_MASK, "CTA_LABELS_MASK", GreedyBytes, "labels to change (to the kernel)"),
    Attribute(CTA.USE, "CTA_USE", Int32ub, "reference count"),
)


class Endpoints(NamedTuple):
    """One direction of a connection: addresses and ports. Fields that its protocol does not have are None."""

    source: str | None
    destination: str | None
    protocol: int | None
    source_port: int | None
    destination_port: int | None


class Conntrack(NamedTuple):
    """A connection tracking entry. Fields that the kernel did not send are None.

    ``timeout`` is in seconds, ``id`` is opaque, and ``values`` has all received attributes, by CTA number.
    """

    original: Endpoints | None
    reply: Endpoints | None
    status: Status
    mark: int
    id: bytes | None
    timeout: int | None
    zone: int
    helper: str | None
    labels: bytes | None
    values: dict[int, Any]


def parse(data: bytes, offset: int = 0) -> Conntrack:
    """Return the entry in the data of NFQA_CT or NFULA_CT, at ``offset`` of its message. Raises DecodeError."""
    values = parse_attributes(data, CTA_TABLE, offset)
    helper = values.get(CTA.HELP, {}).get(1)
    return Conntrack(
        original=_endpoints(values.get(CTA.TUPLE_ORIG)),
        reply=_endpoints(values.get(CTA.TUPLE_REPLY)),
        status=Status(values.get(CTA.STATUS, 0)),
        mark=values.get(CTA.MARK, 0),
        id=values.get(CTA.ID),
        timeout=values.get(CTA.TIMEOUT),
        zone=values.get(CTA.ZONE, 0),
        helper=None if helper is None else helper.decode("utf-8", "surrogateescape"),
        labels=values.get(CTA.LABELS),
        values=values,
    )


def _endpoints(values: dict[int, Any] | None) -> Endpoints | None:
    if values is None:
        return None
    addresses, protocol = values.get(1, {}), values.get(2, {})
    return Endpoints(
        source=_address(addresses.get(1) or addresses.get(3)),
        destination=_address(addresses.get(2) or addresses.get(4)),
        protocol=protocol.get(1),
        source_port=protocol.get(2),
        destination_port=protocol.get(3),
    )


def tuple_of(endpoints: Endpoints) -> dict[int, Any]:
    """Return the value of CTA_TUPLE_ORIG or CTA_TUPLE_REPLY for a connection with ports."""
    version6 = ":" in str(endpoints.source)
    source, destination = (
        socket.inet_pton(socket.AF_INET6 if version6 else socket.AF_INET, address or "")
        for address in (endpoints.source, endpoints.destination)
    )
    addresses = {3: source, 4: destination} if version6 else {1: source, 2: destination}
    return {1: addresses, 2: {1: endpoints.protocol, 2: endpoints.source_port, 3: endpoints.destination_port}}


def _address(raw: bytes | None) -> str | None:
    if raw is None:
        return None
    return socket.inet_ntop(socket.AF_INET if len(raw) == 4 else socket.AF_INET6, raw)
