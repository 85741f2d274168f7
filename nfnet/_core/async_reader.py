"""The common base of `AsyncQueue` and `AsyncLog`: a reader whose loop is the event loop of asyncio."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._arguments import check_handler
from .._io.system import collect_forgotten
from ..errors import BusyReadingError, NotSupportedError
from .binding import Binding
from .loss import QUIET
from .reader import MOST_LONE, Reader

T = TypeVar("T")
R = TypeVar("R", bound=Reader[Any, Any])
Self = TypeVar("Self", bound="AsyncReader")  # type: ignore[type-arg]


class Looks:
    """While packets arrive one at a time, take them singly for longer and longer, without checking for several."""

    def __init__(self) -> None:
        self.lone = 0  # how many more datagrams to take singly
        self._next = 1

    def found(self, count: int) -> None:
        """Note that ``count`` datagrams were taken."""
        if self.lone:
            self.lone -= 1
        elif count > 1:
            self._next = 1
        else:
            self.lone, self._next = self._next, min(2 * self._next, MOST_LONE)


class Session:
    """The state of an asynchronous reader from `open` to `close`.

    An event loop that SystemExit ended leaves coroutines that never continue and callbacks that are never called. They
    have changed this object, and can change it again when Python closes them, so the next `open` makes a new one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stopped = False
        self.running = False  # whether a `run` is under way
        self.wake: asyncio.Future[None] | None = None  # awaited by `run` or an iteration
        self.items: Generator[Any, None, None] | None = None  # the items of the current iteration
        self.looks = Looks()
        self.watched: int | None = None  # the descriptor that the loop watches for an iteration
        self.telling = False  # whether a check for a due warning of loss is scheduled
        self.flushing: asyncio.AbstractEventLoop | None = None  # the loop that will send the collected verdicts
        self.cancelling = False  # whether the tasks of a `run` are being cancelled

    def running_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if loop is not self.loop:
            self.unwatch()
            self.telling = False
            self.loop = loop
        return loop

    async def woken(self) -> None:
        """Wait for `wake_up`, in `running_loop`."""
        if self.stopped:
            return
        wake = self.wake = self.loop.create_future()
        try:
            await wake
        finally:
            if self.wake is wake:
                self.wake = None

    def wake_up(self) -> None:
        if self.wake is not None and not self.wake.done() and not self.loop.is_closed():
            self.wake.set_result(None)

    def watch(self, binding: Binding[Any, Any]) -> None:
        """Receive datagrams, while a `run` or an iteration waits for them, until `unwatch`."""
        if self.watched is None:
            self.watched = binding.transport.fileno()
            _add_reader(self.loop, self.watched, self._receive, binding)

    def _receive(self, binding: Binding[Any, Any]) -> None:
        wake = self.wake
        if wake is None:  # nothing waits, and the event loop would report the readable descriptor again and again
            self.unwatch()
        elif not wake.done():
            looks = self.looks
            try:
                binding.receive(1 if looks.lone else None)
            except Exception as error:
                wake.set_exception(error)
                return
            found = length_hint(binding.ready)
            looks.found(found)
            if found or binding.exhausted:
                wake.set_result(None)

    def unwatch(self) -> None:
        if self.watched is not None and not self.loop.is_closed():
            self.loop.remove_reader(self.watched)
        self.watched = None

    def end(self) -> None:
        self.stopped = True
        self.leave()
        self.wake_up()

    def leave(self) -> None:
        """Close the current iteration. One that is running, interrupted by a signal handler, ends by itself."""
        if self.items is not None and not self.items.gi_running:  # type: ignore[attr-defined]
            self.items.close()
            self.items = None
        self.unwatch()


def _add_reader(loop: asyncio.AbstractEventLoop, fd: int, function: Callable[..., object], *arguments: object) -> None:
    try:
        loop.add_reader(fd, function, *arguments)
    except NotImplementedError:  # the loop that asyncio has on Windows unless it is told otherwise
        hint = "Take another one: asyncio.run(main(), loop_factory=asyncio.SelectorEventLoop)"
        operation = f"watching a queue or log with a {type(loop).__name__}"
        raise NotSupportedError(operation, errno.EOPNOTSUPP, hint=hint) from None


