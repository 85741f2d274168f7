"""The API of NetfilterQueue, on a model of the kernel and on recordings."""

from __future__ import annotations

import errno
import gc
import os
import select
import socket
import threading
import warnings
import weakref
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

import nfnet
from nfnet import testing
from nfnet.compat import netfilterqueue
from nfnet.compat._borrowed import BorrowedTransport
from nfnet.compat.netfilterqueue import COPY_META, COPY_PACKET, NetfilterQueue, Packet, QueueHandler
from nfnet.protocol.nfqnl import NFQA, NFQA_CFG, Verdict

from .conftest import FIXTURES
from .kernel import FakeKernel

FRAGMENT6 = bytes.fromhex("600000000010 2c40") + bytes(32) + bytes.fromhex("3a00000100000001") + bytes(8)  # a fragment
UDP4 = testing.udp(b"fifteen bytes..")
V6 = {"source": "fd00::1", "destination": "fd00::2"}


def bound(kernel: FakeKernel, callback: Callable[[Packet], object], **options: Any) -> NetfilterQueue:
    queue = NetfilterQueue(transport=kernel)
    queue.bind(1, callback, **options)
    return queue


def run(callback: Callable[[Packet], object], *payloads: bytes | None, **attributes: Any) -> FakeKernel:
    """Let the callback see packets, and return the kernel, which saw verdicts."""
    kernel = FakeKernel()
    queue = bound(kernel, callback)
    for payload in payloads or (UDP4,):
        kernel.feed(1, payload=payload, **attributes)
    queue.run(block=False)
    queue.unbind()
    return kernel


def test_an_async_callback_is_refused_at_once() -> None:
    """The original calls it and does not await the result: no packet is ever decided."""
    from .test_queue import NOT_RUN

    for callback, words in NOT_RUN.values():
        queue = NetfilterQueue(transport=FakeKernel())
        with pytest.raises(TypeError, match=words):
            queue.bind(1, callback)
        queue.bind(1, None)  # type: ignore[arg-type]  # the original says at the first packet that this is no function
        queue.unbind()

    class Handler(netfilterqueue.QueueHandler):
        async def handle(self, packet: Packet) -> None:  # type: ignore[override]
            packet.accept()

    handler: Handler = object.__new__(Handler)  # without a socket, for which privileges are needed
    with pytest.raises(TypeError, match=r"Handler\.handle is an async function"):
        handler.bind(1)


# --- what there is


def test_names() -> None:
    assert (netfilterqueue.COPY_NONE, COPY_META, COPY_PACKET) == (0, 1, 2)
    assert netfilterqueue.VERSION == (1, 1, 0)
    assert netfilterqueue.__version__ == "1.1.0"
    assert len(netfilterqueue.PROTOCOLS) == 142
    for number in (1, 6, 17, 50, 132):
        name = netfilterqueue.PROTOCOLS[number].lower()
        assert socket.getprotobyname(name) == number
    assert netfilterqueue.PROTOCOLS[58] == "IPv6-ICMP"
    assert netfilterqueue.PROTOCOLS[61] == "any host internal protocol"
    assert netfilterqueue.PROTOCOLS[255] == "Reserved"


def test_bind_asks_for_what_the_original_does_by_default_and_for_whole_packets() -> None:
    kernel = FakeKernel()
    bound(kernel, print)
    assert kernel.config[0][NFQA_CFG.PARAMS] == {"copy_range": 0xFFFF, "copy_mode": COPY_PACKET}
    assert kernel.config[0][NFQA_CFG.QUEUE_MAXLEN] == 1024


def test_bind_takes_its_arguments_by_position_and_by_name() -> None:
    kernel = FakeKernel()
    queue = NetfilterQueue(transport=kernel)
    queue.bind(1, print, 50, COPY_META, 20, 1000)
    queue.unbind()
    queue.bind(queue_num=1, user_callback=print, max_len=50, mode=COPY_META, range=20, sock_len=1000)
    for config in (kernel.config[0], kernel.config[2]):
        assert config[NFQA_CFG.PARAMS] == {"copy_range": 20, "copy_mode": COPY_META}
        assert config[NFQA_CFG.QUEUE_MAXLEN] == 50


@pytest.mark.parametrize(("asked", "got"), [(0, 0xFFFF), (1 << 20, 0xFFFF), (100, 100)])
def test_copy_range_is_what_the_kernel_makes_of_it(asked: int, got: int) -> None:
    kernel = FakeKernel()
    bound(kernel, print, range=asked)
    assert kernel.config[0][NFQA_CFG.PARAMS]["copy_range"] == got


