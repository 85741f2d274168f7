"""A queue or a log group while it is bound: what came, and is not through yet."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from operator import length_hint
from typing import Generic, TypeVar

from .._io import at_fork
from .._io.locks import RLock
from .._io.moves import END
from .._io.transport import Transport
from .._processes import Processes
from ..captures._recorder import Recorder
from ..errors import ClosedError, DecodeError, NfnetError, OverrunError
from ..stats import Status
from .loss import Loss
from .message import Origin

_log = logging.getLogger("nfnet")

T = TypeVar("T")


class Binding(ABC, Generic[T, Status], at_fork.AtFork):
    """What `Reader` knows of one time of being bound; the next one begins anew, with another socket.

    ``find_status`` asks what the kernel says of it.
    """

    drain = 0
    """How many datagrams to take from the transport at a time."""
    what = ""
    """What gets lost."""

    def __init__(
        self, name: str, transport: Transport, on_overrun: str, find_status: Callable[[], Status | None]
    ) -> None:
        self.transport = transport
        self.origin = Origin(transport.interface_name, Processes(transport.open_netns), transport)
        self.loss = Loss(warn=on_overrun == "count")
        self.overruns = 0
        self.incoming: bytes | None = None
        """A datagram that came while the loop waited for one."""
        self.received: list[bytes] = []
        """Datagrams that were taken from the transport."""
        self.ready: Iterator[T] = iter(())
        """What was made of them, for the handler; one iterator for all loops."""
        self.reading = False  # by a loop
        self.closing = RLock()
        self.finishing = False  # `Reader.close` is at work
        self.finished = False  # it has begun: no more is handed out
        self.closed = False
        self.ended = False  # no more will come: the end of a recording
        self.recorder: Recorder | None = None
        self.owns_recorder = False
        self.malformed = 0
        self.shared = False  # with another process: one that was forked from this one, or the one it was forked from
        self._name = name
        self._on_overrun = on_overrun
        self._find_status: Callable[[], Status | None] = find_status
        self._process = os.getpid()
        if transport.inherit:
            at_fork.register(self)

    def before_fork(self) -> None:
        # There will be a child that has the socket too, and reads a part of what comes.
        self.shared = True

    def after_fork(self) -> None:
        self.reading = self.finishing = False
        self.closing = RLock()

    def is_ours(self) -> bool:
        """Whether this process may use it: the one that bound it, and where children inherit the socket any."""
        return self._process == os.getpid() or self.transport.inherit

    def begin(self) -> None:
        """A loop begins, in this thread."""

    def receive(self, limit: int | None = None) -> None:
        """Take datagrams from the transport without waiting, and make `ready` of them."""
        if self.incoming is not None:  # an exception came when it had been taken
            self.received[END:], self.incoming = (self.incoming,), None  # one statement
        more = True
        try:
            # Not on top of what an exception left there: signals that come faster than so many can be made ready would
            # have it grow, and nothing would ever be through.
            if not self.received:
                more = self.transport.receive(self.received, limit or self.drain)
        except ClosedError:
            if not self.closed:
                raise
            more = False
        except OverrunError:
            self.overruns += 1
            raise
        except DecodeError:  # a damaged recording
            self.malformed += 1
            raise
        finally:
            self.ended = not more  # before one of the datagrams turns out to be damaged
            self._make_ready()

    def each(self, datagrams: Iterator[bytes]) -> Iterator[T]:
        """What is in these datagrams of the transport, one by one as they come.

        It ends with one that has nothing for the handler, which may have come to end the wait, and when none comes.
        """
        try:
            yield from self._each(datagrams)
        except OSError as error:
            if isinstance(error, NfnetError):  # of what is done with what came
                raise
            self.transport.explain(error)

    def _each(self, datagrams: Iterator[bytes]) -> Iterator[T]:
        for self.incoming in datagrams:
            self._take_incoming()
            if not length_hint(self.ready):
                return
            yield from self.ready

    def _take_incoming(self) -> None:
        """Make `ready` of a datagram that came while the loop waited for one."""
        self.received[END:], self.incoming = (self.incoming,), None  # type: ignore[assignment]  # one statement
        self._make_ready()

    @abstractmethod
    def _make_ready(self) -> None:
        """Make `ready` of what was received."""

    @abstractmethod
    def taken(self) -> int:
        """How many the loop has taken so far."""

    def flush(self, *, slow: bool) -> None:
        """Send what was collected; called now and then between calls of the handler.

        slow: whether a single call took so long that it is not worth while to collect.
        """

    def settle(self, waiting: int = 0) -> None:
        """All of `ready` is through, or the loop ends with the last ``waiting`` still to come."""
        if self.loss.untold:
            self.tell_loss()

    def count_lost(self, new: int) -> None:
        """So many more were lost."""
        if self.shared:
            return  # the other process may have read them
        self.overruns += self._on_overrun != "raise"  # there it was counted as it was raised
        self.loss.add(new)
        self.tell_loss()

    def tell_loss(self, *, end: bool = False) -> None:
        """Log a warning, if there is something to say and it is time."""
        new = self.loss.due(end=end)
        if not new:
            return
        amounts, status = (self._name, new, self.what, self.loss.total), self.status()
        if status is None and not self.transport.trusted:  # a recording, say, of which somebody took some out
            _log.warning("%s: %d %s are missing, %d so far", *amounts)
        else:
            _log.warning("%s: %d %s were lost, %d so far; %s", *amounts, self._cause_of_loss(status))

    def _cause_of_loss(self, status: Status | None) -> str:
        """Where there was no room, as far as that is known."""
        return f"{self._buffer()} was full"

    def _buffer(self) -> str:
        size = self.transport.rcvbuf
        return "the receive buffer" if size is None else f"the receive buffer of {size} bytes"

    def status(self) -> Status | None:
        """What the kernel says of it; None if it says nothing, as for a recording, or that may not be read."""
        port = self.transport.port_id
        status = None if port is None else self._find_status()
        return status if status is not None and status.port_id == port else None

    def sum_up(self) -> None:
        """It is about to be closed: count, and tell, what there is."""
        self.tell_loss(end=True)

    def release(self) -> None:
        """Let go of the sockets."""
        self.closed = True
        try:
            self.transport.close()
        finally:
            if self.origin.processes is not None:
                self.origin.processes.close()
            if self.recorder is not None:
                self.transport.tap = None  # it may be lent to the next binding
                if self.owns_recorder:
                    self.recorder.close()

    def waiting(self) -> int:
        """How many wait for the handler; those of a queue also for its verdict."""
        return length_hint(self.ready)
