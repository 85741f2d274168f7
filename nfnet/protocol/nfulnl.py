"""NFLOG (``linux/netfilter/nfnetlink_log.h``): logged packets and configuration. The kernel also calls it ULOG.

Attribute data is big-endian on all machines. The numbers differ from those of NFQUEUE, and so do some layouts: the
packet header, the copy mode, the flags.
"""

from __future__ import annotations

import mmap
from enum import IntEnum, IntFlag
from typing import Any

from .._construct import GreedyBytes, Int8ub, Int16ub, Int32ub, NullStripped, Padding, Struct
from ..errors import DecodeError
from . import conntrack, netlink, nfqnl
from .enumerations import OpenEnum
from .layout import Layouts, fixed_size
from .nfnetlink import BODY, Attribute, FlagOption, Subsystem, build_config, message_type, nested, table
from .nfqnl import Command, CopyMode

MSG_PACKET = message_type(Subsystem.LOG, 0)  # kernel to program
MSG_CONFIG = message_type(Subsystem.LOG, 1)

# The kernel ignores a buffer size outside of its bounds without an error. The lower bound is its default: a page or
# 8 KiB, less the kernel's overhead for a socket buffer.
MIN_BUFFER_SIZE = min(mmap.PAGESIZE, 8192)
MAX_BUFFER_SIZE = 131072
# The kernel computes ``timeout * HZ / 100`` in 32 bits, and HZ is 1000 at most.
MAX_TIMEOUT = 0xFFFFFFFF // 1000  # in 10 ms


class LogFlag(IntFlag):
    """``NFULNL_CFG_F_*``: options of a group."""

    SEQ = 0x1
    SEQ_GLOBAL = 0x2
    CONNTRACK = 0x4


FLAG_OPTIONS = (
    FlagOption("sequence", LogFlag.SEQ),
    FlagOption("global_sequence", LogFlag.SEQ_GLOBAL),
    FlagOption("conntrack", LogFlag.CONNTRACK, optional=True),
)
"""A row for each flag: its argument name in `nfnet.Log`, and whether a kernel can lack it."""


class NFULA(OpenEnum):
    """``NFULA_*``: attribute numbers of logged packets."""

    PACKET_HDR = 1
    MARK = 2
    TIMESTAMP = 3
    IFINDEX_INDEV = 4
    IFINDEX_OUTDEV = 5
    IFINDEX_PHYSINDEV = 6
    IFINDEX_PHYSOUTDEV = 7
    HWADDR = 8
    PAYLOAD = 9
    PREFIX = 10
    UID = 11
    SEQ = 12
    SEQ_GLOBAL = 13
    GID = 14
    HWTYPE = 15
    HWHEADER = 16
    HWLEN = 17
    CT = 18
    CT_INFO = 19
    VLAN = 20
    L2HDR = 21


class NFULA_CFG(IntEnum):
    """``NFULA_CFG_*``: attribute numbers of a configuration request."""

    CMD = 1
    MODE = 2
    NLBUFSIZ = 3
    TIMEOUT = 4
    QTHRESH = 5
    FLAGS = 6


packet_hdr = Struct("hw_protocol" / Int16ub, "hook" / Int8ub, Padding(1))
config_mode = Struct("copy_range" / Int32ub, "copy_mode" / Int8ub, Padding(1))

