"""`Queue` and verdicts, on a model of the kernel."""

from __future__ import annotations

import contextlib
import copy
import errno
import functools
import gc
import itertools
import logging
import os
import pickle
import select
import threading
import unittest.mock
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet import Packet, Queue
from nfnet._io import system
from nfnet._io.system import collect_forgotten
from nfnet.protocol import netlink, nfqnl
from nfnet.protocol.nfnetlink import BODY, parse_attributes
from nfnet.protocol.nfqnl import NFQA, NFQA_CFG, QueueFlag, Verdict

from .kernel import FakeKernel, error_message, packet_message

SOON = 60.0  # seconds, to wait for an action that another thread does at once
pytestmark = pytest.mark.usefixtures("unhurried")


def opened(kernel: FakeKernel, **options: Any) -> Queue:
    queue = Queue(1, transport=kernel, **options)
    queue.open()
    return queue


def verdicts(kernel: FakeKernel) -> list[tuple[int, int]]:
    return [(packet_id, word) for packet_id, word, _ in kernel.judged]


def readable(queue: Queue) -> bool:
    return bool(select.select([queue], [], [], 0)[0])


def messages(kernel: FakeKernel) -> list[int]:
    """The types of the verdict messages sent, one list for all datagrams."""
    found = [m for datagram in kernel.sent for _, m in netlink.split_messages(datagram)]
    return [kind for m in found if (kind := netlink.header.parse(m).type) != nfqnl.MSG_CONFIG]


def attributes(message: bytes) -> dict[int, Any]:
    """Of a request to configure the queue."""
    return parse_attributes(message[BODY : netlink.header.parse(message).length], nfqnl.NFQA_CFG_TABLE)


def assert_balanced(queue: Queue) -> None:
    c = queue.counters
    assert c.received == c.accepted + c.dropped + c.repeated + c.requeued + c.pending


# --- configuration


def test_binding_asks_for_everything_in_one_request() -> None:
    kernel = FakeKernel()
    opened(kernel, copy_range=128, max_len=5000, fail_open=True, uid_gid=True).close()
    (bind, unbind) = kernel.config
    assert bind[nfqnl.NFQA_CFG.CMD].command == nfqnl.Command.BIND
    assert bind[nfqnl.NFQA_CFG.PARAMS] == {"copy_range": 128, "copy_mode": 2}
    assert bind[nfqnl.NFQA_CFG.QUEUE_MAXLEN] == 5000
    assert bind[nfqnl.NFQA_CFG.FLAGS] == bind[nfqnl.NFQA_CFG.MASK] == 0x9
    assert unbind[nfqnl.NFQA_CFG.CMD].command == nfqnl.Command.UNBIND
    assert kernel.closed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"num": -1}, "queue number is -1 and must be in 0..65535"),
        ({"num": 65536}, "queue number"),
        ({"num": 1, "copy_range": 0}, "copy_range is 0 and must be in 1..65535"),
        ({"num": 1, "copy_range": -5}, "copy_range"),
        ({"num": 1, "copy_mode": 3}, "copy_mode is 3"),
        ({"num": 1, "max_len": -1}, "max_len"),
        ({"num": 1, "max_len": 2**32}, "max_len"),
        ({"num": 1, "rcvbuf": 0}, "rcvbuf"),
        ({"num": 1, "on_overrun": "panic"}, "on_overrun is 'panic' and must be one of 'count', 'raise', 'ignore'"),
        ({"num": 1, "undecided": "maybe"}, "undecided"),
        ({"num": 1, "on_error": "ignore"}, "on_error"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Queue(**arguments)
    assert isinstance(caught.value, nfnet.NfnetError)


def test_queue_number_must_be_an_integer() -> None:
    with pytest.raises(TypeError, match="queue number must be an integer, not str"):
        Queue("1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EPERM, nfnet.NotPermittedError, "CAP_NET_ADMIN"),
        (errno.EOPNOTSUPP, nfnet.NotSupportedError, "no support for secctx"),
        (errno.EINVAL, nfnet.NotSupportedError, "nfnetlink_queue"),
        (errno.ENOMEM, nfnet.KernelError, "cannot allocate memory"),
    ],
)
def test_refusals_when_binding(number: int, kind: type[nfnet.KernelError], words: str) -> None:
    kernel = FakeKernel()
    kernel.refuse_config = number
    with pytest.raises(kind, match=words) as caught:
        opened(kernel, secctx=True)
    assert isinstance(caught.value, OSError)
    assert caught.value.errno == number
    assert "binding queue 1" in str(caught.value)
    assert kernel.closed


def test_a_queue_that_is_not_open_says_so() -> None:
    queue = Queue(1)
    for use in (lambda: queue.run(print), queue.fileno, queue.fetch, lambda: next(iter(queue)), queue.flush):
        with pytest.raises(nfnet.ClosedError, match="queue 1 is not open: use it in a with statement"):
            use()
    queue.stop()
    queue.close()


def test_opening_twice_is_refused() -> None:
    with Queue(1, transport=FakeKernel()) as queue, pytest.raises(nfnet.NfnetError, match="open already"):
        queue.open()


# --- verdicts and how they leave


def test_equal_verdicts_leave_as_one_batch() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        ids = kernel.feed(100)
        assert queue.process(lambda packet: packet.accept()) == 100
        assert messages(kernel) == [nfqnl.MSG_VERDICT_BATCH]
        assert verdicts(kernel) == [(i, Verdict.ACCEPT) for i in ids]
        assert_balanced(queue)


def test_the_rarer_of_accept_and_drop_goes_one_by_one() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(9)
        queue.process(lambda packet: packet.drop() if packet.id % 3 == 0 else packet.accept())
        assert sorted(messages(kernel)) == [nfqnl.MSG_VERDICT] * 3 + [nfqnl.MSG_VERDICT_BATCH]
        assert dict(verdicts(kernel)) == {i: 0 if i % 3 == 0 else 1 for i in range(1, 10)}
        kernel.feed(9)
        queue.process(lambda packet: packet.accept() if packet.id % 3 == 0 else packet.drop())
        assert messages(kernel)[4:] == [nfqnl.MSG_VERDICT] * 3 + [nfqnl.MSG_VERDICT_BATCH]
        accepted = [i for i, word in verdicts(kernel) if word == Verdict.ACCEPT and i > 9]
        assert accepted == sorted(accepted)
        assert len(kernel.sent) == 3  # BIND and two datagrams


