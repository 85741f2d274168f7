"""Locks that an exception from a signal handler does not leave locked, and rules for code that it can interrupt.

The problem. CPython runs signal handlers in the main thread, between two instructions of the program, and a handler
can raise; Ctrl-C raises KeyboardInterrupt. If that happens after a lock was acquired and before the block that will
release it has begun, the lock stays locked. Every other thread that decides a packet then waits for ever, and the
program never ends. The same holds for a flag that means that a thread is sending, and for a locked file.

CPython does not check for signals between every two instructions, but only

- after the call of a function that is written in C,
- where a function that is written in Python begins, and where a generator resumes,
- at a jump backwards, and in 3.10 at every jump, including the one past the body of an ``if`` whose condition is false.

Therefore these constructs are unsafe:

- ``lock.acquire()`` and then ``try``, in every version: CPython checks after the call.
- ``with lock`` in CPython 3.14, which calls ``__enter__`` like any other function (gh-148874, mended in 3.15). Other
  versions call it and begin the block in a single instruction, or do not check in between.
- An ``__exit__`` that is written in Python, in every version: CPython checks before its first instruction.
- A loop within a ``with`` or ``try`` block whose last statement is a condition, in CPython 3.13 and 3.14: the jump back
  from there lies outside of the block (gh-130279, mended in 3.15). That includes ``while condition``, which the
  compiler tests at the end of the loop.
- The cleanup of any ``with`` or ``try`` block that an exception leaves, in CPython 3.10: it checks before the first
  instruction of the cleanup, unless that begins a ``try`` or ``with`` block. The exception of a second signal can thus
  prevent the cleanup.
- `threading.Condition` and everything built on it (Event, Semaphore, Timer, `Thread.start`, `queue.Queue`), in every
  version: they acquire their locks in functions written in Python.

The solution.

- `RLock` is that of `threading`, which is written in C. In 3.14 its ``__enter__`` acquires the lock by an operator,
  which is not a call, and its ``__exit__`` is still the one in C. Locks are reentrant, because a signal handler can
  decide a packet, or close a queue, while the code that it interrupted holds one.
- Where ``with`` cannot be used, `uninterrupted` calls a function written in C without a check for signals after it.
- A flag is set in the statement before its ``try``, without a call in between.
- Loops under ``with`` and ``try`` are ``while True`` with a ``break``, and end with a statement other than a condition;
  or they are in a function of their own.
- Attributes, and `queue.SimpleQueue`, which is written in C, take the place of an Event.
- Where the cleanup in a ``finally`` must not be prevented in 3.10, it is in the ``finally`` of another ``try``, which
  is empty. `Ledger` releases its lock, if it was left locked, when the thread reads again or closes the queue. Other
  locks can stay locked in 3.10 if signal handlers raise twice within microseconds.
- A resource whose ``__exit__`` is written in Python belongs to an object, and is released when that is collected.

``tests/test_layers.py`` and ``tests/test_locks.py`` search all the code for unsafe constructs. Signal handlers never
interrupt threads other than the main thread.

PyPy checks for signals before every instruction, including the one that calls ``__exit__``, so nothing helps there.
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
            return ~self  # one expression, so that CPython checks for signals in none of its instructions


def uninterrupted(function: Callable[..., T], *arguments: object) -> Iterator[T]:
    """Return an iterator whose only item is ``function(*arguments)``. The function must be written in C.

        for acquired in uninterrupted(lock.acquire, False):
            if not acquired:
                return
            try:
                ...
            finally:
                lock.release()

    A ``for`` statement takes the item without a call, so no signal handler runs between the function and the ``try``.
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
