"""Answers, resets and rejections on the kernel: what both ends receive, at each hook, and exactly once."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import struct
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import nfnet
from nfnet import AsyncQueue, KernelError, NotPermittedError, Packet, Queue, inet, netns, rules, testing
from nfnet.errors import ArgumentError

from .conftest import ADDRESS, QUIET, TIMEOUT, Net, collect, in_child, readable, wait_for
from .traffic import handling

V4, V6 = socket.AF_INET, socket.AF_INET6
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
families = pytest.mark.parametrize("family", [V4, V6], ids=["IPv4", "IPv6"])
PLACES = [
    ("client", "output"),
    ("client", "postrouting"),
    ("router", "prerouting"),
    ("router", "forward"),
    ("router", "postrouting"),
    ("server", "prerouting"),
    ("server", "input"),
]
places = pytest.mark.parametrize(("host", "hook"), PLACES, ids=[" ".join(place) for place in PLACES])
PORT = 7000
_SO_BINDTODEVICE = 25


@contextlib.contextmanager
def deciding(
    net: Net, host: str, hook: str, handler: Callable[[Packet], object], *, gso: bool = False, **match: Any
) -> Iterator[Queue]:
    """A queue on a host, and the handler that decides its packets meanwhile."""
    place = net.hosts[host]
    with rules.queue(1, hook=hook, netns=place, **match), Queue(1, netns=place, gso=gso) as queue:
        with handling(queue, handler):
            yield queue


def client(net: Net, family: int, kind: int, port: int = PORT) -> socket.socket:
    sock = net.open_socket("client", family, kind)
    sock.connect((ADDRESS["server", family], port))
    return sock


def server(net: Net, family: int) -> socket.socket:
    door = net.open_socket("server", family, TCP)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    door.bind((ADDRESS["server", family], PORT))
    door.listen()
    return door


# --- UDP and ICMP


@families
@places
@pytest.mark.feature("answers")
def test_an_answer(net: Net, host: str, hook: str, family: int) -> None:
    receiver = net.receiver("server", family)
    seen: list[Packet] = []

    def handle(packet: Packet) -> None:
        seen.append(packet)
        assert packet.udp is not None
        packet.answer(b"answer to " + packet.udp.data)

    with deciding(net, host, hook, handle, protocol="udp") as queue:
        sock = client(net, family, UDP)
        sock.send(b"this")
        assert sock.recv(100) == b"answer to this"
        assert not readable(sock, QUIET)
        assert wait_for(lambda: queue.counters.dropped == 1)
    assert len(seen) == 1
    assert not readable(receiver, 0)


@families
@places
def test_a_refusal_of_udp(net: Net, host: str, hook: str, family: int) -> None:
    net.receiver("server", family)
    with deciding(net, host, hook, Packet.reject, protocol="udp") as queue:
        sock = client(net, family, UDP)
        sock.send(b"this")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        assert wait_for(lambda: queue.counters.dropped == 1)


def ping(net: Net, family: int, data: bytes) -> bytes:
    """Return the answer, from the ICMP header on."""
    number, kind = (socket.IPPROTO_ICMP, 8) if family == V4 else (socket.IPPROTO_ICMPV6, 128)
    with net.at("client", lambda: socket.socket(family, socket.SOCK_RAW, number)) as sock:
        sock.settimeout(TIMEOUT)
        request = struct.pack("!BBHHH", kind, 0, 0, 7, 9) + data
        if family == V4:
            request = request[:2] + inet.checksum(request).to_bytes(2, "big") + request[4:]
        sock.sendto(request, (ADDRESS["server", family], 0))
        while True:
            reply: bytes = sock.recv(2000)[20 if family == V4 else 0 :]
            if reply[0] in (0, 3, 129, 1):  # neither the request itself nor neighbour solicitations
                return reply


@families
@places
@pytest.mark.feature("answers")
def test_an_echo_reply(net: Net, host: str, hook: str, family: int) -> None:
    def handle(packet: Packet) -> None:
        if packet.icmp and packet.icmp.type in (8, 128):
            packet.answer(b"other data")
        else:
            packet.accept()

    with deciding(net, host, hook, handle, protocol="icmp" if family == V4 else "icmpv6"):
        reply = ping(net, family, b"data")
    assert (reply[0], reply[4:]) == (0 if family == V4 else 129, b"\0\7\0\x09other data")


@families
def test_a_refusal_of_icmp(net: Net, family: int) -> None:
    with deciding(net, "router", "forward", Packet.reject, protocol="icmp" if family == V4 else "icmpv6"):
        reply = ping(net, family, b"data")
    assert reply[:2] == (b"\x03\x0d" if family == V4 else b"\x01\x01")


@families
@pytest.mark.parametrize(("host", "hook"), [("client", "output"), ("server", "input")])
def test_a_large_answer_comes_in_fragments(net: Net, host: str, hook: str, family: int) -> None:
    data = os.urandom(5000)
    with deciding(net, host, hook, lambda packet: packet.answer(data), protocol="udp"):
        sock = client(net, family, UDP)
        sock.send(b"this")
        assert sock.recv(9000) == data


def test_the_address_of_a_link(net: Net) -> None:
    """The packet's interface determines the link: the router has two."""
    mine, theirs = (link_address(net, *ends) for ends in (("server", "router"), ("router", "server")))
    for host, hook in (("server", "output"), ("router", "input")):
        with deciding(net, host, hook, lambda packet: packet.answer(b"answer"), protocol="udp"):
            sock = net.open_socket("server", V6)
            index = net.index("server", "to-router")
            sock.bind((mine, 0, 0, index))
            sock.connect((theirs, PORT, 0, index))
            sock.send(b"this")
            assert sock.recv(100) == b"answer", hook


