"""`QueueBinding`: the state of a queue from `open` to `close`. It makes packets from datagrams, and counts them."""

from __future__ import annotations

import errno
import os
import socket
import weakref
from collections.abc import Callable, Generator, Iterator
from operator import length_hint

from ._core.binding import Binding
from ._core.connections import Connections
from ._core.flusher import Flusher
from ._core.ledger import Ledger
from ._core.reader import MOST_LONE
from ._io.locks import RLock
from ._io.moves import END
from ._io.native import new_socket
from ._io.netlink_socket import SO_TIMESTAMP
from ._io.transport import Transport
from .errors import DecodeError, NfnetError, kernel_error
from .packet import Packet
from .protocol import netlink, nfqnl
from .protocol.markbits import MarkBits
from .protocol.nfqnl import PACKET_ID, QUEUE_SUBSYSTEM, SUBSYSTEM_BYTE, Verdict
from .stats import QueueCounters, QueueStatus

_FEW_PACKETS = 4  # with no more than these, verdicts are not collected: each is sent when it is given
# On newer kernels (6.12.117, 6.18) a queue holds at most this many packets, even if `max_len` is larger. The kernel
# drops packets beyond this limit after giving them an id. Packets beyond `max_len` get no id, and leave no gap.
_MOST_WAITING = 65536


