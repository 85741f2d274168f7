"""A registry of objects that have to do something when the process forks.

A child has copies of all objects, but only the thread that forked. A lock that another thread held therefore stays
locked in the child; an event that both processes share would wake the wrong one; and a socket that the child keeps open
keeps its queue alive after the parent has ended. Objects with locks, events or sockets call `register`. The registry
holds weak references.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

from .system import at_forks


class AtFork:
    """An object whose methods are called at every fork after `register`."""

    __slots__ = ()

    def before_fork(self) -> None:
        """Called in the parent, before the child exists."""

    def after_fork(self) -> None:
        """Called in the child, which has one thread."""


_registered: weakref.WeakSet[AtFork] = weakref.WeakSet()


def register(thing: AtFork) -> None:
    """Call the methods of ``thing`` at every fork from now on."""
    _registered.add(thing)


def _call_all(method: Callable[[AtFork], None]) -> None:
    """Call a method of each object, and then raise the first error, which Python prints."""
    first: Exception | None = None
    for thing in list(_registered):
        try:
            method(thing)
        except Exception as error:
            first = first or error
    try:
        if first is not None:
            raise first
    finally:
        del first  # the error refers to this frame


def _before_fork() -> None:
    _call_all(lambda thing: thing.before_fork())


def _after_fork() -> None:
    _call_all(lambda thing: thing.after_fork())


at_forks(before=_before_fork, after_in_child=_after_fork)
