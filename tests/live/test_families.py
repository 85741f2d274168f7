"""Frames that contain, or only seem to contain, IP packets: families bridge, netdev and ARP, on the real kernel."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nfnet import ArgumentError, Family, Log, LogMessage, Packet, Queue, inet, rules, testing
from nfnet.cli import packet_text

from .conftest import TIMEOUT, Net, make_bridge, readable, send_through_bridge, wait_for
from .programs import run
from .test_bridge import queue_rule

UDP = testing.udp(b"data", source="10.0.0.1", destination="10.0.0.2")
UDP6 = testing.udp(b"data", source="fd00::1", destination="fd00::2")
# The first byte makes data that begin with these look like the header of an IPv4 or IPv6 packet.
MACS = {"0x4": (bytes.fromhex("460000000002"), bytes.fromhex("460000000001"))}
MACS["0x6"] = bytes.fromhex("620000000002"), bytes.fromhex("620000000001")
TAG = bytes.fromhex("6005")
CONTENTS = {
    "an ARP reply": (0x0806, bytes.fromhex("0001080006040002 460000000001 0a000001 460000000002 0a000002"), None),
    "an unknown protocol, like IPv4": (0x88B5, UDP, None),
    "an unknown protocol, like IPv6": (0x88B5, UDP6, None),
    "IPv4": (0x0800, UDP, UDP),
    "IPv6": (0x86DD, UDP6, UDP6),
    "two tags": (0x88A8, TAG + b"\x81\0" + TAG + b"\x08\0" + UDP, UDP),
    "two tags, like IPv4": (0x88A8, TAG + b"\x81\0" + TAG + b"\x88\xb5" + UDP, None),
}
contents = pytest.mark.parametrize("content", CONTENTS)
macs = pytest.mark.parametrize("mac", MACS)


def frame(mac: str, content: str) -> bytes:
    ethertype, data, _ = CONTENTS[content]
    return b"".join(MACS[mac]) + ethertype.to_bytes(2, "big") + data.ljust(46, b"\0")


def assert_right(message: Packet | LogMessage, content: str) -> None:
    ip = CONTENTS[content][2] or b""
    assert message.ip == inet.ip(ip)
    assert message.flow == inet.flow(ip)
    assert message.udp == inet.udp(ip)
    assert (message.tcp, message.icmp) == (None, None)
    assert ("not an IP packet" in packet_text.line(message)) == (not ip)
    assert ("ip" in json.loads(packet_text.ecs(message)).get("destination", {})) == bool(ip)


def is_ours(message: Packet | LogMessage, content: str) -> bool:
    """Return whether the test sent a frame, and not the hosts by themselves."""
    return CONTENTS[content][1][-20:] in message.payload


@macs
@contents
def test_bridge(net: Net, mac: str, content: str) -> None:
    net.at("router", make_bridge)
    here = net.hosts["router"]
    found: list[LogMessage] = []
    with Log(5, netns=here, threshold=1) as log, rules.log(5, hook="forward", family="bridge", netns=here):

        def came() -> bool:
            log.process(lambda message: found.append(message) if is_ours(message, content) else None)
            return bool(found)

        send_through_bridge(net, frame(mac, content), came)
    assert found[0].family == Family.BRIDGE
    assert_right(found[0], content)


@contextmanager
def nft(net: Net, host: str, rule: str) -> Iterator[None]:
    """A rule of nft's: the families here have hooks that `nfnet.rules` does not."""
    family, hook = rule.split()[:2]
    device = "device to-router" if family == "netdev" else ""
    text = f"""
    add table {family} test
    add chain {family} test c {{ type filter hook {hook} {device} priority 0; }}
    add rule {family} test c log group 5
    """
    run(net, host, "nft", "-f", "-", text=text)
    yield


