"""Packets from plain bytes, and netlink messages as the kernel sends them, built by the schemas."""

from __future__ import annotations

import reprlib
import socket
import struct
from typing import Any

from .. import inet
from .._annotated import Annotated
from .._arguments import check, wrong_type
from .._construct import ConstructError
from .._processes import Process
from ..errors import ArgumentError
from ..log import LogMessage
from ..packet import Packet
from ..protocol import netlink, nfnetlink, nfqnl, nfulnl
from ..protocol.layout import build_attribute
from ..protocol.nfnetlink import ETHERTYPES, Hook, family_of
from ..protocol.nfqnl import NFQA

_MOST_BYTES = 0xFFFF - 4  # in an attribute

NAMES = {
    "mark": "MARK",
    "priority": "PRIORITY",
    "indev": "IFINDEX_INDEV",
    "outdev": "IFINDEX_OUTDEV",
    "physindev": "IFINDEX_PHYSINDEV",
    "physoutdev": "IFINDEX_PHYSOUTDEV",
    "uid": "UID",
    "gid": "GID",
}
"""Attributes that can be named as those of a packet, and their names in capitals."""


def udp(
    data: bytes = b"",
    *,
    source: str = "192.0.2.1",
    destination: str = "192.0.2.2",
    source_port: int = 40000,
    destination_port: int = 9,
) -> bytes:
    """Return a UDP packet, IPv4 or IPv6 according to the addresses, with correct lengths and checksums."""
    return inet.rewrite(
        _blank(source, socket.IPPROTO_UDP, bytes(8)),
        data=data,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
    )


def tcp(
    data: bytes = b"",
    *,
    source: str = "192.0.2.1",
    destination: str = "192.0.2.2",
    source_port: int = 40000,
    destination_port: int = 80,
    flags: int = 0x18,
    seq: int = 1,
    ack: int = 1,
) -> bytes:
    """Return a TCP packet, IPv4 or IPv6 according to the addresses, with correct lengths and checksums.

    The default of ``flags`` is PSH and ACK.
    """
    return inet.rewrite(
        _blank(source, socket.IPPROTO_TCP, bytes(12) + b"\x50" + bytes(7)),
        data=data,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        flags=flags,
        seq=seq,
        ack=ack,
        window=0xFFFF,
    )


def _blank(source: str, protocol: int, header: bytes) -> bytes:
    """Return a packet of the address's family, with an IP header to be filled in."""
    if ":" in str(source):
        return struct.pack("!IHBB32x", 6 << 28, len(header), protocol, 64) + header
    return struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + len(header), 1, 0, 64, protocol, 0) + header


def packet_message(
    packet_id: int,
    payload: bytes | None = b"E" + bytes(19),
    *,
    num: int = 1,
    family: int | None = None,
    hw_protocol: int | None = None,
    hook: int = Hook.OUTPUT,
    process: Process | None = None,
    time_ns: int | None = None,
    **attributes: Any,
) -> bytes:
    """Return the message of a packet of queue ``num``; keywords are NFQA members (``MARK=7``), payload None is META.

    ``hw_protocol`` is the EtherType, which determines whether a packet of the bridge family is IP (default: according
    to the first byte of the payload). ``process`` will be the value of `Packet.process`, without a look-up on this
    machine. ``time_ns``, nanoseconds since 1970, will be the value of `Packet.timestamp_ns` if TIMESTAMP is not given.

    Raises ArgumentError for invalid arguments.
    """
    check("packet_id", packet_id, 0, 0xFFFFFFFF)
    check("num", num, 0, 0xFFFF)
    if time_ns is not None:
        check("time_ns", time_ns, 0, 0xFFFFFFFFFFFFFFFF)
    payload, family, protocol = _checked(payload, family, hw_protocol, hook)
    values = {"PACKET_HDR": {"packet_id": packet_id, "hw_protocol": protocol, "hook": hook}, **attributes}
    data = _attributes(nfqnl.NFQA_TABLE, values)
    if payload is not None:  # the kernel does not pad the last one
        data += build_attribute(NFQA.PAYLOAD, payload)[: 4 + len(payload)]
    return _fed(nfnetlink.build_message(nfqnl.MSG_PACKET, num, data, family=family), process, time_ns)


def _fed(message: bytes, process: Process | None, time_ns: int | None = None) -> bytes:
    if process is None and time_ns is None:
        return message
    if process is not None and not isinstance(process, Process):
        raise wrong_type("process", process, "an nfnet.Process")
    return Annotated(message, process=process, time_ns=time_ns)


