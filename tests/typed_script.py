"""A script as users write it, for the type checkers: it is never run."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

import nfnet
import nfnet.testing
from nfnet import inet, rules

if TYPE_CHECKING:
    from typing_extensions import Unpack

seen: Counter[str] = Counter()
beginnings = inet.Beginnings(max_streams=100)


def handle(packet: nfnet.Packet) -> None:
    if packet.udp and b"x" in packet.udp.data:
        packet.accept(payload=packet.rewrite(data=b"y"), mark=7)
    elif packet.flow is not None:
        seen[packet.flow.source] += 1
        packet.drop()
    else:
        packet.accept()


def block_names(packet: nfnet.Packet) -> None:
    name = inet.server_name(beginnings.add(packet.payload))
    if name and name.endswith(".example"):
        packet.drop()
    elif name is inet.INCOMPLETE or name is None:
        packet.accept()
    else:
        seen[name.upper()] += 1
        packet.accept()


with rules.queue(1, hook="forward", protocol="udp", destination_port=range(1, 5)) as rule:
    with nfnet.Queue(1, undecided="drop", on_error="accept") as queue:
        for packet in queue:
            handle(packet)
            x = packet.indev_name
        queue.run(handle)
        n: int = queue.process(handle)
        c = queue.counters
        total = c.received + c.lost
        while queue.fetch():
            queue.process(lambda packet: packet.repeat(mark=packet.mark | 1))
        status = queue.stats().kernel
        if status is not None:
            print(status.num, status.queue_dropped)
        buffer = queue.stats().socket
        if buffer is not None:
            print(buffer.unread / buffer.rcvbuf, buffer.dropped)

with nfnet.Log(5, sequence=True) as log:
    for message in log:
        print(message.prefix.upper(), message.timestamp, message.payload[:4], message.hook.name.lower())


async def main() -> None:
    async with nfnet.AsyncQueue(1) as aq:
        async for p in aq:
            p.accept()
        await aq.run(handle)


asyncio.run(main())


def make_queue(num: int, **options: Unpack[nfnet.QueueOptions]) -> nfnet.Queue:
    options["undecided"] = "drop"
    return nfnet.Queue(num, **options)


make_queue(3, max_len=5, conntrack=True).run(handle)
nfnet.run_workers(handle, range(4), processes=2, max_len=5)
fed = nfnet.testing.FedQueue(2, on_error="drop")
given: nfnet.GivenVerdict = fed.verdicts[fed.feed(nfnet.testing.udp(b"x"))]
for captured in nfnet.testing.from_pcap("x.pcap", local=["192.0.2.0/24"]):
    number: int = fed.feed(captured, mark=7)
print(given.verdict.name, given.num)
new: bytes = inet.replace_data(b"", b"x")
with nfnet.record("x.pcapng"), nfnet.Queue(2) as q:
    q.run(lambda packet: packet.accept())
replayed = nfnet.replay("x.pcapng", hook=nfnet.Hook.INPUT, family="bridge")
with nfnet.Queue(2, transport=replayed) as q:
    q.run(handle)
print(replayed.verdicts == replayed.recorded)
