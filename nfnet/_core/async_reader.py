"""What `AsyncQueue` and `AsyncLog` share: a reader whose loop is that of asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import contextmanager
from operator import length_hint
from types import TracebackType
from typing import Any, Generic, TypeVar

from .._arguments import check_handler
from .._io.system import collect_forgotten
from ..errors import BusyReadingError
from .binding import Binding
from .loss import QUIET
from .reader import MOST_LONE, Reader

T = TypeVar("T")
R = TypeVar("R", bound=Reader[Any, Any])
Self = TypeVar("Self", bound="AsyncReader")  # type: ignore[type-arg]


class Looks:
    """While packets come one at a time one is taken, without a look whether several wait, for ever longer."""

    def __init__(self) -> None:
        self.lone = 0  # so many times more
        self._next = 1

    def found(self, count: int) -> None:
        """So many datagrams were taken."""
        if self.lone:
            self.lone -= 1
        elif count > 1:
            self._next = 1
        else:
            self.lone, self._next = self._next, min(2 * self._next, MOST_LONE)


class Session:
    """The state of an asynchronous reader from `open` to `close`.

    A loop that SystemExit ended leaves coroutines behind that go no further and callbacks that are never called. What
    they have changed here, and may yet change when they are disposed of, must not matter the next time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.stopped = False
        self.running = False  # a `run`
        self.wake: asyncio.Future[None] | None = None  # what it, or an iteration, waits for
        self.items: Generator[Any, None, None] | None = None  # of the iteration that is under way
        self.looks = Looks()
        self.watched: int | None = None  # the descriptor that the loop watches for an iteration
        self.telling = False  # the loop will look whether a loss is to be told
        self.flushing: asyncio.AbstractEventLoop | None = None  # which will send what was collected
        self.cancelling = False  # the tasks of a `run`

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
        """Receive what comes, while somebody waits for it, until `unwatch`."""
        if self.watched is None:
            self.watched = binding.transport.fileno()
            self.loop.add_reader(self.watched, self._receive, binding)

    def _receive(self, binding: Binding[Any, Any]) -> None:
        wake = self.wake
        if wake is None:  # nobody waits, and the loop would say again and again that there is something
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
        """An iteration is over, or to be over. One that is just at work, below a signal handler, ends by itself."""
        if self.items is not None and not self.items.gi_running:  # type: ignore[attr-defined]
            self.items.close()
            self.items = None
        self.unwatch()


class AsyncReader(Generic[R, T]):
    """What `AsyncQueue` and `AsyncLog` share."""

    def __init__(self, reader: R) -> None:
        self._reader = reader
        reader._remedy = "give run the async function itself, or a functools.partial of it"
        self._session: Session | None = None  # the last one, if it is closed

    def _waiting(self) -> Generator[T, None, None]:
        """Yield what waits, without blocking."""
        return self._reader._items(block=False)  # type: ignore[return-value]  # only `pause` makes it give None

    async def open(self) -> None:
        """Bind to the queue or group. Raises the errors of `Queue.open`."""
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
        binding = self._reader._binding
        if binding is not None and binding.reading:  # else there is no loop to end before its next item
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
        """What comes, until `stop` or `close`; what is left when the iteration is left is for the next one.

        Raises as `Queue.run`.
        """
        self._reader.check_iteration()
        return _Iteration(self)

    def _opened(self) -> Session:
        """The session, open or closed. Raises ClosedError if it was never open."""
        if self._session is None:
            self._reader._bound()  # says so
            raise AssertionError("a reader that is open has a session")
        return self._session

    @contextmanager
    def _reading(self) -> Iterator[Session]:
        """A `run`, alone."""
        self._reader._bound()  # says if it is not open
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
            raise BusyReadingError(f"{self!r} is being read by another task; one at a time can")

    def _may_go_on(self, session: Session) -> bool:
        return not session.stopped and session is self._session

    async def _run(self, handler: Callable[[T], object]) -> None:
        """`run` with a plain handler, which the loop calls as soon as something is there: no task is woken for that."""
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

            loop.add_reader(fd, turn)
            try:
                turn()  # something may have been received already
                await ended
            finally:
                loop.remove_reader(fd)
                session.wake = None
            if errors:
                raise errors[0]

    def _tell_loss_later(self, session: Session, binding: Binding[Any, Any]) -> None:
        """When none was lost for a while, warn of what is untold."""
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
        """Whether nothing will come any more, as at the end of a recording."""
        binding = self._reader._binding
        return binding is not None and binding.exhausted

    async def _received(self, session: Session) -> None:
        """Wait until something has been received, or `Session.wake_up`."""
        binding = self._reader._binding
        if binding is None:
            return
        session.running_loop()
        if binding.loss.untold:
            self._tell_loss_later(session, binding)
        if binding.transport.kept:  # of which the descriptor does not tell
            await asyncio.sleep(0)
            return
        session.watch(binding)
        await session.woken()


class _Iteration(AsyncIterator[T]):
    """An iteration. No async generator: when one is left, only the event loop's next turns end it."""

    def __init__(self, owner: AsyncReader[Any, T]) -> None:
        self._owner = owner
        self._items: Generator[T | None, None, None] | None = None  # None until it has begun, and when it is over
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