# --- packets


def test_attributes() -> None:
    seen: list[tuple[object, ...]] = []

    def callback(p: Packet) -> None:
        seen.append((p.id, p.hw_protocol, p.hook, p.mark, p.indev, p.outdev, p.physindev, p.physoutdev))
        assert all(type(value) is int for value in seen[-1]), "print() shows numbers"
        p.accept()

    run(callback, MARK=7, IFINDEX_INDEV=3, IFINDEX_PHYSINDEV=4, hook=2)
    run(callback, hook=3, IFINDEX_OUTDEV=5, IFINDEX_PHYSOUTDEV=6)
    assert seen == [(1, 0x0800, 2, 7, 3, 0, 4, 0), (1, 0x0800, 3, 0, 0, 5, 0, 6)]


@pytest.mark.parametrize("name", ["id", "hw_protocol", "hook", "mark", "indev", "outdev", "physindev", "physoutdev"])
def test_attributes_cannot_be_set(name: str) -> None:
    def callback(packet: Packet) -> None:
        with pytest.raises(AttributeError):
            setattr(packet, name, 1)
        packet.accept()

    run(callback)


def test_hardware_address_has_eight_bytes_or_is_none() -> None:
    seen: list[bytes | None] = []
    run(lambda p: seen.append(p.get_hw()), HWADDR={"length": 6, "address": b"\2abcde\0\0"})
    run(lambda p: seen.append(p.get_hw()))
    assert seen == [b"\2abcde\0\0", None]


def test_timestamp() -> None:
    seen: list[float] = []
    run(lambda p: seen.append(p.get_timestamp()), TIMESTAMP={"seconds": 1700000000, "microseconds": 250000})
    run(lambda p: seen.append(p.get_timestamp()))
    assert seen == [1700000000.25, 0.0]


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (UDP4, "UDP packet, 43 bytes"),
        (testing.tcp(), "TCP packet, 40 bytes"),
        (testing.udp(b"12", **V6), "UDP packet, 50 bytes"),
        (FRAGMENT6, "IPv6-ICMP packet, 56 bytes"),
        (b"E" + bytes(8) + b"\xfd" + bytes(10), "Unknown protocol packet, 20 bytes"),
        (b"abc", "Unknown protocol packet, 3 bytes"),
        (None, "0 byte packet, contents unretained"),
    ],
)
def test_description(payload: bytes | None, text: str) -> None:
    seen: list[str] = []
    run(lambda p: seen.append(str(p)), payload)
    assert seen == [text]


def test_repr_names_the_package() -> None:
    seen: list[str] = []
    run(lambda p: seen.append(repr(p)))
    assert seen[0].startswith("<netfilterqueue.Packet object at 0x")


def test_payload_and_its_length() -> None:
    seen: list[tuple[bytes, int]] = []
    run(lambda p: seen.append((p.get_payload(), p.get_payload_len())))
    assert seen == [(UDP4, 43)]


def test_without_payload() -> None:
    def callback(packet: Packet) -> None:
        assert packet.get_payload_len() == 0
        for call in (packet.get_payload, packet.retain):
            with pytest.raises(RuntimeError) as caught:
                call()
            assert str(caught.value) == "Packet has no payload -- perhaps you're using COPY_META mode?"
        packet.accept()

    assert [word for _, word, _ in run(callback, None).judged] == [Verdict.ACCEPT]


def test_payload_is_gone_after_the_callback_unless_retained() -> None:
    kept: list[Packet] = []

    def callback(packet: Packet) -> None:
        if packet.id != 1:
            packet.retain()
        if packet.id == 3:
            packet.accept()
        kept.append(packet)

    kernel = FakeKernel()
    queue = bound(kernel, callback)
    kernel.feed(3, payload=UDP4)
    queue.run(block=False)
    lost, retained, decided = kept
    with pytest.raises(RuntimeError) as caught:
        lost.get_payload()
    assert str(caught.value) == (
        "Payload data is no longer available. You must call retain() within the user_callback in order to copy the "
        "payload if you need to expect it after your callback has returned."
    )
    assert str(lost) == "43 byte packet, contents unretained"
    assert lost.get_payload_len() == 43
    assert retained.get_payload() == decided.get_payload() == UDP4
    assert str(retained) == "UDP packet, 43 bytes"
    lost.set_payload(testing.udp(b"new"))
    assert lost.get_payload() == testing.udp(b"new")
    lost.accept()
    retained.drop()
    assert [(packet_id, word) for packet_id, word, _ in kernel.judged] == [(3, 1), (1, 1), (2, 0)]


