"""What has to be put right in a forked child, in one registry.

A child has copies of all objects, and only the thread that forked. So a lock that another thread held stays locked for
ever there; descriptors that two processes share would wake the wrong one; and a socket that the child keeps open keeps
its queue alive when the parent has ended. Objects that hold such things register themselves and are told. The registry
does not keep them alive.
"""

from __future__ import annotations

import os
import weakref


class AtFork:
    """An object that wants to know of forks, once `register` was called with it."""

    __slots__ = ()

    def before_fork(self) -> None:
        """In the parent, before the child exists."""

    def after_fork(self) -> None:
        """In the child, which has one thread."""


_registered: weakref.WeakSet[AtFork] = weakref.WeakSet()


def register(thing: AtFork) -> None:
    """Tell it of every fork from now on."""
    _registered.add(thing)


def _before_fork() -> None:
    for thing in list(_registered):
        thing.before_fork()


def _after_fork() -> None:
    for thing in list(_registered):
        thing.after_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
