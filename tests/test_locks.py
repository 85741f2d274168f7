"""An exception from a signal handler, wherever it comes, leaves nothing taken that others wait for."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Queue, netns, recorder
from nfnet.compat import nflogr
from nfnet.locks import RLock, uninterrupted

from .kernel import FakeKernel, packet_message

ROUNDS = 2000
BOUND = 60  # seconds, for what must not hang

# PyPy looks for signals before every instruction: see the head of nfnet/locks.py.
pytestmark = pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython")


class Signals:
    """Interrupts functions at random moments."""

    def __init__(self) -> None:
        self._random = random.Random()

    def interrupt(self, function: Callable[[], object], within: float = 6e-5) -> bool:
        """Call a function; whether KeyboardInterrupt came out of it, or right behind it."""
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, within))
                function()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        return False


@pytest.fixture
def signals() -> Iterator[Signals]:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield Signals()
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def other() -> Iterator[ThreadPoolExecutor]:
    """Another thread."""
    pool = ThreadPoolExecutor(1)
    yield pool
    pool.shutdown(wait=False)


def empty(lock: Any) -> None:
    with lock:
        pass


def calls(lock: Any) -> None:
    with lock:
        os.getpid()


def nested(lock: Any) -> None:
    with lock, lock:
        os.getpid()
        with lock:
            pass


def returns(lock: Any) -> int:
    with lock:
        for number in range(3):
            if number % 2:
                return os.getpid()
    return 0


def tries(lock: Any) -> None:
    for acquired in uninterrupted(lock.acquire, True):
        assert acquired
        try:
            os.getpid()
        finally:
            lock.release()


@pytest.mark.parametrize("use", [empty, calls, nested, returns, tries])
def test_an_interrupt_leaves_no_lock_locked(signals: Signals, other: ThreadPoolExecutor, use: Any) -> None:
    lock = RLock()

    def again_and_again() -> None:
        while True:
            use(lock)

    def is_free() -> bool:
        if not lock.acquire(blocking=False):
            return False
        lock.release()
        return True

    for number in range(ROUNDS):
        assert signals.interrupt(again_and_again)
        assert other.submit(is_free).result(BOUND), f"after {number} signals"


def test_a_lock_is_for_one_thread_that_may_take_it_twice(other: ThreadPoolExecutor) -> None:
    lock = RLock()
    with lock, lock:
        assert not other.submit(lock.acquire, False).result(BOUND)
        (acquired,) = other.submit(lambda: list(uninterrupted(lock.acquire, False))).result(BOUND)
        assert not acquired
    with pytest.raises(RuntimeError):
        lock.release()
    assert other.submit(lock.acquire, False).result(BOUND)
    assert not lock.acquire(blocking=False)


# --- what holds something


def test_an_interrupt_leaves_a_reader_of_nflogr_to_others(signals: Signals, other: ThreadPoolExecutor) -> None:
    handle = nflogr._from_iter(repeat([(4, 2)]))
    for number in range(ROUNDS):
        signals.interrupt(lambda: list(iter(handle.next, None)))
        assert other.submit(handle.next, False).result(BOUND) is not None, f"after {number} signals"
    handle.close()


def test_an_interrupt_leaves_no_thread_at_work_in_a_namespace(signals: Signals) -> None:
    begun, ended = [], []

    def work() -> None:
        begun.append(0)
        ended.append(0)

    def again_and_again() -> None:
        while True:
            netns._in_thread(work)

    for number in range(ROUNDS):
        assert signals.interrupt(again_and_again, 1e-3)
        assert len(begun) == len(ended), f"after {number} signals"
    deadline = time.monotonic() + BOUND
    while len(os.listdir("/proc/self/task")) > 1 + threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(os.listdir("/proc/self/task")) <= 1 + threads
    assert netns._in_thread(lambda: 7) == 7


def test_an_interrupt_leaves_nothing_recording(signals: Signals, tmp_path: Path) -> None:
    def again_and_again() -> None:
        while True:
            with nfnet.record(tmp_path / "session.pcapng"):
                pass

    for number in range(ROUNDS // 2):
        assert signals.interrupt(again_and_again, 1e-3)  # and nobody else is recording to that file
        assert recorder.current() is None, f"after {number} signals"


def test_close_that_was_interrupted_can_be_called_again(signals: Signals) -> None:
    for number in range(ROUNDS):
        kernel = FakeKernel()
        queue = Queue(1, transport=kernel)
        queue.open()
        kernel.feed(2)
        queue.process(lambda packet: None)
        signals.interrupt(queue.close, 2e-4)
        queue.close()
        assert kernel.closed, f"after {number} signals"
        with pytest.raises(nfnet.ClosedError):
            queue.fileno()


@pytest.mark.parametrize(
    "code",
    [
        "workers = nfnet.Workers(print); signal.signal(signal.SIGALRM, lambda *_: workers.stop())\n"
        "while signals < 3000: workers.close()",
    ],
)
def test_x(code):
    pass
