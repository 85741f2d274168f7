"""A transport that stays open when the queue that uses it is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO

from .._io import at_fork
from .._io.locks import RLock
from .._io.moves import move
from .._io.transport import Tap, Transport
from ..errors import ClosedError, NfnetError


class BorrowedTransport(Transport, at_fork.AtFork):
    """The transport of one binding. Closing it does not close the socket.

    It can also read datagrams that the script itself has received, instead of those of the socket.
    """

    given: list[bytes] | None

    def __init__(self, lender: Transport) -> None:
        self._lender = lender
        self.inherit = lender.inherit
        self.recordable = lender.recordable
        self.simulated = lender.simulated
        self.port_id = lender.port_id
        self.read_from(None)
        self.on_would_block: Callable[[], None] | None = None
        """Called when waiting ends because the script made the socket non-blocking, or set a timeout."""
        self._receiving = RLock()  # reentrant, because a signal handler can call `close`
        self._closed = False
        at_fork.register(self)

    def read_from(self, given: list[bytes] | None) -> None:
        """Read only the datagrams in ``given`` from now on; with None, those of the socket."""
        self.given = given
        self.trusted = given is None and self._lender.trusted

    @property
    def tap(self) -> Tap | None:
        return self._lender.tap

    @tap.setter
    def tap(self, tap: Tap | None) -> None:
        self._lender.tap = tap

    @property
    def incoming(self) -> Iterator[bytes] | None:
        return None if self.given is not None else self._lender.incoming

    @property
    def outgoing(self) -> Callable[[bytes], object]:
        return self._lender.outgoing

    def send(self, datagram: bytes) -> None:
        self._lender.send(datagram)

    def send_untapped(self, datagram: bytes) -> None:
        self._lender.send_untapped(datagram)

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._lender.request(build, operation)

    def interface_name(self, index: int) -> str | None:
        return self._lender.interface_name(index)

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        self._lender.inject(packet, interface)

    def is_broadcast(self, address: str) -> bool:
        return self._lender.is_broadcast(address)

    def open_netns(self) -> BinaryIO | None:
        return self._lender.open_netns()

    def fileno(self) -> int:
        return self._lender.fileno()

    def nudge(self) -> None:
        self._lender.nudge()

    def explain(self, error: OSError) -> None:
        if isinstance(error, BlockingIOError) and self.on_would_block is not None:
            self.on_would_block()
        self._lender.explain(error)

    @property
    def kept(self) -> bool:
        return self._lender.kept

    @property
    def patience(self) -> float | None:
        return self._lender.patience

    @property
    def rcvbuf(self) -> int | None:
        return self._lender.rcvbuf

    def receive(self, into: list[bytes], limit: int) -> bool:
        with self._receiving:
            if self._closed:
                raise ClosedError("the queue has been unbound")
            if self.given is None:
                return self._lender.receive(into, limit)
            move(self.given, into)
            return True

    def close(self) -> None:
        with self._receiving:
            self._closed = True
            # Packets of this binding must not reach the next one, in which the same ids belong to other packets.
            left: list[bytes] = []
            with suppress(NfnetError):
                while True:  # a loop within ``try`` must not end with a condition: see `locks`
                    if not (self._lender.receive(left, 64) and left):
                        break
                    left.clear()
        # A loop of another thread may still wait in recv, because the message that was to end its wait was just read.
        self.wake()

    def after_fork(self) -> None:
        self._receiving = RLock()  # the thread that held the other one does not exist in the child
