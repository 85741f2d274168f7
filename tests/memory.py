"""Memory that Python code allocates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def traced() -> Iterator[Callable[[], tuple[int, int]]]:
    """Yield a function that returns how many bytes are allocated, and the most that were, since the block began.

    Skip the test on PyPy, whose memory cannot be traced.
    """
    tracemalloc = pytest.importorskip("tracemalloc")
    tracemalloc.start()
    try:
        yield tracemalloc.get_traced_memory
    finally:
        tracemalloc.stop()
