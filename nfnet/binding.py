"""What belongs to one time of a queue being bound: its datagrams, its packets, its counters."""

from __future__ import annotations

import errno
import os
import socket
import sys
import weakref
from operator import length_hint

from .errors import DecodeError, NfnetError, kernel_error
from .packet import Packet
from .protocol import netlink, nfqnl
from .protocol.nfnetlink import Subsystem
from .protocol.nfqnl import SUBSYSTEM_BYTE, Verdict
from .reader import Binding
from .stats import QueueCounters
from .transport import SO_TIMESTAMP, Transport, new_socket
from .verdicts import Verdicts

_END = sys.maxsize  # ``list[_END:] = more`` appends


class QueueBinding(Binding[Packet]):
    """A queue while it is bound; with the next binding packet ids begin at 1 again."""

    # Measured: 256 costs 3 to 7 % more; 1024 gains nothing, and makes Python's garbage collector run, which it does
    # after 700 new objects.
    drain = 512
    what = "packets"

    def __init__(
        self,
        number: int,
        transport: Transport,
        on_overrun: str,
        *,
        timestamps: bool = False,
        packet_type: type[Packet] = Packet,
    ) -> None:
        super().__init__(f"queue {number}", transport, on_overrun)
        self.verdicts = Verdicts(number, transport)
        self.last_id = 0
        self._number = number
        self._packet_type = packet_type
        self._issued = 0  # how many ids the kernel gave, up to the last one seen
        self._refused: dict[int, int] = {}
        self._stamping = weakref.finalize(self, os.close, _stamping_socket()) if timestamps else None

    def flush(self) -> None:
        self.verdicts.flush()

    def settle(self, waiting: int = 0) -> None:
        self.verdicts.settle(waiting)
        self._account()

    def defer(self, packet: Packet) -> None:
        """The handler has returned and left the packet undecided: it is pending from now on."""
        self.verdicts.defer(packet, length_hint(self.ready))

    def before_fork(self) -> None:
        super().before_fork()
        self.verdicts.shared = True

    def after_fork(self) -> None:
        super().after_fork()
        self.verdicts.after_fork()

    def release(self) -> None:
        self.verdicts.closed = True
        try:
            super().release()
        finally:
            if self._stamping is not None:
                self._stamping()

    def _make_ready(self) -> None:
        verdicts = self.verdicts
        collect = verdicts.decided.append
        packet_type = self._packet_type
        byte, subsystem = SUBSYSTEM_BYTE, int(Subsystem.QUEUE)
        untrusted, name_of = not self.transport.trusted, self.transport.interface_name
        waiting = length_hint(self.ready)
        ready = verdicts.at_hand[-waiting:] if waiting else []
        new: list[Packet] = []
        problem: NfnetError | None = None
        refused: list[int] = []
        for raw in self._received:
            if untrusted or raw[byte] != subsystem:
                try:
                    if (whole := self._look_into(raw, refused)) is None:
                        continue
                    raw = whole
                except NfnetError as error:  # the packets behind it come first
                    problem = problem or error
                    continue
            packet = packet_type()
            packet.raw = raw
            packet._name_of = name_of
            packet._decision = packet._layout = None
            packet._decide = collect
            new.append(packet)
        if new:
            new[-1]._decide = verdicts.decide_now  # nothing waits behind it: why should its verdict?
        received: list[bytes] = []
        iterator = iter(ready + new)
        # One statement without a call: no signal handler can raise in the midst of it, so no packet is lost or there
        # twice.
        self._received, self.ready, verdicts.at_hand[_END:] = received, iterator, new
        for number in refused:
            self._refused[number] = self._refused.get(number, 0) + 1
        if new:
            if not self._issued and untrusted:  # a recording may begin anywhere, the kernel begins at 1
                self.last_id = new[0].id - 1
            step = (new[-1].id - self.last_id) & 0xFFFFFFFF
            self.last_id = new[-1].id
            if step < 0x80000000:  # else it went back: recordings, one behind the other
                self._issued += step
        if problem is not None:
            raise problem

    def _look_into(self, message: bytes, refused: list[int]) -> bytes | None:
        """A datagram that is no packet for sure: the packet that it is after all, or None if it was dealt with."""
        try:
            if not netlink.is_answer(message):
                return nfqnl.normalized(message, self._number)
            answer = netlink.parse_answer(message)
        except DecodeError:
            self._malformed += 1
            raise
        if answer.errno and answer.type in (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH):
            refused.append(answer.errno)
            if answer.errno != errno.ENOENT:  # that one is no surprise: see QueueCounters
                raise kernel_error(f"deciding packets of queue {self._number}", answer.errno, message=answer.message)
        return None

    def _account(self) -> None:
        """Count the ids that never came."""
        received = self.verdicts.received()
        lost = self._issued - received
        if lost > self._lost:
            self._count_lost(lost - self._lost)

    def taken(self) -> int:
        return self.verdicts.received() - length_hint(self.ready)

    def pending(self) -> list[Packet]:
        """The packets that went to a handler and have no verdict, oldest first."""
        verdicts = self.verdicts
        given = verdicts.at_hand[: len(verdicts.at_hand) - length_hint(self.ready)]
        return [packet for packet in (*verdicts.pending, *given) if packet._decision is None]

    def counters(self) -> QueueCounters:
        """What happened so far."""
        counts = self.verdicts.counts
        received = self.verdicts.received()
        return QueueCounters(
            received=received,
            accepted=counts[Verdict.ACCEPT] + counts[Verdict.STOP],
            dropped=counts[Verdict.DROP],
            repeated=counts[Verdict.REPEAT],
            requeued=counts[Verdict.QUEUE],
            pending=received - sum(counts.values()),
            lost=self._lost,
            overruns=self._overruns,
            refused=dict(self._refused),
            malformed=self._malformed,
        )


def _stamping_socket() -> int:
    """The descriptor of a socket that makes the kernel stamp packets as they arrive.

    Stamping costs time, so the kernel does it only while somebody, anywhere on the machine, wants it: a socket with
    this option. Otherwise the timestamp of a queued packet is missing. The socket is never used for anything else.
    """
    sock = new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    return sock.detach()
