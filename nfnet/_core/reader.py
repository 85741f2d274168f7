"""`Reader`: opening, closing and the loop that reads, for queues and logs."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from operator import length_hint
from time import monotonic
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._arguments import check_handler, wrong_type
from .._caching import lru_cache
from .._io.netlink_socket import DEFAULT_RCVBUF, NetlinkSocket
from .._io.poller import Poller
from .._io.system import check_linux, collect_forgotten
from .._io.transport import SocketStatus, Transport
from .._recording import Recording, current
from ..errors import ArgumentError, BusyError, BusyReadingError, ClosedError, NfnetError, raised_by_program
from ..netns import Netns, call_in, check_netns
from ..stats import LogStatus, QueueStatus, is_ours, process
from .bind_request import bind
from .binding import Arriving, Binding
from .flags import Request

# How many seconds a verdict waits for others at most, and how many further calls of the handler.
_MAX_DELAY = 0.001
_MAX_PORTION = 16
# How many packets are taken one at a time, at most, before the next check whether several wait. A check costs as much
# as a packet.
MOST_LONE = 256

_PAUSE: Iterator[Any] = iter(())

_log = logging.getLogger("nfnet")

B = TypeVar("B", bound=Binding[Any, Any])
T = TypeVar("T")
Self = TypeVar("Self", bound="Reader[Any, Any]")


class Reader(ABC, Generic[B, T]):
    """Reads the packets or messages of one queue or log group, in one thread at a time."""

    def __init__(
        self,
        what: str,
        number: int,
        *,
        rcvbuf: int | None,
        overruns: bool,
        datagram: int,
        netns: Netns | None,
        transport: Transport | None,
        record: str | os.PathLike[str] | None,
    ) -> None:
        self._name = f"{what} {number}"
        self._resource = number
        self._record = record
        self._rcvbuf = rcvbuf
        self._overruns = overruns
        self._datagram = datagram
        check_netns(netns)
        self._netns = netns
        if transport is not None and not isinstance(transport, Transport):
            raise wrong_type("transport", transport, "an nfnet.Transport")
        self._given_transport = transport
        self._poller: Poller | None = None  # created by the first `fileno`: most loops wait for the socket itself
        self._stopping = False
        self._binding: B | None = None
        self._last_binding: B | None = None

    # --- what differs

    @abstractmethod
    def _make_binding(self, transport: Transport) -> B: ...

    @abstractmethod
    def _bind_request(self, seq: int) -> bytes: ...

    @abstractmethod
    def _unbind_request(self) -> bytes: ...

    @abstractmethod
    def _flag_requests(self) -> Iterator[tuple[str, Request]]:
        """Return the requested options that a kernel may lack, each with a request for this option alone."""

    @abstractmethod
    def _status(self) -> QueueStatus | LogStatus | None: ...

    _module: str
    """The name of the kernel module, and of its file in /proc/net/netfilter."""

    _remedy: str
    """The end of the error message for an async handler: what to use instead."""

    def _before_unbinding(self, binding: B) -> None:
        """Prepare for unbinding; called by `close`."""

    @abstractmethod
    def _hand_out(self, binding: B, portion: Iterable[T], handler: Callable[[T], object]) -> None:
        """Call the handler for each item of a portion, until `stop`."""

    def _hand_out_arriving(self, binding: B, arriving: Arriving[T], handler: Callable[[T], object]) -> None:
        """Call the handler for each item as it arrives, until `stop`."""
        self._hand_out(binding, arriving, handler)

    def check_iteration(self) -> None:
        """Raise ArgumentError if an option was given that cannot apply to an iteration."""

    def _body_returned(self, binding: B, item: T) -> None:
        """Handle an item after the body of an iteration has finished with it."""

    def __repr__(self) -> str:
        binding = self._binding
        state = "closed" if binding is None else f"open, {binding.count_waiting()} waiting"
        return f"<{type(self).__name__} {self._resource}: {state}>"

    # --- opening and closing

    def open(self) -> None:
        """Bind to the queue or group: from now on the kernel sends its packets to this program.

        Raises BusyError if another socket owns the queue or group, NotPermittedError without CAP_NET_ADMIN,
        NotSupportedError if the kernel does not support queues, groups or a requested option, another KernelError, or
        NfnetError if this object is open already. With ``record``: raises ArgumentError if the transport cannot be
        recorded, OSError if the file cannot be written (EBUSY: another recording is writing to it). The file's old
        contents are removed only when opening can no longer fail.
        """
        if self._binding is not None:
            raise NfnetError(f"{self._name} is open already")
        last = self._last_binding
        if last is not None and last.reading:
            collect_forgotten()  # for the look at it in `_open`
        try:
            self._open()
        except BusyError:
            if self._given_transport is not None or not collect_forgotten():
                raise
            self._open()  # who had it was forgotten

    def _open(self) -> None:
        binding = self._connect()
        transport = binding.transport
        try:
            bind(
                transport,
                self._name,
                self._bind_request,
                module=self._module,
                flags=self._flag_requests(),
                owner=self._owner,
            )
            if self._poller is not None:
                self._watch(self._poller, transport)
            if binding.recorder is not None:
                binding.recorder.begin()
            last = self._last_binding
            if last is None or not last.reading:  # otherwise `_stopping` must still end a loop of the previous binding
                self._stopping = False
            self._binding = self._last_binding = binding
        except BaseException:
            self._binding = None
            binding.release()
            raise

    def _connect(self) -> B:
        """Return a new binding with a new socket; an old socket may contain packets whose ids would be ambiguous."""
        given = self._given_transport
        if given is None:
            check_linux(f"opening {self._name}")  # before there is a file
        if (self._record is not None or current() is not None) and given is not None and not given.recordable:
            raise ArgumentError(f"{self._name} cannot be recorded: its transport, a {type(given).__name__}, cannot be")
        own: Recording | None = None
        if self._record is not None:
            from ..captures._recorder import Recorder  # here: it takes long to import, and few programs record

            own = Recorder(self._record, begin=False)
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
        if given is None and (granted := binding.transport.rcvbuf) is not None:
            _check_buffer(DEFAULT_RCVBUF if self._rcvbuf is None else self._rcvbuf, granted)
        if recorder is not None:
            binding.transport.tap = recorder.tap
            binding.recorder, binding.owns_recorder = recorder, own is not None
        return binding

    def _owner(self) -> tuple[str, str | None]:
        """Return a description of the owner of the queue or group, as far as this process can see it, and a remedy."""
        status = self._status()
        if status is None:
            return "another socket has it", None
        if is_ours(status.port_id, self._netns):
            return "another socket of this process has it", "Close that one first, or use another number"
        return f"another socket has it: {process(status.port_id, self._netns)}", None

    def close(self) -> None:
        """Unbind. A loop that is reading ends. Can be called twice, and from any thread.

        If a signal handler raises an exception during the call, call it again.
        """
        binding = self._binding
        if binding is None:
            return
        if not binding.is_ours():  # a forked child must not close what its parent still uses
            self._release(binding)
            return
        with binding.close_lock:  # if two threads close, the second waits until the first has finished
            if self._binding is not binding or binding.close_running:
                return  # the other thread has finished; or this is a signal handler, and the interrupted call will
            binding.close_running = True
            try:
                binding.close_began = True
                self.stop()
                try:
                    binding.finish_counting()
                    self._before_unbinding(binding)
                finally:
                    # Closing the socket unbinds, too, unless a program started without close-on-exec has inherited it.
                    with suppress(NfnetError):
                        binding.transport.send(self._unbind_request())
            finally:
                try:
                    self._release(binding)
                finally:
                    try:
                        pass
                    finally:  # twice: see `locks`
                        binding.close_running = False

    def _release(self, binding: B) -> None:
        try:
            binding.release()
        except BaseException:  # Ctrl-C, perhaps before the call did anything; a second call is harmless
            binding.release()
            raise
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

    def _kernel_stats(self) -> tuple[Any, SocketStatus | None]:
        """Return the kernel's status of the queue or group, and of its socket; None for both if it is not open."""
        binding = self._binding
        return (None, None) if binding is None else (binding.status(), binding.transport.socket_status())

    def _bound_or_last(self) -> B:
        binding = self._binding or self._last_binding
        if binding is None:
            raise ClosedError(f"{self._name} was never open")
        return binding

    # --- the loop

    def __iter__(self) -> Generator[T, None, None]:
        """Yield items until `stop` or `close`. Raises the errors of `run`, except those of handlers."""
        self.check_iteration()
        return self._items(block=True)  # type: ignore[return-value]  # only `pause` makes it give None

    def _items(self, block: bool, pause: bool = False) -> Generator[T | None, None, None]:
        """Yield items as the kernel sends them.

        block: whether to wait for more items; if not, the iteration ends when nothing waits.
        pause: whether to yield None when nothing waits, and then continue with items received meanwhile.
        """
        binding = self._bound()
        portions = self._portions(binding, block, pause=pause)
        try:
            for portion in portions:
                if portion is _PAUSE:
                    yield None
                for item in portion:
                    yield item
                    self._body_returned(binding, item)
                    if self._stopping:
                        break
                    del item  # no condition at the end of a loop: see `locks`
        finally:
            try:
                pass
            finally:  # twice: see `locks`
                portions.close()

    def _drive(self, binding: B, portions: Generator[Iterable[T], None, None], handler: Callable[[T], object]) -> None:
        """Call the handler for every item in these portions."""
        try:
            for portion in portions:
                if isinstance(portion, Arriving):
                    self._hand_out_arriving(binding, portion, handler)
                else:
                    self._hand_out(binding, portion, handler)
                del portion  # no condition at the end of a loop: see `locks`
        finally:
            try:
                pass
            finally:  # twice: see `locks`
                portions.close()

    def _run(self, handler: Callable[[T], object]) -> None:
        """Call the handler for each item, until `stop` or `close`."""
        check_handler(handler, self._remedy)
        binding = self._bound()
        self._drive(binding, self._portions(binding, block=True), handler)

    def _process(self, handler: Callable[[T], object]) -> int:
        """Call the handler for each item that waits, and return the number of these items."""
        check_handler(handler, self._remedy)
        binding = self._bound()
        before = binding.taken()
        self._drive(binding, self._portions(binding, block=False), handler)
        return binding.taken() - before

    def _hand_out_next(self, binding: B, arriving: Iterator[T], handler: Callable[[T], object]) -> None:
        """Call the handler for the next item of `Binding.each`: a step of the loop in `_portions`, for event loops.

        Event loops use it while packets arrive one at a time. The caller has called `Binding.begin` in this thread, and
        nothing is ready.
        """
        self._check_reading(binding)
        binding.reading = True
        try:
            self._hand_out(binding, islice(arriving, 1), handler)
        except BaseException:  # without an exception there is nothing to settle
            if not binding.closed:
                binding.settle(undelivered=length_hint(binding.ready))
            raise
        finally:
            try:
                pass
            finally:  # twice: see `locks`
                self._stopping = binding.reading = False
            if self._poller is not None:
                self._reset_poller(self._poller, binding)

    def _portions(self, binding: B, block: bool, *, pause: bool = False) -> Generator[Iterable[T], None, None]:
        """Yield items in portions; collected verdicts can be sent between portions. This is the main loop.

        This is the hot path: measure before and after changing it. ``binding.ready`` is one iterator for all loops, so
        the next loop continues with the following packet, whatever ended the last one.

        While packets arrive one at a time, the loop waits for each in ``recv``: a portion is the packets that arrive in
        this way, with one system call for each packet and one for its verdict. At intervals the loop checks whether
        several packets wait; if so, it takes many at a time.

        block: whether to wait for more items when all were handed out.
        pause: whether to yield `_PAUSE` when all items were handed out, and then continue with those received
            meanwhile.
        """
        self._check_reading(binding)
        binding.reading = True
        transport = binding.transport
        looks = 1  # the number of packets between two checks
        try:
            binding.begin()
            while True:  # and no conditions at the ends of these loops: see `locks`
                if self._stopping:
                    return
                if not length_hint(binding.ready):
                    binding.receive()
                    if self._stopping:  # set by a signal handler just now
                        return
                found = left = length_hint(binding.ready)
                if left:
                    size, deadline = 1, monotonic() + _MAX_DELAY
                    while True:
                        if left <= 0:
                            break
                        yield islice(binding.ready, size)
                        if self._stopping:
                            return
                        left -= size
                        size, deadline = _pace(binding, size, deadline)
                    binding.settle()
                elif binding.loss.untold:
                    binding.tell_loss()
                if binding.exhausted:
                    return
                if pause:
                    yield _PAUSE
                elif not block:
                    return
                elif found > 1:
                    looks = 1
                elif transport.incoming is None or transport.tap is not None:
                    if not found:
                        self._wait(binding)
                else:
                    transport.blocked = True  # before reading `_stopping`: `stop` sets that, then wakes a blocked loop
                    if self._stopping:
                        return
                    yield Arriving(binding, islice(transport.incoming, looks))
                    transport.blocked = False
                    looks = min(2 * looks, MOST_LONE)
                del found  # no condition at the end of a loop: see `locks`
        finally:
            try:
                transport.stop_waiting()
                if not binding.closed:
                    binding.settle(undelivered=length_hint(binding.ready))
            finally:
                try:
                    pass
                finally:  # twice: see `locks`
                    self._stopping = binding.reading = False
                if self._poller is not None:
                    self._reset_poller(self._poller, binding)

    @staticmethod
    def _reset_poller(poller: Poller, binding: B) -> None:
        poller.reset()
        if length_hint(binding.ready):
            poller.wake()  # the next `process` has items to hand out

    def _check_reading(self, binding: B) -> None:
        # No lock, because an exception could leave it locked: the caller sets `reading` at once.
        if binding.reading and not (collect_forgotten() and not binding.reading):
            raise BusyReadingError(f"{self._name} is being read by another loop; only one at a time can read")

    def _wait(self, binding: B) -> None:
        if binding.recorder is not None:
            binding.recorder.flush()  # the loop is idle, so this is the time to write to the disk
        try:
            poller = self._polling(binding)
            if not self._stopping:
                poller.wait()
        except (ClosedError, OSError) as error:
            # If another thread closed the queue, there is nothing to watch.
            if not binding.closed or (isinstance(error, OSError) and raised_by_program(error)):
                raise

    def fetch(self) -> int:
        """Receive what waits in the socket, without blocking, and return how many items are ready for the next loop.

        No handler is called: the next iteration, `run` or `process` begins with these items, so that many steps of an
        iteration do not block. Raises the errors of `run`, except those of handlers.
        """
        binding = self._bound()
        self._check_reading(binding)
        binding.reading = True
        try:
            binding.receive()
        finally:
            try:
                pass
            finally:  # twice: see `locks`
                binding.reading = False
            if length_hint(binding.ready) and self._poller is not None:
                self._poller.wake()
        return length_hint(binding.ready)

    def stop(self) -> None:
        """End the loop that is reading; if there is none, end the next one at once. Can be called from threads and
        signal handlers.

        The loop ends before its next packet. Packets that were read already wait for the next loop.
        """
        self._stopping = True
        binding = self._binding
        if binding is not None:
            binding.transport.wake()
        if self._poller is not None:
            self._poller.wake()

    def fileno(self) -> int:
        """Return a file descriptor that polls readable when `process` has something to do. Raises ClosedError.

        It is not the descriptor of the socket, which is not readable for packets that were read already but not handed
        out, for instance because a handler raised an exception.
        """
        return self._polling(self._bound()).fileno()

    def _polling(self, binding: B) -> Poller:
        poller = self._poller
        if poller is None:
            poller = Poller()
            self._watch(poller, binding.transport)
            if length_hint(binding.ready) or self._stopping:
                poller.wake()
            self._poller = poller
            if self._stopping:
                poller.wake()
        return poller

    def _watch(self, poller: Poller, transport: Transport) -> None:
        poller.reset()
        poller.watch(transport.fileno(), inherit=transport.inherit)
        if transport.kept:
            poller.wake()

    @property
    def rcvbuf(self) -> int | None:
        """The granted size of the receive buffer, in bytes; None without a socket. Raises ClosedError."""
        return self._bound().transport.rcvbuf


@lru_cache(128)  # one warning for each size, for all queues and logs
def _check_buffer(asked: int, granted: int) -> None:
    """Warn if a receive buffer is smaller than requested."""
    half = asked // 2  # the kernel doubles the requested size
    if granted < 2 * half:
        text = "the receive buffer has %d bytes instead of %d, which in this user namespace takes net.core.rmem_max=%d"
        _log.warning(text, granted, asked, half)


def _pace(binding: Binding[Any, Any], size: int, deadline: float) -> tuple[int, float]:
    """Send verdicts if it is time; return the size of the next portion, after which to read the clock, and a
    deadline.

    While the handler is fast, portions get larger, because reading the clock costs as much as a verdict.
    """
    if monotonic() <= deadline:
        return min(2 * size, _MAX_PORTION), deadline
    binding.flush(slow=size == 1)
    return 1, monotonic() + _MAX_DELAY
