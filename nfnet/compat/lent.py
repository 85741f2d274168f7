"""A transport that outlives the queue that uses it."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress

from ..errors import ClosedError, NfnetError
from ..locks import RLock
from ..transport import NetlinkSocket, Transport

_END = sys.maxsize  # ``list[_END:] = more`` appends


class Lent:
    """The transport of one binding, which ends without the socket's being closed.

    It also takes datagrams that the script itself received, in ``given``, and then no others.
    """

    def __init__(self, lender: Transport) -> None:
        self._lender = lender
        self.send, self.request, self.fileno = lender.send, lender.request, lender.fileno
        self.interface_name = lender.interface_name
        self.inherit = getattr(lender, "inherit", False)
        self.given: list[bytes] | None = None
        _all.add(self)
        self._receiving = RLock()  # `close` may come in a signal handler
        self._closed = False

    @property
    def trusted(self) -> bool:
        return self.given is None and self._lender.trusted

    @property
    def tap(self) -> Callable[[bool, bytes], None] | None:
        tap: Callable[[bool, bytes], None] | None = self._lender.tap  # type: ignore[attr-defined]
        return tap

    @tap.setter
    def tap(self, tap: Callable[[bool, bytes], None] | None) -> None:
        self._lender.tap = tap  # type: ignore[attr-defined]

    @property
    def patience(self) -> float | None:
        """As that of the socket; what is no socket waits as long as it takes."""
        return self._lender.patience if isinstance(self._lender, NetlinkSocket) else None

    def receive(self, into: list[bytes], limit: int) -> bool:
        with self._receiving:
            if self._closed:
                raise ClosedError("the queue has been unbound")
            if self.given is None:
                return self._lender.receive(into, limit)
            into[_END:], self.given[:] = self.given, ()  # one statement, so that none is lost
            return True

    def close(self) -> None:
        with self._receiving:
            self._closed = True
            # What came for this binding must not reach the next one, in which the same ids are others'.
            left: list[bytes] = []
            with suppress(NfnetError):
                while True:  # and no condition at its end: see `locks`
                    if not (self._lender.receive(left, 64) and left):
                        break
                    left.clear()


_all: weakref.WeakSet[Lent] = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_all):
        transport._receiving = RLock()  # who held the other one is not in the child


os.register_at_fork(after_in_child=_after_fork)