def test_no_batch_covers_a_packet_that_is_kept() -> None:
    kernel = FakeKernel()
    kept: list[Packet] = []
    with Queue(1, transport=kernel) as queue:
        kernel.feed(10)
        queue.process(lambda packet: kept.append(packet) if packet.id == 4 else packet.accept())
        assert list(kernel.queued) == [4]
        assert queue.pending == kept
        assert queue.counters.pending == 1
        kernel.feed(3)
        queue.process(lambda packet: packet.accept())
        assert list(kernel.queued) == [4]
        kept[0].drop()
        assert verdicts(kernel)[-1] == (4, Verdict.DROP)
        kernel.feed(5)
        before = len(messages(kernel))
        queue.process(lambda packet: packet.accept())
        assert messages(kernel)[before:] == [nfqnl.MSG_VERDICT_BATCH]  # nothing is pending: batches again
        assert not kernel.queued
        assert_balanced(queue)


def test_kept_packets_leave_in_the_order_of_their_verdicts() -> None:
    kernel = FakeKernel()
    kept: list[Packet] = []

    def in_pairs_swapped(packet: Packet) -> None:
        kept.append(packet)
        if len(kept) == 2:
            kept.pop().accept()
            kept.pop().accept()

    with Queue(1, transport=kernel) as queue:
        kernel.feed(6)
        queue.process(in_pairs_swapped)
        assert [i for i, _ in verdicts(kernel)] == [2, 1, 4, 3, 6, 5]


def test_the_last_packet_waiting_is_decided_at_once() -> None:
    """Even while its handler runs on."""
    kernel = FakeKernel()
    seen: list[list[tuple[int, int]]] = []

    def handler(packet: Packet) -> None:
        packet.accept()
        seen.append(verdicts(kernel))

    with Queue(1, transport=kernel) as queue:
        kernel.feed(6)
        queue.process(handler)
    assert seen == [[], [], [], [], [], [(number, 1) for number in range(1, 7)]]


def test_verdicts_on_a_few_packets_leave_at_once() -> None:
    kernel = FakeKernel()
    seen: list[int] = []

    def handler(packet: Packet) -> None:
        packet.accept()
        seen.append(len(verdicts(kernel)))

    with Queue(1, transport=kernel) as queue:
        kernel.feed(4)
        queue.process(handler)
    assert seen == [1, 2, 3, 4]


def test_verdicts_leave_in_time_under_a_slow_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfnet._core.reader._MAX_DELAY", 0.001)
    clock = itertools.count(0, 0.0004)
    monkeypatch.setattr("nfnet._core.reader.monotonic", lambda: next(clock))
    kernel = FakeKernel()
    waiting: list[int] = []

    def handler(packet: Packet) -> None:
        packet.accept()
        waiting.append(packet.id - len(kernel.judged))
        for _ in range(5):  # two milliseconds
            next(clock)

    with Queue(1, transport=kernel) as queue:
        kernel.feed(50)
        queue.process(handler)
    assert max(waiting) <= 2


def test_flush_sends_what_was_decided() -> None:
    kernel = FakeKernel()

    def handler(packet: Packet) -> None:
        packet.accept()
        if packet.id == 3:
            queue.flush()
            assert [i for i, _ in verdicts(kernel)] == [1, 2, 3]

    with Queue(1, transport=kernel) as queue:
        kernel.feed(9)
        assert queue.process(handler) == 9


def test_every_kind_of_verdict() -> None:
    kernel = FakeKernel()
    payload = b"E" + bytes(30)
    with Queue(1, transport=kernel) as queue:
        kernel.feed(9)
        packets = list(itertools.islice(queue, queue.fetch()))
        packets[0].accept(mark=7)
        packets[1].accept(payload=payload, priority=3)
        packets[2].repeat(mark=1)
        packets[3].requeue(9)
        packets[4].requeue(0xFFFF, bypass=True)
        packets[5].verdict(Verdict.STOP)
        packets[6].verdict(0x00020003, mark=0xFFFFFFFF)
        packets[7].drop()
        packets[8].accept(mark=0)
        assert kernel.judged == [
            (1, 1, {NFQA.MARK: 7}),
            (2, 1, {NFQA.PAYLOAD: payload, NFQA.PRIORITY: 3}),
            (3, 4, {NFQA.MARK: 1}),
            (4, 0x00090003, {}),
            (5, 0xFFFF8003, {}),
            (6, 5, {}),
            (7, 0x00020003, {NFQA.MARK: 0xFFFFFFFF}),
            (8, 0, {}),
            (9, 1, {NFQA.MARK: 0}),
        ]
        c = queue.counters
        assert (c.accepted, c.dropped, c.repeated, c.requeued, c.pending) == (4, 1, 1, 3, 0)


def test_verdicts_with_payload_keep_their_place() -> None:
    kernel = FakeKernel()
    new = b"E" + bytes(50)
    with Queue(1, transport=kernel) as queue:
        kernel.feed(7)
        queue.process(lambda packet: packet.accept(payload=new) if packet.id == 4 else packet.accept())
    assert [(i, NFQA.PAYLOAD in changes) for i, _, changes in kernel.judged] == [(i, i == 4) for i in range(1, 8)]


def test_large_payloads_are_spread_over_datagrams() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(10)
        queue.process(lambda packet: packet.accept(payload=b"E" + bytes(60000)))
    assert len(kernel.judged) == 10
    assert max(map(len, kernel.sent)) < 2**17


