"""Expressions of nf_tables, the parts of the kernel's rules (linux/netfilter/nf_tables.h).

Expressions load a value into a register, change it, and compare it. A comparison that fails ends the rule.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from ..protocol import netlink
from ..protocol.layout import build_attribute

Expression = tuple[str, dict[int, bytes]]
"""The name of an expression, and the data of its attributes by their numbers."""

REGISTER = 1  # NFT_REG_1
_VERDICT_REGISTER = 0  # NFT_REG_VERDICT

# NFT_META_*, NFT_CT_*
META_LENGTH, META_PROTOCOL, META_MARK, META_IIFNAME, META_OIFNAME, META_SKUID, META_SKGID = 0, 1, 3, 6, 7, 10, 11
META_NFPROTO, META_L4PROTO = 15, 16
CT_STATE, CT_DIRECTION, CT_MARK, CT_PACKETS = 0, 1, 3, 14
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2  # NFT_PAYLOAD_*_HEADER
EQUAL, NOT_EQUAL, LESS_OR_EQUAL, GREATER_OR_EQUAL = 0, 1, 3, 5  # NFT_CMP_*
_FIB_RESULT_ADDRESS_TYPE = 3  # NFT_FIB_RESULT_ADDRTYPE
_SOCKET_CGROUPV2 = 3  # NFT_SOCKET_CGROUPV2
_HOST_TO_NETWORK = 1  # NFT_BYTEORDER_HTON
_INVERTED = 1  # NFT_LOOKUP_F_INV, NFT_LIMIT_F_INV
_LIMIT_PACKETS = 0  # NFT_LIMIT_PKTS
ICMP_UNREACHABLE, TCP_RESET, ICMPX_UNREACHABLE = 0, 1, 2  # NFT_REJECT_*; ICMPX: of either IP version
_JUMP = 0xFFFFFFFD  # NFT_JUMP

# Attributes: NFTA_META_*, NFTA_CT_*, and so on.
_META_DREG, _META_KEY, _META_SREG = 1, 2, 3
_CT_DREG, _CT_KEY, _CT_DIRECTION, _CT_SREG = 1, 2, 3, 4
_PAYLOAD_DREG, _PAYLOAD_BASE, _PAYLOAD_OFFSET, _PAYLOAD_LEN = 1, 2, 3, 4
_FIB_DREG, _FIB_RESULT, _FIB_FLAGS = 1, 2, 3
_SOCKET_KEY, _SOCKET_DREG, _SOCKET_LEVEL = 1, 2, 3
_IMMEDIATE_DREG, _IMMEDIATE_DATA = 1, 2
_BITWISE_SREG, _BITWISE_DREG, _BITWISE_LEN, _BITWISE_MASK, _BITWISE_XOR = 1, 2, 3, 4, 5
_BYTEORDER_SREG, _BYTEORDER_DREG, _BYTEORDER_OP, _BYTEORDER_LEN, _BYTEORDER_SIZE = 1, 2, 3, 4, 5
_CMP_SREG, _CMP_OP, _CMP_DATA = 1, 2, 3
_RANGE_SREG, _RANGE_OP, _RANGE_FROM_DATA, _RANGE_TO_DATA = 1, 2, 3, 4
_LOOKUP_SET, _LOOKUP_SREG, _LOOKUP_SET_ID, _LOOKUP_FLAGS = 1, 2, 4, 5
_LIMIT_RATE, _LIMIT_UNIT, _LIMIT_BURST, _LIMIT_TYPE, _LIMIT_FLAGS = 1, 2, 3, 4, 5
_REJECT_TYPE, _REJECT_ICMP_CODE = 1, 2
COUNTER_BYTES, COUNTER_PACKETS = 1, 2
_DATA_VALUE, DATA_VERDICT = 1, 2
_VERDICT_CODE, VERDICT_CHAIN = 1, 2


class Datatype(IntEnum):
    """Types of values that nft stores with a set so that it can show the elements (include/datatype.h of nftables)."""

    INTEGER = 4
    IPADDR = 7
    IP6ADDR = 8
    INET_PROTOCOL = 12
    INET_SERVICE = 13
    ICMP_TYPE = 14
    TCP_FLAG = 15
    MARK = 19
    UID = 24
    GID = 25
    ICMP6_TYPE = 29
    DSCP = 36
    FIB_ADDR = 38
    IFNAME = 41
    CGROUPV2 = 46


def be16(number: int) -> bytes:
    """Pack a 16-bit number of an attribute."""
    return number.to_bytes(2, "big")


def be32(number: int) -> bytes:
    """Pack a 32-bit number of an attribute."""
    return number.to_bytes(4, "big")


def be64(number: int) -> bytes:
    """Pack a 64-bit number of an attribute."""
    return number.to_bytes(8, "big")


def host32(number: int) -> bytes:
    """Pack a 32-bit number in host order, which numbers in registers have unless they come from a packet."""
    return number.to_bytes(4, netlink.HOST)


def data(value: bytes) -> bytes:
    """Build the attribute for a value to compare or compute with."""
    return build_attribute(_DATA_VALUE, value)


# --- load the register


def meta(key: int) -> Expression:
    """Load a property of the packet, META_*."""
    return "meta", {_META_DREG: be32(REGISTER), _META_KEY: be32(key)}


def ct(key: int, direction: int | None = None) -> Expression:
    """Load a property of the packet's connection, CT_*, or of one direction of the connection."""
    of = {} if direction is None else {_CT_DIRECTION: bytes([direction])}
    return "ct", {_CT_DREG: be32(REGISTER), _CT_KEY: be32(key), **of}


