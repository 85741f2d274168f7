"""Writes docs/wire.md from the tables of nfnet/protocol: python docs/wire.py"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import construct

from nfnet.protocol import conntrack, netlink, nfnetlink, nfqnl, nfulnl
from nfnet.protocol.nfnetlink import Table

PAGE = Path(__file__).with_name("wire.md")

_NATIVE = (netlink._uint16, netlink._uint32, netlink._int32)
_KINDS = {"B": (8, "u"), "H": (16, "u"), "L": (32, "u"), "I": (32, "u"), "Q": (64, "u"), "b": (8, "s")}
_KINDS |= {"h": (16, "s"), "l": (32, "s"), "i": (32, "s"), "q": (64, "s")}


def integer(schema: Any) -> str:
    """A number, ``>L`` as "be32"."""
    bits, sign = _KINDS[schema.fmtstr[-1]]
    # By identity: on a big-endian machine those in its own order look like the others.
    if bits == 8 or any(schema is native for native in _NATIVE):
        return f"{sign}{bits}"
    if schema.fmtstr[0] != ">" or sign != "u":
        raise TypeError(f"no words for {schema!r}")
    return f"be{bits}"


def layout(schema: Any) -> str:
    """A schema of construct's in words. Raises TypeError for one that this does not know."""
    if isinstance(schema, construct.FormatField):
        return integer(schema)
    if isinstance(schema, construct.Struct):
        return ", ".join(filter(None, map(member, schema.subcons)))
    if isinstance(schema, construct.NullStripped):
        return "text, ends in NUL"
    if isinstance(schema, construct.Bytes):
        return f"{schema.length} bytes" if isinstance(schema.length, int) else "bytes"
    if schema is construct.GreedyBytes:
        return "bytes"
    if schema is netlink.attributes:
        return "attributes"
    if isinstance(schema, construct.Padded):
        return (
            "1 byte unused"
            if schema.length == 1
            else f"{schema.length} bytes unused"
            if isinstance(schema.length, int)
            else "padding to 4"
        )
    if isinstance(schema, (construct.Renamed, construct.Default, construct.Rebuild)):
        return layout(schema.subcon)
    raise TypeError(f"no words for {schema!r}")


def member(schema: Any) -> str:
    """A member of a struct."""
    text = layout(schema)
    return f"{text} {schema.name}" if schema.name else text


def size(schema: Any) -> str:
    """Its bytes on the wire, or nothing if that varies."""
    try:
        return str(schema.sizeof())
    except construct.SizeofError:
        return ""


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


class Nested:
    """Tables within tables: each is shown once, under the names of the attributes that have it."""

    def __init__(self, *tables: Table) -> None:
        self.found: dict[int, tuple[Table, list[str]]] = {}
        for table in tables:
            self._look_into(table)

    def _look_into(self, table: Table) -> None:
        for item in table.values():
            if item.nested:
                names = self.found.setdefault(id(item.nested), (item.nested, []))[1]
                if item.name not in names:
                    names.append(item.name)
                self._look_into(item.nested)

    def title(self, table: Table) -> str:
        return "Inside " + ", ".join(self.found[id(table)][1])

    def link(self, table: Table) -> str:
        anchor = self.title(table).lower().replace(",", "").replace(" ", "-")
        return f"[attributes](#{anchor})"

    def sections(self, level: str = "###") -> str:
        return "\n\n".join(f"{level} {self.title(table)}\n\n{attributes(table)}" for table, _ in self.found.values())


def attributes(table: Table) -> str:
    """A table of attributes."""
    lines = [row("number", "kernel's name", "layout", "bytes", "meaning"), row(*["---"] * 5)]
    for number, item in sorted(table.items()):
        text = NESTED.link(item.nested) if item.nested else layout(item.schema)
        lines.append(row(int(number), f"`{item.name}`", text, size(item.schema), item.meaning))
    return "\n".join(lines)


def members(
    kind: type[IntEnum] | type[IntFlag],
    prefix: str,
    meanings: dict[str, str] | None = None,
    names: dict[str, str] | None = None,
) -> str:
    """A table of an enumeration; ``names`` are those of the kernel's that differ from ours."""
    head = [row("number", "kernel's name", *(["meaning"] if meanings else []))]
    head.append(row(*["---"] * (3 if meanings else 2)))
    flags = issubclass(kind, IntFlag)
    for item in kind:
        value = f"{item.value:#x}" if flags else item.value
        name = (names or {}).get(item.name or "", item.name)
        head.append(row(value, f"`{prefix}{name}`", *([meanings[item.name or ""]] if meanings else [])))
    return "\n".join(head)


