"""Measure how a packet's cost grows with its size, the held packets, the queues of a process, and the flows.

For each series it prints the processor time a packet as a multiple of that at the first point: if it grows with the
number, the total cost is not linear. nfnet and NetfilterQueue are measured in turns. NetfilterQueue reads only the
first 4,096 bytes of a packet.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import queue_drain
from cliffs import ACCEPT, METHOD_READ, READ, MakeHandler, holding
from common import PORT, Drain, Draining, Handler, Program, Traffic, measure, options, write

import nfnet
from nfnet import rules
from nfnet._io.netlink_socket import MAX_QUEUE_DATAGRAM


def run_queues(number: int) -> Program:
    """So many queues are open in the process; the first gets all packets."""

    def run(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
        stack = ExitStack()
        for other in range(2, number + 1):
            transport = Draining(rcvbuf=1 << 16, datagram=MAX_QUEUE_DATAGRAM)
            stack.enter_context(nfnet.Queue(other, transport=transport))
        drain, finish = queue_drain.run_nfnet(handler, count, fill)
        stack.callback(finish)
        return drain, stack.close

    return run


def run_their_queues(number: int) -> Program:
    def run(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
        import netfilterqueue

        stack = ExitStack()
        for other in range(2, number + 1):
            queue = netfilterqueue.NetfilterQueue()
            queue.bind(other, handler, sock_len=1 << 16)
            stack.callback(queue.unbind)
        drain, finish = queue_drain.run_netfilterqueue(handler, count, fill)
        stack.callback(finish)
        return drain, stack.close

    return run


def distinct_flows() -> Handler:
    """Counts packets by flow."""
    seen: dict[Any, int] = {}

    def handler(packet: Any) -> None:
        flow = packet.flow
        seen[flow] = seen.get(flow, 0) + 1
        packet.accept()

    return handler


Point = tuple[str, int, Traffic, Program, MakeHandler, Program | None, MakeHandler | None]


def points(count: int) -> dict[str, list[Point]]:
    ours, theirs = queue_drain.run_nfnet, queue_drain.run_netfilterqueue
    usual = Traffic()
    return {
        "bytes of a packet, payload read": [
            (str(size), min(count, (64 << 20) // size), Traffic((size,)), ours, READ, theirs, METHOD_READ)
            for size in (64, 100, 1500, 9000, 65_000)
        ],
        "packets held, then accepted": [
            (str(held), held, usual, ours, holding(held), theirs, holding(held)) for held in (1000, 10, 60_000)
        ],
        "queues open in the process": [
            (str(number), count, usual, run_queues(number), ACCEPT, run_their_queues(number), ACCEPT)
            for number in (1, 10, 100)
        ],
        "distinct flows, counted": [
            (str(flows), count, Traffic(ports=flows), ours, distinct_flows, None, None) for flows in (1, 100, 10_000)
        ],
    }


def measure_all(program: Program, make: MakeHandler, count: int, traffic: Traffic) -> float:
    """Processor time a packet; few packets are measured several times, for the clock's sake."""
    times = max(1, 1000 // count)
    return sum(measure(program, make(), count, traffic)[0] for _ in range(times)) / times


def main() -> int:
    found = options(__doc__, [10_000])
    with_peer = queue_drain.is_there("netfilterqueue")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for series, all_points in points(found.packets[0]).items():
            print(series)
            times: dict[tuple[str, str], list[float]] = {}
            for _ in range(found.rounds):
                for name, count, traffic, program, make, their_program, their_make in all_points:
                    taken = measure_all(program, make, count, traffic)
                    times.setdefault((name, "nfnet"), []).append(taken)
                    if with_peer and their_program is not None and their_make is not None:
                        taken = measure_all(their_program, their_make, count, traffic)
                        times.setdefault((name, "NetfilterQueue"), []).append(taken)
            for (name, program_name), cpu in times.items():
                first = times[all_points[0][0], program_name]
                multiple = statistics.median(a / b for a, b in zip(cpu, first))
                text = f"    {name:>8} {program_name:<15} {statistics.median(cpu):6.2f} µs   multiple {multiple:5.2f}"
                peer = times.get((name, "NetfilterQueue"))
                share = statistics.median(a / b for a, b in zip(cpu, peer)) if peer else None
                if program_name == "nfnet" and share is not None:
                    text += f"   {share:.2f} of NetfilterQueue"
                print(text, flush=True)
                figures.append(
                    {"series": series, "point": name, "program": program_name, "cpu": cpu, "multiple": multiple}
                )
            print()
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
