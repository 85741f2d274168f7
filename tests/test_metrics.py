"""The metrics over HTTP: on this machine alone, and no client can do harm by being slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

import nfnet
from nfnet.cli import build
from nfnet.testing import FakeKernel, FedQueue

pytest.importorskip("prometheus_client")
from prometheus_client import REGISTRY

from nfnet import metrics

SOON = 10.0


def free_port(family: int = socket.AF_INET) -> int:
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(("localhost" if family == socket.AF_INET else "::1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def served(**options: str) -> Iterator[int]:
    fed = FedQueue()
    port = free_port(socket.AF_INET6 if options else socket.AF_INET)
    end = metrics.serve(port, fed.queue, **options)  # type: ignore[arg-type]
    try:
        yield port
    finally:
        end()
        fed.close()


def read(host: str, port: int) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=SOON) as answer:
        return str(answer.read().decode())


def threads() -> int:
    return sum(not thread.name.startswith("Dummy") for thread in threading.enumerate())


def wait_for(condition: object) -> bool:
    deadline = time.monotonic() + SOON
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_nothing_but_this_machine_by_default() -> None:
    with served() as port:
        assert 'nfnet_queue_packets_total{event="received",queue="1"} 0.0' in read("127.0.0.1", port)
        for address in ("127.0.0.2", "::1"):
            with pytest.raises(OSError):  # noqa: PT011 - refused, or no such address here
                socket.create_connection((address, port), SOON)
    for command in ("queue", "log"):
        assert build().parse_args([command, "1", "--metrics", "1"]).metrics_address == "127.0.0.1"


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with served(address="::1") as port:
        assert "nfnet_queue_pending" in read("[::1]", port)


def test_slow_clients_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE", 0.3)
    before = threads()
    with served() as port:
        clients = [socket.create_connection(("127.0.0.1", port), SOON) for _ in range(50)]
        try:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(b"GET /metrics HT")
            assert threads() <= before + 1 + 2 * metrics._MOST_CLIENTS
            for client in clients:  # all are hung up on
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
            assert wait_for(lambda: threads() <= before + 1)
            assert "nfnet_queue_pending" in read("127.0.0.1", port)
        finally:
            for client in clients:
                client.close()
    assert wait_for(lambda: threads() <= before)


@pytest.mark.parametrize("which", [threading.Thread, threading.Timer])
def test_threads_that_cannot_start_do_not_use_it_up(
    which: type[threading.Thread], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if type(thread) is which:
            raise RuntimeError("can't start new thread")
        start(thread)

    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", lambda details: said.append(details.exc_value))
    with served() as port:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            for _ in range(metrics._MOST_CLIENTS):
                with pytest.raises(OSError):  # noqa: PT011 - hung up on, in one way or another
                    read("127.0.0.1", port)

        def answers() -> bool:  # not at once: a client sees that it was hung up on before the next may come
            with contextlib.suppress(OSError):
                return "nfnet_queue_pending" in read("127.0.0.1", port)
            return False

        assert wait_for(answers)
    assert "can't start new thread" in capsys.readouterr().err + str(said), "not in silence"


def test_the_queue_goes_on_under_slow_clients() -> None:
    fed = FedQueue()
    port = free_port()
    end = metrics.serve(port, fed.queue)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(socket.create_connection(("127.0.0.1", port), SOON)).sendall(b"GET ")
            fed.feed()
            fed.run(nfnet.Packet.accept)
            assert fed.queue.counters.accepted == 1
    finally:
        end()
        fed.close()


def test_queues_and_logs_may_be_registered_before_they_are_open() -> None:
    fed = FedQueue()
    collector = metrics.Collector(nfnet.Queue(2), nfnet.Log(5), fed.queue)
    REGISTRY.register(collector)  # which collects at once, to know the names
    try:
        assert REGISTRY.get_sample_value("nfnet_queue_pending", {"queue": "1"}) == 0.0
        assert REGISTRY.get_sample_value("nfnet_queue_pending", {"queue": "2"}) is None
        fed.close()
        assert REGISTRY.get_sample_value("nfnet_queue_pending", {"queue": "1"}) == 0.0, "it was open"
        with pytest.raises(ValueError, match="Duplicated"):
            REGISTRY.register(metrics.Collector(nfnet.Queue(3)))
    finally:
        REGISTRY.unregister(collector)
        fed.close()


def test_queues_and_logs_of_asyncio_have_metrics() -> None:
    kernel = FakeKernel(ends=True)

    async def main() -> list[str]:
        async with nfnet.AsyncQueue(1, transport=kernel) as queue:
            kernel.feed(2)
            await queue.run(lambda packet: packet.accept())
            found = metrics.Collector(queue, nfnet.AsyncLog(5)).collect()
            return [str(sample.value) for family in found for sample in family.samples if "accepted" in str(sample)]

    assert asyncio.run(main()) == ["2"]
