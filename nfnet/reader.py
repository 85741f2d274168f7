"""What queues and log groups share: being opened and closed, and the loop that reads."""

from __future__ import annotations

import errno
import logging
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from itertools import islice
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

from .errors import (
    ArgumentError,
    BusyError,
    BusyReadingError,
    ClosedError,
    KernelError,
    NfnetError,
    NotPermittedError,
    NotSupportedError,
    OverrunError,
)
from .locks import RLock
from .netns import Netns, call_in, check_netns
from .protocol import nfqnl
from .protocol.nfqnl import Command
from .recorder import Recorder, current
from .stats import LogRow, QueueRow, process
from .transport import NetlinkSocket, Transport
from .waiter import Waiter

# A verdict waits for others no longer than this, in seconds, and the time of at most so many calls of the handler.
_MAX_DELAY = 0.001
_MAX_PORTION = 16
# Warnings about loss, at most one in so many seconds.
_WARN_EVERY = 10.0

_log = logging.getLogger("nfnet")

T = TypeVar("T")
Self = TypeVar("Self", bound="Reader")  # type: ignore[type-arg]


class Binding(ABC, Generic[T]):
    """A queue or group while it is bound: what came, and is not through yet."""

    drain = 0  # how many datagrams to take from the transport at a time
    what = ""  # what gets lost

    def __init__(self, name: str, transport: Transport, on_overrun: str) -> None:
        self.transport = transport
        self.ready: Iterator[T] = iter(())  # for the handler; one iterator for all loops
        self._process = os.getpid()
        self.reading = False  # by a loop
        self.closing = RLock()
        self.finished = False  # by `Reader.close`
        self.closed = False
        self.ended = False  # no more will come: the end of a recording
        self.recorder: Recorder | None = None
        self.owns_recorder = False
        self._name = name
        self._on_overrun = on_overrun
        self._received: list[bytes] = []  # datagrams
        self._lost = 0
        self._overruns = 0
        self._malformed = 0
        self._warned = -_WARN_EVERY
        self.shared = False  # with another process: one that was forked from this one, or the one it was forked from
        if getattr(transport, "inherit", False):
            _inherited.add(self)

    def before_fork(self) -> None:
        """There will be a child that has the socket too, and reads a part of what comes."""
        self.shared = True

    def after_fork(self) -> None:
        """In a child that has the socket too: threads that were at work are not there."""
        self.reading = False
        self.closing = RLock()

    def is_ours(self) -> bool:
        """Whether this process may use it: the one that bound it, and where children inherit the socket any."""
        return self._process == os.getpid() or getattr(self.transport, "inherit", False)

    def receive(self) -> bool:
        """Take datagrams from the transport and make `ready` of them; False if there will be no more."""
        more = True
        try:
            # Not on top of what an exception left there: signals that come faster than so many can be made ready would
            # have it grow, and nothing would ever be through.
            if not self._received:
                more = self.transport.receive(self._received, self.drain)
        except ClosedError:
            if not self.closed:
                raise
            return False
        except OverrunError:
            self._overruns += 1
            raise
        finally:
            self._make_ready()
        self.ended = not more
        return more

    @abstractmethod
    def _make_ready(self) -> None:
        """Make `ready` of the datagrams."""

    @abstractmethod
    def taken(self) -> int:
        """How many the loop has taken so far."""

    def _count_lost(self, new: int) -> None:
        if self.shared:
            return  # the other process may have read them
        self._lost += new
        self._overruns += self._on_overrun != "raise"  # there it was counted as it was raised
        if self._on_overrun == "count" and monotonic() > self._warned + _WARN_EVERY:
            self._warned = monotonic()
            _log.warning(
                "%s: %d %s were lost, %d so far, because the receive buffer of %s bytes was full",
                self._name,
                new,
                self.what,
                self._lost,
                getattr(self.transport, "rcvbuf", "?"),
            )

    def flush(self) -> None:
        """Send what was collected; called between portions."""

    def settle(self, waiting: int = 0) -> None:
        """A batch is through, or the loop ends with the last ``waiting`` still to come."""

    def release(self) -> None:
        """Let go of the sockets."""
        self.closed = True
        try:
            self.transport.close()
        finally:
            if self.recorder is not None:
                self.transport.tap = None  # type: ignore[attr-defined]  # it may be lent to the next binding
                if self.owns_recorder:
                    self.recorder.close()


