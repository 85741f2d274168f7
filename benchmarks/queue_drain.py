"""Fill a queue, drain it, and say what a packet cost: nfnet beside its peers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from common import BUFFER, PORT, Drain, Draining, Handler, Program, options, run_case, write

import nfnet
from nfnet import rules
from nfnet.transport import MAX_QUEUE_DATAGRAM


def accept(packet: Any) -> None:
    packet.accept()


def nfnet_payload(packet: Any) -> None:
    len(packet.payload)
    packet.accept()


def peer_payload(packet: Any) -> None:
    len(packet.get_payload())
    packet.accept()


def in_turn(read: Callable[[Any], bytes]) -> Handler:
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


def run_nfnet(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    queue = nfnet.Queue(1, max_len=BUFFER, transport=Draining(rcvbuf=BUFFER, datagram=MAX_QUEUE_DATAGRAM))
    queue.open()
    fill()

    def finish() -> None:
        counters = queue.counters
        assert (counters.received, counters.pending, counters.lost) == (count, 0, 0), counters
        queue.close()

    return lambda: queue.run(handler), finish


def run_netfilterqueue(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    import netfilterqueue

    queue = netfilterqueue.NetfilterQueue()
    queue.bind(1, handler, max_len=BUFFER, sock_len=BUFFER)
    fill()
    return lambda: queue.run(block=False), queue.unbind


# What is measured, with the goal for the ratio.
CASES: dict[str, tuple[float, Handler, Handler]] = {
    "accept": (0.9, accept, accept),
    "read the payload, accept": (1.0, nfnet_payload, peer_payload),
    "read the payload, accept or drop in turn": (
        1.2,
        in_turn(lambda packet: packet.payload),
        in_turn(lambda packet: packet.get_payload()),
    ),
}


def main() -> int:
    found = options(__doc__, [1000, 20_000])
    peer = True
    try:
        import netfilterqueue  # noqa: F401
    except ImportError:
        peer = False
        print("NetfilterQueue is not there to compare with; see benchmarks/README.md\n")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for count in found.packets:
            for case, (goal, ours, theirs) in CASES.items():
                programs: dict[str, tuple[Program, Handler]] = {"nfnet": (run_nfnet, ours)}
                if peer:
                    programs["NetfilterQueue"] = (run_netfilterqueue, theirs)
                figures += run_case(case, programs, count, found.rounds, {"NetfilterQueue": goal})
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
