"""Messages of nf_tables: transactions that create tables, chains, sets and rules, and dumps of existing ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Union

from .._io.netlink_socket import NetlinkSocket
from ..errors import DecodeError
from ..protocol import netlink
from ..protocol.layout import build_attribute, walk
from ..protocol.netlink import NESTED, Flag
from ..protocol.nfnetlink import BODY, Subsystem, build_message, message_type
from ._expressions import Expression, Lookup, Step, be32, data, lookup

# linux/netfilter/nf_tables.h and nfnetlink.h
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
NEWTABLE, GETTABLE, DELTABLE, NEWCHAIN, GETCHAIN, NEWRULE, GETRULE, NEWSET = 0, 1, 2, 3, 4, 6, 7, 9
NEWSETELEM, GETSETELEM, DELSETELEM = 12, 13, 14
_EXCLUSIVE, _CREATE, _APPEND, _DUMP = 0x200, 0x400, 0x800, 0x300  # NLM_F_*
TABLE_NAME, TABLE_FLAGS, _TABLE_OWNER = 1, 2, 7
CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK, CHAIN_POLICY, CHAIN_TYPE = 1, 3, 4, 5, 7
HOOK_NUMBER, HOOK_PRIORITY, HOOK_DEVICE = 1, 2, 3
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS, _RULE_USERDATA = 1, 2, 4, 7
_SET_TABLE, _SET_NAME, _SET_FLAGS, _SET_KEY_TYPE, _SET_KEY_LENGTH, _SET_ID, _SET_USERDATA = 1, 2, 3, 4, 5, 10, 13
_ANONYMOUS, _CONSTANT, _INTERVAL = 1, 2, 4
_ELEMENTS_TABLE, _ELEMENTS_SET, _ELEMENTS, _ELEMENTS_SET_ID = 1, 2, 3, 4
_ELEMENT_KEY, _ELEMENT_FLAGS = 1, 3
_INTERVAL_END = 1
_ELEMENTS_IN_A_MESSAGE = 1000  # an attribute has at most 65,535 bytes
# Userdata of a set, by which nft shows its elements (libnftnl/udata.h).
_KEY_BYTEORDER, _HOST, _BIG_ENDIAN = 0, 1, 2
_LIST_ELEMENT = 1  # NFTA_LIST_ELEM
_EXPR_NAME, _EXPR_DATA = 1, 2
_DUMPED = 0  # the sequence number of dump requests, which no other request has
_LISTING = "listing what is in nf_tables"

Attributes = Sequence[tuple[int, Union[bytes, "Attributes"]]]
"""The numbers of attributes with their data, or with nested attributes."""


class Message(NamedTuple):
    """One message of a transaction."""

    operation: int
    family: int
    attributes: Attributes


def text(value: str) -> bytes:
    """Encode a name with the NUL that the kernel requires at its end."""
    return value.encode("utf-8", "surrogateescape") + b"\0"


def commit(sock: NetlinkSocket, messages: list[Message], operation: str) -> None:
    """Send messages as one transaction, which the kernel carries out as a whole or not at all. Raises KernelError."""
    # All messages have one sequence number, so the first answer with it is the answer to the transaction.
    sock.request(lambda seq: _batch(seq, messages), operation)


def _batch(seq: int, messages: list[Message]) -> bytes:
    parts = [build_message(_BATCH_BEGIN, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq)]
    for place, (operation, family, attributes) in enumerate(messages):
        # Append a rule to its chain.
        flags = Flag.REQUEST | _CREATE | (_APPEND if operation == NEWRULE else 0)
        flags |= _EXCLUSIVE if operation == NEWSETELEM else 0
        flags |= Flag.ACK if place == len(messages) - 1 else 0
        kind = message_type(Subsystem.NFTABLES, operation)
        parts.append(build_message(kind, 0, _encode(attributes), family=family, flags=flags, seq=seq))
    parts.append(build_message(_BATCH_END, Subsystem.NFTABLES, flags=Flag.REQUEST, seq=seq))
    return b"".join(parts)


def _encode(attributes: Attributes) -> bytes:
    return b"".join(
        build_attribute(number, value) if isinstance(value, bytes) else build_attribute(number | NESTED, _encode(value))
        for number, value in attributes
    )


def rule(
    family: int, table: str, chain: str, steps: Iterable[Step], userdata: bytes, sets: Iterator[int]
) -> list[Message]:
    """Return the messages that append a rule to a chain. ``sets`` yields the numbers of its anonymous sets."""
    messages, expressions = [], []
    for step in steps:
        if isinstance(step, Lookup):
            name, number = b"__set%d", next(sets)
            messages += _anonymous_set(family, table, name, number, step)
            step = lookup(name, number, step.negated)
        expressions.append((_LIST_ELEMENT, _expression(step)))
    attributes: list[tuple[int, bytes | Attributes]] = [
        (_RULE_TABLE, text(table)),
        (_RULE_CHAIN, text(chain)),
        (_RULE_EXPRESSIONS, expressions),
    ]
    attributes += [(_RULE_USERDATA, userdata)] * bool(userdata)
    return [*messages, Message(NEWRULE, family, attributes)]


def _expression(expression: Expression) -> Attributes:
    name, values = expression
    return [(_EXPR_NAME, text(name)), (_EXPR_DATA, list(values.items()))]


def _anonymous_set(family: int, table: str, name: bytes, number: int, wanted: Lookup) -> list[Message]:
    """Return the messages that create an anonymous set of a rule. The rule refers to it by its number."""
    order = (_HOST if wanted.host_order else _BIG_ENDIAN).to_bytes(4, netlink.HOST)
    flags = _ANONYMOUS | _CONSTANT | (_INTERVAL if wanted.has_intervals else 0)
    new = [
        (_SET_TABLE, text(table)),
        (_SET_NAME, name + b"\0"),
        (_SET_FLAGS, be32(flags)),
        (_SET_KEY_TYPE, be32(wanted.datatype)),
        (_SET_KEY_LENGTH, be32(len(wanted.elements[0][0]))),
        (_SET_ID, be32(number)),
        (_SET_USERDATA, bytes([_KEY_BYTEORDER, len(order)]) + order),
    ]
    elements = [(_LIST_ELEMENT, element) for element in _elements(wanted)]
    return [
        Message(NEWSET, family, new),
        *(
            Message(
                NEWSETELEM,
                family,
                [
                    (_ELEMENTS_TABLE, text(table)),
                    (_ELEMENTS_SET, name + b"\0"),
                    (_ELEMENTS, elements[start : start + _ELEMENTS_IN_A_MESSAGE]),
                    (_ELEMENTS_SET_ID, be32(number)),
                ],
            )
            for start in range(0, len(elements), _ELEMENTS_IN_A_MESSAGE)
        ),
    ]


def _elements(wanted: Lookup) -> Iterator[Attributes]:
    """Yield set elements. An interval has two elements: its start, and the value after its end, with a flag."""
    if not wanted.has_intervals:
        yield from ([(_ELEMENT_KEY, data(first))] for first, _ in wanted.elements)
        return
    ended: bytes | None = b"" if any(wanted.elements[0][0]) else None
    if ended is not None:  # like nft: an interval end at 0, because the first interval begins later
        ended = bytes(len(wanted.elements[0][0]))
    for first, last in wanted.elements:
        if ended is not None:
            yield [(_ELEMENT_KEY, data(ended)), (_ELEMENT_FLAGS, be32(_INTERVAL_END))]
        yield [(_ELEMENT_KEY, data(first))]
        behind = int.from_bytes(last, "big") + 1
        ended = behind.to_bytes(len(last), "big") if behind < 1 << 8 * len(last) else None
    if ended is not None:
        yield [(_ELEMENT_KEY, data(ended)), (_ELEMENT_FLAGS, be32(_INTERVAL_END))]


def tables(sock: NetlinkSocket) -> Iterator[tuple[int, str, int | None]]:
    """Yield family, name and the owner's port id (None: no owner) of each table. Raises KernelError."""
    for family, values in dump(sock, GETTABLE):
        owner = values.get(_TABLE_OWNER)
        yield family, _name(values.get(TABLE_NAME, b"")), None if owner is None else int.from_bytes(owner, "big")


