"""What type checkers have to refuse, each line that says so, and nothing else; it is never run."""

from __future__ import annotations

import functools

import nfnet
import nfnet.testing
from nfnet import rules


def decide(packet: nfnet.Packet) -> None:
    packet.accept(7)  # wrong: changes of a verdict are keyword arguments
    packet.accept(payload=42)  # wrong
    packet.accept(marks=7)  # wrong
    packet.accept(payload="text")  # wrong
    packet.accept(payload=bytearray(packet.payload), mark=7)
    packet.repeat(payload=memoryview(packet.payload))
    packet.requeue(2, 7)  # wrong
    packet.verdict(nfnet.Verdict.STOP, 7)  # wrong
    packet.no_such  # wrong


def read(message: nfnet.LogMessage) -> None:
    message.prefix.upper()


async def decide_later(packet: nfnet.Packet) -> None:
    packet.drop()


async def read_later(message: nfnet.LogMessage) -> None:
    message.prefix.upper()


def count(packet: nfnet.Packet) -> int:
    return len(packet.payload)


nfnet.no_such  # wrong
nfnet.testing.no_such  # wrong
nfnet.testing.udp(5)  # wrong

nfnet.Queue(1, max_length=5)  # wrong
nfnet.Queue(1, undecided="later")  # wrong
nfnet.Queue(1).run(decide)
nfnet.Queue(1).run(lambda packet: packet.accept())
nfnet.Queue(1).run(lambda packet: packet.drop() if packet.mark else packet.accept(mark=1))
nfnet.Queue(1).run(functools.partial(print, "packet"))
nfnet.Queue(1).run(decide_later)  # wrong
nfnet.Queue(1).run(read)  # wrong
nfnet.Queue(1).run(count)  # wrong: the result would be lost
nfnet.Queue(1).process(decide_later)  # wrong
nfnet.Queue(1).process()  # wrong
nfnet.Log(1).run(read)
nfnet.Log(1).run(read_later)  # wrong
nfnet.Log(1).process(read_later)  # wrong
nfnet.Log(1, treshold=1)  # wrong


async def main() -> None:
    nfnet.AsyncQueue("1")  # wrong
    nfnet.AsyncQueue(1, max_length=5)  # wrong
    nfnet.AsyncQueue(1, max_len="5")  # wrong
    queue = nfnet.AsyncQueue(1, max_len=5, record="file.pcapng")
    await queue.run(decide)
    await queue.run(decide_later)
    await queue.run(lambda packet: packet.accept())
    await queue.run(count)  # wrong
    await queue.run(read_later)  # wrong
    nfnet.AsyncLog(1, treshold=1)  # wrong
    log = nfnet.AsyncLog(1, threshold=1)
    await log.run(read)
    await log.run(read_later)
    await log.run(decide_later)  # wrong


nfnet.run_workers(decide, range(4), max_len=5)
nfnet.run_workers(decide, range(4), max_length=5)  # wrong
nfnet.run_workers(decide, range(4), record="file.pcapng")  # wrong
nfnet.run_workers(decide_later, range(4))  # wrong
nfnet.Workers(decide, [1, 2], undecided="accept")
nfnet.Workers(decide, [1, 2], undecided=True)  # wrong
nfnet.Workers(decide_later, [1, 2])  # wrong

fed = nfnet.testing.FedQueue(2, on_error="drop")
nfnet.testing.FedQueue(on_eror="drop")  # wrong
fed.run(decide)
fed.run(decide_later)  # wrong
nfnet.testing.open_replay("file.pcapng", num=1).run(decide)
nfnet.testing.open_replay("file.pcapng", num=1).run(read)  # wrong
nfnet.testing.open_replay("file.pcapng", group=1).run(read)
nfnet.testing.open_replay("file.pcapng", queue=1)  # wrong

rules.queue(1, hook="output", source="192.0.2.1")
rules.queue(1, hook="output", sources="192.0.2.1")  # wrong
rules.queue(1, hook="output", protocol=3.5)  # wrong
rules.queue(1, hook="output", source=3.5)  # wrong
rules.queue(1, hook="output", in_interface=["lo", 2])  # wrong
rules.queue(1, hook="output", dscp=["ef", 1.5])  # wrong
rules.queue(1, protocol="udp")  # wrong
rules.drop(hook="input", not_source=[1.5])  # wrong
rules.drop(hook="input", not_source=["192.0.2.1", "fd00::/8"], protocol=["tcp", 17], mark=(1, 0xFF))
rules.mark("1", hook="input")  # wrong