def test_an_unchanged_payload_is_not_sent_back() -> None:
    """The kernel can have sent only the beginning of the packet, or an unfinished checksum."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1, CAP_LEN=1500)
        queue.process(lambda packet: packet.accept(payload=packet.payload))
    assert kernel.judged == [(1, 1, {})]


BAD_VERDICTS = {
    "payload has 19 bytes and must have 20 to 65,531": lambda p: p.accept(payload=bytes(19)),
    "payload has 0 bytes": lambda p: p.accept(payload=b""),
    "payload has 65532 bytes": lambda p: p.accept(payload=bytes(65532)),
    "mark is 4294967296 and must be in 0..4294967295": lambda p: p.accept(mark=1 << 32),
    "mark is -1": lambda p: p.repeat(mark=-1),
    "priority is": lambda p: p.accept(priority=-1),
    "queue number is 65536": lambda p: p.requeue(65536),
    "verdict 0x2: the low byte": lambda p: p.verdict(2),
    "verdict 0x6": lambda p: p.verdict(6),
    "verdict 0x10001: only QUEUE": lambda p: p.verdict(0x10001),
    "verdict 0x101": lambda p: p.verdict(0x101),
    "verdict 0x4003": lambda p: p.verdict(0x4003),
    "verdict is -1": lambda p: p.verdict(-1),
    "only in the bridge family": lambda p: p.accept(vlan=nfnet.Vlan(0x8100, 5)),
    # These the kernel would drop, or send out as they are, and report success.
    "payload begins with 00 00 00 00, and must be an IPv4 packet": lambda p: p.accept(payload=bytes(40)),
    "payload begins with 60 00 00 00, and": lambda p: p.repeat(payload=b"\x60" + bytes(39)),
    "payload begins with 02 00 00 00, and": lambda p: p.requeue(2, payload=b"\2" + bytes(13) + b"E" + bytes(19)),
    "payload begins with ff ff ff ff, and": lambda p: p.verdict(1, payload=bytearray(b"\xff" * 34)),
    "claims 0 bytes; the payload has 30": lambda p: p.accept(payload=b"\x40" + bytes(29)),
    "claims 60 bytes; the payload has 30": lambda p: p.accept(payload=b"\x4f" + bytes(29)),
}


@pytest.mark.parametrize("words", BAD_VERDICTS)
def test_bad_verdicts_are_refused_and_nothing_is_sent(words: str) -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed()
        packet = next(iter(queue))
        with pytest.raises(ValueError, match=words):
            BAD_VERDICTS[words](packet)
        assert not kernel.judged
        packet.accept()
        assert verdicts(kernel) == [(1, 1)]


POSITIONAL: dict[str, Callable[[Any], None]] = {
    "accept": lambda p: p.accept(7),
    "repeat": lambda p: p.repeat(7),
    "requeue": lambda p: p.requeue(2, 7),
    "verdict": lambda p: p.verdict(1, 7),
}


@pytest.mark.parametrize("method", POSITIONAL)
def test_what_a_verdict_changes_is_named(method: str) -> None:
    """``accept(7)`` could be a mark or anything else."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed()
        packet = next(iter(queue))
        with pytest.raises(TypeError, match=rf"{method}\(\) takes . positional arguments? but . were given"):
            POSITIONAL[method](packet)
        assert (packet.decided, kernel.judged, queue.pending) == (None, [], [packet])
        packet.accept()
        assert verdicts(kernel) == [(1, 1)]


def test_ipv6_payload_has_room_for_its_header() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(family=10)
        packet = next(iter(queue))
        with pytest.raises(ValueError, match="must have 40 to"):
            packet.accept(payload=bytes(39))
        with pytest.raises(ValueError, match="payload begins with 45 00 00 00, and must be an IPv6 packet"):
            packet.accept(payload=b"E" + bytes(39))
        packet.accept(payload=b"\x60" + bytes(39))
        assert verdicts(kernel) == [(1, 1)]


def test_the_payload_of_a_bridged_packet_may_be_anything() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(family=7)
        next(iter(queue)).accept(payload=b"\0\1\x08\0\6\4" + bytes(22))  # ARP
        assert verdicts(kernel) == [(1, 1)]


def test_bridge_changes() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(family=7, L2HDR=bytes(14), VLAN={1: 0x8100, 2: 7})
        packet = next(iter(queue))
        assert packet.vlan == nfnet.Vlan(0x8100, 7)
        with pytest.raises(ValueError, match="l2header has 10 bytes and must have 14"):
            packet.accept(l2header=bytes(10))
        packet.accept(l2header=b"\x01" * 14, vlan=nfnet.Vlan(0x8100, 9))
        assert kernel.judged == [(1, 1, {NFQA.L2HDR: b"\x01" * 14, NFQA.VLAN: {1: 0x8100, 2: 9}})]


def test_the_first_verdict_stands() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed()
        packet = next(iter(queue))
        packet.drop()
        for again in (packet.accept, packet.drop, packet.repeat, lambda: packet.requeue(2), lambda: packet.verdict(1)):
            with pytest.raises(nfnet.AlreadyDecidedError, match="packet 1 has its verdict already"):
                again()
        assert verdicts(kernel) == [(1, 0)]


def test_verdict_after_close_is_refused() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(2)
        first, second = itertools.islice(queue, 2)
    with pytest.raises(nfnet.ClosedError, match="packet 1: queue 1 was closed"):
        first.accept()
    with pytest.raises(nfnet.ClosedError):
        second.accept(mark=3)
    assert not kernel.judged
    assert queue.counters.pending == 2


def test_a_failing_send_loses_no_verdict() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(5)
        kernel.refuse_send = errno.ENOMEM
        with pytest.raises(OSError, match="sending: cannot allocate memory"):
            queue.process(lambda packet: packet.accept())
        assert not kernel.judged
        kernel.refuse_send = 0
        queue.process(lambda packet: packet.accept())
        queue.flush()
        assert [i for i, _ in verdicts(kernel)] == [1, 2, 3, 4, 5]
        assert_balanced(queue)


class QuickKernel(FakeKernel):
    """A transport with a faster way to send, as the socket has. It can be made to fail."""

    failure = 0

    @property
    def outgoing(self) -> Callable[[bytes], object]:
        return self._send_quickly

    def _send_quickly(self, datagram: bytes) -> None:
        if self.failure:
            raise OSError(self.failure, os.strerror(self.failure))
        super().send(datagram)


