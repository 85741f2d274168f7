"""An exception from a signal handler, at any place, leaves no lock locked."""

from __future__ import annotations

import contextlib
import dis
import itertools
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

import nfnet
from nfnet import Queue, _recording, netns, testing
from nfnet._io.locks import RLock, uninterrupted
from nfnet.captures import LinkType, Writer
from nfnet.compat import nflogr

from .flood import Interrupt, Interrupts
from .kernel import FakeKernel

ROUNDS = 1000
ROOT = Path(nfnet.__file__).parent
BOUND = 60  # seconds, for calls that must not hang

pytestmark = [
    # PyPy looks for signals before every instruction: see the head of nfnet/locks.py.
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs CPython"),
    # An object whose closing was interrupted is closed by the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


class Signals:
    """Interrupts functions at random moments."""

    def __init__(self) -> None:
        self._random = random.Random()

    def interrupt(self, function: Callable[[], object], within: float = 6e-5, times: int = 1000) -> bool:
        """Call a function many times, and return whether KeyboardInterrupt was raised in it or directly after it.

        It can also be raised in a finalizer, where the interpreter ignores it.
        """
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, self._random.uniform(1e-6, within))
                for _ in range(times):
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


def is_free(lock: Any) -> bool:
    """Whether another thread can acquire a lock, if it is called there."""
    if not lock.acquire(blocking=False):
        return False
    lock.release()
    return True


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
        for _ in range(3):
            number = os.getpid()
        return number


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
    interrupted = 0

    for number in range(ROUNDS):
        interrupted += signals.interrupt(lambda: use(lock))
        assert other.submit(is_free, lock).result(BOUND), f"after {number} times"
    assert interrupted > ROUNDS / 2


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


# --- what else holds something


# The arguments of `nflogr._from_iter`: names of interfaces, and attribute values in the order of their numbers.
LOGGED = ({}, (b"\x08\x00\x03\x00", *[None] * 8, b"E" + bytes(19), b"\0"))


def test_an_interrupt_leaves_a_log_of_nflogr_to_other_threads(signals: Signals, other: ThreadPoolExecutor) -> None:
    log = nflogr._from_iter(itertools.repeat([LOGGED]))
    interrupted = 0
    for number in range(ROUNDS):
        interrupted += signals.interrupt(log.next, 2e-4, times=100)
        while len(log):
            log.next()
        assert other.submit(log.next, False).result(BOUND) is not None, f"after {number} times"
    assert interrupted > ROUNDS / 2


def test_an_interrupt_leaves_nothing_recording(signals: Signals, tmp_path: Path) -> None:
    interrupted = 0

    def record() -> None:
        with nfnet.record(tmp_path / "session.pcapng"):
            pass

    for number in range(ROUNDS):
        interrupted += signals.interrupt(record, 2e-4, times=10)  # and no other recorder writes to that file
        assert _recording.current() is None, f"after {number} times"
    assert interrupted > ROUNDS / 2


def test_an_interrupted_close_can_be_called_again(signals: Signals) -> None:
    interrupted = 0
    for number in itertools.count():
        if number >= ROUNDS and interrupted > ROUNDS / 10:  # on a fast machine most signals arrive too late
            break
        assert number < 20 * ROUNDS
        kernel = FakeKernel()
        queue = Queue(1, transport=kernel)
        queue.open()
        kernel.feed(2)
        queue.process(lambda packet: None)
        interrupted += signals.interrupt(queue.close, 4e-4, times=1)
        queue.close()
        assert kernel.closed, f"after {number} times"
        with pytest.raises(nfnet.ClosedError):
            queue.fileno()


