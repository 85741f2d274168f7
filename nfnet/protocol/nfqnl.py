"""NFQUEUE (``linux/netfilter/nfnetlink_queue.h``): packets, verdicts, configuration.

Attribute data is big-endian on all machines. All readers and writers are derived from the schemas here and tested
against them; `layout` has the readers and writers for the hot path.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum, IntFlag
from itertools import takewhile
from typing import Any

from .._construct import Bytes, Default, GreedyBytes, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct
from ..errors import DecodeError
from . import conntrack, netlink
from .enumerations import OpenEnum, OpenFlag
from .layout import Layouts, build_attribute, fixed_size
from .nfnetlink import (
    BODY,
    Attribute,
    FlagOption,
    Subsystem,
    build_attributes,
    build_config,
    build_message,
    message_type,
    nested,
    table,
)

MSG_PACKET = message_type(Subsystem.QUEUE, 0)  # from the kernel to the program; the others are sent to the kernel
MSG_VERDICT = message_type(Subsystem.QUEUE, 1)
MSG_CONFIG = message_type(Subsystem.QUEUE, 2)
MSG_VERDICT_BATCH = message_type(Subsystem.QUEUE, 3)

# Size of a replacement for the packet: below 20 bytes the kernel drops it and reports success; above this maximum it
# does not fit into an attribute.
MIN_PAYLOAD = 20
MAX_PAYLOAD = netlink.MAX_ATTRIBUTE_DATA


class Verdict(OpenEnum):
    """``NF_*``: the verdict on a packet, the low byte of the verdict word.

    With QUEUE, the upper 16 bits contain the number of another queue; QUEUE_BYPASS can be added. STOP accepts and skips
    the later chains of the same hook. The kernel refuses 2 (STOLEN).
    """

    DROP = 0
    ACCEPT = 1
    QUEUE = 3
    REPEAT = 4
    STOP = 5


VERDICTS = frozenset(Verdict)
"""The verdicts that the kernel accepts; it refuses others (EINVAL), and the packet continues to wait."""

QUEUE_BYPASS = 0x8000  # NF_VERDICT_FLAG_QUEUE_BYPASS: accept the packet if the other queue does not exist


class Command(IntEnum):
    """``NFQNL_CFG_CMD_*``. The PF commands have no effect since Linux 3.8, but need the privilege like the others."""

    NONE = 0
    BIND = 1
    UNBIND = 2
    PF_BIND = 3
    PF_UNBIND = 4


class CopyMode(OpenEnum):
    """``NFQNL_COPY_*``: how much of each packet the kernel copies to the program.

    NONE: nothing, and the kernel drops every packet that reaches the queue. META: the metadata alone. PACKET: the
    metadata and as many of the packet's bytes as the copy range allows.
    """

    NONE = 0
    META = 1
    PACKET = 2


class QueueFlag(IntFlag):
    """``NFQA_CFG_F_*``: options of a queue."""

    FAIL_OPEN = 0x1
    CONNTRACK = 0x2
    GSO = 0x4
    UID_GID = 0x8
    SECCTX = 0x10


FLAG_OPTIONS = (
    FlagOption("fail_open", QueueFlag.FAIL_OPEN),
    FlagOption("gso", QueueFlag.GSO),
    FlagOption("uid_gid", QueueFlag.UID_GID, optional=True),
    FlagOption("secctx", QueueFlag.SECCTX, optional=True),
    FlagOption(
        "conntrack",
        QueueFlag.CONNTRACK,
        optional=True,
        remedy="modprobe nf_conntrack_netlink, or a kernel with CONFIG_NETFILTER_NETLINK_GLUE_CT",
    ),
)
"""A row for each flag: its argument name in `nfnet.Queue`, and whether a kernel can lack it."""


class SkbInfo(OpenFlag):
    """``NFQA_SKB_*``: the state of a packet's checksum and segmentation.

    CSUM_NOT_READY: the transport checksum is a partial sum, which the kernel or the network card finishes when it sends
    the packet. GSO: a super-packet, which is later divided into segments. CSUM_NOT_VERIFIED: the transport checksum has
    not been checked yet.
    """

    CSUM_NOT_READY = 0x1
    GSO = 0x2
    CSUM_NOT_VERIFIED = 0x4


class NFQA(OpenEnum):
    """``NFQA_*``: attribute numbers of packets and verdicts."""

    PACKET_HDR = 1
    VERDICT_HDR = 2
    MARK = 3
    TIMESTAMP = 4
    IFINDEX_INDEV = 5
    IFINDEX_OUTDEV = 6
    IFINDEX_PHYSINDEV = 7
    IFINDEX_PHYSOUTDEV = 8
    HWADDR = 9
    PAYLOAD = 10
    CT = 11
    CT_INFO = 12
    CAP_LEN = 13
    SKB_INFO = 14
    EXP = 15
    UID = 16
    GID = 17
    SECCTX = 18
    VLAN = 19
    L2HDR = 20
    PRIORITY = 21
    CGROUP_CLASSID = 22


class NFQA_VLAN(IntEnum):
    """``NFQA_VLAN_*``: inside NFQA_VLAN."""

    PROTO = 1
    TCI = 2


class NFQA_CFG(IntEnum):
    """``NFQA_CFG_*``: attribute numbers of a configuration request."""

    CMD = 1
    PARAMS = 2
    QUEUE_MAXLEN = 3
    MASK = 4
    FLAGS = 5


packet_hdr = Struct("packet_id" / Int32ub, "hw_protocol" / Int16ub, "hook" / Int8ub)
verdict_hdr = Struct("verdict" / Int32ub, "packet_id" / Int32ub)
timestamp = Struct("seconds" / Int64ub, "microseconds" / Int64ub)
hwaddr = Struct("length" / Int16ub, Padding(2), "address" / Bytes(8))
config_cmd = Struct("command" / Int8ub, Padding(1), "family" / Default(Int16ub, 0))
config_params = Struct("copy_range" / Int32ub, "copy_mode" / Int8ub)

VLAN_TABLE = table(
    Attribute(NFQA_VLAN.PROTO, "NFQA_VLAN_PROTO", Int16ub, "EtherType of the tag"),
    Attribute(NFQA_VLAN.TCI, "NFQA_VLAN_TCI", Int16ub, "priority, drop eligibility and VLAN id"),
)

# In the order in which the kernel emits them; only the positions of the first and the last are guaranteed.
NFQA_TABLE = table(
    Attribute(NFQA.PACKET_HDR, "NFQA_PACKET_HDR", packet_hdr, "id in the queue, EtherType, hook; always the first"),
    Attribute(NFQA.VERDICT_HDR, "NFQA_VERDICT_HDR", verdict_hdr, "verdict word and packet id (to the kernel)"),
    Attribute(NFQA.IFINDEX_INDEV, "NFQA_IFINDEX_INDEV", Int32ub, "incoming interface"),
    Attribute(NFQA.IFINDEX_PHYSINDEV, "NFQA_IFINDEX_PHYSINDEV", Int32ub, "incoming bridge port"),
    Attribute(NFQA.IFINDEX_OUTDEV, "NFQA_IFINDEX_OUTDEV", Int32ub, "outgoing interface"),
    Attribute(NFQA.IFINDEX_PHYSOUTDEV, "NFQA_IFINDEX_PHYSOUTDEV", Int32ub, "outgoing bridge port"),
    Attribute(NFQA.MARK, "NFQA_MARK", Int32ub, "packet mark; absent when 0"),
    Attribute(NFQA.PRIORITY, "NFQA_PRIORITY", Int32ub, "skb->priority, as tc uses it; absent when 0"),
    Attribute(NFQA.HWADDR, "NFQA_HWADDR", hwaddr, "link-layer source address"),
    nested(NFQA.VLAN, "NFQA_VLAN", VLAN_TABLE, "VLAN tag; bridge family only"),
    Attribute(NFQA.L2HDR, "NFQA_L2HDR", GreedyBytes, "link-layer header; bridge family only"),
    Attribute(NFQA.TIMESTAMP, "NFQA_TIMESTAMP", timestamp, "arrival (UTC), if a program has requested timestamps"),
    Attribute(NFQA.UID, "NFQA_UID", Int32ub, "user id of the local sender, in the initial user namespace"),
    Attribute(NFQA.GID, "NFQA_GID", Int32ub, "group id of the local sender, in the initial user namespace"),
    Attribute(NFQA.CGROUP_CLASSID, "NFQA_CGROUP_CLASSID", Int32ub, "net_cls class of the sender's cgroup"),
    Attribute(NFQA.SECCTX, "NFQA_SECCTX", GreedyBytes, "security context (secmark) of the packet"),
    nested(NFQA.CT, "NFQA_CT", conntrack.CTA_TABLE, "connection tracking entry"),
    Attribute(NFQA.CT_INFO, "NFQA_CT_INFO", Int32ub, "relation to the connection (enum ip_conntrack_info)"),
    Attribute(NFQA.CAP_LEN, "NFQA_CAP_LEN", Int32ub, "length of the packet, when the payload is shorter"),
    Attribute(NFQA.SKB_INFO, "NFQA_SKB_INFO", Int32ub, "state of checksum and segmentation; absent when 0"),
    Attribute(NFQA.EXP, "NFQA_EXP", netlink.attributes, "expectation to create (to the kernel)"),
    Attribute(NFQA.PAYLOAD, "NFQA_PAYLOAD", GreedyBytes, "the packet from its network header; last and not padded"),
)

NFQA_CFG_TABLE = table(
    Attribute(NFQA_CFG.CMD, "NFQA_CFG_CMD", config_cmd, "bind or unbind the queue"),
    Attribute(NFQA_CFG.PARAMS, "NFQA_CFG_PARAMS", config_params, "copy range and mode; a bare BIND copies nothing"),
    Attribute(NFQA_CFG.QUEUE_MAXLEN, "NFQA_CFG_QUEUE_MAXLEN", Int32ub, "maximum of waiting packets (default: 1024)"),
    Attribute(NFQA_CFG.MASK, "NFQA_CFG_MASK", Int32ub, "flags to change"),
    Attribute(NFQA_CFG.FLAGS, "NFQA_CFG_FLAGS", Int32ub, "their new values"),
)

TABLES = {
    MSG_PACKET: NFQA_TABLE,
    MSG_VERDICT: NFQA_TABLE,
    MSG_VERDICT_BATCH: NFQA_TABLE,
    MSG_CONFIG: NFQA_CFG_TABLE,
}


def config(
    num: int,
    *,
    command: Command | None = None,
    copy_range: int | None = None,
    copy_mode: CopyMode = CopyMode.PACKET,
    max_len: int | None = None,
    flags: QueueFlag | None = None,
    seq: int = 0,
    ack: bool = False,
) -> bytes:
    """Return a configuration request for queue ``num``; settings that are None, and other flags, stay unchanged.

    The kernel accepts all settings in one message together with BIND, and creates no queue if it refuses one.
    """
    values: dict[int, Any] = {
        NFQA_CFG.CMD: None if command is None else {"command": command},
        NFQA_CFG.PARAMS: None if copy_range is None else {"copy_range": copy_range, "copy_mode": copy_mode},
        NFQA_CFG.QUEUE_MAXLEN: max_len,
        NFQA_CFG.FLAGS: flags,
        NFQA_CFG.MASK: flags,
    }
    return build_config(MSG_CONFIG, num, NFQA_CFG_TABLE, values, seq=seq, ack=ack)


def verdict(
    num: int, packet_id: int, word: int, changes: Iterable[tuple[NFQA, Any]] = (), *, batch: bool = False
) -> bytes:
    """Return a verdict on a packet of queue ``num``, or on all packets queued up to ``packet_id`` (``batch``).

    ``changes`` are MARK, PRIORITY, PAYLOAD and so on; for a batch the kernel uses only the first two. The verdict
    header is last, so that messages with different packet ids differ only at their end. Sequence number 0 is
    reserved for verdicts, because the kernel reports their failures unrequested, between the packets.
    """
    items = [*changes, (NFQA.VERDICT_HDR, {"verdict": word, "packet_id": packet_id})]
    data = build_attributes((NFQA_TABLE[kind], value) for kind, value in items)
    return build_message(MSG_VERDICT_BATCH if batch else MSG_VERDICT, num, data, flags=netlink.Flag.REQUEST)


def is_after(packet_id: int, other: int) -> bool:
    """Return whether the kernel treats a packet id as later than another one (``nfq_id_after``).

    Ids wrap around, so the kernel uses their difference as a signed number of 32 bits.
    """
    return 0 < (packet_id - other) & 0xFFFFFFFF < 0x80000000


def covered_by_batch(queued: Iterable[int], packet_id: int) -> list[int]:
    """Return which of the queued ids, oldest first, a batch verdict up to ``packet_id`` decides.

    The kernel walks its queue from the oldest packet, and stops at the first one that is after ``packet_id``.
    """
    return list(takewhile(lambda number: not is_after(number, packet_id), queued))


# The position of a packet's id: the kernel puts NFQA_PACKET_HDR first, and `normalized` does so for other messages.
PACKET_ID = slice(BODY + netlink.ATTRIBUTE_HEADER_SIZE, BODY + netlink.ATTRIBUTE_HEADER_SIZE + 4)

# The offset of the byte with the subsystem in the message header. Of the kernel's messages to a queue's socket only
# packets have Subsystem.QUEUE there; answers have 0.
SUBSYSTEM_BYTE = 5 if netlink.HOST == "little" else 4
QUEUE_SUBSYSTEM = int(Subsystem.QUEUE)

layouts: Layouts = Layouts({number: fixed_size(row.schema) for number, row in NFQA_TABLE.items()}, BODY, NFQA.PAYLOAD)
"""The positions of the attributes in packet messages."""


def is_packet(message: bytes) -> bool:
    """Return whether this is a packet, according to the type of the message."""
    return int.from_bytes(message[4:6], netlink.HOST) == MSG_PACKET


def normalized(message: bytes, num: int) -> bytes:
    """Return a packet message of queue ``num`` in the form that the kernel sends. Raises DecodeError."""
    if len(message) < BODY or not is_packet(message):
        raise DecodeError("not a packet message", 4)
    spans = layouts.find(message).spans
    if NFQA.PACKET_HDR not in spans:
        raise DecodeError("packet without NFQA_PACKET_HDR", BODY)
    its_num = int.from_bytes(message[18:20], "big")
    if its_num != num:
        raise DecodeError(f"packet of queue {its_num} where one of queue {num} was expected", 18)
    if spans[NFQA.PACKET_HDR].start == PACKET_ID.start:
        return message
    order = sorted(spans, key=lambda kind: (kind != NFQA.PACKET_HDR, kind == NFQA.PAYLOAD))
    data = b"".join(build_attribute(kind, message[spans[kind]]) for kind in order)
    return netlink.with_length(message[:BODY] + data)
