"""Ctrl-C and other threads at any moment: no packet is lost or gets a verdict that the program did not give."""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from operator import length_hint
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

import nfnet
from nfnet import Packet, Queue
from nfnet._core.batching import ACCEPT
from nfnet._queue_binding import QueueBinding
from nfnet.errors import system_error
from nfnet.protocol import nfqnl

from .interrupting import Interrupt
from .kernel import FakeKernel, packet_message

COUNT = 12

# PyPy looks for signals before every instruction: see the head of `nfnet._io.locks`.
cpython = pytest.mark.skipif(sys.implementation.name != "cpython", reason="PyPy may raise between any two instructions")


class AtomicKernel(FakeKernel):
    """As a system call does, each call happens or does not, whatever signals come."""

    def send(self, datagram: bytes) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        super().send(datagram)
        self._allow()

    def receive(self, into: list[bytes], limit: int) -> bool:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
        more = super().receive(into, limit)
        self._allow()
        return more

    @staticmethod
    def _allow() -> None:
        if threading.current_thread() is threading.main_thread():  # others, that of the flusher, take no signals
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


class SlowKernel(FakeKernel):
    """Packets come one at a time, and the loop waits for them in C code, as in recv; there is an end to them."""

    def __init__(self) -> None:
        super().__init__(ends=True)
        self._coming = iter(self._waiting)  # takes what is appended later, too, until it has come to an end

    @property
    def incoming(self) -> Iterator[bytes]:
        return self._coming

    def receive(self, into: list[bytes], limit: int) -> bool:
        into.extend(islice(self._coming, 1))
        return length_hint(self._coming) > 0


class Handler:
    """Decides by id, and keeps some packets, which it decides two packets later."""

    def __init__(self, keep: int) -> None:
        self.kept: list[Packet] = []
        self._keep = keep

    def __call__(self, packet: Packet) -> None:
        if len(self.kept) > 1:
            self.decide(self.kept.pop(0))
        if self._keep and packet.id % self._keep == 0:
            self.kept.append(packet)
        else:
            self.decide(packet)

    @staticmethod
    def decide(packet: Packet) -> None:
        if packet.decided is None:
            if packet.id % 5 == 0:
                packet.drop()
            elif packet.id % 4 == 0:
                packet.accept(mark=7)
            else:
                packet.accept()


def expected(packet_id: int) -> tuple[int, bool]:
    return (0, False) if packet_id % 5 == 0 else (1, packet_id % 4 == 0)


def run(queue: Queue, handler: Handler) -> None:
    queue.run(handler)


def iterate(queue: Queue, handler: Handler) -> None:
    for packet in queue:
        handler(packet)


def process(queue: Queue, handler: Handler) -> None:
    while queue.process(handler):
        pass


WAYS: list[Callable[[Queue, Handler], None]] = [run, iterate, process]