def test_what_the_quick_way_cannot_send_is_sent_all_the_same() -> None:
    kernel = QuickKernel()
    with Queue(1, transport=kernel) as queue:
        for kernel.failure in (0, errno.EMSGSIZE, errno.EPERM):
            kernel.feed(1)
            queue.process(lambda packet: packet.accept())
        assert verdicts(kernel) == [(1, 1), (2, 1), (3, 1)]
        assert_balanced(queue)


def test_a_failure_of_both_ways_to_send_loses_no_verdict() -> None:
    kernel = QuickKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        kernel.failure = kernel.refuse_send = errno.EPERM
        with pytest.raises(nfnet.NotPermittedError, match="sending"):
            queue.process(lambda packet: packet.accept())
        assert not kernel.judged
        kernel.failure = kernel.refuse_send = 0
        queue.process(lambda packet: packet.accept())
        queue.flush()
        assert verdicts(kernel) == [(1, 1)]
        assert_balanced(queue)


# --- the loop


def test_iteration_hands_out_packets_in_order_until_stop() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(5)
        seen = []
        for packet in queue:
            packet.accept()
            seen.append(packet.id)
            if packet.id == 3:
                queue.stop()
        assert seen == [1, 2, 3]
        assert [i for i, _ in verdicts(kernel)] == [1, 2, 3]
        assert queue.counters.pending == 2
        assert queue.pending == []
        assert queue.process(lambda packet: packet.drop()) == 2
        assert not kernel.queued


def test_leaving_an_iteration_sends_its_verdicts() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(5)
        for packet in queue:
            packet.accept()
            if packet.id == 2:
                break
        collect_forgotten()
        assert [i for i, _ in verdicts(kernel)] == [1, 2]
        assert next(iter(queue)).id == 3


@pytest.mark.parametrize("again", [False, True])
def test_an_iteration_that_the_collector_ends(monkeypatch: pytest.MonkeyPatch, again: bool) -> None:
    """As in PyPy: it is no longer referenced, and its finally clause has not run."""
    monkeypatch.setattr(system, "_COUNTS_REFERENCES", False)
    kernel = FakeKernel()
    circle: list[object] = []
    gc.disable()
    try:
        with Queue(1, transport=kernel) as queue:
            kernel.feed(5)
            items = iter(queue)
            next(items).accept()
            circle += [circle, items]
            del circle, items
            if again:
                queue.close()
                kernel.closed = False  # the same one again
                queue.open()
                kernel.feed(1)
            assert queue.process(Packet.accept) == (1 if again else 4)
    finally:
        gc.enable()


def test_run_ends_with_its_transport() -> None:
    kernel = FakeKernel(ends=True)
    with Queue(1, transport=kernel) as queue:
        kernel.feed(600)
        queue.run(lambda packet: packet.accept())
        assert len(kernel.judged) == 600
        assert [packet.id for packet in queue] == []


def test_stop_ends_a_waiting_run() -> None:
    with Queue(1, transport=FakeKernel()) as queue:
        thread = threading.Thread(target=queue.run, args=(print,))
        thread.start()
        queue.stop()
        thread.join(SOON)
        assert not thread.is_alive()


def test_stop_before_run_is_not_forgotten_and_holds_once() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        queue.stop()
        queue.stop()
        queue.run(lambda packet: packet.accept())
        assert not kernel.judged
        assert queue.process(lambda packet: packet.accept()) == 1


def test_close_from_another_thread_ends_a_waiting_run() -> None:
    kernel, running = FakeKernel(), threading.Event()
    queue = Queue(1, transport=kernel)
    queue.open()
    kernel.feed(1)
    thread = threading.Thread(target=queue.run, args=(lambda packet: running.set(),))
    thread.start()
    assert running.wait(SOON)
    queue.close()
    queue.close()
    thread.join(SOON)
    assert not thread.is_alive()


def test_the_second_thread_that_closes_waits_for_the_first() -> None:
    """The second call must not close the socket before the first has accepted the packets."""

    class Kernel(FakeKernel):
        entered, go = threading.Event(), threading.Event()

        def send(self, datagram: bytes) -> None:
            if self.queued:
                self.entered.set()
                assert self.go.wait(SOON)
            super().send(datagram)

        def close(self) -> None:
            assert not self.queued
            super().close()

    kernel = Kernel()
    queue = Queue(1, transport=kernel, undecided="accept")
    queue.open()
    kernel.feed(3)
    threads = [threading.Thread(target=queue.close) for _ in range(2)]
    threads[0].start()
    assert kernel.entered.wait(SOON)
    threads[1].start()
    threads[1].join(0.05)
    assert not kernel.closed
    kernel.go.set()
    for thread in threads:
        thread.join(SOON)
    assert kernel.closed
    assert [word for _, word, _ in kernel.judged] == [Verdict.ACCEPT] * 3


def test_a_signal_handler_that_closes_while_its_thread_does() -> None:
    class Kernel(FakeKernel):
        def send(self, datagram: bytes) -> None:
            queue.close()  # as a signal handler would, in the midst of it
            super().send(datagram)

        def close(self) -> None:
            assert not self.queued
            super().close()

    kernel = Kernel()
    queue = Queue(1, transport=kernel, undecided="accept")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "send", FakeKernel.send)
        queue.open()
    kernel.feed(3)
    queue.close()
    assert kernel.closed
    assert not kernel.queued


def test_closing_in_a_handler_ends_the_loop() -> None:
    kernel = FakeKernel()
    queue = Queue(1, transport=kernel)
    queue.open()
    kernel.feed(9)
    seen: list[int] = []

    def handler(packet: Packet) -> None:
        seen.append(packet.id)
        packet.accept()
        if packet.id == 2:
            queue.close()

    queue.run(handler)
    assert seen == [1, 2]
    assert [i for i, _ in verdicts(kernel)] == [1, 2]


