"""Fill a queue, drain it, and say what a packet cost: nfnet beside its peers."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import socket
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import nfnet
from nfnet import netns, rules
from nfnet.transport import MAX_QUEUE_DATAGRAM

SIZE = 100  # bytes, with IP and UDP headers
PORT = 9
SO_SNDBUFFORCE = 32
BUFFER = 1 << 28
LIMIT = 60_000  # the kernel holds no more than 65,536 packets

Handler = Callable[[Any], Any]


# --- handlers, for nfnet and for packages with the API of NetfilterQueue


def accept(packet: Any) -> None:
    packet.accept()


def payload_nfnet(packet: Any) -> None:
    len(packet.payload)
    packet.accept()


def payload_peer(packet: Any) -> None:
    len(packet.get_payload())
    packet.accept()


def alternate(read: Callable[[Any], Any]) -> Handler:
    turn = False

    def handler(packet: Any) -> None:
        nonlocal turn
        turn = not turn
        read(packet)
        if turn:
            packet.accept()
        else:
            packet.drop()

    return handler


# --- programs: each binds queue 1, calls `fill`, drains, and returns what `fill` gave it


class Draining(nfnet.NetlinkSocket):
    """Ends when nothing waits, as the peers' ``run(block=False)`` does."""

    def receive(self, into: list[bytes], limit: int) -> bool:
        before = len(into)
        super().receive(into, limit)
        return len(into) > before


def run_nfnet(handler: Handler, count: int, fill: Callable[[], None]) -> Callable[[], None]:
    queue = nfnet.Queue(1, max_len=BUFFER, transport=Draining(rcvbuf=BUFFER, datagram=MAX_QUEUE_DATAGRAM))
    queue.open()
    fill()

    def drain() -> None:
        queue.run(handler)

    def check() -> None:
        counters = queue.counters
        assert (counters.received, counters.pending, counters.lost) == (count, 0, 0), counters
        queue.close()

    drain.check = check  # type: ignore[attr-defined]
    return drain


def run_netfilterqueue(handler: Handler, count: int, fill: Callable[[], None]) -> Callable[[], None]:
    import netfilterqueue

    queue = netfilterqueue.NetfilterQueue()
    queue.bind(1, handler, max_len=BUFFER, sock_len=BUFFER)
    fill()

    def drain() -> None:
        queue.run(block=False)

    drain.check = queue.unbind  # type: ignore[attr-defined]
    return drain


CASES: dict[str, dict[str, tuple[Callable[..., Any], Callable[[], Handler]]]] = {
    "accept": {
        "nfnet": (run_nfnet, lambda: accept),
        "NetfilterQueue": (run_netfilterqueue, lambda: accept),
    },
    "read the payload, accept": {
        "nfnet": (run_nfnet, lambda: payload_nfnet),
        "NetfilterQueue": (run_netfilterqueue, lambda: payload_peer),
    },
    "read the payload, accept or drop in turn": {
        "nfnet": (run_nfnet, lambda: alternate(lambda packet: packet.payload)),
        "NetfilterQueue": (run_netfilterqueue, lambda: alternate(lambda packet: packet.get_payload())),
    },
}
TARGETS = {"accept": 0.9, "read the payload, accept": 1.0, "read the payload, accept or drop in turn": 1.2}


def fill(count: int) -> None:
    """Send packets that the rule queues, from a process of its own, so that its time is not counted."""
    pid = os.fork()
    if not pid:
        data = bytes(SIZE - 28)
        for start in range(0, count, 20_000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                try:
                    sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
                    share = 20_000
                except PermissionError:
                    share = 100
                sock.connect(("127.0.0.1", PORT))
                for _ in range(min(share, count - start)):
                    sock.send(data)
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit("the packets could not be sent")


def measure(program: Callable[..., Any], handler: Handler, count: int) -> tuple[float, float]:
    """Processor and wall-clock time a packet, in microseconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", PORT))
        drain = program(handler, count, lambda: fill(count))
        before, began = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        drain()
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
        drain.check()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu / count * 1e6, took / count * 1e6


def available() -> list[str]:
    found = ["nfnet"]
    try:
        import netfilterqueue  # noqa: F401

        found.append("NetfilterQueue")
    except ImportError:
        print("NetfilterQueue is not there to compare with; see benchmarks/README.md\n")
    return found


def own_namespace() -> None:
    """Everything happens in a namespace of this process's own."""
    try:
        netns.unshare(netns.CLONE_NEWNET)
    except nfnet.KernelError:
        netns.become_root()
        netns.unshare(netns.CLONE_NEWNET)
    from pyroute2 import IPRoute

    with IPRoute() as ip:
        ip.link("set", ifname="lo", state="up")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packets", type=int, nargs="+", default=[1000, 20_000], help="how many wait in the queue")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE", help="write all figures")
    options = parser.parse_args()
    if max(options.packets) > LIMIT:
        parser.error(f"the kernel queues no more than {LIMIT} packets")
    warnings.simplefilter("ignore", RuntimeWarning)  # NetfilterQueue complains of what the buffer was rounded to
    own_namespace()
    names = available()
    print(f"{platform.python_implementation()} {platform.python_version()}, Linux {platform.release()}")
    print(f"{SIZE}-byte packets, microseconds a packet, median of {options.rounds} rounds\n")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for count in options.packets:
            for case, programs in CASES.items():
                figures += run_case(case, {name: programs[name] for name in names}, count, options.rounds)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(figures, file, indent=1)
    return 0


def run_case(case: str, programs: dict[str, Any], count: int, rounds: int) -> list[dict[str, Any]]:
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(rounds):
        order = list(programs.items())
        random.shuffle(order)
        for name, (program, handler) in order:
            times[name].append(measure(program, handler(), count))
    print(f"{case}, {count:,} packets waiting")
    rows = []
    ours = [cpu for cpu, _ in times["nfnet"]]
    for name, measured in times.items():
        cpus = [cpu for cpu, _ in measured]
        row = {
            "case": case,
            "packets": count,
            "program": name,
            "cpu": cpus,
            "wall": [wall for _, wall in measured],
            "ratio": statistics.median(a / b for a, b in zip(ours, cpus)),
        }
        wall = statistics.median(row["wall"])
        text = f"    {name:<16} cpu {statistics.median(cpus):5.2f} (least {min(cpus):5.2f})   wall {wall:5.2f}"
        if name != "nfnet":
            text += f"   nfnet takes {row['ratio']:.2f} of it"
            if name == "NetfilterQueue":
                text += f" (goal: {TARGETS[case]})"
        print(text, flush=True)
        rows.append(row)
    print()
    return rows


if __name__ == "__main__":
    sys.exit(main())