# In the order in which the kernel emits them.
NFULA_TABLE = table(
    Attribute(NFULA.PACKET_HDR, "NFULA_PACKET_HDR", packet_hdr, "EtherType and hook; always the first"),
    Attribute(NFULA.PREFIX, "NFULA_PREFIX", NullStripped(GreedyBytes), "the rule's prefix, with a NUL; always present"),
    Attribute(NFULA.IFINDEX_INDEV, "NFULA_IFINDEX_INDEV", Int32ub, "incoming interface"),
    Attribute(NFULA.IFINDEX_PHYSINDEV, "NFULA_IFINDEX_PHYSINDEV", Int32ub, "incoming bridge port"),
    Attribute(NFULA.IFINDEX_OUTDEV, "NFULA_IFINDEX_OUTDEV", Int32ub, "outgoing interface"),
    Attribute(NFULA.IFINDEX_PHYSOUTDEV, "NFULA_IFINDEX_PHYSOUTDEV", Int32ub, "outgoing bridge port"),
    Attribute(NFULA.MARK, "NFULA_MARK", Int32ub, "packet mark; absent when 0"),
    Attribute(NFULA.HWADDR, "NFULA_HWADDR", nfqnl.hwaddr, "link-layer source address"),
    Attribute(NFULA.HWTYPE, "NFULA_HWTYPE", Int16ub, "link-layer type (ARPHRD_*) of the incoming interface"),
    Attribute(NFULA.HWLEN, "NFULA_HWLEN", Int16ub, "length of the link-layer header"),
    Attribute(NFULA.HWHEADER, "NFULA_HWHEADER", GreedyBytes, "incoming link-layer header, without VLAN tag"),
    Attribute(NFULA.TIMESTAMP, "NFULA_TIMESTAMP", nfqnl.timestamp, "arrival (UTC); not for output and postrouting"),
    Attribute(NFULA.UID, "NFULA_UID", Int32ub, "user id of the local sender, in this program's user namespace"),
    Attribute(NFULA.GID, "NFULA_GID", Int32ub, "group id of the local sender, in this program's user namespace"),
    Attribute(NFULA.SEQ, "NFULA_SEQ", Int32ub, "number in the group, from 0"),
    Attribute(NFULA.SEQ_GLOBAL, "NFULA_SEQ_GLOBAL", Int32ub, "number among all groups of the namespace, from 1"),
    nested(NFULA.CT, "NFULA_CT", conntrack.CTA_TABLE, "connection tracking entry"),
    Attribute(NFULA.CT_INFO, "NFULA_CT_INFO", Int32ub, "relation to the connection (enum ip_conntrack_info)"),
    nested(NFULA.VLAN, "NFULA_VLAN", nfqnl.VLAN_TABLE, "VLAN tag; bridge and netdev families only"),
    Attribute(NFULA.L2HDR, "NFULA_L2HDR", GreedyBytes, "link-layer header; bridge and netdev families only"),
    Attribute(NFULA.PAYLOAD, "NFULA_PAYLOAD", GreedyBytes, "the packet, usually from its network header"),
)

NFULA_CFG_TABLE = table(
    Attribute(NFULA_CFG.CMD, "NFULA_CFG_CMD", Int8ub, "bind or unbind the group"),
    Attribute(NFULA_CFG.MODE, "NFULA_CFG_MODE", config_mode, "copy range and mode; whole packets if never set"),
    Attribute(NFULA_CFG.NLBUFSIZ, "NFULA_CFG_NLBUFSIZ", Int32ub, "size of the kernel's buffer for messages, in bytes"),
    Attribute(NFULA_CFG.TIMEOUT, "NFULA_CFG_TIMEOUT", Int32ub, "maximum delay of a message, in 10 ms (default: 100)"),
    Attribute(NFULA_CFG.QTHRESH, "NFULA_CFG_QTHRESH", Int32ub, "messages sent together (default: 100); 0 means 1"),
    Attribute(NFULA_CFG.FLAGS, "NFULA_CFG_FLAGS", Int16ub, "flags, 16 bits; replace all flags, unlike NFQUEUE's"),
)

TABLES = {MSG_PACKET: NFULA_TABLE, MSG_CONFIG: NFULA_CFG_TABLE}


def config(
    group: int,
    *,
    command: Command | None = None,
    copy_range: int | None = None,
    copy_mode: CopyMode = CopyMode.PACKET,
    buffer_size: int | None = None,
    timeout: int | None = None,
    threshold: int | None = None,
    flags: LogFlag | None = None,
    seq: int = 0,
    ack: bool = False,
) -> bytes:
    """Return a configuration request for a group, ``timeout`` in units of 10 ms; settings that are None stay unchanged.

    The kernel accepts all settings in one message together with BIND. The PF commands, unlike those of NFQUEUE, still
    change the logging of the whole namespace, so nfnet does not use them.
    """
    values: dict[int, Any] = {
        NFULA_CFG.CMD: command,
        NFULA_CFG.MODE: None if copy_range is None else {"copy_range": copy_range, "copy_mode": copy_mode},
        NFULA_CFG.TIMEOUT: timeout,
        NFULA_CFG.QTHRESH: threshold,
        NFULA_CFG.NLBUFSIZ: buffer_size,
        NFULA_CFG.FLAGS: flags,
    }
    return build_config(MSG_CONFIG, group, NFULA_CFG_TABLE, values, seq=seq, ack=ack)


layouts: Layouts = Layouts({number: fixed_size(row.schema) for number, row in NFULA_TABLE.items()}, BODY, NFULA.PAYLOAD)
"""The positions of the attributes in log messages."""


def check_packet(message: bytes) -> None:
    """Raise DecodeError if this is not a log message in the form that the kernel sends."""
    if len(message) < BODY or netlink.read_length_and_type(message)[1] != MSG_PACKET:
        raise DecodeError("not a log message", 4)
    if NFULA.PACKET_HDR not in layouts.find(message).spans:
        raise DecodeError("log message without NFULA_PACKET_HDR", BODY)