def payload(base: int, offset: int, length: int) -> Expression:
    """Load bytes of a header."""
    place = {_PAYLOAD_BASE: be32(base), _PAYLOAD_OFFSET: be32(offset), _PAYLOAD_LEN: be32(length)}
    return "payload", {_PAYLOAD_DREG: be32(REGISTER), **place}


def fib_type(flag: int) -> Expression:
    """Load the type that the source (1) or destination (2) address has for this machine."""
    result = {_FIB_RESULT: be32(_FIB_RESULT_ADDRESS_TYPE), _FIB_FLAGS: be32(flag)}
    return "fib", {_FIB_DREG: be32(REGISTER), **result}


def socket_cgroup(level: int) -> Expression:
    """Load the id of a control group: the ancestor, at ``level``, of the group of the packet's socket."""
    key = {_SOCKET_KEY: be32(_SOCKET_CGROUPV2)}
    return "socket", {**key, _SOCKET_DREG: be32(REGISTER), _SOCKET_LEVEL: be32(level)}


def immediate(value: bytes) -> Expression:
    """Load a value."""
    return "immediate", {_IMMEDIATE_DREG: be32(REGISTER), _IMMEDIATE_DATA: data(value)}


# --- change the register


def masked(mask: bytes, flipped: bytes | None = None) -> Expression:
    """Keep the bits of ``mask``, then flip the bits of ``flipped`` (default: none)."""
    registers = {_BITWISE_SREG: be32(REGISTER), _BITWISE_DREG: be32(REGISTER), _BITWISE_LEN: be32(len(mask))}
    return "bitwise", {**registers, _BITWISE_MASK: data(mask), _BITWISE_XOR: data(flipped or bytes(len(mask)))}


def network_order(size: int) -> Expression:
    """Convert a number from the host's byte order, so that comparing its bytes compares the number."""
    registers = {_BYTEORDER_SREG: be32(REGISTER), _BYTEORDER_DREG: be32(REGISTER)}
    order = {_BYTEORDER_OP: be32(_HOST_TO_NETWORK), _BYTEORDER_LEN: be32(size), _BYTEORDER_SIZE: be32(size)}
    return "byteorder", {**registers, **order}


