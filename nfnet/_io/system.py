"""What the system and the interpreter have, and what stands in where something is missing.

Other modules take it from here and do not ask themselves.
"""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import socket
import sys
import weakref
from collections.abc import Callable
from typing import Any

from ..errors import NotSupportedError

__all__ = [
    "GIL",
    "KERNEL",
    "LINUX",
    "MACHINE",
    "WINDOWS",
    "Event",
    "Select",
    "append_only",
    "at_forks",
    "block_signals",
    "check_linux",
    "collect_forgotten",
    "fcntl",
    "group_number",
    "linux_only",
    "user_number",
]

LINUX: bool = sys.platform in ("linux", "android")
"""Whether there are queues, log groups, rules and network namespaces. Elsewhere handlers can be tested, and recordings
be read: macOS and Windows, of which the tests know by simulation (``tests/other_systems.py``)."""

WINDOWS: bool = sys.platform == "win32"
"""Whether nothing of POSIX is there: no fork, no file descriptors of sockets, no users with numbers."""

MACHINE: str = os.uname().machine if LINUX else ""
"""As ``uname -m`` says; only Linux needs it."""

KERNEL: str = os.uname().release if LINUX else ""
"""The release of the kernel, as ``uname -r`` says; "" if it is not Linux."""

if sys.platform != "win32":
    import fcntl
else:
    fcntl: Any = None
    """The module `fcntl`, None on Windows."""


def linux_only(operation: str) -> NotSupportedError:
    """Return the error for what takes a Linux kernel."""
    return NotSupportedError(
        operation,
        errno.EOPNOTSUPP,
        reason="Linux only",
        hint=f"This is {_NAMES.get(sys.platform, sys.platform)}. A handler is tested here with nfnet.testing.FedQueue,"
        " the fixture nfnet_queue of pytest, or nfnet.replay: see 'Test a handler on a laptop' in its documentation",
    )


_NAMES = {"darwin": "macOS", "win32": "Windows"}


def check_linux(operation: str) -> None:
    """Raises NotSupportedError on any other system."""
    if not LINUX:
        raise linux_only(operation)


def append_only(fd: int) -> None:
    """Let all that is written to a file come to its end, wherever that is by then."""
    check_linux("writing to the end of a file")
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_APPEND)


def user_number(name: str) -> int:
    """Return the number of a user. Raises KeyError if there is none of that name."""
    check_linux(f"looking for the user {name!r}")
    import pwd

    return pwd.getpwnam(name).pw_uid


def group_number(name: str) -> int:
    """Return the number of a group of users. Raises KeyError if there is none of that name."""
    check_linux(f"looking for the group {name!r}")
    import grp

    return grp.getgrnam(name).gr_gid


def at_forks(*, before: Callable[[], object] | None = None, after_in_child: Callable[[], object] | None = None) -> None:
    """Call functions at every fork, as `os.register_at_fork` does. On Windows no process forks."""
    if not WINDOWS:
        if before is not None:
            os.register_at_fork(before=before)
        if after_in_child is not None:
            os.register_at_fork(after_in_child=after_in_child)


def block_signals() -> None:
    """Let no signal come to the calling thread. On Windows signals come to the main thread alone, as it is."""
    if not WINDOWS:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())

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

    PyPy and macOS have none. Windows has neither: see `_SocketEvent`.
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


class _DescriptorEvent:
    """A descriptor that polls readable from `set` to `clear`. The methods may be called in signal handlers."""

    def __init__(self) -> None:
        self._reading, self._writing = descriptors = _open_event()
        self._finalizer: weakref.finalize[Any, _DescriptorEvent] = weakref.finalize(self, _close, *descriptors)
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


def _close_sockets(*sockets: socket.socket) -> None:
    for sock in sockets:
        sock.close()


class _SocketEvent:
    """The same on Windows, whose `select` knows sockets alone, of a pair of them."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._reading.setblocking(False)
        self._writing.setblocking(False)
        self._number = self._reading.fileno()
        self._finalizer: weakref.finalize[Any, _SocketEvent]
        self._finalizer = weakref.finalize(self, _close_sockets, self._reading, self._writing)
        self._finalizer.atexit = False  # as above

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._number

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return not self._finalizer.alive

    def set(self) -> None:
        """Make it readable. After `close` nothing happens."""
        if not self.closed:
            try:
                self._writing.send(_ONE)
            except BlockingIOError:  # it is full, and so readable
                return

    def clear(self) -> None:
        """Make it not readable. After `close` nothing happens."""
        while not self.closed:
            try:
                self._reading.recv(_ALL)
            except BlockingIOError:
                return

    def close(self) -> None:
        """Close the sockets. May be called twice."""
        self._finalizer()

    def renew(self) -> None:
        """Nothing: no process forks."""


_Event = _SocketEvent if WINDOWS else _DescriptorEvent


class _ToldEvent(_Event):
    """An event that tells the objects of `Select` which watch it, where there is no epoll."""

    def __init__(self) -> None:
        super().__init__()
        self.is_set = False
        self.watchers: weakref.WeakSet[Select] = weakref.WeakSet()
        _events[self.fileno()] = self

    def set(self) -> None:
        """Make it readable. After `close` nothing happens."""
        self.is_set = True  # before the watchers look at it
        super().set()
        for watcher in list(self.watchers):
            watcher.event.set()

    def clear(self) -> None:
        """Make it not readable. After `close` nothing happens."""
        self.is_set = False
        super().clear()
        for watcher in list(self.watchers):
            watcher.look()

    def close(self) -> None:
        """Close the descriptors. May be called twice."""
        self.is_set = False
        if not self.closed:
            _events.pop(self.fileno(), None)
        super().close()
        for watcher in list(self.watchers):
            watcher.look()


Event = _Event if LINUX else _ToldEvent

_events: weakref.WeakValueDictionary[int, _ToldEvent] = weakref.WeakValueDictionary()


class Select:
    """What `Poller` needs of `select.epoll`, where there is none, for events of this process.

    Its descriptor is that of another event, which is set while one of those watched is. As with epoll, what is closed
    is watched no longer.
    """

    def __init__(self) -> None:
        self.event = _ToldEvent()
        self._watched: weakref.WeakValueDictionary[int, _ToldEvent] = weakref.WeakValueDictionary()

    def register(self, file: _ToldEvent | int, what: int = 0) -> None:
        """Watch an event, or the descriptor of one.

        Raises FileExistsError if it is watched already, NotSupportedError for a descriptor that is not of an event: a
        transport of the program's own.
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
        """Watch it no longer. Raises FileNotFoundError if it is not watched."""
        event = self._watched.pop(number, None)
        if event is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        event.watchers.discard(self)
        self.look()

    def look(self) -> None:
        """Set or clear the event. Another thread, or a signal handler, may set one of those watched meanwhile."""
        self.event.clear()  # first: then an event that is set before the look at it is seen, and later sets it itself
        if any(event.is_set for event in list(self._watched.values())):
            self.event.set()

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Wait until one of them is set, so many seconds at most, and return the descriptors of those that are."""
        select.select([self.event], [], [], timeout)
        return [(number, 0) for number, event in list(self._watched.items()) if event.is_set]

    def renew(self) -> None:
        """Begin anew with the same descriptor: in a forked child."""
        self.event.renew()
        self.look()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self.event.fileno()