class QueueBinding(Binding[Packet, QueueStatus]):
    """The state of a queue from `open` to `close`. With each new binding packet ids begin at 1 again."""

    # Measured: 256 costs 3 to 7 % more; 1024 is not faster, and makes Python's garbage collector run, because it runs
    # after 700 new objects.
    drain = 512
    what = "packets"

    def __init__(
        self,
        num: int,
        transport: Transport,
        on_overrun: str,
        find_status: Callable[[], QueueStatus | None],
        *,
        max_len: int | None = None,
        timestamps: bool = False,
        packet_type: type[Packet] = Packet,
        bits: MarkBits | None = None,
    ) -> None:
        super().__init__(f"queue {num}", transport, on_overrun, find_status)
        self.connections = self.origin.connections = Connections(num, transport, bits)
        transport.bits = self.connections.given
        self.ledger = Ledger(num, transport)
        self.origin.lock = self.ledger.lock
        self.last_id = 0
        self._num = num
        self._max_len = max_len
        self._packet_type = packet_type
        self._flusher = Flusher(self.ledger)
        self.plain = transport.trusted
        """Whether the kernel sends the datagrams, and no other process reads them: then packets need no checks."""
        self.last: bytes | None = None
        """The last lone packet, whose id `_issue` has not counted."""
        self._lone_since_look = 0  # lone packets since the last look for lost ones
        self._counting = RLock()  # any thread can read `counters`
        self._issued = 0  # how many ids the kernel has assigned, up to the last one seen
        self._refused: dict[int, int] = {}
        self._stamping = weakref.finalize(self, os.close, _stamping_socket()) if timestamps else None

    def begin(self) -> None:
        self.plain = self.transport.trusted and not self.shared
        self.ledger.begin()

    def flush(self, *, slow: bool) -> None:
        self.ledger.flush()
        undelivered = length_hint(self.ready)
        if slow and undelivered:
            self.ledger.send_each_at_once(self.ledger.at_hand[-undelivered:])

    def settle(self, undelivered: int = 0) -> None:
        ledger = self.ledger
        if ledger.lone is not None:
            ledger.take_lone()
        if ledger.at_hand or ledger.decided or ledger.pending:
            ledger.settle(undelivered)
        self._lone_since_look += 1
        if self.last is None or self._lone_since_look > MOST_LONE:
            self._account()
        if self.loss.untold:
            self.tell_loss()

    def defer(self, packet: Packet) -> None:
        """Make a packet pending after its handler has returned without a verdict."""
        if self.ledger.lone is not None:
            self.ledger.take_lone()
        self.ledger.defer(packet, length_hint(self.ready))

    def before_fork(self) -> None:
        super().before_fork()
        self.ledger.shared = True
        self.plain = False

    def after_fork(self) -> None:
        super().after_fork()
        self._counting = RLock()
        self.ledger.after_fork()
        self.origin.lock = self.ledger.lock
        self._flusher.forget()

    def release(self) -> None:
        self.ledger.closed = True
        self.ledger.reader = 0
        try:
            super().release()
        finally:
            if self._stamping is not None:
                self._stamping()

    def each(self, datagrams: Iterator[bytes]) -> Generator[Packet, None, None]:
        if not self.plain:
            yield from super().each(datagrams)
            return
        # What `make_ready` does, without a call for each packet.
        ledger, origin, send_lone = self.ledger, self.origin, self.ledger.send_lone
        packet_type = self._packet_type
        packet = packet_type()  # before the wait: nothing is called between that and the assignment below, see `moves`
        try:
            for raw in datagrams:
                if raw[SUBSYSTEM_BYTE] == QUEUE_SUBSYSTEM and ledger.lone is None:
                    packet._origin = origin
                    packet._decision = packet._layout = None
                    packet._on_decided = send_lone
                    packet.raw, self.last, ledger.lone = raw, raw, packet
                    yield packet
                    packet = packet_type()
                else:
                    self.received[END:] = (raw,)
                    self.make_ready()
                    if not length_hint(self.ready):
                        return
                    yield from self.ready
        except OSError as error:
            self.explain(error)

    def make_ready(self) -> None:
        received = self.received
        if not received:
            return
        ledger = self.ledger
        packet_type, origin = self._packet_type, self.origin
        untrusted = not self.transport.trusted
        undelivered = length_hint(self.ready)
        if ledger.lone is not None:
            self.settle(undelivered)
        ready = ledger.at_hand[-undelivered:] if undelivered else []
        new: list[Packet] = []
        problem: NfnetError | None = None
        refused: list[int] = []
        on_decided: Callable[[Packet], None]
        if lone := len(received) == 1 and self.plain and not undelivered and not ledger.at_hand:
            on_decided = ledger.send_lone
        # Collecting verdicts does not pay off for a few packets.
        elif len(received) > _FEW_PACKETS and self._flusher.watch():
            on_decided = ledger.decided.append
        else:
            on_decided = ledger.send_now
        for raw in received:
            if untrusted or raw[SUBSYSTEM_BYTE] != QUEUE_SUBSYSTEM:
                try:
                    if (whole := self._look_into(raw, refused)) is None:
                        continue
                    raw = whole
                except NfnetError as error:  # raised below, when the packets after it are ready
                    problem = problem or error
                    continue
            packet = packet_type()
            packet.raw = raw
            packet._origin = origin
            packet._decision = packet._layout = None
            packet._on_decided = on_decided
            new.append(packet)
        nothing: list[bytes] = []
        iterator = iter(ready + new)
        if lone and new:
            self.received, self.ready, ledger.lone, self.last = nothing, iterator, packet, packet.raw  # one statement
            return
        if new:
            new[-1]._on_decided = ledger.send_now  # no packet follows it, so its verdict need not wait
        self.received, self.ready, ledger.at_hand[END:] = nothing, iterator, new  # one statement
        for error_number in refused:
            self._refused[error_number] = self._refused.get(error_number, 0) + 1
        if new:
            if not self._issued and untrusted:  # a recording can begin with any id; the kernel begins with 1
                self.last_id = new[0].id - 1
            self.last = None  # a later id is counted instead
            self._issue(new[-1].raw)
        if problem is not None:
            raise problem

    def _issue(self, raw: bytes) -> None:
        """Count the ids up to the id of the packet in a message."""
        packet_id = int.from_bytes(raw[PACKET_ID], "big")
        step = (packet_id - self.last_id) & 0xFFFFFFFF
        self.last_id = packet_id
        # The kernel's ids only grow. In a file with several consecutive recordings they can decrease.
        if step < 0x80000000 or self.transport.trusted:
            self._issued += step

    def _look_into(self, message: bytes, refused: list[int]) -> bytes | None:
        """Return the packet in a datagram; None if the datagram is the answer to a verdict."""
        try:
            if not netlink.is_answer(message):
                return nfqnl.normalized(message, self._num)
            answer = netlink.parse_answer(message)
        except DecodeError:
            self.malformed += 1
            raise
        if answer.errno and answer.type in (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH):
            refused.append(answer.errno)
            if answer.errno != errno.ENOENT:  # ENOENT is normal: see QueueCounters
                raise kernel_error(f"deciding packets of queue {self._num}", answer.errno, message=answer.message)
        return None

    def _account(self) -> None:
        """Count the ids that are missing."""
        with self._counting:
            last, self.last, self._lone_since_look = self.last, None, 0
            if last is not None:
                self._issue(last)
            lost = self._issued - self.ledger.count_received() - self.loss.total
            if lost > 0:
                self.add_lost(lost)
        if lost > 0:
            self.tell_loss()

    def finish_counting(self) -> None:
        self._account()
        status = self.status()
        # Packets lost after the last one that was received left no gap.
        if status is not None and status.user_dropped > self.loss.total:
            self.count_lost(status.user_dropped - self.loss.total)
        super().finish_counting()

    def _cause_of_loss(self, status: QueueStatus | None) -> str:
        if status is not None and (status.user_dropped or status.queue_dropped):
            drops = ((status.user_dropped, self._buffer()), (status.queue_dropped, "the queue"))
            return "the kernel dropped " + " and ".join(
                f"{count} because {where} was full" for count, where in drops if count
            )
        # With fail-open the kernel does not count these drops, and only root can read its counts. The socket has its
        # own count.
        socket_status = self.transport.socket_status()
        if socket_status is not None and socket_status.dropped:
            return f"{self._buffer()} was full"
        if self._max_len is None or self._max_len <= _MOST_WAITING:
            return f"probably {self._buffer()} was full"
        return f"{self._buffer()} was full, or the queue, which holds {_MOST_WAITING} packets on newer kernels"

    def taken(self) -> int:
        return self.ledger.count_received() - length_hint(self.ready)

    def count_waiting(self) -> int:
        return self.ledger.count_received() - sum(self.ledger.counts().values())

    def pending(self) -> list[Packet]:
        """Return the packets that were handed out and have no verdict, oldest first."""
        ledger = self.ledger
        given = ledger.at_hand[: len(ledger.at_hand) - length_hint(self.ready)]
        lone = () if ledger.lone is None or length_hint(self.ready) else (ledger.lone,)
        return [packet for packet in (*ledger.pending, *given, *lone) if packet._decision is None]

    def counters(self) -> QueueCounters:
        """Return the counts so far."""
        self._account()
        counts = self.ledger.counts()
        received = self.ledger.count_received()
        return QueueCounters(
            received=received,
            accepted=counts[Verdict.ACCEPT] + counts[Verdict.STOP],
            dropped=counts[Verdict.DROP],
            repeated=counts[Verdict.REPEAT],
            requeued=counts[Verdict.QUEUE],
            pending=received - sum(counts.values()),
            lost=self.loss.total,
            overruns=self.overruns,
            refused=dict(self._refused),
            malformed=self.malformed,
        )


def _stamping_socket() -> int:
    """Return the descriptor of a socket that makes the kernel timestamp packets as they arrive.

    Timestamps cost time, so the kernel takes them only while any socket on the machine has this option.
    Otherwise the timestamp of a queued packet is missing. The socket is not used for anything else.
    """
    sock = new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    return sock.detach()
