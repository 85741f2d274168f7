"""Queues and logs in a program with an event loop (asyncio, uvloop): the same drain, woken by the loop.

    async with nfnet.AsyncQueue(1) as queue:
        async for packet in queue:
            packet.accept()

For other loops, trio's, say: wait until `Queue.fileno` is readable, and call `Queue.process`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from .binding import QueueBinding
from .checks import check
from .errors import AlreadyDecidedError, BusyReadingError, ClosedError
from .log import Log, LogMessage
from .loss import QUIET
from .packet import Packet
from .queue import Queue, apply_policy
from .reader import Reader
from .stats import LogCounters, LogStats, QueueCounters, QueueStats

_log = logging.getLogger("nfnet")

_FLUSH_EVERY = 0.001  # seconds: a verdict waits no longer for the body of an iteration

T = TypeVar("T")
R = TypeVar("R", bound=Reader[Any])
Self = TypeVar("Self", bound="_AsyncReader")  # type: ignore[type-arg]


class _AsyncReader(ABC, Generic[R, T]):
    """What `AsyncQueue` and `AsyncLog` share."""

    def __init__(self, reader: R) -> None:
        self._reader = reader
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Future[None] | None = None
        self._stopped = False
        self._running = False  # a `run`
        self._opened = 0  # how often: a loop belongs to one time

    @abstractmethod
    def _waiting(self) -> Generator[T, None, None]:
        """What waits, without blocking."""

    @abstractmethod
    def _process(self, handler: Callable[[T], object]) -> int:
        """What `process` of the reader does."""

    async def open(self) -> None:
        """Bind. Raises as `Queue.open`."""
        self._reader.open()
        self._stopped = False
        self._opened += 1
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Unbind; iterations and `run` end. May be called twice."""
        self._end()
        self._reader.close()

    def stop(self) -> None:
        """End `run` or the iteration before its next item, or the next one if there is none; from the loop's thread."""
        self._end()
        self._reader.stop()

    def _end(self) -> None:
        self._stopped = True
        self._wake_up()

    async def __aenter__(self: Self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def fileno(self) -> int:
        """As `Queue.fileno`."""
        return self._reader.fileno()

    @property
    def rcvbuf(self) -> int | None:
        """As `Queue.rcvbuf`."""
        return self._reader.rcvbuf

    def __aiter__(self) -> AsyncIterator[T]:
        """What comes, until `stop` or `close`; what is left when the iteration is left is for the next one.

        Raises as `Queue.run`.
        """
        return _Iteration(self)

    _has_verdicts = False

    def _body_waits(self, item: T) -> None:
        """The body of an iteration waits for something: see to it that no verdict has to wait, too."""

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._reader.fileno()  # says that it is not open
        loop = asyncio.get_running_loop()
        self._loop = loop
        return loop

    @contextmanager
    def _reading(self) -> Iterator[Callable[[], bool]]:
        """A `run`, alone; gives what tells whether it may go on."""
        self._reader.fileno()  # says if it is not open
        self._check_alone()
        self._running, opened = True, self._opened
        try:
            yield lambda: not self._stopped and opened == self._opened
        finally:
            self._running = False
            if opened == self._opened:
                self._stopped = False

    def _check_alone(self) -> None:
        if self._running or self._wake is not None:
            raise BusyReadingError(f"{self!r} is being read by another task; one at a time can")

    async def _run(self, handler: Callable[[T], object]) -> None:
        """`run` with a plain handler."""
        with self._reading() as may_go_on:
            while may_go_on():
                if self._process(handler):
                    await asyncio.sleep(0)
                elif self._is_over():
                    break
                elif may_go_on():
                    await self._readable()

    def _is_over(self) -> bool:
        """Whether nothing will come any more, as at the end of a recording."""
        binding = self._reader._binding
        return binding is not None and binding.ended

    async def _readable(self) -> None:
        """Wait until something may be there, or `_wake_up`."""
        loop, fd = self._running_loop(), self._reader.fileno()
        binding = self._reader._binding
        if binding is not None and binding.loss.untold:
            loop.call_later(QUIET, binding.tell_loss)
        # Only while nobody reads: it stays readable until somebody does, and the loop would spin.
        loop.add_reader(fd, self._wake_up)
        try:
            await self._woken()
        finally:
            loop.remove_reader(fd)

    async def _woken(self) -> None:
        """Wait for `_wake_up`."""
        if self._stopped:
            return
        wake = self._wake = self._running_loop().create_future()
        try:
            await wake
        finally:
            if self._wake is wake:
                self._wake = None

    def _wake_up(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Iteration(AsyncIterator[T]):
    """An iteration. No async generator: when one is left, only the event loop's next turns end it."""

    def __init__(self, owner: _AsyncReader[Any, T]) -> None:
        self._owner = owner
        self._items: Generator[T, None, None] | None = None
        self._item: T | None = None  # in the hands of the body
        self._timer: asyncio.TimerHandle | None = None
        self._opened: int | None = None

    async def __anext__(self) -> T:
        owner = self._owner
        if self._opened is None:
            self._opened = owner._opened
        while not owner._stopped and self._opened == owner._opened:
            none = self._items is None
            if self._items is None:
                owner._check_alone()
                self._items = owner._waiting()
            try:
                for item in self._items:
                    self._item = item
                    if self._timer is None and owner._has_verdicts:
                        self._set_timer()
                    return item
            except BaseException:
                self._end()
                raise
            self._end()
            if none and owner._is_over():
                break
            await (owner._readable() if none else asyncio.sleep(0))
        self._end()
        if self._opened == owner._opened:
            owner._stopped = False
        raise StopAsyncIteration

    def _set_timer(self) -> None:
        """Once for all items that wait: it comes only if the body lets the loop go on."""
        loop = self._owner._running_loop()
        # The loop must not hold the iteration, which ends when the program lets go of it.
        self._timer = loop.call_later(_FLUSH_EVERY, _body_waits, weakref.ref(self))

    def _body_waits(self) -> None:
        self._timer = None
        if self._item is not None and self._opened == self._owner._opened:
            self._owner._body_waits(self._item)

    def _end(self) -> None:
        timer, items = self._timer, self._items
        self._timer = self._items = self._item = None
        if timer is not None:
            timer.cancel()
        if items is not None:
            items.close()

    def __del__(self) -> None:
        self._end()


def _body_waits(reference: weakref.ref[_Iteration[Any]]) -> None:
    if (iteration := reference()) is not None:
        iteration._body_waits()


class _Queue(Queue):
    """A queue whose packets may be in the hands of tasks."""

    in_tasks = False

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self.in_tasks:  # the policy is for when the task has ended
            binding.verdicts.defer(packet)
        else:
            super()._leave_undecided(binding, packet)


AsyncHandler = Callable[[Packet], Awaitable[object]]


class AsyncQueue(_AsyncReader[_Queue, Packet]):
    """A `Queue` for asyncio: the same arguments, attributes and errors.

        async with nfnet.AsyncQueue(1) as queue:
            await queue.run(handler)                # handler(packet), plain or async

    Packets may be decided at any time while the queue is open; verdicts leave together. One task at a time may read.
    """

    def __init__(self, num: int, **options: Any) -> None:
        super().__init__(_Queue(num, **options))
        self._flushing = False
        self._cancelling = False

    def __repr__(self) -> str:
        return repr(self._reader).replace("_Queue", "AsyncQueue")

    async def open(self) -> None:
        """Bind. Raises as `Queue.open`."""
        await super().open()
        self._reader._bound().verdicts.may_wait = self._flush_soon

    _has_verdicts = True

    def _body_waits(self, packet: Packet) -> None:
        if (binding := self._reader._binding) is not None:
            # Those given so far leave now; that of this packet, if it has none yet, by itself. So nothing need tick.
            packet._decide = binding.verdicts.decide_now
            self._flush()

    def _waiting(self) -> Generator[Packet, None, None]:
        return self._reader._packets(block=False)

    def _process(self, handler: Callable[[Packet], object]) -> int:
        return self._reader.process(handler)

    async def run(self, handler: AsyncHandler | Callable[[Packet], object], concurrency: int = 100) -> None:
        """Call ``handler(packet)`` for each packet until `stop` or `close`.

        An async handler runs in a task of its own for each packet, so many at a time, and others wait in the queue; a
        plain one must not block. What a handler raises is treated as ``on_error`` says, and ``undecided`` says what
        becomes of packets that it leaves undecided. Where several raise, the first error comes out, and the others are
        logged.

        After `stop` tasks that still run may finish. When this is cancelled, or raises, they are cancelled. No packet
        is lost: those in their hands stay pending, those that were not handed out are for the next `run` or iteration.
        Raises as `Queue.run`.
        """
        check("concurrency", concurrency, 1, 1 << 30)
        if _is_async(handler):
            await self._run_tasks(handler, concurrency)
        else:
            await self._run(handler)

    async def _run_tasks(self, handler: Callable[[Packet], Any], concurrency: int) -> None:
        loop = self._running_loop()
        tasks: dict[asyncio.Task[None], Packet] = {}
        errors: list[tuple[Packet, BaseException]] = []

        def ended(task: asyncio.Task[None]) -> None:
            packet = tasks.pop(task)
            if task.cancelled():
                if not self._cancelling:  # the handler did that itself
                    errors.append((packet, asyncio.CancelledError()))
            elif (error := task.exception()) is not None:
                errors.append((packet, error))
            self._wake_up()

        with self._reading() as may_go_on:
            self._reader.in_tasks, self._cancelling = True, False
            try:
                while may_go_on() and not errors:
                    room = concurrency - len(tasks)
                    started = 0
                    if room > 0:
                        binding = self._reader._bound()
                        packets = self._waiting()
                        try:
                            for packet in packets:
                                task = _start(loop, self._decide(handler, packet, binding))
                                tasks[task] = packet
                                if task.done():
                                    ended(task)
                                else:
                                    task.add_done_callback(ended)
                                started += 1
                                if started >= room or errors or not may_go_on():
                                    break
                        finally:
                            packets.close()
                    if started:
                        await asyncio.sleep(0)
                    elif room > 0 and self._is_over():
                        break
                    elif room > 0:
                        await self._readable()
                    else:
                        await self._woken()
                while tasks and not errors:  # `stop` lets them finish
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if errors:
                    raise errors[0][1]
            finally:
                coming_out = sys.exc_info()[1]
                self._reader.in_tasks = False
                self._cancelling = True
                for task in tasks:
                    task.cancel()
                if tasks:
                    await asyncio.gather(*tasks, return_exceptions=True)
                for packet, error in errors:
                    if error is not coming_out:
                        text = "queue %d: the handler failed on packet %d, too"
                        _log.error(text, self.num, packet.id, exc_info=error)

    async def _decide(self, handler: Callable[[Packet], Any], packet: Packet, binding: QueueBinding) -> None:
        try:
            await handler(packet)
        except (Exception, asyncio.CancelledError) as error:
            if self._cancelling:
                raise
            if binding.finished and isinstance(error, (ClosedError, AlreadyDecidedError)):
                return  # closed while the handler was at work
            if self._reader._on_error == "raise":
                raise
            self._reader._handler_failed(packet)
        if packet.decided is None and self._reader._undecided != "pending":
            apply_policy(self._reader._undecided, packet)

    def _flush(self) -> None:
        self._flushing = False
        if self._reader._binding is not None:
            self._reader.flush()

    def _flush_soon(self) -> bool:
        """Whether a verdict on a pending packet can wait for others: till the loop has been through once."""
        try:
            # In a task of this loop, which goes on with what is scheduled when the task waits; not in a signal handler.
            if asyncio.get_running_loop() is not self._loop or asyncio.current_task() is None:
                return False
        except RuntimeError:  # no loop runs in this thread
            return False
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)
        return True

    def flush(self) -> None:
        """As `Queue.flush`."""
        self._reader.flush()

    @property
    def num(self) -> int:
        """The number of the queue."""
        return self._reader.num

    @property
    def pending(self) -> list[Packet]:
        """As `Queue.pending`."""
        return self._reader.pending

    @property
    def counters(self) -> QueueCounters:
        """As `Queue.counters`."""
        return self._reader.counters

    def stats(self) -> QueueStats:
        """As `Queue.stats`."""
        return self._reader.stats()


def _is_async(handler: Any) -> bool:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _start(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task; where Python can (3.12), one that begins at once, and costs little if it ends without waiting."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


class AsyncLog(_AsyncReader[Log, LogMessage]):
    """A `Log` for asyncio: the same arguments, attributes and errors.

    async with nfnet.AsyncLog(5) as log:
        async for message in log:
            print(message.prefix)
    """

    def __init__(self, group: int, **options: Any) -> None:
        super().__init__(Log(group, **options))

    def __repr__(self) -> str:
        return "<Async" + repr(self._reader)[1:]

    def _waiting(self) -> Generator[LogMessage, None, None]:
        return self._reader._messages(block=False)

    def _process(self, handler: Callable[[LogMessage], object]) -> int:
        return self._reader.process(handler)

    async def run(self, handler: Callable[[LogMessage], Any]) -> None:
        """Call ``handler(message)`` for each message until `stop` or `close`; what it raises comes out.

        An async handler is awaited, one message after the other. Raises as `Log.run`.
        """
        if not _is_async(handler):
            await self._run(handler)
            return
        async for message in self:
            await handler(message)

    @property
    def group(self) -> int:
        """The number of the group."""
        return self._reader.group

    @property
    def counters(self) -> LogCounters:
        """As `Log.counters`."""
        return self._reader.counters

    def stats(self) -> LogStats:
        """As `Log.stats`."""
        return self._reader.stats()