def test_setting_payload_and_mark() -> None:
    new = testing.udp(b"other")

    def callback(packet: Packet) -> None:
        assert packet.get_mark() == packet.mark == 7
        packet.set_mark(8)
        packet.set_payload(new)
        assert packet.get_payload() == new
        assert (packet.get_mark(), packet.mark, packet.get_payload_len()) == (8, 7, 43)
        packet.accept() if packet.id == 1 else packet.repeat()

    kernel = run(callback, UDP4, UDP4, MARK=7)
    changes = {NFQA.MARK: 8, NFQA.PAYLOAD: new}
    assert kernel.judged == [(1, Verdict.ACCEPT, changes), (2, Verdict.REPEAT, changes)]


def test_no_bytes_change_nothing() -> None:
    def callback(packet: Packet) -> None:
        packet.set_payload(testing.udp(b"x"))
        packet.set_payload(b"")
        assert packet.get_payload() == UDP4
        packet.accept()

    assert run(callback).judged == [(1, Verdict.ACCEPT, {})]


BAD_NUMBERS: list[tuple[Any, type[Exception]]] = [
    (-1, OverflowError),
    (-1.0, OverflowError),
    (1 << 32, OverflowError),
    (4294967296.0, OverflowError),
    (1 << 80, OverflowError),
    (float("inf"), OverflowError),
    (float("nan"), ValueError),
    (None, TypeError),
    ("1", TypeError),
    (b"1", TypeError),
    (1j, TypeError),
]


@pytest.mark.parametrize(
    ("value", "mark"), [(1.5, 1), (-0.5, 0), (4294967295.9, 0xFFFFFFFF), (Decimal("7.9"), 7), (True, 1)]
)
def test_marks_are_truncated(value: Any, mark: int) -> None:
    def callback(packet: Packet) -> None:
        packet.set_mark(value)
        assert packet.get_mark() == mark
        packet.accept()

    assert run(callback).judged == [(1, Verdict.ACCEPT, {NFQA.MARK: mark})]


def test_bad_payloads_and_marks() -> None:
    def callback(packet: Packet) -> None:
        for wrong in ("text", bytearray(30), 5):
            with pytest.raises(TypeError, match="expected bytes"):
                packet.set_payload(wrong)  # type: ignore[arg-type]
        for value, error in BAD_NUMBERS:
            with pytest.raises(error):
                packet.set_mark(value)
        packet.set_payload(b"short")
        with pytest.raises(nfnet.ArgumentError, match="20 to 65,531"):
            packet.accept()
        packet.set_payload(b"")
        packet.drop()

    assert run(callback).judged == [(1, Verdict.DROP, {})]


@pytest.mark.parametrize("verdict", ["accept", "drop", "repeat"])
def test_second_verdict(verdict: str) -> None:
    def callback(packet: Packet) -> None:
        packet.drop()
        packet.set_mark(1)
        with pytest.raises(RuntimeError) as caught:
            getattr(packet, verdict)()
        assert str(caught.value) == "Verdict already given for this packet"

    assert run(callback).judged == [(1, Verdict.DROP, {})]


@pytest.mark.parametrize("verdict", ["accept", "drop", "repeat"])
def test_verdict_after_unbind(verdict: str) -> None:
    kept: list[Packet] = []
    run(kept.append)
    with pytest.raises(RuntimeError) as caught:
        getattr(kept[0], verdict)()
    assert str(caught.value) == "Parent queue has already been unbound"


# --- binding


def test_second_bind() -> None:
    queue = bound(FakeKernel(), print)
    with pytest.raises(RuntimeError) as caught:
        queue.bind(2, print)
    assert str(caught.value) == "A queue is already bound; use unbind() first"


def test_queue_that_cannot_be_had() -> None:
    kernel = FakeKernel()
    kernel.refuse_config = errno.EBUSY
    queue = NetfilterQueue(transport=kernel)
    with pytest.raises(OSError, match=r"^Failed to create queue 1\.$") as caught:
        queue.bind(1, print)
    assert caught.value.errno == errno.EBUSY
    assert isinstance(caught.value.__cause__, nfnet.KernelError), "the library's own words are there too"
    kernel.refuse_config = 0
    queue.bind(1, print)  # it is still usable