class FoundChain(NamedTuple):
    """A chain of the kernel; ``hook`` is the number of its hook, None for a chain to which rules jump."""

    family: int
    table: str
    name: str
    hook: int | None


def chains(sock: NetlinkSocket) -> Iterator[FoundChain]:
    """Yield all chains. Raises KernelError."""
    for family, values in dump(sock, GETCHAIN):
        number = _inner(values.get(CHAIN_HOOK, b"")).get(HOOK_NUMBER)
        hook = None if number is None else int.from_bytes(number, "big")
        yield FoundChain(family, _name(values.get(CHAIN_TABLE, b"")), _name(values.get(CHAIN_NAME, b"")), hook)


class FoundRule(NamedTuple):
    """A rule of the kernel."""

    family: int
    table: str
    chain: str
    userdata: bytes
    expressions: list[Expression]


def rules(sock: NetlinkSocket) -> Iterator[FoundRule]:
    """Yield all rules, in their order. Raises KernelError."""
    for family, values in dump(sock, GETRULE):
        table, chain = _name(values.get(_RULE_TABLE, b"")), _name(values.get(_RULE_CHAIN, b""))
        found = list(_expressions(values.get(_RULE_EXPRESSIONS, b"")))
        yield FoundRule(family, table, chain, values.get(_RULE_USERDATA, b""), found)


def expressions(sock: NetlinkSocket) -> Iterator[Expression]:
    """Yield the expressions of all rules. Raises KernelError."""
    for found in rules(sock):
        yield from found.expressions


def _expressions(data: bytes) -> Iterator[Expression]:
    for _, start, end in walk(data, 0, len(data)):
        parts = {number: data[first:last] for number, first, last in walk(data, start, end)}
        yield _name(parts.get(_EXPR_NAME, b"")), _inner(parts.get(_EXPR_DATA, b""))


def _inner(data: bytes) -> dict[int, bytes]:
    return {number: data[first:last] for number, first, last in walk(data, 0, len(data))}


def _name(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "replace")


def dump(
    sock: NetlinkSocket, operation: int, family: int = 0, attributes: Attributes = ()
) -> Iterator[tuple[int, dict[int, bytes]]]:
    """Yield family and attributes of all objects of a kind, GET*. Raises KernelError."""
    kind, flags = message_type(Subsystem.NFTABLES, operation), Flag.REQUEST | _DUMP
    request = build_message(kind, 0, _encode(attributes), family=family, flags=flags, seq=_DUMPED)
    for message in sock.dump(request, _LISTING):
        if len(message) < BODY:
            raise DecodeError(f"message of {len(message)} bytes has no room for struct nfgenmsg", 0)
        values = {number: message[start:end] for number, start, end in walk(message, BODY, len(message))}
        yield message[netlink.HEADER_SIZE], values
