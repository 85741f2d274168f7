"""``nfnet decode``: show a netlink message field by field."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .. import inet
from .._printable import printable
from ..captures import LinkType, Record, _records, is_capture, scan
from ..captures._format import MAGIC_SIZE, MAX_RECORD
from ..errors import CaptureError, DecodeError, NfnetError, strerror
from ..log import LogMessage
from ..packet import Packet
from ..protocol import byteorder, netlink, nfqnl, nfulnl
from ..protocol.layout import walk
from ..protocol.nfnetlink import BODY, Attribute, Table, nfgenmsg
from .command_line import capture_file
from .summaries import link_types, say

_DESCRIPTION = """\
Shows netlink messages of NFQUEUE and NFLOG field by field: offset, bytes, name
and value of each. Takes a capture of netlink (nfnet record, nlmon, Wireshark),
a file with the bytes of a datagram, or hexadecimal digits; - is standard input.
Messages of a machine of the other byte order are converted first. Records that
are not netlink are skipped. A damaged record is reported with its number and
position in the file, and reading continues with the next one.

    nfnet decode session.pcapng
    nfnet decode 1c000000020305000100000000000000000000010800010001000000

exit status: 0 on success; 1 if the bytes are no such messages, or the file is
damaged or contains none
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
    parser.add_argument("what", metavar="FILE|HEX", help="a file, or hexadecimal digits")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    what = capture_file(options.what)
    if not os.path.exists(what):
        digits = "".join(what.replace(":", " ").split())
        try:
            datagram = bytes.fromhex(digits)
        except ValueError:
            raise NfnetError(f"{what[:40]!r} is neither a file nor an even number of hexadecimal digits") from None
        return _show_bytes(datagram)
    with open(what, "rb") as file:  # once: it may be a pipe
        head = file.read(MAGIC_SIZE)
        if not head or is_capture(head):
            return _show_capture(scan(file, head), what)
        return _show_bytes(head + file.read(MAX_RECORD + 1 - len(head)))


def _show_bytes(datagram: bytes) -> int:
    """Show a bare datagram."""
    if len(datagram) > MAX_RECORD:
        raise DecodeError("neither a capture nor a datagram: too long for one", MAX_RECORD)
    datagram = byteorder.to_host(datagram, byteorder.order_of(datagram, netlink.HOST))
    print(f"datagram, {len(datagram)} bytes")
    for text in describe(datagram):
        print(text)
    return 0


def _show_capture(items: Iterable[Record | CaptureError | None], name: str) -> int:
    """Show the datagrams of a file, and report damaged records."""
    shown = damaged = 0
    others: dict[int, int] = {}  # by link type
    for item in items:
        try:
            if isinstance(item, CaptureError):
                raise item
            assert item is not None  # the file blocks
            datagram = _records.netfilter_datagram(item) if item.link_type == LinkType.NETLINK else None
            if datagram is None:
                others[item.link_type] = others.get(item.link_type, 0) + 1
                continue
            if shown:
                print()
            shown += 1
            _show_record(item, datagram)
        except CaptureError as error:
            damaged += 1
            sys.stdout.flush()
            say(f"nfnet decode: {error}")
    if not shown and not damaged:
        instead = f": {link_types(others)}" if others else ""
        say(f"nfnet decode: no netlink messages of netfilter in {name}{instead}")
    return 0 if shown and not damaged else 1


def _show_record(record: Record, datagram: bytes) -> None:
    size = _records.original_size(record)
    there = "" if len(datagram) == size else f"{len(datagram)} of "
    print(f"record {record.number}, {there}{size} bytes")
    try:
        for text in describe(datagram, size):
            print(text)
    except DecodeError as error:
        raise _records.located(record, error) from None


def describe(datagram: bytes, size: int | None = None) -> Iterator[str]:
    """Yield a line for each field of a datagram. Raises DecodeError where the bytes are not valid.

    ``size`` is the size of the whole datagram, if ``datagram`` is only its beginning.
    """
    for start, message in netlink.split_messages(datagram, size=size):
        header = netlink.header.parse(message)
        name, table = _TABLES.get(header.type, (f"type {header.type:#x}", {}))
        if header.type == netlink.NLMSG_ERROR:
            name = "NLMSG_ERROR"
        yield _field(start, message[: netlink.HEADER_SIZE], f"nlmsghdr: {name}, length {header.length}, flags"
                     f" {header.flags:#x}, seq {header.seq}, pid {header.pid}")  # fmt: skip
        body = start + netlink.HEADER_SIZE
        if len(message) < min(header.length, netlink.ANSWER_SIZE if header.type == netlink.NLMSG_ERROR else BODY):
            yield _field(body, message[netlink.HEADER_SIZE :], "cut short here")
        elif header.type == netlink.NLMSG_ERROR:
            answer = netlink.parse_answer(message)
            text = strerror(answer.errno) if answer.errno else "success"
            said = f', the kernel says "{printable(answer.message)}"' if answer.message else ""
            yield _field(body, message[netlink.HEADER_SIZE :], f"errno {answer.errno}: {text}{said}")
        elif header.length < BODY:
            raise DecodeError(f"message of {header.length} bytes has no room for struct nfgenmsg", start)
        else:
            fields = nfgenmsg.parse(message[netlink.HEADER_SIZE : BODY])
            text = f"nfgenmsg: family {fields.family}, queue or group {fields.resource}"
            yield _field(body, message[netlink.HEADER_SIZE : BODY], text)
            kind = _MESSAGES.get(header.type)
            packet = None if kind is None else kind.from_bytes(message[: header.length])
            yield from _attributes(message[BODY:], header.length - BODY, table, packet, start + BODY, 1)


def _attributes(
    data: bytes, size: int, table: Table, packet: Packet | LogMessage | None, offset: int, depth: int
) -> Iterator[str]:
    """Yield the attributes in ``size`` bytes, of which ``data`` can be only the beginning."""
    for number, start, end in walk(data, 0, size, offset):
        row = table.get(number)
        value = data[start:end]
        name = row.name if row is not None else f"attribute {number}"
        if row is not None and row.nested is not None:
            yield _field(offset + start - 4, data[start - 4 : start], f"{name}:", depth)
            yield from _attributes(value, end - start, row.nested, packet, offset + start, depth + 1)
        elif end > len(data):
            text = f"{name}: the first {len(value)} of {end - start} bytes"
            yield _field(offset + start - 4, data[start - 4 : end], text, depth)
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
            text = f"if it is IP: {inet.describe(value) or 'no IP packet'}" if packet is None else packet.contents()
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
