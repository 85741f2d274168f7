"""Metrics over HTTP: only for this machine by default, and undisturbed by slow clients."""

from __future__ import annotations

import asyncio
import contextlib
import resource
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

SOON = 60.0


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


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Dummy")}


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
        assert build().parse_args([command, "1", "--metrics", "1"]).metrics == ("127.0.0.1", 1)


def test_what_did_not_fit_into_the_receive_buffer_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only root can read the drops of the queue; every process can read those of its own socket."""
    status = nfnet.SocketStatus(rcvbuf=425984, unread=0, dropped=7)
    monkeypatch.setattr(FakeKernel, "socket_status", lambda self: status)
    with served() as port:
        text = read("127.0.0.1", port)
    assert 'nfnet_queue_kernel_dropped_total{queue="1",reason="receive buffer full"} 7.0' in text
    assert "queue full" not in text


def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with served(address="::1") as port:
        assert "nfnet_queue_pending" in read("[::1]", port)


def answer_to(request: bytes, port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), SOON) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_slow_clients_are_few_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_PATIENCE", 0.3)
    before = threads()
    with served() as port:
        clients = [socket.create_connection(("127.0.0.1", port), SOON) for _ in range(metrics._MOST_CLIENTS + 50)]
        try:
            for client in clients:
                with contextlib.suppress(OSError):
                    client.sendall(b"GET /metrics HT")
            assert len(threads() - before) == 1
            for client in clients:  # all are hung up on
                with contextlib.suppress(ConnectionResetError):
                    assert client.recv(1) == b""
            assert "nfnet_queue_pending" in read("127.0.0.1", port)
        finally:
            for client in clients:
                client.close()
    assert threads() <= before


@pytest.mark.parametrize("request_", [b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\n\r\n"], ids=["half", "whole"])
def test_clients_that_reconnect_constantly_keep_nobody_out(request_: bytes) -> None:
    stopped = threading.Event()
    connected = threading.Semaphore(0)

    def reconnect(port: int) -> None:
        while not stopped.is_set():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), SOON) as client:
                client.sendall(request_)
                connected.release()
                client.recv(65536)

    with served() as port:
        clients = [threading.Thread(target=reconnect, args=(port,)) for _ in range(30)]
        for client in clients:
            client.start()
        try:
            for _ in clients:
                assert connected.acquire(timeout=SOON)
            for _ in range(20):
                assert "nfnet_queue_pending" in read("127.0.0.1", port)
        finally:
            stopped.set()
    for client in clients:
        client.join(SOON)
        assert not client.is_alive()


def test_a_newer_client_ends_the_oldest_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "_MOST_CLIENTS", 3)
    monkeypatch.setattr(metrics, "_PATIENCE", SOON)
    with served() as port, contextlib.ExitStack() as stack:
        clients = []
        for _ in range(4):
            clients.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), SOON)))
        assert clients[0].recv(1) == b""
        for client in clients[1:]:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert client.recv(15) == b"HTTP/1.0 200 OK"


@pytest.mark.parametrize(
    "accept",
    ["text/plain;version=x", "application/openmetrics-text;version=1.x", "application/openmetrics-text", "\xff"],
)
def test_no_accept_header_does_harm(
    accept: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with served() as port:
        head, _, body = answer_to(
            f"GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n".encode("latin-1"), port
        ).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b"nfnet_queue_pending" in body
    assert (capfd.readouterr(), caplog.messages) == (("", ""), [])


def test_requests_that_are_none() -> None:
    with served() as port:
        assert answer_to(b"POST /metrics HTTP/1.1\r\nHost: x\r\n\r\n", port).startswith(b"HTTP/1.0 405 ")
        with contextlib.suppress(ConnectionError):  # it does not read on
            assert answer_to(b"GET " + bytes(1_000_000), port) == b""
        assert "nfnet_queue_pending" in read("127.0.0.1", port)


def test_metrics_that_cannot_be_collected(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with served() as port:
        with monkeypatch.context() as patch:
            patch.setattr(nfnet.Queue, "stats", lambda queue: queue.no_such_attribute)
            assert answer_to(b"GET /metrics HTTP/1.1\r\n\r\n", port).startswith(b"HTTP/1.0 500 ")
        assert "nfnet_queue_pending" in read("127.0.0.1", port)
    assert "no_such_attribute" in caplog.text


def test_no_descriptors_left(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that cannot be accepted now is answered later, and the log is not filled meanwhile."""
    monkeypatch.setattr(metrics, "_PAUSE", 0.1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with served() as port, socket.socket() as client:
        client.settimeout(SOON)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            client.connect(("127.0.0.1", port))
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert wait_for(lambda: len(caplog.messages) >= 2)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert client.recv(15) == b"HTTP/1.0 200 OK"
        assert len(caplog.messages) < 100
        assert all("a client cannot be accepted" in message for message in caplog.messages)


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()

    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="new thread"):
            metrics.serve(port, nfnet.Queue(1))
    end = metrics.serve(port, nfnet.Queue(1))  # the port is free
    end()
    end()


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