def messages(items: Iterable[tuple[int, str, str, str]]) -> str:
    head = [row("nlmsg_type", "kernel's name", "direction", "meaning"), row(*["---"] * 4)]
    return "\n".join([*head, *(row(f"{kind:#06x}", f"`{name}`", way, text) for kind, name, way, text in items)])


def struct_rows(schema: Any) -> str:
    head = [row("offset", "field", "layout"), row(*["---"] * 3)]
    offset = 0
    for item in schema.subcons:
        head.append(row(offset, item.name or "", layout(item)))
        offset += item.sizeof()
    return "\n".join(head)


_VERDICTS = {
    "DROP": "discard the packet",
    "ACCEPT": "the packet continues after the chain that queued it",
    "QUEUE": "pass it to the queue in the upper 16 bits; 0x8000: accept it if no program has that queue",
    "REPEAT": "it passes the chain that queued it again, from the first rule",
    "STOP": "it continues, and skips the later chains of the hook",
}

_COMMANDS = {
    "NONE": "nothing",
    "BIND": "create the queue or group, and bind it to this socket",
    "UNBIND": "remove it, and drop the packets that wait in it",
    "PF_BIND": "no effect for queues since Linux 3.8; makes NFLOG the logger of a family",
    "PF_UNBIND": "no effect for queues since Linux 3.8; NFLOG is no longer the logger of the family",
}

_COPY = {
    "NONE": "nothing: NFQUEUE drops every packet, NFLOG treats it as META",
    "META": "all attributes except the payload",
    "PACKET": "also the payload, up to the copy range",
}

_SKB = {
    "CSUM_NOT_READY": "the transport checksum is a partial sum; the kernel completes it when it sends the packet",
    "GSO": "a super-packet, to be split into segments",
    "CSUM_NOT_VERIFIED": "the transport checksum has not been verified",
}

_QUEUE_FLAGS = {
    "FAIL_OPEN": "accept packets when the queue or the receive buffer is full",
    "CONNTRACK": "send NFQA_CT and NFQA_CT_INFO",
    "GSO": "send super-packets and unfinished checksums as they are",
    "UID_GID": "send NFQA_UID and NFQA_GID",
    "SECCTX": "send NFQA_SECCTX",
}

_LOG_FLAGS = {
    "SEQ": "send NFULA_SEQ",
    "SEQ_GLOBAL": "send NFULA_SEQ_GLOBAL",
    "CONNTRACK": "send NFULA_CT and NFULA_CT_INFO",
}


_HOOKS = {
    "PREROUTING": "PRE_ROUTING",
    "INPUT": "LOCAL_IN",
    "OUTPUT": "LOCAL_OUT",
    "POSTROUTING": "POST_ROUTING",
}

_HEADERS = {"CSUM_NOT_READY": "CSUMNOTREADY", "CSUM_NOT_VERIFIED": "CSUM_NOTVERIFIED"}

NESTED = Nested(nfqnl.NFQA_TABLE, nfulnl.NFULA_TABLE)


