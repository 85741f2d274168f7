"""What stands in front of a rule that queues, so that the kernel carries out verdicts on whole connections.

A verdict on a connection is NF_REPEAT with a `Fate` in three bits of the packet's mark, so the packet passes its chain
again, and meets these rules (``bits`` are all three, the fates are written as what they do):

    chain of the hook:
        packet's mark has none of them, connection's mark says accept: accept      (the way of all later packets)
        packet's mark has any: jump to `decided`
        connection's mark has any: jump to `remembered`
        ... the rule that queues
    decided:
        write the fate into the connection's mark, take the bits out of the packet's mark; accept, drop or reject
    remembered:
        drop or reject; but what the kernel itself sends to reject packets passes

What they have to heed:

- The packet's mark goes first: when two packets of a connection are decided differently, each gets its own verdict.
- Setting the connection's mark is a rule of its own: where a packet has no connection (untracked, invalid) that rule
  ends at once, and the one with the verdict is still to come. Otherwise it would be queued again, without an end.
- No bit is left in the mark of a packet that goes on, nor when the kernel makes a reset or an ICMP error of it, which
  with net.ipv4.fwmark_reflect gets that mark.
- The reset that rejects a packet passes the hook output itself, as a part of the same connection, and ICMP errors are
  "related" to it. They are let go: a program that rejects a packet should not be asked about that.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..protocol.layout import build_attribute
from ..protocol.markbits import REJECTS, Fate, MarkBits
from ._expressions import (
    EQUAL,
    META_L4PROTO,
    META_MARK,
    NOT_EQUAL,
    REGISTER,
    TRANSPORT_HEADER,
    Expression,
    be32,
    compare,
    ct,
    data,
    host32,
    masked,
    meta,
    payload,
)

REJECT_HOOKS = ("prerouting", "input", "forward", "output")
"""Those at which the kernel rejects packets (nft_reject_inet_validate); prerouting since Linux 5.9."""

_CT_STATE, _CT_MARK = 0, 3
_DROP, _ACCEPT, _JUMP = 0, 1, 0xFFFFFFFD  # NF_DROP, NF_ACCEPT, NFT_JUMP
_RELATED = 4  # NF_CT_STATE_BIT(IP_CT_RELATED)
_RST = 4
_TCP, _UDP = 6, 17
_UNREACH, _TCP_RST, _ICMPX = 0, 1, 2  # NFT_REJECT_*
# The kind of error, its number, and nft's words.
_NO_PORT = {
    "inet": (_ICMPX, 1, "icmpx port-unreachable"),
    "ip": (_UNREACH, 3, "icmp port-unreachable"),
    "ip6": (_UNREACH, 4, "icmpv6 port-unreachable"),
}
_PROHIBITED = {
    "inet": (_ICMPX, 3, "icmpx admin-prohibited"),
    "ip": (_UNREACH, 13, "icmp admin-prohibited"),
    "ip6": (_UNREACH, 1, "icmpv6 admin-prohibited"),
}

# What the comment of a rule begins with; the bits and a name of `FATES` follow.
COMMENT = "nfnet connections"
FATES = {"accept": (Fate.ACCEPT,), "drop": (Fate.DROP,), "reject": (Fate.REJECT_PACKET, Fate.REJECT)}


class Line(NamedTuple):
    """A rule of the kernel.

    chain: "" for the hook's own, else what the name of its chain ends with.
    expressions, words: what it does, and the same in nft's words.
    comment: by which a queue finds it again.
    """

    chain: str
    expressions: list[Expression]
    words: str
    comment: str = ""


Step = tuple[list[Expression], str]
"""A part of a rule, and the same in nft's words."""


def lines(bits: MarkBits, *, hook: str, family: str, chain: str) -> list[Line]:
    """The rules in front of the one that queues in ``chain``."""
    return list(_lines(_Marks(bits), hook in REJECT_HOOKS, family, chain))