def link_address(net: Net, host: str, peer: str) -> str:
    def find() -> str | None:
        with open("/proc/thread-self/net/if_inet6") as file:
            for line in file:
                address, _, _, scope, flags, name = line.split()
                if (scope, name) == ("20", f"to-{peer}") and not int(flags, 16) & 0x40:  # tentative
                    return socket.inet_ntop(V6, bytes.fromhex(address))
        return None

    assert wait_for(lambda: net.at(host, find) is not None)
    found: str = net.at(host, find)
    return found


@pytest.mark.parametrize("strictness", ["1", "2"])
def test_an_answer_to_a_local_sender_passes_the_reverse_path_filter(net: Net, strictness: str) -> None:
    def configure() -> None:
        for name in os.listdir("/proc/sys/net/ipv4/conf"):
            with open(f"/proc/sys/net/ipv4/conf/{name}/rp_filter", "w") as file:
                file.write(strictness)

    net.at("client", configure)
    with deciding(net, "client", "output", lambda packet: packet.answer(b"answer"), protocol="udp"):
        for device in (None, b"to-router"):
            sock = net.open_socket("client")
            if device:
                sock.setsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, device)
            sock.connect((ADDRESS["server", V4], PORT))
            sock.send(b"this")
            assert sock.recv(100) == b"answer"


# --- TCP


@families
@places
@pytest.mark.parametrize("call", [Packet.reject, Packet.reset], ids=["reject", "reset"])
def test_a_connection_is_refused(net: Net, host: str, hook: str, family: int, call: Callable[[Packet], None]) -> None:
    with server(net, family) as door, deciding(net, host, hook, call, protocol="tcp", destination_port=PORT):
        with pytest.raises(ConnectionRefusedError):
            client(net, family, TCP)
        assert not readable(door, 0)


