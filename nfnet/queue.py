"""A queue of packets: the kernel asks, the program decides (NFQUEUE)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from typing import ClassVar, Literal

from .binding import QueueBinding
from .checks import check, check_choice, check_flag
from .errors import AlreadyDecidedError, ClosedError, NfnetError
from .netns import Netns
from .packet import Packet
from .protocol import nfqnl
from .protocol.nfqnl import Command, CopyMode, QueueFlag
from .reader import Reader
from .stats import QueueCounters, QueueRow, QueueStats, own_row, queue_rows
from .transport import MAX_QUEUE_DATAGRAM, Transport

_OPTIONAL = (("conntrack", QueueFlag.CONNTRACK), ("secctx", QueueFlag.SECCTX), ("uid_gid", QueueFlag.UID_GID))

_log = logging.getLogger("nfnet")

Handler = Callable[[Packet], object]


class Queue(Reader[QueueBinding]):
    """The packets of queue ``num``, one at a time, each to get a verdict.

    A rule sends packets to the queue; see `nfnet.rules.queue`. Entering the context, or `open`, binds the queue;
    leaving it, or `close`, unbinds it. Then the kernel drops what waits, unless ``undecided`` is "accept": then that is
    let through, and so is what comes until the queue is unbound.

    num: number of the queue, 0 to 65535.
    copy_range: how many bytes of each packet to copy, 1 to 65535; the kernel never copies more than 65,531.
    copy_mode: PACKET; META for no payload at all; with NONE the kernel drops every packet.
    max_len: how many packets may wait for a verdict, 0 to 2^32-1; the kernel's default is 1024.
    rcvbuf: size of the socket's receive buffer in bytes, as the kernel counts, 8 MiB if not given. Outside the
        initial user namespace net.core.rmem_max limits it. What was granted is the attribute ``rcvbuf``.
    fail_open: when the queue or the receive buffer is full, accept packets instead of dropping them.
    gso: take super-packets and packets with unfinished checksums as they are, not cut up and finished.
    conntrack, uid_gid, secctx: ask for the attributes of these names.
    timestamps: make the kernel stamp packets as they arrive, from a moment after opening as long as the queue is open.
    on_overrun: what to do when packets were lost: "count" and log a warning now and then, "raise" OverrunError out
        of the loop, or "ignore": count in silence.
    undecided: what becomes of a packet whose handler returns without a verdict: it stays "pending", so that it may
        be decided later, or the queue will "accept" or "drop" it.
    on_error: what becomes of a packet whose handler raises an Exception: "raise" it, the packet staying pending, or
        log it and "accept" or "drop" the packet.
    netns: the network namespace to work in: the name of one in /run/netns, a path, an open file, or
        the file descriptor of one (an int). It must stay open as long as the queue is used.
    transport: where to get packets from, instead of the kernel; see `nfnet.replay`.
    record: a file to record to what passes between the kernel and this program; see `nfnet.record`.

    Raises ArgumentError for what cannot be right. One thread at a time may read the queue; verdicts may come from
    any. A forked child has no part in it.
    """

    def __init__(
        self,
        num: int,
        *,
        copy_range: int = 0xFFFF,
        copy_mode: CopyMode | int = CopyMode.PACKET,
        max_len: int | None = None,
        rcvbuf: int | None = None,
        fail_open: bool = False,
        gso: bool = False,
        conntrack: bool = False,
        uid_gid: bool = False,
        secctx: bool = False,
        timestamps: bool = False,
        on_overrun: Literal["count", "raise", "ignore"] = "count",
        undecided: Literal["pending", "accept", "drop"] = "pending",
        on_error: Literal["raise", "accept", "drop"] = "raise",
        netns: Netns | None = None,
        transport: Transport | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        self.num: int = check("queue number", num, 0, 0xFFFF)
        self._copy_range = check("copy_range", copy_range, 1, 0xFFFF)
        self._copy_mode = CopyMode(check("copy_mode", copy_mode, CopyMode.NONE, CopyMode.PACKET))
        self._max_len = None if max_len is None else check("max_len", max_len, 0, 0xFFFFFFFF)
        check_choice("on_overrun", on_overrun, ("count", "raise", "ignore"))
        check_choice("undecided", undecided, ("pending", "accept", "drop"))
        check_choice("on_error", on_error, ("raise", "accept", "drop"))
        self._flags = QueueFlag(0)
        for name, wanted, flag in (
            ("fail_open", fail_open, QueueFlag.FAIL_OPEN),
            ("gso", gso, QueueFlag.GSO),
            ("conntrack", conntrack, QueueFlag.CONNTRACK),
            ("uid_gid", uid_gid, QueueFlag.UID_GID),
            ("secctx", secctx, QueueFlag.SECCTX),
        ):
            if check_flag(name, wanted):
                self._flags |= flag
        self._on_overrun = on_overrun
        self._undecided = undecided
        self._on_error = on_error
        self._timestamps = check_flag("timestamps", timestamps)
        super().__init__(
            f"queue {self.num}",
            rcvbuf=None if rcvbuf is None else check("rcvbuf", rcvbuf, 1, 0x7FFFFFFF),
            overruns=on_overrun == "raise",
            datagram=MAX_QUEUE_DATAGRAM,
            netns=netns,
            transport=transport,
            record=record,
        )

    packet_type: ClassVar[type[Packet]] = Packet
    """The class of its packets. A subclass of the queue may have a subclass of `Packet`, whose __init__ gets nothing:
    a packet is filled in afterwards."""

    _proc_file = "nfnetlink_queue"

    def _make_binding(self, transport: Transport) -> QueueBinding:
        return QueueBinding(
            self.num, transport, self._on_overrun, timestamps=self._timestamps, packet_type=self.packet_type
        )

    def _bind_request(self, seq: int) -> bytes:
        return nfqnl.config(
            self.num,
            command=Command.BIND,
            copy_range=self._copy_range,
            copy_mode=self._copy_mode,
            max_len=self._max_len,
            flags=self._flags or None,
            seq=seq,
            ack=True,
        )

    def _unbind_request(self) -> bytes:
        return nfqnl.config(self.num, command=Command.UNBIND)

    def _flags_asked_for(self) -> list[tuple[str, int]]:
        return [(name, flag) for name, flag in _OPTIONAL if flag in self._flags]

    def _flag_request(self, flag: int, seq: int) -> bytes:
        return nfqnl.config(self.num, flags=QueueFlag(flag), seq=seq, ack=True)

    def _row(self) -> QueueRow | None:
        return own_row(queue_rows, self.num, self._netns)

    def _pass_requests(self) -> bytes:
        """Requests after which the kernel accepts what comes without queueing it: the queue is full, and fails open.

        Two messages, the flag first: from a single one the kernel takes the length first, and would drop what comes
        until it has taken the flag as well.
        """
        return nfqnl.config(self.num, flags=QueueFlag.FAIL_OPEN) + nfqnl.config(self.num, max_len=0)

    def _finish(self, binding: QueueBinding) -> None:
        verdicts = binding.verdicts
        if self._undecided == "accept":
            # What came between the last verdict and the end of the binding would be dropped. No answer is asked for,
            # since it may find no room in the receive buffer; what refuses this is closed all the same.
            with suppress(NfnetError):
                binding.transport.send(self._pass_requests())
        if self._undecided != "pending":
            verdicts.settle()
            for packet in list(verdicts.pending):
                apply_policy(self._undecided, packet)
        verdicts.close()
        if self._undecided == "accept":
            verdicts.accept_rest(binding.last_id)

    def __iter__(self) -> Generator[Packet, None, None]:
        """The packets, as they come, until `stop` or `close`. Raises as `run`, except what handlers raise."""
        return self._packets(block=True)

    def _packets(self, block: bool) -> Generator[Packet, None, None]:
        """The packets, or those that wait."""
        binding = self._bound()
        portions = self._portions(binding, block)
        try:
            for portion in portions:
                for packet in portion:
                    yield packet
                    if packet._decision is None:
                        self._leave_undecided(binding, packet)
                    if self._stopping:
                        break
                    del packet  # no condition at the end of a loop: see `locks`
        finally:
            portions.close()

    def run(self, handler: Handler) -> None:
        """Call ``handler(packet)`` for each packet until `stop` or `close`.

        What the handler raises is treated as ``on_error`` says; exceptions that are no `Exception`, such as
        KeyboardInterrupt, always come out. Verdicts given before leave first, and `run` may be called again.

        Raises OverrunError (``on_overrun="raise"``), NotPermittedError if the privilege to decide was dropped,
        DecodeError for a datagram that is no packet, BusyReadingError, ClosedError, KernelError.
        """
        self._drive(handler, block=True)

    def process(self, handler: Handler | None = None) -> int:
        """Take what waits, without blocking, and return how many packets that were; for any event loop.

        Call it when `fileno` is readable, and once after opening. Without a handler the packets are kept, and an
        iteration gives that many without blocking. Raises as `run`.
        """
        return self._take() if handler is None else self._drive(handler, block=False)

    def _hand_out(self, binding: QueueBinding, portion: Iterator[Packet], handler: Handler) -> None:
        for packet in portion:
            try:
                handler(packet)
            except Exception as error:
                if binding.finished and isinstance(error, (ClosedError, AlreadyDecidedError)):
                    return  # closed by another thread while the handler was deciding: that ends the loop
                if self._on_error == "raise":
                    raise
                self._handler_failed(packet)
            if packet._decision is None:
                self._leave_undecided(binding, packet)
            if self._stopping:
                return

    def _handler_failed(self, packet: Packet) -> None:
        _log.exception("queue %d: the handler failed on packet %d", self.num, packet.id)
        apply_policy(self._on_error, packet)

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self._undecided == "pending":
            binding.defer(packet)
        else:
            apply_policy(self._undecided, packet)

    def flush(self) -> None:
        """Send the verdicts given so far, for a handler that is about to block.

        Otherwise they leave when nothing more waits, or after a millisecond, but not while a handler runs.
        """
        self._bound().verdicts.flush()

    @property
    def pending(self) -> list[Packet]:
        """The packets that were handed out and have no verdict, oldest first."""
        return self._bound().pending()

    @property
    def counters(self) -> QueueCounters:
        """What happened since the queue was opened; what had happened by the end, after it was closed."""
        return self._bound_or_last().counters()

    def stats(self) -> QueueStats:
        """The counters beside the kernel's own row about this queue, if it is open and the row may be read."""
        row = None if self._binding is None else self._row()
        return QueueStats(self.counters, row)


def apply_policy(policy: str, packet: Packet) -> None:
    """Give an undecided packet its verdict; another thread may do so, or close the queue, at the same time."""
    with suppress(AlreadyDecidedError, ClosedError):
        if policy == "accept":
            packet.accept()
        else:
            packet.drop()
