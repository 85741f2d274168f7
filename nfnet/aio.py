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
from .packet import Packet
from .queue import Queue, apply_policy
from .reader import Reader
from .stats import LogCounters, LogStats, QueueCounters, QueueStats

_log = logging.getLogger("nfnet")

_FLUSH_EVERY = 0.001  # seconds: a verdict waits no longer for the body of an iteration

T = TypeVar("T")
R = TypeVar("R", bound=Reader[Any])
Self = TypeVar("Self", bound="_AsyncReader")  # type: ignore[type-arg]


class _Session:
    """What belongs to one time of being open.

    A loop that SystemExit ended leaves coroutines behind that go no further and callbacks that are never called. What
    they have changed here, and may yet change when they are disposed of, must not matter the next time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stopped = False
        self.running = False  # a `run`
        self.wake: asyncio.Future[None] | None = None  # what it, or an iteration, waits for
        self.flushing: asyncio.AbstractEventLoop | None = None  # which will send what was collected
        self.cancelling = False  # the tasks of a `run`

    def running_loop(self) -> asyncio.AbstractEventLoop:
        self.loop = asyncio.get_running_loop()
        return self.loop

    async def woken(self) -> None:
        """Wait for `wake_up`."""
        if self.stopped:
            return
        wake = self.wake = self.running_loop().create_future()
        try:
            await wake
        finally:
            if self.wake is wake:
                self.wake = None

    def wake_up(self) -> None:
        if self.wake is not None and not self.wake.done() and not self.loop.is_closed():
            self.wake.set_result(None)

    def end(self) -> None:
        self.stopped = True
        self.wake_up()


class _AsyncReader(ABC, Generic[R, T]):
    """What `AsyncQueue` and `AsyncLog` share."""

    def __init__(self, reader: R) -> None:
        self._reader = reader
        self._session: _Session | None = None  # the last one, if it is closed

    @abstractmethod
    def _waiting(self) -> Generator[T, None, None]:
        """What waits, without blocking."""

    @abstractmethod
    def _process(self, handler: Callable[[T], object]) -> int:
        """What `process` of the reader does."""

    async def open(self) -> None:
        """Bind. Raises as `Queue.open`."""
        self._reader.open()
        self._session = _Session(asyncio.get_running_loop())

    async def close(self) -> None:
        """Unbind; iterations and `run` end. May be called twice."""
        if self._session is not None:
            self._session.end()
        self._reader.close()

    def stop(self) -> None:
        """End `run` or the iteration before its next item, or the next one if there is none; from the loop's thread."""
        if self._session is not None:
            self._session.end()
        self._reader.stop()

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

    def _opened(self) -> _Session:
        """The session, open or closed. Raises ClosedError if it was never open."""
        if self._session is None:
            self._reader.fileno()  # says so
            raise AssertionError("a reader that is open has a session")
        return self._session

    @contextmanager
    def _reading(self) -> Iterator[_Session]:
        """A `run`, alone."""
        self._reader.fileno()  # says if it is not open
        session = self._opened()
        self._check_alone(session)
        session.running = True
        try:
            yield session
        finally:
            session.running = session.stopped = False

    def _check_alone(self, session: _Session) -> None:
        if session.running or session.wake is not None:
            raise BusyReadingError(f"{self!r} is being read by another task; one at a time can")

    def _may_go_on(self, session: _Session) -> bool:
        return not session.stopped and session is self._session

    async def _run(self, handler: Callable[[T], object]) -> None:
        """`run` with a plain handler."""
        with self._reading() as session:
            while self._may_go_on(session):
                if self._process(handler):
                    await asyncio.sleep(0)
                elif self._is_over():
                    break
                elif self._may_go_on(session):
                    await self._readable(session)

    def _is_over(self) -> bool:
        """Whether nothing will come any more, as at the end of a recording."""
        binding = self._reader._binding
        return binding is not None and binding.ended

    async def _readable(self, session: _Session) -> None:
        """Wait until something may be there, or `_Session.wake_up`."""
        loop, fd = session.running_loop(), self._reader.fileno()
        # Only while nobody reads: it stays readable until somebody does, and the loop would spin.
        loop.add_reader(fd, session.wake_up)
        try:
            await session.woken()
        finally:
            loop.remove_reader(fd)


