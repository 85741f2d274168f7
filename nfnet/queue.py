"""`Queue`: receives the packets that a rule queued, and sends the verdicts of the program (NFQUEUE)."""

from __future__ import annotations

import errno
import logging
import os
import socket
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from functools import partial
from itertools import repeat, starmap
from operator import length_hint
from typing import ClassVar, Literal, TypedDict

from . import inet
from ._arguments import check, check_choice, check_flag, check_result, wrong_type
from ._core.binding import Binding
from ._core.connections import Connections
from ._core.flags import Request, flags_of, optional_requests
from ._core.flusher import Flusher
from ._core.ledger import Ledger
from ._core.reader import MOST_LONE, Reader
from ._io.locks import RLock
from ._io.moves import END
from ._io.native import new_socket
from ._io.netlink_socket import MAX_QUEUE_DATAGRAM, SO_TIMESTAMP
from ._io.transport import Transport
from .errors import AlreadyDecidedError, ArgumentError, ClosedError, DecodeError, NfnetError, kernel_error
from .netns import Netns
from .packet import Packet
from .protocol import netlink, nfqnl
from .protocol.markbits import MarkBits
from .protocol.nfnetlink import Subsystem
from .protocol.nfqnl import PACKET_ID, SUBSYSTEM_BYTE, Command, CopyMode, QueueFlag, Verdict
from .stats import QueueCounters, QueueStats, QueueStatus, find_queue

_QUEUE_SUBSYSTEM = int(Subsystem.QUEUE)
_FEW_PACKETS = 4  # with no more than these, verdicts are not collected: each is sent when it is given
# On newer kernels (6.12.117, 6.18) a queue holds no more, whatever `max_len` says. Packets beyond that are dropped
# after they got an id. Packets beyond `max_len` get no id, and leave no gap.
_MOST_WAITING = 65536

_log = logging.getLogger("nfnet")

Handler = Callable[[Packet], None]
"""A plain function. One that returns something is refused by type checkers, so that no async function is taken."""


class WorkerOptions(TypedDict, total=False):
    """The options of `Queue` that several queues can have alike: all but ``transport`` and ``record``."""

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
    """All options of `Queue`, for functions that hand them on: ``**options: Unpack[nfnet.QueueOptions]``."""

    transport: Transport | None
    record: str | os.PathLike[str] | None


