"""Measure unusual packets: their processor time as a multiple of a usual packet's, for nfnet and its peers.

For each case the same program is measured with the usual packet and with the unusual one, in turns; the multiple is the
median over the rounds. It is compared with the goal, and with the figure in docs/figures/cliffs.json, which `make
bench-report` writes: a case that got worse is named at the end, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import socket
import statistics
import struct
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import log_drain
import queue_drain
from common import PORT, SIZE, USUAL, Drain, Handler, Program, Traffic, measure, options, write

import nfnet
from nfnet import rules

STORED = Path(__file__).resolve().parent.parent / "docs" / "figures" / "cliffs.json"
WORSE = 4 / 3  # times the stored figure: more than noise
HEADERS = 180  # IPv6 extension headers
SOURCE = "2001:db8::1"  # no host has it: no ICMP message is sent to it

MakeHandler = Callable[[], Handler]


@dataclass(frozen=True)
class Side:
    """A program with the handlers for the usual packets and for the unusual ones; one is made for each round."""

    program: Program
    handler: MakeHandler
    usual: MakeHandler
    usual_program: Program | None = None


@dataclass(frozen=True)
class Case:
    name: str
    sides: dict[str, Side]
    """By the name of the program; the first is ours."""
    goal: float = 3.0
    traffic: Traffic = USUAL
    usual: Traffic = USUAL
    packets: int = 0
    """Another number of packets than the others', and of usual ones."""
    usual_packets: int = 0


# --- handlers


def just(handler: Handler) -> MakeHandler:
    return lambda: handler


def marking() -> Handler:
    mark = 0

    def handler(packet: Any) -> None:
        nonlocal mark
        mark += 1
        packet.accept(mark=mark)

    return handler


def marking_by_method() -> Handler:
    mark = 0

    def handler(packet: Any) -> None:
        nonlocal mark
        mark += 1
        packet.set_mark(mark)
        packet.accept()

    return handler


def replace(packet: Any) -> None:
    packet.accept(payload=packet.payload[:28] + _OTHER)


def replace_by_method(packet: Any) -> None:
    packet.set_payload(packet.get_payload()[:28] + _OTHER)
    packet.accept()


_OTHER = b"x" * (SIZE - 28)


def rewrite(packet: Any) -> None:
    packet.accept(payload=packet.rewrite(data=_OTHER))


def flow(packet: Any) -> None:
    packet.flow  # noqa: B018
    packet.accept()


def late(every: int) -> MakeHandler:
    """One of so many packets is decided when the next of these arrives."""

    def make(count: int = 0) -> Handler:
        held: list[Any] = []

        def handler(packet: Any) -> None:
            nonlocal count
            count += 1
            if count % every == 1:
                held.append(packet)
                return
            packet.accept()
            if count % every == 0:
                held.pop().accept()

        return handler

    return make


def holding(total: int) -> MakeHandler:
    """All packets are held, and accepted together."""

    def make() -> Handler:
        held: list[Any] = []

        def handler(packet: Any) -> None:
            held.append(packet)
            if len(held) == total:
                for each in held:
                    each.accept()

        return handler

    return make


