"""Differences between operating systems and interpreters, and replacements for functions that some of them lack.

Other modules import these, and do not inspect the system themselves.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import time
import weakref
from collections.abc import Callable, Set
from contextlib import suppress
from functools import partial
from typing import Any

from ..errors import NotSupportedError

__all__ = [
    "KERNEL",
    "LINUX",
    "MACHINE",
    "SWITCHES_ANYWHERE",
    "WINDOWS",
    "Event",
    "Select",
    "append_only",
    "at_forks",
    "block_signals",
    "check_linux",
    "collect_forgotten",
    "fcntl",
    "freeze_objects",
    "group_number",
    "linux_only",
    "user_number",
    "wait_for_signal",
]

LINUX: bool = sys.platform in ("linux", "android")
"""Whether there are queues, log groups, rules and network namespaces. On macOS and Windows handlers can be tested, and
recordings read; the tests simulate these systems (``tests/other_systems.py``)."""

WINDOWS: bool = sys.platform == "win32"
"""Whether the system lacks POSIX: it has no fork, no file descriptors of sockets, and no numbers of users."""

MACHINE: str = os.uname().machine if LINUX else ""
"""The machine, as in ``uname -m``; "" if the system is not Linux."""

KERNEL: str = os.uname().release if LINUX else ""
"""The release of the kernel, as in ``uname -r``; "" if the system is not Linux."""

if sys.platform != "win32":
    import fcntl
else:
    fcntl: Any = None
    """The module `fcntl`, None on Windows."""


def linux_only(operation: str) -> NotSupportedError:
    """Return the error for an operation that requires a Linux kernel."""
    return NotSupportedError(
        operation,
        errno.EOPNOTSUPP,
        reason="Linux only",
        hint=f"This is {_NAMES.get(sys.platform, sys.platform)}. A handler is tested here with nfnet.testing.FedQueue,"
        " the fixture nfnet_queue of pytest, or nfnet.replay: see 'Test a handler on a laptop' in its documentation",
    )


_NAMES = {"darwin": "macOS", "win32": "Windows"}


def check_linux(operation: str) -> None:
    """Raise NotSupportedError if the system is not Linux."""
    if not LINUX:
        raise linux_only(operation)


def append_only(fd: int) -> None:
    """Make every write to a file append to its end, also after another process has written to it (O_APPEND)."""
    check_linux("writing to the end of a file")
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)


def user_number(name: str) -> int:
    """Return the number of a user. Raises KeyError if no user has that name."""
    check_linux(f"looking for the user {name!r}")
    import pwd

    return pwd.getpwnam(name).pw_uid


def group_number(name: str) -> int:
    """Return the number of a group of users. Raises KeyError if no group has that name."""
    check_linux(f"looking for the group {name!r}")
    import grp

    return grp.getgrnam(name).gr_gid


def at_forks(*, before: Callable[[], object] | None = None, after_in_child: Callable[[], object] | None = None) -> None:
    """Call functions at every fork, as `os.register_at_fork` does. Does nothing on Windows, where no process forks."""
    if not WINDOWS:
        if before is not None:
            os.register_at_fork(before=before)
        if after_in_child is not None:
            os.register_at_fork(after_in_child=after_in_child)


def block_signals() -> None:
    """Block all signals in the calling thread. Does nothing on Windows, where only the main thread gets signals."""
    if not WINDOWS:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())


def freeze_objects() -> None:
    """Exempt the objects that exist from garbage collections. Does nothing on PyPy, where the collector cannot."""
    if hasattr(gc, "freeze"):
        gc.freeze()


_POLLING = 0.1  # seconds


def wait_for_signal(signals: Set[signal.Signals], seconds: float) -> None:
    """Wait for one of these signals, which the calling thread has blocked, at most ``seconds``, and take it."""
    if hasattr(signal, "sigtimedwait"):
        signal.sigtimedwait(signals, seconds)
        return
    # PyPy and macOS have only `sigwait`, without a limit.
    end = time.monotonic() + seconds
    while not signals & signal.sigpending():
        left = end - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(left, _POLLING))
    signal.sigwait(signals)


SWITCHES_ANYWHERE: bool = sys.implementation.name != "cpython" or not getattr(sys, "_is_gil_enabled", lambda: True)()
"""Whether another thread can run between any two instructions: in free-threaded builds of CPython, which can also have
one lock for all threads, and in PyPy."""

_COUNTS_REFERENCES = sys.implementation.name == "cpython"


def collect_forgotten() -> bool:
    """Finalize now the objects that the program no longer refers to: iterations left by ``break``, and open queues.

    CPython finalizes an object when its last reference disappears, so this does nothing there and returns False. PyPy
    does so some time later; this makes it do so now, and returns True.
    """
    if _COUNTS_REFERENCES:
        return False
    gc.collect()
    return True


_ONE = (1).to_bytes(8, sys.byteorder)  # an eventfd adds this number to its counter; a pipe holds the eight bytes
_ALL = 1 << 16  # bytes: the capacity of a pipe


def _open_event() -> tuple[int, int]:
    """Return the descriptors to read from and to write to: of an eventfd, or of a pipe if Python has no eventfd.

    Python has none on PyPy and on macOS.
    """
    if hasattr(os, "eventfd"):
        descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return descriptor, descriptor
    reading, writing = os.pipe()  # not inheritable
    os.set_blocking(reading, False)
    os.set_blocking(writing, False)
    return reading, writing


def _open_sockets() -> tuple[socket.socket, socket.socket]:
    """Return the sockets to read from and to write to. For Windows, where `select.select` accepts only sockets."""
    reading, writing = socket.socketpair()
    reading.setblocking(False)
    writing.setblocking(False)
    return reading, writing


def _close(*descriptors: int) -> None:
    for descriptor in set(descriptors):
        os.close(descriptor)


def _close_sockets(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


def _read_all(sock: socket.socket, size: int) -> None:
    """Read until BlockingIOError, which means that the socket is empty; it can hold more than a pipe."""
    while sock.recv(size):
        continue


class Event:
    """A descriptor that polls readable from `set` to `clear`. Signal handlers can call the methods."""

    def __init__(self) -> None:
        self._finalizer: weakref.finalize[Any, Event]
        if WINDOWS:
            reading, writing = sockets = _open_sockets()
            self._reading, self._writing = reading.fileno(), writing.fileno()
            self._read: Callable[[int], object] = partial(_read_all, reading)
            self._write: Callable[[bytes], object] = writing.send
            self._finalizer = weakref.finalize(self, _close_sockets, *sockets)
        else:
            self._reading, self._writing = descriptors = _open_event()
            self._read, self._write = partial(os.read, self._reading), partial(os.write, self._writing)
            self._finalizer = weakref.finalize(self, _close, *descriptors)
        self._finalizer.atexit = False  # because `__del__` of an owner can close a queue later at exit
        self.is_set = False
        self.watchers: weakref.WeakSet[Select] = weakref.WeakSet()
        if not LINUX:
            _events[self._reading] = self

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._reading

    @property
    def closed(self) -> bool:
        """Whether the event was closed."""
        return not self._finalizer.alive

    def set(self) -> None:
        """Make the descriptor readable. Does nothing after `close`."""
        # The garbage collector runs finalizers of a cycle before `__del__` of an owner, which can close a queue.
        if self._finalizer.alive:
            self.is_set = True  # before a watcher looks at it
            with suppress(BlockingIOError):  # the pipe is full, and therefore readable
                self._write(_ONE)
            for watcher in list(self.watchers):
                watcher.event.set()

    def clear(self) -> None:
        """Make the descriptor unreadable. Does nothing after `close`."""
        if self._finalizer.alive:
            self.is_set = False
            with suppress(BlockingIOError):
                self._read(_ALL)
            self._tell()

    def close(self) -> None:
        """Close the descriptors. Can be called twice."""
        self.is_set = False
        if self._finalizer.alive and not LINUX:
            _events.pop(self._reading, None)
        self._finalizer()
        self._tell()

    def renew(self) -> None:
        """Replace the event by a new one, not set, under the same descriptors, so that a forked child has its own."""
        self.is_set = False
        new = _open_event()
        for descriptor, own in dict(zip(new, (self._reading, self._writing))).items():
            os.dup2(descriptor, own, inheritable=False)
        _close(*new)

    def _tell(self) -> None:
        for watcher in list(self.watchers):
            watcher.look()


_events: weakref.WeakValueDictionary[int, Event] = weakref.WeakValueDictionary()
"""Events by descriptor, for `Select`."""


class Select:
    """The methods of `select.epoll` that `Poller` needs, for systems without epoll and for events of this process.

    Its descriptor is that of another event, which is set while a watched event is set. As with epoll, a closed event is
    no longer watched.
    """

    def __init__(self) -> None:
        self.event = Event()
        self._watched: weakref.WeakValueDictionary[int, Event] = weakref.WeakValueDictionary()

    def register(self, file: Event | int, what: int = 0) -> None:
        """Watch an event, or the descriptor of one.

        Raises FileExistsError if it is watched already, and NotSupportedError for the descriptor of anything else, such
        as a transport that the program defines.
        """
        number = file if isinstance(file, int) else file.fileno()
        event = _events.get(number)
        if event is None:
            raise linux_only(f"watching file descriptor {number}")
        if self._watched.get(number) is event:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        self._watched[number] = event
        event.watchers.add(self)
        self.look()

    def unregister(self, number: int) -> None:
        """Stop watching a descriptor. Raises FileNotFoundError if it is not watched."""
        event = self._watched.pop(number, None)
        if event is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        event.watchers.discard(self)
        self.look()

    def look(self) -> None:
        """Set or clear the event. Another thread, or a signal handler, can set a watched event meanwhile."""
        # Clear first: an event that is set before it is checked is seen, and one that is set later sets `event` itself.
        self.event.clear()
        if any(event.is_set for event in list(self._watched.values())):
            self.event.set()

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Wait until a watched event is set, at most ``timeout`` seconds, and return the descriptors of set events."""
        select.select([self.event], [], [], timeout)
        return [(number, 0) for number, event in list(self._watched.items()) if event.is_set]

    def renew(self) -> None:
        """Replace the event by a new one under the same descriptor, so that a forked child has its own."""
        self.event.renew()
        self.look()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.event.fileno()

    def close(self) -> None:
        """Close the descriptors. Can be called twice."""
        self.event.close()
