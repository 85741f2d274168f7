"""The ledger: which packets are at hand, decided or pending, and the way of their verdicts to the kernel.

Three lists say where a packet is, and one slot:

``lone``      the packet that came alone, and is in the hands of the handler;
``at_hand``   packets that the loop has received and whose verdict has not left, in the order of their ids;
``decided``   packets that have a verdict, in the order in which they got it, until it leaves;
``pending``   packets whose handler returned without a verdict, and which may get one at any time, from any thread.

Until the kernel has its verdict a packet is alone, at hand or pending, and only one of these. If nothing is pending,
and the decided packets are the first of those at hand, in order, then every packet up to the last of them is decided,
and the first of them is the oldest in the queue: they are *in order*, and batches may decide them (see `batching`).
Otherwise each verdict goes as a message of its own. (A pending packet that is newer than all decided ones would do no
harm. But there is hardly ever one without an older one, and ids, which wrap around, do not tell which of two packets is
older if one may have been pending for days.)

Where a forked child reads from the same socket, which the API of NetfilterQueue allows, the packets that it has at hand
are on none of these lists, so there are no batches at all.

The verdict of a packet is in the hands of its `_decide`. While the loop has more packets at hand that is
``decided.append``; for the last one, and for pending ones, it is `decide_now`, and `_collected` once that has put the
packet on ``decided``. For a packet that came alone it is `decide_lone`, which sends one message and takes no lock, as
long as it is called by the loop's own thread.

Whoever sends holds the lock, and takes packets off the lists only when the kernel has their verdicts. An exception in
between, say KeyboardInterrupt, makes a verdict leave twice, which the kernel answers with ENOENT; it never makes one
get lost.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Protocol

from .._io.locks import RLock
from .._io.moves import END
from .._io.transport import Transport
from ..errors import ClosedError
from ..protocol import nfqnl
from ..protocol.nfqnl import PACKET_ID, Verdict
from .batching import ACCEPT, MAX_MESSAGES, Decision, Messages, limit


class Entry(Protocol):
    """A packet, as far as the ledger looks at it."""

    raw: bytes
    _decision: Decision | None
    _decide: Callable[[Any], None]

    @property
    def id(self) -> int: ...


_decision_of = attrgetter("_decision")
_FEW = 8  # different decisions: to count each of them, through all packets, takes less time than a loop in Python


def _never() -> bool:
    return False


def _collected(packet: Entry) -> None:
    """The `_decide` of a packet whose verdict was collected before `decide_now` was called for it, or by that."""


class Ledger:
    """The packets of one binding of a queue whose verdict the kernel does not have yet."""

    def __init__(self, number: int, transport: Transport) -> None:
        self.lone: Entry | None = None
        self.at_hand: list[Any] = []
        self.decided: list[Any] = []
        self.pending: dict[Any, None] = {}  # a set that keeps its order
        # How many verdicts have left, by kind: those that were sent under the lock, and those of packets that came
        # alone, which only the thread that reads counts. With one for both, each would undo what the other one counts.
        self._counts: dict[int, int] = dict.fromkeys(Verdict, 0)
        self._alone = [0] * (max(Verdict) + 1)
        self.closed = False
        self.shared = False
        """Whether another process reads from the same socket: a batch would decide what that one has at hand."""
        self.may_wait: Callable[[], bool] = _never
        """Whether somebody will call `flush` soon, so that verdicts on pending packets can leave together."""
        self.reader = 0
        """The thread that reads, 0 when the queue is closed."""
        self._number = number
        self._transport = transport
        self._messages = Messages(number)
        self._prefix = self._messages.prefix
        self._accept = self._prefix(ACCEPT)
        self._send = transport.send
        self._lock = RLock()  # a signal handler may decide a packet while this thread is sending
        self._sending = False
        self._unseen = 0

    # --- giving verdicts

    def decide_lone(self, packet: Entry) -> None:
        """Send the verdict of a packet that came alone."""
        what = packet._decision
        if self.lone is not packet or self.reader != get_ident():
            self.decide_now(packet)
            return
        # No lock. Another thread takes the packet out of the slot only if it has decided it, and then this one has not.
        if what is ACCEPT:
            prefix = self._accept
        elif what is not None and what.batchable:
            prefix = self._prefix(what)
        else:
            self.decide_now(packet)
            return
        self._send(prefix + packet.raw[PACKET_ID])
        kind = what.kind
        self._alone[kind], self.lone = self._alone[kind] + 1, None  # one statement

    def decide_now(self, packet: Entry) -> None:
        """Send the verdict of a packet, and all that were collected before it."""
        with self._lock:
            if self.lone is packet:
                self.at_hand[END:], self.lone = (packet,), None  # one statement
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

    def decide_each(self, packets: Iterable[Entry]) -> None:
        """The verdicts on these packets, unless they have been given, will leave at once."""
        for packet in packets:
            if packet._decision is None:
                packet._decide = self.decide_now

    def oldest_decided(self) -> Entry | None:
        """The packet whose verdict was collected first."""
        for packet in self.decided:
            return packet  # type: ignore[no-any-return]
        return None

    # --- what the loop reports

    def take_lone(self) -> None:
        """The handler has returned without a verdict on the packet that came alone: it is at hand."""
        with self._lock:
            if (packet := self.lone) is not None:
                packet._decide = self.decide_now
                self.at_hand[END:], self.lone = (packet,), None  # one statement

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

    def defer(self, packet: Entry, behind: int) -> None:
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
            return len(self.at_hand) + len(self.pending) + (self.lone is not None) + sum(self.counts().values())

    def counts(self) -> dict[int, int]:
        """How many verdicts have left, by kind."""
        return {kind: count + self._alone[kind] for kind, count in self._counts.items()}

    def accept_rest(self, newest: int) -> None:
        """Accept whatever is queued, read by this program or not; ``newest`` is the last id that was seen."""
        # A batch covers what is up to 2^31 ids back from its own id, so steps of half of that leave nothing out. The
        # first round finds the oldest packet in the queue, wherever it is, and another one all that are behind it.
        ids = [(newest + step * 0x40000000) & 0xFFFFFFFF for step in range(1, 9)]
        self._send(b"".join(nfqnl.verdict(self._number, each, Verdict.ACCEPT, batch=True) for each in ids))

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
        self.take_lone()
        for packet in (*self.at_hand, *self.pending):
            packet._decide = self.decide_now

    # --- sending

    def _send_decided(self) -> None:
        if self._sending:  # in a signal handler, while this thread is sending: it goes on until nothing is left
            return
        self._sending = True
        try:
            while True:  # and no condition at its end: see `locks`
                if not self.decided:
                    break
                if len(self.decided) == 1 and self.decided[0] in self.pending:
                    self._send_pending(self.decided[0])
                else:
                    self._send_some()
        finally:
            self._sending = False

    def _send_pending(self, packet: Entry) -> None:
        """Send the only verdict that was collected, on a pending packet: what `_send_some` does, and quicker."""
        what = packet._decision
        assert what is not None
        count = self._counts[what.kind] + 1
        self._send((self._prefix(what) if what.batchable else self._messages.once(what)) + packet.raw[PACKET_ID])
        # No call in these: see `_make_pending`. Others may have appended to ``decided`` meanwhile.
        del self.pending[packet]
        self._counts[what.kind] = count
        del self.decided[0]

    def _send_some(self) -> None:
        packets = self.decided[:MAX_MESSAGES]  # others may append meanwhile
        decisions: list[Decision] = list(map(_decision_of, packets))
        if not (decisions.count(decisions[0]) == len(decisions) and decisions[0].batchable) and not all(
            what.batchable for what in set(decisions)
        ):
            count = limit(decisions)
            packets, decisions = packets[:count], decisions[:count]
        count = len(packets)
        in_order = packets == self.at_hand[:count] and not self.pending and not self.shared and _near(packets)
        datagram = self._messages.datagram(packets, decisions, in_order=in_order)
        counts = self._counts.copy()
        different = set(decisions)
        if len(different) < _FEW:
            for what in different:
                counts[what.kind] += decisions.count(what)
        else:
            for what in decisions:
                counts[what.kind] += 1
        self._send(datagram)
        # The kernel has them. Until the last statement they would be sent once more.
        if in_order:
            self._counts, self.decided[:count], self.at_hand[:count] = counts, (), ()  # one statement
            return
        for packet in packets:
            # If it was not pending it is among the first at hand; unless an exception ended this loop the last time.
            if self.pending.pop(packet, packet) is packet and packet in self.at_hand:
                self.at_hand.remove(packet)
        self._counts, self.decided[:count] = counts, ()  # one statement


def _near(packets: list[Entry]) -> bool:
    """Whether the ids are so near to each other that a batch up to the last one reaches the first."""
    return len(packets) == 1 or not nfqnl.is_after(packets[0].id, packets[-1].id)
