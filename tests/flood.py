"""Interrupt a loop under a flood of packets, while another thread decides some of its packets.

    python -m tests.flood 200        count the programs, of 200, that end with every packet decided

If an interrupt leaves a lock locked, one of the threads waits for it forever, and the program does not end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType
from typing import NamedTuple

from nfnet import AlreadyDecidedError, Packet, Queue, netns, rules

PORT = 7000
INTERRUPTS = 300  # of each program
BOUND = 60  # seconds, for a program that does not end: without a flood it takes less than one
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1


class Interrupt(BaseException):
    """Raised by the signal handler."""


class Interrupts:
    """Signals at random moments, whose handler raises in one function and those that it calls."""

    def __init__(self, function: Callable[..., object], most: int, pause: float = 2e-3) -> None:
        self.count = 0
        self._code = function.__code__
        self._most, self._pause = most, pause

    def __enter__(self) -> Interrupts:
        signal.signal(signal.SIGALRM, self._interrupt)
        self._set_timer()
        return self

    def __exit__(self, *details: object) -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)

    @property
    def over(self) -> bool:
        return self.count >= self._most

    def _set_timer(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, self._pause))

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        # Last: on a slow machine the next signal would otherwise interrupt this function, again and again.
        self._set_timer()
        if frame is not None:
            self.count += 1
            raise Interrupt


def read(queue: Queue, given: SimpleQueue[Packet | None]) -> None:
    """Decide two of three packets, and pass the third to the other thread."""

    def handler(packet: Packet) -> None:
        if packet.id % 3 == 0:
            given.put(packet)
        else:
            decide(packet)

    queue.run(handler)


def decide(packet: Packet) -> None:
    with contextlib.suppress(AlreadyDecidedError):
        if packet.id % 2:
            packet.accept()
        else:
            packet.drop()


def decide_given(given: SimpleQueue[Packet | None]) -> None:
    while (packet := given.get()) is not None:
        decide(packet)


def start_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


@contextlib.contextmanager
def flood(place: netns.Netns) -> Iterator[None]:
    """Send packets from another process, as fast as it can, while the block is executed."""
    sock = netns.call_in(place, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    sock.connect(("127.0.0.1", PORT))
    child = os.fork()
    if child == 0:
        while os.getppid() != 1:
            with contextlib.suppress(OSError):  # dropped, or no socket receives them
                sock.send(b"flood")
        os._exit(0)
    try:
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        sock.close()


class Outcome(NamedTuple):
    """The number of packets, by what became of them."""

    received: int
    decided: int
    pending: int


def run(interrupts: int = INTERRUPTS) -> Outcome:
    """Run the loop, and interrupt it so many times."""
    place = netns.create()
    netns.call_in(place, start_loopback)
    given: SimpleQueue[Packet | None] = SimpleQueue()
    with (
        rules.queue(1, hook="output", protocol="udp", destination_port=PORT, bypass=False, netns=place),
        Queue(1, netns=place, on_overrun="ignore") as queue,
    ):
        other = threading.Thread(target=decide_given, args=(given,), daemon=True)
        with flood(place):
            other.start()  # after the fork
            with Interrupts(read, interrupts) as signals:
                while not signals.over:
                    with contextlib.suppress(Interrupt):
                        read(queue, given)
        # Decide the packets whose handler was interrupted, and those that still wait.
        while queue.process(decide) or queue.pending or select.select([queue], [], [], 0)[0]:
            for packet in queue.pending:
                decide(packet)
        given.put(None)
        other.join()
        counters = queue.counters
    return Outcome(counters.received, counters.accepted + counters.dropped, counters.pending)


def repeat(count: int) -> Iterator[tuple[int, int]]:
    """Run programs, and after every tenth yield how many ended, with every packet decided, and how many were run."""
    hung = wrong = 0
    for number in range(1, count + 1):
        try:
            done = subprocess.run(
                [sys.executable, "-m", __spec__.name], timeout=BOUND, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
            )
            if done.returncode:
                wrong += 1
                sys.stderr.buffer.write(done.stderr)
        except subprocess.TimeoutExpired:
            hung += 1
        if number % 10 == 0 or number == count:
            ended = number - hung - wrong
            print(f"{ended} of {number} ended; {hung} hung, {wrong} failed ({sys.version.split()[0]})", flush=True)
            yield ended, number


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    if count == 1:
        outcome = run()
        print(outcome)
        return outcome.received != outcome.decided
    *_, (ended, _) = repeat(count)
    return ended < count


if __name__ == "__main__":
    sys.exit(main())
