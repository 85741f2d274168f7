"""The ledger: which packets are undecided, and how their verdicts reach the kernel.

A packet is in exactly one of three places until the kernel has its verdict:

``lone``      a slot: the packet that arrived alone and that the handler has now, or None;
``at_hand``   a list: the packets that the loop has received, in the order of their ids;
``pending``   a dict, used as an ordered set: the packets whose handler returned without a verdict. Any thread may
              decide them at any time.

``decided`` is not such a place. It lists the packets at hand or pending that have a verdict which has not been sent,
in the order in which the verdicts were given.

Who writes what:

- `QueueBinding` puts new packets into ``lone`` or ``at_hand``, in `QueueBinding.each` and `QueueBinding.make_ready`.
  It does this itself, because one statement must add the packets and remove their datagrams from the binding (see
  `moves`). It also chooses the packet's `_on_decided`.
- `Packet.accept` and the other verdicts set the packet's `_decision` and call its `_on_decided`.
- Everything else is done by the methods here.

`_on_decided` is the function that takes over the verdict:

- ``decided.append`` if the loop has more packets;
- `send_now` for the last packet, and for pending ones;
- `send_lone` for a packet that arrived alone. It sends one message and takes no lock if the loop's own thread calls it;
- `_handed_over` once the packet is in ``decided`` by way of `send_now` or `settle`.

If nothing is pending, and the decided packets are the first of those at hand, in order, then every packet up to the
last of them is decided, and the first of them is the oldest in the queue. They are *in order*, and batches may decide
them (see `batching`). Otherwise each verdict is a message of its own. (A pending packet that is newer than all decided
ones would be harmless. But this hardly ever happens, and as ids wrap around, they do not show which of two packets is
older if one has been pending for days.)

If a forked child reads from the same socket, which the API of NetfilterQueue allows, the child's packets are in none of
these places, so no batches are sent at all.

A thread that sends holds the lock, and removes packets only when the kernel has their verdicts. An exception in
between, such as KeyboardInterrupt, can cause a verdict to be sent twice; the kernel answers the second with ENOENT. No
verdict is lost.
"""

from __future__ import annotations

from _thread import get_ident
from collections.abc import Callable, Iterable
from operator import attrgetter
from types import BuiltinMethodType
from typing import Any, Protocol

from .._io.locks import CLEANS_UP, RLock, interrupted_another, release
from .._io.moves import END
from .._io.transport import Transport
from ..errors import ClosedError, NfnetError, raised_by_program
from ..protocol import nfqnl
from ..protocol.nfqnl import PACKET_ID, Verdict
from .batching import ACCEPT, MAX_MESSAGES, Decision, Messages, limit


class Entry(Protocol):
    """The attributes of a packet that the ledger uses."""

    raw: bytes
    _decision: Decision | None
    _on_decided: Callable[[Any], None]

    @property
    def id(self) -> int: ...


_decision_of = attrgetter("_decision")
# With fewer different decisions than this, one ``list.count`` for each is faster than one loop in Python over all.
_FEW_DECISIONS = 8


def _never() -> bool:
    return False


def _handed_over(packet: Entry) -> None:
    """Do nothing: the `_on_decided` of a packet that is in ``decided`` already."""