class QueueBinding(Binding[Packet, QueueStatus]):
    """The state of a queue from `open` to `close`. With each new binding packet ids begin at 1 again."""

    # Measured: 256 costs 3 to 7 % more; 1024 gains nothing, and makes Python's garbage collector run, which it does
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
        self._plain = transport.trusted  # and not shared: packets need no checks
        self._last: bytes | None = None  # the last lone packet, whose id `_issue` has not counted
        self._lone_since_look = 0  # lone packets since the last look for lost ones
        self._counting = RLock()  # `counters` may be asked for in any thread
        self._issued = 0  # how many ids the kernel gave, up to the last one seen
        self._refused: dict[int, int] = {}
        self._stamping = weakref.finalize(self, os.close, _stamping_socket()) if timestamps else None

    def begin(self) -> None:
        self._plain = self.transport.trusted and not self.shared
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
        if self._last is None or self._lone_since_look > MOST_LONE:
            self._account()
        if self.loss.untold:
            self.tell_loss()

    def defer(self, packet: Packet) -> None:
        """Make a packet pending whose handler has returned without a verdict."""
        if self.ledger.lone is not None:
            self.ledger.take_lone()
        self.ledger.defer(packet, length_hint(self.ready))

    def before_fork(self) -> None:
        super().before_fork()
        self.ledger.shared = True
        self._plain = False

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
        if not self._plain:
            yield from super().each(datagrams)
            return
        # What `_make_ready` does, without a call for each packet.
        ledger, origin, send_lone = self.ledger, self.origin, self.ledger.send_lone
        blank = starmap(self._packet_type, repeat(()))
        try:
            # The packet is made before the wait: so nothing is called before the ledger has it, see `moves`.
            for packet, raw in zip(blank, datagrams):
                if raw[SUBSYSTEM_BYTE] == _QUEUE_SUBSYSTEM and ledger.lone is None:
                    packet._origin = origin
                    packet._decision = packet._layout = None
                    packet._on_decided = send_lone
                    packet.raw, self._last, ledger.lone = raw, raw, packet
                    yield packet
                else:
                    self.received[END:] = (raw,)
                    self._make_ready()
                    if not length_hint(self.ready):
                        return
                    yield from self.ready
        except OSError as error:
            self._explain(error)

    def _make_ready(self) -> None:
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
        if lone := len(received) == 1 and self._plain and not undelivered and not ledger.at_hand:
            on_decided = ledger.send_lone
        # It is not worth while to collect a few verdicts.
        elif len(received) > _FEW_PACKETS and self._flusher.watch():
            on_decided = ledger.decided.append
        else:
            on_decided = ledger.send_now
        for raw in received:
            if untrusted or raw[SUBSYSTEM_BYTE] != _QUEUE_SUBSYSTEM:
                try:
                    if (whole := self._look_into(raw, refused)) is None:
                        continue
                    raw = whole
                except NfnetError as error:  # raised when the packets after it are ready
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
            self.received, self.ready, ledger.lone, self._last = nothing, iterator, packet, packet.raw  # one statement
            return
        if new:
            new[-1]._on_decided = ledger.send_now  # no packet follows it, so its verdict need not wait
        self.received, self.ready, ledger.at_hand[END:] = nothing, iterator, new  # one statement
        for error_number in refused:
            self._refused[error_number] = self._refused.get(error_number, 0) + 1
        if new:
            if not self._issued and untrusted:  # a recording may begin anywhere, the kernel begins at 1
                self.last_id = new[0].id - 1
            self._last = None  # a later id is counted instead
            self._issue(new[-1].raw)
        if problem is not None:
            raise problem

    def _issue(self, raw: bytes) -> None:
        """Count the ids up to that of the packet in a message."""
        packet_id = int.from_bytes(raw[PACKET_ID], "big")
        step = (packet_id - self.last_id) & 0xFFFFFFFF
        self.last_id = packet_id
        # The kernel's ids only grow. In a file with several recordings, one after the other, they may go back.
        if step < 0x80000000 or self.transport.trusted:
            self._issued += step

    def _look_into(self, message: bytes, refused: list[int]) -> bytes | None:
        """Return the packet in a datagram that may be something else; None for the answer to a verdict."""
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
            last, self._last, self._lone_since_look = self._last, None, 0
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
        # With fail-open the kernel counts neither, and only root may ask. The socket has a count of its own.
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
        """Return the packets that went to a handler and have no verdict, oldest first."""
        ledger = self.ledger
        given = ledger.at_hand[: len(ledger.at_hand) - length_hint(self.ready)]
        lone = () if ledger.lone is None or length_hint(self.ready) else (ledger.lone,)
        return [packet for packet in (*ledger.pending, *given, *lone) if packet._decision is None]

    def counters(self) -> QueueCounters:
        """Return what happened so far."""
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