def run_recorded(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    stack = ExitStack()
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    stack.enter_context(nfnet.record(Path(directory) / "bench.pcapng"))
    drain, finish = queue_drain.run_nfnet(handler, count, fill)
    stack.callback(finish)
    return drain, stack.close


# --- cases


def with_headers(count: int) -> bytes:
    """An IPv6 packet of about 1,500 bytes, to UDP behind so many destination options headers of 8 bytes."""
    option = bytes((60, 0, 1, 4, 0, 0, 0, 0))
    headers = option * (count - 1) + bytes((17,)) + option[1:] if count else b""
    data = bytes(max(0, 1460 - len(headers) - 8))
    udp = struct.pack(">HHHH", 4242, PORT, 8 + len(data), 0) + data
    addresses = socket.inet_pton(socket.AF_INET6, SOURCE) + bytes(15) + b"\x01"
    length = len(headers) + len(udp)
    return struct.pack(">IHBB", 0x60000000, length, 60 if count else 17, 64) + addresses + headers + udp


ACCEPT = just(queue_drain.accept)
READ, METHOD_READ = just(queue_drain.attribute_payload), just(queue_drain.method_payload)


def queue_cases(count: int) -> list[Case]:
    ours, theirs = queue_drain.run_nfnet, queue_drain.run_netfilterqueue
    asynchronous = partial(queue_drain.run_async, False)
    dice = random.Random(1)
    lengths = Traffic(dice.sample(range(28, 9028), 9000))
    # The attribute with the mark takes the 8 bytes that the payload is shorter.
    other = Traffic((SIZE, SIZE - 8), (0, 1))

    def both(handler: MakeHandler, method: MakeHandler | None, usual: MakeHandler, their_usual: MakeHandler) -> Any:
        sides = {"nfnet": Side(ours, handler, usual)}
        if method is not None:
            sides["NetfilterQueue"] = Side(theirs, method, their_usual)
        return sides

    reading = both(READ, METHOD_READ, READ, METHOD_READ)
    many = 16_000
    return [
        Case("other attributes at the same length", reading, traffic=other),
        Case("9,000 distinct lengths", reading, traffic=lengths, packets=max(count, 9000)),
        Case("a new mark for each packet", both(marking, marking_by_method, ACCEPT, ACCEPT)),
        Case("payload replaced", both(just(replace), just(replace_by_method), READ, METHOD_READ)),
        Case("rewrite(data=)", both(just(rewrite), None, READ, METHOD_READ), 4.0),
        Case("one of fifty decided late", both(late(50), late(50), ACCEPT, ACCEPT)),
        Case("all held, then accepted", both(holding(count), holding(count), ACCEPT, ACCEPT)),
        Case("recorded", {"nfnet": Side(run_recorded, READ, READ, ours)}),
        Case(
            f"flow behind {HEADERS} IPv6 headers",
            {"nfnet": Side(ours, just(flow), just(flow))},
            traffic=Traffic(ipv6=with_headers(HEADERS)),
            usual=Traffic(ipv6=with_headers(0)),
        ),
        Case(
            f"{many:,} held packets accepted in one step of asyncio",
            {"nfnet": Side(asynchronous, holding(many), holding(many // 16))},
            1.5,  # linear in their number; the usual case holds a sixteenth of them
            packets=many,
            usual_packets=many // 16,
        ),
    ]


def log_cases() -> list[Case]:
    dice = random.Random(1)
    read = just(log_drain.read)
    sides = {"nfnet": Side(log_drain.run_nfnet, read, read), "nflogr": Side(log_drain.run_nflogr, read, read)}
    sizes = Traffic([dice.randrange(29, 1401) for _ in range(5000)])
    return [Case("log messages of 29 to 1,400 bytes", sides, 1.5, sizes, packets=10_000)]


# --- measuring


def run(case: Case, count: int, rounds: int, peers: set[str]) -> dict[str, Any]:
    count = case.packets or count
    sides = {name: side for name, side in case.sides.items() if name == "nfnet" or name in peers}
    usual: dict[str, list[float]] = {name: [] for name in sides}
    unusual: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in random.sample(list(sides.items()), len(sides)):
            program = side.usual_program or side.program
            usual[name].append(measure(program, side.usual(), case.usual_packets or count, case.usual)[0])
            unusual[name].append(measure(side.program, side.handler(), count, case.traffic)[0])
    row: dict[str, Any] = {"case": case.name, "goal": case.goal, "packets": count, "multiple": 0.0}
    for name in sides:
        multiple = statistics.median(a / b for a, b in zip(unusual[name], usual[name]))
        text = f"    {name:<15} {statistics.median(unusual[name]):6.2f} µs, usual {statistics.median(usual[name]):5.2f}"
        text += f"   multiple {multiple:5.2f}"
        if name == "nfnet":
            row["multiple"] = round(multiple, 2)
            text += f" (goal: {case.goal})"
        else:
            share = statistics.median(a / b for a, b in zip(unusual["nfnet"], unusual[name]))
            row |= {"peer": name, "peer multiple": round(multiple, 2), "share": round(share, 2)}
            text += f"   nfnet takes {share:.2f} of it"
        row[name] = {"usual": usual[name], "unusual": unusual[name]}
        if name == "nfnet":
            print(f"{case.name}, {count:,} waiting")
        print(text, flush=True)
    return row


def worse(rows: list[dict[str, Any]], stored: dict[str, float]) -> list[str]:
    """Return lines about the cases above their goal, or above the stored figure by more than noise."""
    found = []
    for row in rows:
        before = stored.get(row["case"])
        if before is not None and row["multiple"] > before * WORSE:
            found.append(f"{row['case']}: {row['multiple']} times the usual packet's; stored is {before}")
        elif row["multiple"] > row["goal"]:
            found.append(f"{row['case']}: {row['multiple']} times the usual packet's; the goal is {row['goal']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--only", default="", help="cases with this in their name")
    only, rest = parser.parse_known_args()
    sys.argv[1:] = rest
    found = options(__doc__, [5000])
    peers = set()
    for name in ("netfilterqueue", "nflogr"):
        if queue_drain.is_there(name):
            peers.add(importlib.import_module(name).__name__.replace("netfilterqueue", "NetfilterQueue"))
    rows: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        rows += [
            run(case, found.packets[0], found.rounds, peers)
            for case in queue_cases(found.packets[0])
            if only.only in case.name
        ]
    with rules.log(log_drain.GROUP, prefix="bench: ", hook="input", protocol="udp", destination_port=PORT):
        rows += [run(case, found.packets[0], found.rounds, peers) for case in log_cases() if only.only in case.name]
    write(found.json, rows)
    stored = json.loads(STORED.read_text()) if STORED.exists() else {}
    if problems := worse(rows, stored):
        print("\nA cliff came back:\n    " + "\n    ".join(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
