"""Several queues with a process each, on the real kernel."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import pytest

import nfnet
from nfnet import Queue, Workers, inet, rules
from nfnet.workers import _GIVE_UP

from .conftest import ADDRESS, TIMEOUT, Net, wait_for
from .programs import is_bound, running

PORT = 7000
V4 = socket.AF_INET


def send(net: Net, *data: bytes) -> None:
    """Send from so many different addresses that both queues get packets."""
    with net.open_socket("client") as sock:
        for item in data:
            sock.sendto(item, (ADDRESS["server", V4], PORT))


def all_bound(net: Net, *numbers: int) -> bool:
    return all(is_bound(net, queue=number) for number in numbers)


@pytest.mark.parametrize("processes", [None, 1], ids=["a process each", "one process"])
def test_workers_share_the_packets(net: Net, processes: int | None) -> None:
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)

    def handler(packet: nfnet.Packet) -> None:
        data = inet.get_data(packet.payload)
        packet.accept(payload=packet.rewrite(data=f"{data.decode()} {os.getpid()}".encode()))  # type: ignore[union-attr]

    # One rule for each queue, so that it is no matter of luck.
    with (
        rules.queue(3, hook="forward", protocol="udp", source_port=5003, netns=here),
        rules.queue(4, hook="forward", protocol="udp", source_port=5004, netns=here),
        Workers(handler, range(3, 5), processes, netns=here) as workers,
    ):
        thread = threading.Thread(target=workers.wait)
        thread.start()
        assert wait_for(lambda: all_bound(net, 3, 4))
        seen = set()
        for port in (5003, 5004):
            with net.open_socket("client") as sock:
                sock.bind(("0.0.0.0", port))
                for _ in range(10):
                    sock.sendto(b"x", (ADDRESS["server", V4], PORT))
                    seen.add(receiver.recv(100))
        assert len(seen) == (2 if processes is None else 1)
        assert f"x {os.getpid()}".encode() not in seen
        assert wait_for(lambda: workers.counters.accepted == 20)
        workers.stop()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert (workers.counters.received, workers.counters.pending, workers.restarts) == (20, 0, 0)
    assert not all_bound(net, 3)
    workers.close()


def test_a_worker_that_dies_is_replaced(net: Net) -> None:
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)

    def handler(packet: nfnet.Packet) -> None:
        data = inet.get_data(packet.payload)
        if data == b"raise":
            packet.drop()
            raise ValueError(data)
        if data == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        packet.accept()

    rule = rules.queue(3, hook="forward", protocol="udp", netns=here)
    with rule, Workers(handler, [3], netns=here) as workers:
        thread = threading.Thread(target=workers.wait)
        thread.start()
        for number, data in enumerate((b"raise", b"die")):
            assert wait_for(lambda: all_bound(net, 3))
            send(net, data)
            assert wait_for(lambda number=number: workers.restarts == number + 1)
        assert wait_for(lambda: all_bound(net, 3))
        send(net, b"passes")
        assert receiver.recv(100) == b"passes"
        workers.stop()
        thread.join(TIMEOUT)
    assert (workers.counters.dropped, workers.counters.accepted) == (1, 1)


@pytest.mark.parametrize("how", ["raise", "kill"])
def test_packets_that_end_workers_do_not_end_the_queue(net: Net, how: str) -> None:
    """However soon packets arrive: a worker that got a packet counts as started."""
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)

    def handler(packet: nfnet.Packet) -> None:
        if inet.get_data(packet.payload) == b"passes":
            packet.accept()
        elif how == "raise":
            raise ValueError("a packet that the handler cannot take")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    failures: list[BaseException] = []

    def wait(workers: Workers) -> None:
        try:
            workers.wait()
        except BaseException as error:
            failures.append(error)

    rule = rules.queue(3, hook="forward", protocol="udp", netns=here)
    with rule, Workers(handler, [3], netns=here) as workers:
        thread = threading.Thread(target=wait, args=(workers,))
        thread.start()
        for number in range(2 * _GIVE_UP):
            assert wait_for(lambda: all_bound(net, 3) or failures)
            send(net, b"x")
            assert wait_for(lambda number=number: workers.restarts == number + 1 or failures)
        assert failures == []
        assert wait_for(lambda: all_bound(net, 3))
        send(net, b"passes")
        assert receiver.recv(100) == b"passes"
        workers.stop()
        thread.join(TIMEOUT)
        assert not thread.is_alive()
    assert failures == []


@pytest.mark.parametrize("quickly", [1.0, 0.0], ids=["at once", "after some time"])
def test_a_worker_that_cannot_begin(net: Net, quickly: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nfnet.workers._QUICKLY", quickly)
    here = net.hosts["router"]
    with Queue(3, netns=here), Workers(print, [3], netns=here) as workers:
        with pytest.raises(nfnet.NfnetError, match="the worker of queue 3 ended as soon as it began, 5 times in a row"):
            workers.wait()


def test_a_worker_that_ends_without_a_packet(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ending(Queue):
        def run(self, handler: object) -> None:
            raise ValueError("without a packet")

    monkeypatch.setattr("nfnet.workers.Queue", Ending)
    with Workers(print, [3], netns=net.hosts["router"]) as workers:
        with pytest.raises(nfnet.NfnetError, match=r"5 times in a row, with status 1"):
            workers.wait()


def test_workers_that_hang_end_together(
    net: Net, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    patience = 3.0
    monkeypatch.setattr("nfnet.workers._PATIENCE", patience)
    here = net.hosts["router"]
    numbers = range(3, 7)

    def hang(packet: nfnet.Packet) -> None:
        while True:
            signal.pause()

    with contextlib.ExitStack() as stack:
        for number in numbers:
            rule = rules.queue(number, hook="forward", protocol="udp", source_port=5000 + number, netns=here)
            stack.enter_context(rule)
        workers = stack.enter_context(Workers(hang, numbers, netns=here))
        assert wait_for(lambda: all_bound(net, *numbers))
        for number in numbers:
            with net.open_socket("client") as sock:
                sock.bind(("0.0.0.0", 5000 + number))
                sock.sendto(b"x", (ADDRESS["server", V4], PORT))
        assert wait_for(lambda: workers.counters.received == len(numbers))
        began = time.monotonic()
        workers.close()
        assert patience <= time.monotonic() - began < len(numbers) * patience
    assert len([message for message in caplog.messages if "was killed" in message]) == len(numbers)


def test_arguments() -> None:
    for wrong, text in (
        ({"queues": []}, "at least one"),
        ({"queues": [1, 1]}, "none of them twice"),
        ({"queues": [70000]}, "queue number"),
        ({"processes": 0}, "processes"),
        ({"processes": 5}, "processes"),
        ({"copy_range": 0}, "copy_range"),
    ):
        options: dict[str, Any] = wrong
        with pytest.raises(nfnet.ArgumentError, match=text):
            Workers(print, **options)
    with pytest.raises(TypeError, match="callable"):
        Workers(None)  # type: ignore[arg-type]


SCRIPT = """\
import nfnet
with nfnet.rules.queue(range(3, 5), hook="forward", protocol="udp"):
    counters = nfnet.run_workers(lambda packet: packet.accept(), queues=range(3, 5), rcvbuf=100_000)
print(counters.accepted, counters.pending)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_program_of_workers_ends_with_a_signal(net: Net, number: signal.Signals) -> None:
    receiver = net.receiver("server", V4, PORT)
    with running(net, [sys.executable, "-c", SCRIPT]) as process:
        assert wait_for(lambda: all_bound(net, 3, 4))
        send(net, b"one", b"two")
        assert [receiver.recv(100) for _ in range(2)] == [b"one", b"two"]
        process.send_signal(number)
        output, errors = process.communicate(timeout=TIMEOUT)
    assert (output, errors) == ("2 0\n", "")
    assert process.returncode == 0
    assert not is_bound(net, queue=3)


def test_workers_end_with_their_parent(net: Net) -> None:
    with running(net, [sys.executable, "-c", SCRIPT]) as process:
        assert wait_for(lambda: all_bound(net, 3, 4))
        process.kill()
        process.wait()
    assert wait_for(lambda: not is_bound(net, queue=3) and not is_bound(net, queue=4))
