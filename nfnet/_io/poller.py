"""`Poller`: one descriptor for event loops, readable when a transport has data, or after `Poller.wake`."""

from __future__ import annotations

import os
import select as standard_select
from contextlib import suppress

from . import at_fork
from .native import among_greenlets, select
from .system import LINUX, Event, Select

_READABLE: int = select.EPOLLIN if LINUX else 0
_LONGEST_WAIT = 1.0  # seconds; see `netlink_socket`


class Poller(at_fork.AtFork):
    """An epoll descriptor that watches an event, for `wake`, and the descriptor of a transport.

    On systems without epoll, `Select` takes its place.
    """

    def __init__(self) -> None:
        self._event = Event()
        self._epoll = select.epoll() if LINUX else Select()
        self._epoll.register(self._event, _READABLE)
        self._among_greenlets = among_greenlets()
        self._inherited: int | None = None
        self._woken = False
        at_fork.register(self)

    def fileno(self) -> int:
        """Return the descriptor, which is readable when `wait` would return at once."""
        return self._epoll.fileno()

    def watch(self, fd: int, *, inherit: bool = False) -> None:
        """Also wait for descriptor ``fd``, until it is closed; in forked children only if they ``inherit`` it."""
        self._epoll.register(fd, _READABLE)
        self._inherited = fd if inherit else None

    def unwatch(self, fd: int) -> None:
        """Stop waiting for descriptor ``fd``. Raises FileNotFoundError if it is not watched."""
        self._epoll.unregister(fd)

    def wake(self) -> None:
        """End the current `wait`, or the next one if there is none."""
        self._woken = True  # before the event is set, so that `reset` does not leave it set
        self._event.set()

    def reset(self) -> None:
        """Forget earlier calls of `wake`."""
        if self._woken:
            self._woken = False
            self._event.clear()

    def wait(self, timeout: float = _LONGEST_WAIT) -> bool:
        """Wait until the descriptor is readable, at most a second; return False after a timeout."""
        # A signal that arrives between Python's last check for signals and the system call does not end the wait:
        # without a limit its handler would have to wait for the next packet.
        timeout = min(timeout, _LONGEST_WAIT)
        if self._among_greenlets:  # gevent's or eventlet's: other greenlets run meanwhile
            standard_select.select([self._epoll.fileno()], [], [], timeout)
            timeout = 0
        events = self._epoll.poll(timeout)
        for fd, _ in events:
            if fd == self._event.fileno():
                self.reset()
        return bool(events)

    def close(self) -> None:
        """Close the descriptors. Can be called twice."""
        self._event.close()
        self._epoll.close()

    def after_fork(self) -> None:
        # Parent and child would share the event, and wake each other. The child gets a new event and a new epoll,
        # under the same descriptor numbers.
        if self._event.closed:
            return
        self._event.renew()
        if isinstance(self._epoll, Select):
            self._epoll.renew()
            return
        with select.epoll() as epoll:
            epoll.register(self._event, select.EPOLLIN)
            if self._inherited is not None:
                with suppress(OSError):  # it was closed
                    epoll.register(self._inherited, select.EPOLLIN)
            os.dup2(epoll.fileno(), self._epoll.fileno(), inheritable=False)
