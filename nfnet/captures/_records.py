"""What the records of a capture hold for a queue or a log: the kernel's messages, as far as they were captured."""

from __future__ import annotations

from collections.abc import Mapping

from construct import ConstructError

from .._printable import counted
from ..errors import CaptureError, DecodeError
from ..protocol import byteorder, layout, netlink, nfnetlink, nfqnl, nfulnl
from ..protocol.nfnetlink import BODY, NETLINK_NETFILTER, Subsystem
from ..protocol.nfqnl import NFQA
from ..protocol.nfulnl import NFULA
from ._format import NETLINK_HEADER_SIZE, netlink_header
from ._link_layer import LINK_LAYERS
from ._link_types import LinkType
from ._reader import Record

MESSAGES = frozenset((LinkType.NETLINK, LinkType.NFLOG))
"""The link types whose records are the kernel's messages."""

VERDICTS = (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH)
_PAYLOAD: dict[int, int] = {nfqnl.MSG_PACKET: NFQA.PAYLOAD, nfulnl.MSG_PACKET: NFULA.PAYLOAD}


def netfilter_datagram(record: Record) -> bytes | None:
    """The datagram in a record of link type NETLINK, in the byte order of this machine; None if it is not netfilter's.

    In the record it is in that of the machine that recorded it, which is that of the file. But programs that copy
    captures write files of their own order, and leave what is in the records as it was: then the length of the first
    message tells. If the record was cut short the datagram is, too. Raises CaptureError for a record without the
    pseudo-header, and for a damaged datagram, if it has to be turned.
    """
    try:
        header = netlink_header.parse(record.data)
    except ConstructError:
        raise record.error("no header of netlink captures") from None
    if header.family != NETLINK_NETFILTER:
        return None
    datagram, size = record.data[NETLINK_HEADER_SIZE:], record.size - NETLINK_HEADER_SIZE
    try:
        return byteorder.to_host(datagram, byteorder.order_of(datagram, record.byteorder, size), size)
    except DecodeError as error:
        raise record.error(error.what, NETLINK_HEADER_SIZE + error.offset) from None


def datagram(record: Record) -> bytes | None:
    """The datagram in a record of link type NETLINK or NFLOG, in the byte order of this machine; None if there is none.

    A record of NFLOG is a log message without the netlink header, which it gets. If the record was cut short, so is the
    datagram. Raises CaptureError.
    """
    if record.link_type == LinkType.NETLINK:
        return netfilter_datagram(record)
    if record.link_type != LinkType.NFLOG:
        return None
    data, start = record.data, nfnetlink.nfgenmsg.sizeof()
    if len(data) < start:
        raise record.error("too short for a log message")
    order = byteorder.order_of_attributes(data, start, record.byteorder, record.size)
    try:
        body = byteorder.attributes_to_host(data, start, order, nfulnl.NFULA_TABLE, record.size)
    except DecodeError as error:
        raise record.error(error.what, error.offset) from None
    fields = {"length": original_size(record), "type": nfulnl.MSG_PACKET, "flags": 0, "seq": 0, "pid": 0}
    return bytes(netlink.header.build(fields)) + body


def original_size(record: Record) -> int:
    """How many bytes that datagram had before the record was cut short."""
    return record.size - _before(record)


def located(record: Record, error: DecodeError, start: int = 0) -> CaptureError:
    """The error for the file, of one for the message at ``start`` of the datagram in a record."""
    return record.error(error.what, _before(record) + start + error.offset)


def _before(record: Record) -> int:
    """How many bytes of a record are before its datagram; one of NFLOG lacks the first of the datagram."""
    return -netlink.HEADER_SIZE if record.link_type == LinkType.NFLOG else NETLINK_HEADER_SIZE


def is_packet(record: Record, subsystem: int) -> bool:
    """Whether a record is a packet with a link layer, which a queue or log shall get.

    In a section of a file that has the kernel's messages to queues, or to logs, other records are the same packets
    once more, and are none.
    """
    if record.link_type not in LINK_LAYERS:
        return False
    if subsystem == Subsystem.QUEUE:
        return LinkType.NETLINK not in record.link_types
    return record.link_types.isdisjoint(MESSAGES)


def owner(record: Record) -> tuple[int | None, int | None]:
    """The number of the queue, or that of the log group, whose packet or message is in a record of MESSAGES.

    Both are None if there is none. Raises CaptureError.
    """
    message = datagram(record)
    if message is not None and len(message) >= BODY:
        kind, number = netlink.read_length_and_type(message)[1], nfnetlink.resource(message)
        if kind == nfqnl.MSG_PACKET:
            return number, None
        if kind == nfulnl.MSG_PACKET:
            return None, number
    return None, None


