"""Tables, chains and rules of nf_tables over netlink; pyroute2 encodes them.

pyroute2's own socket is not used: it waits for ever where the kernel refuses a batch as a whole, for lack of the
privilege, and cannot run inside an event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from .._io.netlink_socket import NetlinkSocket
from .._io.transport import Transport
from ..errors import DecodeError
from ..protocol import netlink
from ..protocol.layout import build_attribute, walk
from ..protocol.netlink import Flag
from ..protocol.nfnetlink import BODY, Subsystem, build_message, message_type
from ._criteria import Expression

# linux/netfilter/nf_tables.h and nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, GETRULE = 0, 1, 2, 3, 4, 6, 7
_CREATE, _DUMP = 0x400, 0x300  # NLM_F_*
_TABLE_NAME, _TABLE_OWNER = 1, 7
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _HOOK_NUMBER = 1, 3, 4, 1
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_UDATA_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_EXPR_NAME, _EXPR_DATA = 1, 2
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


def tables(sock: Transport) -> Iterator[tuple[int, str, int | None]]:
    """Family and name of each table, and the port id of its owner if it has one. Raises KernelError."""
    for family, values in _dump(sock, GETTABLE):
        owner = values.get(_TABLE_OWNER)
        yield family, _text(values.get(_TABLE_NAME, b"")), None if owner is None else int.from_bytes(owner, "big")


class Chain(NamedTuple):
    """A chain; ``hook`` is the number of the hook to which it belongs, None if rules jump to it."""

    family: int
    table: str
    name: str
    hook: int | None


class KernelRule(NamedTuple):
    """A rule as the kernel has it: its chain, its expressions, and the comment of nft's."""

    family: int
    table: str
    chain: str
    expressions: list[Expression]
    comment: str


def chains(sock: Transport) -> Iterator[Chain]:
    """All chains. Raises KernelError."""
    for family, values in _dump(sock, GETCHAIN):
        hook = _inner(values[_CHAIN_HOOK]).get(_HOOK_NUMBER) if _CHAIN_HOOK in values else None
        number = None if hook is None else int.from_bytes(hook, "big")
        yield Chain(family, _text(values.get(_CHAIN_TABLE, b"")), _text(values.get(_CHAIN_NAME, b"")), number)


def rules(sock: Transport) -> Iterator[KernelRule]:
    """All rules, those of a chain in order. Raises KernelError."""
    for family, values in _dump(sock, GETRULE):
        table, chain = _text(values.get(_RULE_TABLE, b"")), _text(values.get(_RULE_CHAIN, b""))
        found = list(_expressions(values.get(_RULE_EXPRESSIONS, b"")))
        yield KernelRule(family, table, chain, found, _comment(values.get(_RULE_USERDATA, b"")))


def expressions(sock: Transport) -> Iterator[Expression]:
    """The expressions of all rules. Raises KernelError."""
    for rule in rules(sock):
        yield from rule.expressions


def _expressions(data: bytes) -> Iterator[Expression]:
    for _, start, end in walk(data, 0, len(data)):
        parts = {number: data[first:last] for number, first, last in walk(data, start, end)}
        yield _text(parts.get(_EXPR_NAME, b"")), _inner(parts.get(_EXPR_DATA, b""))


def _inner(data: bytes) -> dict[int, bytes]:
    return {number: data[first:last] for number, first, last in walk(data, 0, len(data))}


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def _comment(data: bytes) -> str:
    """Of NFTA_RULE_USERDATA, what nft and iptables put there as libnftnl's: items of a number, a length and data."""
    while len(data) >= 2:
        kind, size = data[:2]
        if kind == _UDATA_COMMENT:
            return _text(data[2 : 2 + size])
        data = data[2 + size :]
    return ""


def _dump(sock: Transport, operation: int) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Family and attributes of all objects of a kind."""
    request = build_message(message_type(Subsystem.NFTABLES, operation), 0, flags=Flag.REQUEST | _DUMP, seq=1)
    for message in sock.dump(request, _LISTING):
        if len(message) < BODY:
            raise DecodeError(f"message of {len(message)} bytes has no room for struct nfgenmsg", 0)
        values = {number: message[start:end] for number, start, end in walk(message, BODY, len(message))}
        yield message[netlink.HEADER_SIZE], values