@families
@places
@pytest.mark.feature("resets")
@pytest.mark.parametrize("gso", [False, True], ids=["", "gso"])
def test_a_reset_ends_both_ends(net: Net, host: str, hook: str, family: int, gso: bool) -> None:
    lengths: list[int] = []

    def handle(packet: Packet) -> None:
        if packet.tcp and packet.tcp.data:
            lengths.append(packet.cap_len)
            packet.reset()
        else:
            packet.accept()

    with server(net, family) as door, deciding(net, host, hook, handle, gso=gso, protocol="tcp"):
        near = client(net, family, TCP)
        far, _ = door.accept()
        with far:
            far.settimeout(TIMEOUT)
            near.send(bytes(100_000))
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(100)
    if gso and host == "client":
        assert max(lengths) > 1500


LISTEN = 10


def states(net: Net, host: str, family: int) -> list[int]:
    """Those of the TCP sockets of a host."""

    def read() -> list[int]:
        with open("/proc/thread-self/net/" + ("tcp" if family == V4 else "tcp6")) as file:
            return [int(line.split()[3], 16) for line in file if "local" not in line]

    found: list[int] = net.at(host, read)
    return found


@pytest.mark.parametrize("moment", ["SYN/ACK", "ACK", "FIN", "answer", "again"])
@families
def test_a_reset_at_any_moment(net: Net, family: int, moment: str) -> None:
    """On the way through the router."""
    times: list[int] = []

    def handle(packet: Packet) -> None:
        segment = packet.tcp
        assert segment is not None
        from_client = segment.destination_port == PORT
        flags = segment.flags & ~inet.TcpFlag.PSH
        now = {
            "SYN/ACK": flags == inet.TcpFlag.SYN | inet.TcpFlag.ACK,
            "ACK": from_client and flags == inet.TcpFlag.ACK and not segment.data,
            "FIN": from_client and inet.TcpFlag.FIN in flags,
            "answer": not from_client and bool(segment.data),
            # Segments that were forwarded and are sent again, since no acknowledgement returns.
            "again": from_client and bool(segment.data),
        }[moment]
        if moment == "again" and not from_client and times:
            packet.drop()
        elif now:
            times.append(packet.id)
            if moment == "again" and len(times) == 1:
                packet.accept()
            else:
                packet.reset()
        else:
            packet.accept()

    with server(net, family) as door, deciding(net, "router", "forward", handle, protocol="tcp"):
        if moment == "SYN/ACK":
            with pytest.raises(ConnectionRefusedError):
                client(net, family, TCP)
            assert wait_for(lambda: states(net, "server", family) == [LISTEN])
            return
        if moment == "ACK":  # an error of the handshake: the reset can arrive before `connect` returns
            with pytest.raises(ConnectionResetError):
                client(net, family, TCP).recv(100)
            assert wait_for(lambda: states(net, "server", family) == [LISTEN])
            return
        near = client(net, family, TCP)
        far, _ = door.accept()
        with far:
            far.settimeout(TIMEOUT)
            if moment == "FIN":
                near.shutdown(socket.SHUT_WR)
            elif moment == "again":
                near.send(b"question")
                assert far.recv(100) == b"question"
            elif moment == "answer":
                near.send(b"question")
                assert far.recv(100) == b"question"
                far.send(b"answer")
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(100)


@families
@places
@pytest.mark.feature("answers")
@pytest.mark.parametrize("size", [5, 10_000])
def test_an_answer_of_tcp_and_the_end(net: Net, host: str, hook: str, family: int, size: int) -> None:
    data = os.urandom(size)

    def handle(packet: Packet) -> None:
        if packet.tcp and packet.tcp.data:
            packet.answer(data)
        else:
            packet.accept()

    with (
        server(net, family) as door,
        deciding(net, host, hook, handle, protocol="tcp", destination_port=PORT),
    ):
        near = client(net, family, TCP)
        far, _ = door.accept()
        with far, near.makefile("rb") as stream:
            far.settimeout(TIMEOUT)
            near.send(b"GET / HTTP/1.0\r\n\r\n")
            assert stream.read() == data
            with pytest.raises(ConnectionResetError):
                far.recv(100)