def _checked(
    payload: bytes | None, family: int | None, hw_protocol: int | None, hook: int
) -> tuple[bytes | None, int, int]:
    """Return the payload as bytes, the family and the EtherType. Raises ArgumentError, also for a wrong hook."""
    check("hook", hook, 0, 0xFF)
    if payload is not None:
        try:
            payload = bytes(memoryview(payload))
        except TypeError:
            raise wrong_type("payload", payload, "bytes or None") from None
        if len(payload) > _MOST_BYTES:
            raise ArgumentError(f"payload has {len(payload)} bytes and may have {_MOST_BYTES}")
    family = family_of(payload or b"") if family is None else check("family", family, 0, 0xFF)
    if hw_protocol is None:
        return payload, family, _ethertype(family, payload)
    return payload, family, check("hw_protocol", hw_protocol, 0, 0xFFFF)


def _ethertype(family: int, payload: bytes | None) -> int:
    if family not in ETHERTYPES and (not payload or payload[0] >> 4 not in (4, 6)):
        return 0
    return ETHERTYPES[family if family in ETHERTYPES else family_of(payload or b"")]


def _attributes(table: nfnetlink.Table, values: dict[str, Any]) -> bytes:
    rows = {row.name.partition("_")[2]: row for row in table.values()}
    for name in values:
        if name not in rows:
            raise ArgumentError(f"no attribute is called {name!r}; there are {', '.join(sorted(rows))}")
    return b"".join(_attribute(name, rows[name], value) for name, value in values.items())


def _attribute(name: str, row: nfnetlink.Attribute, value: Any) -> bytes:
    try:
        return nfnetlink.build_attributes([(row, value)])
    except (ConstructError, AttributeError, LookupError, TypeError, ValueError):  # construct raises all of these
        raise ArgumentError(f"{name} is {reprlib.repr(value)}, which this attribute cannot contain") from None


def log_message(
    payload: bytes | None = b"E" + bytes(19),
    *,
    group: int = 5,
    prefix: str = "test",
    family: int | None = None,
    hw_protocol: int | None = None,
    hook: int = Hook.INPUT,
    process: Process | None = None,
    **attributes: Any,
) -> bytes:
    """Return the message of a packet logged to ``group``; keywords are NFULA members, ``payload`` None is META.

    ``process`` will be the value of `LogMessage.process`. Raises ArgumentError for invalid arguments.
    """
    check("group", group, 0, 0xFFFF)
    if not isinstance(prefix, str):
        raise wrong_type("prefix", prefix, "a string")
    payload, family, protocol = _checked(payload, family, hw_protocol, hook)
    text = prefix.encode("utf-8", "surrogateescape") + b"\0"
    values = {"PACKET_HDR": {"hw_protocol": protocol, "hook": hook}, "PREFIX": text, **attributes}
    if payload is not None:
        values["PAYLOAD"] = payload
    data = _attributes(nfulnl.NFULA_TABLE, values)
    return _fed(nfnetlink.build_message(nfulnl.MSG_PACKET, group, data, family=family), process)


def error_message(number: int, request: bytes) -> bytes:
    """Return the kernel's answer to a request: errno ``number``, 0 for success. Raises ArgumentError."""
    check("number", number, 0, 0x7FFFFFFF)
    if not isinstance(request, bytes):
        raise wrong_type("request", request, "bytes")
    if len(request) < netlink.HEADER_SIZE:
        raise ArgumentError(f"request has {len(request)} bytes, and its header alone has {netlink.HEADER_SIZE}")
    header = netlink.header.parse(request)
    body = netlink.nlmsgerr.build({"error": -number, "request": header})
    return netlink.build_message(netlink.NLMSG_ERROR, netlink.Flag.CAPPED, header.seq, body)


def described(message: Packet | LogMessage) -> dict[str, Any]:
    """Return the attributes of a message as keywords of `packet_message`."""
    values = {kind.name: value for kind, value in message.attributes.items() if kind.name in NFQA.__members__}
    for name in ("PACKET_HDR", "PAYLOAD"):
        values.pop(name, None)
    for name, attribute in NAMES.items():
        if attribute in values and name.endswith("dev") and (known := getattr(message, f"{name}_name")) is not None:
            values[attribute] = known
    values |= {"hook": message.hook, "family": message.family, "hw_protocol": message.hw_protocol}
    return {**values, "time_ns": message.timestamp_ns}
