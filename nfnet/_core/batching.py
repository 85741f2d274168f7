"""Turn decisions into messages for the kernel. This module has no socket, lock or thread.

A system call and a message for each verdict would cost more than all other work, so verdicts are collected and sent
together. The kernel allows this:

- VERDICT decides one packet. A datagram can contain any number of them; they are executed in order.
- VERDICT_BATCH gives one verdict to *everything that is still queued up to an id*, whether or not this
  program has decided or even read it. Ids grow by one with each packet, so a packet that was read later has a later id.

So a batch is correct if and only if each packet up to its id has left the queue already or is to get this verdict.
The caller (`ledger`) knows whether packets are ``in_order``: whether no older packet is undecided. If they are not,
each verdict is a message of its own, in the order in which the program gave them, because that is the order in which
the kernel releases the packets.

A drop can be sent before older verdicts, because the time of a drop is not visible. So if some packets are
accepted and others dropped, the rarer kind is sent first, one message each, and one batch decides all the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Protocol

from .._caching import lru_cache
from ..protocol import layout, netlink, nfqnl
from ..protocol.nfnetlink import BODY
from ..protocol.nfqnl import NFQA, PACKET_ID, Verdict

# Bytes: a datagram of verdicts is at most this, plus one packet. The send buffer has room for twice as much.
MAX_VERDICTS_SIZE = 1 << 16
MAX_MESSAGES = 1024  # each has up to 48 bytes


class Decision:
    """The verdict word for a packet, and the attributes that change the packet.

    ``kind`` is the verdict that the program gave. For a verdict on a whole connection it differs from the word, which
    is REPEAT then.

    Decisions are compared by identity: `decision` gives the same object for the same arguments.
    """

    __slots__ = ("batchable", "changes", "kind", "word")

    def __init__(self, word: int, changes: bytes = b"", batchable: bool = True, kind: int | None = None) -> None:
        self.word: int = word
        self.kind: int = word & 0xFF if kind is None else kind
        self.changes: bytes = changes
        self.batchable: bool = batchable


@lru_cache(1024)
def decision(word: int, mark: int | None = None, priority: int | None = None, kind: int | None = None) -> Decision:
    """Return the decision for a verdict that does not change the packet's bytes."""
    return Decision(word, _changes(mark, priority), kind=kind)


def changing_decision(
    word: int, mark: int | None, priority: int | None, *attributes: tuple[int, bytes], kind: int | None = None
) -> Decision:
    """Return a decision with changes that a batch cannot make: payload, VLAN tag, link-layer header or connection."""
    changes = b"" if mark is None and priority is None else _changes(mark, priority)
    for number, data in attributes:
        changes += layout.build_attribute(number, data)
    return Decision(word, changes, False, kind)


_MARK_HEADER, _PRIORITY_HEADER = (
    layout.build_attribute(number, bytes(4))[: netlink.ATTRIBUTE_HEADER_SIZE] for number in (NFQA.MARK, NFQA.PRIORITY)
)


def _changes(mark: int | None, priority: int | None) -> bytes:
    changes = b"" if mark is None else _MARK_HEADER + mark.to_bytes(4, "big")
    if priority is not None:
        changes += _PRIORITY_HEADER + priority.to_bytes(4, "big")
    return changes


ACCEPT = decision(Verdict.ACCEPT, None, None, None)  # with all arguments, as `Packet` calls it: the same object
DROP = decision(Verdict.DROP)


class Queued(Protocol):
    """The attribute of a packet that this module uses."""

    @property
    def raw(self) -> bytes:
        """The netlink message with the packet, whose id is at `PACKET_ID`."""


def limit(decisions: Sequence[Decision]) -> int:
    """Return how many of the decisions one datagram should hold, at least one."""
    size = 0
    for count, what in enumerate(decisions):
        size += 32 + len(what.changes)
        if size > MAX_VERDICTS_SIZE and count:
            return count
    return len(decisions)