# --- what is sent comes by the hooks


@pytest.mark.parametrize("hook", ["output", "postrouting", "prerouting", "input"])
def test_what_is_sent_is_not_queued_again(net: Net, hook: str) -> None:
    """Not even by a rule for all packets on the machine that the answer is for; rules of other programs see it."""
    seen: list[tuple[int, bytes]] = []

    def handle(packet: Packet) -> None:
        assert packet.udp is not None
        seen.append((packet.mark, packet.udp.data))
        packet.answer(b"answer")

    with deciding(net, "client", "output", handle, protocol="udp"):
        witness = rules.queue(2, hook=hook, netns=net.hosts["client"], mark=nfnet.INJECTED_MARK)
        with witness, Queue(2, netns=net.hosts["client"]) as others:
            sock = client(net, V4, UDP)
            sock.send(b"this")
            (packet,) = collect(others, 1)
            assert packet.udp is not None
            assert (packet.udp.data, packet.mark) == (b"answer", nfnet.INJECTED_MARK)
            packet.accept()
            assert sock.recv(100) == b"answer"
    assert seen == [(0, b"this")]


def test_a_rule_that_does_not_pass_over_it_is_told(net: Net) -> None:
    """The rule was installed by another program."""
    place = net.hosts["client"]
    with Queue(1, netns=place) as queue:
        command = ["iptables", "-A", "OUTPUT", "-p", "udp", "-j", "NFQUEUE", "--queue-num", "1"]
        net.at("client", lambda: subprocess.run(command, check=True))
        sock = client(net, V4, UDP)
        sock.send(b"this")
        with pytest.raises(ArgumentError, match="one that nfnet has injected"):
            queue.run(lambda packet: packet.answer(b"answer"))
        (packet,) = queue.pending
        packet.accept()
        assert sock.recv(100) == b"answer"


def test_connection_tracking_lets_answers_pass(net: Net) -> None:
    """The sender's firewall accepts only incoming packets of existing connections."""
    nft_at(net, "client", "nft add rule inet mine input ct state established,related counter accept")
    nft_at(net, "client", "nft add rule inet mine input counter drop")

    def handle(packet: Packet) -> None:
        if packet.tcp and packet.tcp.data:
            packet.reset()
        elif packet.udp and packet.udp.data == b"refuse":
            packet.reject()
        elif packet.udp:
            packet.answer(b"answer")
        else:
            packet.accept()

    with server(net, V4) as door, deciding(net, "router", "forward", handle):
        sock = client(net, V4, UDP)
        sock.send(b"this")
        assert sock.recv(100) == b"answer"
        sock.send(b"refuse")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(100)
        near = client(net, V4, TCP)
        far, _ = door.accept()
        with far:
            near.send(b"data")
            with pytest.raises(ConnectionResetError):
                near.recv(100)


NAT = {
    "source": ("postrouting", "srcnat", "oifname to-server masquerade", ADDRESS["server", V4], "forward", 0),
    "destination": ("prerouting", "dstnat", "ip daddr 192.0.2.1 dnat to 10.81.2.2", "192.0.2.1", "prerouting", -150),
}


@pytest.mark.parametrize("kind", NAT)
def test_behind_address_translation(net: Net, kind: str) -> None:
    """Where the packet has the addresses that its sender knows."""
    chain, priority, rule, address, hook, place = NAT[kind]

    def translate() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.addr("add", index=1, address="192.0.2.1", prefixlen=32)  # of the router's own
        chain_text = f"add chain ip mine {chain} {{ type nat hook {chain} priority {priority}; }}"
        for line in ("add table ip mine", chain_text, f"add rule ip mine {chain} {rule}"):
            subprocess.run(["nft", line], check=True)

    def handle(packet: Packet) -> None:
        if packet.udp:
            packet.answer(b"answer")
        elif packet.tcp and packet.tcp.data:
            packet.reset()
        else:
            packet.accept()

    net.at("router", translate)
    with server(net, V4) as door, deciding(net, "router", hook, handle, priority=place):
        sock = net.open_socket("client")
        sock.connect((address, PORT))
        sock.send(b"this")
        assert sock.recv(100) == b"answer"
        near = net.open_socket("client", V4, TCP)
        near.connect((address, PORT))
        far, _ = door.accept()
        with far:
            far.settimeout(TIMEOUT)
            near.send(b"data")
            for end in (near, far):
                with pytest.raises(ConnectionResetError):
                    end.recv(100)


