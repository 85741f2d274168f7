"""Search for the installed rules, of any program, that carry out verdicts on connections."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .._io.netlink_socket import NetlinkSocket
from ..protocol.layout import walk
from ..protocol.markbits import Fate, MarkBits, Support
from . import _nftables, _userdata
from ._actions import queues_of
from ._connections import COMMENT, FATES
from ._expressions import DATA_VERDICT, VERDICT_CHAIN
from ._nftables import FoundChain, FoundRule

_FAMILIES = {1: (2, 10), 2: (2,), 10: (10,)}  # NFPROTO_* of a table, and those of its packets
_QUEUE_SREG, _HASH_MODULUS, _HASH_OFFSET = 4, 4, 6

_Rules = dict[tuple[int, str, str], list[FoundRule]]


def find(sock: NetlinkSocket, number: int) -> dict[tuple[int, int], Support | None]:
    """Return the supported verdicts, by the family and the number of each hook at which packets get into the queue.

    None means that a chain of the hook queues packets without such rules before it: a packet does not contain the chain
    that queued it. Rules of iptables-legacy cannot be found. Raises KernelError.
    """
    chains, by_chain = list(_nftables.chains(sock)), _Rules()
    for rule in _nftables.rules(sock):
        by_chain.setdefault((rule.family, rule.table, rule.chain), []).append(rule)
    found: dict[tuple[int, int], Support | None] = {}
    for chain in chains:
        if chain.hook is None or chain.family not in _FAMILIES:
            continue
        reached = list(_reached(chain, by_chain))
        if any(number in queues for rule in reached for queues in _queues(rule)):
            support = _support(comment for rule in reached for comment in _comments(rule))
            for family in _FAMILIES[chain.family]:
                place = family, chain.hook
                found[place] = support if found.get(place, support) == support else None
    return found


def _reached(chain: FoundChain, by_chain: _Rules) -> Iterator[FoundRule]:
    """Yield the rules of a chain and of the chains to which it jumps."""
    seen, left = {chain.name}, [chain.name]
    while left:
        for rule in by_chain.get((chain.family, chain.table, left.pop()), ()):
            yield rule
            for name in _jumps(rule):
                if name not in seen:
                    seen.add(name)
                    left.append(name)


def _comments(rule: FoundRule) -> Iterator[str]:
    yield from _userdata.comments(rule.userdata)
    for name, values in rule.expressions:
        if name == "match" and values.get(1, b"").rstrip(b"\0") == b"comment":  # of iptables
            yield values.get(3, b"").partition(b"\0")[0].decode("utf-8", "replace")


def _jumps(rule: FoundRule) -> Iterator[str]:
    for name, values in rule.expressions:
        data = values.get(2, b"") if name == "immediate" else b""
        for kind, start, end in walk(data, 0, len(data)):
            if kind == DATA_VERDICT:
                for inner, first, last in walk(data, start, end):
                    if inner == VERDICT_CHAIN:
                        yield data[first:last].rstrip(b"\0").decode("utf-8", "replace")


def _queues(rule: FoundRule) -> Iterator[range]:
    """Yield the numbers of the queues into which a rule puts packets."""
    hashed = range(0)
    for name, values in rule.expressions:
        if name == "hash" and _HASH_MODULUS in values:
            first = int.from_bytes(values.get(_HASH_OFFSET, b""), "big")
            hashed = range(first, first + int.from_bytes(values[_HASH_MODULUS], "big"))
        yield hashed if name == "queue" and _QUEUE_SREG in values else queues_of(name, values)[0]


def _support(comments: Iterable[str]) -> Support | None:
    """Return the verdicts that rules with these comments carry out; None if they are incomplete."""
    bits: set[str] = set()
    fates: set[Fate] = set()
    for comment in comments:
        if comment.startswith(f"{COMMENT} "):
            mask, _, name = comment.removeprefix(f"{COMMENT} ").partition(" ")
            bits.add(mask)
            fates.update(FATES.get(name, ()))
    if len(bits) != 1:
        return None
    try:
        return Support(MarkBits(int(bits.pop(), 16)), frozenset(fates))
    except ValueError:  # not a number, or not bits of a mark (ArgumentError): another program's comment
        return None