class AsyncReader(Generic[R, T]):
    """The common base of `AsyncQueue` and `AsyncLog`."""

    def __init__(self, reader: R) -> None:
        self._reader = reader
        reader._remedy = "pass the async function itself to run, or a functools.partial of it"
        self._session: Session | None = None  # the last session, if the reader is closed

    def _waiting(self) -> Generator[T, None, None]:
        """Yield the items that wait, without blocking."""
        return self._reader._items(block=False)  # type: ignore[return-value]  # only `pause` makes it give None

    async def open(self) -> None:
        """Bind to the queue or group. Raises the errors of `Queue.open`."""
        self._reader.open()
        self._session = Session(asyncio.get_running_loop())

    async def close(self) -> None:
        """Unbind. Iterations and `run` end. Can be called twice."""
        if self._session is not None:
            self._session.end()
        self._reader.close()

    def stop(self) -> None:
        """End `run` or the iteration before its next item; if there is none, end the next one at once. Call this in the
        loop's thread."""
        if self._session is not None:
            self._session.end()
        binding = self._reader._binding
        if binding is not None and binding.reading:  # otherwise there is no loop to end before its next item
            self._reader.stop()

    async def __aenter__(self: Self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def fileno(self) -> int:
        """Return a file descriptor that polls readable when there is something to do; see `Queue.fileno`."""
        return self._reader.fileno()

    @property
    def rcvbuf(self) -> int | None:
        """The granted size of the receive buffer in bytes; see `Queue.rcvbuf`."""
        return self._reader.rcvbuf

    def __aiter__(self) -> AsyncIterator[T]:
        """Yield items until `stop` or `close`. Items that an iteration leaves are for the next one.

        Raises the errors of `Queue.run`.
        """
        self._reader.check_iteration()
        return _Iteration(self)

    def _opened(self) -> Session:
        """Return the session, open or closed. Raises ClosedError if there was none."""
        if self._session is None:
            self._reader._bound()  # raises ClosedError
            raise AssertionError("a reader that is open has a session")
        return self._session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """Begin a `run`, and refuse a second reader meanwhile."""
        self._reader._bound()  # raises ClosedError if it is not open
        session = self._opened()
        self._check_only_reader(session)
        session.running = True
        try:
            yield session
        finally:
            session.running = session.stopped = False

    def _is_read(self, session: Session) -> bool:
        binding = self._reader._binding
        return session.running or session.wake is not None or (binding is not None and binding.reading)

    def _check_only_reader(self, session: Session) -> None:
        if self._is_read(session) and not (collect_forgotten() and not self._is_read(session)):
            raise BusyReadingError(f"{self!r} is being read by another task; only one at a time can read")

    def _may_go_on(self, session: Session) -> bool:
        return not session.stopped and session is self._session

    async def _run(self, handler: Callable[[T], object]) -> None:
        """`run` with a plain handler. The event loop calls it directly when data arrives, without waking a task."""
        check_handler(handler, self._reader._remedy)
        with self._reading() as session:
            loop, reader, binding = session.running_loop(), self._reader, self._reader._bound()
            fd = binding.transport.fileno()
            session.unwatch()
            ended = session.wake = loop.create_future()
            errors: list[BaseException] = []
            looks, arrived = Looks(), binding.transport.arrived if binding.transport.tap is None else None
            arriving: Generator[T, None, None] | None = None
            binding.begin()

            def turn() -> None:
                nonlocal arriving
                if session.stopped:
                    session.wake_up()
                    return
                try:
                    if looks.lone and arrived is not None and not length_hint(binding.ready):
                        looks.lone -= 1
                        if arriving is None or arriving.gi_frame is None:  # type: ignore[attr-defined]  # it has ended
                            arriving = binding.each(arrived)
                        reader._hand_out_next(binding, arriving, handler)
                    else:
                        before = binding.taken()
                        reader._drive(binding, reader._portions(binding, block=False), handler)
                        looks.found(binding.taken() - before)
                    if binding.loss.untold:
                        self._tell_loss_later(session, binding)
                    if binding.exhausted or session.stopped:
                        session.wake_up()
                except BaseException as error:
                    errors.append(error)
                    session.wake_up()
                    if not isinstance(error, Exception):
                        raise

            _add_reader(loop, fd, turn)
            try:
                turn()  # datagrams may have been received already
                await ended
            finally:
                loop.remove_reader(fd)
                session.wake = None
            if errors:
                raise errors[0]

    def _tell_loss_later(self, session: Session, binding: Binding[Any, Any]) -> None:
        """Warn of losses not yet reported, once nothing was lost for a while."""
        if not session.telling:
            session.telling = True
            session.loop.call_later(QUIET, self._tell_loss, session, binding)

    def _tell_loss(self, session: Session, binding: Binding[Any, Any]) -> None:
        session.telling = False
        if not binding.closed:
            binding.tell_loss()
            if binding.loss.untold:
                self._tell_loss_later(session, binding)

    def _is_over(self) -> bool:
        """Return whether no more items will arrive, as at the end of a recording."""
        binding = self._reader._binding
        return binding is not None and binding.exhausted

    async def _received(self, session: Session) -> None:
        """Wait until data has been received, or for `Session.wake_up`."""
        binding = self._reader._binding
        if binding is None:
            return
        session.running_loop()
        if binding.loss.untold:
            self._tell_loss_later(session, binding)
        if binding.transport.kept:  # the descriptor is not readable for these
            await asyncio.sleep(0)
            return
        session.watch(binding)
        await session.woken()


class _Iteration(AsyncIterator[T]):
    """An iteration. Not an async generator, because the event loop closes an abandoned one only some turns later."""

    def __init__(self, owner: AsyncReader[Any, T]) -> None:
        self._owner = owner
        self._items: Generator[T | None, None, None] | None = None  # None before the first item and after the end
        self._session: Session | None = None

    async def __anext__(self) -> T:
        owner = self._owner
        session = self._session
        if session is None:
            session = self._session = owner._opened()
        try:
            while True:  # and no condition at its end: see `locks`
                if not owner._may_go_on(session):
                    break
                if self._items is None:
                    owner._check_only_reader(session)
                    self._items = session.items = owner._reader._items(block=False, pause=True)
                for item in self._items:
                    if item is not None:
                        return item
                    break
                else:
                    break
                await owner._received(session)
        except BaseException:
            self._end()
            raise
        self._end()
        session.stopped = False
        raise StopAsyncIteration

    def _end(self) -> None:
        items, self._items = self._items, None
        if items is not None:
            items.close()
            if self._session is not None and self._session.items is items:
                self._session.leave()

    def __del__(self) -> None:
        self._end()