_inherited: weakref.WeakSet[Binding[Any]] = weakref.WeakSet()


def _before_fork() -> None:
    for binding in list(_inherited):
        binding.before_fork()


def _after_fork() -> None:
    for binding in list(_inherited):
        binding.after_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)

B = TypeVar("B", bound=Binding)  # type: ignore[type-arg]


class Reader(ABC, Generic[B]):
    """Reads what the kernel sends for one queue or log group, one thread at a time."""

    def __init__(
        self,
        name: str,
        *,
        rcvbuf: int | None,
        overruns: bool,
        datagram: int,
        netns: Netns | None,
        transport: Transport | None,
        record: str | os.PathLike[str] | None,
    ) -> None:
        self._name = name
        self._record = record
        self._rcvbuf = rcvbuf
        self._overruns = overruns
        self._datagram = datagram
        check_netns(netns)
        self._netns = netns
        self._given_transport = transport
        self._waiter = Waiter()
        self._stopping = False
        self._binding: B | None = None
        self._last_binding: B | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name}: {'closed' if self._binding is None else 'open'}>"

    # --- opening and closing

    @abstractmethod
    def _make_binding(self, transport: Transport) -> B: ...

    @abstractmethod
    def _bind_request(self, seq: int) -> bytes: ...

    @abstractmethod
    def _unbind_request(self) -> bytes: ...

    @abstractmethod
    def _flags_asked_for(self) -> list[tuple[str, int]]:
        """Those that a kernel may lack: the name of the option, and the flag."""

    @abstractmethod
    def _flag_request(self, flag: int, seq: int) -> bytes: ...

    @abstractmethod
    def _row(self) -> QueueRow | LogRow | None: ...

    def _finish(self, binding: B) -> None:
        """What is to be done before the binding goes."""

    def open(self) -> None:
        """Bind; from now on packets come here.

        Raises BusyError if another socket has the queue or group, NotPermittedError without CAP_NET_ADMIN,
        NotSupportedError where the kernel lacks it or what was asked for, KernelError, or NfnetError if it is open
        already; ArgumentError if it is to be recorded and its transport cannot be, and OSError if the file cannot be
        written, EBUSY if another is recording to it. What is in that file goes when nothing can be refused any more.
        """
        if self._binding is not None:
            raise NfnetError(f"{self._name} is open already")
        binding = self._connect()
        try:
            self._bind(binding.transport)
            self._waiter.watch(binding.transport.fileno(), inherit=getattr(binding.transport, "inherit", False))
            if binding.recorder is not None:
                binding.recorder.begin()
            last = self._last_binding
            if last is None or not last.reading:  # else a loop of the previous binding has still to see that it ended
                self._stopping = False
                self._waiter.reset()
            self._binding = self._last_binding = binding
            if getattr(binding.transport, "kept", False):  # came before the answer to the request
                self._waiter.wake()
        except BaseException:
            self._binding = None
            binding.release()
            raise

    def _connect(self) -> B:
        """A new socket for each binding: the old one may still hold packets, whose ids would mean new ones."""
        given = self._given_transport
        recorded = self._record is not None or current() is not None
        if recorded and given is not None and not hasattr(given, "tap"):
            raise ArgumentError(f"{self._name} cannot be recorded: its transport, a {type(given).__name__}, has no tap")
        own = None if self._record is None else Recorder(self._record, begin=False)
        recorder = own or current()

        def connect() -> B:
            transport = given
            if transport is None:
                transport = NetlinkSocket(rcvbuf=self._rcvbuf, overruns=self._overruns, datagram=self._datagram)
            return self._make_binding(transport)

        try:
            binding = call_in(self._netns, connect)
        except BaseException:
            if own is not None:
                own.close()
            raise
        if recorder is not None:
            binding.transport.tap = recorder.tap  # type: ignore[attr-defined]
            binding.recorder, binding.owns_recorder = recorder, own is not None
        return binding

    def _bind(self, transport: Transport) -> None:
        operation = f"binding {self._name}"
        try:
            transport.request(self._bind_request, operation)
        except NotPermittedError as error:
            # The same EPERM for "somebody has it" and "you may not". This does nothing but need the privilege, which
            # is asked for before anything else is looked at.
            try:
                transport.request(lambda seq: nfqnl.config(0, command=Command.PF_BIND, seq=seq, ack=True), operation)
            except NotPermittedError:
                raise error from None
            except KernelError:
                pass
            raise BusyError(operation, errno.EPERM, reason=f"another socket has it{self._owner()}") from None
        except NotSupportedError as error:
            lacking = [name for name, flag in self._flags_asked_for() if not self._supported(transport, flag)]
            hint = f"This kernel has no support for {' and '.join(lacking)}" if lacking else error.hint
            raise NotSupportedError(operation, error.errno or 0, message=error.message, hint=hint) from None
        except KernelError as error:
            if error.errno != errno.EINVAL:
                raise
            # The request is valid, so this is nfnetlink that knows no such subsystem.
            hint = f"This kernel cannot do that: load the module {self._proc_file}"
            raise NotSupportedError(operation, errno.EINVAL, message=error.message, hint=hint) from None

    def _supported(self, transport: Transport, flag: int) -> bool:
        """Whether the kernel knows a flag; it looks at that before anything else, so this changes nothing."""
        try:
            transport.request(lambda seq: self._flag_request(flag, seq), "")
        except NotSupportedError:
            return False
        except KernelError:  # ENODEV: nothing is bound
            pass
        return True

    def _owner(self) -> str:
        """Who has it, where this process may know."""
        row = self._row()
        return "" if row is None else f": {process(row.port_id, self._netns)}"

    _proc_file: str  # in /proc/net/netfilter, and the name of the kernel's module

    def close(self) -> None:
        """Unbind. May be called twice, and from any thread: a loop that is reading then ends."""
        binding = self._binding
        if binding is None:
            return
        if not binding.is_ours():  # a forked child must not touch what its parent goes on using
            self._let_go(binding)
            return
        with binding.closing:  # two threads may be about it: the socket stays until the first one is through
            if binding.finished:
                return  # by the other one; or this is a signal handler, and the thread will go on with it
            try:
                binding.finished = True
                self.stop()
                try:
                    self._finish(binding)
                finally:
                    # Closing the socket unbinds too, unless a program started without close-on-exec has it as well.
                    with suppress(NfnetError):
                        binding.transport.send(self._unbind_request())
            finally:
                self._let_go(binding)

    def _let_go(self, binding: B) -> None:
        try:
            binding.release()
        finally:
            if self._binding is binding:
                self._binding = None
            self.stop()

    def __enter__(self: Self) -> Self:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _bound(self) -> B:
        binding = self._binding
        if binding is None:
            raise ClosedError(f"{self._name} is not open: use it in a with statement, or call open()")
        if not binding.is_ours():
            raise ClosedError(f"{self._name} was opened by the process that this one was forked from")
        return binding

    def _bound_or_last(self) -> B:
        binding = self._binding or self._last_binding
        if binding is None:
            raise ClosedError(f"{self._name} was never open")
        return binding

    # --- the loop

    def _portions(self, binding: B, block: bool) -> Generator[Iterator[Any], None, None]:
        """The loop, in portions between which verdicts may leave.

        It, and what is done for every packet, is as it is because that was measured. ``binding.ready`` is one
        iterator for all loops, so whatever ends a loop, the next one goes on with the packet after.
        """
        self._check_reading(binding)
        binding.reading = True
        try:
            go_on = True
            while True:  # and no conditions at the ends of these loops: see `locks`
                if not (go_on and self._wait(binding, block)):
                    break
                ready = binding.ready
                left = length_hint(ready)
                size, deadline = 1, monotonic() + _MAX_DELAY
                while True:
                    if left <= 0:
                        break
                    yield islice(ready, size)
                    if self._stopping:
                        return
                    left -= size
                    size, deadline = _pace(binding, size, deadline)
                binding.settle()
                go_on = block
        finally:
            try:
                if not binding.closed:
                    binding.settle(waiting=length_hint(binding.ready))
            finally:
                self._stopping = binding.reading = False
                self._waiter.reset()
                if length_hint(binding.ready):
                    self._waiter.wake()  # the next `process` has something to do

    def _check_reading(self, binding: B) -> None:
        # The caller sets the flag at once: no lock, whose holder an exception may end before it can let go.
        if binding.reading:
            raise BusyReadingError(f"{self._name} is being read by another loop; one at a time can")

    def _wait(self, binding: B, block: bool) -> bool:
        """Wait until something is ready; False if nothing is or will be."""
        while not self._stopping:
            if length_hint(binding.ready):
                return True
            more = binding.receive()
            if length_hint(binding.ready):
                return True
            if not more or not block:
                return False
            if binding.recorder is not None:
                binding.recorder.flush()  # nothing comes for a while: let it be on the disk
            if not self._pause(binding):
                return False
        return False

    def _pause(self, binding: B) -> bool:
        """Wait until something may be there; False to end the loop instead."""
        self._waiter.wait()
        return True

    def _drive(self, handler: Callable[[Any], object], block: bool) -> int:
        """Hand out what comes, and return how many that were."""
        if not callable(handler):
            raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
        binding = self._bound()
        before = binding.taken()
        portions = self._portions(binding, block)
        try:
            for portion in portions:
                self._hand_out(binding, portion, handler)
        finally:
            portions.close()
        return int(binding.taken() - before)

    @abstractmethod
    def _hand_out(self, binding: B, portion: Iterator[Any], handler: Callable[[Any], object]) -> None:
        """Give the handler a portion, until `stop`."""

    def _take(self) -> int:
        """What `process` does without a handler."""
        binding = self._bound()
        self._check_reading(binding)
        binding.reading = True
        try:
            binding.receive()
        finally:
            binding.reading = False
            if length_hint(binding.ready):
                self._waiter.wake()
        return length_hint(binding.ready)

    def stop(self) -> None:
        """End the loop that is reading, or the next one if there is none; from any thread or a signal handler.

        It ends before its next packet. What has been read already waits for the next loop.
        """
        self._stopping = True
        self._waiter.wake()

    def fileno(self) -> int:
        """A file descriptor that polls readable when `process` has something to do. Raises ClosedError.

        It is not the socket's, which would not tell of packets that were read already and not handed out, because a
        handler raised, for instance.
        """
        self._bound()
        return self._waiter.fileno()

    @property
    def rcvbuf(self) -> int | None:
        """The size of the receive buffer that the kernel granted, in bytes; None when there is no socket."""
        size: int | None = getattr(self._bound().transport, "rcvbuf", None)
        return size


def _pace(binding: Binding[Any], size: int, deadline: float) -> tuple[int, float]:
    """Let verdicts leave if it is time, and say how many packets there may be until the next look at the clock.

    While the handler is quick these are ever more: asking the clock costs as much as a verdict.
    """
    if monotonic() <= deadline:
        return min(2 * size, _MAX_PORTION), deadline
    binding.flush()
    return 1, monotonic() + _MAX_DELAY