def messages(record: Record, subsystem: int, number: int) -> tuple[list[tuple[int, bytes]], CaptureError | None]:
    """What a record holds that is about a queue or group, each with its place in the datagram; and what is damaged.

    That are packets or log messages, the latter as one whole datagram if there is nothing wrong with it, verdicts, and
    the kernel's answers to verdicts. What is cut short is among it if there is enough of it.
    """
    found: list[tuple[int, bytes]] = []
    problem: CaptureError | None = None
    intact = True
    try:
        whole = datagram(record) or b""
        if len(whole) >= BODY and netlink.read_length_and_type(whole)[1] >> 8 not in (0, subsystem):
            return [], None  # whatever is wrong with it
        for start, message in netlink.split_messages(whole, size=original_size(record)):
            try:
                ours = _ours(message, subsystem, number)
            except DecodeError as error:
                problem = problem or located(record, error, start)
                continue
            if ours is not None:
                found.append((start, ours))
            intact = intact and (ours is message or netlink.read_length_and_type(message)[1] == netlink.NLMSG_DONE)
    except CaptureError as error:
        return [], error
    except DecodeError as error:  # the rest of the datagram cannot be read
        problem = problem or located(record, error)
    if found and problem is None and intact and subsystem == Subsystem.LOG:
        return [(0, whole)], None
    return found, problem


def _ours(message: bytes, subsystem: int, number: int) -> bytes | None:
    """A message if it is about that queue or group, in the form in which the kernel sends it. Raises DecodeError."""
    length, kind = netlink.read_length_and_type(message)
    cut = length > len(message)
    if kind == netlink.NLMSG_ERROR and subsystem == Subsystem.QUEUE:
        try:
            return message if netlink.parse_answer(message).type in VERDICTS else None
        except DecodeError:
            if cut:
                return None
            raise
    if kind >> 8 != subsystem or (len(message) >= BODY and nfnetlink.resource(message) != number):
        return None
    if kind in VERDICTS:
        return None if cut else message
    if kind not in _PAYLOAD:
        return None
    if cut:
        message = shortened(message)
    if kind == nfqnl.MSG_PACKET:
        return nfqnl.normalized(message, number)
    nfulnl.check_packet(message)
    return message


def shortened(message: bytes) -> bytes:
    """A packet or log message that was cut short, as the kernel sends one with less of the packet.

    Other attributes than the payload are left out if they are not whole.
    """
    length, kind = netlink.read_length_and_type(message)
    body, known = b"", set()
    for number, start, end in layout.walk(message, BODY, length):
        if end <= len(message):
            known.add(number)
            body = message[BODY:end] + bytes(-end % 4)
        elif number == _PAYLOAD[kind]:
            if kind == nfqnl.MSG_PACKET and NFQA.CAP_LEN not in known:
                body += layout.build_attribute(NFQA.CAP_LEN, (end - start).to_bytes(4, "big"))
            payload = message[start:]
            body += layout.build_attribute(number, payload)[: netlink.ATTRIBUTE_HEADER_SIZE + len(payload)]
    if NFQA.PACKET_HDR not in known:  # the same number in both
        raise DecodeError("cut too short to say anything of the packet", len(message))
    header = netlink.header.parse(message)
    header.length = BODY + len(body)
    return bytes(netlink.header.build(header)) + message[netlink.HEADER_SIZE : BODY] + body


_ETHERTYPES = {
    0x0806: "ARP",
    0x8847: "MPLS",
    0x8863: "PPPoE discovery",
    0x888E: "EAPOL",
    0x88CC: "LLDP",
    0: "without an EtherType, or encrypted",
}
_MOST_NAMED = 5


def left_out(path: str, skipped: Mapping[int, int], not_ip: Mapping[int, int]) -> str:
    """In words, how many records of each link type, and of each EtherType, gave no packets; and what to do about it."""
    parts = [f"{counted(count, 'record')} of {link_type_name(kind)}" for kind, count in sorted(skipped.items())]
    if not_ip:
        total = sum(not_ip.values())
        often = sorted(not_ip.items(), key=lambda item: -item[1])
        kinds = [f"{count} {_ETHERTYPES.get(kind, f'of EtherType {kind:#06x}')}" for kind, count in often[:_MOST_NAMED]]
        if others := sum(count for _, count in often[_MOST_NAMED:]):
            kinds.append(f"{others} others")
        parts.append(f"{counted(total, 'record')} that {'is' if total == 1 else 'are'} not IP ({', '.join(kinds)})")
    if any(kind not in LINK_LAYERS for kind in skipped):
        import shlex  # which few programs need

        parts[-1] += f". The IP packets that Wireshark finds in it: tshark -r {shlex.quote(path)} -U IP -w ip.pcapng"
    return ", ".join(parts)


def link_type_name(number: int) -> str:
    """A link type by its name and number."""
    return f"link type {LinkType(number).name} ({number})"