class _Iteration(AsyncIterator[T]):
    """An iteration. No async generator: when one is left, only the event loop's next turns end it."""

    def __init__(self, owner: _AsyncReader[Any, T]) -> None:
        self._owner = owner
        self._items: Generator[T, None, None] | None = None
        self._item: T | None = None  # in the hands of the body
        self._timer: asyncio.TimerHandle | None = None
        self._session: _Session | None = None

    async def __anext__(self) -> T:
        owner = self._owner
        session = self._session
        if session is None:
            session = self._session = owner._opened()
        while owner._may_go_on(session):
            none = self._items is None
            if self._items is None:
                owner._check_alone(session)
                self._items = owner._waiting()
            try:
                for item in self._items:
                    self._item = item
                    if self._timer is None and owner._has_verdicts:
                        self._set_timer(session)
                    return item
            except BaseException:
                self._end()
                raise
            self._end()
            if none and owner._is_over():
                break
            await (owner._readable(session) if none else asyncio.sleep(0))
        self._end()
        session.stopped = False
        raise StopAsyncIteration

    def _set_timer(self, session: _Session) -> None:
        """Once for all items that wait: it comes only if the body lets the loop go on."""
        loop = session.running_loop()
        # The loop must not hold the iteration, which ends when the program lets go of it.
        self._timer = loop.call_later(_FLUSH_EVERY, _body_waits, weakref.ref(self))

    def _body_waits(self) -> None:
        self._timer = None
        if self._item is not None and self._session is self._owner._session:
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

    in_tasks: QueueBinding | None = None
    """Whose packets those are."""

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self.in_tasks is binding:  # the policy is for when the task has ended
            binding.defer(packet)
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
            if packet._decision is None:
                packet._decide = binding.verdicts.decide_now
            self._reader.flush()

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
        tasks: dict[asyncio.Task[None], Packet] = {}
        errors: list[tuple[Packet, BaseException]] = []

        def ended(task: asyncio.Task[None]) -> None:
            packet = tasks.pop(task)
            if task.cancelled():
                if not session.cancelling:  # the handler did that itself
                    errors.append((packet, asyncio.CancelledError()))
            elif (error := task.exception()) is not None:
                errors.append((packet, error))
            session.wake_up()

        with self._reading() as session:
            loop, binding = session.running_loop(), self._reader._bound()
            self._reader.in_tasks, session.cancelling = binding, False
            try:
                while self._may_go_on(session) and not errors:
                    room = concurrency - len(tasks)
                    started = 0
                    if room > 0:
                        packets = self._waiting()
                        try:
                            for packet in packets:
                                task = _start(loop, self._decide(handler, packet, binding, session))
                                tasks[task] = packet
                                if task.done():
                                    ended(task)
                                else:
                                    task.add_done_callback(ended)
                                started += 1
                                if started >= room or errors or not self._may_go_on(session):
                                    break
                        finally:
                            packets.close()
                    if started:
                        await asyncio.sleep(0)
                    elif room > 0 and self._is_over():
                        break
                    elif room > 0:
                        await self._readable(session)
                    else:
                        await session.woken()
                while tasks and not errors:  # `stop` lets them finish
                    await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
                if errors:
                    raise errors[0][1]
            finally:
                coming_out = sys.exc_info()[1]
                if self._reader.in_tasks is binding:
                    self._reader.in_tasks = None
                session.cancelling = True
                if not loop.is_closed():
                    for task in tasks:
                        task.cancel()
                # GeneratorExit: this is disposed of, as the loop ended before it did, and may not wait any more.
                if tasks and not isinstance(coming_out, GeneratorExit):
                    await asyncio.gather(*tasks, return_exceptions=True)
                for packet, error in errors:
                    if error is not coming_out:
                        text = "queue %d: the handler failed on packet %d, too"
                        _log.error(text, self.num, packet.id, exc_info=error)

    async def _decide(
        self, handler: Callable[[Packet], Any], packet: Packet, binding: QueueBinding, session: _Session
    ) -> None:
        try:
            await handler(packet)
        except (Exception, asyncio.CancelledError) as error:
            if session.cancelling:
                raise
            if binding.finished and isinstance(error, (ClosedError, AlreadyDecidedError)):
                return  # closed while the handler was at work
            if self._reader._on_error == "raise":
                raise
            self._reader._handler_failed(packet)
        if packet.decided is None and self._reader._undecided != "pending":
            apply_policy(self._reader._undecided, packet)

    def _flush(self, session: _Session) -> None:
        session.flushing = None
        if session is self._session and self._reader._binding is not None:
            self._reader.flush()

    def _flush_soon(self) -> bool:
        """Whether a verdict on a pending packet can wait for others: till the loop has been through once."""
        session = self._opened()
        try:
            # In a task of this loop, which goes on with what is scheduled when the task waits; not in a signal handler.
            if asyncio.get_running_loop() is not session.loop or asyncio.current_task() is None:
                return False
        except RuntimeError:  # no loop runs in this thread
            return False
        if session.flushing is not session.loop:
            session.flushing = session.loop
            session.loop.call_soon(self._flush, session)
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
