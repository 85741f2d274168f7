"""Sockets: timeouts, blocking, and buffer sizes."""

from __future__ import annotations

import gc
import logging as logging_module
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest

import nfnet
from nfnet import NetlinkSocket, doctor, inet, netns
from nfnet.compat.netfilterqueue import NetfilterQueue, Packet
from nfnet.protocol.nfnetlink import NETLINK_NETFILTER

from .conftest import TIMEOUT, Net, cannot_run, collect, in_child, readable
from .traffic import Way, drained, logging, queueing

# --- socket.setdefaulttimeout


@pytest.fixture(params=[0.0, 0.001, 1.0])
def default_timeout(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs give all their sockets a timeout like this, and mean those to servers."""
    socket.setdefaulttimeout(request.param)
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("default_timeout")
def test_a_default_timeout_is_not_for_queues(net: Net) -> None:
    way = Way(net)
    with queueing(net), nfnet.Queue(1, timestamps=True, netns=net.hosts["router"]) as queue:
        way.send(b"hello")
        (packet,) = collect(queue, 1)
        packet.accept()
        assert way.received(1) == [b"hello"]
        assert os.get_blocking(queue._bound().transport.fileno())


@pytest.mark.usefixtures("default_timeout")
def test_a_default_timeout_is_not_for_logs(net: Net) -> None:
    way = Way(net)
    with logging(net), nfnet.Log(5, threshold=1, netns=net.hosts["router"]) as log:
        way.send(b"hello")
        assert inet.get_data(next(iter(log)).payload) == b"hello"


@pytest.mark.usefixtures("default_timeout")
def test_a_default_timeout_is_not_for_scripts_of_others(net: Net) -> None:
    way = Way(net)
    seen: list[bytes] = []
    queue = way.bound(lambda packet: (seen.append(packet.get_payload()[28:]), packet.accept()), sock_len=50_000)
    with queueing(net), logging(net), way.opened() as log:
        assert os.get_blocking(queue.get_fd())
        way.send(b"hello")
        drained(queue, lambda: seen)
        assert seen == way.received(1) == [b"hello"]
        data = log.next()
        assert data is not None
        assert (data.payload or b"")[28:] == b"hello"
    queue.unbind()


@pytest.mark.usefixtures("default_timeout")
@pytest.mark.parametrize("blocking", [True, False])
def test_whether_a_socket_of_the_script_blocks_is_left_alone(net: Net, blocking: bool) -> None:
    with net.at("router", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)) as theirs:
        os.set_blocking(theirs.fileno(), blocking)
        queue = NetfilterQueue(sockfd=theirs.fileno())
        queue.bind(1, print, sock_len=50_000)
        queue.unbind()
        assert os.get_blocking(theirs.fileno()) == blocking


@pytest.mark.usefixtures("default_timeout")
def test_a_default_timeout_does_not_disturb_the_doctor(net: Net) -> None:
    findings = net.at("router", lambda: list(doctor.examine()))
    assert not [finding for finding in findings if "opening" in finding.what or "configuring" in finding.what]


# --- sockets that do not block, or not for ever: `run` of NetfilterQueue is what shows it


def make_non_blocking(queue: NetfilterQueue) -> None:
    os.set_blocking(queue.get_fd(), False)


def copy_with(timeout: float) -> Callable[[NetfilterQueue], None]:
    def change(queue: NetfilterQueue) -> None:
        with socket.fromfd(queue.get_fd(), socket.AF_NETLINK, socket.SOCK_RAW) as copy:
            copy.settimeout(timeout)

    return change


def limit_waiting(seconds: int, microseconds: int) -> Callable[[NetfilterQueue], None]:
    def change(queue: NetfilterQueue) -> None:
        with socket.socket(fileno=os.dup(queue.get_fd())) as copy:
            copy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", seconds, microseconds))

    return change


CHANGES = {
    "os.set_blocking": make_non_blocking,
    "setblocking": copy_with(0.0),
    "settimeout": copy_with(100.0),  # Python makes the socket itself non-blocking then, too
    "SO_RCVTIMEO": limit_waiting(0, 100_000),
}


@pytest.fixture
def bounded() -> Iterator[None]:
    """Fails, rather than waits for ever."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("it went on waiting"))
    signal.alarm(int(TIMEOUT))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("bounded")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_run_returns_when_recv_would(net: Net, change: Callable[[NetfilterQueue], None]) -> None:
    way = Way(net)
    seen: list[bytes] = []
    queue = way.bound(lambda packet: (seen.append(packet.get_payload()[28:]), packet.accept()), sock_len=50_000)
    with queueing(net):
        change(queue)
        queue.run()
        assert seen == []
        way.send(b"one", b"two")
        while len(seen) < 2:
            readable(queue.get_fd(), TIMEOUT)
            queue.run()
        assert way.received(2) == seen == [b"one", b"two"]
    queue.unbind()


@pytest.mark.usefixtures("bounded")
def test_run_returns_when_the_callback_makes_the_socket_non_blocking(net: Net) -> None:
    way = Way(net)

    def callback(packet: Packet) -> None:
        packet.accept()
        make_non_blocking(queue)

    queue = way.bound(callback, sock_len=50_000)
    with queueing(net):
        way.send(b"one")
        queue.run()
        assert way.received(1) == [b"one"]
    queue.unbind()


@pytest.mark.usefixtures("bounded")
def test_the_time_of_a_timeout_begins_anew_with_each_packet(net: Net) -> None:
    """With SO_RCVTIMEO `run` returns when no packet has arrived for that time, and not before."""
    way = Way(net)
    began = []
    sent = iter([b"two", b"three", b"four"])
    timers: list[threading.Timer] = []

    def callback(packet: Packet) -> None:
        packet.accept()
        began.append(time.monotonic())
        for data in islice(sent, 1):
            timers.append(threading.Timer(0.2, way.send, [data]))
            timers[-1].start()

    queue = way.bound(callback, sock_len=50_000)
    limit_waiting(4, 0)(queue)
    with queueing(net):
        way.send(b"one")
        queue.run()
        assert time.monotonic() - began[-1] >= 4
        assert len(began) == 4
    for timer in timers:
        timer.join()
    queue.unbind()


# --- a receive buffer that is smaller than what was asked for


def test_a_receive_buffer_that_is_cut(privileges: str | None) -> None:
    """Outside the initial user namespace. The warning is logged once, not for every queue."""
    if privileges:
        cannot_run(privileges)
    most = 2 * int(Path("/proc/sys/net/core/rmem_max").read_text())

    def child() -> None:
        netns.become_root()
        netns.unshare(netns.CLONE_NEWNET)
        messages: list[str] = []
        handler = logging_module.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
        logging_module.getLogger("nfnet").addHandler(handler)
        with nfnet.Queue(1, rcvbuf=most), nfnet.Log(5, rcvbuf=2304):
            assert messages == []
        for _ in range(2):
            with nfnet.Queue(1, rcvbuf=1 << 30) as queue, nfnet.Log(5, rcvbuf=1 << 30):
                assert queue.rcvbuf == most
                (message,) = messages
        assert message.startswith(f"the receive buffer has {most} bytes instead of {1 << 30}, which")
        assert message.endswith(f"takes net.core.rmem_max={1 << 29}")
        NetlinkSocket(rcvbuf=1 << 29).close()  # as the doctor does, which prints another message
        assert len(messages) == 1

    assert in_child(child) == 0


def test_a_queue_has_one_descriptor_until_somebody_asks_for_fileno(net: Net) -> None:
    way = Way(net)

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()  # objects left by other tests would be closed meanwhile
    with queueing(net):
        before = count()
        with nfnet.Queue(1, netns=net.hosts["router"]) as queue:
            way.send(b"one", b"two")
            for packet in queue:
                packet.accept()
                if inet.get_data(packet.payload) == b"two":
                    break
            assert way.received(2) == [b"one", b"two"]
            assert count() == before + 1
            queue.fileno()
            assert count() == before + 3 + (not hasattr(os, "eventfd"))  # else a pipe
