"""asyncio and trio on the real kernel."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
from typing import Any

import pytest

from nfnet import AsyncLog, AsyncQueue, LogMessage, Packet, Queue, Verdict, inet
from nfnet._core.reader import Reader
from nfnet.protocol import nfqnl

from .conftest import TIMEOUT, Net
from .traffic import Way, logging, queueing

V4 = socket.AF_INET


def test_queue(net: Net) -> None:
    way = Way(net)

    async def main() -> None:
        decided: list[int] = []
        others_are = asyncio.Event()

        async def delayed(packet: Packet) -> None:
            number = inet.get_data(packet.payload)[0]  # type: ignore[index]
            await (others_are.wait() if number == 0 else asyncio.sleep(0.01))
            packet.accept(mark=number)
            decided.append(number)
            if len(decided) == 49:
                others_are.set()

        async with AsyncQueue(1, netns=way.here) as queue:
            task = asyncio.ensure_future(queue.run(delayed))
            loop = asyncio.get_running_loop()
            way.send(*[bytes([number]) for number in range(50)])
            got = await loop.run_in_executor(None, way.received, 50)
            assert got[-1] == b"\0", "the first one was the last to be let go"
            assert sorted(got) == [bytes([number]) for number in range(50)]
            queue.stop()
            await task
            assert queue.counters.accepted == 50
            seen = []
            await queue.close()
            await queue.open()
            way.send(b"three")
            async for packet in queue:
                seen.append(inet.get_data(packet.payload))
                packet.accept()
                if seen[-1] == b"three":
                    break
            assert seen[-1] == b"three"

    with queueing(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize("how", ["run", "iterate"])
def test_packets_that_come_one_at_a_time(net: Net, how: str) -> None:
    way = Way(net)

    def accept(packet: Packet) -> None:
        packet.accept()

    async def iterate(queue: AsyncQueue) -> None:
        async for packet in queue:
            packet.accept()

    async def main() -> None:
        async with AsyncQueue(1, netns=way.here) as queue:
            task = asyncio.ensure_future(queue.run(accept) if how == "run" else iterate(queue))
            loop = asyncio.get_running_loop()
            for number in range(30):
                way.send(bytes([number]))
                assert await loop.run_in_executor(None, way.received, 1) == [bytes([number])]
            queue.stop()
            await task
            assert queue.counters.accepted == 30

    with queueing(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_answers_of_the_kernel_between_packets_that_come_one_at_a_time(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some verdicts are given twice, behind the library's back, and the kernel refuses the second one."""
    way = Way(net)
    steps = 0
    hand_out_next = Reader._hand_out_next

    def counting(*arguments: Any) -> None:
        nonlocal steps
        steps += 1
        hand_out_next(*arguments)

    monkeypatch.setattr(Reader, "_hand_out_next", counting)

    async def main() -> None:
        async with AsyncQueue(1, netns=way.here) as queue:
            binding = queue._reader._binding
            assert binding is not None

            def accept(packet: Packet) -> None:
                packet.accept()
                if packet.id % 3 == 0:
                    binding.transport.send(nfqnl.verdict(1, packet.id, Verdict.ACCEPT))

            task = asyncio.ensure_future(queue.run(accept))
            loop = asyncio.get_running_loop()
            for number in range(30):
                way.send(bytes([number]))
                assert await loop.run_in_executor(None, way.received, 1) == [bytes([number])]
            while sum(queue.counters.refused.values()) < 10:
                await asyncio.sleep(0)
            queue.stop()
            await task
            assert (queue.counters.accepted, queue.counters.pending) == (30, 0)
            assert 10 < steps <= 30 + 10, "each takes a packet or an answer"

    with queueing(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_what_a_handler_raises_for_one_of_many_comes_out(net: Net) -> None:
    way = Way(net)

    def handler(packet: Packet) -> None:
        packet.accept()
        if inet.get_data(packet.payload) == b"4":
            raise LookupError("no more")

    async def main() -> None:
        async with AsyncQueue(1, netns=way.here) as queue:
            task = asyncio.ensure_future(queue.run(handler))
            loop = asyncio.get_running_loop()
            for number in range(5):
                way.send(str(number).encode())
                assert await loop.run_in_executor(None, way.received, 1) == [str(number).encode()]
            with pytest.raises(LookupError, match="no more"):
                await task
            assert queue.counters.accepted == 5

    with queueing(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_messages_that_come_one_at_a_time(net: Net) -> None:
    way = Way(net)

    async def main() -> None:
        seen: asyncio.Queue[bytes | None] = asyncio.Queue()
        async with AsyncLog(5, threshold=1, netns=way.here) as log:

            def handler(message: LogMessage) -> None:
                seen.put_nowait(inet.get_data(message.payload))

            task = asyncio.ensure_future(log.run(handler))
            for number in range(20):
                way.send(bytes([number]))
                assert await seen.get() == bytes([number])
            log.stop()
            await task
            assert log.counters.received == 20

    with logging(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))


def test_log(net: Net) -> None:
    way = Way(net)

    async def main() -> list[str]:
        seen = []
        async with AsyncLog(5, threshold=1, netns=way.here) as log:
            way.send(b"one", b"two")

            async def handler(message: LogMessage) -> None:
                await asyncio.sleep(0)
                seen.append(message.prefix)
                if len(seen) == 2:
                    log.stop()

            await log.run(handler)
        return seen

    with logging(net):
        assert asyncio.run(asyncio.wait_for(main(), TIMEOUT)) == ["said: ", "said: "]


def test_trio(net: Net) -> None:
    trio = pytest.importorskip("trio")
    way = Way(net)

    async def main() -> None:
        with Queue(1, netns=way.here) as queue, trio.fail_after(TIMEOUT):
            way.send(b"one", b"two")
            done = 0
            while done < 2:
                await trio.lowlevel.wait_readable(queue.fileno())
                done += queue.process(lambda packet: packet.accept())

    with queueing(net):
        trio.run(main)
    assert way.received(2) == [b"one", b"two"]


@pytest.mark.parametrize("how", ["run", "iterate", "tasks"])
def test_a_queue_has_one_descriptor(net: Net, how: str) -> None:
    way = Way(net)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        gc.collect()  # what other tests left would be closed meanwhile
        before = len(os.listdir("/proc/self/fd"))
        async with AsyncQueue(1, netns=way.here) as queue:

            def accept(packet: Packet) -> None:
                packet.accept()
                if inet.get_data(packet.payload) == b"two":
                    queue.stop()

            async def accept_in_task(packet: Packet) -> None:
                accept(packet)

            loop.call_later(0.01, way.send, b"one")
            loop.call_later(0.02, way.send, b"two")
            if how == "iterate":
                async for packet in queue:
                    accept(packet)
            else:
                await queue.run(accept if how == "run" else accept_in_task)
            assert len(os.listdir("/proc/self/fd")) == before + 1
            assert queue.counters.accepted == 2

    with queueing(net):
        asyncio.run(asyncio.wait_for(main(), TIMEOUT))