# --- end the rule unless the register matches


def compare(value: bytes, operator: int = EQUAL) -> Expression:
    """Continue if the comparison of the register with ``value`` by ``operator`` is true."""
    return "cmp", {_CMP_SREG: be32(REGISTER), _CMP_OP: be32(operator), _CMP_DATA: data(value)}


def outside(first: bytes, last: bytes) -> Expression:
    """Continue if the register is not in the range from ``first`` to ``last``."""
    ends = {_RANGE_FROM_DATA: data(first), _RANGE_TO_DATA: data(last)}
    return "range", {_RANGE_SREG: be32(REGISTER), _RANGE_OP: be32(NOT_EQUAL), **ends}


class Lookup(NamedTuple):
    """Continue if the register is in a set of these elements; if negated, if it is not. See `lookup`."""

    elements: tuple[tuple[bytes, bytes], ...]
    """First and last key of each element, sorted, without overlaps."""
    datatype: Datatype
    """The type of the keys."""
    host_order: bool
    """Whether nft shows keys as numbers in the host's byte order, except in intervals."""
    negated: bool

    @property
    def has_intervals(self) -> bool:
        """Whether any element is a range."""
        return any(first != last for first, last in self.elements)


Step = Expression | Lookup


def lookup(name: bytes, number: int, negated: bool) -> Expression:
    """Continue if the register is in the set with this name and number; if negated, if it is not."""
    flags = {_LOOKUP_FLAGS: be32(_INVERTED)} if negated else {}
    return "lookup", {_LOOKUP_SET: name + b"\0", _LOOKUP_SREG: be32(REGISTER), _LOOKUP_SET_ID: be32(number), **flags}


def limit(packets: int, seconds: int, burst: int, over: bool) -> Expression:
    """Continue for ``packets`` in ``seconds``, and a burst; if ``over``, continue for packets beyond the limit."""
    rate = {_LIMIT_RATE: be64(packets), _LIMIT_UNIT: be64(seconds), _LIMIT_BURST: be32(burst)}
    return "limit", {**rate, _LIMIT_TYPE: be32(_LIMIT_PACKETS), _LIMIT_FLAGS: be32(_INVERTED if over else 0)}


# --- act on the packet


def counter() -> Expression:
    """Count the packet."""
    return "counter", {COUNTER_BYTES: be64(0), COUNTER_PACKETS: be64(0)}


def set_meta(key: int) -> Expression:
    """Set a property of the packet, META_*, from the register."""
    return "meta", {_META_KEY: be32(key), _META_SREG: be32(REGISTER)}


def set_ct(key: int) -> Expression:
    """Set a property of the packet's connection, CT_*, from the register; end the rule if there is no connection."""
    return "ct", {_CT_KEY: be32(key), _CT_SREG: be32(REGISTER)}


def reject(kind: int, code: int | None = None) -> Expression:
    """Drop the packet and send a TCP_RESET, or an ICMP_UNREACHABLE or ICMPX_UNREACHABLE with a code."""
    codes = {} if code is None else {_REJECT_ICMP_CODE: bytes([code])}
    return "reject", {_REJECT_TYPE: be32(kind), **codes}


def jump(chain: str) -> Expression:
    """Continue in another chain; then, unless that chain decides on the packet, after this rule."""
    return _verdict(_JUMP, build_attribute(VERDICT_CHAIN, chain.encode() + b"\0"))


def verdict(code: int) -> Expression:
    """Decide on the packet: NF_*, NFT_*."""
    return _verdict(code)


def _verdict(code: int, chain: bytes = b"") -> Expression:
    found = build_attribute(_VERDICT_CODE, be32(code & 0xFFFFFFFF)) + chain
    value = build_attribute(DATA_VERDICT, found)
    return "immediate", {_IMMEDIATE_DREG: be32(_VERDICT_REGISTER), _IMMEDIATE_DATA: value}
