"""A lock that an exception from a signal handler never leaves locked.

The problem: CPython runs signal handlers in the main thread, between two instructions of whatever it executes, and
they may raise; Ctrl-C raises KeyboardInterrupt. If that happens after a lock was acquired and before the block that
will release it has begun, nobody releases the lock: every other thread that decides a packet waits for ever, and the
program never ends.

CPython does not look for signals between any two instructions, but only

- after the call of a function that is written in C,
- where a function that is written in Python begins, or a generator goes on,
- at a jump backwards.

What fails, therefore:

- ``lock.acquire()`` followed by ``try``, in every version: there is a look after the call.
- ``with lock:`` in CPython 3.14, where the statement calls ``__enter__`` by the instruction that other calls use, too
  (gh-148874, mended in 3.15). Before, an instruction of its own called it and began the block.
- An ``__exit__`` written in Python, in every version: there is a look where it begins, with the lock still held.
- What has such a lock inside, in every version: `threading.Condition`, and with it Event, Semaphore, Timer, Barrier,
  `queue.Queue` and `Thread.start`, which waits for an Event.

The solution: `RLock` is that of `threading`, which is C; in 3.14 its ``__enter__`` acquires it by an operator, which is
no call, and its ``__exit__`` stays that of C. All code that the main thread may run takes locks by ``with`` and this
class, or by `uninterrupted`, and has plain attributes or a `queue.SimpleQueue`, which is C, where others have an Event;
``tests/test_layers.py`` holds that.

The locks are reentrant because a signal handler may decide packets, or close the queue, while the code that it
interrupted holds one.

PyPy looks for signals before every instruction, also between the end of a block and the call of ``__exit__``: there,
nothing that is written in Python is safe, and programs should let their signal handlers call `Queue.stop`.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable, Iterator
from threading import RLock
from typing import TypeVar

__all__ = ["RLock", "uninterrupted"]

T = TypeVar("T")

if sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 14):

    class RLock(_thread.RLock):  # type: ignore[no-redef, misc]  # final, as far as typeshed knows
        __slots__ = ()

        __invert__ = _thread.RLock.acquire

        def __enter__(self) -> bool:  # type: ignore[override]
            return ~self  # one expression, so that there is no instruction in which a signal is looked for


def uninterrupted(function: Callable[..., T], *arguments: object) -> Iterator[T]:
    """What ``function(*arguments)`` returns, as the only item of an iterator; the function must be written in C.

        for acquired in uninterrupted(lock.acquire, False):
            if not acquired:
                return
            try:
                ...
            finally:
                lock.release()

    A ``for`` statement takes the item without a call, so nothing comes between what the function did and the ``try``.
    """
    return map(function, *((argument,) for argument in arguments))
