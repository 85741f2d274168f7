"""Moving items from one list to another so that a signal handler that raises neither loses nor duplicates any.

The problem. A Python signal handler can run between two bytecode instructions of the main thread, and it can raise.
Ctrl-C raises KeyboardInterrupt, in ``time.sleep`` in a handler of packets or in the middle of our own code. ::

    into.extend(kept)
    kept.clear()

If the exception is raised between these lines the datagrams are in both lists, and packets would be handed out twice.
In the other order the datagrams would be in neither, and the packets would wait in the kernel for ever. ``try`` is no
help: the exception can be raised before its first instruction, or within ``finally``. Blocking signals costs two system
calls each time.

The solution. CPython checks for signals when a function begins, when a call has returned, and when a loop jumps back;
not between the instructions of one statement that contains no call and no loop. An assignment with several targets
evaluates its right side first and then stores each, so ::

    into[END:], kept[:count] = kept[:count], ()

happens as a whole or not at all (slices of lists are C code that calls no Python code). `move` is such a statement. The
ledger of verdicts and the bindings, which change lists and counters together, have their own, marked "one statement".

For the same reason one call of C code stores the datagrams of the kernel, ``into.extend(map(recv, ...))``: between a
call of ``recv`` and the assignment of its result an exception would lose the datagram. Or a ``for`` statement takes
them, ``for datagram in map(recv, ...)``, in which the interpreter sees no call; then the datagram is safe until the
next call, and must be stored in a list or an attribute before that.
"""

from __future__ import annotations

import sys
from typing import TypeVar

END = sys.maxsize
"""The end of any list: ``list[END:] = more`` appends."""

T = TypeVar("T")


def move(source: list[T], into: list[T], limit: int = END) -> int:
    """Move the first items of ``source``, at most ``limit``, to the end of ``into``, and return how many there were."""
    count = min(limit, len(source))
    into[END:], source[:count] = source[:count], ()  # one statement
    return count