def test_a_flow_whose_first_packet_was_dropped_is_new(net: Net) -> None:
    """A firewall of the sending machine must accept the mark, as the documentation says."""
    nft_at(net, "client", "nft add rule inet mine input ct state established,related counter accept")
    nft_at(net, "client", "nft add rule inet mine input counter drop")
    with deciding(net, "client", "output", lambda packet: packet.answer(b"answer"), protocol="udp") as queue:
        sock = client(net, V4, UDP)
        sock.send(b"this")
        assert wait_for(lambda: queue.counters.dropped == 1)
        assert not readable(sock, QUIET)
        nft_at(net, "client", f"nft insert rule inet mine input meta mark {nfnet.INJECTED_MARK} accept")
        sock.send(b"this")
        assert sock.recv(100) == b"answer"


def nft_at(net: Net, host: str, command: str) -> None:
    """An nft command in a table with a chain for each hook."""

    def run() -> None:
        for line in (
            "nft add table inet mine",
            "nft add chain inet mine output { type filter hook output priority 10; }",
            "nft add chain inet mine input { type filter hook input priority 10; }",
            command,
        ):
            subprocess.run(["nft", line.removeprefix("nft ")], check=True)

    net.at(host, run)


def test_a_firewall_that_drops_the_answer(net: Net) -> None:
    nft_at(net, "server", f"nft add rule inet mine output meta mark {nfnet.INJECTED_MARK} drop")
    receiver = net.receiver()
    place = net.hosts["server"]
    with rules.queue(1, hook="input", netns=place, protocol="udp"), Queue(1, netns=place) as queue:
        client(net, V4, UDP).send(b"this")
        with pytest.raises(KernelError, match="A rule of a firewall drops it") as caught:
            queue.run(lambda packet: packet.answer(b"answer"))
        assert caught.value.errno == errno.EPERM
        (packet,) = queue.pending
        packet.accept()
        assert receiver.recv(100) == b"this"


def test_no_route_to_the_sender(net: Net) -> None:
    receiver = net.receiver()
    place = net.hosts["server"]

    def forget() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.route("del", dst="default", gateway="10.81.2.1", oif=ip.link_lookup(ifname="to-router")[0])

    with rules.queue(1, hook="input", netns=place, protocol="udp"), Queue(1, netns=place) as queue:
        client(net, V4, UDP).send(b"this")
        (packet,) = collect(queue, 1)
        net.at("server", forget)
        with pytest.raises(KernelError, match="no route"):
            packet.answer(b"answer")
        assert packet.decided is None
        packet.accept()
        assert receiver.recv(100) == b"this"


def test_many_answers(net: Net) -> None:
    """More than the socket has room for at a time."""
    with deciding(net, "server", "input", lambda packet: packet.answer(b"x" * 1000), protocol="udp"):
        sock = client(net, V4, UDP)
        for number in range(2000):
            sock.send(number.to_bytes(2, "big"))
            assert len(sock.recv(2000)) == 1000


# --- packets of one's own


@families
@pytest.mark.parametrize("host", ["client", "router", "server"])
def test_inject(net: Net, family: int, host: str) -> None:
    """Incoming for this machine, and outgoing to another one, with another machine's source address."""
    sock = client(net, family, UDP)
    source, destination = ADDRESS["server", family], ADDRESS["client", family]
    ends = {"source": source, "destination": destination, "source_port": PORT}
    packet = bytearray(testing.udp(b"data", destination_port=sock.getsockname()[1], **ends))
    packet[-5] ^= 1  # of the checksum
    nfnet.inject(bytes(packet), netns=net.hosts[host])
    assert sock.recvfrom(100)[0] == b"data"


