"""Rewritten packets: the receiving socket accepts them."""

from __future__ import annotations

import socket
from typing import Any

import pytest

import nfnet
from nfnet import Packet, Queue, SkbInfo, inet, rules

from .conftest import ADDRESS, TIMEOUT, Net, collect
from .test_rules import Traffic
from .traffic import handling

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
IP_OPTIONS = bytes([0x94, 4, 0, 0])  # router alert


@FAMILIES
@pytest.mark.parametrize("hook", ["output", "forward", "input"])
@pytest.mark.parametrize("gso", [False, True], ids=["", "unfinished checksums"])
def test_udp(net: Net, family: int, hook: str, gso: bool) -> None:
    host = {"output": "client", "forward": "router", "input": "server"}[hook]
    here = net.hosts[host]
    receiver, other = net.receiver("server", family, PORT), net.receiver("server", family, 7001)
    sender = net.open_socket("client", family)
    if family == V4:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, IP_OPTIONS)
    with (
        rules.queue(1, hook=hook, protocol="udp", destination_port=PORT, netns=here),
        Queue(1, gso=gso, netns=here) as queue,
    ):
        for data in (b"shorter than it was", b"", b"longer" * 100, b"odd"):
            sender.sendto(b"what it was before, all of it", (ADDRESS["server", family], PORT))
            (packet,) = collect(queue, 1)
            packet.accept(payload=packet.rewrite(data=data, ttl=9, source_port=1234))
            got, address = receiver.recvfrom(2000)
            assert (got, address[1]) == (data, 1234)
        sender.sendto(b"to another port", (ADDRESS["server", family], PORT))
        (packet,) = collect(queue, 1)
        if gso and hook == "output":
            assert packet.skbinfo & SkbInfo.CSUM_NOT_READY
        packet.accept(payload=packet.rewrite(destination_port=7001))
        assert other.recv(100) == b"to another port"


@FAMILIES
def test_another_destination_and_the_way_back(net: Net, family: int) -> None:
    """Answers are rewritten, too, so the client does not notice."""
    here = net.hosts["router"]
    server = net.receiver("server", family, PORT)
    client = net.open_socket("client", family)
    pretended = "10.81.2.99" if family == V4 else "fd81:2::99"
    real = ADDRESS["server", family]

    def handler(packet: Packet) -> None:
        flow = packet.flow
        assert flow is not None
        if flow.destination == pretended:
            packet.accept(payload=packet.rewrite(destination=real))
        else:
            packet.accept(payload=packet.rewrite(source=pretended))

    with rules.queue(1, hook="prerouting", protocol="udp", netns=here), Queue(1, netns=here) as queue:
        with handling(queue, handler):
            client.connect((pretended, PORT))
            client.send(b"question")
            data, address = server.recvfrom(100)
            assert data == b"question"
            server.sendto(b"answer", address)
            assert client.recv(100) == b"answer"


@FAMILIES
@pytest.mark.parametrize("gso", [False, True], ids=["segments", "super-packets"])
def test_tcp(net: Net, family: int, gso: bool) -> None:
    """Words of the same length are replaced throughout a stream."""
    here = net.hosts["client"]
    listener = net.open_socket("server", family, socket.SOCK_STREAM)
    listener.bind(("0.0.0.0" if family == V4 else "::", PORT))
    listener.listen()
    sizes: list[int] = []

    def handler(packet: Packet) -> None:
        tcp = packet.tcp
        assert tcp is not None
        sizes.append(len(tcp.data))
        if not tcp.data:
            packet.accept()
        else:
            packet.accept(payload=packet.rewrite(data=tcp.data.replace(b"cat", b"dog")))

    rule = rules.queue(1, hook="output", protocol="tcp", destination_port=PORT, netns=here)
    with rule, Queue(1, gso=gso, netns=here) as queue:
        with handling(queue, handler):
            sender = net.open_socket("client", family, socket.SOCK_STREAM)
            sender.connect((ADDRESS["server", family], PORT))
            connection, _ = listener.accept()
            connection.settimeout(TIMEOUT)
            sender.sendall(b"cat!" * 5000)
            sender.close()
            received = b""
            while data := connection.recv(70000):
                received += data
            connection.close()
    assert received == b"dog!" * 5000
    assert (max(sizes) > 1500) == gso


@FAMILIES
def test_ping(net: Net, family: int) -> None:
    here = net.hosts["client"]
    protocol, kind = (socket.IPPROTO_ICMP, 8) if family == V4 else (socket.IPPROTO_ICMPV6, 128)
    name = "icmp" if family == V4 else "icmpv6"
    sock: socket.socket = net.at("client", lambda: socket.socket(family, socket.SOCK_RAW, protocol))
    with sock, rules.queue(1, hook="output", protocol=name, netns=here), Queue(1, netns=here) as queue:
        sock.settimeout(TIMEOUT)
        message = bytes([kind, 0, 0, 0, 0, 1, 0, 1]) + b"ping"
        if family == V4:
            message = message[:2] + inet.checksum(message).to_bytes(2, "big") + message[4:]
        sock.sendto(message, (ADDRESS["server", family], 0))
        while (packet := collect(queue, 1)[0]).icmp is None or packet.icmp.type != kind:
            packet.accept()
        packet.accept(payload=packet.rewrite(data=b"another ping, and longer"))
        while not (answer := sock.recv(1000)).endswith(b"another ping, and longer"):
            pass
        assert answer


def test_fragments_get_another_destination(net: Net) -> None:
    here = net.hosts["client"]
    receiver = net.receiver("server", V4, PORT)
    seen: list[bool] = []

    def handler(packet: Packet) -> None:
        ip = packet.ip
        assert ip is not None
        seen.append(ip.fragment)
        if ip.fragment:
            with pytest.raises(nfnet.ArgumentError):
                packet.rewrite(data=b"x")
        packet.accept(payload=packet.rewrite(destination=ADDRESS["server", V4]))

    # After postrouting packets are fragmented, but a new destination would be too late: use the router's prerouting.
    here = net.hosts["router"]
    rule = rules.queue(1, hook="prerouting", family="ip", protocol="udp", priority=-500, netns=here)
    with rule, Queue(1, netns=here) as queue:
        with net.open_socket("client") as sock:
            sock.sendto(b"0123456789" * 400, ("10.81.2.99", PORT))
        for packet in collect(queue, 3):
            handler(packet)
        assert receiver.recv(5000) == b"0123456789" * 400
    assert seen == [True] * 3


def test_scapy(net: Net) -> None:
    scapy: Any = pytest.importorskip("scapy.all")
    here = net.hosts["router"]
    receiver = net.receiver("server", V4, PORT)
    with rules.queue(1, hook="forward", protocol="udp", netns=here), Queue(1, netns=here) as queue:
        Traffic(net).send(V4, b"data", {})
        (packet,) = collect(queue, 1)
        theirs = packet.scapy()
        theirs[scapy.Raw].load = b"other data"
        packet.accept(payload=theirs)
        assert receiver.recv(100) == b"other data"
