"""Measure the round trip of one packet at a time through a queue, for nfnet and its peers.

A sender in another process sends a packet, waits until it has arrived, and sends the next one. Both processes run on
one core, then on two. The kernel does not delay logged packets, so for a log the handler notifies the sender that it
has received the message.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from common import PORT, options, write
from log_drain import GROUP

import nfnet
from nfnet import rules
from nfnet.protocol import nfqnl, nfulnl

_SEND = f"""
import os, socket, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
count = int(sys.argv[2])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.bind(("127.0.0.1", {PORT}))
    sock.connect(("127.0.0.1", {PORT}))
    data = bytes(72)
    os.read(0, 1)
    began = time.perf_counter()
    if sys.argv[3] == "log":
        for _ in range(count):
            sock.send(data)
            os.read(0, 1)
        sock.send(data)
    else:
        for _ in range(count):
            sock.send(data)
            sock.recv(100)
    print((time.perf_counter() - began) / count * 1e6, flush=True)
"""

Run = Callable[[int, Callable[[], None]], float]
"""Handles so many packets, after which it returns the processor time; the second argument lets the sender begin."""


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _EndError(Exception):
    pass


def _counting(count: int, then: Callable[[], Any]) -> Callable[[Any], None]:
    """A handler that accepts, and after so many packets does something else, too."""
    left = count

    def handler(packet: Any) -> None:
        nonlocal left
        packet.accept()
        left -= 1
        if not left:
            then()

    return handler


def run_nfnet(count: int, begin: Callable[[], None]) -> float:
    with nfnet.Queue(1) as queue:
        begin()
        before = _cpu()
        queue.run(_counting(count, queue.stop))
        return _cpu() - before


def run_iteration(count: int, begin: Callable[[], None]) -> float:
    with nfnet.Queue(1) as queue:
        begin()
        before = _cpu()
        for packet in queue:
            packet.accept()
            count -= 1
            if not count:
                break
        return _cpu() - before


def _raise_end() -> None:
    raise _EndError


def _run_their_api(netfilterqueue: Any, count: int, begin: Callable[[], None]) -> float:
    queue = netfilterqueue.NetfilterQueue()
    queue.bind(1, _counting(count, _raise_end))
    begin()
    before = _cpu()
    try:
        queue.run()
    except _EndError:
        return _cpu() - before
    finally:
        queue.unbind()
    raise AssertionError


def run_netfilterqueue(count: int, begin: Callable[[], None]) -> float:
    return _run_their_api(importlib.import_module("netfilterqueue"), count, begin)


def run_compat(count: int, begin: Callable[[], None]) -> float:
    return _run_their_api(importlib.import_module("nfnet.compat.netfilterqueue"), count, begin)


def run_async(count: int, begin: Callable[[], None]) -> float:
    async def work() -> float:
        async with nfnet.AsyncQueue(1) as queue:
            begin()
            before = _cpu()
            await queue.run(_counting(count, queue.stop))
            return _cpu() - before

    return asyncio.run(work())


def run_async_iteration(count: int, begin: Callable[[], None]) -> float:
    async def work() -> float:
        left = count
        async with nfnet.AsyncQueue(1) as queue:
            begin()
            before = _cpu()
            async for packet in queue:
                packet.accept()
                left -= 1
                if not left:
                    break
            return _cpu() - before

    return asyncio.run(work())


def _bare_socket() -> socket.socket:
    """A bound queue, without nfnet."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, 0))
    request = nfqnl.config(1, command=nfqnl.Command.BIND, copy_range=0xFFFF, seq=1, ack=True)
    sock.sendto(request, (0, 0))
    sock.recv(100)
    return sock


def run_bare(count: int, begin: Callable[[], None]) -> float:
    """Measure Python's own part: a blocking recv, the id, and a sendto."""
    sock = _bare_socket()
    verdict = nfqnl.verdict(1, 0, nfqnl.Verdict.ACCEPT)[:-4]
    begin()
    before = _cpu()
    for _ in range(count):
        raw = sock.recv(0x12000)
        sock.sendto(verdict + raw[nfqnl.PACKET_ID], (0, 0))
    took = _cpu() - before
    sock.close()
    return took


def run_bare_async(count: int, begin: Callable[[], None]) -> float:
    """Measure asyncio's own part: the same, after the event loop reports that the socket is readable."""

    async def work() -> float:
        sock = _bare_socket()
        verdict = nfqnl.verdict(1, 0, nfqnl.Verdict.ACCEPT)[:-4]
        loop = asyncio.get_running_loop()
        ended = loop.create_future()
        left = count

        def turn() -> None:
            nonlocal left
            raw = sock.recv(0x12000)
            sock.sendto(verdict + raw[nfqnl.PACKET_ID], (0, 0))
            left -= 1
            if not left:
                ended.set_result(None)

        begin()
        before = _cpu()
        loop.add_reader(sock, turn)
        await ended
        took = _cpu() - before
        loop.remove_reader(sock)
        sock.close()
        return took

    return asyncio.run(work())


# --- logs: the handler calls `begin` for each message, on which the sender sends the next packet


def _telling(count: int, tell: Callable[[], None], then: Callable[[], Any]) -> Callable[[Any], None]:
    left = count

    def handler(message: Any) -> None:
        nonlocal left
        tell()
        left -= 1
        if not left:
            then()

    return handler