@pytest.mark.parametrize(
    ("wrong", "error", "text"),
    [
        ({"queue_num": 70000}, ValueError, "queue number is 70000"),
        ({"queue_num": -1}, ValueError, "queue number is -1"),
        ({"mode": 3}, OSError, "Failed to set packet copy mode."),
        ({"mode": 256}, OverflowError, "u_int8_t"),
        ({"queue_num": 1 << 31}, OverflowError, "int"),
    ],
)
def test_arguments_that_cannot_be(wrong: dict[str, Any], error: type[Exception], text: str) -> None:
    kernel = FakeKernel()
    queue = NetfilterQueue(transport=kernel)
    with pytest.raises(error, match=text):
        queue.bind(**{"queue_num": 1, "user_callback": print, **wrong})
    queue.bind(1, print)  # it is still usable


@pytest.mark.parametrize("name", ["queue_num", "max_len", "mode", "range", "sock_len"])
@pytest.mark.parametrize(("value", "error"), BAD_NUMBERS)
def test_numbers_that_cannot_be(name: str, value: Any, error: type[Exception]) -> None:
    if name == "queue_num" and isinstance(value, (int, float)) and value < 0:
        error = nfnet.ArgumentError  # the original makes something else of it
    queue = NetfilterQueue(transport=FakeKernel())
    with pytest.raises(error):
        queue.bind(**{"queue_num": 1, "user_callback": print, name: value})
    queue.bind(1, print)  # it is still usable


def test_numbers_of_bind_are_truncated() -> None:
    kernel = FakeKernel()
    queue = NetfilterQueue(transport=kernel, af=2.5, sockfd=-1.5)  # type: ignore[arg-type]
    queue.bind(1.9, print, 7.9, 1.9, 99.9, 50000.9)  # type: ignore[arg-type]
    (config,) = kernel.config
    assert config[NFQA_CFG.QUEUE_MAXLEN] == 7
    assert config[NFQA_CFG.PARAMS].copy_mode == 1
    queue.unbind()
    queue.bind(1, print, mode=2.0, range=99.9)  # type: ignore[arg-type]
    assert kernel.config[-1][NFQA_CFG.PARAMS].copy_range == 99


@pytest.mark.parametrize("name", ["af", "sockfd"])
@pytest.mark.parametrize(("value", "error"), [(1 << 31, OverflowError), ("1", TypeError), (None, TypeError)])
def test_numbers_that_cannot_be_said_to_the_constructor(name: str, value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        NetfilterQueue(transport=FakeKernel(), **{name: value})


def test_numbers_are_looked_at_first() -> None:
    queue = bound(FakeKernel(), print)
    with pytest.raises(OverflowError):
        queue.bind(1, print, max_len=-1)


def test_callback_is_not_looked_at_before_it_is_called() -> None:
    kernel = FakeKernel()
    queue = bound(kernel, None)  # type: ignore[arg-type]
    kernel.feed()
    with pytest.raises(TypeError, match="not callable"):
        queue.run(block=False)


def test_unbind_twice_and_bind_again() -> None:
    kernel = FakeKernel()
    seen: list[int] = []
    queue = NetfilterQueue(transport=kernel)
    queue.unbind()
    for _ in range(2):
        queue.bind(1, lambda p: seen.append(p.id))
        kernel.feed()
        queue.unbind()  # data for this binding must not reach the next one
        queue.unbind()
    queue.bind(1, lambda p: seen.append(p.id))
    kernel.feed()
    queue.run(block=False)
    assert seen == [3]


def test_collected_objects_unbind() -> None:
    kernel = FakeKernel()
    queue = bound(kernel, print)
    seen = weakref.ref(queue)
    del queue
    gc.collect()
    assert seen() is None
    assert kernel.config[-1][NFQA_CFG.CMD].command == nfnet.protocol.nfqnl.Command.UNBIND
    assert kernel.closed


def test_packets_can_be_referred_to_weakly() -> None:
    alive: list[bool] = []
    run(lambda p: alive.append(weakref.ref(p)() is p))
    assert alive
    assert all(alive)


# --- running


def test_run_without_blocking_drains_and_returns() -> None:
    kernel = FakeKernel()
    seen: list[int] = []
    queue = bound(kernel, lambda p: (seen.append(p.id), p.accept()))
    assert queue.run(block=False) is None
    kernel.feed(1500)
    assert queue.run(False) is None
    assert seen == list(range(1, 1501))
    assert not kernel.queued


def test_run_of_an_unbound_queue_returns() -> None:
    queue = NetfilterQueue(transport=FakeKernel())
    assert queue.run(block=False) is None
    assert queue.run() is None  # and does not wait


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, StopIteration])
def test_what_the_callback_raises_comes_out(error: type[BaseException]) -> None:
    kernel = FakeKernel()
    seen: list[Packet] = []

    def callback(packet: Packet) -> None:
        seen.append(packet)
        if packet.id == 2:
            raise error("test")
        packet.accept()

    queue = bound(kernel, callback)
    kernel.feed(4, payload=UDP4)
    with pytest.raises(error, match="test"):
        queue.run(block=False)
    assert list(kernel.queued) == [2, 3, 4]
    with pytest.raises(RuntimeError, match="no longer available"):
        seen[1].get_payload()
    assert select.select([queue.get_fd()], [], [], 0)[0], "two were received and not handed out yet"
    queue.run(block=False)
    assert list(kernel.queued) == [2]
    seen[1].accept()
    assert not kernel.queued
    assert not select.select([queue.get_fd()], [], [], 0)[0]


