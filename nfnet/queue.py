"""A queue of packets: the kernel asks, the program decides (NFQUEUE)."""

from __future__ import annotations

import errno
import logging
import os
import select
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import islice
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Literal

from .binding import Binding, QueueCounters
from .checks import check, check_choice
from .errors import (
    BusyError,
    BusyReadingError,
    ClosedError,
    KernelError,
    NfnetError,
    NotPermittedError,
    NotSupportedError,
)
from .netns import Netns, call_in
from .packet import Packet
from .protocol import nfqnl
from .protocol.nfqnl import Command, CopyMode, QueueFlag
from .transport import MAX_QUEUE_DATAGRAM, NetlinkSocket, Transport

# A verdict waits for others no longer than this, in seconds, and the time of at most so many calls of the handler.
_MAX_DELAY = 0.001
_MAX_PORTION = 16

_log = logging.getLogger("nfnet")

Handler = Callable[[Packet], object]


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
        self._binding: Binding | None = None
        self._last_binding: Binding | None = None

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
        if not self._reader.locked():  # a loop of the previous binding has still to see that it ended
            self._stopping = False
        self._binding = self._last_binding = binding

    def _connect(self) -> Binding:
        """A new socket for each binding: the old one may still hold packets, whose ids would mean new ones."""
        if self._given_transport is not None:
            return Binding(self.num, self._given_transport, self._on_overrun)

        def connect() -> Binding:
            transport = NetlinkSocket(
                rcvbuf=self._rcvbuf, overruns=self._on_overrun == "raise", datagram=MAX_QUEUE_DATAGRAM
            )
            return Binding(self.num, transport, self._on_overrun, timestamps=self._timestamps)

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
            try:
                transport.request(lambda seq: nfqnl.config(self.num, command=Command.PF_BIND, seq=seq, ack=True), "")
            except KernelError:
                raise error from None
            hint = "Another socket has this queue; /proc/net/netfilter/nfnetlink_queue tells its port id"
            raise BusyError(operation, errno.EPERM, message=error.message, hint=hint) from None
        except NotSupportedError as error:
            names = ", ".join(flag.name or "" for flag in QueueFlag if flag in self._flags)
            lacking = f"This kernel lacks one of the flags asked for: {names}" if names else error.hint
            raise NotSupportedError(operation, error.errno or 0, message=error.message, hint=lacking) from None
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

    def _finish(self, binding: Binding) -> None:
        verdicts = binding.verdicts
        try:
            if self._undecided != "pending":
                verdicts.settle()
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

    def _bound(self) -> Binding:
        if self._binding is None:
            raise ClosedError(f"queue {self.num} is not open: use it in a with statement, or call open()")
        return self._binding

    # --- the loop

    def __iter__(self) -> Generator[Packet, None, None]:
        """The packets, as they come, until `stop` or `close`. Raises as `run`, except what handlers raise."""
        binding = self._bound()
        with closing(self._portions(binding, block=True)) as portions:
            for portion in portions:
                for packet in portion:
                    yield packet
                    if packet._decision is None:
                        self._leave_undecided(binding, packet)
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
            binding.receive()
            return length_hint(binding.ready)

    def _drive(self, handler: Handler, block: bool) -> int:
        binding = self._bound()
        before = binding.taken()
        with closing(self._portions(binding, block)) as portions:
            for portion in portions:
                for packet in portion:
                    try:
                        handler(packet)
                    except Exception:
                        if self._on_error == "raise":
                            raise
                        self._handler_failed(packet)
                    if packet._decision is None:
                        self._leave_undecided(binding, packet)
                    if self._stopping:
                        break
        return binding.taken() - before

    def _portions(self, binding: Binding, block: bool) -> Generator[Iterator[Packet], None, None]:
        """The loop, in portions of packets between which verdicts may leave; `verdicts` has the theory.

        It, and what is done for every packet, is as it is because that was measured. ``binding.ready`` is one
        iterator for all loops, so whatever ends a loop, the next one goes on with the packet after.
        """
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
                binding.account()
                if not block:
                    return

    @contextmanager
    def _reading(self, binding: Binding) -> Iterator[None]:
        if not self._reader.acquire(blocking=False):
            raise BusyReadingError(f"queue {self.num} is being read by another loop; one at a time can")
        try:
            yield
        finally:
            try:
                if not binding.verdicts.closed:
                    binding.verdicts.settle(waiting=length_hint(binding.ready))
            finally:
                self._stopping = False
                self._reader.release()

    def _wait(self, binding: Binding, block: bool) -> bool:
        """Wait until packets are ready; False if none are or will be."""
        while not self._stopping:
            if length_hint(binding.ready):
                return True
            more = binding.receive()
            if length_hint(binding.ready):
                return True
            if not more or not block:
                return False
            with suppress(ClosedError):  # meanwhile, by another thread
                self._wake.wait(binding.transport.fileno())
        return False

    def _handler_failed(self, packet: Packet) -> None:
        _log.exception("queue %d: the handler failed on packet %d", self.num, packet.id)
        if packet._decision is None:
            _apply(self._on_error, packet)

    def _leave_undecided(self, binding: Binding, packet: Packet) -> None:
        if self._undecided == "pending":
            binding.verdicts.defer(packet)
        else:
            _apply(self._undecided, packet)

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
        size: int | None = getattr(self._bound().transport, "rcvbuf", None)
        return size

    @property
    def pending(self) -> list[Packet]:
        """The packets that were handed out and have no verdict, oldest first."""
        return self._bound().pending()

    @property
    def counters(self) -> QueueCounters:
        """What happened since the queue was opened; what had happened by the end, after it was closed."""
        binding = self._binding or self._last_binding
        if binding is None:
            raise ClosedError(f"queue {self.num} was never open")
        return binding.counters()


def _apply(policy: str, packet: Packet) -> None:
    if policy == "accept":
        packet.accept()
    else:
        packet.drop()


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
