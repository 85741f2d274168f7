"""Measure two queues in two threads against the same work in one thread.

    python -m benchmarks.threads

In a free-threaded build of CPython (3.13t, 3.14t) threads execute Python code at the same time, in other builds one at
a time. The queues are models of the kernel (`nfnet.testing`), so it measures only Python, without privileges.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time

from nfnet import Packet, Queue
from nfnet.testing import FakeKernel

PORTION = 500


def handler(packet: Packet) -> None:
    """Look at the packet, as handlers do."""
    if packet.udp is not None and packet.udp.destination_port == 1:
        packet.drop()
    else:
        packet.accept()


def work(count: int) -> None:
    """Decide so many packets of one queue."""
    kernel = FakeKernel(ends=True)
    with Queue(1, transport=kernel) as queue:
        for _ in range(0, count, PORTION):
            kernel.feed(PORTION)
            queue.process(handler)
            kernel.sent.clear()
            kernel.judged.clear()


def seconds(threads: int, count: int) -> float:
    """Return how long so many threads take if each decides ``count`` packets."""
    several = [threading.Thread(target=work, args=(count,)) for _ in range(threads)]
    began = time.perf_counter()
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    return time.perf_counter() - began


def main() -> None:
    """Measure in turns, and print the median of the ratios."""
    parser = argparse.ArgumentParser(prog="threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--packets", type=int, default=20_000, help="of each queue and round")
    arguments = parser.parse_args()
    ratios = []
    for _ in range(arguments.rounds):
        one, two = seconds(1, arguments.packets), seconds(2, arguments.packets)
        ratios.append(2 * one / two)
    print(f"two queues in two threads do {statistics.median(ratios):.2f} times the work of one ({sys.version})")


if __name__ == "__main__":
    main()
