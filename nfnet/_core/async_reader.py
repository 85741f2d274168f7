"""What `AsyncQueue` and `AsyncLog` share: a reader whose loop is that of asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, TypeVar

from ..errors import BusyReadingError
from .loss import QUIET
from .reader import Reader

_MOST_ALONE = 64  # packets; see `Reader`
_FLUSH_EVERY = 0.001  # seconds: a verdict waits no longer for the body of an iteration

T = TypeVar("T")
R = TypeVar("R", bound=Reader[Any, Any])
Self = TypeVar("Self", bound="AsyncReader")  # type: ignore[type-arg]


class Session:
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


class AsyncReader(Generic[R, T]):
    """What `AsyncQueue` and `AsyncLog` share."""

    def __init__(self, reader: R) -> None:
        self._reader = reader
        reader._remedy = "give run the async function itself, or a functools.partial of it"
        self._session: Session | None = None  # the last one, if it is closed

    def _waiting(self) -> Generator[T, None, None]:
        """What waits, without blocking."""
        return self._reader._items(block=False)

    async def open(self) -> None:
        """Bind. Raises as `Queue.open`."""
        self._reader.open()
        self._session = Session(asyncio.get_running_loop())

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

    def _opened(self) -> Session:
        """The session, open or closed. Raises ClosedError if it was never open."""
        if self._session is None:
            self._reader.fileno()  # says so
            raise AssertionError("a reader that is open has a session")
        return self._session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A `run`, alone."""
        self._reader.fileno()  # says if it is not open
        session = self._opened()
        self._check_alone(session)
        session.running = True
        try:
            yield session
        finally:
            session.running = session.stopped = False

    def _check_alone(self, session: Session) -> None:
        if session.running or session.wake is not None:
            raise BusyReadingError(f"{self!r} is being read by another task; one at a time can")

    def _may_go_on(self, session: Session) -> bool:
        return not session.stopped and session is self._session

    async def _run(self, handler: Callable[[T], object]) -> None:
        """`run` with a plain handler, which the loop calls as soon as something is there: no task is woken for that."""
        with self._reading() as session:
            loop, fd = session.running_loop(), self._bound_fileno()
            ended = session.wake = loop.create_future()
            errors: list[BaseException] = []
            alone = 0  # so many times more one packet is taken, without a look whether several wait
            looks = 1

            def turn() -> None:
                nonlocal alone, looks
                if not self._may_go_on(session):
                    session.wake_up()
                    return
                try:
                    found = self._reader._drive(handler, block=False, limit=1 if alone else None)
                    if alone:
                        alone -= 1
                    elif found > 1:
                        looks = 1
                    else:
                        alone = looks = min(2 * looks, _MOST_ALONE)
                    self._tell_loss_later(loop)
                    if self._is_over() or not self._may_go_on(session):
                        session.wake_up()
                except BaseException as error:
                    errors.append(error)
                    session.wake_up()
                    if not isinstance(error, Exception):
                        raise

            loop.add_reader(fd, turn)
            try:
                turn()  # something may have been received already
                await ended
            finally:
                loop.remove_reader(fd)
                session.wake = None
            if errors:
                raise errors[0]

    def _bound_fileno(self) -> int:
        return int(self._reader._bound().transport.fileno())

    def _tell_loss_later(self, loop: asyncio.AbstractEventLoop) -> None:
        """When none was lost for a while, warn of what is untold."""
        binding = self._reader._binding
        if binding is not None and binding.loss.untold:
            loop.call_later(QUIET, binding.tell_loss)

    def _is_over(self) -> bool:
        """Whether nothing will come any more, as at the end of a recording."""
        binding = self._reader._binding
        return binding is not None and binding.ended

    async def _readable(self, session: Session) -> None:
        """Wait until something may be there, or `Session.wake_up`."""
        loop, fd = session.running_loop(), self._reader.fileno()
        self._tell_loss_later(loop)
        # Only while nobody reads: it stays readable until somebody does, and the loop would spin.
        loop.add_reader(fd, session.wake_up)
        try:
            await session.woken()
        finally:
            loop.remove_reader(fd)


class _Iteration(AsyncIterator[T]):
    """An iteration. No async generator: when one is left, only the event loop's next turns end it."""

    def __init__(self, owner: AsyncReader[Any, T]) -> None:
        self._owner = owner
        self._items: Generator[T, None, None] | None = None
        self._item: T | None = None  # in the hands of the body
        self._timer: asyncio.TimerHandle | None = None
        self._session: Session | None = None

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

    def _set_timer(self, session: Session) -> None:
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