def check_books(queue: Queue, kernel: FakeKernel, handler: Handler, count: int, where: str) -> None:
    """After an interrupted loop: go on to the end, and see that every packet got its verdict and no other."""
    queue.process(handler)
    for packet in queue.pending:
        handler.decide(packet)
    queue.flush()
    queue.process(handler)
    assert not kernel.queued, where
    judged = {packet_id: (word, bool(changes)) for packet_id, word, changes in kernel.judged}
    assert judged == {number: expected(number) for number in range(1, count + 1)}, where
    assert len(kernel.judged) == count, where
    counters = queue.counters
    assert (counters.received, counters.pending, counters.lost) == (count, 0, 0), where


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="there signals interrupt any instruction: see the docs")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_real_signal_at_random_moments(way: Callable[[Queue, Handler], None]) -> None:
    seed = random.randrange(1 << 30)
    choose = random.Random(seed)
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupted = 0
    try:
        for attempt in itertools.count():
            if attempt >= 300 and interrupted > 30:  # on a quick machine most signals come too late
                break
            assert attempt < 10_000
            kernel = AtomicKernel(ends=True)
            handler = Handler(3)
            with Queue(1, transport=kernel) as queue:
                kernel.feed(COUNT)
                try:
                    signal.setitimer(signal.ITIMER_REAL, choose.uniform(1e-6, 1e-3))
                    way(queue, handler)
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    time.sleep(0)  # one that another thread got, while this one blocked it, is noticed here
                except KeyboardInterrupt:
                    interrupted += 1
                check_books(queue, kernel, handler, COUNT, f"seed {seed}, attempt {attempt}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])


# An interrupt in a generator that is just being disposed of is printed and forgotten by the interpreter.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@cpython
@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [partial(FakeKernel, ends=True), SlowKernel])
def test_keyboard_interrupt_at_any_moment(
    make: Callable[[], FakeKernel], way: Callable[[Queue, Handler], None], keep: int
) -> None:
    seed = random.randrange(1 << 30)
    moment, step, interrupted = 1, 1, 0
    choose = random.Random(seed)
    while True:
        kernel = make()
        handler = Handler(keep)
        with Queue(1, transport=kernel) as queue:
            kernel.feed(COUNT)
            interrupt = Interrupt(moment)
            interrupted += interrupt.arrives(lambda queue=queue, handler=handler: way(queue, handler))
            if interrupt.seen < moment:
                break  # beyond the end
            where = f"seed {seed}, instruction {moment}"
            try:
                way(queue, handler)
            except nfnet.BusyReadingError:  # the interrupt came as the iteration was being ended; nothing is lost
                assert way is iterate, where
                moment += 1
                continue
            check_books(queue, kernel, handler, COUNT, where)
        step = choose.randint(1, 24)
        moment += step
    assert interrupted > 50


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@cpython
def test_keyboard_interrupt_at_any_moment_of_a_replay(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    with nfnet.record(path) as recorder:
        for number in range(1, 5):
            recorder.tap(False, packet_message(number))
            recorder.tap(True, nfqnl.verdict(1, number, 1))
    seed = random.randrange(1 << 30)
    choose = random.Random(seed)
    moment, interrupted = 1, 0
    while True:
        replay = nfnet.replay(path)
        with Queue(1, transport=replay) as queue:
            interrupt = Interrupt(moment)
            interrupted += interrupt.arrives(lambda queue=queue: queue.run(Packet.accept))
            if interrupt.seen < moment:
                break  # beyond the end
            where = f"seed {seed}, instruction {moment}"
            queue.run(Packet.accept)
            for packet in queue.pending:
                packet.accept()
            assert (queue.counters.received, queue.counters.lost) == (4, 0), where
            assert replay.recorded == {number: nfnet.GivenVerdict(1, None, None) for number in range(1, 5)}, where
        moment += choose.randint(1, 24)
    assert interrupted > 50


class GivingHandler:
    """Decides two packets of three, and gives the third to a thread that decides it."""

    def __init__(self) -> None:
        self.decide = Handler.decide
        self._given: SimpleQueue[Packet | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def __call__(self, packet: Packet) -> None:
        if packet.id % 3 == 0:
            self._given.put(packet)
        else:
            self.decide(packet)

    def _work(self) -> None:
        while (packet := self._given.get()) is not None:
            with suppress(nfnet.AlreadyDecidedError):
                self.decide(packet)

    def wait(self, where: str) -> None:
        """Wait until the thread has decided all that it was given: unless something is left locked it can."""
        self._given.put(None)
        self._thread.join(30)
        assert not self._thread.is_alive(), f"{where}: the thread that decides waits for a lock"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@cpython
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [partial(FakeKernel, ends=True), SlowKernel])
def test_keyboard_interrupt_at_any_moment_while_another_thread_decides(
    make: Callable[[], FakeKernel], way: Callable[[Queue, Any], None]
) -> None:
    """No lock stays locked, and each packet gets its verdict."""
    seed = random.randrange(1 << 30)
    moment, interrupted = 1, 0
    choose = random.Random(seed)
    while True:
        kernel = make()
        handler = GivingHandler()
        with Queue(1, transport=kernel) as queue:
            kernel.feed(COUNT)
            interrupt = Interrupt(moment)
            interrupted += interrupt.arrives(lambda queue=queue, handler=handler: way(queue, handler))
            where = f"seed {seed}, instruction {moment}"
            handler.wait(where)
            if interrupt.seen < moment:
                break  # beyond the end
            try:
                way(queue, Handler(0))
            except nfnet.BusyReadingError:  # as above
                assert way is iterate, where
            else:
                check_books(queue, kernel, Handler(0), COUNT, where)
        moment += choose.randint(1, 24)
    assert interrupted > 50


def test_threads_that_decide_what_the_loop_just_handed_out() -> None:
    """The handler gives packets away; a thread accepts them while the loop drops those that follow."""
    kernel = FakeKernel()
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    given: list[Packet] = []
    wake = threading.Event()
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            wake.wait(10)
            wake.clear()
            while given:
                given.pop().accept()

    def handler(packet: Packet) -> None:
        if packet.id % 2:
            given.append(packet)
            wake.set()
        else:
            packet.drop()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        with Queue(1, transport=kernel) as queue:
            for _ in range(1500):
                kernel.feed(1)
                queue.process(handler)
            done.set()
            wake.set()
            thread.join(60)
            assert not given
            assert not kernel.queued
            assert {packet_id: word for packet_id, word, _ in kernel.judged} == {n: n % 2 for n in range(1, 1501)}
            counters = queue.counters
            assert (counters.received, counters.lost, counters.pending, counters.refused) == (1500, 0, 0, {})
    finally:
        done.set()
        wake.set()
        thread.join(60)
        sys.setswitchinterval(before)


def test_signals_faster_than_packets_can_be_made_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is received and not through stays bounded: the next try does not take more on top of it."""
    make_ready, tries = QueueBinding.make_ready, 0

    def interrupted(binding: QueueBinding) -> None:
        nonlocal tries
        tries += 1
        if tries <= 5:
            raise KeyboardInterrupt
        make_ready(binding)

    monkeypatch.setattr(QueueBinding, "make_ready", interrupted)
    kernel = FakeKernel(ends=True)
    with Queue(1, transport=kernel) as queue:
        kernel.feed(4000)
        for _ in range(5):
            with pytest.raises(KeyboardInterrupt):
                queue.run(Packet.accept)
        assert len(kernel._waiting) == 4000 - QueueBinding.drain
        queue.run(Packet.accept)
        assert (queue.counters.accepted, kernel.queued) == (4000, {})


@cpython
@pytest.mark.parametrize("pending", [False, True])
def test_interrupt_while_another_thread_has_set_its_verdict_and_not_handed_it_over(pending: bool) -> None:
    """The loop sends that verdict; the other thread, when it continues, must not send it again."""
    moment = 1
    while True:
        kernel = FakeKernel()
        with Queue(1, transport=kernel) as queue:
            kernel.feed(1)
            packets: list[Packet] = []
            queue.process(packets.append)
            (packet,) = packets
            binding = queue._binding
            assert isinstance(binding, QueueBinding)
            if not pending:
                binding.ledger.at_hand[:], binding.ledger.pending = list(binding.ledger.pending), {}
            hand_over = packet._on_decided
            packet._decision = ACCEPT  # here the other thread stops for a while
            interrupt = Interrupt(moment)
            interrupt.arrives(binding.settle)
            binding.ledger.settle(final=True)
            hand_over(packet)
            assert (kernel.judged, queue.counters.received) == ([(1, nfnet.Verdict.ACCEPT, {})], 1), moment
            if interrupt.seen < moment:
                break
        moment += 1
    assert moment > 20


class AlarmedKernel(SlowKernel):
    """A signal handler raises an error directly after the first verdict was sent."""

    def __init__(self, alarm: OSError) -> None:
        super().__init__()
        self._alarm = alarm

    @property
    def outgoing(self) -> Callable[[bytes], object]:
        return self._send

    def _send(self, datagram: bytes) -> None:
        first = not self.judged
        self.send(datagram)
        if first:
            raise self._alarm


def test_os_error_of_an_alarm_while_a_lone_verdict_is_sent() -> None:
    """The error reaches the program. It is an OSError, but the verdict was sent."""
    alarm = TimeoutError("so many seconds have passed")
    kernel = AlarmedKernel(alarm)
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        with pytest.raises(type(alarm)) as caught:
            queue.run(Packet.accept)
        assert caught.value is alarm
        kernel.feed(1)
        queue.run(Packet.accept)
        assert [packet_id for packet_id, _, _ in kernel.judged] == [1, 2]
        assert queue.counters.accepted == 2


class ExplainingKernel(SlowKernel):
    def explain(self, error: OSError) -> None:
        raise system_error("receiving from the kernel", error) from None


@pytest.mark.parametrize("policy", ["raise", "drop"])
def test_os_error_of_the_handler_of_a_lone_packet(policy: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is not taken for an error of the wait for the next packet, which the same loop contains."""
    error = ConnectionRefusedError(111, "connection refused")

    def handler(packet: Packet) -> None:
        if packet.id == 2:
            raise error
        packet.accept()

    kernel = ExplainingKernel()
    with Queue(1, transport=kernel, on_error=policy) as queue:
        kernel.feed(3)
        if policy == "raise":
            with pytest.raises(ConnectionRefusedError) as raised:
                queue.run(handler)
            assert raised.value is error
            assert [packet.id for packet in queue.pending] == [2]
        queue.run(handler)
        given = {packet_id: word for packet_id, word, _ in kernel.judged}
    assert given == ({1: 1, 3: 1} if policy == "raise" else {1: 1, 2: 0, 3: 1})
    assert ("connection refused" in caplog.text) == (policy == "drop")
