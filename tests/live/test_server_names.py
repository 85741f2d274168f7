"""Blocking by server name on the kernel: Python's TLS clients and servers, and a ClientHello split at any place."""

from __future__ import annotations

import contextlib
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nfnet import Packet, Queue, inet, rules

from ..test_streams import client_hello
from .conftest import ADDRESS, TIMEOUT, Net, readable, wait_for
from .programs import is_bound, running

SCRIPT = Path(__file__).parents[2] / "examples" / "block_server_name.py"
BLOCKED = "www.blocked.example"


def anonymous(protocol: int) -> ssl.SSLContext:
    """TLS without certificates."""
    context = ssl.SSLContext(protocol)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


@contextlib.contextmanager
def listening(net: Net, family: socket.AddressFamily) -> Iterator[socket.socket]:
    with net.open_socket("server", family, socket.SOCK_STREAM) as door:
        door.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", 443))
        door.listen()
        yield door


def connect(net: Net, family: socket.AddressFamily) -> socket.socket:
    sock = net.open_socket("client", family, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.connect((ADDRESS["server", family], 443))
    return sock


def echo_once(door: socket.socket) -> None:
    with door.accept()[0] as sock:
        sock.settimeout(TIMEOUT)
        with anonymous(ssl.PROTOCOL_TLS_SERVER).wrap_socket(sock, server_side=True) as tls:
            tls.sendall(tls.recv(100))


def ask(net: Net, family: socket.AddressFamily, name: str, door: socket.socket) -> bytes:
    """Return a TLS server's answer to a client that requests this name."""
    server = threading.Thread(target=echo_once, args=(door,))
    server.start()
    try:
        with anonymous(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(connect(net, family), server_hostname=name) as tls:
            tls.sendall(b"hello")
            return tls.recv(100)
    finally:
        server.join(TIMEOUT)


def queued(net: Net) -> int:
    """How many packets were put into the queue."""
    (packets,) = [row.packets for row in rules.installed(net.hosts["router"]) if row.words.startswith("queue ")]
    return packets


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_the_example(net: Net, family: socket.AddressFamily) -> None:
    command = [sys.executable, str(SCRIPT), "forward", "blocked.example", "other.example"]
    address = ADDRESS["client", family]
    with listening(net, family) as door, running(net, command, "router") as process:
        assert process.stdout is not None
        assert wait_for(lambda: is_bound(net, queue=1) or process.poll() is not None)
        assert ask(net, family, "unblocked.example", door) == b"hello"

        hello = client_hello(BLOCKED)
        with connect(net, family) as client, door.accept()[0] as server:
            server.settimeout(TIMEOUT)
            client.settimeout(TIMEOUT)
            client.sendall(hello[:60])
            assert server.recv(1000) == hello[:60]
            client.sendall(hello[60:])
            line = f"TCP {address}.{client.getsockname()[1]} > {ADDRESS['server', family]}.443 {BLOCKED}\n"
            assert process.stdout.readline() == line
            for end in (client, server):
                with pytest.raises(ConnectionResetError):
                    end.recv(1000)

        udp = net.receiver(family=family, port=7000)
        with net.open_socket("client", family) as sender:
            sender.settimeout(TIMEOUT)
            sender.sendto(b"x", (ADDRESS["server", family], 7000))
            assert udp.recv(100) == b"x"
            sender.connect((ADDRESS["server", family], 443))
            sender.send(b"QUIC")
            with pytest.raises(ConnectionRefusedError):
                sender.recv(100)
        assert ask(net, family, "www.example.com", door) == b"hello"

        # Packets of an allowed connection after the ClientHello are not queued.
        with connect(net, family) as client, door.accept()[0] as server:
            client.settimeout(TIMEOUT)
            server.settimeout(TIMEOUT)
            hello = client_hello("www.example.com")  # in several segments if it has a key of post-quantum cryptography
            client.sendall(hello)
            received = b""
            while len(received) < len(hello):
                received += server.recv(len(hello))
            server.sendall(b"an answer")
            assert client.recv(100) == b"an answer"
            before = queued(net)
            for _ in range(20):
                client.sendall(b"data")
                assert server.recv(100) == b"data"
            assert queued(net) == before
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=TIMEOUT)
    assert errors.endswith("KeyboardInterrupt\n")
    assert wait_for(lambda: rules.installed(net.hosts["router"]) == [])


def test_segments_out_of_order(net: Net) -> None:
    """The packets of a real connection in reverse: the name is known with the last, and the server gets all."""
    router, hello = net.hosts["router"], client_hello(BLOCKED)
    beginnings = inet.Beginnings()
    numbers: list[int] = []
    held: dict[int, Packet] = {}

    def accept(packet: Packet) -> str | inet.Incomplete | None:
        assert packet.tcp is not None
        numbers.append(packet.tcp.seq)
        packet.accept()
        return inet.server_name(beginnings.add(packet.payload))

    def hold(packet: Packet) -> None:
        assert packet.tcp is not None
        place = (packet.tcp.seq - numbers[0] - 1) & 0xFFFFFFFF
        if place in held or not packet.tcp.data:
            packet.drop()
        else:
            held[place] = packet

    rule = rules.queue(1, hook="forward", protocol="tcp", destination_port=443, netns=router)
    with listening(net, socket.AF_INET) as door, rule, Queue(1, netns=router) as queue:
        client = net.open_socket("client", socket.AF_INET, socket.SOCK_STREAM)
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.connect_ex((ADDRESS["server", socket.AF_INET], 443))

        def established() -> bool:
            queue.process(accept)
            return readable(door, 0)

        def whole() -> bool:
            queue.process(hold)
            return sum(len(packet.tcp.data) for packet in held.values() if packet.tcp) == len(hello)

        assert wait_for(established)
        with door.accept()[0] as server:
            server.settimeout(TIMEOUT)
            for part in (hello[:1], hello[1:50], hello[50:]):
                client.send(part)
            assert wait_for(whole)
            answers = {place: accept(held[place]) for place in sorted(held, reverse=True)}
            assert answers.pop(0) == BLOCKED
            assert set(answers.values()) == {inet.INCOMPLETE}
            received = b""
            while len(received) < len(hello):
                received += server.recv(1000)
            assert received == hello
    assert beginnings.forgotten == 0
