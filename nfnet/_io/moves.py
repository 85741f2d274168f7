"""Moving things from one list to another so that a signal neither loses nor doubles any.

The problem. A Python signal handler can run between any two bytecode instructions of the main thread, and it may
raise: KeyboardInterrupt does, from ``time.sleep`` in a handler of packets or in the midst of our own code. ::

    into.extend(kept)
    kept.clear()

If the exception comes between these lines the datagrams are in both lists: packets would be handed out twice. In the
other order they would be in none, and the packets would wait in the kernel for ever. ``try`` does not help: the
exception may come before its first instruction, or in the midst of ``finally``. Blocking signals costs two system calls
each time.

The solution. CPython looks for signals when a function begins, when a call has returned, and when a loop jumps back;
not between the instructions of one statement that contains no call and no loop. An assignment with several targets
evaluates its right side first and then stores each, so ::

    into[END:], kept[:count] = kept[:count], ()

happens as a whole or not at all (slices of lists are C code that calls nothing back). The functions here are such
statements. The ledger of verdicts and the bindings, which change lists and counters together, have one of their own,
marked "one statement".

What comes from the kernel is stored by one call of C code, ``into.extend(map(recv, ...))``, for the same reason:
between a call of ``recv`` and the assignment of its result an exception would lose the datagram. Or it is taken by a
``for`` statement, ``for datagram in map(recv, ...)``, which calls no function as far as the interpreter is concerned;
then the datagram is safe until the next call, and has to be in a list or an attribute before that.
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
