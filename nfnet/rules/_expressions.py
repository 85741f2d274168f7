"""Expressions of nf_tables, of which a rule of the kernel is made (linux/netfilter/nf_tables.h)."""

from __future__ import annotations

from typing import NamedTuple

from ..protocol import netlink
from ..protocol.layout import build_attribute

# An expression: its name, and the data of its attributes by number.
Expression = tuple[str, dict[int, bytes]]

REGISTER = 1
META_LENGTH, META_PROTOCOL, META_MARK, META_IIFNAME, META_OIFNAME, META_SKUID, META_SKGID = 0, 1, 3, 6, 7, 10, 11
META_NFPROTO, META_L4PROTO = 15, 16
CT_STATE, CT_DIRECTION, CT_MARK, CT_PACKETS = 0, 1, 3, 14
NETWORK_HEADER, TRANSPORT_HEADER = 1, 2
EQUAL, NOT_EQUAL, LESS_OR_EQUAL, GREATER_OR_EQUAL = 0, 1, 3, 5
TO_NETWORK_ORDER = 1
_INVERTED = 1
_JUMP = 0xFFFFFFFD  # NFT_JUMP


def be16(number: int) -> bytes:
    """Short numbers in attributes."""
    return number.to_bytes(2, "big")


def be32(number: int) -> bytes:
    """Numbers in attributes."""
    return number.to_bytes(4, "big")


def be64(number: int) -> bytes:
    """Long numbers in attributes."""
    return number.to_bytes(8, "big")


def host32(number: int) -> bytes:
    """Numbers in registers that are no parts of packets."""
    return number.to_bytes(4, netlink.HOST)


def data(value: bytes) -> bytes:
    """A value to compare or compute with."""
    return build_attribute(1, value)  # NFTA_DATA_VALUE


# --- loading the register


def meta(key: int) -> Expression:
    """What the kernel knows of a packet."""
    return "meta", {1: be32(REGISTER), 2: be32(key)}


def ct(key: int, direction: int | None = None) -> Expression:
    """What connection tracking knows of it, or of one direction of its connection."""
    of = {} if direction is None else {3: bytes([direction])}
    return "ct", {1: be32(REGISTER), 2: be32(key), **of}


def payload(base: int, offset: int, length: int) -> Expression:
    """Bytes of a header."""
    return "payload", {1: be32(REGISTER), 2: be32(base), 3: be32(offset), 4: be32(length)}


def fib_type(flag: int) -> Expression:
    """What sort of address the source (1) or the destination (2) is for this machine."""
    return "fib", {1: be32(REGISTER), 2: be32(3), 3: be32(flag)}


def socket_cgroup(level: int) -> Expression:
    """The id of the control group of the socket, or of its parent at a level."""
    return "socket", {1: be32(3), 2: be32(REGISTER), 3: be32(level)}


def immediate(value: bytes) -> Expression:
    """This value."""
    return "immediate", {1: be32(REGISTER), 2: data(value)}


# --- changing it


def masked(mask: bytes, flipped: bytes | None = None) -> Expression:
    """Keep these bits, then flip others."""
    values = {4: data(mask), 5: data(flipped or bytes(len(mask)))}
    return "bitwise", {1: be32(REGISTER), 2: be32(REGISTER), 3: be32(len(mask)), **values}


def network_order(size: int) -> Expression:
    """Turn a number of the host's byte order around, so that it can be compared by its bytes."""
    order = {1: be32(REGISTER), 2: be32(REGISTER), 3: be32(TO_NETWORK_ORDER)}
    return "byteorder", {**order, 4: be32(size), 5: be32(size)}


# --- letting packets through that match


def compare(value: bytes, operator: int = EQUAL) -> Expression:
    """Those of which the register compares so with the value."""
    return "cmp", {1: be32(REGISTER), 2: be32(operator), 3: data(value)}


def outside(first: bytes, last: bytes) -> Expression:
    """Those of which the register is not in a range."""
    return "range", {1: be32(REGISTER), 2: be32(NOT_EQUAL), 3: data(first), 4: data(last)}


class Lookup(NamedTuple):
    """Those of which the register is in a set, or, if negated, is not; see `lookup`.

    elements: first and last key of each, sorted, which do not touch.
    kind: what nft knows the keys by, so that it can show them: a number of its own.
    host_order: whether nft takes the keys for numbers in the host's byte order, but for intervals.
    """

    elements: tuple[tuple[bytes, bytes], ...]
    kind: int
    host_order: bool
    negated: bool

    @property
    def has_intervals(self) -> bool:
        """Whether any element is a range."""
        return any(first != last for first, last in self.elements)


Step = Expression | Lookup


def lookup(name: bytes, number: int, negated: bool) -> Expression:
    """In a set of a name and a number."""
    inverted = {5: be32(_INVERTED)} if negated else {}
    return "lookup", {1: name + b"\0", 2: be32(REGISTER), 4: be32(number), **inverted}


def limit(packets: int, seconds: int, burst: int, over: bool) -> Expression:
    """So many in a time, and a burst, or, if over, those beyond."""
    return "limit", {1: be64(packets), 2: be64(seconds), 3: be32(burst), 4: be32(0), 5: be32(_INVERTED if over else 0)}


# --- what happens to packets


def counter() -> Expression:
    """They are counted."""
    return "counter", {1: be64(0), 2: be64(0)}


def set_meta(key: int) -> Expression:
    """What the kernel knows of them becomes what is in the register."""
    return "meta", {2: be32(key), 3: be32(REGISTER)}


def set_ct(key: int) -> Expression:
    """What connection tracking knows of them; nothing, if they have no connection."""
    return "ct", {2: be32(key), 4: be32(REGISTER)}


def jump(chain: str) -> Expression:
    """They pass another chain, and if that decides nothing the rest of this one."""
    verdict = build_attribute(1, be32(_JUMP)) + build_attribute(2, chain.encode() + b"\0")
    return "immediate", {1: be32(0), 2: build_attribute(2, verdict)}


def verdict(code: int) -> Expression:
    """That is decided of them."""
    return "immediate", {1: be32(0), 2: build_attribute(2, build_attribute(1, be32(code & 0xFFFFFFFF)))}
