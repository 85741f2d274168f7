"""Queues and logs for programs with an event loop (asyncio, uvloop), with the same arguments and methods.

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
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeGuard

from . import inet
from ._arguments import check
from ._core.async_reader import AsyncReader, Session
from ._queue_binding import QueueBinding
from ._typing import Unpack
from .errors import ClosedError
from .log import Handler as LogHandler
from .log import Log, LogMessage, LogOptions
from .packet import Packet
from .queue import Handler, Queue, QueueOptions, apply_policy
from .stats import LogCounters, LogStats, QueueCounters, QueueStats

_log = logging.getLogger("nfnet")


class _Queue(Queue):
    """A queue whose packets tasks can decide."""

    in_tasks: QueueBinding | None = None
    """The binding whose packets tasks decide; None while no tasks run."""

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        if self.in_tasks is binding:  # the policy applies when the task has ended
            binding.defer(packet)
        else:
            super()._leave_undecided(binding, packet)

    def send_together(self, may_wait: Callable[[], bool]) -> None:
        """Collect verdicts on pending packets, instead of sending each at once, while ``may_wait`` returns True."""
        self._bound().ledger.may_wait = may_wait

    def begin_tasks(self) -> QueueBinding:
        """Return the binding whose packets tasks decide from now on."""
        self.in_tasks = self._bound()
        return self.in_tasks

    async def let_decide(
        self, handler: Callable[[Packet], Any], packet: Packet, binding: QueueBinding, session: Session
    ) -> None:
        """Await an async handler. If it leaves the packet undecided, apply the policy."""
        try:
            await handler(packet)
        except (Exception, asyncio.CancelledError) as error:
            if session.cancelling or not self._treat(error, binding, packet):
                raise
        if packet.decided is None and self._undecided != "pending":
            apply_policy(self._undecided, packet)


AsyncHandler = Callable[[Packet], Awaitable[object]]


class AsyncQueue(AsyncReader[_Queue, Packet]):
    """A `Queue` for asyncio: the same arguments (``num`` and ``options``), attributes and errors.

        async with nfnet.AsyncQueue(1) as queue:
            await queue.run(handler)                # handler(packet), plain or async

    Packets can be decided at any time while the queue is open; verdicts are sent together. One task at a time may read.
    """

    def __init__(self, num: int, **options: Unpack[QueueOptions]) -> None:
        super().__init__(_Queue(num, **options))

    def __repr__(self) -> str:
        return repr(self._reader).replace("_Queue", "AsyncQueue")

    async def open(self) -> None:
        """Bind to the queue. Raises the errors of `Queue.open`."""
        await super().open()
        self._reader.send_together(self._flush_soon)

    async def run(self, handler: AsyncHandler | Handler, concurrency: int = 100) -> None:
        """Call ``handler(packet)`` for each packet until `stop` or `close`.

        An async handler runs in a separate task for each packet, in at most ``concurrency`` tasks at a time; further
        packets wait in the queue. A plain handler must not block. Exceptions of a handler are treated as ``on_error``
        specifies, and packets that it leaves undecided as ``undecided`` specifies. If several tasks raise, `run` raises
        the first error and logs the others.

        After `stop`, running tasks finish. If `run` is cancelled, or raises, it cancels them. No packet is lost: the
        packets of cancelled tasks stay pending, and packets that were not handed out are left for the next `run` or
        iteration. Raises the errors of `Queue.run`.
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
                if not session.cancelling:  # the handler cancelled its own task
                    errors.append((packet, asyncio.CancelledError()))
            elif (error := task.exception()) is not None:
                errors.append((packet, error))
            session.wake_up()

        with self._reading() as session:
            loop, binding = session.running_loop(), self._reader.begin_tasks()
            session.cancelling = False
            try:
                while self._may_go_on(session) and not errors:
                    room = concurrency - len(tasks)
                    started = 0
                    if room > 0:
                        packets = self._waiting()
                        try:
                            for packet in packets:
                                task = _start(loop, self._reader.let_decide(handler, packet, binding, session))
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
                        await self._received(session)
                    else:
                        session.unwatch()  # no further task can start
                        await session.woken()
                while tasks and not errors:  # after `stop` they finish
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
                # GeneratorExit: the event loop ended first. Python closes this coroutine, which must not wait again.
                if tasks and not isinstance(coming_out, GeneratorExit):
                    await asyncio.gather(*tasks, return_exceptions=True)
                for packet, error in errors:
                    if error is not coming_out:
                        text = "queue %d: the handler failed on packet %d, too"
                        _log.error(text, self.num, packet.id, exc_info=error)

    def _flush(self, session: Session) -> None:
        session.flushing = None
        if session is self._session:
            with suppress(ClosedError):
                self._reader.flush()

    def _flush_soon(self) -> bool:
        """Return whether a verdict on a pending packet can wait for others, until the next turn of the event loop."""
        session = self._opened()
        try:
            # Called in a task of this loop, which runs the scheduled call when the task waits; not in a signal handler.
            if asyncio.get_running_loop() is not session.loop or asyncio.current_task() is None:
                return False
        except RuntimeError:  # no event loop runs in this thread
            return False
        if session.flushing is not session.loop:
            session.flushing = session.loop
            session.loop.call_soon(self._flush, session)
        return True

    def flush(self) -> None:
        """Send the verdicts given so far; see `Queue.flush`."""
        self._reader.flush()

    def forget(self, flow: inet.Flow) -> bool:
        """Withdraw a verdict on a whole connection; see `Queue.forget`. Blocks the event loop."""
        return self._reader.forget(flow)

    def forget_all(self) -> int:
        """Withdraw the verdicts on all whole connections; see `Queue.forget_all`. Blocks the event loop."""
        return self._reader.forget_all()

    @property
    def num(self) -> int:
        """The number of the queue."""
        return self._reader.num

    @property
    def pending(self) -> list[Packet]:
        """The packets that were handed out and have no verdict, oldest first; see `Queue.pending`."""
        return self._reader.pending

    @property
    def counters(self) -> QueueCounters:
        """The counts since the queue was opened; see `Queue.counters`."""
        return self._reader.counters

    def stats(self) -> QueueStats:
        """Return the counters, and the kernel's status of this queue and its socket; see `Queue.stats`."""
        return self._reader.stats()


def _is_async(handler: Any) -> TypeGuard[Callable[[Any], Awaitable[object]]]:
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(type(handler).__call__)


def _start(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Return a new task. From Python 3.12 on it begins at once, and costs little if it ends without waiting."""
    if sys.version_info >= (3, 12):
        return asyncio.Task(work, loop=loop, eager_start=True)
    return loop.create_task(work)


AsyncLogHandler = Callable[[LogMessage], Awaitable[object]]


class AsyncLog(AsyncReader[Log, LogMessage]):
    """A `Log` for asyncio: the same arguments (``group`` and ``options``), attributes and errors.

    async with nfnet.AsyncLog(5) as log:
        async for message in log:
            print(message.prefix)
    """

    def __init__(self, group: int, **options: Unpack[LogOptions]) -> None:
        super().__init__(Log(group, **options))

    def __repr__(self) -> str:
        return "<Async" + repr(self._reader)[1:]

    async def run(self, handler: AsyncLogHandler | LogHandler) -> None:
        """Call ``handler(message)`` for each message until `stop` or `close`, or until it raises.

        An async handler is awaited, one message after the other. Raises the errors of `Log.run`.
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
        """The counts since the log was opened; see `Log.counters`."""
        return self._reader.counters

    def stats(self) -> LogStats:
        """Return the counters, and the kernel's status of this group and its socket; see `Log.stats`."""
        return self._reader.stats()
