"""The way of a verdict from the handler to the kernel.

A system call and a message for each verdict would cost more than all the rest, so verdicts are collected and leave
together. What the kernel allows is this:

- VERDICT decides one packet; any number of such messages fit into one datagram and are executed in order.
- VERDICT_BATCH goes through the queue from the oldest packet and gives each the same verdict, whether this program has
  decided it, has seen it, or not. It ends before the first packet whose id is after that of the message. Ids grow by
  one with each packet and wrap around, so the kernel compares them modulo 2^32: of two ids that are more than 2^31
  apart it takes the older one for the later one. Then a batch ends at once, and is answered ENOENT.

A batch is therefore right if, and only if, each packet up to that id has either left the queue already or is to get
just this verdict, and the oldest packet in the queue is not more than 2^31 ids back. Three lists hold what is needed to
know that:

``at_hand``   packets that the loop has received and whose verdict has not left, in the order of their ids;
``decided``   packets that have a verdict, in the order in which they got it, until it leaves;
``pending``   packets whose handler returned without a verdict, and which may get one at any time, from any thread.

Until the kernel has its verdict a packet is at hand or pending, and not both. If nothing is pending, and the decided
packets are the first of those at hand, in order, then every packet up to the last of them is decided, and the first of
them is the oldest in the queue: `_encode_run` may use batches. Otherwise each verdict goes as a message of its own, in
the order in which the program gave them, because that is the order in which the kernel lets the packets go. (A pending
packet that is newer than all the decided ones would do no harm. But there is hardly ever one without an older one, and
ids do not tell which of two packets is older if one may have been pending for days.)

Where a forked child reads from the same socket, which the API of NetfilterQueue allows, the packets that it has at hand
are on none of these lists, so there are no batches at all.

Drops may overtake: nobody can see when a packet was dropped. So of packets that are accepted or dropped in turn the
rarer kind goes first, one message each, and one batch takes all the others.

The verdict of a packet is in the hands of its `_decide`: while the loop has more packets at hand that is
``decided.append``; for the last one, and for pending ones, it is `decide_now`, and `_collected` once that has put the
packet on ``decided``. Whoever sends holds the lock, and takes packets off the lists only when the kernel has their
verdicts. An exception in between, say KeyboardInterrupt, makes a verdict leave twice, which the kernel answers with
ENOENT; it never makes one get lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from .errors import ClosedError
from .locks import RLock
from .protocol import layout, netlink, nfqnl
from .protocol.nfnetlink import BODY
from .protocol.nfqnl import NFQA, PACKET_ID, Verdict
from .transport import Transport

if TYPE_CHECKING:
    from .packet import Packet

# Datagrams of verdicts are kept below this, plus one packet; the send buffer has room for twice as much.
_MAX_DATAGRAM = 1 << 16
_MAX_MESSAGES = 1024  # of up to 48 bytes each


class Decision:
    """What to do with a packet: the verdict word, and the attributes that change the packet.

    Decisions are compared by identity: `decision` gives the same object for the same arguments.
    """

    __slots__ = ("batchable", "changes", "word")

    def __init__(self, word: int, changes: bytes = b"", batchable: bool = True) -> None:
        self.word: int = word
        self.changes: bytes = changes
        self.batchable: bool = batchable


@lru_cache(1024)
def decision(word: int, mark: int | None = None, priority: int | None = None) -> Decision:
    """The decision for a verdict that leaves the packet's bytes alone."""
    return Decision(word, _changes(mark, priority))


def decision_with(word: int, mark: int | None, priority: int | None, *attributes: tuple[int, bytes]) -> Decision:
    """A decision that also changes what only a single verdict can: payload, VLAN tag, link-layer header."""
    changes = _changes(mark, priority) + b"".join(layout.build_attribute(*item) for item in attributes)
    return Decision(word, changes, batchable=False)


def _changes(mark: int | None, priority: int | None) -> bytes:
    changes = b""
    if mark is not None:
        changes += layout.build_attribute(NFQA.MARK, mark.to_bytes(4, "big"))
    if priority is not None:
        changes += layout.build_attribute(NFQA.PRIORITY, priority.to_bytes(4, "big"))
    return changes


ACCEPT = decision(Verdict.ACCEPT)
DROP = decision(Verdict.DROP)


_decision_of = attrgetter("_decision")


def _never() -> bool:
    return False


def _collected(packet: Packet) -> None:
    """The `_decide` of a packet whose verdict was collected before `decide_now` was called for it, or by that."""