def test_one_loop_at_a_time() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(2)
        packets = iter(queue)
        next(packets).accept()
        for use in (lambda: queue.run(print), lambda: queue.process(print), queue.fetch, lambda: next(iter(queue))):
            with pytest.raises(nfnet.BusyReadingError, match="read by another loop"):
                use()
        next(packets).accept()
        packets.close()
        assert queue.fetch() == 0


def test_the_file_descriptor_tells_of_packets_that_were_read_already() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        assert not readable(queue)
        kernel.feed(6)
        assert readable(queue)
        with pytest.raises(Oops):
            queue.process(failing)
        assert readable(queue)
        assert queue.process(lambda packet: queue.stop()) == 1
        assert readable(queue)
        assert queue.process(lambda packet: packet.accept()) == 2
        assert not readable(queue)
        queue.stop()
        assert readable(queue)
        assert queue.process(print) == 0
        assert not readable(queue)


def test_handlers_must_be_callable() -> None:
    with Queue(1, transport=FakeKernel()) as queue, pytest.raises(TypeError, match="must be callable, not int"):
        queue.run(5)  # type: ignore[arg-type]


async def coroutine(packet: Packet) -> None:
    packet.accept()


def generator(packet: Packet) -> Iterator[None]:
    packet.accept()
    yield


async def async_generator(packet: Packet) -> AsyncIterator[None]:
    packet.accept()
    yield


class Methods:
    async def method(self, packet: Packet) -> None:
        packet.accept()

    async def __call__(self, packet: Packet) -> None:
        packet.accept()


# Callables that a call does not run, and the error for each.
NOT_RUN: dict[str, tuple[Any, str]] = {
    "async function": (coroutine, "the handler coroutine is an async function, which nobody would await: "),
    "generator": (generator, "the handler generator has a yield in it"),
    "async generator": (async_generator, "the handler async_generator has a yield in it"),
    "method": (Methods().method, r"the handler Methods\.method is an async function"),
    "callable object": (Methods(), "the handler Methods is an async function"),
    "partial": (functools.partial(functools.partial(coroutine)), "the handler coroutine is an async function"),
    "mock": (unittest.mock.AsyncMock(), "is an async function"),
}


@pytest.mark.parametrize("kind", NOT_RUN)
def test_a_handler_that_a_call_does_not_run_is_refused_before_anything_is_taken(kind: str) -> None:
    handler, words = NOT_RUN[kind]
    kernel = FakeKernel()
    with Queue(1, transport=kernel, undecided="accept", on_error="accept") as queue:
        kernel.feed(3)
        for use in (queue.run, queue.process):
            with pytest.raises(TypeError, match=words) as caught:
                use(handler)
            assert isinstance(caught.value, nfnet.NfnetError)
            assert "AsyncQueue" in str(caught.value) or "yield" in words
        assert not kernel.judged
        assert queue.counters.received == 0
        assert queue.process(Packet.accept) == 3


def test_a_handler_that_returns_a_coroutine_stops_the_loop() -> None:
    """As a lambda around an async function does. The policy must not accept a packet that no handler has examined."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel, undecided="accept", on_error="accept") as queue:
        kernel.feed(3)
        with pytest.raises(TypeError, match="the handler returned a coroutine, which nobody awaits: use AsyncQueue"):
            queue.run(lambda packet: coroutine(packet))
        assert [packet.id for packet in queue.pending] == [1]
        assert not kernel.judged
        assert queue.process(lambda packet: packet.drop()) == 2


def test_plain_handlers_of_any_kind_are_taken() -> None:
    class Handler:
        def __call__(self, packet: Packet) -> None:
            packet.accept()

        def method(self, packet: Packet) -> None:
            packet.accept()

    mock = unittest.mock.MagicMock(side_effect=Packet.accept)
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        for handler in (Packet.accept, Handler(), Handler().method, functools.partial(Packet.accept, mark=3), mock):
            kernel.feed(1)
            assert queue.process(handler) == 1
        assert len(kernel.judged) == 5


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_packets_cannot_be_copied(duplicate: Any) -> None:
    """A copy could be accepted without an error, while the packet still waited."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(2)
        packet = next(iter(queue))
        for what in (packet, [packet]):
            if duplicate is not copy.copy or what is packet:
                with pytest.raises(TypeError, match="cannot be copied or pickled.*keep the packet itself, or"):
                    duplicate(what)
        packet.accept()
        with pytest.raises(TypeError):
            duplicate(packet)
        assert verdicts(kernel) == [(1, 1)]


def test_fetch_keeps_packets_for_the_next_loop() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        assert queue.fetch() == 0
        kernel.feed(3)
        assert queue.fetch() == 3
        kernel.feed(2)
        assert queue.fetch() == 5
        assert [packet.id for packet in itertools.islice(queue, 5)] == [1, 2, 3, 4, 5]


class Oops(Exception):
    pass


def failing(packet: Packet) -> None:
    if packet.id == 3:
        raise Oops
    packet.accept()


def test_an_exception_comes_out_and_its_packet_stays_pending() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(6)
        with pytest.raises(Oops):
            queue.run(failing)
        assert [i for i, _ in verdicts(kernel)] == [1, 2]
        (at_fault,) = queue.pending
        assert at_fault.id == 3
        assert queue.process(failing) == 3
        assert [i for i, _ in verdicts(kernel)] == [1, 2, 4, 5, 6]
        at_fault.drop()
        assert not kernel.queued
        assert_balanced(queue)


@pytest.mark.parametrize(("policy", "word"), [("accept", Verdict.ACCEPT), ("drop", Verdict.DROP)])
def test_an_exception_may_decide(policy: Any, word: int, caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel, on_error=policy) as queue:
        kernel.feed(6)
        assert queue.process(failing) == 6
        assert dict(verdicts(kernel))[3] == word
        assert not kernel.queued
    assert "the handler failed on packet 3" in caplog.text
    assert "Oops" in caplog.text


