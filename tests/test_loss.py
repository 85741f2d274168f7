"""Warnings about loss: when they are logged, and that their counts add up."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest

import nfnet
from nfnet import CopyMode, Log, Queue, testing
from nfnet._core import loss
from nfnet._core.loss import Loss
from nfnet.captures import LinkType, Writer
from nfnet.captures._format import netlink_header
from nfnet.compat.netfilterqueue import NetfilterQueue
from nfnet.protocol.nfnetlink import NETLINK_NETFILTER
from nfnet.stats import QueueStatus, find_log

from .kernel import FakeKernel


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loss, "monotonic", clock)
    return clock


def told(clock: Clock, events: dict[float, int], until: float) -> dict[float, int]:
    """Return the warnings by time, for losses at these times, checked every tenth of a second."""
    counter, start, warnings = Loss(warn=True), clock.now, {}
    for step in range(round(until * 10) + 1):
        time = step / 10
        clock.now = start + time
        if time in events:
            counter.add(events[time])
        if new := counter.due():
            warnings[time] = new
    clock.now += 0.01
    if new := counter.due(end=True):
        warnings[until] = new
    assert sum(warnings.values()) == counter.total == sum(events.values())
    assert counter.untold == 0
    return warnings


def test_what_is_lost_at_once_is_told_at_once(clock: Clock) -> None:
    assert told(clock, {0.0: 7}, 100) == {0.0: 7}


def test_when_it_is_over_the_rest_is_told(clock: Clock) -> None:
    assert told(clock, {0.0: 7, 0.1: 100, 0.4: 2812}, 100) == {0.0: 7, 1.4: 2912}


def test_at_the_end_the_rest_is_told(clock: Clock) -> None:
    assert told(clock, {0.0: 7, 0.1: 100, 0.4: 2812}, 1.0) == {0.0: 7, 1.0: 2912}


def test_while_it_goes_on_there_is_a_warning_every_ten_seconds(clock: Clock) -> None:
    events = {step / 10: 1 for step in range(305)}
    assert told(clock, events, 60) == {0.0: 1, 10.0: 100, 20.0: 100, 30.0: 100, 31.4: 4}


def test_bursts_get_two_warnings_in_ten_seconds_at_most(clock: Clock) -> None:
    events = {float(second): 10 for second in range(0, 60, 2)}
    assert told(clock, events, 80) == {0.0: 10, 3.0: 10, **dict.fromkeys((13.0, 23.0, 33.0, 43.0, 53.0), 50), 63.0: 30}


# --- in queues and logs


class Kernel(FakeKernel):
    """A transport whose socket has the given counters in /proc."""

    rcvbuf = 425984
    port_id = 4242

    def __init__(self, *, num: int = 1, ends: bool = False) -> None:
        super().__init__(num=num, ends=ends)
        self.drops: tuple[int, int] | None = None  # of the queue and of the receive buffer; None if not readable
        self.owner = self.port_id

    def rows(self, _: object) -> list[QueueStatus]:
        if self.drops is None:
            raise nfnet.NotPermittedError("reading", 1)
        return [QueueStatus(1, self.owner, 0, CopyMode.PACKET, 65531, *self.drops, 0)]

    def taken(self) -> list[bytes]:
        """Packets that another process received."""
        datagrams: list[bytes] = []
        self.receive(datagrams, 1000)
        return datagrams


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr("nfnet.stats.queues", kernel.rows)
    return kernel


def lose(kernel: FakeKernel, queue: Queue, count: int) -> None:
    kernel.feed()
    kernel.skip(count)
    kernel.feed()
    queue.process(lambda packet: packet.accept())


@pytest.mark.parametrize("drops", [None, (0, 0)], ids=["may not ask", "fail_open"])
@pytest.mark.parametrize(("dropped", "words"), [(7, "; the receive buffer"), (0, "; probably the receive buffer")])
def test_the_socket_tells_everybody_that_its_buffer_was_full(
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    drops: tuple[int, int] | None,
    dropped: int,
    words: str,
) -> None:
    kernel.drops = drops
    monkeypatch.setattr(Kernel, "socket_status", lambda self: nfnet.SocketStatus(425984, 0, dropped))
    with Queue(1, transport=kernel) as queue:
        lose(kernel, queue, 7)
    assert words in caplog.text


@pytest.mark.parametrize(
    ("drops", "max_len", "words"),
    [
        ((0, 7), None, "the kernel dropped 7 because the receive buffer of 425984 bytes was full"),
        (
            (5, 7),
            70000,
            "the kernel dropped 7 because the receive buffer of 425984 bytes was full and 5 because the queue was full",
        ),
        ((7, 0), 70000, "the kernel dropped 7 because the queue was full"),
        (None, None, "probably the receive buffer of 425984 bytes was full"),
        (None, 65536, "probably the receive buffer of 425984 bytes was full"),
        (
            None,
            65537,
            "the receive buffer of 425984 bytes was full, or the queue, which holds 65536 packets on newer kernels",
        ),
        ((0, 0), None, "probably the receive buffer of 425984 bytes was full"),  # fail_open
        (
            (0, 0),
            65537,
            "the receive buffer of 425984 bytes was full, or the queue, which holds 65536 packets on newer kernels",
        ),
    ],
)
def test_where_there_was_no_room(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, drops: tuple[int, int] | None, max_len: int | None, words: str
) -> None:
    kernel.drops = drops
    with Queue(1, transport=kernel, max_len=max_len) as queue:
        lose(kernel, queue, 7)
        assert caplog.messages == [f"queue 1: 7 packets were lost, 7 so far; {words}"]
    assert len(caplog.messages) == 1


def test_the_row_of_somebody_else_is_not_ours(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.drops, kernel.owner = (1000, 0), 1
    with Queue(1, transport=kernel) as queue:
        assert queue.stats().kernel is None
        lose(kernel, queue, 1)
    assert "probably the receive buffer" in caplog.text


def test_what_was_lost_behind_the_last_packet_is_counted_at_the_end(
    kernel: Kernel, caplog: pytest.LogCaptureFixture
) -> None:
    with Queue(1, transport=kernel) as queue:
        lose(kernel, queue, 7)
        kernel.drops = (0, 19)
        assert queue.counters.lost == 7
    assert queue.counters.lost == 19
    assert caplog.messages[-1].startswith("queue 1: 12 packets were lost, 19 so far; the kernel dropped 19 because")


def test_a_warning_at_the_end_says_what_none_said(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    with Queue(1, transport=kernel) as queue:
        for count in (7, 100, 2812):
            lose(kernel, queue, count)
    assert [text.partition(";")[0] for text in caplog.messages] == [
        "queue 1: 7 packets were lost, 7 so far",
        "queue 1: 2912 packets were lost, 2919 so far",
    ]


def test_closing_in_the_handler_counts_what_was_lost_before(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    queue = Queue(1, transport=kernel)
    queue.open()
    kernel.skip(3)
    kernel.feed()
    queue.process(lambda packet: (packet.accept(), queue.close()))
    assert queue.counters.lost == 3
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("policy", ["ignore", "raise"])
def test_who_does_not_want_warnings_gets_none(kernel: Kernel, caplog: pytest.LogCaptureFixture, policy: str) -> None:
    with Queue(1, transport=kernel, on_overrun=policy) as queue:  # type: ignore[arg-type]
        lose(kernel, queue, 7)
        assert queue.counters.lost == 7
    assert not caplog.messages


def stop_when(queue: Queue, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    queue.stop()


def test_a_loop_that_waits_tells_when_it_is_over(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    """In an idle program: nothing is closed, and no packet arrives."""
    with Queue(1, transport=kernel) as queue:
        lose(kernel, queue, 7)
        lose(kernel, queue, 100)
        said = threading.Thread(target=stop_when, args=(queue, lambda: len(caplog.messages) == 2))
        said.start()
        queue.run(lambda packet: packet.accept())
        said.join()
        assert caplog.messages[-1].startswith("queue 1: 100 packets were lost, 107 so far")


def test_asyncio_tells_when_it_is_over(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with nfnet.AsyncQueue(1, transport=kernel) as queue:
            lose(kernel, queue._reader, 7)
            lose(kernel, queue._reader, 100)
            task = asyncio.create_task(queue.run(lambda packet: packet.accept()))
            while len(caplog.messages) < 2:
                await asyncio.sleep(0.01)
            queue.stop()
            await task

    asyncio.run(asyncio.wait_for(main(), 60))
    assert caplog.messages[-1].startswith("queue 1: 100 packets were lost, 107 so far")


def test_a_log_says_that_its_receive_buffer_was_full(caplog: pytest.LogCaptureFixture) -> None:
    kernel = Kernel()
    kernel.send = Mock()  # type: ignore[method-assign]  # its requests are a log's
    with Log(5, transport=kernel, sequence=True) as log:
        for number in (7, 8, 100):
            kernel.deliver(testing.log_message(SEQ=number))
            log.process(id)
    assert caplog.messages == [
        "log group 5: 7 messages were lost, 7 so far; the receive buffer of 425984 bytes was full",
        "log group 5: 91 messages were lost, 98 so far; the receive buffer of 425984 bytes was full",
    ]


@pytest.mark.parametrize("kind", ["queue", "log"])
def test_a_recording_had_no_receive_buffer(tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """Another process took packets out."""
    writer = Writer(tmp_path / "part.pcapng", LinkType.NETLINK)
    for number in (5, 6, 9, 20):
        message = testing.packet_message(number) if kind == "queue" else testing.log_message(SEQ=number)
        writer.write(number, netlink_header.build({"family": NETLINK_NETFILTER}) + message)
    writer.close()
    replay = nfnet.replay(tmp_path / "part.pcapng")
    if kind == "queue":
        with Queue(1, transport=replay) as queue:
            queue.run(lambda packet: packet.accept())
            assert queue.counters.lost == 12
        assert caplog.messages == ["queue 1: 12 packets are missing, 12 so far"]
    else:
        with Log(5, transport=replay, sequence=True) as log:
            log.run(id)
            assert log.counters.lost == 12
        assert caplog.messages == [
            "log group 5: 2 messages are missing, 2 so far",
            "log group 5: 10 messages are missing, 12 so far",
        ]


@pytest.mark.parametrize("socket_of_the_script", [False, True])
def test_netfilterqueue_says_how_large_the_receive_buffer_is(
    kernel: Kernel, caplog: pytest.LogCaptureFixture, socket_of_the_script: bool
) -> None:
    kernel.drops = (0, 7)
    queue = NetfilterQueue(transport=kernel)
    queue.bind(1, lambda packet: packet.accept())
    kernel.feed()
    kernel.skip(7)
    kernel.feed()
    if socket_of_the_script:
        queue.run_socket(Mock(recv=Mock(side_effect=[*kernel.taken(), b""])))
    else:
        queue.run(block=False)
    words = "the kernel dropped 7 because the receive buffer of 425984 bytes was full"
    assert caplog.messages == [f"queue 1: 7 packets were lost, 7 so far; {words}"]
    queue.unbind()


def test_closing_does_not_fail_because_the_namespace_was_closed() -> None:
    with open("/proc/self/ns/net") as file:
        find_status = partial(find_log, 5, file)
    assert find_status() is None
