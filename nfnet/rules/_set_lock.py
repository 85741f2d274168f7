"""The lock of all sets.

All sets share one lock, because a rule can use several sets, whose copies are in tables of the same socket.
"""

from __future__ import annotations

from collections.abc import Callable

from .._io import at_fork
from .._io.locks import RLock
from ..errors import NfnetError


class _Shared(at_fork.AtFork):
    def __init__(self) -> None:
        self.lock = RLock()
        self.busy = False
        at_fork.register(self)

    def after_fork(self) -> None:
        self.lock = RLock()
        self.busy = False


_shared = _Shared()


def lock() -> RLock:
    """Return the lock to hold while elements are read or tables of sets are removed."""
    return _shared.lock


def exclusively(function: Callable[[], None]) -> None:
    """Call a function that creates or changes tables with sets, under the lock.

    Raises NfnetError in a signal handler that interrupted such a function.
    """
    with _shared.lock:
        if _shared.busy:  # the lock is reentrant
            raise NfnetError(
                "a signal handler cannot change a set or install a rule while the code that it interrupted does so"
            )
        _shared.busy = True
        try:
            function()
        finally:
            _shared.busy = False