def _lines(marks: _Marks, rejects: bool, family: str, chain: str) -> Iterator[Line]:
    accept, drop = _verdict(_ACCEPT, "accept"), _verdict(_DROP, "drop")
    yield _line("", marks.packet_has(0), marks.connection_has(Fate.ACCEPT), accept)
    yield _line("", marks.packet_has(0, differs=True), _jump(f"{chain}-decided"))
    yield _line("", marks.connection_has(0, differs=True), _jump(f"{chain}-remembered"))

    for fate in [Fate.ACCEPT, Fate.DROP, *([Fate.REJECT_PACKET, Fate.REJECT] if rejects else [])]:
        yield _line("decided", marks.packet_has(fate), marks.set_connection(fate))
    is_accepted, is_dropped = marks.packet_has(Fate.ACCEPT), marks.packet_has(Fate.DROP)
    yield _line("decided", is_accepted, marks.clear_packet(), accept, comment=marks.comment("accept"))
    yield _line("decided", is_dropped, drop, comment=marks.comment("drop"))
    yield _line("remembered", marks.connection_has(Fate.DROP), drop)
    if not rejects:
        return
    is_rejected, was_rejected = (has(REJECTS, mask=REJECTS) for has in (marks.packet_has, marks.connection_has))
    no_port, prohibited = _error(_NO_PORT[family]), _error(_PROHIBITED[family])
    answers = [(_is(_TCP, "tcp"), _RESET), (_is(_UDP, "udp"), no_port), (_ANY, prohibited)]
    for which, reject in answers:
        comment = marks.comment("reject") if which is _ANY else ""
        yield _line("decided", is_rejected, which, marks.clear_packet(), reject, comment=comment)
    yield _line("remembered", was_rejected, _HAS_RESET_FLAG, accept)
    yield _line("remembered", was_rejected, _IS_RELATED, accept)
    for which, reject in answers:
        yield _line("remembered", marks.connection_has(Fate.REJECT), which, reject)


def _line(chain: str, *steps: Step, comment: str = "") -> Line:
    expressions = [expression for step, _ in steps for expression in step]
    return Line(chain, expressions, " ".join(words for _, words in steps if words), comment)


class _Marks:
    """Steps that look at the bits of both marks, or change them."""

    def __init__(self, bits: MarkBits) -> None:
        self._bits = bits
        self._others = bits.mask ^ 0xFFFFFFFF

    def comment(self, name: str) -> str:
        return f"{COMMENT} {self._bits.mask:#x} {name}"

    def packet_has(self, number: int, *, mask: int | None = None, differs: bool = False) -> Step:
        """Go on if the packet's mark has this number in the bits, or, of that, in those of ``mask``; or if not."""
        return self._has(meta(META_MARK), "meta", number, mask, differs)

    def connection_has(self, number: int, *, mask: int | None = None, differs: bool = False) -> Step:
        """The same about the connection's mark; a packet without a connection does not go on."""
        return self._has(ct(_CT_MARK), "ct", number, mask, differs)

    def _has(self, load: Expression, whose: str, number: int, mask: int | None, differs: bool) -> Step:
        wanted = self._bits.mask if mask is None else self._bits.spread(mask)
        value = self._bits.spread(number)
        words = f"{whose} mark & {wanted:#010x} {'!=' if differs else '=='} {value:#010x}"
        operator = NOT_EQUAL if differs else EQUAL
        return [load, masked(host32(wanted)), compare(host32(value), operator)], words

    def set_connection(self, fate: Fate) -> Step:
        value = self._bits.spread(fate)
        store = ("ct", {2: be32(_CT_MARK), 4: be32(REGISTER)})
        words = f"ct mark set ct mark & {self._others:#010x} | {value:#010x}"
        return [ct(_CT_MARK), self._replace(value), store], words

    def clear_packet(self) -> Step:
        store = ("meta", {2: be32(META_MARK), 3: be32(REGISTER)})
        return [meta(META_MARK), self._replace(0), store], f"meta mark set meta mark & {self._others:#010x}"

    def _replace(self, value: int) -> Expression:
        """Replace the bits in what is loaded."""
        values = {4: data(host32(self._others)), 5: data(host32(value))}
        return "bitwise", {1: be32(REGISTER), 2: be32(REGISTER), 3: be32(4), **values}


def _is(protocol: int, words: str) -> Step:
    return [meta(META_L4PROTO), compare(bytes([protocol]))], f"meta l4proto {words}"


def _verdict(code: int, words: str, chain: bytes = b"") -> Step:
    verdict = build_attribute(1, be32(code)) + (build_attribute(2, chain + b"\0") if chain else b"")
    return [("immediate", {1: be32(0), 2: build_attribute(2, verdict)})], words  # NFT_REG_VERDICT, NFTA_DATA_VERDICT


def _jump(chain: str) -> Step:
    return _verdict(_JUMP, f"jump {chain}", chain.encode())


def _error(which: tuple[int, int, str]) -> Step:
    kind, code, words = which
    return [("reject", {1: be32(kind), 2: bytes([code])})], f"reject with {words}"


_ANY: Step = [], ""
_RESET: Step = [("reject", {1: be32(_TCP_RST)})], "reject with tcp reset"
_HAS_RESET_FLAG: Step = (
    [*_is(_TCP, "tcp")[0], payload(TRANSPORT_HEADER, 13, 1), masked(bytes([_RST])), compare(bytes(1), NOT_EQUAL)],
    "tcp flags & rst == rst",
)
_IS_RELATED: Step = [ct(_CT_STATE), masked(host32(_RELATED)), compare(bytes(4), NOT_EQUAL)], "ct state related"
