"""Measure how much faster two processes decide the packets of two queues than one process decides all."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import threading
import time
from typing import Any

from common import PORT, options, write

import nfnet
from nfnet import rules
from nfnet._io.netlink_socket import SO_SNDBUFFORCE

ROUNDS_OF_WORK = 200  # about 20 microseconds a packet


def work(packet: nfnet.Packet) -> None:
    """A slow handler: it reads each byte of a packet several times."""
    payload = packet.payload
    for _ in range(ROUNDS_OF_WORK):
        sum(payload[:8])
    packet.accept()


def fill(count: int) -> None:
    """Send from so many addresses that the kernel distributes the packets evenly."""
    data = bytes(72)
    for last in range(2, 52):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 1 << 28)
            sock.bind((f"127.0.0.{last}", 0))
            for _ in range(count // 50):
                sock.sendto(data, ("127.0.0.1", PORT))


def measure(processes: int, count: int) -> tuple[float, float]:
    """Seconds for the workers to be through with so many packets that waited, and the larger queue's share of them."""
    go = multiprocessing.get_context("fork").Event()

    def handler(packet: nfnet.Packet) -> None:
        go.wait()
        work(packet)

    queues = range(1, 3)

    def statuses() -> list[nfnet.QueueStatus]:
        return [status for status in nfnet.stats.queues() if status.num in queues]

    with (
        rules.queue(queues, hook="output", protocol="udp", destination_port=PORT),
        nfnet.Workers(handler, queues, processes, max_len=count, rcvbuf=1 << 28) as workers,
    ):
        threading.Thread(target=workers.wait, daemon=True).start()
        while len(statuses()) < len(queues):
            time.sleep(0.01)
        fill(count)
        shares = [status.waiting for status in statuses()]
        assert sum(shares) == count // 50 * 50, shares
        began = time.monotonic()
        go.set()
        while sum(status.waiting for status in statuses()):
            time.sleep(0.005)
        took = time.monotonic() - began
        workers.stop()
    return took, max(shares) / sum(shares)


def main() -> int:
    found = options(__doc__, [20_000])
    figures: list[dict[str, Any]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", PORT))
        for count in found.packets:
            one, two = [], []
            for _ in range(min(found.rounds, 5)):
                one.append(measure(1, count)[0])
                took, share = measure(2, count)
                two.append(took)
            ratio = min(one) / min(two)
            print(f"{count:,} packets, {len(os.sched_getaffinity(0))} cores: one process {min(one):.2f} s,", end=" ")
            print(f"two processes {min(two):.2f} s, {ratio:.2f} times as fast;", end=" ")
            print(f"the larger queue had {share:.0%} of the packets")
            figures.append({"case": "workers", "packets": count, "one": one, "two": two})
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