class Messages:
    """Builds the verdict messages of one queue."""

    def __init__(self, number: int) -> None:
        self._frame = _frame(number, batch=False)
        self._batch_frame = _frame(number, batch=True)
        self.prefix: Callable[[Decision], bytes] = lru_cache(1024)(self.once)
        """Returns the message with a verdict on one packet, without the packet's id at the end of the message."""
        self._batch_prefix = lru_cache(1024)(self._build_batch_prefix)

    def datagram(self, packets: Sequence[Queued], decisions: Sequence[Decision], *, in_order: bool) -> bytes:
        """Return the messages that give the packets their verdicts.

        in_order: True if every undecided packet up to the last one is in ``packets``.
        """
        encode = self._each
        if in_order:
            encode = self._run if all(what.batchable for what in set(decisions)) else self._runs
        return b"".join(encode(packets, decisions))

    def _runs(self, packets: Sequence[Queued], decisions: Sequence[Decision]) -> Iterator[bytes]:
        """Encode packets some of which need a message of their own; batches decide those between them."""
        start = 0
        for batchable, group in groupby(decisions, lambda what: what.batchable):
            end = start + len(list(group))
            encode = self._run if batchable else self._each
            yield from encode(packets[start:end], decisions[start:end])
            start = end

    def _run(self, packets: Sequence[Queued], decisions: Sequence[Decision]) -> Iterator[bytes]:
        if decisions.count(decisions[0]) == len(decisions):
            yield self._together(decisions[0], packets)
            return
        others = set(decisions) - {DROP}
        if len(others) > len(decisions) // 2:  # each has another mark, for instance, so there are hardly any runs
            yield from self._new(packets, decisions)
            return
        if len(others) > 1:
            start = 0
            for what, group in groupby(decisions):
                end = start + len(list(group))
                yield self._together(what, packets[start:end])
                start = end
            return
        rare, common = DROP, others.pop()
        if decisions.count(DROP) * 2 > len(decisions):
            rare, common = common, rare
        prefix = self.prefix(rare)
        yield prefix
        yield prefix.join([packet.raw[PACKET_ID] for packet, what in zip(packets, decisions) if what is rare])
        yield self._together(common, [packet for packet, what in zip(packets, decisions) if what is common])

    def _each(self, packets: Sequence[Queued], decisions: Sequence[Decision]) -> Iterator[bytes]:
        for packet, what in zip(packets, decisions):
            yield self.prefix(what) if what.batchable else self.once(what)
            yield packet.raw[PACKET_ID]

    def _new(self, packets: Sequence[Queued], decisions: Sequence[Decision]) -> Iterator[bytes]:
        """Encode a message for each packet, without caching decisions that are unlikely to be used again."""
        for packet, what in zip(packets, decisions):
            yield self.once(what)
            yield packet.raw[PACKET_ID]

    def _together(self, what: Decision, packets: Sequence[Queued]) -> bytes:
        """Return one message. All older packets must have been decided or be decided earlier in the datagram."""
        return (self._batch_prefix if len(packets) > 1 else self.prefix)(what) + packets[-1].raw[PACKET_ID]

    def _build_batch_prefix(self, what: Decision) -> bytes:
        return self.once(what, batch=True)

    def once(self, what: Decision, *, batch: bool = False) -> bytes:
        """Return the same as `prefix`, or the equivalent for a batch, without caching it."""
        size, header, end = self._batch_frame if batch else self._frame
        changes = what.changes
        length = (size + len(changes)).to_bytes(4, netlink.HOST)
        return length + header + changes + end + what.word.to_bytes(4, "big")


@lru_cache(128)
def _frame(number: int, batch: bool) -> tuple[int, bytes, bytes]:
    """Return the length of a verdict message without changes, and the bytes before and after the changes."""
    frame = nfqnl.verdict(number, 0, 0, batch=batch)
    return len(frame), frame[4:BODY], frame[BODY:-8]