def test_marks_of_injected_packets(net: Net) -> None:
    packet = testing.udp(b"data", source="192.0.2.7", destination=ADDRESS["server", V4], destination_port=PORT)
    receiver = net.receiver()
    place = net.hosts["client"]
    with rules.queue(1, hook="output", netns=place, protocol="udp"), Queue(1, netns=place) as queue:
        nfnet.inject(packet, netns=place)
        assert receiver.recv(100) == b"data"
        for mark in (0, 7, 0xFFFFFFFF):
            nfnet.inject(packet, mark=mark, netns=place)
            (seen,) = collect(queue, 1)
            assert (seen.mark, seen.ip and seen.ip.source) == (mark, "192.0.2.7")
            seen.accept()
            assert receiver.recv(100) == b"data"


@families
def test_an_injected_packet_is_cut_up(net: Net, family: int) -> None:
    receiver = net.receiver("server", family)
    ends = {"source": ADDRESS["client", family], "destination": ADDRESS["server", family]}
    packet = testing.udp(bytes(4000), destination_port=PORT, **ends)
    nfnet.inject(packet, netns=net.hosts["client"])
    assert len(receiver.recv(9000)) == 4000
    if family == V4:
        with pytest.raises(ArgumentError, match=r"4028 bytes, and 1500 is the most .* forbids fragmentation"):
            nfnet.inject(packet[:6] + b"\x40" + packet[7:], netns=net.hosts["client"])


def test_where_nothing_can_be_sent(net: Net) -> None:
    with netns.create() as nowhere:
        with pytest.raises(KernelError, match="no route") as caught:
            nfnet.inject(testing.udp(b"x"), netns=nowhere)
        assert caught.value.errno == errno.ENETUNREACH
        with pytest.raises(KernelError):
            nfnet.inject(testing.udp(b"x", source="fe80::1", destination="fe80::2"), netns=nowhere)


@pytest.mark.parametrize("without", ["net_raw", "net_admin"])
def test_without_the_privilege(net: Net, without: str) -> None:
    """The packet stays undecided; the error contains what is missing."""
    place = net.hosts["client"]

    def run() -> None:
        netns.enter(place)
        with rules.queue(1, hook="output", protocol="udp"), Queue(1) as queue:
            sock = socket.socket(V4, UDP)
            sock.sendto(b"this", (ADDRESS["server", V4], PORT))
            (packet,) = collect(queue, 1)
            give_up(without)
            try:
                with pytest.raises(NotPermittedError, match=f"CAP_{without.upper()}"):
                    packet.answer(b"answer")
                assert packet.decided is None
            finally:
                os._exit(0 if packet.decided is None else 1)

    assert in_child(run) == 0


def give_up(name: str) -> None:
    """A capability, for good (capset(2))."""
    import ctypes

    number = {"net_admin": 12, "net_raw": 13}[name]
    header = struct.pack("=Ii", 0x20080522, 0)
    data = ctypes.create_string_buffer(24)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.capget(header, data) == 0
    words = list(struct.unpack("=6I", data.raw))
    for place in range(3):
        words[place] &= ~(1 << number)
    assert libc.capset(header, struct.pack("=6I", *words)) == 0


