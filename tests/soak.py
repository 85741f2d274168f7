"""Flood a queue with more packets than it can handle, and account for every packet: `make soak`.

One process floods a router, whose handler gives verdicts of every kind; another process receives the packets, and a
third reads a log of them. Meanwhile another queue is opened and closed. After each phase the flood pauses, and
every sent packet must be accounted for: by the receiving socket, by a verdict, or by a counter of the kernel. No
result depends on time: a slow machine handles fewer packets.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import multiprocessing
import os
import queue as queues
import random
import resource
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import nfnet
from nfnet import AlreadyDecidedError, AsyncQueue, ClosedError, Log, Packet, Queue, inet, rules
from nfnet._io.netlink_socket import SO_RCVBUFFORCE
from nfnet.stats import QueueCounters, QueueStatus

from .live.conftest import ADDRESS, TIMEOUT, Net, wait_for

FLOOD, DOOR = 7000, 7001  # destination ports
DOOR_PACKETS = 64 + 16  # to the other queue each time, while it is open and afterwards
MARK = 99
DATA = b" of the flood: accept, drop, or what else?"
NEW = b" was rewritten, and got longer on the way by some bytes more than it had"
# How much a process may grow after the first round. How much freed memory Python keeps depends on its highest use, and
# so on chance: memory is checked only in long runs.
GROWTH = 4 << 20  # bytes
OBJECTS = 5_000  # allocated blocks of memory
LONG = 4  # rounds


class Phase(NamedTuple):
    """How a queue is opened and read."""

    name: str
    read: Callable[[Queue, Callable[[Packet], None]], None] | None  # None: with asyncio
    options: dict[str, Any]
    interrupted: bool = False


def iterate(queue: Queue, handler: Callable[[Packet], None]) -> None:
    for packet in queue:
        handler(packet)


def process(queue: Queue, handler: Callable[[Packet], None]) -> None:
    while not _over.is_set():
        select.select([queue], [], [], 0.1)
        queue.process(handler)


PHASES = (
    Phase("queue full", Queue.run, {"max_len": 300, "on_error": "drop"}),
    Phase("buffer full", iterate, {"max_len": 100_000, "rcvbuf": 1 << 18}),
    Phase("both full", process, {"max_len": 600, "rcvbuf": 1 << 18, "on_error": "accept"}),
    Phase("open when full", Queue.run, {"max_len": 600, "rcvbuf": 1 << 18, "fail_open": True, "on_error": "drop"}),
    Phase("errors raised", Queue.run, {"on_overrun": "ignore"}),
    Phase("asyncio", None, {"max_len": 3000, "on_error": "drop"}),
    Phase("interrupted", Queue.run, {"max_len": 5000, "on_error": "drop"}, interrupted=True),
)

_over = threading.Event()


# --- the verdict on packet number n

ACCEPT, MARKED, REPEATED, DROP, REWRITE, LATE, LATE_DROP, LATE_REWRITE, FAIL = range(9)
FATES = (*[ACCEPT] * 7, MARKED, REPEATED, DROP, DROP, REWRITE, LATE, LATE_DROP, LATE_REWRITE)


def fate(number: int) -> int:
    return FAIL if number % 4096 == 0 else FATES[number % len(FATES)]


def number_of(packet: Packet) -> int:
    return int.from_bytes(packet.payload[28:36], "big")


class Failure(Exception):
    """Raised by the handler for some packets."""


class Interrupt(BaseException):
    """Raised by a signal handler, at any moment."""


def decide(packet: Packet) -> None:
    """Give a packet its intended verdict, unless another thread has decided it, or the queue was closed."""
    number = number_of(packet)
    what = fate(number)
    with contextlib.suppress(AlreadyDecidedError, ClosedError):
        if what in (DROP, LATE_DROP):
            packet.drop()
        elif what == MARKED:
            packet.accept(mark=number % 7 + 1)
        elif what == REPEATED:
            packet.repeat(mark=MARK)
        elif what in (REWRITE, LATE_REWRITE):
            packet.accept(payload=inet.replace_data(packet.payload, number.to_bytes(8, "big") + NEW))
        else:
            packet.accept()


class Deciders:
    """Threads that decide packets some time after the handler has returned, in any order."""

    def __init__(self) -> None:
        self.packets: queues.SimpleQueue[Packet | None] = queues.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        self._threads = [threading.Thread(target=self._work) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def handler(self, packet: Packet) -> None:
        what = fate(number_of(packet))
        if what == FAIL:
            raise Failure
        if what in (LATE, LATE_DROP, LATE_REWRITE):
            self.packets.put(packet)
        else:
            decide(packet)

    def _work(self) -> None:
        held: list[Packet] = []
        while True:
            try:
                packet = self.packets.get(timeout=0.01)
                if packet is None:
                    return
                held.append(packet)
                if len(held) < random.randrange(1, 60):
                    continue
            except queues.Empty:
                pass
            random.shuffle(held)
            for packet in held:
                decide(packet)
            held.clear()

    def close(self) -> None:
        for _ in self._threads:
            self.packets.put(None)
        for thread in self._threads:
            thread.join()


# --- the other processes, each of which answers commands


class Helper:
    """A process that executes commands."""

    def __init__(self, work: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=self._work, args=(work, theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @staticmethod
    def _work(work: Callable[..., None], *arguments: Any) -> None:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: end with the parent, however that ends
        work(*arguments)

    def tell(self, command: str, *arguments: Any) -> None:
        self._ours.send((command, *arguments))

    def answer(self) -> Any:
        if not self._ours.poll(TIMEOUT):
            raise TimeoutError("a process does not answer")
        return self._ours.recv()

    def ask(self, command: str, *arguments: Any) -> Any:
        self.tell(command, *arguments)
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it has failed, and printed why
            self.tell("end")
        self._process.join(10)
        self._process.kill()


def send(commands: Connection, sock: socket.socket) -> None:
    """ "go" sends until "stop", "one" sends one more packet; both answer with the number of packets since "go"."""
    number, first = 1, 1
    going = False
    while True:
        if not going or commands.poll():
            command, *_ = commands.recv()
            if command == "end":
                return
            going = command == "go"
            if going:
                first = number
            if command == "one":
                sock.send(number.to_bytes(8, "big") + DATA)
                number += 1
            if not going:
                commands.send(number - first)
            continue
        for _ in range(64):
            sock.send(number.to_bytes(8, "big") + DATA)
            number += 1


class Received(NamedTuple):
    """How many packets were received since the last phase: all, those with a drop verdict, and faulty ones."""

    count: int = 0
    against_verdict: int = 0
    twice: int = 0
    wrong: int = 0


def receive(commands: Connection, sock: socket.socket) -> None:
    """ "report" answers with `Received`, "next" sets it back."""
    seen: set[int] = set()
    total = Received()
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(commands, select.POLLIN)
    while True:
        poll.poll()
        with contextlib.suppress(BlockingIOError):
            for _ in range(1000):
                data = sock.recv(2000)
                number = int.from_bytes(data[:8], "big")
                what = fate(number)
                rewritten = what in (REWRITE, LATE_REWRITE)
                total = Received(
                    total.count + 1,
                    total.against_verdict + (what in (DROP, LATE_DROP)),
                    total.twice + (number in seen),
                    total.wrong + (data[8:] != (NEW if rewritten else DATA)),
                )
                seen.add(number)
        if commands.poll():
            command, *_ = commands.recv()
            if command == "end":
                return
            if command == "next":
                seen, total = set(), Received()
            commands.send(total)


def read_log(commands: Connection, where: Any) -> None:
    """ "expect" reads until so many messages were received or are known to be lost, and answers with the counters."""
    log = Log(5, sequence=True, rcvbuf=1 << 20, timeout=0.05, netns=where, on_overrun="ignore")
    expected: int | None = None
    until = 0.0
    log.open()
    commands.send(None)
    while True:
        select.select([log, commands], [], [], 0.1)
        log.process(lambda message: (message.prefix, message.payload))
        counters = log.counters
        if expected is not None and (counters.received + (counters.lost or 0) >= expected or time.monotonic() > until):
            commands.send((counters, Size.now()))
            expected = None
        if commands.poll():
            command, *arguments = commands.recv()
            if command == "end":
                log.close()
                return
            expected, until = arguments[0], time.monotonic() + TIMEOUT / 2


# --- witnesses


class Size(NamedTuple):
    """How much of the system's resources this process uses."""

    memory: int  # bytes
    objects: int  # 0 on PyPy, which does not count them
    descriptors: int

    @classmethod
    def now(cls) -> Size:
        gc.collect()
        memory = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        return cls(memory, getattr(sys, "getallocatedblocks", int)(), len(os.listdir("/proc/self/fd")))


