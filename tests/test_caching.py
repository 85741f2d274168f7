"""`nfnet._caching`: results that are remembered, also in a forked child."""

from __future__ import annotations

import os
import signal
import sys
import threading

import pytest

from nfnet._caching import lru_cache


def test_a_child_can_use_a_cache_that_another_thread_was_using() -> None:
    """In PyPy the cache of functools is locked while it compares arguments."""
    comparing, go_on = threading.Event(), threading.Event()

    class Argument:
        def __hash__(self) -> int:
            return 1

        def __eq__(self, other: object) -> bool:
            comparing.set()
            return go_on.wait(60) and False

    @lru_cache(16)
    def kind(argument: object) -> type:
        return type(argument)

    kind(Argument())
    thread = threading.Thread(target=kind, args=(Argument(),))
    thread.start()
    assert comparing.wait(60)
    if not (pid := os.fork()):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(10)
        os._exit(kind("text") is not str)
    try:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        go_on.set()
        thread.join(60)


@pytest.mark.skipif(sys.implementation.name == "cpython", reason="there it is that of functools")
def test_results_are_remembered_and_all_forgotten_when_there_are_too_many() -> None:
    calls = []

    @lru_cache(2)
    def double(number: int, *, of: int = 1) -> list[int]:
        calls.append(number)
        return [2 * number * of]

    assert double(1) is double(1)
    assert double(1, of=3) == [6]
    assert double(1, of=3) is double(1, of=3)
    assert calls == [1, 1]
    double(2)
    double(1)
    assert calls == [1, 1, 2, 1]