def test_unbind_within_the_callback_ends_run() -> None:
    kernel = FakeKernel()
    queue = NetfilterQueue(transport=kernel)
    seen: list[int] = []

    def callback(packet: Packet) -> None:
        seen.append(packet.id)
        packet.accept()
        queue.unbind()

    queue.bind(1, callback)
    kernel.feed(3)
    queue.run()
    assert seen == [1]
    assert list(kernel.queued) == [2, 3], "which the kernel drops"


def test_unbind_from_another_thread_ends_run() -> None:
    kernel = FakeKernel()
    started = threading.Event()
    queue = bound(kernel, lambda p: started.set())
    thread = threading.Thread(target=queue.run)
    thread.start()
    kernel.feed()
    assert started.wait(60)
    queue.unbind()
    thread.join(60)
    assert not thread.is_alive()


def test_run_goes_on_with_what_the_callback_binds() -> None:
    kernel = FakeKernel()
    queue = NetfilterQueue(transport=kernel)
    seen: list[tuple[str, int]] = []

    def second(packet: Packet) -> None:
        seen.append(("second", packet.id))
        queue.unbind()

    def first(packet: Packet) -> None:
        seen.append(("first", packet.id))
        queue.unbind()
        queue.bind(1, second)
        kernel.feed()

    queue.bind(1, first)
    kernel.feed()
    queue.run()
    assert seen == [("first", 1), ("second", 2)]


def test_packets_keep_their_queue_bound() -> None:
    def packets() -> list[Packet]:
        kept: list[Packet] = []
        queue = bound(kernel, kept.append)
        queue.run(block=False)
        return kept

    kernel = FakeKernel()
    kernel.feed(2)
    kept = packets()
    gc.collect()
    kept[0].accept()
    assert list(kernel.queued) == [2]
    kept.clear()
    gc.collect()
    assert kernel.closed


class Canned:
    """Objects that a script can pass to run_socket."""

    def __init__(self, *items: bytes | BaseException) -> None:
        self.items = list(items)

    def recv(self, size: int) -> bytes:
        assert size > 65535 + 80, "no packet may be cut"
        item = self.items.pop(0)
        if isinstance(item, BaseException):
            raise item
        return item


def messages(*ids: int) -> list[bytes]:
    return [testing.packet_message(number, UDP4) for number in ids]


def test_run_socket_takes_any_object_with_recv() -> None:
    kernel = FakeKernel()
    kernel.queued = dict.fromkeys((1, 2, 3))
    kernel.deliver(messages(9)[0])  # is not read: the object should have provided it
    seen: list[int] = []
    queue = bound(kernel, lambda p: (seen.append(p.id), p.accept()))
    lost = OSError(errno.ENOBUFS, "lost some")
    none = BlockingIOError(errno.EAGAIN, "none")
    canned = Canned(
        *messages(1), lost, OSError(errno.ENOBUFS), *messages(2), none, OSError(errno.EAGAIN), *messages(3), b""
    )
    assert queue.run_socket(canned) is None
    assert seen == [1, 2]
    assert queue.run_socket(canned) is None
    assert queue.run_socket(canned) is None
    assert seen == [1, 2, 3]
    assert not kernel.queued