@pytest.mark.parametrize("policy", ["accept", "drop"])
def test_an_iteration_cannot_treat_errors(policy: Any) -> None:
    """The queue does not see exceptions raised in the body, so the policy would have no effect."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel, on_error=policy) as queue:
        kernel.feed(2)
        with pytest.raises(nfnet.ArgumentError, match="on_error=.*run"):
            iter(queue)
        assert not kernel.judged, "the error comes before the first packet"
        assert queue.process(lambda packet: packet.accept()) == 2


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_exits_always_come_out(kind: type[BaseException]) -> None:
    kernel = FakeKernel()

    def handler(packet: Packet) -> None:
        packet.accept()
        if packet.id == 2:
            raise kind

    with Queue(1, transport=kernel, on_error="drop") as queue:
        kernel.feed(3)
        with pytest.raises(kind):
            queue.run(handler)
        assert [i for i, _ in verdicts(kernel)] == [1, 2]
        assert queue.process(lambda packet: packet.accept()) == 1


@pytest.mark.parametrize(("policy", "word"), [("accept", Verdict.ACCEPT), ("drop", Verdict.DROP)])
def test_undecided_packets_get_the_verdict_of_the_policy(policy: Any, word: int) -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel, undecided=policy) as queue:
        kernel.feed(5)
        queue.process(lambda packet: packet.drop() if packet.id == 2 else None)
        assert dict(verdicts(kernel)) == {i: 0 if i == 2 else word for i in range(1, 6)}
        kernel.feed(1)
        for _ in queue:
            break
    if policy == "accept":  # at the end everything that waits is let through, read or not
        assert not kernel.queued
    assert_balanced(queue)


def test_closing_a_queue_that_accepts_lets_unread_packets_through() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel, undecided="accept"):
        kernel.feed(7)
    assert verdicts(kernel) == [(i, Verdict.ACCEPT) for i in range(1, 8)]


class Arriving(FakeKernel):
    """A packet arrives before each message that the program sends, and finds room, or not."""

    arrived = passed = dropped = 0
    max_len = 1024
    flags = QueueFlag(0)

    def _execute(self, message: bytes) -> None:
        self.arrived += 1
        if len(self.queued) < self.max_len:
            self.feed()
        elif QueueFlag.FAIL_OPEN in self.flags:
            self.passed += 1
        else:
            self.dropped += 1
        super()._execute(message)
        if netlink.header.parse(message).type == nfqnl.MSG_CONFIG:
            self.max_len = self.config[-1].get(NFQA_CFG.QUEUE_MAXLEN, self.max_len)
            self.flags |= self.config[-1].get(NFQA_CFG.FLAGS, 0)


def test_what_arrives_while_a_queue_that_accepts_closes_is_let_through() -> None:
    kernel = Arriving()
    with Queue(1, transport=kernel, undecided="accept") as queue:
        kernel.feed(5)
        next(iter(queue)).drop()
    assert not kernel.queued
    assert kernel.dropped == 0
    assert [word for _, word, _ in kernel.judged].count(Verdict.ACCEPT) + kernel.passed == kernel.arrived + 4
    assert kernel.passed > 0


@pytest.mark.parametrize("policy", ["pending", "drop"])
def test_nothing_is_let_through_at_the_end_if_nobody_asked_for_that(policy: Any) -> None:
    kernel = Arriving()
    with Queue(1, transport=kernel, undecided=policy) as queue:
        kernel.feed(5)
        next(iter(queue)).drop()
    assert {word for _, word, _ in kernel.judged} == {Verdict.DROP}
    assert kernel.passed == 0


def test_a_kernel_without_fail_open_closes_all_the_same() -> None:
    class Old(FakeKernel):
        def send(self, datagram: bytes) -> None:
            if netlink.header.parse(datagram).type == nfqnl.MSG_CONFIG and NFQA_CFG.FLAGS in attributes(datagram):
                raise nfnet.NotSupportedError("test", errno.EOPNOTSUPP)
            super().send(datagram)

    kernel = Old()
    with Queue(1, transport=kernel, undecided="accept"):
        kernel.feed(5)
    assert kernel.closed
    assert verdicts(kernel) == [(number, Verdict.ACCEPT) for number in range(1, 6)]


# --- what comes between the packets


def test_gaps_in_the_ids_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(3)
        kernel.skip(10)
        kernel.feed(2)
        kernel.skip(5)
        kernel.feed(1)
        queue.process(lambda packet: packet.accept())
        assert (queue.counters.lost, queue.counters.received) == (15, 6)
        kernel.skip(1)
        kernel.feed(1)
        queue.process(lambda packet: packet.accept())
        assert (queue.counters.lost, queue.counters.overruns) == (16, 2)
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "queue 1: 15 packets were lost, 15 so far; probably the receive buffer was full",
        "queue 1: 1 packets were lost, 16 so far; probably the receive buffer was full",
    ]


def test_ids_wrap_around() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        queue.process(lambda packet: packet.accept())
        binding = queue._bound()
        kernel._next_id, binding.last_id = 0xFFFFFFFE, 0xFFFFFFFD
        ids = kernel.feed(5)
        assert ids[1:3] == [0xFFFFFFFF, 0]
        kept: list[Packet] = []
        queue.process(lambda packet: kept.append(packet) if packet.id == 0 else packet.accept())
        assert list(kernel.queued) == [0]
        kept[0].accept()
        kernel.feed(3)
        queue.process(lambda packet: packet.accept())
        assert not kernel.queued
        assert (queue.counters.lost, queue.counters.received) == (0, 9)


# Distances between ids; the kernel compares ids modulo 2^32.
DISTANCES = [0x7FFFFFFE, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xC0000000, 0xFFFFFFF0]


@pytest.mark.parametrize("distance", DISTANCES)
def test_one_undecided_packet_stops_no_later_ones(distance: int) -> None:
    """Two and a half days at 10,000 packets a second are 2^31."""
    kernel = FakeKernel()
    kept: list[Packet] = []
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        queue.process(kept.append)
        kernel.skip(distance - 1)
        for _ in range(2):
            kernel.feed(3)
            queue.process(lambda packet: packet.accept())
            assert list(kernel.queued) == [1]
        kept[0].drop()
        kernel.feed(3)
        queue.process(lambda packet: packet.accept())
        assert not kernel.queued
        assert [word for _, word in verdicts(kernel)] == [1] * 6 + [0] + [1] * 3
        assert queue.counters.refused == {}


@pytest.mark.parametrize("distance", DISTANCES)
def test_packets_that_are_read_together_may_be_far_apart(distance: int) -> None:
    """The program was stopped, and meanwhile the receive buffer was full."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(3)
        kernel.skip(distance - 3)
        kernel.feed(3)
        queue.process(lambda packet: packet.accept())
        assert not kernel.queued
        queue.process(lambda packet: packet.accept())
        assert queue.counters.refused == {}
        assert queue.counters.accepted == 6
        assert queue.counters.lost == distance - 3


