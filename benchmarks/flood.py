"""Measure a flood from a sender that never pauses: how many packets get a verdict, and their cost; and NetfilterQueue.

The queue and the receive buffer have their default sizes. Then 1, 2 and 4 queues are measured, whose packets two
processes decide (`nfnet.Workers`; one process for one queue). The kernel counts the packets after the queues. The
sender occupies one core; with two cores two processes share it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from common import PORT, options, write

import nfnet
from nfnet import rules

SIZES = (64, 100, 1500, 65_000)
QUEUES = (1, 2, 4)

_FLOOD = f"""
import socket, sys, time
size, seconds, senders = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
data = bytes(size - 28)
socks = []
for number in range(senders):  # addresses: it is by them that the kernel chooses one of several queues
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sock.bind((f"127.0.0.{{number + 1}}", 0))
    sock.connect(("127.0.0.1", {PORT}))
    socks.append(sock)
end = time.monotonic() + seconds
while time.monotonic() < end:
    for _ in range(100 // senders):
        for sock in socks:
            try:
                sock.send(data, socket.MSG_DONTWAIT)
            except OSError:  # the queue was full, or all that the socket may have under way is in it
                pass
"""

Result = tuple[int, float]  # packets that got a verdict, processor time


class _EndError(Exception):
    pass


def _end(*_: Any) -> None:
    raise _EndError


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _count(run: Callable[[Callable[[Any], None]], None], seconds: float) -> Result:
    """Run until the alarm."""
    count = 0

    def handler(packet: Any) -> None:
        nonlocal count
        packet.accept()
        count += 1

    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    before = _cpu()
    with suppress(_EndError):
        run(handler)
    return count, _cpu() - before


def run_nfnet(seconds: float) -> Result:
    with nfnet.Queue(1) as queue:
        return _count(queue.run, seconds)


def run_netfilterqueue(seconds: float) -> Result:
    queue = importlib.import_module("netfilterqueue").NetfilterQueue()

    def run(handler: Callable[[Any], None]) -> None:
        queue.bind(1, handler)  # hands out packets already
        queue.run()

    try:
        return _count(run, seconds)
    finally:
        queue.unbind()


@contextmanager
def flooding(size: int, seconds: float, senders: int = 1) -> Iterator[None]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", PORT))
        command = [sys.executable, "-S", "-c", _FLOOD, str(size), str(seconds + 2), str(senders)]
        with subprocess.Popen(command) as sender:
            time.sleep(0.2)  # it has begun
            yield
            sender.kill()


def flood(run: Callable[[float], Result], size: int, seconds: float) -> tuple[float, float]:
    """Thousands of packets a second that got a verdict, and microseconds of processor time for each."""
    with flooding(size, seconds):
        count, cpu = run(seconds)
    return count / seconds / 1000, cpu / max(1, count) * 1e6


def accept(packet: nfnet.Packet) -> None:
    packet.accept()


def arrived() -> int:
    """Return the kernel's count of UDP datagrams that arrived for sockets, including those that found a full buffer."""
    with open("/proc/thread-self/net/snmp") as file:
        names, values = (line.split()[1:] for line in file if line.startswith("Udp:"))
    counts = dict(zip(names, map(int, values)))
    return counts["InDatagrams"] + counts["InErrors"]


def flood_queues(number: int, seconds: float) -> float:
    """Thousands of packets a second that so many queues let through."""
    queues = range(1, number + 1)
    with (
        rules.queue(queues, hook="output", protocol="udp", destination_port=PORT),
        nfnet.Workers(accept, queues, min(2, number)) as workers,
    ):
        threading.Thread(target=workers.wait, daemon=True).start()
        with flooding(100, seconds, 50):
            before, began = arrived(), time.monotonic()
            time.sleep(seconds)
            count, took = arrived() - before, time.monotonic() - began
        workers.stop()
    return count / took / 1000


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long each flood lasts")
    own, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    found, seconds = options(__doc__, [0]), own.seconds
    programs = {"nfnet": run_nfnet}
    try:
        importlib.import_module("netfilterqueue")
        programs["NetfilterQueue"] = run_netfilterqueue
    except ImportError:
        print("netfilterqueue is not there to compare with; see benchmarks/README.md\n")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for size in SIZES:
            print(f"packets of {size:,} bytes, for {seconds:.0f} s: thousands with a verdict a second, cpu a packet")
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
            for _ in range(found.rounds):
                for name, run in programs.items():
                    times[name].append(flood(run, size, seconds))
            for name, measured in times.items():
                rates, cpus = [rate for rate, _ in measured], [cpu for _, cpu in measured]
                text = f"    {name:<15} {statistics.median(rates):7.1f}   {statistics.median(cpus):6.2f} µs"
                if name != "nfnet":
                    ours = times["nfnet"]
                    rate = statistics.median(a / b for (a, _), (b, _) in zip(ours, measured))
                    cpu = statistics.median(a / b for (_, a), (_, b) in zip(ours, measured))
                    text += f"   nfnet: {rate:.2f} of the packets, {cpu:.2f} of the time for each"
                print(text, flush=True)
                figures.append({"size": size, "program": name, "rate": rates, "cpu": cpus})
    print(
        f"packets of 100 bytes to several queues, {len(os.sched_getaffinity(0))} cores: thousands let through a second"
    )
    for number in QUEUES:
        rates = [flood_queues(number, seconds) for _ in range(found.rounds)]
        print(f"    {number} queues, {min(2, number)} processes {statistics.median(rates):7.1f}", flush=True)
        figures.append({"queues": number, "processes": min(2, number), "program": "nfnet", "rate": rates})
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
