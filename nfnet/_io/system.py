"""What the system and the interpreter have, and what stands in where something is missing.

Other modules take it from here and do not ask themselves.
"""

from __future__ import annotations

import gc
import os
import sys
import weakref
from typing import Any

__all__ = ["GIL", "Event", "collect_forgotten"]

GIL: bool = getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether one thread at a time executes Python code. False in free-threaded builds, which may also turn it on."""

_COUNTS_REFERENCES = sys.implementation.name == "cpython"


def collect_forgotten() -> bool:
    """Let what the program has forgotten end now: iterations that were left by ``break``, and open queues.

    CPython ends them when the last reference is gone. PyPy does so some time later, and here. Returns whether there may
    have been any; always False in CPython, where nothing is done.
    """
    if _COUNTS_REFERENCES:
        return False
    gc.collect()
    return True


_ONE = (1).to_bytes(8, sys.byteorder)  # what an eventfd adds to its counter; in a pipe it is just eight bytes
_ALL = 1 << 16  # bytes: as many as a pipe holds


def _open_event() -> tuple[int, int]:
    """Return the descriptors to read from and to write to: of an eventfd, or of a pipe where there is none.

    PyPy, macOS and Windows have none.
    """
    if hasattr(os, "eventfd"):
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return descriptor, descriptor
    reading, writing = os.pipe()  # not inheritable
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def _close(*descriptors: int) -> None:
    for descriptor in set(descriptors):
        os.close(descriptor)


class Event:
    """A descriptor that polls readable from `set` to `clear`. The methods may be called in signal handlers."""

    def __init__(self) -> None:
        self._reading, self._writing = descriptors = _open_event()
        self._finalizer: weakref.finalize[Any, Event] = weakref.finalize(self, _close, *descriptors)
        self._finalizer.atexit = False  # then `__del__` of an owner may still close a queue

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._reading

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._finalizer.alive

    def set(self) -> None:
        """Make it readable. After `close` nothing happens."""
        # The garbage collector runs finalizers of a cycle before `__del__` of an owner, which may close a queue.
        if self._finalizer.alive:
            try:
                os.write(self._writing, _ONE)
            except BlockingIOError:  # a full pipe is readable
                return

    def clear(self) -> None:
        """Make it not readable. After `close` nothing happens."""
        if self._finalizer.alive:
            try:
                os.read(self._reading, _ALL)
            except BlockingIOError:
                return

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        self._finalizer()

    def renew(self) -> None:
        """Begin anew, not set, with the same descriptors: in a forked child, which would share it with its parent."""
        new = _open_event()
        for descriptor, own in dict(zip(new, (self._reading, self._writing))).items():
            os.dup2(descriptor, own, inheritable=False)
        _close(*new)
