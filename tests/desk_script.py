"""Use all that works without Linux. ``tests/test_desks.py`` runs this while it simulates another system."""

from __future__ import annotations

import asyncio
import contextlib
import io
import sys
import threading
from pathlib import Path

import nfnet
import nfnet.cli
import nfnet.compat.netfilterqueue
import nfnet.doctor
import nfnet.inet
import nfnet.metrics
import nfnet.netns
import nfnet.stats
import nfnet.testing
import nfnet.workers
import pytest_nfnet
from nfnet.testing import FakeKernel, FedQueue, log_message, tcp, udp

RECORDING = Path(sys.argv[1])
MADE = Path(sys.argv[2])
assert pytest_nfnet.nfnet_queue is not None


def handle(packet: nfnet.Packet) -> None:
    if packet.udp and b"secret" in packet.udp.data:
        packet.drop()
    elif packet.tcp:
        packet.answer(packet.payload) if packet.tcp.data == b"answer" else packet.reset()
    else:
        packet.accept(mark=packet.mark + 1)


def a_fed_queue() -> None:
    fed = FedQueue()
    ids = [fed.feed(udp(b"hello"), mark=7, indev="en0"), fed.feed(udp(b"a secret")), fed.feed(tcp(b"GET /"))]
    fed.run(handle)
    assert [fed.verdicts[number].verdict.name for number in ids] == ["ACCEPT", "DROP", "DROP"], fed.verdicts
    assert fed.verdicts[ids[0]].mark == 8
    assert {nfnet.inet.tcp(each).flags & 4 for each in fed.injected} == {4}  # resets
    for _ in range(300):
        fed.feed(udp(b"hello"))
    fed.run(handle)
    assert len(fed.verdicts) == 303
    fed.feed(udp(b"hello"))
    for packet in fed.queue:
        assert packet.process is None
        assert packet.indev is None
        packet.accept()
    fed.close()


def a_model_of_the_kernel() -> None:
    """A loop in a thread waits for packets that are fed, and for `stop`."""
    kernel = FakeKernel(num=3)
    queue = nfnet.Queue(3, transport=kernel)
    decided = threading.Semaphore(0)

    def decide(packet: nfnet.Packet) -> None:
        handle(packet)
        decided.release()

    with queue:
        thread = threading.Thread(target=queue.run, args=(decide,))
        thread.start()
        for _ in range(3):
            kernel.feed(2, payload=udp(b"hello"))
            for _ in range(2):
                assert decided.acquire(timeout=30)
        assert isinstance(queue.fileno(), int)
        queue.stop()
        thread.join(30)
        assert not thread.is_alive()
    assert len(kernel.judged) == 6


def asynchronously() -> None:
    async def main() -> None:
        kernel = FakeKernel(num=1, ends=True)
        kernel.feed(3, payload=udp(b"hello"))
        seen = 0
        async with nfnet.AsyncQueue(1, transport=kernel) as queue:
            async for packet in queue:
                packet.accept()
                seen += 1
        assert seen == 3

    asyncio.run(main())


def a_log() -> None:
    assert log_message(udp(b"logged"))
    with contextlib.closing(nfnet.testing.open_replay(RECORDING, group=5)) as log:
        assert len([message.prefix for message in log]) == 16


def recordings() -> None:
    made = MADE / "made.pcapng"
    for _ in range(2):  # the second time it is there
        replay = nfnet.replay(RECORDING)
        with nfnet.Queue(1, transport=replay, record=made) as queue:
            queue.run(lambda packet: packet.accept())
    again = nfnet.replay(made)
    with nfnet.Queue(1, transport=again) as queue:
        queue.run(lambda packet: packet.accept())
    assert replay.verdicts == again.verdicts == again.recorded
    assert len(again.verdicts) == 18
    with nfnet.record(MADE / "block.pcap"), nfnet.Queue(1, transport=nfnet.replay(RECORDING)) as queue:
        queue.run(lambda packet: packet.accept())


def commands() -> None:
    for arguments in (
        ["demo"],
        ["decode", str(RECORDING)],
        ["replay", str(RECORDING)],
        ["replay", "--json", str(RECORDING)],
    ):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            status = nfnet.cli.main(arguments)
        assert status == 0, (arguments, status)
        assert len(printed.getvalue().splitlines()) >= 18, printed.getvalue()
    for words in (
        "queue 1",
        "log 5",
        "record x.pcapng --queue 1",
        "stats",
        "rules list",
        "doctor",
    ):
        with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
            status = nfnet.cli.main(words.split())
        assert status == 1, (words, status, said.getvalue())
        assert "Linux only" in said.getvalue(), (words, said.getvalue())


def packets() -> None:
    assert nfnet.inet.rewrite(udp(b"abc"), data=b"abcd") == udp(b"abcd")


def what_takes_linux() -> None:
    packet_flow = nfnet.inet.flow(udp(b"hello"))
    rule = nfnet.rules.queue(1, hook="input", protocol="udp")
    assert "queue" in nfnet.rules.describe(rule)
    for use in (
        nfnet.Queue(1).open,
        nfnet.Queue(1, timestamps=True).open,
        nfnet.Queue(1, netns="blue").open,
        nfnet.Queue(1, record=MADE / "none.pcapng").open,
        nfnet.Log(5).open,
        rule.install,
        nfnet.rules.queue(1, hook="input", in_interface="en0").install,
        nfnet.rules.installed,
        nfnet.stats.queues,
        nfnet.stats.logs,
        nfnet.netns.create,
        nfnet.netns.become_root,
        lambda: nfnet.netns.enter("blue"),
        lambda: nfnet.netns.call_in("blue", int),
        lambda: nfnet.process_of(packet_flow),
        lambda: nfnet.inject(udp(b"hello")),
        lambda: nfnet.compat.netfilterqueue.NetfilterQueue().bind(1, print),
        lambda: nfnet.workers.Workers(print, [1]).start(),
        lambda: asyncio.run(nfnet.AsyncQueue(1).open()),
    ):
        try:
            use()
        except OSError as error:  # NetfilterQueue's error is short; the cause is in the traceback
            found = error if isinstance(error, nfnet.NfnetError) else error.__cause__
            assert isinstance(found, nfnet.NotSupportedError), found
            text = str(found)
            for part in ("Linux only", "nfnet.testing", "nfnet.replay", "Test a handler on a laptop"):
                assert part in text, text
        else:
            raise AssertionError(f"{use} raised nothing")
    assert not (MADE / "none.pcapng").exists()


for work in (
    packets,
    a_fed_queue,
    a_model_of_the_kernel,
    asynchronously,
    a_log,
    recordings,
    commands,
    what_takes_linux,
):
    work()
    print(work.__name__)