def log_frame(net: Net, rule: str, sender: str, data: bytes, content: str) -> LogMessage:
    """Log frames at the client, and send one from or to the client."""
    found: list[LogMessage] = []
    with nft(net, "client", rule), Log(5, netns=net.hosts["client"], threshold=1) as log:
        with net.at(sender, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind(("to-router" if sender == "client" else "to-client", 0))
            sock.send(data)
            while not found:
                assert readable(log, TIMEOUT)  # type: ignore[arg-type]
                log.process(lambda message: found.append(message) if is_ours(message, content) else None)
    return found[0]


@macs
@contents
@pytest.mark.parametrize("hook", ["ingress", "egress"])
def test_netdev(net: Net, mac: str, content: str, hook: str) -> None:
    data = frame(mac, content)
    message = log_frame(net, f"netdev {hook}", "client" if hook == "egress" else "router", data, content)
    assert message.family == Family.NETDEV
    if hook == "egress":
        assert message.payload == data  # from the link-layer header on
    assert_right(message, content)


@pytest.mark.parametrize("hook", ["input", "output"])
def test_arp(net: Net, hook: str) -> None:
    """An ARP reply of the client, and one to it; the addresses of its link layer look like IPv4."""
    mac = MACS["0x4"][1]

    def set_address() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname="to-router")[0], address=":".join(f"{byte:02x}" for byte in mac))

    net.at("client", set_address)
    found: list[LogMessage] = []
    with nft(net, "client", f"arp {hook}"), Log(5, netns=net.hosts["client"], threshold=1) as log:
        with net.at("router", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)) as sock:
            sock.bind(("to-client", 0))
            router = bytes.fromhex("460000000099")
            asked = (
                bytes.fromhex("0001080006040001") + router + bytes([10, 81, 1, 2]) + bytes(6) + bytes([10, 81, 1, 1])
            )
            sock.send(mac + router + b"\x08\x06" + asked)
            while not found:
                assert readable(log, TIMEOUT)  # type: ignore[arg-type]
                log.process(lambda message: found.append(message) if message.payload[-28:-20] else None)
    (message, *_) = found
    assert (message.family, message.hw_protocol) == (Family.ARP, 0x0806)
    assert (message.ip, message.flow) == (None, None)
    assert "not an IP packet (EtherType 0x0806)" in packet_text.line(message)
    if hook == "output":  # the payload begins with the link-layer header
        assert message.payload[:12] == router + mac
    scapy: Any = pytest.importorskip("scapy.all")
    assert message.scapy()[scapy.ARP].psrc == {"input": "10.81.1.2", "output": "10.81.1.1"}[hook]


@pytest.mark.feature("queue in a bridge: vlan, l2header")
@contents
def test_queues_in_a_bridge(net: Net, content: str) -> None:
    """IP packets are rewritten, also after a second tag; others are refused and forwarded unchanged."""
    net.at("router", make_bridge)
    seen: list[Packet] = []
    data = frame("0x4", content)
    with (
        queue_rule(net, "forward"),
        Queue(1, netns=net.hosts["router"]) as queue,
        net.at("server", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as receiver,
    ):
        receiver.bind(("to-router", 3))

        def handler(packet: Packet) -> None:
            if not is_ours(packet, content):
                packet.accept()
                return
            seen.append(packet)
            if packet.ip is None:
                with pytest.raises(ArgumentError, match="not an IP packet"):
                    packet.rewrite(ttl=9)
                packet.accept()
            else:
                packet.accept(payload=packet.rewrite(data=b"DATA", ttl=9))

        send_through_bridge(net, data, lambda: bool(queue.process(handler)) and bool(seen))
        assert_right(seen[0], content)
        _, there, ip = CONTENTS[content]
        wanted = there[-20:] if ip is None else inet.rewrite(ip, data=b"DATA", ttl=9)
        assert wait_for(lambda: readable(receiver, TIMEOUT) and wanted in receiver.recv(2000))
        assert queue.counters.refused == {}
