"""A queue of packets: the kernel asks, the program decides (NFQUEUE)."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Literal

from .checks import check, check_choice
from .errors import (
    BusyError,
    BusyReadingError,
    ClosedError,
    DecodeError,
    KernelError,
    NfnetError,
    NotPermittedError,
    NotSupportedError,
    OverrunError,
    kernel_error,
)
from .netns import Netns, call_in
from .packet import Packet
from .protocol import netlink, nfqnl
from .protocol.nfnetlink import Subsystem
from .protocol.nfqnl import SUBSYSTEM_BYTE, Command, CopyMode, QueueFlag, Verdict
from .transport import MAX_QUEUE_DATAGRAM, NetlinkSocket, Transport
from .verdicts import Verdicts

# So many packets are taken from the kernel before the first of them goes to the handler. Measured: 64 costs 7 % more,
# 1024 gains nothing.
_DRAIN = 256
# A verdict waits for others no longer than this, in seconds, and the time of at most so many calls of the handler.
_MAX_DELAY = 0.001
_MAX_PORTION = 16
# Warnings about loss, at most one in so many seconds.
_WARN_EVERY = 10.0
_SO_TIMESTAMP = 29  # of include/uapi/asm-generic/socket.h; Python does not name it

_END = sys.maxsize  # ``list[_END:] = more`` appends

_log = logging.getLogger("nfnet")

Handler = Callable[[Packet], object]


@dataclass(frozen=True)
class QueueCounters:
    """What happened since the queue was opened, in packets.

    ``received == accepted + dropped + repeated + requeued + pending`` at any moment when nothing is in flight in
    another thread. Verdicts are counted as they leave; STOP counts as accepted. ``pending`` packets have no verdict
    yet: they wait for their turn, or their handler left them undecided. ``lost`` are gaps in the packet ids: packets
    that the kernel could not deliver because the receive buffer was full (dropped, or accepted if the queue is
    ``fail_open``); ``overruns`` says how often that was noticed. ``refused`` are the errors with which the kernel
    answered verdicts, by errno: ENOENT where packets were gone already, because somebody removed a rule or took an
    interface down. ``malformed`` are datagrams that were no packets of this queue.
    """

    received: int
    accepted: int
    dropped: int
    repeated: int
    requeued: int
    pending: int
    lost: int
    overruns: int
    refused: dict[int, int]
    malformed: int


class Queue:
    """The packets of queue ``num``, one at a time, each to get a verdict.

    A rule sends packets to the queue; see `nfnet.rules.queue`. Entering the context, or `open`, binds the queue;
    leaving it, or `close`, unbinds it. Then the kernel drops what waits, unless ``undecided`` is "accept".

    num: number of the queue, 0 to 65535.
    copy_range: how many bytes of each packet to copy, 1 to 65535; the kernel never copies more than 65,531.
    copy_mode: PACKET; META for no payload at all; with NONE the kernel drops every packet.
    max_len: how many packets may wait for a verdict, 0 to 2^32-1; the kernel's default is 1024.
    rcvbuf: size of the socket's receive buffer in bytes, as the kernel counts, 8 MiB if not given. Outside the
        initial user namespace net.core.rmem_max limits it. What was granted is the attribute ``rcvbuf``.
    fail_open: when the queue or the receive buffer is full, accept packets instead of dropping them.
    gso: take super-packets and packets with unfinished checksums as they are, not cut up and finished.
    conntrack, uid_gid, secctx: ask for the attributes of these names.
    timestamps: make the kernel stamp packets as they arrive, as long as the queue is open.
    on_overrun: what to do when packets were lost: "count" and log a warning now and then, "raise" OverrunError out
        of the loop, or "ignore": count in silence.
    undecided: what becomes of a packet whose handler returns without a verdict: it stays "pending", so that it may
        be decided later, or the queue will "accept" or "drop" it.
    on_error: what becomes of a packet whose handler raises an Exception: "raise" it, the packet staying pending, or
        log it and "accept" or "drop" the packet.
    netns: the network namespace to work in: the name of one in /run/netns, a path, a process id, or an open file.
    transport: where to get packets from, instead of the kernel.

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
    ) -> None:
        self.num = check("queue number", num, 0, 0xFFFF)
        self._copy_range = check("copy_range", copy_range, 1, 0xFFFF)
        self._copy_mode = CopyMode(check("copy_mode", copy_mode, CopyMode.NONE, CopyMode.PACKET))
        self._max_len = None if max_len is None else check("max_len", max_len, 0, 0xFFFFFFFF)
        self._rcvbuf = None if rcvbuf is None else check("rcvbuf", rcvbuf, 1, 0x7FFFFFFF)
        check_choice("on_overrun", on_overrun, ("count", "raise", "ignore"))
        check_choice("undecided", undecided, ("pending", "accept", "drop"))
        check_choice("on_error", on_error, ("raise", "accept", "drop"))
        self._flags = QueueFlag(0)
        for wanted, flag in (
            (fail_open, QueueFlag.FAIL_OPEN),
            (gso, QueueFlag.GSO),
            (conntrack, QueueFlag.CONNTRACK),
            (uid_gid, QueueFlag.UID_GID),
            (secctx, QueueFlag.SECCTX),
        ):
            if wanted:
                self._flags |= flag
        self._on_overrun = on_overrun
        self._undecided = undecided
        self._on_error = on_error
        self._timestamps = timestamps
        self._netns = netns
        self._given_transport = transport
        self._wake = _Wake()
        self._stopping = False
        self._reader = threading.Lock()  # held by the loop
        self._binding: _Binding | None = None
        self._last_binding: _Binding | None = None

    def __repr__(self) -> str:
        return f"<Queue {self.num}: {'closed' if self._binding is None else 'open'}>"

    # --- opening and closing

    def open(self) -> None:
        """Bind the queue: from now on packets wait here.

        Raises BusyError if another socket has it, NotPermittedError without CAP_NET_ADMIN, NotSupportedError where
        the kernel lacks NFQUEUE or what was asked for, KernelError, or NfnetError if it is open already.
        """
        if self._binding is not None:
            raise NfnetError(f"queue {self.num} is open already")
        binding = self._connect()
        try:
            self._bind(binding.transport)
        except BaseException:
            binding.release()
            raise
        self._stopping = False
        self._binding = self._last_binding = binding

    def _connect(self) -> _Binding:
        """A new socket for each binding: the old one may still hold packets, whose ids would mean new ones."""
        if self._given_transport is not None:
            return _Binding(self.num, self._given_transport, None)

        def connect() -> _Binding:
            transport = NetlinkSocket(
                rcvbuf=self._rcvbuf, overruns=self._on_overrun == "raise", datagram=MAX_QUEUE_DATAGRAM
            )
            return _Binding(self.num, transport, _stamping_socket() if self._timestamps else None)

        return connect() if self._netns is None else call_in(self._netns, connect)

    def _bind(self, transport: Transport) -> None:
        operation = f"binding queue {self.num}"
        try:
            transport.request(
                lambda seq: nfqnl.config(
                    self.num,
                    command=Command.BIND,
                    copy_range=self._copy_range,
                    copy_mode=self._copy_mode,
                    max_len=self._max_len,
                    flags=self._flags or None,
                    seq=seq,
                    ack=True,
                ),
                operation,
            )
        except NotPermittedError as error:
            # The same EPERM for "somebody has it" and "you may not". PF_BIND does nothing but need the privilege.
            with suppress(KernelError):
                transport.request(lambda seq: nfqnl.config(self.num, command=Command.PF_BIND, seq=seq, ack=True), "")
                hint = "Another socket has this queue; /proc/net/netfilter/nfnetlink_queue tells its port id"
                raise BusyError(operation, errno.EPERM, message=error.message, hint=hint) from None
            raise
        except NotSupportedError as error:
            names = ", ".join(flag.name or "" for flag in QueueFlag if flag in self._flags)
            hint = f"This kernel lacks one of the flags asked for: {names}" if names else error.hint
            raise NotSupportedError(operation, error.errno or 0, message=error.message, hint=hint) from None
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            # The request is valid, so this is nfnetlink that knows no such subsystem.
            hint = "This kernel has no NFQUEUE: load the module nfnetlink_queue"
            raise NotSupportedError(operation, errno.EINVAL, message=error.message, hint=hint) from None

    def close(self) -> None:
        """Send the verdicts given so far and unbind the queue; the kernel drops what still waits.

        With ``undecided="accept"`` it accepts it. May be called twice, and from any thread: a loop that reads the
        queue then ends. Verdicts on its packets raise ClosedError from now on.
        """
        binding, self._binding = self._binding, None
        if binding is None:
            return
        try:
            if binding.process == os.getpid():  # a forked child must not touch what its parent goes on using
                self._finish(binding)
        finally:
            binding.release()
            self.stop()

    def _finish(self, binding: _Binding) -> None:
        verdicts = binding.verdicts
        try:
            if self._undecided != "pending":
                for packet in list(verdicts.pending.values()):
                    _apply(self._undecided, packet)
            verdicts.close()
            if self._undecided == "accept":
                verdicts.accept_rest(binding.last_id)
        finally:
            # Closing the socket unbinds as well, unless a program that was started without close-on-exec has it too.
            with suppress(NfnetError):
                binding.transport.send(nfqnl.config(self.num, command=Command.UNBIND))

    def __enter__(self) -> Queue:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _bound(self) -> _Binding:
        if self._binding is None:
            raise ClosedError(f"queue {self.num} is not open: use it in a with statement, or call open()")
        return self._binding

    # --- the loop

    def __iter__(self) -> Generator[Packet, None, None]:
        """The packets, as they come, until `stop` or `close`. Raises as `run`, except what handlers raise."""
        with closing(self._portions(block=True)) as portions:
            for portion in portions:
                for packet in portion:
                    yield packet
                    if packet._decision is None:
                        self._leave_undecided(packet)
                    if self._stopping:
                        break

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
        if handler is not None:
            return self._drive(handler, block=False)
        binding = self._bound()
        with self._reading(binding):
            self._receive(binding)
            return length_hint(binding.ready)

    def _drive(self, handler: Handler, block: bool) -> int:
        count = 0
        with closing(self._portions(block)) as portions:
            for portion in portions:
                for packet in portion:
                    try:
                        handler(packet)
                    except Exception:
                        if self._on_error == "raise":
                            raise
                        self._handler_failed(packet)
                    if packet._decision is None:
                        self._leave_undecided(packet)
                    count += 1
                    if self._stopping:
                        break
        return count

    def _portions(self, block: bool) -> Generator[Iterator[Packet], None, None]:
        """The loop, in portions of packets between which verdicts may leave; `verdicts` has the theory.

        It, and what is done for every packet, is as it is because that was measured. ``binding.ready`` is one
        iterator for all loops, so whatever ends a loop, the next one goes on with the packet after.
        """
        binding = self._bound()
        with self._reading(binding):
            while self._wait(binding, block):
                ready = binding.ready
                left = length_hint(ready)
                size, deadline = 1, monotonic() + _MAX_DELAY
                while left > 0:
                    yield islice(ready, size)
                    if self._stopping:
                        return
                    left -= size
                    # The clock is asked ever less often while the handler is quick: asking costs as much as a verdict.
                    if monotonic() > deadline:
                        binding.verdicts.flush()
                        size, deadline = 1, monotonic() + _MAX_DELAY
                    elif size < _MAX_PORTION:
                        size *= 2
                binding.verdicts.settle()
                self._account(binding)
                if not block:
                    return

    @contextmanager
    def _reading(self, binding: _Binding) -> Iterator[None]:
        if not self._reader.acquire(blocking=False):
            raise BusyReadingError(f"queue {self.num} is being read by another loop; one at a time can")
        try:
            yield
        finally:
            self._stopping = False
            self._reader.release()
            if not binding.verdicts.closed:
                binding.verdicts.settle(waiting=length_hint(binding.ready))

    def _wait(self, binding: _Binding, block: bool) -> bool:
        """Wait until packets are ready; False if none are or will be."""
        while not self._stopping:
            if length_hint(binding.ready):
                return True
            more = self._receive(binding)
            if length_hint(binding.ready):
                return True
            if not more or not block:
                return False
            with suppress(ClosedError):  # meanwhile, by another thread
                self._wake.wait(binding.transport.fileno())
        return False

    def _receive(self, binding: _Binding) -> bool:
        """Take datagrams from the transport and make packets of them; False if there will be no more."""
        try:
            more = binding.transport.receive(binding.received, _DRAIN)
        except ClosedError:
            return False
        except OverrunError:
            binding.overruns += 1
            raise
        finally:
            self._make_packets(binding)
        return more

    def _make_packets(self, binding: _Binding) -> None:
        verdicts = binding.verdicts
        collect = verdicts.decided.append
        byte, subsystem, trusted = SUBSYSTEM_BYTE, Subsystem.QUEUE, binding.transport.trusted
        ready = list(binding.ready)
        new: list[Packet] = []
        problem: NfnetError | None = None
        for raw in binding.received:
            if not trusted or raw[byte] != subsystem:
                try:
                    if (whole := self._look_into(binding, raw)) is None:
                        continue
                    raw = whole
                except NfnetError as error:  # the packets behind it come first
                    problem = problem or error
                    continue
            packet = Packet()
            packet.raw = raw
            packet._decision = packet._layout = None
            packet._decide = collect
            new.append(packet)
        if new:
            new[-1]._decide = verdicts.decide_now  # nothing waits behind it: why should its verdict?
        received: list[bytes] = []
        iterator = iter(ready + new)
        # One statement without a call: no signal handler can raise in the midst of it, so no packet is lost or there
        # twice.
        binding.received, binding.ready, verdicts.at_hand[_END:] = received, iterator, new
        if new:
            step = (new[-1].id - binding.last_id) & 0xFFFFFFFF
            binding.last_id = new[-1].id
            if step < 0x80000000:  # else it went back: recordings, one behind the other
                binding.issued += step
        if problem is not None:
            raise problem

    def _look_into(self, binding: _Binding, message: bytes) -> bytes | None:
        """A datagram that is no packet for sure: the packet that it is after all, or None if it was dealt with."""
        try:
            if not netlink.is_answer(message):
                return nfqnl.normalized(message, self.num)
            answer = netlink.parse_answer(message)
        except DecodeError:
            binding.malformed += 1
            raise
        if answer.errno and answer.type in (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH):
            binding.refused[answer.errno] = binding.refused.get(answer.errno, 0) + 1
            if answer.errno != errno.ENOENT:  # that one is no surprise: see QueueCounters
                raise kernel_error(f"deciding packets of queue {self.num}", answer.errno, message=answer.message)
        return None

    def _handler_failed(self, packet: Packet) -> None:
        _log.exception("queue %d: the handler failed on packet %d", self.num, packet.id)
        if packet._decision is None:
            _apply(self._on_error, packet)

    def _leave_undecided(self, packet: Packet) -> None:
        if self._undecided != "pending":
            _apply(self._undecided, packet)
        elif (binding := self._binding) is not None:
            binding.verdicts.defer(packet)

    def _account(self, binding: _Binding) -> None:
        """Count the ids that never came."""
        received = binding.verdicts.received()
        lost = binding.issued - received
        if lost <= binding.lost:
            return
        binding.overruns += self._on_overrun != "raise"  # there it was counted as it was raised
        new, binding.lost = lost - binding.lost, lost
        if self._on_overrun == "count" and monotonic() > binding.warned + _WARN_EVERY:
            binding.warned = monotonic()
            _log.warning(
                "queue %d: %d packets were lost, %d so far, because the receive buffer of %s bytes was full",
                self.num,
                new,
                lost,
                self.rcvbuf,
            )

    def stop(self) -> None:
        """End the loop that reads the queue, or the next one if there is none; from any thread or a signal handler.

        It ends before its next packet. What has been read already waits for the next loop.
        """
        self._stopping = True
        self._wake.set()

    def flush(self) -> None:
        """Send the verdicts given so far, for a handler that is about to block.

        Otherwise they leave when nothing more waits, or after a millisecond, but not while a handler runs.
        """
        self._bound().verdicts.flush()

    # --- state

    def fileno(self) -> int:
        """The socket's file descriptor, readable when packets wait. Raises ClosedError."""
        return self._bound().transport.fileno()

    @property
    def rcvbuf(self) -> int | None:
        """The size of the receive buffer that the kernel granted, in bytes; None when there is no socket."""
        return getattr(self._bound().transport, "rcvbuf", None)

    @property
    def pending(self) -> list[Packet]:
        """The packets that were received and have no verdict, oldest first."""
        verdicts = self._bound().verdicts
        return [packet for packet in (*verdicts.pending.values(), *verdicts.at_hand) if packet._decision is None]

    @property
    def counters(self) -> QueueCounters:
        """What happened since the queue was opened; what had happened by the end, after it was closed."""
        binding = self._binding or self._last_binding
        if binding is None:
            raise ClosedError(f"queue {self.num} was never open")
        counts = binding.verdicts.counts
        received = binding.verdicts.received()
        return QueueCounters(
            received=received,
            accepted=counts[Verdict.ACCEPT] + counts[Verdict.STOP],
            dropped=counts[Verdict.DROP],
            repeated=counts[Verdict.REPEAT],
            requeued=counts[Verdict.QUEUE],
            pending=received - sum(counts.values()),
            lost=binding.lost,
            overruns=binding.overruns,
            refused=dict(binding.refused),
            malformed=binding.malformed,
        )


