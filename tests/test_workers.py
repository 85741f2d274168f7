"""`Workers` without a kernel; other tests are in live/test_workers.py."""

from __future__ import annotations

import os
import select
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import nfnet
from nfnet import Workers, workers

from .kernel import FakeKernel
from .test_queue import NOT_RUN

SOON = 60.0


class Idle(workers._Worker):
    """Has a pipe instead of a process."""

    def start(self) -> None:
        self.ended, self.life = os.pipe()

    @property
    def sentinel(self) -> int:
        return self.ended

    def end(self) -> None:
        for fd in {self.ended, self.life} - {-1}:
            os.close(fd)
        self.ended = self.life = -1


_Worker = workers._Worker


class Sleeping(_Worker):
    def _work(self) -> None:
        time.sleep(60)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


@pytest.mark.parametrize("exists", [True, False])
def test_a_worker_whose_fork_raises_is_not_left_behind(monkeypatch: pytest.MonkeyPatch, exists: bool) -> None:
    """Python 3.15 does so under -W error, in a process that has several threads."""
    fork, before = os.fork, children()

    def raising() -> int:
        if exists and fork() == 0:
            return 0
        raise DeprecationWarning("use of fork() may lead to deadlocks in the child")

    monkeypatch.setattr(os, "fork", raising)
    worker = Sleeping(print, [1], {})
    with pytest.raises(DeprecationWarning):
        worker.start()
    assert children() == before
    worker.end()
    monkeypatch.setattr(os, "fork", fork)
    worker.start()
    assert len(children() - before) == 1
    worker.ask_to_end()
    worker.end()
    assert children() == before


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_Worker", Idle)


@pytest.mark.parametrize("kind", NOT_RUN)
def test_a_handler_that_a_call_does_not_run_is_refused(kind: str) -> None:
    handler, words = NOT_RUN[kind]
    for use in (Workers, nfnet.run_workers):
        with pytest.raises(TypeError, match=words):
            use(handler, [1])


def test_they_may_be_started_again() -> None:
    several = Workers(print, [1, 2])
    for _ in range(2):
        with several:
            with pytest.raises(nfnet.NfnetError, match="running already"):
                several.start()
            assert select.select([several._waiter], [], [], 0)[0] == [], "nothing is left of an earlier stop"
            several._workers[0]._now[0] += 1
            waiting = threading.Thread(target=several.wait)
            waiting.start()
            several.stop()
            waiting.join(SOON)
            assert not waiting.is_alive()
        assert several.counters.received == 1


def test_stop_at_any_moment_of_close(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Workers(print, [1])
    several.stop()  # does no harm
    several.start()
    close = os.close

    def close_and_stop(fd: int) -> None:  # as a second Ctrl-C does
        close(fd)
        several.stop()

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", close_and_stop)
        several.close()
    several.stop()
    several.close()


def test_stop_in_a_signal_handler_wherever_close_is() -> None:
    """A signal handler can run at every line that `close` executes, in any file."""
    several = Workers(print, [1])
    several.start()
    lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line":
            sys.settrace(None)
            several.stop()
            lines += 1
            sys.settrace(trace)
        return trace

    def close() -> None:
        sys.settrace(trace)
        try:
            several.close()
        finally:
            sys.settrace(None)

    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(SOON)
    assert not closing.is_alive(), "it waits for a lock that it has itself"
    assert lines > 5


def test_an_interrupt_while_they_end_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    several = Workers(print, [1, 2])
    several.start()

    def interrupt(worker: Idle, deadline: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Idle, "wait_until", interrupt)
        with pytest.raises(KeyboardInterrupt):
            several.close()
    assert [worker.sentinel for worker in several._workers] == [-1, -1]
    with several:  # can be started again
        pass


@pytest.mark.parametrize("options", [{"record": "x.pcapng"}, {"transport": FakeKernel()}])
def test_what_processes_cannot_share_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(nfnet.ArgumentError, match="not for workers"):
        Workers(print, [1], **options)
    with pytest.raises(nfnet.ArgumentError, match="not for workers"):
        nfnet.run_workers(print, [1], **options)
    Workers(print, [1], **dict.fromkeys(options))
