"""Replacements for what the system or the interpreter lacks: the same tests with and without them."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from nfnet._io import at_fork
from nfnet._io.poller import Poller
from nfnet._io.system import Event, wait_for_signal


@pytest.fixture(params=["eventfd", "pipe"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pipe":
        monkeypatch.delattr(os, "eventfd", raising=False)
    elif not hasattr(os, "eventfd"):
        pytest.skip("this interpreter has no eventfd")
    return str(request.param)


def readable(thing: Event | Poller) -> bool:
    return bool(select.select([thing], [], [], 0)[0])


def test_an_event_is_readable_from_set_to_clear(kind: str) -> None:
    event = Event()
    for _ in range(2):
        assert not readable(event)
        event.clear()
        event.set()
        event.set()
        assert readable(event)
        event.clear()
    assert not readable(event)


def test_an_event_may_be_set_any_number_of_times(kind: str) -> None:
    event = Event()
    for _ in range(20_000):  # more than a pipe holds
        event.set()
    assert readable(event)
    event.clear()
    assert not readable(event)


def test_a_closed_event_does_nothing_and_leaves_no_descriptor(kind: str) -> None:
    before = os.listdir("/proc/self/fd")
    event = Event()
    assert not any(os.get_inheritable(fd) for fd in (event.fileno(), event._writing))
    event.close()
    event.close()
    assert event.closed
    assert os.listdir("/proc/self/fd") == before
    with open(os.devnull, "w+b", buffering=0):  # has its descriptor now, perhaps
        event.set()
        event.clear()


def test_a_forked_child_has_an_event_of_its_own(kind: str) -> None:
    event = Event()
    event.set()
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        event.renew()
        inherited = readable(event)
        event.set()
        event.clear()  # not the parent's
        event.set()
        os.write(tell, bytes([inherited, readable(event), os.get_inheritable(event.fileno())]))
        os._exit(0)
    os.waitpid(child, 0)
    assert list(os.read(told, 3)) == [False, True, False]
    assert readable(event)
    event.clear()
    assert not readable(event)
    os.close(told)
    os.close(tell)


def test_another_thread_ends_a_wait(kind: str) -> None:
    poller = Poller()
    thread = threading.Thread(target=poller.wake)
    thread.start()
    deadline = time.monotonic() + 30
    while not poller.wait():
        assert time.monotonic() < deadline
    thread.join()
    assert not readable(poller)


@pytest.fixture(params=["sigtimedwait", "sigwait"])
def blocked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[set[signal.Signals]]:
    """Signals that are blocked, to wait for with or without the function that PyPy and macOS lack."""
    if request.param == "sigwait":
        monkeypatch.delattr(signal, "sigtimedwait", raising=False)
    elif not hasattr(signal, "sigtimedwait"):
        pytest.skip("this interpreter has no sigtimedwait")
    signals = {signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    yield signals
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.mark.parametrize("delay", [0, 0.3])
def test_waiting_for_a_signal_takes_it(blocked: set[signal.Signals], delay: float) -> None:
    thread = threading.get_ident()
    timer = threading.Timer(delay, signal.pthread_kill, (thread, signal.SIGUSR2))
    timer.start()
    wait_for_signal(blocked, 3600)
    timer.join()
    assert signal.sigpending() == set()


def test_waiting_for_a_signal_ends_after_the_time(blocked: set[signal.Signals]) -> None:
    began = time.monotonic()
    wait_for_signal(blocked, 0.25)
    assert time.monotonic() - began > 0.24


class Forking(at_fork.AtFork):
    """Counts calls, and raises in some."""

    def __init__(self, *, fails: bool) -> None:
        self.calls = 0
        self._fails = fails
        at_fork.register(self)

    def before_fork(self) -> None:
        self.after_fork()

    def after_fork(self) -> None:
        self.calls += 1
        if self._fails:
            raise OSError("no descriptor is left")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Python prints it
def test_at_a_fork_an_error_of_one_object_does_not_keep_others_from_theirs() -> None:
    things = [Forking(fails=number % 2 == 0) for number in range(20)]
    if not (pid := os.fork()):
        os._exit([thing.calls for thing in things] != [2] * 20)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [thing.calls for thing in things] == [1] * 20
