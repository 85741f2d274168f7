"""`lru_cache` as in functools, but safe in a process that forks while threads run.

functools has it in C for CPython. That of PyPy is in Python and has a lock: if another thread holds it at the moment of
the fork, the child waits for it for ever.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from functools import wraps
from typing import TYPE_CHECKING, Any

__all__ = ["lru_cache"]

if TYPE_CHECKING or sys.implementation.name == "cpython":
    from functools import lru_cache
else:

    def lru_cache(maxsize: int) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator that has a function remember its results. When there are too many it forgets all."""

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            results: dict[Hashable, Any] = {}

            @wraps(function)
            def remembering(*arguments: Hashable, **named: Hashable) -> Any:
                key = (arguments, *named.items()) if named else arguments
                try:
                    return results[key]
                except KeyError:
                    if len(results) >= maxsize:
                        results.clear()
                    # If another thread has been faster, its result is that for all: some are compared by identity.
                    return results.setdefault(key, function(*arguments, **named))

            return remembering

        return decorate