@pytest.mark.parametrize("distance", DISTANCES)
def test_ids_from_the_kernel_never_go_back(distance: int) -> None:
    """The packets in a gap are lost, however large it is: the program did not read for long, and ids have 32 bits."""
    kernel = FakeKernel()
    with Queue(1, transport=kernel, on_overrun="ignore") as queue:
        for times in range(3):
            kernel.feed(1)
            queue.process(lambda packet: packet.accept())
            assert (queue.counters.lost, queue.counters.received) == (times * distance, times + 1)
            kernel.skip(distance)


@pytest.mark.parametrize("distance", DISTANCES)
def test_closing_accepts_unread_packets_however_far_apart(distance: int) -> None:
    kernel = FakeKernel()
    kernel.queued[0] = None  # never handed out: a forked child that has died had read it
    with Queue(1, transport=kernel, undecided="accept") as queue:
        kernel.feed(1)
        queue.process(lambda packet: packet.accept())
        kernel.skip(distance // 2)
        kernel.feed(2)
        kernel.skip(distance // 2 - 4)
        kernel.feed(2)
    assert not kernel.queued
    assert [word for _, word in verdicts(kernel)] == [1] * 6


def test_refused_verdicts_are_counted() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(4)
        kernel.queued.clear()  # another program changed the rules
        queue.process(lambda packet: packet.accept(mark=packet.id))
        queue.process(lambda packet: packet.accept())
        assert queue.counters.refused == {errno.ENOENT: 4}


def test_losing_the_privilege_is_an_error() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        kernel.deliver(error_message(errno.EPERM, nfqnl.verdict(1, 1, 1)))
        kernel.feed(1)
        with pytest.raises(nfnet.NotPermittedError, match="deciding packets of queue 1"):
            queue.process(lambda packet: packet.accept())
        assert queue.process(lambda packet: packet.accept()) == 2  # and no packet was lost over it
        assert queue.counters.refused == {errno.EPERM: 1}


def test_late_acknowledgements_are_ignored() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.deliver(error_message(0, nfqnl.config(1, seq=99)))
        kernel.feed(1)
        assert queue.process(lambda packet: packet.accept()) == 1
        assert queue.counters.refused == {}


@pytest.mark.parametrize("trusted", [True, False])
def test_a_damaged_datagram_is_an_error_and_the_others_arrive(trusted: bool) -> None:
    kernel = FakeKernel()
    kernel.trusted = trusted
    with Queue(1, transport=kernel) as queue:
        kernel.feed(2)
        kernel.deliver(b"\x10\0\0\0\x07\x09" + bytes(10))
        kernel.feed(2)
        with pytest.raises(nfnet.DecodeError, match="not a packet message"):
            queue.process(lambda packet: packet.accept())
        assert queue.process(lambda packet: packet.accept()) == 4
        assert queue.counters.malformed == 1


@given(st.binary(max_size=80), st.integers(0, 79))
def test_no_recording_raises_anything_but_our_errors(noise: bytes, place: int) -> None:
    kernel = FakeKernel()
    kernel.trusted = False

    def handler(packet: Packet) -> None:
        for name in dir(Packet):
            if isinstance(getattr(Packet, name), property):
                with contextlib.suppress(nfnet.NfnetError):
                    getattr(packet, name)
        packet.accept()

    with Queue(1, transport=kernel) as queue:
        good = packet_message(5, MARK=1, HWADDR={"length": 6, "address": bytes(8)})
        kernel.deliver(noise)
        kernel.deliver(good[:place] + noise + good[place + len(noise) :])
        for _ in range(3):
            with contextlib.suppress(nfnet.NfnetError):
                queue.process(handler)
        assert queue.counters.received == queue.counters.accepted
        assert not queue.pending


# --- the rules of coalescing, at large


@st.composite
def programs(draw: st.DrawFn) -> list[tuple[int, list[tuple[str, int]]]]:
    """Rounds: how many packets arrive, and what the handler does with each, or later with those that it kept."""
    action = st.tuples(
        st.sampled_from(["accept", "accept", "accept", "drop", "drop", "mark", "payload", "keep", "late", "requeue"]),
        st.integers(0, 5),
    )
    return draw(st.lists(st.tuples(st.integers(1, 12), st.lists(action, min_size=12, max_size=12)), max_size=6))


@given(programs())
def test_each_packet_gets_just_the_verdict_that_was_given(program: list[tuple[int, list[tuple[str, int]]]]) -> None:
    kernel = FakeKernel()
    given_verdicts: list[tuple[int, int, dict[int, Any]]] = []
    kept: list[Packet] = []
    new = b"E" + bytes(33)

    def decide(packet: Packet, what: str, number: int) -> None:
        if what == "drop":
            packet.drop()
            given_verdicts.append((packet.id, 0, {}))
        elif what == "mark":
            packet.accept(mark=number)
            given_verdicts.append((packet.id, 1, {NFQA.MARK: number}))
        elif what == "payload":
            packet.accept(payload=new)
            given_verdicts.append((packet.id, 1, {NFQA.PAYLOAD: new}))
        elif what == "requeue":
            packet.requeue(number)
            given_verdicts.append((packet.id, number << 16 | 3, {}))
        else:
            packet.accept()
            given_verdicts.append((packet.id, 1, {}))

    with Queue(1, transport=kernel) as queue:
        for count, actions in program:
            kernel.feed(count)
            plan = iter(actions)

            def handler(packet: Packet, plan: Any = plan) -> None:
                what, number = next(plan)
                if what == "keep":
                    kept.append(packet)
                    return
                if what == "late" and kept:
                    decide(kept.pop(number % len(kept)), "accept", 0)
                decide(packet, what, number)

            assert queue.process(handler) == count
            assert sorted(kernel.queued) == sorted(packet.id for packet in kept)
            assert_balanced(queue)
        while kept:
            decide(kept.pop(), "drop", 0)
        assert not kernel.queued
        assert queue.counters.refused == {}

    assert sorted(kernel.judged, key=lambda row: row[0]) == sorted(given_verdicts, key=lambda row: row[0])
    # Accepted packets leave in the order of the decisions; drops can be sent before them.
    went_on = [row for row in given_verdicts if row[1] != 0]
    assert [row for row in kernel.judged if row[1] != 0] == went_on


def test_ten_threads_decide_what_the_handler_kept() -> None:
    kernel = FakeKernel(ends=True)
    handed: Any = __import__("queue").Queue()

    def work() -> None:
        while (packet := handed.get()) is not None:
            packet.accept() if packet.id % 2 else packet.drop()

    threads = [threading.Thread(target=work) for _ in range(10)]
    for thread in threads:
        thread.start()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(3000)
        queue.run(lambda packet: handed.put(packet) if packet.id % 3 else packet.accept())
        for _ in threads:
            handed.put(None)
        for thread in threads:
            thread.join(SOON)
        assert not kernel.queued
        expected = {i: 1 if i % 3 == 0 or i % 2 else 0 for i in range(1, 3001)}
        assert dict(verdicts(kernel)) == expected
        assert len(kernel.judged) == 3000
        assert queue.counters.pending == 0
        assert_balanced(queue)


class Compared(Packet):
    """Counts how often one is compared with another, as a search in a list does for every element that it passes."""

    __slots__ = ()
    count = 0

    def __eq__(self, other: object) -> bool:
        type(self).count += 1
        return self is other

    __hash__ = Packet.__hash__


class ComparedQueue(Queue):
    packet_type = Compared


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("received_first", [False, True])
def test_deciding_many_kept_packets_searches_no_lists(received_first: bool, order: int) -> None:
    kernel, count = FakeKernel(), 1500
    kept: list[Packet] = []
    Compared.count = 0

    def keep_most(packet: Packet) -> None:
        if packet.id % 5:
            kept.append(packet)
        else:
            packet.accept()

    with ComparedQueue(1, transport=kernel) as queue:
        kernel.feed(count)
        while received_first and queue.fetch() < count:
            pass
        while queue.process(keep_most):
            pass
        later = kernel.feed(500)
        queue.fetch()  # these are at hand while the others are decided
        for packet in kept[::order]:
            packet.accept()
        assert list(kernel.queued) == later
    assert Compared.count < 5 * count


def test_a_forked_child_has_no_part_in_the_queue() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1)
        sent = len(kernel.sent)
        pid = os.fork()
        if not pid:
            queue.close()
            os._exit(len(kernel.sent) != sent)
        assert os.waitpid(pid, 0)[1] == 0
        assert queue.process(lambda packet: packet.accept()) == 1


def test_a_forked_child_wakes_nobody_but_itself() -> None:
    with Queue(1, transport=FakeKernel()) as queue:
        fd = queue.fileno()
        pid = os.fork()
        if not pid:
            queue.stop()
            os._exit(0 if select.select([fd], [], [], 0)[0] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert select.select([fd], [], [], 0)[0] == []


def test_an_interrupted_verdict_is_not_lost_behind_pending_packets() -> None:
    """The signal arrives after the decision and before it is sent."""
    kernel = FakeKernel()
    kernel.feed(12)
    queue = opened(kernel)
    kept: list[Packet] = []

    def handler(packet: Packet) -> None:
        if packet.id < 11:
            kept.append(packet)
        elif packet.id == 11:
            packet._decision = nfnet.packet.ACCEPT
            raise KeyboardInterrupt
        else:
            packet.accept()

    with pytest.raises(KeyboardInterrupt):
        queue.process(handler)
    assert 11 not in kernel.queued
    kept[0]._decision = nfnet.packet.ACCEPT  # the same while no loop runs
    queue.close()
    assert sorted(verdicts(kernel)) == [(1, 1), (11, 1)]


def test_a_packet_that_was_taken_alone_and_not_handed_out_comes_before_those_taken_later() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        seen: list[int] = []

        def handler(packet: Packet) -> None:
            seen.append(packet.id)
            packet.accept()

        kernel.feed(1)
        assert queue.fetch() == 1
        kernel.feed(2)
        queue.fetch()
        queue.process(handler)
        assert seen == [1, 2, 3]
        assert (queue.counters.pending, kernel.queued) == (0, {})


def test_repr_says_how_many_wait() -> None:
    kernel = FakeKernel()
    queue = Queue(7, transport=FakeKernel(num=7))
    assert repr(queue) == "<Queue 7: closed>"
    with Queue(1, transport=kernel) as queue:
        assert repr(queue) == "<Queue 1: open, 0 waiting>"
        kernel.feed(3)
        queue.fetch()
        assert repr(queue) == "<Queue 1: open, 3 waiting>"
        packets = list(itertools.islice(queue, 2))
        packets[0].accept()
        queue.flush()
        assert repr(queue) == "<Queue 1: open, 2 waiting>"  # one that the program has, and one that was not handed out
    assert repr(queue) == "<Queue 1: closed>"


def test_nothing_keeps_what_is_open_and_forgotten() -> None:
    """No circle of references: the socket, and with it the queue, would stay until Python collects such circles."""
    kernel = FakeKernel()
    queue = opened(kernel)
    there = weakref.ref(kernel)
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del kernel, queue
            collect_forgotten()
        assert there() is None
    finally:
        gc.enable()