def udp_overflow(net: Net) -> int:
    """Return how many datagrams reached the server and did not fit into the receiver's buffer."""
    text = net.at("server", Path("/proc/thread-self/net/snmp").read_text)
    names, values = (line.split() for line in text.splitlines() if line.startswith("Udp:"))
    return int(dict(zip(names, values))["RcvbufErrors"])


def device_drops(net: Net) -> int:
    """Return how many packets the interfaces of all hosts dropped: a processor's backlog can be full."""
    total = 0
    for host in net.hosts:
        for line in net.at(host, Path("/proc/thread-self/net/dev").read_text).splitlines()[2:]:
            columns = line.split(":")[1].split()
            total += int(columns[3])  # a packet can be counted as sent at one end and as dropped at the other
    return total


class Unbalanced(Exception):
    """A packet is missing, or was counted twice."""


class Soak:
    """The network, the processes, and the accounts of all packets."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.router = net.hosts["router"]
        sender = net.open_socket("client")
        sender.connect((ADDRESS["server", socket.AF_INET], FLOOD))
        receiver = net.receiver(port=FLOOD)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
        self.door_sender, self.door_receiver = net.open_socket("client"), net.receiver(port=DOOR)
        self.door_receiver.setblocking(False)
        self.sender = Helper(send, sender)  # processes first: forking after a thread has started is unsafe
        self.receiver = Helper(receive, receiver)
        self.log = Helper(read_log, self.router)
        self.log.answer()
        self.deciders = Deciders()
        self.end_of_flood = threading.Event()
        self.logged = 0  # since the beginning, as the log's own counters
        self.sizes: list[tuple[Size, Size]] = []  # of this process, and of the one that reads the log
        self.sent = self.packets = self.handled = self.doors = 0

    def close(self) -> None:
        self.deciders.close()
        for helper in (self.sender, self.receiver, self.log):
            helper.close()

    def row(self, number: int) -> QueueStatus:
        return next(row for row in nfnet.stats.queues(self.router) if row.num == number)

    def run(self, seconds: float, say: Callable[[str], None]) -> None:
        self.deciders.start(3)
        where: dict[str, Any] = {"protocol": "udp", "netns": self.router}
        with (
            rules.log(5, hook="prerouting", destination_port=FLOOD, prefix="flood", **where),
            rules.queue(1, hook="forward", destination_port=FLOOD, not_mark=MARK, bypass=False, **where),
            rules.queue(2, hook="forward", destination_port=DOOR, **where),
        ):
            rounds = max(2, round(seconds / (len(PHASES) * 10)))
            each = seconds / rounds / len(PHASES)
            say(
                f"{'':16}{'sent':>9} ={'delivered':>10} +{'dropped':>8} +{'full queue':>11} +{'full buffer':>12}"
                f" +{'devices':>8} {'logged':>10} {'log lost':>9} {'memory':>8}"
            )
            for number in range(rounds):
                for phase in PHASES:
                    self.phase(phase, each, say)
                gc.collect()
                if number == 0:
                    first = self.sizes[-1]
            for whose, before, after in zip(("", " of the log"), first, self.sizes[-1]):
                self.check_growth(whose, before, after, GROWTH if rounds >= LONG else sys.maxsize)
            if self.handled >= self.packets - self.doors * DOOR_PACKETS:
                raise Unbalanced("the flood was never faster than the handler")

    def check_growth(self, whose: str, first: Size, last: Size, memory: int) -> None:
        for what, before, after, allowed in zip(Size._fields, first, last, (memory, OBJECTS, 0)):
            if after > before + allowed:
                raise Unbalanced(f"{what}{whose} grew from {before:,} to {after:,}")

    def phase(self, phase: Phase, seconds: float, say: Callable[[str], None]) -> None:
        drops_before, overflow_before = device_drops(self.net), udp_overflow(self.net)
        self.receiver.ask("next")
        _over.clear()
        if phase.read is None:
            row, counters = asyncio.run(self.flood_async(phase, seconds))
        else:
            row, counters = self.flood(phase, seconds)
        books: dict[str, int] = {}

        def balanced() -> bool:
            received: Received = self.receiver.ask("report")
            books.update(received._asdict())
            books["delivered"] = received.count + udp_overflow(self.net) - overflow_before
            books["devices"] = device_drops(self.net) - drops_before
            return self.sent == sum(
                (books["delivered"], counters.dropped, row.queue_dropped, row.user_dropped, books["devices"])
            )

        problems = [] if wait_for(balanced) else ["packets sent are not packets delivered and dropped"]
        fail_open = bool(phase.options.get("fail_open"))
        arrived = self.sent - books["devices"]  # assuming that they were dropped before the router
        checks = {
            "the kernel's queue is not empty": row.waiting == 0,
            "packets are pending": counters.pending == 0,
            "the counters do not add up": counters.received
            == counters.accepted + counters.dropped + counters.repeated + counters.requeued,
            "received and lost are not the ids": counters.received + counters.lost == row.last_id,
            "lost is not what did not fit": fail_open or counters.lost == row.user_dropped,
            "ids and a full queue are not what came": fail_open
            or arrived <= row.last_id + row.queue_dropped <= self.sent,
            "the kernel refused verdicts": phase.interrupted or not counters.refused,
            "malformed datagrams": not counters.malformed,
            "packets arrived in spite of a verdict": fail_open or not books["against_verdict"],
            "packets arrived twice": not books["twice"],
            "packets arrived with wrong data": fail_open or not books["wrong"],
        }
        problems += [problem for problem, right in checks.items() if not right]
        logged, log_size = self.log.ask("expect", self.logged + arrived)
        self.logged += arrived
        if logged.received + logged.lost != self.logged:
            problems.append(f"{self.logged} packets were logged")
        self.sizes.append((Size.now(), log_size))
        self.packets += self.sent
        self.handled += counters.received
        say(
            f"{phase.name:16}{self.sent:9,} ={books['delivered']:10,} +{counters.dropped:8,} +{row.queue_dropped:11,}"
            f" +{row.user_dropped:12,} +{books['devices']:8,} {logged.received:10,} {logged.lost:9,}"
            f" {self.sizes[-1][0].memory >> 10:7,}K"
        )
        if problems:
            raise Unbalanced(f"{phase.name}: {'; '.join(problems)}: {self.sent=} {books} {counters} {row} {logged}")

    def flood(self, phase: Phase, seconds: float) -> tuple[QueueStatus, QueueCounters]:
        """Read a queue until the referee stops it, and return the kernel's status and the queue's counters."""
        with Queue(1, netns=self.router, **phase.options) as queue, self.refereed(queue, seconds, queue.stop):
            with interrupts(phase.interrupted):
                while not _over.is_set():
                    with contextlib.suppress(Failure, Interrupt):
                        read_until_interrupted(phase, queue, self.deciders)
            self.end_of_flood.wait()
            return self.row(1), queue.counters

    async def flood_async(self, phase: Phase, seconds: float) -> tuple[QueueStatus, QueueCounters]:
        """Do the same with asyncio; about half of the loops decide packets in tasks."""

        async def decide_later(packet: Packet) -> None:
            await asyncio.sleep(0)
            self.deciders.handler(packet)

        loop = asyncio.get_running_loop()
        async with AsyncQueue(1, netns=self.router, **phase.options) as queue:
            with self.refereed(queue, seconds, lambda: loop.call_soon_threadsafe(queue.stop)):
                while not _over.is_set():
                    with contextlib.suppress(Failure):
                        await queue.run(decide_later if random.randrange(2) else self.deciders.handler)
                await asyncio.to_thread(self.end_of_flood.wait)
                return self.row(1), queue.counters

    @contextlib.contextmanager
    def refereed(self, queue: Queue | AsyncQueue, seconds: float, stop: Callable[[], object]) -> Iterator[None]:
        trouble: list[BaseException] = []
        self.end_of_flood.clear()
        thread = threading.Thread(target=self.referee, args=(queue, seconds, stop, trouble))
        thread.start()
        yield
        thread.join()
        if trouble:
            raise trouble[0]

    def referee(
        self,
        queue: Queue | AsyncQueue,
        seconds: float,
        stop: Callable[[], object],
        trouble: list[BaseException],
    ) -> None:
        """Let the flood run for so many seconds, wait until the queue is empty, and stop the loop that reads it."""
        try:
            self.sender.tell("go")
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                self.door()
            self.sender.ask("stop")
            self.drain(queue)
            self.sent = self.sender.ask("one")  # its id shows whether packets before it were lost
            self.drain(queue)
        except BaseException as error:
            trouble.append(error)
        finally:
            _over.set()
            stop()
            self.end_of_flood.set()

    def drain(self, queue: Queue | AsyncQueue) -> None:
        def drained() -> bool:
            if not self.row(1).waiting:
                return True
            for packet in queue.pending:  # packets whose handler was interrupted or failed; a decider can be faster
                decide(packet)
            return False

        if not wait_for(drained):
            raise Unbalanced(f"{self.row(1).waiting} packets stay in the queue: {queue.counters}")

    def door(self) -> None:
        """Open the other queue, decide some packets, and close it with others in it. Closed, it lets packets pass."""
        policy: Any = random.choice(("pending", "accept", "drop"))
        to = (ADDRESS["server", socket.AF_INET], DOOR)
        with Queue(2, netns=self.router, undecided=policy) as queue:
            for _ in range(64):
                self.door_sender.sendto(b"door", to)
            accepted = dropped = 0
            with contextlib.closing(iter(queue)) as packets:
                for packet in islice(packets, 40):
                    kind = random.randrange(3)
                    if kind == 0:
                        packet.accept()
                        accepted += 1
                    elif kind == 1:
                        packet.drop()
                        dropped += 1
            waiting, counters = self.row(2).waiting, queue.counters
        for _ in range(16):
            self.door_sender.sendto(b"door", to)
        expected = accepted + 16 + (64 - accepted - dropped if policy == "accept" else 0)
        got = 0

        def arrived() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                while self.door_receiver.recv(100, socket.MSG_DONTWAIT):
                    got += 1
            return got >= expected

        wait_for(arrived)
        if got != expected or (policy == "pending" and waiting != 64 - accepted - dropped):
            raise Unbalanced(f"{got} of {expected} passed, {waiting} waited: {policy=} {counters}")
        self.doors += 1
        self.packets += DOOR_PACKETS


def read_until_interrupted(phase: Phase, queue: Queue, deciders: Deciders) -> None:
    assert phase.read is not None
    phase.read(queue, deciders.handler)


@contextlib.contextmanager
def interrupts(wanted: bool) -> Iterator[None]:
    """Send a signal a hundred times a second, whose handler raises if the loop is running."""

    def interrupt(number: int, frame: Any) -> None:
        if frame.f_code.co_name == "_remove":
            return  # of a weak set: the interpreter would print the exception, and not raise it
        while frame is not None:
            if frame.f_code is read_until_interrupted.__code__:
                raise Interrupt
            frame = frame.f_back

    if not wanted:
        yield
        return
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def soak(seconds: float, say: Callable[[str], None] = print) -> None:
    """Run all phases. Raises `Unbalanced` if a packet is not accounted for."""
    logger = logging.getLogger("nfnet")
    quiet, logger.disabled = logger.disabled, True  # thousands of failed handlers and lost packets
    net = Net()
    try:
        books = Soak(net)
        try:
            books.run(seconds, say)
            say(f"{books.packets:,} packets, {books.logged:,} logged; {books.doors:,} times a queue opened and closed")
        finally:
            books.close()
    finally:
        logger.disabled = quiet
        net.close()


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 180.0
    try:
        nfnet.stats.queues()
    except nfnet.NfnetError as error:
        print(f"only root of the machine can read the kernel's counters: {error}", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        soak(seconds)
    except Unbalanced as error:
        print(f"NOT BALANCED: {error}", file=sys.stderr)
        return 1
    print(f"all balanced, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
