"""Locks that an exception from a signal handler does not leave locked, and what else it must not leave behind.

The problem. CPython runs signal handlers in the main thread, between two instructions of whatever it executes, and
they may raise; Ctrl-C raises KeyboardInterrupt. If that happens after a lock was acquired and before the block that
will release it has begun, nobody releases it. Every other thread that decides a packet then waits for ever, and the
program never ends. The same goes for a flag that says that somebody is sending, and for a file that is locked.

CPython does not look for signals between any two instructions, but

- after the call of a function that is written in C,
- where a function that is written in Python begins, and where a generator goes on,
- at a jump backwards, and in 3.10 at each jump: also where a condition leads around the body of an ``if``.

What fails, therefore:

- ``lock.acquire()`` and then ``try``, in every version: there is a look behind the call.
- ``with lock`` in CPython 3.14, which calls ``__enter__`` as any other function (gh-148874, mended in 3.15). Other
  versions do that, and begin the block, in a single instruction, or do not look.
- An ``__exit__`` that is written in Python, in every version: there is a look before its first instruction.
- A loop within a ``with`` or ``try`` block, if a condition is the last thing in it, in CPython 3.13 and 3.14: the jump
  back from there lies outside of the block (gh-130279, mended in 3.15). That is the case with ``while condition``, too,
  which the compiler tests at the end of the loop.
- The cleanup of any ``with`` or ``try`` block that an exception leaves, in CPython 3.10: there is a look before its
  first instruction, unless that begins a ``try`` or ``with`` block. In this way the second of two signals can prevent
  the cleanup.
- `threading.Condition` and what is made of it (Event, Semaphore, Timer, `Thread.start`, `queue.Queue`), in every
  version: they have locks, and acquire them in functions written in Python.

The solution.

- `RLock` is that of `threading`, which is written in C. In 3.14 its ``__enter__`` acquires the lock by an operator,
  which is no call, and its ``__exit__`` stays that of C. Locks are reentrant, because a signal handler may decide a
  packet, or close a queue, while the code that it interrupted holds one.
- Where ``with`` will not do, `uninterrupted` calls a function of C without a look behind it.
- A flag is set in the statement before its ``try``, without a call in between.
- Loops under ``with`` and ``try`` are ``while True`` with a ``break``, and end with a statement that is no condition;
  or they are in a function of their own.
- Attributes, and `queue.SimpleQueue`, which is written in C, are used where others have an Event.
- Where the cleanup in a ``finally`` must not be prevented in 3.10, it is in the ``finally`` of another ``try``, which
  is empty. `Ledger` releases its lock, if it was left locked, when the thread reads again or closes the queue. Other
  locks can stay locked in 3.10 if signal handlers raise twice within microseconds.
- What an object holds that has an ``__exit__`` in Python is let go of when the object is collected.

``tests/test_layers.py`` and ``tests/test_locks.py`` look for what fails in all the code. What is done in threads other
than the main thread is never interrupted.

PyPy looks for signals before every instruction, also before that which calls ``__exit__``, so that there nothing helps.
A signal handler that calls `Queue.stop` instead of raising is always safe.
"""

from __future__ import annotations

import _thread
import sys
from collections.abc import Callable, Iterator
from threading import RLock
from types import FrameType
from typing import TypeVar

__all__ = ["CLEANS_UP", "RLock", "interrupted_another", "release", "uninterrupted"]

T = TypeVar("T")
CLEANS_UP = sys.implementation.name != "cpython" or sys.version_info >= (3, 11)
"""Whether there is nothing to undo that blocks without their cleanup have left behind."""

if sys.implementation.name == "cpython" and sys.version_info[:2] == (3, 14):

    class RLock(_thread.RLock):  # type: ignore[no-redef, misc]  # final, as far as typeshed knows
        __slots__ = ()

        __invert__ = _thread.RLock.acquire

        def __enter__(self) -> bool:  # type: ignore[override]
            return ~self  # one expression, so that there is no instruction in which a signal is looked for


def uninterrupted(function: Callable[..., T], *arguments: object) -> Iterator[T]:
    """Return an iterator whose only item is ``function(*arguments)``. The function must be written in C.

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


def interrupted_another() -> bool:
    """Return whether the caller's caller interrupted a function of the same file, in this thread.

    A signal handler called it then. If not, what functions of the file have left behind can be undone.
    """
    file = sys._getframe(1).f_code.co_filename
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        if frame.f_code.co_filename == file:
            return True
        frame = frame.f_back
    return False


def release(lock: RLock) -> None:
    """Release a lock as often as this thread has acquired it."""
    while lock._is_owned():  # type: ignore[attr-defined]
        lock.release()