class Ledger:
    """The packets of one binding of a queue whose verdicts the kernel does not have yet."""

    def __init__(self, number: int, transport: Transport) -> None:
        self.lone: Entry | None = None
        self.at_hand: list[Any] = []
        self.decided: list[Any] = []
        self.pending: dict[Any, None] = {}  # a set that keeps its order
        # How many verdicts were sent, by kind. The first is written under the lock; the second, for lone packets, only
        # by the reading thread. With a single one, two threads could overwrite each other's counts.
        self._counts: dict[int, int] = dict.fromkeys(Verdict, 0)
        self._lone_counts = [0] * (max(Verdict) + 1)
        self.closed = False
        self.shared = False
        """True if another process reads from the same socket: a batch would decide the packets of that process, too."""
        self.may_wait: Callable[[], bool] = _never
        """Returns True if `flush` will be called soon, so that verdicts on pending packets can be sent together."""
        self.reader = 0
        """The identifier of the thread that reads; 0 when the queue is closed."""
        self._number = number
        self._transport = transport
        self._messages = Messages(number)
        self._prefix = self._messages.prefix
        self._accept = self._prefix(ACCEPT)
        self._send = transport.send
        self._outgoing: Callable[[bytes], object] = transport.send
        self.lock = RLock()  # a signal handler may decide a packet while this thread is sending
        self._sending = False
        self._unseen = 0

    def begin(self) -> None:
        """Note that this thread reads from now on, and choose how to send the verdicts of lone packets."""
        self.reader, self._outgoing = get_ident(), self._transport.outgoing
        if not CLEANS_UP:
            self._recover()

    def _recover(self) -> None:
        """Undo what exceptions in this thread left behind that ended a method before its cleanup: see `locks`."""
        if not interrupted_another():
            with self.lock:
                self._sending = False
            release(self.lock)

    # --- giving verdicts

    def send_lone(self, packet: Entry) -> None:
        """Send the verdict of a packet that arrived alone."""
        what = packet._decision
        if self.lone is not packet or self.reader != get_ident():
            self.send_now(packet)
            return
        # No lock: another thread empties the slot only if it decided the packet, and then this call does not happen.
        # (In free-threaded builds and PyPy `Packet.accept` and its like have acquired it.)
        if what is ACCEPT:
            datagram = self._accept + packet.raw[PACKET_ID]
        elif what is not None and what.batchable:
            datagram = self._prefix(what) + packet.raw[PACKET_ID]
        else:
            self.send_now(packet)
            return
        send = self._outgoing
        try:
            send(datagram)
        except OSError as error:
            if isinstance(error, NfnetError) or error.errno is None:  # without errno it is from a signal handler
                raise
            # The frames of a transport written in Python look like those of a signal handler.
            if isinstance(send, BuiltinMethodType) and raised_by_program(error):
                raise
            self._send(datagram)  # sends it, or raises the error
        kind = what.kind
        self._lone_counts[kind], self.lone = self._lone_counts[kind] + 1, None  # one statement

    def send_now(self, packet: Entry) -> None:
        """Send the verdict of a packet, after those collected before it; or collect it, if `may_wait` allows that."""
        with self.lock:
            if self.lone is packet:
                self.at_hand[END:], self.lone = (packet,), None  # one statement
            if self.closed and (packet in self.pending or packet in self.at_hand):
                packet._decision = None
                text = f"packet {packet.id}: queue {self._number} was closed, which dropped the packet"
                raise ClosedError(text)
            if packet._on_decided is not _handed_over:  # otherwise `settle` saw the decision first
                self.decided[END:], packet._on_decided = (packet,), _handed_over  # one statement
            if not self.may_wait():
                self._send_decided()

    def flush(self) -> None:
        """Send the collected verdicts."""
        if self.decided:
            with self.lock:
                self._send_decided()

    def send_each_at_once(self, packets: Iterable[Entry]) -> None:
        """Send the verdict on each of these packets, if it has none yet, as soon as it is given."""
        for packet in packets:
            if packet._decision is None:
                packet._on_decided = self.send_now

    def oldest_decided(self) -> Entry | None:
        """Return the packet whose verdict has been in ``decided`` for the longest time, None if there is none."""
        for packet in self.decided:
            return packet  # type: ignore[no-any-return]
        return None

    # --- what the loop reports

    def take_lone(self) -> None:
        """Move the lone packet, on which the handler gave no verdict, to those at hand."""
        with self.lock:
            if (packet := self.lone) is not None:
                packet._on_decided = self.send_now
                self.at_hand[END:], self.lone = (packet,), None  # one statement

    def settle(self, undelivered: int = 0, *, final: bool = False) -> None:
        """Send the collected verdicts, and make the undecided packets at hand pending.

        undelivered: how many packets at the end of ``at_hand`` were not handed out yet; they stay there.
        final: whether to search all pending packets for decisions that have not reached `send_now`.
        """
        with self.lock:
            self._send_decided()
            count = len(self.at_hand) - undelivered
            if not count and not self.pending:
                return
            # Verdicts given in a signal handler from here on are sent when the lists are in order again.
            sending, self._sending = self._sending, True
            try:
                self._make_pending(count, final)
            finally:
                self._sending = sending
            self._send_decided()

    def _make_pending(self, count: int, final: bool) -> None:
        new = self.at_hand[:count]
        for packet in new:
            packet._on_decided = self.send_now
        pending = dict.fromkeys(new)
        # No call in these two: no signal handler can raise between them, so each packet is on one of the lists.
        self.pending |= pending
        self.at_hand[:count] = ()
        # Decisions that have not reached `send_now`, in another thread or because of an exception. Searching
        # all n pending packets takes n steps, so this is done only once for every n new packets.
        self._unseen += count + 1
        if self._unseen > len(self.pending) or final:
            self._unseen = 0
            new = list(self.pending)
        late = [packet for packet in new if packet._decision is not None and packet._on_decided is not _handed_over]
        if late:
            there = set(self.decided)
            for packet in late:
                if packet not in there:
                    self.decided[END:], packet._on_decided = (packet,), _handed_over  # one statement

    def defer(self, packet: Entry, behind: int) -> None:
        """Make a packet pending whose handler has returned without a verdict.

        behind: how many packets at the end of ``at_hand`` were not handed out yet.
        """
        with self.lock:
            before = len(self.decided)
            sending, self._sending = self._sending, True  # see `settle`
            try:
                place = len(self.at_hand) - behind - 1
                if place >= 0 and self.at_hand[place] is packet:  # not if it was just decided, or the queue was closed
                    packet._on_decided = self.send_now
                    # No call in these two: see `_make_pending`.
                    self.pending[packet] = None
                    del self.at_hand[place]
            finally:
                self._sending = sending
            if packet._decision is not None or len(self.decided) > before:
                self._send_decided()

    def count_received(self) -> int:
        """Return how many packets the loop has received so far."""
        with self.lock:
            return len(self.at_hand) + len(self.pending) + (self.lone is not None) + sum(self.counts().values())

    def counts(self) -> dict[int, int]:
        """Return how many verdicts were sent, by kind."""
        return {kind: count + self._lone_counts[kind] for kind, count in self._counts.items()}

    def accept_rest(self, newest: int) -> None:
        """Accept every packet in the queue, read by this program or not; ``newest`` is the last id that was seen."""
        # A batch covers the 2^31 ids before its own, so steps of half of that leave no id out. The first round reaches
        # the oldest packet in the queue, whatever its id, and a second round all packets behind it.
        ids = [(newest + step * 0x40000000) & 0xFFFFFFFF for step in range(1, 9)]
        self._send(b"".join(nfqnl.verdict(self._number, each, Verdict.ACCEPT, batch=True) for each in ids))

    def close(self) -> None:
        """Send the collected verdicts; later verdicts raise ClosedError."""
        if not CLEANS_UP:
            self._recover()
        with self.lock:
            try:
                self.settle(final=True)
            finally:
                self.closed = True

    def after_fork(self) -> None:
        """Start over in a forked child that shares the queue: the parent sends the verdicts collected so far."""
        self.lock = RLock()  # the thread that held the old one is not in this process
        self._sending = False
        self.may_wait = _never
        self.decided.clear()
        self.take_lone()
        for packet in (*self.at_hand, *self.pending):
            packet._on_decided = self.send_now

    # --- sending

    def _send_decided(self) -> None:
        if self._sending:  # in a signal handler that interrupted this loop, which will send these verdicts, too
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
        """Send the only collected verdict, on a pending packet: a faster `_send_some`."""
        what = packet._decision
        assert what is not None
        count = self._counts[what.kind] + 1
        self._send((self._prefix(what) if what.batchable else self._messages.once(what)) + packet.raw[PACKET_ID])
        # No call in these: see `_make_pending`. Other threads may have appended to ``decided`` meanwhile.
        del self.pending[packet]
        self._counts[what.kind] = count
        del self.decided[0]

    def _send_some(self) -> None:
        packets = self.decided[:MAX_MESSAGES]  # other threads can append meanwhile
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
        if len(different) < _FEW_DECISIONS:
            for what in different:
                counts[what.kind] += decisions.count(what)
        else:
            for what in decisions:
                counts[what.kind] += 1
        self._send(datagram)
        # The kernel has these verdicts. An exception before the last statement would make them be sent again.
        if in_order:
            self._counts, self.decided[:count], self.at_hand[:count] = counts, (), ()  # one statement
            return
        for packet in packets:
            # A packet that was not pending is at hand, unless an exception ended this loop the last time.
            if self.pending.pop(packet, packet) is packet and packet in self.at_hand:
                self.at_hand.remove(packet)
        self._counts, self.decided[:count] = counts, ()  # one statement


def _near(packets: list[Entry]) -> bool:
    """Return whether a batch up to the last id reaches the first one: it covers the 2^31 ids before it."""
    return len(packets) == 1 or not nfqnl.is_after(packets[0].id, packets[-1].id)
