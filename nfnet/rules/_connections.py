"""The rules before a rule that queues, by which the kernel carries out verdicts on whole connections.

A verdict on a connection is NF_REPEAT with a `Fate` in three bits of the packet's mark, so the packet traverses its
chain again, and reaches these rules ("the bits" are all three; a fate is written as its verdict):

    chain of the hook:
        packet's mark has any of the bits: jump to ``decided``
        ... rules that come before the one that queues
        connection's mark is "accept": accept                   (the path of all later packets)
        connection's mark has any of the bits: jump to ``remembered``
        the rule that queues
    decided:
        write the fate into the connection's mark, clear the bits of the packet's mark; accept, drop or reject
    remembered:
        drop or reject; but accept the packets that the kernel itself sends to reject others

The reasons for this order:

- The packet's mark is checked first: if two packets of a connection get different verdicts, each gets its own.
- Setting the connection's mark is a rule of its own: for a packet without a connection (untracked, invalid) that rule
  ends at once, and the next rule carries out the verdict. In one rule the packet would be queued again, without end.
- The bits are cleared in the mark of a packet that continues, and before the kernel answers it with a reset or an ICMP
  error, which gets the same mark with net.ipv4.fwmark_reflect.
- The reset or ICMP error that rejects a packet traverses the hook output itself, "related" to the same connection
  (nf_conntrack_attach). It is accepted, so that it is not queued to the program that rejected the packet.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from ..protocol.markbits import REJECTS, Fate, MarkBits
from ._expressions import (
    CT_MARK,
    CT_STATE,
    EQUAL,
    ICMP_UNREACHABLE,
    ICMPX_UNREACHABLE,
    META_L4PROTO,
    META_MARK,
    NOT_EQUAL,
    TCP_RESET,
    Expression,
    compare,
    ct,
    host32,
    jump,
    masked,
    meta,
    reject,
    set_ct,
    set_meta,
    verdict,
)

REJECT_HOOKS = ("prerouting", "input", "forward", "output")
"""The hooks at which the kernel rejects packets (nft_reject_inet_validate); prerouting since Linux 5.9."""

_DROP, _ACCEPT = 0, 1  # NF_*
_RELATED = 4  # NFCT_STATE_BIT(IP_CT_RELATED)
_TCP, _UDP = 6, 17
# NFT_REJECT_*, the code of the error, and words of nft.
_NO_PORT = {
    "inet": (ICMPX_UNREACHABLE, 1, "icmpx port-unreachable"),
    "ip": (ICMP_UNREACHABLE, 3, "icmp port-unreachable"),
    "ip6": (ICMP_UNREACHABLE, 4, "icmpv6 port-unreachable"),
}
_PROHIBITED = {
    "inet": (ICMPX_UNREACHABLE, 3, "icmpx admin-prohibited"),
    "ip": (ICMP_UNREACHABLE, 13, "icmp admin-prohibited"),
    "ip6": (ICMP_UNREACHABLE, 1, "icmpv6 admin-prohibited"),
}

# The beginning of the comments of such rules; the bits and a name of `FATES` follow.
COMMENT = "nfnet connections"
FATES = {"accept": (Fate.ACCEPT,), "drop": (Fate.DROP,), "reject": (Fate.REJECT_PACKET, Fate.REJECT)}


class Line(NamedTuple):
    """A rule of the kernel.

    branch: its chain: "" for the chain of the hook, otherwise a chain to which rules of that chain jump.
    expressions, words: the rule in expressions, and in words of nft.
    comment: the comment by which a queue finds the rule.
    """

    branch: str
    expressions: list[Expression]
    words: str
    comment: str = ""


Part = tuple[list[Expression], str]
"""A part of a rule in expressions, and in words of nft."""

DECIDED, REMEMBERED = "decided", "remembered"


class Before(NamedTuple):
    """Rules before another rule: DECIDED at the head of its chain, or REMEMBERED just before a rule that queues."""

    part: str
    bits: MarkBits


def branch_name(chain: str, branch: str) -> str:
    """Return the name of a chain to which rules of ``chain`` jump."""
    return f"{chain}-{branch}"


def kernel_lines(what: Before, hook: str, family: str, chain: str) -> Iterator[Line]:
    """Yield the rules of the kernel, for the chain with the name ``chain``."""
    yield from (_decided if what.part == DECIDED else _remembered)(what.bits, hook, family, chain)


def _decided(bits: MarkBits, hook: str, family: str, chain: str) -> Iterator[Line]:
    marks = _Marks(bits)
    yield _line("", marks.packet_has(0, differs=True), _jump(branch_name(chain, DECIDED)))
    can_reject = hook in REJECT_HOOKS
    for fate in [Fate.ACCEPT, Fate.DROP, *([Fate.REJECT_PACKET, Fate.REJECT] if can_reject else [])]:
        yield _line(DECIDED, marks.packet_has(fate), marks.set_connection(fate))
    accepts, drops = marks.packet_has(Fate.ACCEPT), marks.packet_has(Fate.DROP)
    yield _line(DECIDED, accepts, marks.clear_packet(), _ACCEPTED, comment=marks.comment("accept"))
    yield _line(DECIDED, drops, _DROPPED, comment=marks.comment("drop"))
    if can_reject:
        rejects = marks.packet_has(REJECTS, mask=REJECTS)
        for which, answer in _answers(family):
            comment = marks.comment("reject") if which is _ANY else ""
            yield _line(DECIDED, rejects, which, marks.clear_packet(), answer, comment=comment)


def _remembered(bits: MarkBits, hook: str, family: str, chain: str) -> Iterator[Line]:
    marks = _Marks(bits)
    yield _line("", marks.connection_has(Fate.ACCEPT), _ACCEPTED)
    yield _line("", marks.connection_has(0, differs=True), _jump(branch_name(chain, REMEMBERED)))
    yield _line(REMEMBERED, marks.connection_has(Fate.DROP), _DROPPED)
    if hook in REJECT_HOOKS:
        rejected = marks.connection_has(REJECTS, mask=REJECTS)
        yield _line(REMEMBERED, rejected, _IS_RELATED, _ACCEPTED)
        for which, answer in _answers(family):
            yield _line(REMEMBERED, marks.connection_has(Fate.REJECT), which, answer)


def _answers(family: str) -> list[tuple[Part, Part]]:
    """Return conditions on the protocol, each with the answer to the senders of packets that match it."""
    no_port, prohibited = _error(_NO_PORT[family]), _error(_PROHIBITED[family])
    return [(_is(_TCP, "tcp"), _RESET), (_is(_UDP, "udp"), no_port), (_ANY, prohibited)]


def _line(branch: str, *parts: Part, comment: str = "") -> Line:
    expressions = [expression for part, _ in parts for expression in part]
    return Line(branch, expressions, " ".join(words for _, words in parts if words), comment)


class _Marks:
    """Makes parts of rules that compare or change the bits in both marks."""

    def __init__(self, bits: MarkBits) -> None:
        self._bits = bits
        self._others = bits.mask ^ 0xFFFFFFFF

    def comment(self, name: str) -> str:
        return f"{COMMENT} {self._bits.mask:#x} {name}"

    def packet_has(self, number: int, *, mask: int | None = None, differs: bool = False) -> Part:
        """Continue if the packet's mark has a number in the bits, or in those of ``mask``; with ``differs``, if not."""
        return self._has(meta(META_MARK), "meta", number, mask, differs)

    def connection_has(self, number: int, *, mask: int | None = None, differs: bool = False) -> Part:
        """Continue if the connection's mark has a number in the bits; end the rule if there is no connection."""
        return self._has(ct(CT_MARK), "ct", number, mask, differs)

    def _has(self, load: Expression, whose: str, number: int, mask: int | None, differs: bool) -> Part:
        wanted = self._bits.mask if mask is None else self._bits.spread(mask)
        value = self._bits.spread(number)
        words = f"{whose} mark & {wanted:#010x} {'!=' if differs else '=='} {value:#010x}"
        operator = NOT_EQUAL if differs else EQUAL
        return [load, masked(host32(wanted)), compare(host32(value), operator)], words

    def set_connection(self, fate: Fate) -> Part:
        value = self._bits.spread(fate)
        words = f"ct mark set ct mark & {self._others:#010x} | {value:#010x}"
        return [ct(CT_MARK), masked(host32(self._others), host32(value)), set_ct(CT_MARK)], words

    def clear_packet(self) -> Part:
        words = f"meta mark set meta mark & {self._others:#010x}"
        return [meta(META_MARK), masked(host32(self._others)), set_meta(META_MARK)], words


