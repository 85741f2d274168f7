"""Packets of a queue with ``gso=True`` on the real kernel: super-packets, unfinished checksums, BIG TCP."""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest

from nfnet import ArgumentError, Packet, Queue, SkbInfo, inet, rules

from .conftest import ADDRESS, QUIET, TIMEOUT, Net, collect, kernel_lacks, kernel_version, readable
from .traffic import handling

V4, V6 = socket.AF_INET, socket.AF_INET6
PORT = 7000
UDP_SEGMENT, UDP_GRO = 103, 104
IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE = 41, 63  # pyroute2 0.9 does not know the latter
UNFINISHED = SkbInfo.CSUM_NOT_READY
SUPER = SkbInfo.CSUM_NOT_READY | SkbInfo.GSO
families = pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])

# Hooks on the way from the client to the server, and the host of each.
OUT = [("client", "output"), ("client", "postrouting"), ("router", "forward"), ("router", "postrouting")]
IN = [("router", "prerouting"), ("server", "prerouting"), ("server", "input")]


def places(hooks: list[tuple[str, str]]) -> Any:
    return pytest.mark.parametrize(("host", "hook"), hooks, ids=[f"{hook} of the {host}" for host, hook in hooks])


def bad_checksums(net: Net, host: str) -> int:
    """How many packets a host dropped for their checksums."""

    def read() -> list[str]:
        with open("/proc/thread-self/net/snmp") as old, open("/proc/thread-self/net/snmp6") as new:
            return [*old.read().splitlines(), *new.read().splitlines()]

    total = 0
    names: list[str] = []
    for line in net.at(host, read):
        words = line.split()
        if words[0].startswith("Udp6") or words[0].startswith("Ip6"):
            total += int(words[1]) if words[0] == "Udp6InCsumErrors" else 0
        elif words[0] in ("Tcp:", "Udp:"):
            if words[1].isdigit():
                total += int(words[names.index("InCsumErrors")])
            names = words
    return total


@contextmanager
def handled(net: Net, host: str, hook: str, protocol: str, handler: Callable[[Packet], object]) -> Iterator[Queue]:
    """A queue whose handler runs in another thread; its exceptions fail the test."""
    here = net.hosts[host]
    rule = rules.queue(1, hook=hook, protocol=protocol, destination_port=PORT, netns=here)
    with rule, Queue(1, gso=True, netns=here) as queue, handling(queue, handler):
        yield queue