def _apply(policy: str, packet: Packet) -> None:
    if policy == "accept":
        packet.accept()
    else:
        packet.drop()


class _Binding:
    """What belongs to one time of being bound: ids begin at 1 again with the next."""

    def __init__(self, number: int, transport: Transport, stamping: socket.socket | None) -> None:
        self.transport = transport
        self.verdicts = Verdicts(number, transport)
        self.received: list[bytes] = []  # datagrams
        self.ready: Iterator[Packet] = iter(())  # packets for the handler
        self.process = os.getpid()
        self.last_id = 0
        self.issued = 0  # how many ids the kernel gave, up to the last one seen
        self.lost = 0
        self.overruns = 0
        self.refused: dict[int, int] = {}
        self.malformed = 0
        self.warned = -_WARN_EVERY
        self._stamping = stamping

    def release(self) -> None:
        self.verdicts.closed = True
        self.transport.close()
        if self._stamping is not None:
            self._stamping.close()


class _Wake:
    """Ends a wait, from another thread or a signal handler."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._fd)

    def set(self) -> None:
        os.eventfd_write(self._fd, 1)

    def wait(self, fd: int) -> None:
        """Wait until ``fd`` is readable or somebody calls `set`."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._fd, select.POLLIN)
        poll.poll()
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)


def _stamping_socket() -> socket.socket:
    """A socket that makes the kernel stamp packets as they arrive.

    Stamping costs time, so the kernel does it only while somebody, anywhere on the machine, wants it: a socket with
    this option. Otherwise the timestamp of a queued packet is missing. The socket is never used for anything else.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMP, 1)
    return sock
