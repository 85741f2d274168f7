"""Tables, chains and rules of nf_tables over netlink; pyroute2 encodes them.

pyroute2's own socket is not used: it waits for ever where the kernel refuses a batch as a whole, for lack of the
privilege, and cannot run inside an event loop.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

from .._io.native import select
from .._io.netlink_socket import NetlinkSocket
from ..errors import AckTimeoutError, DecodeError, kernel_error
from ..protocol import netlink
from ..protocol.layout import build_attribute, walk
from ..protocol.netlink import Flag
from ..protocol.nfnetlink import BODY, Subsystem, build_message, message_type
from ._criteria import Expression

# linux/netfilter/nf_tables.h and nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, NEWRULE, GETRULE = 0, 1, 2, 3, 6, 7
_CREATE, _DUMP = 0x400, 0x300  # NLM_F_*
_TABLE_NAME, _TABLE_OWNER = 1, 7
_RULE_EXPRESSIONS = 4
_EXPR_NAME, _EXPR_DATA = 1, 2
_DUMP_TIMEOUT = 5000  # milliseconds
_LISTING = "listing what is in nf_tables"

Message = tuple[int, list[Any]]
"""An operation, and its attributes by pyroute2's names."""


def commit(sock: NetlinkSocket, family: int, messages: list[Message], operation: str) -> None:
    """Do all of it or nothing, as one transaction. Raises KernelError."""
    # All messages have one sequence number: the first answer to it is that to the whole.
    sock.request(lambda seq: _batch(family, seq, messages), operation)


def _batch(family: int, seq: int, messages: list[Message]) -> bytes:
    from pyroute2.netlink.nfnetlink import nftsocket  # costs over 100 ms

    classes = {
        NEWTABLE: nftsocket.nft_table_msg,
        DELTABLE: nftsocket.nft_table_msg,
        NEWCHAIN: nftsocket.nft_chain_msg,
        NEWRULE: nftsocket.nft_rule_msg,
    }
    parts = [build_message(_BATCH_BEGIN, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq)]
    for place, (operation, attributes) in enumerate(messages):
        last = place == len(messages) - 1
        message = classes[operation]()
        message["nfgen_family"] = family
        message["attrs"] = attributes
        message["header"]["type"] = message_type(Subsystem.NFTABLES, operation)
        message["header"]["flags"] = Flag.REQUEST | _CREATE | (Flag.ACK if last else 0)
        message["header"]["sequence_number"] = seq
        message.encode()
        parts.append(bytes(message.data))
    parts.append(build_message(_BATCH_END, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq))
    return b"".join(parts)


def encode(expression: Expression) -> Any:
    """An expression as an element of NFTA_RULE_EXPRESSIONS, for pyroute2.

    It (0.9.7) takes be16 attributes of the log expression for be32, which makes every group 0, and has no encoder for
    the flags of the queue expression, nor for hashes. It knows no expression by a name of type bytes, and leaves its
    data alone.
    """
    name, values = expression
    data = b"".join(build_attribute(number, value) for number, value in values.items())
    return {"attrs": [("NFTA_EXPR_NAME", name.encode() + b"\0"), ("NFTA_EXPR_DATA", data)]}


def tables(sock: NetlinkSocket) -> Iterator[tuple[int, str, int | None]]:
    """Family and name of each table, and the port id of its owner if it has one. Raises KernelError."""
    for family, values in _dump(sock, GETTABLE):
        owner = values.get(_TABLE_OWNER)
        name = values.get(_TABLE_NAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        yield family, name, None if owner is None else int.from_bytes(owner, "big")


def expressions(sock: NetlinkSocket) -> Iterator[Expression]:
    """The expressions of all rules. Raises KernelError."""
    for _, values in _dump(sock, GETRULE):
        data = values.get(_RULE_EXPRESSIONS, b"")
        for _, start, end in walk(data, 0, len(data)):
            parts = {number: data[first:last] for number, first, last in walk(data, start, end)}
            inner = parts.get(_EXPR_DATA, b"")
            name = parts.get(_EXPR_NAME, b"").rstrip(b"\0").decode("ascii", "replace")
            yield name, {number: inner[first:last] for number, first, last in walk(inner, 0, len(inner))}


def _dump(sock: NetlinkSocket, operation: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Family and attributes of all objects of a kind."""
    sock.send(build_message(message_type(Subsystem.NFTABLES, operation), 0, flags=Flag.REQUEST | _DUMP, seq=1))
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    while True:
        datagrams: list[bytes] = []
        sock.receive(datagrams, 16)
        for datagram in datagrams:
            for _, message in netlink.split_messages(datagram):
                header = netlink.header.parse(message)
                if header.type == netlink.NLMSG_DONE:
                    return
                if header.type == netlink.NLMSG_ERROR:
                    answer = netlink.parse_answer(message)
                    raise kernel_error(_LISTING, answer.errno, message=answer.message)
                if len(message) < BODY:
                    raise DecodeError(f"message of {len(message)} bytes has no room for struct nfgenmsg", 0)
                values = {number: message[start:end] for number, start, end in walk(message, BODY, len(message))}
                yield message[netlink.HEADER_SIZE], values
        if not datagrams and not poll.poll(_DUMP_TIMEOUT):
            raise AckTimeoutError(_LISTING, errno.ETIMEDOUT)
