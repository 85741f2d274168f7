"""`Binding`: the state of a queue or log from `open` to `close`, and turning datagrams into packets or messages."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from operator import length_hint
from typing import Any, Generic, TypeVar

from .._io import at_fork
from .._io.locks import RLock
from .._io.moves import END
from .._io.transport import Transport
from .._processes import Processes
from .._recording import Recording
from ..errors import ClosedError, DecodeError, NfnetError, OverrunError
from ..stats import Status
from .loss import Loss
from .origin import Origin

_log = logging.getLogger("nfnet")

T = TypeVar("T")


class Binding(ABC, Generic[T, Status], at_fork.AtFork):
    """The state of a reader from `open` to `close`. Each `open` creates a new one, with a new socket.

    ``find_status`` returns the kernel's status of the queue or group, None if no socket is bound to it.
    """

    drain = 0
    """How many datagrams `receive` takes from the transport at most."""
    what = ""
    """The plural noun for log messages: "packets" or "messages"."""

    def __init__(
        self, name: str, transport: Transport, on_overrun: str, find_status: Callable[[], Status | None]
    ) -> None:
        self.transport = transport
        self.origin = Origin(transport.interface_name, Processes(transport.open_netns), transport)
        self.loss = Loss(warn=on_overrun == "count")
        self.overruns = 0
        self.received: list[bytes] = []
        """Datagrams taken from the transport that `make_ready` has not processed yet."""
        self.ready: Iterator[T] = iter(())
        """The packets or messages for the handler; one iterator for all loops."""
        self.reading = False  # a loop is reading
        self.close_lock = RLock()
        self.close_began = False  # `Reader.close` was called: no more items are handed out
        self.close_running = False  # `Reader.close` is running, and has not raised
        self.closed = False  # the transport is closed
        self.exhausted = False  # no more items will arrive: the end of a recording
        self.recorder: Recording | None = None
        self.owns_recorder = False
        self.malformed = 0
        self.shared = False  # a forked child, or the parent, also has the socket
        self._name = name
        self._on_overrun = on_overrun
        self._find_status: Callable[[], Status | None] = find_status
        self._process = os.getpid()
        if transport.inherit:
            at_fork.register(self)

    def before_fork(self) -> None:
        # The child also has the socket, and can read some of the datagrams.
        self.shared = True

    def after_fork(self) -> None:
        self.reading = self.close_running = False
        self.close_lock = RLock()

    def is_ours(self) -> bool:
        """Return whether this process may use the binding: it opened it, or children are allowed to."""
        return self._process == os.getpid() or self.transport.inherit

    def begin(self) -> None:
        """Prepare for a loop in this thread."""

    def receive(self, limit: int | None = None) -> None:
        """Take datagrams from the transport without waiting, and turn them into `ready` items."""
        more = True
        try:
            # Not if an exception left datagrams there: if signals arrived faster than these are processed, the list
            # would grow without limit.
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
            self.exhausted = not more  # before `make_ready` raises for a damaged datagram
            self.make_ready()

    def each(self, datagrams: Iterator[bytes]) -> Generator[T, None, None]:
        """Yield the items in these datagrams of the transport, as they arrive.

        Ends after a datagram without an item for the handler (`Transport.wake` causes one), and when none arrives.
        """
        try:
            for datagram in datagrams:
                self.received[END:] = (datagram,)  # no function call since it was taken: see `moves`
                self.make_ready()
                if not length_hint(self.ready):
                    return
                yield from self.ready
        except OSError as error:
            self.explain(error)

    def explain(self, error: OSError) -> None:
        """Raise an error of `each`, unless it means that nothing has arrived."""
        if isinstance(error, NfnetError):  # raised by `make_ready`, not by the transport
            raise error
        self.transport.explain(error)

    @abstractmethod
    def make_ready(self) -> None:
        """Turn the received datagrams into `ready` items."""

    @abstractmethod
    def taken(self) -> int:
        """Return how many items the loop has taken from `ready` so far."""

    def flush(self, *, slow: bool) -> None:
        """Send the collected verdicts. The loop calls this at intervals, between calls of the handler.

        slow: whether a single call took so long that collecting verdicts does not pay off.
        """

    def settle(self, undelivered: int = 0) -> None:
        """Note that all of `ready` was handed out, or that the loop ends with the last ``undelivered`` items left."""
        if self.loss.untold:
            self.tell_loss()

    def count_lost(self, new: int) -> None:
        """Add ``new`` lost packets or messages, and log a warning if one is due."""
        self.add_lost(new)
        self.tell_loss()

    def add_lost(self, new: int) -> None:
        """Add ``new`` lost packets or messages."""
        if self.shared:
            return  # the other process may have read these packets
        self.overruns += self._on_overrun != "raise"  # OverrunError was counted when it was raised
        self.loss.add(new)

    def tell_loss(self, *, end: bool = False) -> None:
        """Log a warning if packets or messages were lost and a warning is due."""
        new = self.loss.due(end=end)
        if not new:
            return
        amounts, status = (self._name, new, self.what, self.loss.total), self.status()
        if status is None and not self.transport.trusted:  # a recording, for instance, from which some were removed
            _log.warning("%s: %d %s are missing, %d so far", *amounts)
        else:
            _log.warning("%s: %d %s were lost, %d so far; %s", *amounts, self._cause_of_loss(status))

    def _cause_of_loss(self, status: Status | None) -> str:
        """Return a description of what was full, as far as it is known."""
        return f"{self._buffer()} was full"

    def _buffer(self) -> str:
        size = self.transport.rcvbuf
        return "the receive buffer" if size is None else f"the receive buffer of {size} bytes"

    def status(self) -> Status | None:
        """Return the kernel's status of the queue or group; None for a recording, or if it cannot be read."""
        port = self.transport.port_id
        status = None if port is None else self._find_status()
        return status if status is not None and status.port_id == port else None

    def finish_counting(self) -> None:
        """Count the last losses, and log the last warning, before closing."""
        self.tell_loss(end=True)

    def release(self) -> None:
        """Close the sockets, and the recording if this binding owns it."""
        self.closed = True
        try:
            self.transport.close()
        finally:
            if self.origin.processes is not None:
                self.origin.processes.close()
            if self.recorder is not None:
                self.transport.tap = None  # the next binding can use the same transport
                if self.owns_recorder:
                    self.recorder.close()

    def count_waiting(self) -> int:
        """Return how many items wait for the handler, or, in a queue, for a verdict."""
        return length_hint(self.ready)


class Arriving(Generic[T]):
    """Items that will arrive one at a time, in these datagrams; an iteration waits for them."""

    __slots__ = ("_binding", "datagrams")

    def __init__(self, binding: Binding[T, Any], datagrams: Iterator[bytes]) -> None:
        self._binding = binding
        self.datagrams = datagrams

    def __iter__(self) -> Iterator[T]:
        return self._binding.each(self.datagrams)
