"""Extract from the records of a capture the kernel's messages for a queue or a log."""

from __future__ import annotations

from collections.abc import Mapping

from .._printable import counted
from ..errors import CaptureError, DecodeError
from ..protocol import byteorder, layout, netlink, nfnetlink, nfqnl, nfulnl
from ..protocol.nfnetlink import BODY, NETLINK_NETFILTER, Subsystem
from ..protocol.nfqnl import NFQA
from ..protocol.nfulnl import NFULA
from ._format import ARPHRD_NETLINK, NETLINK_HEADER_SIZE, netlink_header
from ._link_layer import LINK_LAYERS
from ._link_types import LinkType
from ._reader import Record

MESSAGES = frozenset((LinkType.NETLINK, LinkType.NFLOG))
"""The link types whose records are the kernel's messages."""

VERDICTS = (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH)
# Not by the schema: reading each record with it leaves objects that only the garbage collector frees, and that of
# free-threaded CPython waits until they are a quarter of all objects.
_read_header = layout.compile_struct(netlink_header, "arphrd", "family").unpack_from
_PAYLOAD: dict[int, int] = {nfqnl.MSG_PACKET: NFQA.PAYLOAD, nfulnl.MSG_PACKET: NFULA.PAYLOAD}


def netfilter_datagram(record: Record) -> bytes | None:
    """Return the datagram in a record of link type NETLINK, in this machine's byte order; None if not netfilter's.

    The record has the byte order of the recording machine, usually that of the file. But programs that copy captures
    write files in their own byte order, and leave the records unchanged: then the length of the first message shows
    the byte order. If the record was cut short, the datagram is, too. Raises CaptureError for a record without the
    pseudo-header, and for a damaged datagram, if its byte order must be changed.
    """
    arphrd, family = _read_header(record.data) if len(record.data) >= NETLINK_HEADER_SIZE else (None, None)
    if arphrd != ARPHRD_NETLINK:
        raise record.error("no header of netlink captures")
    if family != NETLINK_NETFILTER:
        return None
    datagram, size = record.data[NETLINK_HEADER_SIZE:], record.size - NETLINK_HEADER_SIZE
    try:
        return byteorder.to_host(datagram, byteorder.order_of(datagram, record.byteorder, size), size)
    except DecodeError as error:
        raise record.error(error.what, NETLINK_HEADER_SIZE + error.offset) from None


def datagram(record: Record) -> bytes | None:
    """Return the datagram in a record of link type NETLINK or NFLOG, in this machine's byte order; None without one.

    A record of NFLOG is a log message without the netlink header, which is added here. If the record was cut short, so
    is the datagram. Raises CaptureError.
    """
    if record.link_type == LinkType.NETLINK:
        return netfilter_datagram(record)
    if record.link_type != LinkType.NFLOG:
        return None
    data, start = record.data, BODY - netlink.HEADER_SIZE
    if len(data) < start:
        raise record.error("too short for a log message")
    order = byteorder.order_of_attributes(data, start, record.byteorder, record.size)
    try:
        body = byteorder.attributes_to_host(data, start, order, nfulnl.NFULA_TABLE, record.size)
    except DecodeError as error:
        raise record.error(error.what, error.offset) from None
    return nfnetlink.pack_header(original_size(record), nfulnl.MSG_PACKET, 0, 0, 0) + body


def original_size(record: Record) -> int:
    """Return the size of that datagram in bytes before the record was cut short."""
    return record.size - _before(record)


def located(record: Record, error: DecodeError, start: int = 0) -> CaptureError:
    """Turn the error for a message at ``start`` of a record's datagram into the error for the file."""
    return record.error(error.what, _before(record) + start + error.offset)


def _before(record: Record) -> int:
    """Return how many bytes of a record precede its datagram; negative for NFLOG, which lacks the first bytes."""
    return -netlink.HEADER_SIZE if record.link_type == LinkType.NFLOG else NETLINK_HEADER_SIZE


def is_packet(record: Record, subsystem: int) -> bool:
    """Return whether a record is a packet with a link layer, for a queue or log.

    In a section of a file that contains the kernel's messages to queues, or to logs, other records contain the same
    packets again, so this returns False for them.
    """
    if record.link_type not in LINK_LAYERS:
        return False
    if subsystem == Subsystem.QUEUE:
        return LinkType.NETLINK not in record.link_types
    return record.link_types.isdisjoint(MESSAGES)


def owner(record: Record) -> tuple[int | None, int | None]:
    """Return the number of the queue, and of the log group, of the packet or message in a record of MESSAGES.

    One is None, or both if the record has none. Raises CaptureError.
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
    """Return a record's messages about a queue or group, each with its offset in the datagram; and the error, if any.

    These are packets, log messages (as one whole datagram if it is undamaged), verdicts, and the kernel's answers to
    verdicts. Messages that were cut short are included if enough of them is left.
    """
    found: list[tuple[int, bytes]] = []
    problem: CaptureError | None = None
    intact = True
    try:
        whole = datagram(record) or b""
        if len(whole) >= BODY and netlink.read_length_and_type(whole)[1] >> 8 not in (0, subsystem):
            return [], None  # its damage does not matter here
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
    """Return a message if it is about that queue or group, as the kernel sends it; else None. Raises DecodeError."""
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
    """Return a packet or log message that was cut short as the kernel would send it with a shorter payload.

    Other attributes are left out if they are incomplete.
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
        raise DecodeError("cut too short to contain the packet's header", len(message))
    return netlink.with_length(message[:BODY] + body)


_ETHERTYPES = {
    0x0800: "of EtherType IPv4 without an IPv4 header",
    0x0806: "ARP",
    0x86DD: "of EtherType IPv6 without an IPv6 header",
    0x8863: "PPPoE discovery",
    0x888E: "EAPOL",
    0x88CC: "LLDP",
    0: "without an EtherType, or encrypted",
}
# Headers behind which Wireshark can find IP packets.
_ENCLOSING = {
    0x8847: "MPLS",
    0x8848: "MPLS multicast",
    0x88E5: "MACsec",
    0x88E7: "provider backbone bridging",
    0x8903: "FabricPath",
    0x8926: "VN-Tag",
    0x893F: "E-Tag",
    0x894F: "NSH",
}
_NAMES = _ETHERTYPES | _ENCLOSING
_MOST_NAMED = 5


def left_out(path: str, skipped: Mapping[int, int], not_ip: Mapping[int, int]) -> str:
    """Describe how many records, by link type and EtherType, contained no packets; with a remedy."""
    parts = [f"{counted(count, 'record')} of {link_type_name(kind)}" for kind, count in sorted(skipped.items())]
    if not_ip:
        total = sum(not_ip.values())
        often = sorted(not_ip.items(), key=lambda item: -item[1])
        kinds = [f"{count} {_NAMES.get(kind, f'of EtherType {kind:#06x}')}" for kind, count in often[:_MOST_NAMED]]
        if others := sum(count for _, count in often[_MOST_NAMED:]):
            kinds.append(f"{others} others")
        parts.append(f"{counted(total, 'record')} that {'is' if total == 1 else 'are'} not IP ({', '.join(kinds)})")
    if any(kind not in LINK_LAYERS for kind in skipped) or not _ENCLOSING.keys().isdisjoint(not_ip):
        import shlex  # few programs need it

        parts[-1] += f". To get the IP packets that Wireshark finds: tshark -r {shlex.quote(path)} -U IP -w ip.pcapng"
    return ", ".join(parts)


def link_type_name(number: int) -> str:
    """Return a link type's name and number."""
    return f"link type {LinkType(number).name} ({number})"
