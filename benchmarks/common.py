"""A namespace, traffic, measurements in turns, and the table, for all benchmarks."""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import socket
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nfnet
from nfnet import netns
from nfnet._io.netlink_socket import SO_SNDBUFFORCE

SIZE = 100  # bytes, with IP and UDP headers
PORT = 9
BUFFER = 1 << 28

Handler = Callable[[Any], Any]
Drain = Callable[[], Any]
# Binds, calls `fill`, and returns what drains and what is to be done afterwards.
Program = Callable[[Handler, int, Callable[[], None]], tuple[Drain, Callable[[], Any]]]


class Draining(nfnet.NetlinkSocket):
    """Ends when nothing waits."""

    def receive(self, into: list[bytes], limit: int) -> bool:
        before = len(into)
        super().receive(into, limit)
        return len(into) > before


@dataclass(frozen=True)
class Traffic:
    """The packets that `fill` sends: UDP of these sizes and with these marks in turn, or one given IPv6 packet.

    ``ports`` is the number of source ports, which are used equally often.
    """

    sizes: Sequence[int] = (SIZE,)
    marks: Sequence[int] = (0,)
    ipv6: bytes = b""
    ports: int = 1


USUAL = Traffic()

_FILL = f"""
import itertools, json, socket, sys
count, share, force, sizes, marks, ipv6 = json.loads(sys.stdin.read())
ipv6 = bytes.fromhex(ipv6)
data = itertools.cycle([bytes(size - 28) for size in sizes])
marks = itertools.cycle(marks)
mark = 0
for start in range(0, count, share):
    kind = (socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) if ipv6 else (socket.AF_INET, socket.SOCK_DGRAM)
    with socket.socket(*kind) as sock:
        sock.setsockopt(socket.SOL_SOCKET, force or socket.SO_SNDBUF, {BUFFER})
        if not ipv6:
            sock.connect(("127.0.0.1", {PORT}))
            mark = 0
        for _ in range(min(share, count - start)):
            if ipv6:
                sock.sendto(ipv6, ("::1", 0))
                continue
            if mark != (mark := next(marks)):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            try:
                sock.send(next(data))
            except ConnectionRefusedError:  # for one of the last round that came when its receiver had gone
                sock.send(next(data))
"""


def fill(count: int, traffic: Traffic = USUAL) -> None:
    """Send packets that the rule queues, from another process, so that its time is not counted.

    That process is not a fork of this one: after a fork a queue is shared with the child, and takes a slower path.
    """
    force = SO_SNDBUFFORCE if _may_have_large_buffers() else 0
    share = 20_000 if force else 100  # packets, of each socket
    share = max(1, min(share, count // traffic.ports))
    given = json.dumps([count, share, force, list(traffic.sizes), list(traffic.marks), traffic.ipv6.hex()])
    subprocess.run([sys.executable, "-S", "-c", _FILL], input=given, text=True, check=True)


def _may_have_large_buffers() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        except PermissionError:
            return False
    return True


def measure(program: Program, handler: Handler, count: int, traffic: Traffic = USUAL) -> tuple[float, float]:
    """Processor and wall-clock time a packet, in microseconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", PORT))
        drain, finish = program(handler, count, lambda: fill(count, traffic))
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        drain()
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        finish()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu / count * 1e6, took / count * 1e6


def options(description: str | None, packets: list[int], *flags: str) -> argparse.Namespace:
    """The command line, a namespace of this process's own, and the head of the table.

    flags: options of this benchmark that are given or not.
    """
    parser = argparse.ArgumentParser(description=description)
    for flag in flags:
        parser.add_argument(flag, action="store_true")
    parser.add_argument("--packets", type=int, nargs="+", default=packets, help="how many wait")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    found = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # NetfilterQueue complains of what the buffer was rounded to
    enter_namespace()
    print(f"{platform.python_implementation()} {platform.python_version()}, Linux {platform.release()}")
    print(f"{SIZE}-byte packets, microseconds a packet, median of {found.rounds} rounds\n", flush=True)
    return found


def enter_namespace() -> None:
    """Enter a new network namespace, which has only a loopback interface."""
    try:
        netns.unshare(netns.CLONE_NEWNET)
    except nfnet.KernelError:
        netns.become_root()
        netns.unshare(netns.CLONE_NEWNET)
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", ifname="lo", state="up")


def run_case(
    case: str, programs: dict[str, tuple[Program, Handler]], count: int, rounds: int, goals: dict[str, float]
) -> list[dict[str, Any]]:
    """Measure the programs in turns, the first of which is nfnet's, and print and return the results."""
    subject = next(iter(programs))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        order = list(programs.items())
        random.shuffle(order)
        for name, (program, handler) in order:
            times[name].append(measure(program, handler, count))
    print(f"{case}, {count:,} waiting")
    rows = []
    ours = [cpu for cpu, _ in times[subject]]
    for name, measured in times.items():
        cpus, walls = [cpu for cpu, _ in measured], [wall for _, wall in measured]
        ratio = statistics.median(a / b for a, b in zip(ours, cpus))
        text = f"    {name:<15} cpu {statistics.median(cpus):5.2f} (least {min(cpus):5.2f})"
        text += f"   wall {statistics.median(walls):5.2f}"
        if name != subject:
            text += f"   {subject} takes {ratio:.2f} of it"
        if name in goals:
            text += f" (goal: {goals[name]})"
        print(text, flush=True)
        row = {"case": case, "packets": count, "program": name, "subject": subject, "ratio": ratio}
        rows.append({**row, "cpu": cpus, "wall": walls})
    print()
    return rows


def write(file: str | None, figures: list[dict[str, Any]]) -> None:
    """All figures, as JSON."""
    if file:
        with open(file, "w") as stream:
            json.dump(figures, stream, indent=1)
