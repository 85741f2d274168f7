"""Which messages contain an IP packet, and which only seem to: in properties, lines, JSON, decode, scapy."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

import pytest

from nfnet import ArgumentError, ClosedError, LogMessage, Packet, inet, testing
from nfnet.cli import decode_command, packet_text

IPV4, IPV6, ARP, NETDEV, BRIDGE = 2, 10, 3, 5, 7
V4, V6 = testing.udp(b"four"), testing.udp(b"six", source="fd00::1", destination="fd00::2")
ARP_REPLY = bytes.fromhex("0001080006040002 450000000001 c0000201 020000000002 c0000202")
ETHERNET = bytes.fromhex("450000000002 450000000001")  # addresses that look like the beginning of an IPv4 header


class Case(NamedTuple):
    """A payload and its EtherType in the message; ``ip`` is the IP packet in it."""

    family: int
    hw_protocol: int
    payload: bytes
    ip: bytes | None
    hook: int = 0
    l2header: bytes | None = None


def tag(ethertype: int) -> bytes:
    return b"\x60\x05" + ethertype.to_bytes(2, "big")


def ethernet(ethertype: int) -> bytes:
    return ETHERNET + ethertype.to_bytes(2, "big")


BOTH = {
    "IPv4": Case(IPV4, 0x0800, V4, V4),
    "IPv6": Case(IPV6, 0x86DD, V6, V6),
    "IPv4 of an older kernel": Case(IPV4, 0, V4, V4),
    "IPv6 of an older kernel": Case(IPV6, 0, V6, V6),
    "IPv6 where IPv4 is said": Case(IPV4, 0x0800, V6, None),
    "IPv4 where IPv6 is said": Case(IPV6, 0x86DD, V4, None),
    "bridge: IPv4": Case(BRIDGE, 0x0800, V4, V4),
    "bridge: IPv6": Case(BRIDGE, 0x86DD, V6, V6),
    "bridge: an ARP reply": Case(BRIDGE, 0x0806, ARP_REPLY, None),
    "bridge: bytes like IPv4 of an unknown protocol": Case(BRIDGE, 0x88B5, V4, None),
    "bridge: bytes like IPv6 of an unknown protocol": Case(BRIDGE, 0x88B5, V6, None),
    "bridge: no EtherType": Case(BRIDGE, 0, V4, None),
    "bridge: IPv6 where IPv4 is said": Case(BRIDGE, 0x0800, V6, None),
    "bridge: a second tag": Case(BRIDGE, 0x8100, tag(0x0800) + V4, V4),
    "bridge: three tags": Case(BRIDGE, 0x88A8, tag(0x8100) + tag(0x86DD) + V6, V6),
    "bridge: a second tag, then something else": Case(BRIDGE, 0x8100, tag(0x88B5) + V4, None),
    "bridge: a tag that looks like IPv4": Case(BRIDGE, 0x8100, b"\x45\0" + tag(0x88B5)[2:] + V4, None),
    "bridge: a cut tag": Case(BRIDGE, 0x8100, tag(0x0800)[:3], None),
    "bridge: nothing but tags": Case(BRIDGE, 0x8100, tag(0x8100) * 10_000, None),
}
LOGGED = {
    "netdev ingress: IPv4": Case(NETDEV, 0x0800, V4, V4, 0, ethernet(0x0800)),
    "netdev ingress: an ARP reply": Case(NETDEV, 0x0806, ARP_REPLY, None, 0, ethernet(0x0806)),
    "netdev ingress: what begins as its link-layer header": Case(NETDEV, 0x0800, V4, V4, 0, V4[:14]),
    "netdev egress: IPv4": Case(NETDEV, 0x0800, ethernet(0x0800) + V4, V4, 1, ethernet(0x0800)),
    "netdev egress: IPv6": Case(NETDEV, 0x86DD, ethernet(0x86DD) + V6, V6, 1, ethernet(0x86DD)),
    "netdev egress: an ARP reply": Case(NETDEV, 0x0806, ethernet(0x0806) + ARP_REPLY, None, 1, ethernet(0x0806)),
    "netdev egress: unknown": Case(NETDEV, 0x88B5, ethernet(0x88B5) + V4, None, 1, ethernet(0x88B5)),
    "netdev egress: a tag in the header": Case(
        NETDEV, 0x8100, ethernet(0x8100) + tag(0x0800) + V4, V4, 1, ethernet(0x8100) + tag(0x0800)
    ),
    "netdev egress: a tag behind the header": Case(
        NETDEV, 0x8100, ethernet(0x8100) + tag(0x0800) + V4, V4, 1, ethernet(0x8100)
    ),
    "netdev egress: without link-layer header": Case(NETDEV, 0x0800, V4, V4, 1, None),
    "ARP input": Case(ARP, 0x0806, ARP_REPLY, None, 0),
    "ARP output": Case(ARP, 0x0806, ethernet(0x0806) + ARP_REPLY, None, 1),
}


def message(case: Case, kind: str) -> Any:
    more = {} if case.l2header is None else {"L2HDR": case.l2header}
    options = {"family": case.family, "hw_protocol": case.hw_protocol, "hook": case.hook, **more}
    if kind == "queue":
        return Packet.from_bytes(testing.packet_message(1, case.payload, **options))
    return LogMessage.from_bytes(testing.log_message(case.payload, **options))


CASES = [pytest.param(case, kind, id=f"{kind}, {name}") for kind in ("queue", "log") for name, case in BOTH.items()]
CASES += [pytest.param(case, "log", id=f"log, {name}") for name, case in LOGGED.items()]
every_case = pytest.mark.parametrize(("case", "kind"), CASES)


@every_case
def test_properties(case: Case, kind: str) -> None:
    packet = message(case, kind)
    assert packet.payload == case.payload
    expected = case.ip or b""
    for name in ("ip", "tcp", "udp", "icmp", "flow"):
        assert getattr(packet, name) == getattr(inet, name)(expected), name
    assert (packet.ip is None) == (case.ip is None)


@every_case
def test_lines_and_json(case: Case, kind: str) -> None:
    packet = message(case, kind)
    found, line = json.loads(packet_text.ecs(packet)), packet_text.line(packet)
    assert ("ip" in found.get("source", {}), "192.0.2." in line or "fd00::" in line) == (case.ip is not None,) * 2
    if case.ip is None:
        assert f"{len(case.payload)} bytes that are not an IP packet" in line
    if case.ip is None and case.family not in (IPV4, IPV6):
        assert f"(EtherType {case.hw_protocol:#06x})" in line
        assert found["nfnet"]["hw_protocol"] == case.hw_protocol


@every_case
def test_decode(case: Case, kind: str) -> None:
    (row,) = (text for text in decode_command.describe(message(case, kind).raw) if "_PAYLOAD" in text)
    assert ("UDP" in row or "protocol" in row) == (case.ip is not None)
    assert ("IP packet" in row) == (case.ip is None)


@every_case
def test_scapy(case: Case, kind: str) -> None:
    scapy = pytest.importorskip("scapy.all")
    theirs = message(case, kind).scapy()
    assert bytes(theirs)[: len(case.payload)] == case.payload
    if len(case.payload) < 1000:  # scapy does not look behind 10,000 tags
        assert (scapy.IP in theirs or scapy.IPv6 in theirs) == (case.ip is not None)
    assert (scapy.ARP in theirs) == (ARP_REPLY in case.payload)


@pytest.mark.parametrize("case", BOTH.values(), ids=BOTH)
def test_rewriting(case: Case) -> None:
    packet = message(case, "queue")
    if case.ip is None:
        with pytest.raises(ArgumentError, match=f"not an IP packet \\(EtherType {case.hw_protocol:#06x}"):
            packet.rewrite(ttl=9)
        return
    front = case.payload[: -len(case.ip)]
    assert packet.rewrite(ttl=9, data=b"other") == front + inet.rewrite(case.ip, ttl=9, data=b"other")
    padded = message(case._replace(payload=case.payload + b"padding"), "queue")
    back = b"padding" if case.family == BRIDGE else b""
    assert padded.rewrite(ttl=9) == front + inet.rewrite(case.ip, ttl=9) + back


def test_a_message_that_does_not_say_what_it_has() -> None:
    """Such a message is damaged: the kernel always sends the EtherType. IPv4 and IPv6 packets do not need it."""
    whole = testing.log_message(V4, family=BRIDGE)
    header = whole[20:28]
    cut = (len(whole) - 8).to_bytes(4, sys.byteorder) + whole[4:20] + whole[28:]
    assert header[4:6] == b"\x08\0"
    (row,) = (text for text in decode_command.describe(cut) if "_PAYLOAD" in text)
    assert "damaged" in row
    as_ipv4 = LogMessage.from_bytes(cut[:16] + bytes([IPV4]) + cut[17:])
    assert as_ipv4.ip is not None


def test_a_verdict_does_not_say_what_its_payload_is(nfnet_queue: Any) -> None:
    nfnet_queue.feed(V4, family=BRIDGE)
    nfnet_queue.run(lambda packet: packet.accept(payload=packet.rewrite(ttl=9)))
    nfnet_queue.queue.flush()
    (row,) = (text for text in decode_command.describe(nfnet_queue.kernel.sent[-1]) if "_PAYLOAD" in text)
    assert "32 bytes, if it is IP: UDP 192.0.2.1.40000 > 192.0.2.2.9 32 bytes" in row


def test_a_packet_from_bytes_has_no_queue() -> None:
    packet = message(BOTH["IPv4"], "queue")
    assert "undecided" in repr(packet)
    with pytest.raises(ClosedError, match="packet 1 was read from bytes"):
        packet.accept()


def test_the_length_of_a_cut_packet_that_does_not_say_it() -> None:
    """A super-packet that is longer than a message can hold."""
    start = inet.rewrite(testing.tcp(bytes(1000)), flags=0x10)
    start = start[:2] + b"\0\0" + start[4:]
    for family, front in ((IPV4, b""), (BRIDGE, tag(0x0800))):
        protocol = 0x8100 if front else 0x0800
        raw = testing.packet_message(1, front + start, family=family, hw_protocol=protocol, CAP_LEN=99_000 + len(front))
        packet = Packet.from_bytes(raw)
        assert packet.ip is not None
        assert (packet.ip.length, packet.cap_len) == (99_000, 99_000 + len(front))
        assert packet.tcp is not None
        assert packet.tcp.data == bytes(1000)
        assert "TCP 192.0.2.1.40000 > 192.0.2.2.80 [ACK] 99000 bytes" in packet_text.line(packet)
        assert json.loads(packet_text.ecs(packet))["network"]["bytes"] == 99_000
        with pytest.raises(ArgumentError, match="were copied"):
            packet.rewrite(ttl=9)