class Verdicts:
    """Collects the verdicts of one binding of a queue, and sends them."""

    def __init__(self, number: int, transport: Transport) -> None:
        self.at_hand: list[Packet] = []
        self.decided: list[Packet] = []
        self.pending: dict[Packet, None] = {}  # a set that keeps its order
        self.counts: dict[int, int] = dict.fromkeys(Verdict, 0)
        self.closed = False
        self.shared = False
        """Whether another process reads from the same socket: a batch would decide what that one has at hand."""
        self._number = number
        self._transport = transport
        self._lock = RLock()  # a signal handler may decide a packet while this thread is sending
        self._sending = False
        self._unseen = 0
        # No method: a cycle would keep the socket of a queue that nobody has any more, and was not closed.
        self._build_prefix = partial(_build_prefix, number)
        self._prefix = lru_cache(1024)(self._build_prefix)
        self.may_wait: Callable[[], bool] = _never
        """Whether somebody will call `flush` soon, so that verdicts on pending packets can leave together."""

    def decide_now(self, packet: Packet) -> None:
        """Send the verdict of a packet, and all that were collected before it."""
        with self._lock:
            if self.closed and (packet in self.pending or packet in self.at_hand):
                packet._decision = None
                text = f"packet {packet.id}: queue {self._number} was closed, which dropped the packet"
                raise ClosedError(text)
            if packet._decide is not _collected:  # else `settle` was quicker: it saw the decision
                self.decided.append(packet)
                packet._decide = _collected
            if not self.may_wait():
                self._send_decided()

    def flush(self) -> None:
        """Send the verdicts that were collected."""
        if self.decided:
            with self._lock:
                self._send_decided()

    def settle(self, waiting: int = 0, *, final: bool = False) -> None:
        """Send what was collected; what else is at hand is pending from now on, but for the last ``waiting``."""
        with self._lock:
            self._send_decided()
            count = len(self.at_hand) - waiting
            if not count and not self.pending:
                return
            # What a signal handler decides from here on waits until the lists are in order again.
            sending, self._sending = self._sending, True
            try:
                self._make_pending(count, final)
            finally:
                self._sending = sending
            self._send_decided()

    def _make_pending(self, count: int, final: bool) -> None:
        new = self.at_hand[:count]
        for packet in new:
            packet._decide = self.decide_now
        pending = dict.fromkeys(new)
        # No call in these two: no signal handler can raise between them, so each packet is on one of the lists.
        self.pending |= pending
        self.at_hand[:count] = ()
        # Decisions on the way to `decide_now`, in another thread, or stopped there by an exception. Looking at all that
        # are pending takes as many steps, so it is done once in as many new packets.
        self._unseen += count + 1
        if self._unseen > len(self.pending) or final:
            self._unseen = 0
            new = list(self.pending)
        late = [packet for packet in new if packet._decision is not None and packet._decide is not _collected]
        if late:
            there = set(self.decided)
            for packet in late:
                if packet not in there:
                    self.decided.append(packet)
                    packet._decide = _collected

    def defer(self, packet: Packet, behind: int) -> None:
        """The handler has returned and left the packet undecided: it is pending from now on.

        ``behind`` is how many packets are at hand that no handler has got yet: the last ones of `at_hand`.
        """
        with self._lock:
            before = len(self.decided)
            sending, self._sending = self._sending, True  # see `settle`
            try:
                place = len(self.at_hand) - behind - 1
                if place >= 0 and self.at_hand[place] is packet:  # not if it was just decided, or the queue closed
                    packet._decide = self.decide_now
                    # No call in these two: see `_make_pending`.
                    self.pending[packet] = None
                    del self.at_hand[place]
            finally:
                self._sending = sending
            if packet._decision is not None or len(self.decided) > before:
                self._send_decided()

    def received(self) -> int:
        """How many packets the loop has received so far."""
        with self._lock:
            return len(self.at_hand) + len(self.pending) + sum(self.counts.values())

    def accept_rest(self, newest: int) -> None:
        """Accept whatever is queued, read by this program or not; ``newest`` is the last id that was seen."""
        # A batch covers what is up to 2^31 ids back from its own id, so steps of half of that leave nothing out. The
        # first round finds the oldest packet in the queue, wherever it is, and another one all that are behind it.
        ids = [(newest + step * 0x40000000) & 0xFFFFFFFF for step in range(1, 9)]
        self._transport.send(b"".join(nfqnl.verdict(self._number, each, Verdict.ACCEPT, batch=True) for each in ids))

    def close(self) -> None:
        """Send what was collected; later verdicts raise ClosedError."""
        with self._lock:
            try:
                self.settle(final=True)
            finally:
                self.closed = True

    def after_fork(self) -> None:
        """In a child that has the queue too: its parent sends what was collected, and gives verdicts of its own."""
        self._lock = RLock()  # who held the other one is not here
        self._sending = False
        self.may_wait = _never
        self.decided.clear()
        for packet in (*self.at_hand, *self.pending):
            packet._decide = self.decide_now

    def _send_decided(self) -> None:
        if self._sending:  # in a signal handler, while this thread is sending: it goes on until nothing is left
            return
        self._sending = True
        try:
            while True:  # and no condition at its end: see `locks`
                if not self.decided:
                    break
                self._send_some()
        finally:
            self._sending = False

    def _send_some(self) -> None:
        packets = self.decided[:_MAX_MESSAGES]  # others may append meanwhile
        in_order = packets == self.at_hand[: len(packets)] and not self.pending and not self.shared and _near(packets)
        decisions: list[Decision] = list(map(_decision_of, packets))
        kinds = {decisions[0]} if decisions.count(decisions[0]) == len(decisions) else set(decisions)
        batchable = all(what.batchable for what in kinds)
        if not batchable:
            packets, decisions = _limit(packets, decisions)
            kinds = set(decisions)
        if not in_order:
            encode = self._encode_each
        elif batchable:
            encode = self._encode_run
        else:
            encode = self._encode_in_order
        datagram = b"".join(encode(packets, decisions))
        counts = self.counts.copy()
        for what in kinds:
            counts[what.word & 0xFF] += decisions.count(what)
        self._transport.send(datagram)
        # The kernel has them. The last step is one statement without a call, in the midst of which no signal handler
        # can raise: until then they would be sent once more.
        count = len(packets)
        if in_order:
            self.counts, self.decided[:count], self.at_hand[:count] = counts, (), ()
            return
        for packet in packets:
            # If it was not pending it is among the first at hand; unless an exception ended this loop the last time.
            if self.pending.pop(packet, packet) is packet and packet in self.at_hand:
                self.at_hand.remove(packet)
        self.counts, self.decided[:count] = counts, ()

    def _encode_in_order(self, packets: Sequence[Packet], decisions: Sequence[Decision]) -> Iterator[bytes]:
        """Messages for packets of which none that is older is undecided."""
        start = 0
        for batchable, group in groupby(decisions, lambda decision: decision.batchable):
            end = start + len(list(group))
            if batchable:
                yield from self._encode_run(packets[start:end], decisions[start:end])
            else:
                yield from self._encode_each(packets[start:end], decisions[start:end])
            start = end

    def _encode_run(self, packets: Sequence[Packet], decisions: Sequence[Decision]) -> Iterator[bytes]:
        if decisions.count(decisions[0]) == len(decisions):
            yield self._together(decisions[0], packets)
            return
        others = set(decisions) - {DROP}
        if len(others) > 1:
            start = 0
            for what, group in groupby(decisions):
                end = start + len(list(group))
                yield self._together(what, packets[start:end])
                start = end
            return
        # Accepted, say, and dropped in turn: the rarer kind one by one, then the other as one batch.
        rare, common = DROP, others.pop()
        if decisions.count(DROP) * 2 > len(decisions):
            rare, common = common, rare
        prefix = self._prefix(rare)
        yield prefix
        yield prefix.join([packet.raw[PACKET_ID] for packet, what in zip(packets, decisions) if what is rare])
        yield self._together(common, [packet for packet, what in zip(packets, decisions) if what is common])

    def _encode_each(self, packets: Sequence[Packet], decisions: Sequence[Decision]) -> Iterator[bytes]:
        for packet, what in zip(packets, decisions):
            yield self._prefix(what) if what.batchable else self._build_prefix(what)
            yield packet.raw[PACKET_ID]

    def _together(self, what: Decision, packets: Sequence[Packet]) -> bytes:
        """One message for packets of which all that are older have left, or leave before it."""
        return self._prefix(what, batch=len(packets) > 1) + packets[-1].raw[PACKET_ID]


def _build_prefix(number: int, what: Decision, *, batch: bool = False) -> bytes:
    """A verdict message up to the packet id, which is its end."""
    frame = _frame(number, batch)
    length = (len(frame) + len(what.changes)).to_bytes(4, netlink.HOST)
    return b"".join((length, frame[4:BODY], what.changes, frame[BODY:-8], what.word.to_bytes(4, "big")))


def _near(packets: Sequence[Packet]) -> bool:
    """Whether the ids are so near to each other that a batch up to the last one reaches the first."""
    return len(packets) == 1 or not nfqnl.is_after(packets[0].id, packets[-1].id)


@lru_cache
def _frame(number: int, batch: bool) -> bytes:
    """The message that the schemas build for a verdict without changes."""
    return nfqnl.verdict(number, 0, 0, batch=batch)


def _limit(packets: list[Packet], decisions: list[Decision]) -> tuple[list[Packet], list[Decision]]:
    """As many of them as one datagram should hold, at least one."""
    size = 0
    for count, decision in enumerate(decisions):
        size += 32 + len(decision.changes)
        if size > _MAX_DATAGRAM and count:
            return packets[:count], decisions[:count]
    return packets, decisions
