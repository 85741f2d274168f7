"""``nfnet decode``: a netlink message, field by field."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any

from ..capture import MAX_RECORD, LinkType, netfilter_datagram, read
from ..errors import CaptureError, DecodeError, strerror
from ..log import LogMessage
from ..packet import Packet
from ..protocol import byteorder, netlink, nfqnl, nfulnl
from ..protocol.layout import walk
from ..protocol.nfnetlink import BODY, Attribute, Table, nfgenmsg
from ..text import printable
from . import lines

_DESCRIPTION = """\
Shows netlink messages of NFQUEUE and NFLOG field by field: where each begins,
its bytes, its name and what it says. Takes a capture of netlink (nfnet
record, nlmon, Wireshark), a file with the bytes of a datagram, or hexadecimal
digits. Those of a machine of the other byte order are turned first.

    nfnet decode session.pcapng
    nfnet decode 1c000000020305000100000000000000000000010800010001000000

exit status: 0; 1 for bytes that are no such messages
"""

_WIDTH = 16  # bytes shown of a field

_TABLES: dict[int, tuple[str, Table]] = {
    nfqnl.MSG_PACKET: ("NFQNL_MSG_PACKET", nfqnl.NFQA_TABLE),
    nfqnl.MSG_VERDICT: ("NFQNL_MSG_VERDICT", nfqnl.NFQA_TABLE),
    nfqnl.MSG_VERDICT_BATCH: ("NFQNL_MSG_VERDICT_BATCH", nfqnl.NFQA_TABLE),
    nfqnl.MSG_CONFIG: ("NFQNL_MSG_CONFIG", nfqnl.NFQA_CFG_TABLE),
    nfulnl.MSG_PACKET: ("NFULNL_MSG_PACKET", nfulnl.NFULA_TABLE),
    nfulnl.MSG_CONFIG: ("NFULNL_MSG_CONFIG", nfulnl.NFULA_CFG_TABLE),
}
_MESSAGES: dict[int, type[Packet] | type[LogMessage]] = {nfqnl.MSG_PACKET: Packet, nfulnl.MSG_PACKET: LogMessage}


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "decode",
        help="show netlink messages field by field",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", metavar="FILE|HEX")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    for number, datagram in enumerate(_datagrams(options.what), 1):
        if number > 1:
            print()
        print(f"datagram {number}, {len(datagram)} bytes")
        for text in describe(datagram):
            print(text)
    return 0


def _datagrams(what: str) -> Iterator[bytes]:
    if not os.path.exists(what):
        digits = "".join(what.replace(":", " ").split())
        try:
            datagram = bytes.fromhex(digits)
        except ValueError:
            raise DecodeError(f"{what[:40]!r} is neither a file nor hexadecimal digits", 0) from None
        yield _turned(datagram)
        return
    try:
        for record in read(what):
            if record.link_type == LinkType.NETLINK and (found := netfilter_datagram(record)) is not None:
                yield found
    except CaptureError as error:
        if error.offset:
            raise
        with open(what, "rb") as file:  # no capture: a bare datagram, then
            datagram = file.read(MAX_RECORD + 1)
        if len(datagram) > MAX_RECORD:
            raise DecodeError("neither a capture nor a datagram: too long for one", MAX_RECORD) from None
        yield _turned(datagram)


def _turned(datagram: bytes) -> bytes:
    return byteorder.to_host(datagram, byteorder.order_of(datagram, netlink.HOST))


def describe(datagram: bytes) -> Iterator[str]:
    """The fields of a datagram, a line each. Raises DecodeError where it stops being one."""
    for start, message in netlink.split_messages(datagram):
        header = netlink.header.parse(message)
        name, table = _TABLES.get(header.type, (f"type {header.type:#x}", {}))
        if header.type == netlink.NLMSG_ERROR:
            name = "NLMSG_ERROR"
        yield _field(start, message[: netlink.HEADER_SIZE], f"nlmsghdr: {name}, length {header.length}, flags"
                     f" {header.flags:#x}, seq {header.seq}, pid {header.pid}")  # fmt: skip
        if header.type == netlink.NLMSG_ERROR:
            answer = netlink.parse_answer(message)
            text = strerror(answer.errno) if answer.errno else "success"
            said = f', the kernel says "{printable(answer.message)}"' if answer.message else ""
            yield _field(
                start + netlink.HEADER_SIZE, message[netlink.HEADER_SIZE :], f"errno {answer.errno}: {text}{said}"
            )
            continue
        if len(message) < BODY:
            raise DecodeError(f"message of {len(message)} bytes has no room for struct nfgenmsg", start)
        body = nfgenmsg.parse(message[netlink.HEADER_SIZE : BODY])
        yield _field(
            start + netlink.HEADER_SIZE,
            message[netlink.HEADER_SIZE : BODY],
            f"nfgenmsg: family {body.family}, queue or group {body.resource}",
        )
        kind = _MESSAGES.get(header.type)
        packet = None if kind is None else kind.from_bytes(message[: header.length])
        yield from _attributes(message[BODY : header.length], table, packet, start + BODY, 1)


def _attributes(
    data: bytes, table: Table, packet: Packet | LogMessage | None, offset: int, depth: int
) -> Iterator[str]:
    for number, start, end in walk(data, 0, len(data), offset):
        row = table.get(number)
        value = data[start:end]
        name = row.name if row is not None else f"attribute {number}"
        if row is not None and row.nested is not None:
            yield _field(offset + start - 4, data[start - 4 : start], f"{name}:", depth)
            yield from _attributes(value, row.nested, packet, offset + start, depth + 1)
        else:
            said = _said(row, value, packet, offset + start)
            yield _field(offset + start - 4, data[start - 4 : end], f"{name}: {said}", depth)


def _said(row: Attribute | None, value: bytes, packet: Packet | LogMessage | None, offset: int) -> str:
    if row is None:
        return f"{len(value)} bytes that are not known here"
    try:
        parsed = row.parse(value, offset)
        if row.name.endswith("_PAYLOAD"):
            # A verdict does not say of what family its packet is.
            text = f"if it is IP: {lines.contents_as_ip(value)}" if packet is None else lines.contents(packet)
            return f"{len(value)} bytes, {text}"
    except DecodeError as error:
        return f"damaged: {error}"
    if isinstance(parsed, bytes):
        return repr(parsed) if len(parsed) <= 2 * _WIDTH else f"{len(parsed)} bytes"
    if isinstance(parsed, list):
        return f"{len(value)} bytes of attributes"
    if isinstance(parsed, dict):
        return ", ".join(f"{key} {item!r}" for key, item in parsed.items() if not key.startswith("_"))
    return f"{parsed}, {parsed:#x}" if isinstance(parsed, int) and parsed > 9 else str(parsed)


def _field(offset: int, data: bytes, text: str, depth: int = 0) -> str:
    shown = data[:_WIDTH].hex(" ") + (" ..." if len(data) > _WIDTH else "")
    return f"{offset:6}  {shown:<{3 * _WIDTH + 3}}  {'  ' * depth}{text}"
