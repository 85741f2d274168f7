"""What queues and logs need of a recorder, and the recorders of `nfnet.record` blocks, in which all are recorded.

The recorder itself is in `nfnet.captures`, which few programs need, and which takes long to import.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod


class Recording(ABC):
    """Records what passes between the kernel and queues or logs."""

    @abstractmethod
    def begin(self) -> None:
        """What was opened is open: make room for the recording. May be called twice. Raises OSError."""

    @abstractmethod
    def tap(self, outgoing: bool, datagram: bytes) -> None:
        """Record a datagram; ``outgoing`` ones went to the kernel."""

    @abstractmethod
    def flush(self) -> None:
        """Put what was recorded on its way to the disk."""

    @abstractmethod
    def close(self) -> None:
        """Finish the recording. May be called twice. Raises the OSError that ended it, if one did."""


# Weak: an exception from a signal handler may end `Recorder.__enter__` behind `enter`, and `__exit__` before it begins.
_current: list[weakref.ref[Recording]] = []


def enter(recording: Recording) -> None:
    """From now on `current` returns this one, until `leave`."""
    _current.append(weakref.ref(recording))


def leave(recording: Recording) -> None:
    """Undo `enter`; may be called twice, and without it."""
    _current[:] = [reference for reference in _current if reference() not in (recording, None)]


def current() -> Recording | None:
    """Return the recording of the innermost `nfnet.record` block, None outside of any."""
    recordings = (reference() for reference in reversed(_current))
    return next((recording for recording in recordings if recording is not None), None)
