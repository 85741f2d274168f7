"""Fill a queue, drain it, and print the cost of a packet: nfnet and its peers."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

from common import BUFFER, PORT, Drain, Draining, Handler, Program, options, run_case, write

import nfnet
from nfnet import rules
from nfnet._io.netlink_socket import MAX_QUEUE_DATAGRAM


def accept(packet: Any) -> None:
    packet.accept()


def attribute_payload(packet: Any) -> None:
    len(packet.payload)
    packet.accept()


def method_payload(packet: Any) -> None:
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


class Ending(nfnet.NetlinkSocket):
    """Reports when all packets that were sent have been received."""

    expected: int
    on_end: Callable[[], object]

    def receive(self, into: list[bytes], limit: int) -> bool:
        before = len(into)
        super().receive(into, limit)
        self.expected -= len(into) - before
        if self.expected == 0:
            self.on_end()
        return True


def run_async(iterate: bool, handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    transport = Ending(rcvbuf=BUFFER, datagram=MAX_QUEUE_DATAGRAM)
    queue = nfnet.AsyncQueue(1, max_len=BUFFER, transport=transport)
    loop = asyncio.new_event_loop()
    transport.expected = count
    # When the received packets have been handed out: an iteration continues in the loop's next turn.
    transport.on_end = lambda: loop.call_soon(loop.call_soon, queue.stop)
    loop.run_until_complete(queue.open())
    fill()

    async def iteration() -> None:
        async for packet in queue:
            handler(packet)

    def finish() -> None:
        counters = queue.counters
        assert (counters.received, counters.pending, counters.lost) == (count, 0, 0), counters
        loop.run_until_complete(queue.close())
        loop.close()

    return lambda: loop.run_until_complete(iteration() if iterate else queue.run(handler)), finish


def run_netfilterqueue(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    import netfilterqueue

    return run_their_api(netfilterqueue, handler, count, fill)


def run_compat(handler: Handler, count: int, fill: Callable[[], None]) -> tuple[Drain, Callable[[], Any]]:
    from nfnet.compat import netfilterqueue

    return run_their_api(netfilterqueue, handler, count, fill)


def run_their_api(
    netfilterqueue: Any, handler: Handler, count: int, fill: Callable[[], None]
) -> tuple[Drain, Callable[[], Any]]:
    queue = netfilterqueue.NetfilterQueue()
    queue.bind(1, handler, max_len=BUFFER, sock_len=BUFFER)
    fill()
    return lambda: queue.run(block=False), queue.unbind


COMPAT_GOAL = 1.15
ASYNC_GOAL = 1.3

# The cases, with the goal for the ratio of each.
CASES: dict[str, tuple[float, Handler, Handler]] = {
    "accept": (0.9, accept, accept),
    "read the payload, accept": (1.0, attribute_payload, method_payload),
    "read the payload, accept or drop in turn": (
        1.2,
        in_turn(lambda packet: packet.payload),
        in_turn(lambda packet: packet.get_payload()),
    ),
}


def is_there(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        print(f"{module} is not there to compare with; see benchmarks/README.md\n")
        return False
    return True


def main() -> int:
    found = options(__doc__, [1000, 20_000], "--without-asyncio-and-compat")
    netfilterqueue = is_there("netfilterqueue")
    figures: list[dict[str, Any]] = []
    with rules.queue(1, hook="output", protocol="udp", destination_port=PORT):
        for count in found.packets:
            for case, (goal, ours, theirs) in CASES.items():
                programs: dict[str, tuple[Program, Handler]] = {"nfnet": (run_nfnet, ours)}
                if netfilterqueue:
                    programs["NetfilterQueue"] = (run_netfilterqueue, theirs)
                figures += run_case(case, programs, count, found.rounds, {"NetfilterQueue": goal})
                if found.without_asyncio_and_compat:
                    continue
                for name, iterate in (("asyncio: run", False), ("asyncio: iteration", True)):
                    both = {name: (partial(run_async, iterate), ours), "nfnet": (run_nfnet, ours)}
                    figures += run_case(case, both, count, found.rounds, {"nfnet": ASYNC_GOAL})
                if netfilterqueue:  # the same script under both
                    programs = {"nfnet.compat": (run_compat, theirs), "NetfilterQueue": (run_netfilterqueue, theirs)}
                    figures += run_case(case, programs, count, found.rounds, {"NetfilterQueue": COMPAT_GOAL})
    write(found.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
