"""The interface of recorders for queues and logs, and the recorders of the `nfnet.record` blocks being executed.

The recorder itself is in `nfnet.captures`, which few programs need, and which takes long to import.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod


class Recording(ABC):
    """Records the datagrams between the kernel and queues or logs."""

    @abstractmethod
    def begin(self) -> None:
        """Begin, once the queue or log is open: remove the file's old contents. Can be called twice. Raises OSError."""

    @abstractmethod
    def tap(self, outgoing: bool, datagram: bytes) -> None:
        """Record a datagram; ``outgoing`` if it was sent to the kernel."""

    @abstractmethod
    def flush(self) -> None:
        """Write recorded datagrams to the disk."""

    @abstractmethod
    def close(self) -> None:
        """Finish the recording. Can be called twice. Raises the OSError that stopped it, if any."""


# Weak: an exception from a signal handler can end `Recorder.__enter__` after `enter`, or `__exit__` before it begins.
_current: list[weakref.ref[Recording]] = []


def enter(recording: Recording) -> None:
    """Make `current` return this recording, until `leave`."""
    _current.append(weakref.ref(recording))


def leave(recording: Recording) -> None:
    """Undo `enter`. Can be called twice, and without `enter`."""
    _current[:] = [reference for reference in _current if reference() not in (recording, None)]


def current() -> Recording | None:
    """Return the recording of the innermost `nfnet.record` block, None outside of one."""
    recordings = (reference() for reference in reversed(_current))
    return next((recording for recording in recordings if recording is not None), None)