class Queue(Reader[QueueBinding, Packet]):
    """Receives the packets of queue ``num``, one at a time, and sends a verdict for each.

    A rule sends packets to the queue; see `nfnet.rules.queue`. Entering the context, or `open`, binds the queue;
    leaving it, or `close`, unbinds it. Then the kernel drops the packets that wait. With ``undecided="accept"`` they
    are accepted, and so are those that arrive until the queue is unbound.

    num: number of the queue, 0 to 65535.
    copy_range: how many bytes of each packet to copy, 1 to 65535; the kernel never copies more than 65,531.
    copy_mode: PACKET; META for no payload at all; with NONE the kernel drops every packet.
    max_len: how many packets may wait for a verdict, 0 to 2^32-1; the kernel's default is 1024. Newer kernels
        (6.12.117, 6.18) take 65,536 at most, whatever is asked for.
    rcvbuf: size of the socket's receive buffer in bytes, as the kernel counts, 8 MiB if not given. Outside the
        initial user namespace net.core.rmem_max limits it, with a warning. What was granted is the attribute
        ``rcvbuf``.
    fail_open: when the queue or the receive buffer is full, accept packets instead of dropping them.
    gso: receive super-packets, and packets with unfinished checksums, as they are. Without it the kernel segments them
        and finishes their checksums first.
    conntrack, uid_gid, secctx: ask for the attributes of these names.
    timestamps: make the kernel stamp packets as they arrive, from shortly after opening until the queue is closed.
    on_overrun: what to do when packets were lost: "count" them and log warnings, now and then and at the end; "raise"
        OverrunError out of the loop; or "ignore": count them without a warning.
    undecided: what to do with a packet whose handler returns without a verdict: keep it "pending", so that it can be
        decided later, or "accept" or "drop" it.
    on_error: what to do when a handler raises an Exception: "raise" it, and keep the packet pending, or log it and
        "accept" or "drop" the packet. An iteration has no handler: it is refused (ArgumentError) unless this is
        "raise".
    bits: the bits of the mark by which rules carry out verdicts on whole connections (see `nfnet.rules.queue`). Needed
        only if the rules were installed with iptables-legacy, because nfnet finds others in nf_tables.
    netns: the network namespace to work in: the name of one in /run/netns, a path, an open file, or
        the file descriptor of one (an int). It must stay open as long as the queue is used.
    transport: where to get packets from, instead of the kernel; see `nfnet.replay`.
    record: the file to which all datagrams between the kernel and this program are recorded; see `nfnet.record`.

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
    """The class of the queue's packets. A subclass of `Queue` may set it to a subclass of `Packet`. Its __init__ is
    called without arguments: the attributes of a packet are set afterwards."""

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
        """Return requests after which the kernel accepts packets without queueing them: the queue is full and fails
        open.

        These are two messages, the flag first. With both in one message the kernel sets the length first, and would
        drop the packets that arrive before it sets the flag.
        """
        return nfqnl.config(self.num, flags=QueueFlag.FAIL_OPEN) + nfqnl.config(self.num, max_len=0)

    def _before_unbinding(self, binding: QueueBinding) -> None:
        ledger = binding.ledger
        if self._undecided == "accept":
            # Packets that arrive between the last verdict and the unbinding would be dropped. No answer is requested,
            # since there may be no room for it in the receive buffer; and the queue is closed also if this fails.
            with suppress(NfnetError):
                binding.transport.send(self._pass_requests())
        if self._undecided != "pending":
            ledger.settle()
            for packet in list(ledger.pending):
                apply_policy(self._undecided, packet)
        ledger.close()
        if self._undecided == "accept":
            ledger.accept_rest(binding.last_id)
        elif binding.transport.trusted and not binding.transport.simulated:  # a socket that nobody else reads from
            self._drop_rest(binding)

    def _drop_rest(self, binding: QueueBinding) -> None:
        """Drop what is left in the queue, which unbinding would do, too.

        But unbinding drops it some milliseconds later, after an RCU grace period. If the rule is gone by then, Linux
        4.14 to 6.10 write a warning about nf_reinject to the kernel's log, and stop with ``panic_on_warn``.

        No packet is decided by that: recordings do not have it, nor do counters, in which these packets are pending. A
        packet that is more than 2^30 ids older than the last one is left to the unbinding.
        """
        newest = (binding.last_id + 0x40000000) & 0xFFFFFFFF  # so that it covers those that were not read
        with suppress(NfnetError):  # if it fails, the packets are dropped a little later
            binding.transport.send_untapped(nfqnl.verdict(self.num, newest, Verdict.DROP, batch=True))

    def run(self, handler: Handler) -> None:
        """Call ``handler(packet)`` for each packet until `stop` or `close`.

        The handler is a plain function that returns nothing; for async functions use `AsyncQueue`. If it raises an
        Exception, ``on_error`` says what happens. Other exceptions, such as KeyboardInterrupt, always end the loop.
        Verdicts given before are sent first, and `run` may be called again.

        Raises TypeError for an async handler, OverrunError (``on_overrun="raise"``), NotPermittedError if the process
        gave up the privilege to decide, DecodeError for a datagram that is no packet, BusyReadingError, ClosedError,
        KernelError.
        """
        self._run(handler)

    def process(self, handler: Handler) -> int:
        """Call the handler for each packet that waits, without blocking, and return how many those were.

        For any event loop: call it when `fileno` is readable, and once after opening. Raises the errors of `run`.
        """
        return self._process(handler)

    def _hand_out(self, binding: QueueBinding, portion: Iterator[Packet], handler: Callable[[Packet], object]) -> None:
        result: object = None
        for packet in portion:
            try:
                result = handler(packet)
            except Exception as error:
                if binding.close_began and isinstance(error, (ClosedError, AlreadyDecidedError)):
                    return  # closed by another thread while the handler was deciding: that ends the loop
                if self._on_error == "raise":
                    raise
                self._handler_failed(packet)
                result = None
            if packet._decision is None:
                check_result(result, self._remedy)
                self._leave_undecided(binding, packet)
            if self._stopping:
                return

    def check_iteration(self) -> None:
        # What the body of a for statement raises never comes here.
        if self._on_error != "raise":
            text = (
                f"on_error={self._on_error!r} is for handlers, and what the body of an iteration raises comes out of it"
            )
            raise ArgumentError(f"{text}: use run(), or on_error='raise' and a try statement in the body")

    def _body_returned(self, binding: QueueBinding, item: Packet) -> None:
        if item._decision is None:
            self._leave_undecided(binding, item)

    def _handler_failed(self, packet: Packet) -> None:
        _log.exception("queue %d: the handler failed on packet %d", self.num, packet.id)
        apply_policy(self._on_error, packet)

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self._undecided == "pending":
            binding.defer(packet)
        else:
            apply_policy(self._undecided, packet)

    def flush(self) -> None:
        """Send the verdicts given so far. Without this call they are sent within two milliseconds."""
        self._bound().ledger.flush()

    def forget(self, flow: inet.Flow) -> bool:
        """Take back a verdict on a whole connection, and return whether there was one.

        flow: the flow of one of the connection's packets, in either direction, such as `Packet.flow`. A flow without
            ports, of ICMP for instance, stands for all connections of that protocol between the two addresses.

        From then on the connection's packets are queued again, if the rule matches them. Raises KernelError,
        NotSupportedError if the kernel gives no access to connection tracking (CONFIG_NF_CT_NETLINK), ClosedError.
        """
        if not isinstance(flow, inet.Flow):
            raise wrong_type("flow", flow, "an nfnet.inet.Flow, such as packet.flow")
        return self._bound().connections.forget(flow) > 0

    def forget_all(self) -> int:
        """Take back the verdicts on all whole connections, and return how many there were.

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
        """Return the counters, and what the kernel says of this queue and its socket.

        Needs no privilege: values that only root may read are None. Raises ClosedError if the queue was never open.
        """
        return QueueStats(self.counters, *self._kernel_stats())


def apply_policy(policy: str, packet: Packet) -> None:
    """Accept or drop an undecided packet. Another thread may decide it, or close the queue, at the same time."""
    with suppress(AlreadyDecidedError, ClosedError):
        if policy == "accept":
            packet.accept()
        else:
            packet.drop()


def _stamping_socket() -> int:
    """Return the descriptor of a socket that makes the kernel stamp packets as they arrive.

    Stamping costs time, so the kernel does it only while there is a socket with this option anywhere on the machine.
    Otherwise the timestamp of a queued packet is missing. The socket is not used for anything else.
    """
    sock = new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
    return sock.detach()
