"""Measure the throughput of a TCP connection that was accepted as a whole: `accept(connection=True)`.

One process sends data to another on this machine, in packets of 1500 bytes, all of which match the rule. In turns, the
same is measured with connection tracking and without a queue, which is the reference, and with all packets decided in
Python.
"""

from __future__ import annotations

import contextlib
import random
import socket
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from common import options, write

import nfnet
from nfnet import rules

SECONDS = 1.0
GOAL = 0.95
MOST_PACKETS = 4

Way = Callable[[], "contextlib.AbstractContextManager[list[int]]"]
"""Sets a way up, and gives a list that grows by one with every packet in Python."""

_SEND = f"""
import socket, sys, time
data = bytes(1 << 17)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as sock:
    end = time.monotonic() + {SECONDS}
    while time.monotonic() < end:
        sock.sendall(data)
"""


@contextlib.contextmanager
def tracked() -> Iterator[list[int]]:
    """Connection tracking, a rule that looks at it, and no queue."""
    with rules.accept(hook="output", protocol="tcp", state=["new", "established"]):
        yield []


def queued(decide: Callable[[nfnet.Packet], None], **arguments: Any) -> Way:
    """A queue whose handler decides each packet."""

    @contextlib.contextmanager
    def way() -> Iterator[list[int]]:
        seen: list[int] = []

        def handler(packet: nfnet.Packet) -> None:
            seen.append(packet.id)
            decide(packet)

        with rules.queue(1, hook="output", protocol="tcp", remember=True), nfnet.Queue(1, **arguments) as queue:
            thread = threading.Thread(target=queue.run, args=(handler,))
            thread.start()
            yield seen
            queue.stop()
            thread.join()

    return way


WAYS: dict[str, Way] = {
    "accept(connection=True)": queued(lambda packet: packet.accept(connection=True)),
    "connection tracking, no queue": tracked,
    "each packet in Python, gso": queued(lambda packet: packet.accept(), gso=True, max_len=65536),
    "each packet in Python": queued(lambda packet: packet.accept(), max_len=65536),
}
SUBJECT, REFERENCE = list(WAYS)[:2]


def transfer(way: Way) -> tuple[float, int]:
    """Gigabits a second, and how many packets were seen in Python."""
    with socket.create_server(("127.0.0.1", 0)) as server, way() as seen:
        sender = subprocess.Popen([sys.executable, "-S", "-c", _SEND, str(server.getsockname()[1])])
        sock, _ = server.accept()
        total, buffer = 0, bytearray(1 << 20)
        with sock:
            while size := sock.recv_into(buffer):
                total += size
        assert sender.wait() == 0
    return total * 8 / SECONDS / 1e9, len(seen)


def main() -> int:
    found = options(__doc__, [1])
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", ifname="lo", mtu=1500)
    rates: dict[str, list[float]] = {name: [] for name in WAYS}
    packets: dict[str, list[int]] = {name: [] for name in WAYS}
    for _ in range(found.rounds):
        for name in random.sample(list(WAYS), len(WAYS)):
            rate, count = transfer(WAYS[name])
            rates[name].append(rate)
            packets[name].append(count)
    for name in WAYS:
        ratio = statistics.median(a / b for a, b in zip(rates[name], rates[REFERENCE]))
        text = f"    {name:<30} {statistics.median(rates[name]):6.2f} Gbit/s, {ratio:.2f} of that with no queue"
        print(f"{text}, {statistics.median(packets[name]):,.0f} packets in Python", flush=True)
    ratio = statistics.median(a / b for a, b in zip(rates[SUBJECT], rates[REFERENCE]))
    most = max(packets[SUBJECT])
    print(f"\n    goal: {GOAL} of it, and {MOST_PACKETS} packets in Python; {ratio:.2f} and {most}")
    write(found.json, [{"way": name, "rates": rates[name], "packets": packets[name]} for name in WAYS])
    return 0 if most <= MOST_PACKETS and ratio >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