def test_nobody_answers_a_broadcast(net: Net) -> None:
    """To the network's address, which looks like any other."""
    place = net.hosts["router"]
    with rules.queue(1, hook="input", netns=place, protocol="udp"), Queue(1, netns=place) as queue:
        sock = net.open_socket("client")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for address in ("10.81.1.255", "255.255.255.255"):
            sock.sendto(b"who is there?", (address, PORT))
            (packet,) = collect(queue, 1)
            with pytest.raises(ArgumentError, match="broadcast"):
                packet.answer(b"I am")
            packet.reject()
        sock.sendto(b"who is there?", (ADDRESS["router", V4], PORT))
        (packet,) = collect(queue, 1)
        packet.answer(b"I am")
        assert sock.recv(100) == b"I am"
        assert raw_sockets(net, "router") == 1
        assert queue.counters.dropped == 3
    assert not readable(sock, QUIET)


# --- sockets


def raw_sockets(net: Net, host: str) -> int:
    def count() -> int:
        with open("/proc/thread-self/net/raw") as v4, open("/proc/thread-self/net/raw6") as v6:
            return len(v4.readlines()) + len(v6.readlines()) - 2

    found: int = net.at(host, count)
    return found


def test_sockets_are_opened_late_and_closed_with_the_queue(net: Net) -> None:
    place = net.hosts["client"]
    with rules.queue(1, hook="output", netns=place, protocol="udp"), Queue(1, netns=place) as queue:
        assert raw_sockets(net, "client") == 0
        for family in (V4, V4, V6):
            client(net, family, UDP).send(b"this")
            collect(queue, 1)[0].answer(b"answer")
        assert raw_sockets(net, "client") == 2

        reading, writing = os.pipe()
        child = os.fork()
        if not child:  # it has none of them, so that they go with the queue of its parent
            os.close(writing)
            os.read(reading, 1)
            os._exit(0)
        os.close(reading)
        client(net, V4, UDP).send(b"this")
        (packet,) = collect(queue, 1)
    assert wait_for(lambda: raw_sockets(net, "client") == 0)  # the child can have just begun
    os.close(writing)
    assert os.waitpid(child, 0)[1] == 0
    with pytest.raises(nfnet.ClosedError):
        packet.answer(b"answer")


def test_a_queue_that_is_forgotten_lets_go_of_all_sockets_at_once(net: Net) -> None:
    """Without the garbage collector, which would find circles of references."""
    place = net.hosts["client"]
    with rules.queue(1, hook="output", netns=place, protocol="udp"):
        gc.disable()
        try:
            queue = Queue(1, netns=place)
            queue.open()
            client(net, V4, UDP).send(b"this")
            collect(queue, 1)[0].answer(b"answer")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                del queue
                if sys.implementation.name != "cpython":
                    gc.collect()  # nothing else finds what is forgotten there
            assert raw_sockets(net, "client") == 0
            with Queue(1, netns=place):  # no other socket has it
                pass
        finally:
            gc.enable()


def test_the_queue_of_another_namespace_answers_there(net: Net) -> None:
    """Whatever becomes of the file by which the namespace was named."""
    with open(f"/proc/self/fd/{net.hosts['client'].fileno()}", "rb") as place:
        rule, queue = rules.queue(1, hook="output", netns=place, protocol="udp"), Queue(1, netns=place)
        rule.install()
        queue.open()
    try:
        sock = client(net, V4, UDP)
        sock.send(b"this")
        collect(queue, 1)[0].answer(b"answer")
        assert sock.recv(100) == b"answer"
    finally:
        queue.close()
        rule.remove()


def test_answers_in_tasks(net: Net) -> None:
    import asyncio

    place = net.hosts["client"]

    async def main() -> bytes:
        async def handle(packet: Packet) -> None:
            await asyncio.sleep(0)
            packet.answer(b"answer")

        async with AsyncQueue(1, netns=place) as queue:
            running = asyncio.ensure_future(queue.run(handle))
            sock = client(net, V4, UDP)
            sock.send(b"this")
            data: bytes = await asyncio.get_running_loop().run_in_executor(None, sock.recv, 100)
            queue.stop()
            await running
            return data

    with rules.queue(1, hook="output", netns=place, protocol="udp"):
        assert asyncio.run(main()) == b"answer"
