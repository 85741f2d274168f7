"""A sender that never pauses: how many of its packets get a verdict, and what they cost; nfnet beside NetfilterQueue.

The queue and the receive buffer have the sizes that a program gets which asks for none.
"""

from __future__ import annotations

import importlib
import resource
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from common import PORT, options, write

import nfnet
from nfnet import rules

SECONDS = 3.0
SIZES = (64, 100, 1500, 65_000)

_FLOOD = f"""
import socket, sys, time
size, seconds = int(sys.argv[1]), float(sys.argv[2])
data = bytes(size - 28)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    sock.connect(("127.0.0.1", {PORT}))
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for _ in range(100):
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


def _count(run: Callable[[Callable[[Any], None]], None]) -> Result:
    """Run until the alarm."""
    count = 0

    def handler(packet: Any) -> None:
        nonlocal count
        packet.accept()
        count += 1

    signal.signal(signal.SIGALRM, _end)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    before = _cpu()
    with suppress(_EndError):
        run(handler)
    return count, _cpu() - before


def run_nfnet() -> Result:
    with nfnet.Queue(1) as queue:
        return _count(queue.run)


def run_netfilterqueue() -> Result:
    queue = importlib.import_module("netfilterqueue").NetfilterQueue()

    def run(handler: Callable[[Any], None]) -> None:
        queue.bind(1, handler)  # hands out packets already
        queue.run()

    try:
        return _count(run)
    finally:
        queue.unbind()


def flood(run: Callable[[], Result], size: int) -> tuple[float, float]:
    """Thousands of packets a second that got a verdict, and microseconds of processor time for each."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", PORT))
        command = [sys.executable, "-S", "-c", _FLOOD, str(size), str(SECONDS + 1)]
        with subprocess.Popen(command) as sender:
            time.sleep(0.2)  # it has begun
            count, cpu = run()
            sender.kill()
    return count / SECONDS / 1000, cpu / max(1, count) * 1e6


def main() -> int:
    found = options(__doc__, [0])
    programs = {"nfnet": run_nfnet}
    try:
        importlib.import_module("netfilterqueue")
        programs["NetfilterQueue"] = run_netfilterqueue
    except ImportError:
        print("netfilterqueue is not there to compare with; see benchmarks/README.md\n")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for size in SIZES:
            print(f"packets of {size:,} bytes, for {SECONDS:.0f} s: thousands with a verdict a second, cpu a packet")
            times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
            for _ in range(found.rounds):
                for name, run in programs.items():
                    times[name].append(flood(run, size))
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
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