@pytest.mark.parametrize("error", [TimeoutError("timed out"), OSError(errno.EBADF, "closed"), KeyboardInterrupt()])
def test_run_socket_lets_other_errors_through(error: BaseException) -> None:
    queue = bound(FakeKernel(), print)
    with pytest.raises(type(error)) as caught:
        queue.run_socket(Canned(error))
    assert caught.value is error


def test_run_socket_refuses_what_is_no_packet() -> None:
    seen: list[int] = []
    queue = bound(FakeKernel(), lambda p: seen.append(p.id))
    with pytest.raises(nfnet.DecodeError):
        queue.run_socket(Canned(b"nonsense, and plenty of it"))
    queue.run_socket(Canned(*messages(1), b""))
    assert seen == [1]


# --- version 0.2


class Handler(QueueHandler):
    # As in scripts of the time: no call of the other __init__.
    def __init__(self, seen: list[str]) -> None:
        self.seen = seen

    def handle(self, packet: Packet) -> None:
        self.seen.append(str(packet))
        packet.set_mark(3)
        packet.drop() if packet.get_payload_len() < 43 else packet.accept()


@pytest.fixture
def fake_socket(mocker: Any) -> FakeKernel:
    kernel = FakeKernel(ends=True)
    mocker.patch.object(netfilterqueue, "_open", return_value=kernel)
    return kernel


def test_queue_handler(fake_socket: FakeKernel) -> None:
    seen: list[str] = []
    handler = Handler(seen)
    handler.bind(1, 20, COPY_PACKET, 100)
    assert fake_socket.config[-1][NFQA_CFG.PARAMS]["copy_range"] == 100
    fake_socket.feed(1, payload=UDP4)
    fake_socket.feed(1, payload=testing.udp())
    handler.run()
    handler.unbind()
    handler.unbind()
    assert seen == ["UDP packet, 43 bytes", "UDP packet, 28 bytes"]
    assert sorted(fake_socket.judged) == [(1, Verdict.ACCEPT, {NFQA.MARK: 3}), (2, Verdict.DROP, {})]


def test_queue_handler_accepts_what_no_subclass_decides(fake_socket: FakeKernel) -> None:
    handler = QueueHandler(af=socket.AF_INET6)
    handler.bind(1)
    fake_socket.feed()
    handler.run()
    assert fake_socket.judged == [(1, Verdict.ACCEPT, {})]


# --- the socket


def test_bad_sockets() -> None:
    with pytest.raises(OSError, match=r"\[Errno 9\] dup2 failed"):
        NetfilterQueue(sockfd=1000)
    with open(os.devnull) as file, pytest.raises(OSError, match="Failed to open NFQueue") as caught:
        NetfilterQueue(sockfd=file.fileno())
    assert caught.value.errno == errno.ENOTSOCK
    with socket.socket() as sock, pytest.raises(OSError, match="Failed to open NFQueue"):
        NetfilterQueue(sockfd=sock.fileno())
    with pytest.raises(TypeError):
        NetfilterQueue(2)  # type: ignore[misc]


def test_subclass_with_an_init_of_its_own(fake_socket: FakeKernel) -> None:
    class Mine(NetfilterQueue):
        def __init__(self) -> None:
            self.count = 0

    queue = Mine()
    queue.bind(1, lambda p: p.drop())
    fake_socket.feed()
    queue.run()
    assert fake_socket.judged == [(1, Verdict.DROP, {})]


# --- recordings


def test_a_recording_replays_to_the_same_verdicts() -> None:
    replay = nfnet.replay(FIXTURES / "queue-forward-ipv4.pcapng")
    queue = NetfilterQueue(transport=replay)
    seen: list[str] = []

    def callback(packet: Packet) -> None:
        seen.append(str(packet))
        packet.accept()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        queue.bind(1, callback)
    queue.run()
    assert seen[0] == "UDP packet, 29 bytes"
    assert [decided.verdict for decided in replay.verdicts.values()] == [Verdict.ACCEPT] * len(seen)
    assert set(replay.verdicts) == set(replay.recorded)


def test_unbinding_wakes_a_waiting_thread_after_it_has_read_what_is_left() -> None:
    """In another order the thread waits forever: the socket has no timeout, and the waking answer can be read first."""
    events: list[str] = []

    class Lender(FakeKernel):
        def receive(self, into: list[bytes], limit: int) -> bool:
            events.append("read")
            return super().receive(into, limit)

        def nudge(self) -> None:
            events.append("nudge")

    borrowed = BorrowedTransport(Lender())
    borrowed.blocked = True
    borrowed.close()
    assert events == ["read", "nudge"]