def test_an_interrupted_call_in_a_namespace_has_ended(signals: Signals) -> None:
    begun = ended = interrupted = 0
    threads = set(os.listdir("/proc/self/task"))  # other tests can have left some

    def work() -> None:
        nonlocal begun, ended
        begun += 1
        ended += 1

    for number in range(ROUNDS):
        interrupted += signals.interrupt(lambda: netns._in_thread(work), 5e-4, times=100)
        assert begun == ended, f"after {number} times"
        before = begun
        assert netns._in_thread(lambda: 7) == 7
        assert begun == before, f"after {number} times"  # nothing of it began later
    assert interrupted > ROUNDS / 2
    deadline = time.monotonic() + BOUND
    while set(os.listdir("/proc/self/task")) - threads and time.monotonic() < deadline:
        time.sleep(0.001)  # its threads are on their way out
    assert not set(os.listdir("/proc/self/task")) - threads


def process(queue: Queue) -> None:
    queue.process(nfnet.Packet.accept)


def fetch(queue: Queue) -> None:
    queue.fetch()
    queue.process(nfnet.Packet.accept)


@pytest.mark.parametrize("use", [process, fetch])
def test_signals_that_arrive_while_an_interrupt_ends_blocks(
    use: Callable[[Queue], None], other: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CPython 3.10 omits the cleanup of the blocks then."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # that of pytest would be interrupted as well
    kernel = FakeKernel()
    before = signal.getsignal(signal.SIGALRM)
    try:
        with Queue(1, transport=kernel) as queue:
            with Interrupts(use, ROUNDS, pause=1e-4) as signals:
                while not signals.over:
                    kernel.feed(3)
                    with contextlib.suppress(Interrupt):
                        use(queue)
            while queue.process(nfnet.Packet.accept) or queue.pending:
                other.submit(lambda: [packet.accept() for packet in queue.pending]).result(BOUND)
            assert not kernel.queued
            assert queue.counters.received == queue.counters.accepted
    finally:
        signal.signal(signal.SIGALRM, before)


class Signalled(FakeKernel):
    """Calls a function once, as a signal handler would, when a verdict is about to be sent."""

    handler: Callable[[], object] | None = None

    def send(self, datagram: bytes) -> None:
        handler, self.handler = self.handler, None
        if handler is not None:
            handler()
        super().send(datagram)


def test_a_signal_handler_reads_while_a_verdict_is_being_sent(other: ThreadPoolExecutor) -> None:
    """The code that it interrupted keeps its lock."""
    kernel = Signalled()
    with Queue(1, transport=kernel) as queue:
        packets: list[nfnet.Packet] = []
        kernel.feed(1)
        queue.process(packets.append)
        lock = queue._bound().ledger.lock
        free: list[bool] = []

        def read() -> None:
            kernel.feed(1)
            queue.process(packets.append)
            free.append(other.submit(is_free, lock).result(BOUND))

        kernel.handler = read
        packets[0].accept()
        assert free == [False]
        packets[1].accept()
        assert [packet_id for packet_id, _, _ in kernel.judged] == [1, 2]


def run(code: str) -> None:
    """Run code in another process: if it hangs, it cannot be ended here."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], timeout=BOUND, check=True)


def test_workers_are_stopped_by_a_signal_handler_while_they_are_being_stopped() -> None:
    run(
        f"""
        import random, signal
        import nfnet

        signals = 0

        def stop(*_):
            global signals
            signals += 1
            workers.stop()
            signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 1e-4))

        workers = nfnet.Workers(print)
        signal.signal(signal.SIGALRM, stop)
        stop()
        while signals < {ROUNDS}:
            workers.close()
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        """
    )


def test_an_interrupted_replay_in_real_time_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    writer = Writer(path, LinkType.RAW)
    writer.write(0, testing.udp())
    writer.write(2_000_000_000, testing.udp())
    writer.close()
    run(
        f"""
        import random, select, signal
        import nfnet

        signal.signal(signal.SIGALRM, signal.default_int_handler)
        with nfnet.Queue(1, transport=nfnet.replay({str(path)!r}, realtime=True)) as queue:
            assert queue.process(nfnet.Packet.accept) == 1
            signals = 0
            while signals < {ROUNDS}:
                try:
                    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, 2e-4))
                    for _ in range(1000):
                        queue.process(nfnet.Packet.accept)
                except KeyboardInterrupt:
                    signals += 1
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            while queue.counters.received < 2:
                assert select.select([queue], [], [], {BOUND / 2})[0]
                queue.process(nfnet.Packet.accept)
        """
    )


# --- the code of the package, as this interpreter compiles it


def functions(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from functions(constant)


class Blocks:
    """The instructions of a function, and the ``with`` and ``try`` statements around them."""

    def __init__(self, code: CodeType) -> None:
        self.instructions = list(dis.get_instructions(code))
        self._at = {instruction.offset: place for place, instruction in enumerate(self.instructions)}
        self._table: list[Any] = dis._parse_exception_table(code)  # type: ignore[attr-defined]

    def handler(self, offset: int) -> int | None:
        """Where an exception at an instruction leads to."""
        return next((entry.target for entry in self._table if entry.start <= offset < entry.end), None)

    def cleans_up(self, handler: int | None) -> bool:
        """Whether it, or one around it, is an ``__exit__``, a ``finally`` or an ``except BaseException``."""
        while handler is not None:
            place = self._at[handler]
            first = self.instructions[place : place + 8]
            names = [instruction.opname for instruction in first]
            if names[0] == "PUSH_EXC_INFO":
                if "CHECK_EXC_MATCH" not in names:
                    return True
                if any(instruction.argval == "BaseException" for instruction in first):
                    return True
            handler = self.handler(handler)
        return False

    def gaps(self) -> Iterator[int | None]:
        """The lines of jumps back to the head of a loop from which an exception leaves the block around the loop."""
        for instruction in self.instructions:
            if instruction.opname == "JUMP_BACKWARD" and self.handler(instruction.offset) is None:
                around = self.handler(instruction.argval)
                if around is not None and self.cleans_up(around):
                    assert instruction.positions is not None
                    yield instruction.positions.lineno


# In asyncio Ctrl-C cancels a task, and metrics are served by another thread. In commands signal handlers do not raise.
NOT_INTERRUPTED = {"aio", "metrics"}
# Their blocks only close objects that the garbage collector would also close.
CLOSE_ONLY = {"Replay.first", "clean", "installed"}


# Before 3.13 the interpreter looks for signals behind the jump, where the exception belongs to the block.
@pytest.mark.skipif(sys.version_info < (3, 13), reason="the compiler does that since Python 3.13")
def test_no_loop_leaves_its_block_without_cleaning_up() -> None:
    """CPython 3.13 and 3.14 have the jump from a condition back to the head of a loop outside of its block."""
    found = [
        f"{path.relative_to(ROOT)}:{line} {code.co_qualname}"
        for path in sorted(ROOT.rglob("*.py"))
        if path.parent.name != "cli" and path.stem not in NOT_INTERRUPTED
        for code in functions(compile(path.read_text(), str(path), "exec", dont_inherit=True))
        if code.co_qualname not in CLOSE_ONLY
        for line in Blocks(code).gaps()
    ]
    assert not found, "see nfnet/locks.py"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="the compiler does that since Python 3.13")
@pytest.mark.skipif(sys.version_info >= (3, 15), reason="the compiler does that no more since Python 3.15")
def test_such_a_loop_would_be_found() -> None:
    def in_with(lock: Any, numbers: Any) -> None:
        with lock:
            for number in numbers:
                if number:
                    numbers = number

    def in_try(numbers: Any) -> None:
        try:
            for number in numbers:
                if number:
                    numbers = number
        finally:
            numbers = None

    def caught(numbers: Any) -> None:
        try:
            for number in numbers:
                if number:
                    numbers = number
        except ValueError:
            pass

    assert [len(list(Blocks(function.__code__).gaps())) for function in (in_with, in_try, caught)] == [1, 1, 0]