def page() -> str:
    """The page."""
    text = f"""\
<!-- Generated by docs/wire.py from nfnet/protocol: change these, and run docs/wire.py. -->

# The wire format

The messages of NFQUEUE and NFLOG on the netlink socket, byte by byte. This page is generated from the tables against
which nfnet itself is tested. To decode a message, `nfnet decode FILE-OR-HEX` shows each field with its offset.

A datagram contains one or more messages. Each consists of `struct nlmsghdr`, `struct nfgenmsg`, and attributes.
**Netlink's own fields are in the byte order of the machine; netfilter's values inside attributes are big-endian.** The
socket has the family `AF_NETLINK` (16) and protocol `NETLINK_NETFILTER` ({nfnetlink.NETLINK_NETFILTER}).

Layouts are written as in the kernel: `u8`, `u16`, `u32` and `s32` are numbers of so many bits in the byte order of the
machine, `be16`, `be32` and `be64` are big-endian.

## Headers

`struct nlmsghdr`, {netlink.HEADER_SIZE} bytes; `length` includes the header, but no padding behind the message. An
answer of the kernel has the sequence number of the request; other messages of the kernel have 0.

{struct_rows(netlink.header)}

`struct nfgenmsg`, {nfnetlink.nfgenmsg.sizeof()} bytes; `resource` is the number of the queue or the log group.

{struct_rows(nfnetlink.nfgenmsg)}

An attribute, `struct nlattr`: `length` includes these 4 bytes and the data, but no padding; the next attribute begins
at a multiple of 4. The two upper bits of the type are flags: 0x8000 (nested) and 0x4000 (network byte order).

| offset | field | layout |
| --- | --- | --- |
| 0 | length | u16 |
| 2 | type | u16 |
| 4 | data | length - 4 bytes, then padding, which can be missing behind the last attribute of a packet |

Flags of a message:

{members(netlink.Flag, "NLM_F_")}

## Message types

The upper byte is the subsystem (`NFNL_SUBSYS_QUEUE` is {int(nfnetlink.Subsystem.QUEUE)}, `NFNL_SUBSYS_ULOG` {
        int(nfnetlink.Subsystem.LOG)
    }), the lower
one the operation.

{
        messages(
            [
                (
                    netlink.NLMSG_ERROR,
                    "NLMSG_ERROR",
                    "from the kernel",
                    "the answer to a request: errno, or 0 for success",
                ),
                (netlink.NLMSG_DONE, "NLMSG_DONE", "from the kernel", "the end of a batch of log messages"),
                (nfqnl.MSG_PACKET, "NFQNL_MSG_PACKET", "from the kernel", "a packet that waits for a verdict"),
                (nfqnl.MSG_VERDICT, "NFQNL_MSG_VERDICT", "to the kernel", "a verdict on one packet"),
                (nfqnl.MSG_CONFIG, "NFQNL_MSG_CONFIG", "to the kernel", "bind, unbind or set up a queue"),
                (
                    nfqnl.MSG_VERDICT_BATCH,
                    "NFQNL_MSG_VERDICT_BATCH",
                    "to the kernel",
                    "a verdict on all packets that are queued up to an id",
                ),
                (nfulnl.MSG_PACKET, "NFULNL_MSG_PACKET", "from the kernel", "a packet that a rule logged"),
                (nfulnl.MSG_CONFIG, "NFULNL_MSG_CONFIG", "to the kernel", "bind, unbind or set up a log group"),
            ]
        )
    }

The kernel answers requests with the flag `NLM_F_ACK`, and all requests that fail, including verdicts. The body of the
answer is `error`, {
        layout(netlink.nlmsgerr.subcons[0])
    }, a negative errno or 0, and the header of the request. If the flag
`NLM_F_CAPPED` is not set, the rest of the request follows; if `NLM_F_ACK_TLVS` is set, attributes follow:

{members(netlink.ErrorAttribute, "NLMSGERR_ATTR_")}

## NFQUEUE: packets and verdicts

In a packet message `NFQA_PACKET_HDR` is first and `NFQA_PAYLOAD` last; other attributes can be missing, and those with
"absent when 0" are missing when they would be 0. A verdict needs `NFQA_VERDICT_HDR`. Its other attributes change the
packet: mark, priority, payload, VLAN, link-layer header, connection. In a batch verdict only mark and priority have an
effect.

{attributes(nfqnl.NFQA_TABLE)}

The verdict word:

{members(nfqnl.Verdict, "NF_", _VERDICTS)}

`NFQA_SKB_INFO`:

{members(nfqnl.SkbInfo, "NFQA_SKB_", _SKB, _HEADERS)}

## NFQUEUE: configuration

{attributes(nfqnl.NFQA_CFG_TABLE)}

Commands, also for NFLOG:

{members(nfqnl.Command, "NFQNL_CFG_CMD_", _COMMANDS)}

Copy modes, also for NFLOG (`NFULNL_COPY_*`):

{members(nfqnl.CopyMode, "NFQNL_COPY_", _COPY)}

Flags; a request changes those in `NFQA_CFG_MASK`:

{members(nfqnl.QueueFlag, "NFQA_CFG_F_", _QUEUE_FLAGS)}

## NFLOG: messages

The numbers differ from those of NFQUEUE, and so do the layouts of the packet header and of the copy mode.

{attributes(nfulnl.NFULA_TABLE)}

## NFLOG: configuration

{attributes(nfulnl.NFULA_CFG_TABLE)}

Flags:

{members(nfulnl.LogFlag, "NFULNL_CFG_F_", _LOG_FLAGS)}

## Attributes within attributes

`NFQA_CT` and `NFULA_CT` contain the entry of connection tracking. `CTA_ID` is opaque: the kernel does not convert its
byte order.

{NESTED.sections()}

`CTA_STATUS`:

{members(conntrack.Status, "IPS_")}

`NFQA_CT_INFO` and `NFULA_CT_INFO`:

{members(conntrack.CtInfo, "IP_CT_")}

## Hooks and families

Hooks of the families IPv4, IPv6 and bridge:

{members(nfnetlink.Hook, "NF_INET_", names=_HOOKS)}

Families:

{members(nfnetlink.Family, "NFPROTO_")}
"""
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    PAGE.write_text(page())