def transfer(net: Net, family: int, data: bytes, server: str = "server", address: str | None = None) -> bytes:
    """Send data from the client over TCP, and return what the server receives."""
    address = address or ADDRESS[server, family]  # type: ignore[index]
    listener = net.open_socket(server, family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0" if family == V4 else "::", PORT))
    listener.listen()
    client = net.open_socket("client", family, socket.SOCK_STREAM)
    client.connect((address, PORT))
    connection, _ = listener.accept()
    listener.close()
    connection.settimeout(TIMEOUT)
    sender = threading.Thread(target=lambda: (client.sendall(data), client.close()))
    sender.start()
    received = bytearray()
    while more := connection.recv(1 << 20):
        received += more
    connection.close()
    sender.join(TIMEOUT)
    return bytes(received)


# --- unfinished checksums


@families
@places(OUT + IN)
def test_tcp_with_another_ttl(net: Net, family: int, host: str, hook: str) -> None:
    infos: set[SkbInfo] = set()
    data = random.randbytes(300_000)

    def handler(packet: Packet) -> None:
        infos.add(packet.skbinfo)
        packet.accept(payload=packet.rewrite(tos=8, ttl=33))

    with handled(net, host, hook, "tcp", handler):
        assert transfer(net, family, data) == data
    assert bad_checksums(net, "server") == 0
    assert {UNFINISHED, SUPER} <= infos


@families
@places(OUT + IN)
@pytest.mark.parametrize("change", [{"ttl": 33}, {"tos": 8}, {"source_port": 9}, {"data": b"other data"}], ids=str)
def test_udp(net: Net, family: int, host: str, hook: str, change: dict[str, Any]) -> None:
    here = net.hosts[host]
    receiver, sender = net.receiver("server", family, PORT), net.open_socket("client", family)
    with rules.queue(1, hook=hook, protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
        sender.sendto(b"some data", (ADDRESS["server", family], PORT))
        (packet,) = collect(queue, 1)
        assert packet.skbinfo == UNFINISHED
        packet.accept(payload=packet.rewrite(**change))
        data, address = receiver.recvfrom(100)
        assert data == change.get("data", b"some data")
        assert address[1] == change.get("source_port", sender.getsockname()[1])
    assert bad_checksums(net, "server") == 0


# --- super-packets of UDP

SIZE = 1000
DATA = bytes((n * 7 + n // 256) % 256 for n in range(5 * SIZE - 300))


def send_segments(net: Net, family: int, host: str = "server") -> socket.socket:
    """Send five datagrams with one system call, as QUIC does."""
    sender = net.open_socket("client", family)
    try:
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SIZE)
    except OSError as error:
        kernel_lacks(f"UDP_SEGMENT ({error})", since=(4, 18))
    sender.sendto(DATA, (ADDRESS[host, family], PORT))
    return sender


def need_segments() -> None:
    if kernel_version() < (6, 12):
        kernel_lacks("right segments of a UDP super-packet that was changed", since=(6, 12))


def received(sock: socket.socket, count: int) -> list[bytes]:
    return [sock.recv(70_000) for _ in range(count)]


def cut(data: bytes) -> list[bytes]:
    return [data[place : place + SIZE] for place in range(0, len(data), SIZE)]


CHANGES: dict[str, dict[str, Any]] = {
    "ttl": {"ttl": 33},
    "ports": {"source_port": 1234, "destination_port": 7001},
    "data": {"data": DATA[::-1]},
    "more data": {"data": DATA[::-1] + b"more" * SIZE},
}


@families
@places(OUT)
@pytest.mark.parametrize("change", CHANGES)
def test_udp_segments_on_their_way_out(net: Net, family: int, host: str, hook: str, change: str) -> None:
    need_segments()
    here = net.hosts[host]
    receivers = {port: net.receiver("server", family, port) for port in (PORT, 7001)}
    with rules.queue(1, hook=hook, protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
        send_segments(net, family)
        (packet,) = collect(queue, 1)
        assert packet.skbinfo == SUPER
        assert packet.udp is not None
        assert packet.udp.data == DATA
        packet.accept(payload=packet.rewrite(**CHANGES[change]))
        expected = cut(CHANGES[change].get("data", DATA))
        assert received(receivers[CHANGES[change].get("destination_port", PORT)], len(expected)) == expected
    assert bad_checksums(net, "server") == 0


@families
def test_udp_segments_to_this_machine(net: Net, family: int) -> None:
    need_segments()
    here = net.hosts["client"]
    receiver = net.receiver("client", family, PORT)
    with rules.queue(1, hook="output", protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
        send_segments(net, family, "client")
        (packet,) = collect(queue, 1)
        packet.accept(payload=packet.rewrite(data=DATA[::-1]))
        assert received(receiver, 5) == cut(DATA[::-1])
    assert bad_checksums(net, "client") == 0


def merge_incoming(**features: bool) -> None:
    """Let the router's interface merge incoming packets (GRO)."""
    from pyroute2.ethtool.ioctl import IoctlEthtool

    with closing(IoctlEthtool("to-client")) as tool:
        there = tool.get_features()
        for name, value in features.items():
            if name.replace("_", "-") not in there:
                kernel_lacks(f"the feature {name}", since=(5, 12))
            there[name.replace("_", "-")] = value
        tool.set_features(there)


def segment_outgoing() -> None:
    """Let the client's interface get single datagrams, with their checksums."""
    from pyroute2.ethtool.ioctl import IoctlEthtool

    with closing(IoctlEthtool("to-router")) as tool:
        there = tool.get_features()
        there["tx-udp-segmentation"] = there["tx-checksum-ip-generic"] = False
        tool.set_features(there)


@families
@pytest.mark.parametrize("feature", ["rx_udp_gro_forwarding", "rx_gro_list"])
def test_merged_udp_on_its_way_through(net: Net, family: int, feature: str) -> None:
    """Packets that the router's interface merged are segmented again after the hook."""
    need_segments()
    net.at("router", lambda: merge_incoming(rx_gro=True, **{feature: True}))
    net.at("client", segment_outgoing)
    receiver = net.receiver("server", family, PORT)
    infos: list[SkbInfo] = []
    other = bytes(range(255, -1, -1))

    def handler(packet: Packet) -> None:
        infos.append(packet.skbinfo)
        assert packet.udp is not None
        packet.accept(payload=packet.rewrite(data=packet.udp.data.translate(other), ttl=33))

    with handled(net, "router", "forward", "udp", handler):
        for _ in range(10):  # the interface merges packets that it sees together
            send_segments(net, family)
            assert received(receiver, 5) == cut(DATA.translate(other))
            if any(SkbInfo.GSO in info for info in infos):
                break
    assert any(SkbInfo.GSO in info for info in infos)
    assert bad_checksums(net, "server") == 0


@families
@places(IN)
@pytest.mark.parametrize("whole", [False, True], ids=["", "UDP_GRO"])
def test_udp_segments_on_their_way_in_are_refused(net: Net, family: int, host: str, hook: str, whole: bool) -> None:
    here = net.hosts[host]
    receiver = net.receiver("server", family, PORT)
    if whole:
        receiver.setsockopt(socket.IPPROTO_UDP, UDP_GRO, 1)
    with rules.queue(1, hook=hook, protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
        send_segments(net, family)
        packet = collect(queue, 1)[0]
        if SkbInfo.GSO not in packet.skbinfo:
            kernel_lacks("super-packets of UDP through veth", since=(5, 12))
        assert packet.skbinfo == SUPER
        for change in CHANGES.values():
            with pytest.raises(ArgumentError, match="super-packet .* cannot be changed on its way in"):
                packet.rewrite(**change)
        with pytest.raises(ArgumentError, match="cannot be changed on its way in"):
            packet.accept(payload=packet.payload + b"more")
        packet.accept()
        assert b"".join(received(receiver, 1 if whole else 5)) == DATA


@families
@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_a_super_packet_cannot_become_shorter(net: Net, family: int, protocol: str) -> None:
    """The kernel silently drops one that is no longer than a segment, and does not report the length of segments."""
    here = net.hosts["client"]
    if protocol == "udp":
        need_segments()
        receiver = net.receiver("server", family, PORT)
        with rules.queue(1, hook="output", protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
            send_segments(net, family)
            (packet,) = collect(queue, 1)
            with pytest.raises(ArgumentError, match="cannot become shorter"):
                packet.rewrite(data=DATA[:-1])
            # This packet would be lost.
            begun = inet.rewrite(packet.payload, data=DATA, skbinfo=packet.skbinfo)
            short = inet.rewrite(begun, data=DATA[:500])
            packet.accept(payload=short)
            queue.flush()
            assert not readable(receiver, QUIET)
        return
    refused: list[str] = []

    def handler(packet: Packet) -> None:
        if SkbInfo.GSO in packet.skbinfo:
            with pytest.raises(ArgumentError, match="cannot become shorter"):
                packet.rewrite(data=b"x")
            refused.append("yes")
        packet.accept()

    data = random.randbytes(100_000)
    with handled(net, "client", "output", "tcp", handler):
        assert transfer(net, family, data) == data
    assert refused


@families
def test_scapy_gives_segments_what_the_kernel_wants(net: Net, family: int) -> None:
    scapy: Any = pytest.importorskip("scapy.all")
    need_segments()
    here = net.hosts["client"]
    receiver = net.receiver("server", family, 7001)
    with rules.queue(1, hook="output", protocol="udp", netns=here), Queue(1, gso=True, netns=here) as queue:
        send_segments(net, family)
        (packet,) = collect(queue, 1)
        theirs = packet.scapy()
        theirs[scapy.UDP].dport = 7001
        theirs[scapy.UDP].remove_payload()
        with pytest.raises(ArgumentError, match="cannot become shorter"):
            packet.accept(payload=theirs)
        packet.accept(payload=theirs / scapy.Raw(DATA[::-1]))
        assert received(receiver, 5) == cut(DATA[::-1])
    assert bad_checksums(net, "server") == 0


# --- tunnels


def make_tunnel(local: str, remote: str, number: int) -> None:
    from pyroute2 import IPRoute, NetlinkError

    with IPRoute() as ip:
        try:
            ip.link(
                "add", ifname="tunnel", kind="vxlan", vxlan_id=5, vxlan_port=PORT, vxlan_local=local,
                vxlan_group=remote, address=f"02:00:00:00:99:0{number}",
            )  # fmt: skip
        except NetlinkError as error:
            kernel_lacks(f"VXLAN ({error})", option="CONFIG_VXLAN")
        index = ip.link_lookup(ifname="tunnel")[0]
        ip.link("set", index=index, state="up")
        ip.addr("add", index=index, address=f"10.99.0.{number}", prefixlen=24)
        other = 3 - number
        ip.neigh("replace", dst=f"10.99.0.{other}", lladdr=f"02:00:00:00:99:0{other}", ifindex=index, state=0x80)


@places([("client", "output"), ("router", "forward"), ("server", "input")])
def test_tunnels(net: Net, host: str, hook: str) -> None:
    """The unfinished checksum is in the inner packet: a super-packet's is computed later, others are left unchanged."""
    client, server = ADDRESS["client", V4], ADDRESS["server", V4]
    net.at("client", lambda: make_tunnel(client, server, 1))
    net.at("server", lambda: make_tunnel(server, client, 2))
    seen: set[tuple[SkbInfo, str]] = set()

    def handler(packet: Packet) -> None:
        payload, refusal = None, ""
        try:
            payload = packet.rewrite(ttl=33)
        except ArgumentError as error:
            refusal = str(error)
        seen.add((packet.skbinfo, refusal))
        packet.accept(payload=payload)

    data = random.randbytes(500_000)
    with handled(net, host, hook, "udp", handler):
        assert transfer(net, V4, data, address="10.99.0.2") == data
    assert bad_checksums(net, "server") == 0
    supers = {refusal for info, refusal in seen if info == SUPER}
    others = {refusal for info, refusal in seen if info == UNFINISHED}
    others.discard("")  # if the inner packet needs no checksum, the outer one has an unfinished one
    (refusal,) = others
    assert "not that of TCP, UDP or ICMP cannot be finished" in refusal
    assert len(supers) == 1
    assert (supers == {""}) == (hook != "input" and kernel_version() >= (6, 12))


# --- BIG TCP


def enlarge(name: str) -> None:
    """Let an interface have super-packets of up to 200,000 bytes."""
    sizes = b"".join(struct.pack("=HHI", 8, kind, 200_000) for kind in (IFLA_GSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE))
    body = struct.pack("=BxHiII", 0, 0, socket.if_nametoindex(name), 0, 0) + sizes
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(struct.pack("=IHHII", 16 + len(body), 16, 5, 1, 0) + body)  # RTM_NEWLINK
        if (error := -struct.unpack_from("=i", sock.recv(1000), 16)[0]) != 0:
            kernel_lacks(f"super-packets of more than 65,536 bytes (errno {error})", since=(6, 3))


@families
@places([("client", "output"), ("client", "postrouting"), ("router", "input")])
def test_packets_longer_than_a_length_can_say(net: Net, family: int, host: str, hook: str) -> None:
    net.at("client", lambda: enlarge("to-router"))
    net.at("router", lambda: enlarge("to-client"))
    lengths: list[int] = []
    data = random.randbytes(1 << 22)

    def handler(packet: Packet) -> None:
        ip, tcp, flow = packet.ip, packet.tcp, packet.flow
        assert ip is not None
        assert tcp is not None
        assert flow is not None
        assert ip.length == packet.cap_len
        assert (tcp.source_port, tcp.destination_port) == (flow.source_port, flow.destination_port)
        assert tcp.data == inet.get_data(packet.payload)
        assert inet.transport(packet.payload).protocol == 6  # type: ignore[union-attr]
        if ip.length > 65_535:
            assert packet.payload[2 if family == V4 else 4 :][:2] == b"\0\0"
            lengths.append(ip.length)
            with pytest.raises(ArgumentError, match="bytes were copied"):
                packet.rewrite(ttl=9)
        packet.accept()

    with handled(net, host, hook, "tcp", handler):
        for _ in range(10):  # how much TCP puts into a packet is its decision
            assert transfer(net, family, data, "router") == data
            if lengths:
                break
    if not lengths and family == V4:
        kernel_lacks("super-packets of IPv4 of more than 65,535 bytes", since=(6, 3))
    assert max(lengths) > 65_535
