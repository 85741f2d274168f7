"""`Queue`: receives the packets that a rule queued, and sends the verdicts of the program (NFQUEUE)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from operator import length_hint
from typing import ClassVar, Literal, TypedDict

from . import inet
from ._arguments import check, check_choice, check_flag, check_result, wrong_type
from ._core.binding import Arriving
from ._core.flags import Request, flags_of, optional_requests
from ._core.reader import Reader
from ._io.moves import END
from ._io.netlink_socket import MAX_QUEUE_DATAGRAM
from ._io.transport import Transport
from ._queue_binding import QueueBinding
from .errors import AlreadyDecidedError, ArgumentError, ClosedError, NfnetError
from .netns import Netns
from .packet import Packet
from .protocol import nfqnl
from .protocol.markbits import MarkBits
from .protocol.nfqnl import QUEUE_SUBSYSTEM, SUBSYSTEM_BYTE, Command, CopyMode, QueueFlag, Verdict
from .stats import QueueCounters, QueueStats, QueueStatus, find_queue

_log = logging.getLogger("nfnet")

Handler = Callable[[Packet], None]
"""A plain function that returns None, so that type checkers reject async functions, which return a coroutine."""


class WorkerOptions(TypedDict, total=False):
    """The options of `Queue` that several queues can share: all but ``transport`` and ``record``."""

    copy_range: int
    copy_mode: CopyMode | int
    max_len: int | None
    rcvbuf: int | None
    fail_open: bool
    gso: bool
    conntrack: bool
    uid_gid: bool
    secctx: bool
    timestamps: bool
    on_overrun: Literal["count", "raise", "ignore"]
    undecided: Literal["pending", "accept", "drop"]
    on_error: Literal["raise", "accept", "drop"]
    bits: int | None
    netns: Netns | None


class QueueOptions(WorkerOptions, total=False):
    """All options of `Queue`, for functions that pass them on: ``**options: Unpack[nfnet.QueueOptions]``."""

    transport: Transport | None
    record: str | os.PathLike[str] | None


class Queue(Reader[QueueBinding, Packet]):
    """Receives the packets of queue ``num``, one at a time, and sends a verdict for each.

    A rule sends packets to the queue; see `nfnet.rules.queue`. Entering the context, or `open`, binds the queue;
    leaving it, or `close`, unbinds it. Unbinding makes the kernel drop the packets that still wait. With
    ``undecided="accept"`` nfnet accepts them, and those that arrive until the queue is unbound.

    num: number of the queue, 0 to 65535.
    copy_range: how many bytes of each packet to copy, 1 to 65,535 (the default); the kernel copies at most 65,531.
    copy_mode: PACKET (the default); META for no payload at all; with NONE the kernel drops every packet.
    max_len: how many packets can wait for a verdict, 0 to 2^32-1; the kernel's default is 1024. Newer kernels
        (6.12.117, 6.18) hold 65,536 packets at most, even if this is larger.
    rcvbuf: size of the socket's receive buffer in bytes, as the kernel counts (default: 8 MiB). Outside the
        initial user namespace net.core.rmem_max limits the size, and nfnet logs a warning. The attribute ``rcvbuf``
        contains the size that the kernel granted.
    fail_open: when the queue or the receive buffer is full, accept packets instead of dropping them.
    gso: receive super-packets, and packets with unfinished checksums, as they are. Without it the kernel segments them
        and finishes their checksums first.
    conntrack, uid_gid, secctx: request these attributes from the kernel.
    timestamps: make the kernel timestamp packets as they arrive, from shortly after opening until the queue is closed.
    on_overrun: what to do when packets were lost: "count" them and log warnings, at intervals and at the end; "raise"
        OverrunError from the loop; or "ignore": count them without a warning.
    undecided: what to do with a packet whose handler returns without a verdict: keep it "pending", so that it can be
        decided later, or "accept" or "drop" it.
    on_error: what to do when a handler raises an Exception: "raise" it, and keep the packet pending, or log it and
        "accept" or "drop" the packet. An iteration has no handler, so it raises ArgumentError unless this is
        "raise".
    bits: the bits of the mark that rules use for verdicts on whole connections (see `nfnet.rules.queue`). Needed
        only if the rules were installed with iptables-legacy; nfnet finds the bits of other rules in nf_tables.
    netns: the network namespace to work in: a name in /run/netns, a path, an open file, or a file descriptor (an
        int). A file must stay open as long as the queue is used.
    transport: the source of packets, instead of the kernel; see `nfnet.replay`.
    record: the file to which nfnet writes all datagrams between the kernel and this program; see `nfnet.record`.

    Raises ArgumentError for invalid arguments. One thread at a time may read the queue; any thread may give verdicts.
    A forked child cannot use the queue.
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
        bits: int | None = None,
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
        wanted = {"fail_open": fail_open, "gso": gso, "conntrack": conntrack, "uid_gid": uid_gid, "secctx": secctx}
        self._flags = QueueFlag(flags_of(nfqnl.FLAG_OPTIONS, wanted))
        self._on_overrun = on_overrun
        self._undecided = undecided
        self._on_error = on_error
        self._timestamps = check_flag("timestamps", timestamps)
        self._bits = None if bits is None else MarkBits(bits)
        super().__init__(
            "queue",
            self.num,
            rcvbuf=None if rcvbuf is None else check("rcvbuf", rcvbuf, 1, 0x7FFFFFFF),
            overruns=on_overrun == "raise",
            datagram=MAX_QUEUE_DATAGRAM,
            netns=netns,
            transport=transport,
            record=record,
        )

    packet_type: ClassVar[type[Packet]] = Packet
    """The class of the queue's packets. A subclass of `Queue` can set it to a subclass of `Packet`. Its __init__ is
    called without arguments, before the attributes of the packet are set."""

    _module = "nfnetlink_queue"
    _remedy = "use AsyncQueue, whose run awaits it"

    def _make_binding(self, transport: Transport) -> QueueBinding:
        return QueueBinding(
            self.num,
            transport,
            self._on_overrun,
            partial(find_queue, self.num, self._netns),
            max_len=self._max_len,
            timestamps=self._timestamps,
            packet_type=self.packet_type,
            bits=self._bits,
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

    def _flag_requests(self) -> Iterator[tuple[str, Request]]:
        return optional_requests(nfqnl.FLAG_OPTIONS, self._flags, partial(nfqnl.config, self.num))

    def _status(self) -> QueueStatus | None:
        return find_queue(self.num, self._netns)

    def _pass_requests(self) -> bytes:
        """Return requests that make the kernel accept packets without queueing them: the queue is full, and fail-open.

        These are two messages, the flag first. With both in one message the kernel sets the length first, and would
        drop the packets that arrive before it sets the flag.
        """
        return nfqnl.config(self.num, flags=QueueFlag.FAIL_OPEN) + nfqnl.config(self.num, max_len=0)

    def _before_unbinding(self, binding: QueueBinding) -> None:
        ledger = binding.ledger
        if self._undecided == "accept":
            # The kernel would drop packets that arrive between the last verdict and the unbinding. No answer is
            # requested, because the receive buffer may have no room for it. If this fails, the queue is closed anyway.
            with suppress(NfnetError):
                binding.transport.send(self._pass_requests())
        if self._undecided != "pending":
            ledger.settle()
            for packet in list(ledger.pending):
                apply_policy(self._undecided, packet)
        ledger.close()
        if self._undecided == "accept":
            ledger.accept_rest(binding.last_id)
        elif binding.transport.trusted and not binding.transport.simulated:  # a socket that only this queue reads
            self._drop_rest(binding)

    def _drop_rest(self, binding: QueueBinding) -> None:
        """Drop the packets that are left in the queue.

        Unbinding would drop them, too, but some milliseconds later, after an RCU grace period. If the rule has been
        removed by then, Linux 4.14 to 6.10 write a warning about nf_reinject to the kernel's log, and panic if
        ``panic_on_warn`` is set.

        This does not count as a verdict: recordings do not contain it, and in the counters these packets are pending.
        A packet that is more than 2^30 ids older than the last one is dropped by the unbinding.
        """
        newest = (binding.last_id + 0x40000000) & 0xFFFFFFFF  # so that it covers packets that were not read
        with suppress(NfnetError):  # if it fails, the packets are dropped a little later
            binding.transport.send_untapped(nfqnl.verdict(self.num, newest, Verdict.DROP, batch=True))

    def run(self, handler: Handler) -> None:
        """Call ``handler(packet)`` for each packet until `stop` or `close`.

        The handler is a plain function that returns nothing; for async functions use `AsyncQueue`. If it raises an
        Exception, it is treated as ``on_error`` specifies. Other exceptions, such as KeyboardInterrupt, always end the
        loop. Verdicts given before are sent first, and `run` can be called again.

        Raises TypeError for an async handler, OverrunError (``on_overrun="raise"``), NotPermittedError if the process
        gave up the privilege to send verdicts, DecodeError for a datagram that is not a packet, BusyReadingError,
        ClosedError, KernelError.
        """
        self._run(handler)

    def process(self, handler: Handler) -> int:
        """Call the handler for each packet that waits, without blocking, and return the number of these packets.

        For any event loop: call it when `fileno` is readable, and once after opening. Raises the errors of `run`.
        """
        return self._process(handler)

    def _hand_out(self, binding: QueueBinding, portion: Iterable[Packet], handler: Callable[[Packet], object]) -> None:
        result: object = None
        for packet in portion:
            try:
                result = handler(packet)
            except Exception as error:
                if not self._treat(error, binding, packet):
                    raise
                result = None
            if packet._decision is None:
                check_result(result, self._remedy)
                self._leave_undecided(binding, packet)
            if self._stopping:
                return

    def _hand_out_arriving(
        self, binding: QueueBinding, arriving: Arriving[Packet], handler: Callable[[Packet], object]
    ) -> None:
        if not binding.plain:
            self._hand_out(binding, arriving, handler)
            return
        # `_hand_out` and `QueueBinding.each` in one loop: resuming a generator for each packet costs 3 % more time.
        ledger, origin, send_lone = binding.ledger, binding.origin, binding.ledger.send_lone
        packet_type = self.packet_type
        failure: Exception | None = None
        packet = packet_type()  # before the wait: see `QueueBinding.each`
        try:
            for raw in arriving.datagrams:
                if raw[SUBSYSTEM_BYTE] == QUEUE_SUBSYSTEM and ledger.lone is None:
                    packet._origin = origin
                    packet._decision = packet._layout = None
                    packet._on_decided = send_lone
                    packet.raw, binding.last, ledger.lone = raw, raw, packet
                    try:
                        result = handler(packet)
                    except Exception as error:
                        failure = error  # treated below, since it can be an OSError, too
                        break
                    if packet._decision is None:
                        check_result(result, self._remedy)
                        self._leave_undecided(binding, packet)
                    if self._stopping:
                        return
                    packet = packet_type()
                else:
                    binding.received[END:] = (raw,)
                    binding.make_ready()
                    if not length_hint(binding.ready):
                        return
                    self._hand_out(binding, binding.ready, handler)
                    if self._stopping:
                        return
                    del raw  # no condition at the end of a loop: see `locks`
        except OSError as error:
            binding.explain(error)
        if failure is not None and not self._treat(failure, binding, packet):
            raise failure

    def check_iteration(self) -> None:
        # An exception raised in the body of a for statement does not reach this class.
        if self._on_error != "raise":
            text = (
                f"on_error={self._on_error!r} applies to handlers, not to exceptions raised in the body of an iteration"
            )
            raise ArgumentError(f"{text}: use run(), or on_error='raise' and a try statement in the body")

    def _body_returned(self, binding: QueueBinding, item: Packet) -> None:
        if item._decision is None:
            self._leave_undecided(binding, item)

    def _treat(self, error: BaseException, binding: QueueBinding, packet: Packet) -> bool:
        """Treat an exception of the handler as ``on_error`` specifies. Return False if it is to be raised."""
        if binding.close_began and isinstance(error, (ClosedError, AlreadyDecidedError)):
            return True  # another thread closed the queue while the handler was deciding, which also ends the loop
        if self._on_error == "raise":
            return False
        _log.error("queue %d: the handler failed on packet %d", self.num, packet.id, exc_info=error)
        apply_policy(self._on_error, packet)
        return True

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self._undecided == "pending":
            binding.defer(packet)
        else:
            apply_policy(self._undecided, packet)

    def flush(self) -> None:
        """Send the verdicts given so far. Without this call they are sent within two milliseconds."""
        self._bound().ledger.flush()

    def forget(self, flow: inet.Flow) -> bool:
        """Withdraw a verdict on a whole connection, and return whether there was one.

        flow: the flow of one of the connection's packets, in either direction, such as `Packet.flow`. A flow without
            ports, of ICMP for instance, stands for all connections of that protocol between the two addresses.

        From then on the connection's packets are queued again, if the rule matches them. Raises KernelError,
        NotSupportedError if the kernel has no netlink interface to connection tracking (CONFIG_NF_CT_NETLINK),
        ClosedError.
        """
        if not isinstance(flow, inet.Flow):
            raise wrong_type("flow", flow, "an nfnet.inet.Flow, such as packet.flow")
        return self._bound().connections.forget(flow) > 0

    def forget_all(self) -> int:
        """Withdraw the verdicts on all whole connections, and return how many there were.

        This includes connections of other queues whose rules use the same bits. Raises the errors of `forget`.
        """
        return self._bound().connections.forget()

    @property
    def pending(self) -> list[Packet]:
        """The packets that were handed out and have no verdict, oldest first."""
        return self._bound().pending()

    @property
    def counters(self) -> QueueCounters:
        """The counts since the queue was opened; after `close`, those of the last time it was open."""
        return self._bound_or_last().counters()

    def stats(self) -> QueueStats:
        """Return the counters, and the kernel's status of this queue and its socket.

        Needs no privilege: values that only root can read are None. Raises ClosedError if the queue was never open.
        """
        return QueueStats(self.counters, *self._kernel_stats())


def apply_policy(policy: str, packet: Packet) -> None:
    """Accept or drop an undecided packet. Another thread can decide it, or close the queue, at the same time."""
    with suppress(AlreadyDecidedError, ClosedError):
        if policy == "accept":
            packet.accept()
        else:
            packet.drop()