def _is(protocol: int, words: str) -> Part:
    return [meta(META_L4PROTO), compare(bytes([protocol]))], f"meta l4proto {words}"


def _jump(chain: str) -> Part:
    return [jump(chain)], f"jump {chain}"


def _error(which: tuple[int, int, str]) -> Part:
    kind, code, words = which
    return [reject(kind, code)], f"reject with {words}"


_ANY: Part = [], ""
_ACCEPTED: Part = [verdict(_ACCEPT)], "accept"
_DROPPED: Part = [verdict(_DROP)], "drop"
_RESET: Part = [reject(TCP_RESET)], "reject with tcp reset"
_IS_RELATED: Part = [ct(CT_STATE), masked(host32(_RELATED)), compare(bytes(4), NOT_EQUAL)], "ct state related"


# --- words of iptables


def iptables_lines(what: Before, hook: str, version: int, is_filter: bool) -> Iterator[str]:
    """Yield arguments of iptables (4) or ip6tables (6), without the table; only the table filter can reject."""
    make = _iptables_decided if what.part == DECIDED else _iptables_remembered
    yield from make(what.bits, hook, version, is_filter and hook in REJECT_HOOKS)


def _iptables_decided(bits: MarkBits, hook: str, version: int, can_reject: bool) -> Iterator[str]:
    chain, mask = f"nfnet-{hook}", bits.mask
    clear = f"-j MARK --set-xmark 0x0/{mask:#x}"
    ends = {"accept": [clear, "-j ACCEPT"], "drop": ["-j DROP"]}
    if can_reject:
        ends["reject"] = [clear, *_rejecting(version)]
    for name, targets in ends.items():
        yield f"-N {chain}-{name}"
        yield f"-A {chain}-{name} -j CONNMARK --save-mark --nfmask {mask:#x} --ctmask {mask:#x}"
        for target in targets[:-1]:
            yield f"-A {chain}-{name} {target}"
        comment = f'"{_Marks(bits).comment(name)}"'
        yield f"-A {chain}-{name} -m comment --comment {comment} {targets[-1]}"
        value = bits.spread(FATES[name][0])
        wanted = bits.spread(REJECTS) if name == "reject" else mask
        yield f"-A {hook.upper()} -m mark --mark {value:#x}/{wanted:#x} -j {chain}-{name}"


def _iptables_remembered(bits: MarkBits, hook: str, version: int, can_reject: bool) -> Iterator[str]:
    def when(number: int, mask: int) -> str:
        return f"-A {hook.upper()} -m connmark --mark {bits.spread(number):#x}/{mask:#x}"

    yield f"{when(Fate.ACCEPT, bits.mask)} -j ACCEPT"
    yield f"{when(Fate.DROP, bits.mask)} -j DROP"
    if can_reject:
        rejected = when(REJECTS, bits.spread(REJECTS))
        yield f"{rejected} -m conntrack --ctstate RELATED -j ACCEPT"
        for target in _rejecting(version):
            yield f"{when(Fate.REJECT, bits.mask)} {target}"


def _rejecting(version: int) -> list[str]:
    no_port, prohibited = {
        4: ("icmp-port-unreachable", "icmp-admin-prohibited"),
        6: ("icmp6-port-unreachable", "icmp6-adm-prohibited"),
    }[version]
    return [
        "-p tcp -j REJECT --reject-with tcp-reset",
        f"-p udp -j REJECT --reject-with {no_port}",
        f"-j REJECT --reject-with {prohibited}",
    ]
