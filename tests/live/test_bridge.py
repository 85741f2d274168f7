"""The bridge family on the real kernel: its hooks, VLAN tags and link-layer headers."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest

import nfnet
from nfnet import Family, Hook, Log, LogMessage, Packet, Queue, Vlan, rules, testing

from .conftest import (
    NFT_QUEUE,
    TAGGED_FRAME,
    TIMEOUT,
    Net,
    featured,
    kernel_lacks,
    lacking,
    make_bridge,
    readable,
    send_through_bridge,
)

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")
SOURCE = bytes.fromhex("02000000aa01")
DESTINATION, EVERYBODY = bytes.fromhex("02000000aa02"), b"\xff" * 6
PACKET_AUXDATA = 8  # linux/if_packet.h


def frame_for(hook: str) -> bytes:
    """A frame that passes a hook: the bridge itself gets broadcasts."""
    packet = testing.udp(b"data", source="10.0.0.1", destination="10.0.0.2")
    return (EVERYBODY if hook == "input" else DESTINATION) + SOURCE + b"\x08\0" + packet


def queue_rule(net: Net, hook: str, **options: Any) -> rules.Rule:
    rule = rules.queue(1, hook=hook, family="bridge", netns=net.hosts["router"], **options)
    if (error := lacking(rule)) is not None:
        assert f"nft add rule bridge nfnet {hook}" in str(error)
        kernel_lacks(**NFT_QUEUE)  # and iptables has no target for bridges
    return rule


@pytest.mark.parametrize("hook", [featured(f"queue in a bridge: {hook}", hook) for hook in HOOKS])
def test_hooks_of_queues(net: Net, hook: str) -> None:
    net.at("router", make_bridge)
    seen: list[Packet] = []
    with queue_rule(net, hook, destination="10.0.0.2"), Queue(1, netns=net.hosts["router"]) as queue:

        def handler(packet: Packet) -> None:
            seen.append(packet)
            packet.accept()

        host = "router" if hook == "output" else "client"
        send_through_bridge(net, frame_for(hook), lambda: bool(queue.process(handler)), host)
        assert (seen[0].family, seen[0].hook, seen[0].hw_protocol) == (Family.BRIDGE, Hook[hook.upper()], 0x0800)
        assert queue.counters.refused == {}


@pytest.mark.parametrize("hook", [featured(f"log in a bridge: {hook}", hook) for hook in HOOKS])
def test_hooks_of_logs(net: Net, hook: str) -> None:
    net.at("router", make_bridge)
    here = net.hosts["router"]
    seen: list[LogMessage] = []
    rule = rules.log(5, hook=hook, family="bridge", destination="10.0.0.2", netns=here)
    with rule, Log(5, threshold=1, netns=here) as log:
        host = "router" if hook == "output" else "client"
        send_through_bridge(net, frame_for(hook), lambda: bool(log.process(seen.append)), host)
        assert (seen[0].family, seen[0].hook, seen[0].hw_protocol) == (Family.BRIDGE, Hook[hook.upper()], 0x0800)


def receive_frame(sock: socket.socket) -> tuple[bytes, Vlan | None]:
    """Return the next incoming frame, and its tag, which the kernel has removed from it."""
    while True:
        assert readable(sock, TIMEOUT)
        frame, ancillary, _, address = sock.recvmsg(2000, 200)
        if address[2] == socket.PACKET_OUTGOING:
            continue
        status, *_, tci, protocol = struct.unpack("=IIIHHHH", ancillary[0][2])
        return frame, Vlan(protocol, tci) if status & 0x10 else None  # TP_STATUS_VLAN_VALID


@pytest.mark.parametrize(
    "change",
    [
        featured("queue in a bridge: vlan, l2header", {}, id="none"),
        featured("queue in a bridge: vlan set by a verdict", {"vlan": Vlan(0x8100, 0x2006)}, id="vlan"),
        featured(
            "queue in a bridge: l2header set by a verdict",
            {"l2header": DESTINATION + bytes.fromhex("02000000aa77") + b"\x08\0"},
            id="l2header",
        ),
    ],
)
def test_vlan_and_link_layer_header(net: Net, change: dict[str, Any]) -> None:
    bridge, left, right = net.at("router", make_bridge)
    ethernet = DESTINATION + SOURCE + b"\x08\0"
    seen: list[Packet] = []
    with (
        queue_rule(net, "forward"),
        Queue(1, netns=net.hosts["router"]) as queue,
        net.at("server", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))) as receiver,
    ):
        receiver.bind(("to-router", 3))
        receiver.setsockopt(263, PACKET_AUXDATA, 1)  # SOL_PACKET

        def handler(packet: Packet) -> None:
            if packet.vlan:
                seen.append(packet)
                packet.accept(**change)
            else:
                packet.drop()

        send_through_bridge(net, TAGGED_FRAME, lambda: bool(queue.process(handler)) and bool(seen))
        packet = seen[0]
        assert (packet.vlan, packet.l2header) == (Vlan(0x8100, 0x6005), ethernet)
        assert packet.payload == TAGGED_FRAME[18:]
        assert packet.hwaddr == SOURCE
        assert (packet.indev, packet.outdev, packet.physindev, packet.physoutdev) == (bridge, bridge, left, right)
        found, tag = receive_frame(receiver)
        while found[14:] != packet.payload:  # packets that the hosts send by themselves
            found, tag = receive_frame(receiver)
        assert found[:14] == change.get("l2header", ethernet)
        assert tag == change.get("vlan", Vlan(0x8100, 0x6005))
        assert queue.counters.refused == {}


@pytest.mark.feature("log in a bridge: vlan, l2header")
def test_vlan_and_link_layer_header_of_a_log(net: Net) -> None:
    """A tagged frame that passes a bridge, with the attributes that only the bridge family has."""
    here = net.hosts["router"]
    bridge, left, right = net.at("router", make_bridge)
    found: list[LogMessage] = []
    with Log(5, netns=here, threshold=1) as log, rules.log(5, prefix="br", hook="forward", family="bridge", netns=here):

        def came() -> bool:
            log.process(lambda message: found.append(message) if message.vlan else None)
            return bool(found)

        send_through_bridge(net, TAGGED_FRAME, came)
        message = found[0]
        assert (message.physindev_name, message.physoutdev_name) == ("to-client", "to-server")
    assert (message.family, message.hook, message.prefix) == (nfnet.Family.BRIDGE, Hook.FORWARD, "br")
    assert message.vlan == nfnet.Vlan(0x8100, 0x6005)
    ethernet = DESTINATION + SOURCE + b"\x08\0"
    assert (message.l2header, message.hwheader) == (ethernet, ethernet)
    assert message.hwaddr == SOURCE
    assert (message.indev, message.outdev) == (bridge, bridge)
    assert (message.physindev, message.physoutdev) == (left, right)
    assert message.payload == TAGGED_FRAME[18:]


def test_addresses(net: Net) -> None:
    here = net.hosts["router"]
    net.at("router", make_bridge)
    with (
        rules.log(5, hook="forward", family="bridge", destination="10.0.0.2", netns=here),
        rules.log(6, hook="forward", family="bridge", destination="10.0.0.3", netns=here),
        Log(5, threshold=1, netns=here) as log,
        Log(6, threshold=1, netns=here) as other,
    ):
        seen: list[bytes] = []
        send_through_bridge(net, frame_for("forward"), lambda: bool(log.process(lambda m: seen.append(m.payload))))
        assert seen[0][16:20] == bytes([10, 0, 0, 2])
        assert not other.fetch()