def run_log(count: int, begin: Callable[[], None]) -> float:
    with nfnet.Log(GROUP, threshold=1) as log:
        begin()
        before = _cpu()
        log.run(_telling(count, begin, log.stop))
        return _cpu() - before


def run_async_log(count: int, begin: Callable[[], None]) -> float:
    async def work() -> float:
        async with nfnet.AsyncLog(GROUP, threshold=1) as log:
            begin()
            before = _cpu()
            await log.run(_telling(count, begin, log.stop))
            return _cpu() - before

    return asyncio.run(work())


def run_async_log_iteration(count: int, begin: Callable[[], None]) -> float:
    async def work() -> float:
        left = count
        async with nfnet.AsyncLog(GROUP, threshold=1) as log:
            begin()
            before = _cpu()
            async for _ in log:
                begin()
                left -= 1
                if not left:
                    break
            return _cpu() - before

    return asyncio.run(work())


def run_nflogr(count: int, begin: Callable[[], None]) -> float:
    log = importlib.import_module("nflogr").open(GROUP, qthresh=1)
    begin()
    before = _cpu()
    log.loop(_telling(count, begin, int), count)
    took = _cpu() - before
    log.close()
    return took


def run_bare_log(count: int, begin: Callable[[], None]) -> float:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    sock.bind((0, 0))
    sock.sendto(nfulnl.config(GROUP, command=nfqnl.Command.BIND, threshold=1, seq=1, ack=True), (0, 0))
    sock.recv(100)
    begin()
    before = _cpu()
    for _ in range(count):
        sock.recv(0x40000)
        begin()
    took = _cpu() - before
    sock.close()
    return took


PROGRAMS: dict[str, Run] = {
    "nfnet": run_nfnet,
    "iteration": run_iteration,
    "NetfilterQueue": run_netfilterqueue,
    "compat": run_compat,
    "asyncio: run": run_async,
    "asyncio: iteration": run_async_iteration,
    "bare Python": run_bare,
    "bare asyncio": run_bare_async,
}
LOG_PROGRAMS: dict[str, Run] = {
    "log": run_log,
    "nflogr": run_nflogr,
    "log, asyncio: run": run_async_log,
    "log, asyncio: iteration": run_async_log_iteration,
    "log, bare Python": run_bare_log,
}
# Shares of the peer's round trip and processor time, or of those of Python's own part.
GOALS = {
    "nfnet": (1.05, 1.15),
    "iteration": (1.05, 1.15),
    "compat": (1.05, 1.15),
    "asyncio: run": (1.5, 1.5),
    "log, asyncio: run": (1.5, 1.5),
}


def measure(run: Run, count: int, core: int, kind: str = "queue") -> tuple[float, float]:
    """Round trip, and processor time of the program that decides, in microseconds a packet."""
    command = [sys.executable, "-S", "-c", _SEND, str(core), str(count), kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sender:
        assert sender.stdin is not None
        assert sender.stdout is not None
        cpu = run(count, partial(os.write, sender.stdin.fileno(), b"x"))
        return float(sender.stdout.readline()), cpu / count * 1e6


def run_all(programs: dict[str, Run], peer: str, kind: str, count: int, rounds: int) -> list[dict[str, Any]]:
    figures = []
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    for case, core in (("on one core", cores[0]), ("on two cores", cores[-1])):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, run in random.sample(list(programs.items()), len(programs)):
                times[name].append(measure(run, count, core, kind))
        print(f"{kind}, {case}: round trip, processor time")
        for name, measured in times.items():
            trips, cpus = [trip for trip, _ in measured], [cpu for _, cpu in measured]
            trip = statistics.median(a / b for (a, _), (b, _) in zip(measured, times[peer]))
            cpu = statistics.median(a / b for (_, a), (_, b) in zip(measured, times[peer]))
            text = f"    {name:<24} {statistics.median(trips):6.2f} {statistics.median(cpus):6.2f}"
            text += f"   {trip:5.2f} {cpu:5.2f} of {peer}"
            if name in GOALS:
                text += " (goals: {} {})".format(*GOALS[name])
            print(text, flush=True)
            row = {"case": case, "program": name, "peer": peer, "goals": GOALS.get(name)}
            figures.append({**row, "trip": trips, "cpu": cpus, "trip ratio": trip, "cpu ratio": cpu})
        print()
    os.sched_setaffinity(0, cores)
    return figures


def chosen(programs: dict[str, Run], module: str, name: str, otherwise: str) -> tuple[dict[str, Run], str]:
    """The programs that can run here, and with which of them the others are compared."""
    try:
        importlib.import_module(module)
    except ImportError:
        print(f"{module} is not there to compare with; see benchmarks/README.md\n")
        return {key: run for key, run in programs.items() if key != name}, otherwise
    return programs, name


def main() -> int:
    found = options(__doc__, [5000])
    count = found.packets[0]
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        programs, peer = chosen(PROGRAMS, "netfilterqueue", "NetfilterQueue", "bare Python")
        figures = run_all(programs, peer, "queue", count, found.rounds)
    # Incoming packets: nflogr crashes on those without a timestamp, which are all that go out.
    with rules.log(GROUP, prefix="bench: ", hook="input", protocol="udp", destination_port=PORT):
        programs, peer = chosen(LOG_PROGRAMS, "nflogr", "nflogr", "log, bare Python")
        figures += run_all(programs, peer, "log", count, found.rounds)
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
