"""Packets from plain bytes, and netlink messages as the kernel sends them, built by the schemas."""

from __future__ import annotations

import socket
import struct
from typing import Any

from .. import inet
from .._annotated import Annotated
from .._arguments import wrong_type
from .._processes import Process
from ..errors import ArgumentError
from ..log import LogMessage
from ..packet import Packet
from ..protocol import netlink, nfnetlink, nfqnl, nfulnl
from ..protocol.layout import build_attribute
from ..protocol.nfnetlink import ETHERTYPES, Hook, family_of
from ..protocol.nfqnl import NFQA

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
    """
    payload = None if payload is None else bytes(memoryview(payload))
    if family is None:
        family = family_of(payload or b"")
    protocol = _ethertype(family, payload) if hw_protocol is None else hw_protocol
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


def _ethertype(family: int, payload: bytes | None) -> int:
    if family not in ETHERTYPES and (not payload or payload[0] >> 4 not in (4, 6)):
        return 0
    return ETHERTYPES[family if family in ETHERTYPES else family_of(payload or b"")]


def _attributes(table: nfnetlink.Table, values: dict[str, Any]) -> bytes:
    rows = {row.name.partition("_")[2]: row for row in table.values()}
    for name in values:
        if name not in rows:
            raise ArgumentError(f"no attribute is called {name!r}; there are {', '.join(sorted(rows))}")
    return nfnetlink.build_attributes((rows[name], value) for name, value in values.items())


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

    ``process`` will be the value of `LogMessage.process`.
    """
    if family is None:
        family = family_of(payload or b"")
    text = prefix.encode("utf-8", "surrogateescape") + b"\0"
    protocol = _ethertype(family, payload) if hw_protocol is None else hw_protocol
    values = {"PACKET_HDR": {"hw_protocol": protocol, "hook": hook}, "PREFIX": text, **attributes}
    if payload is not None:
        values["PAYLOAD"] = payload
    data = _attributes(nfulnl.NFULA_TABLE, values)
    return _fed(nfnetlink.build_message(nfulnl.MSG_PACKET, group, data, family=family), process)


def error_message(number: int, request: bytes) -> bytes:
    """Return the kernel's answer to a request: errno ``number``, 0 for success."""
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
