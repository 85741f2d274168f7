"""Attributes of packets."""

from __future__ import annotations

import time
from typing import Any

import pytest

import nfnet
from nfnet import ArgumentError, Packet, Queue, Verdict, testing
from nfnet.cli import packet_text
from nfnet.protocol.conntrack import CTA
from nfnet.protocol.nfqnl import NFQA

from .kernel import FakeKernel, packet_message


def read(message: bytes, number: int = 1) -> Packet:
    kernel = FakeKernel(num=number)
    kernel.interfaces[2] = "eth0"
    with Queue(number, transport=kernel) as queue:
        kernel.deliver(message)
        return next(iter(queue))


OUTPUT = "RX NFQUEUE OUTPUT mark prio uid gid, odd length payload, queue 1"
PREROUTING = "RX NFQUEUE PREROUTING hwaddr, timestamp, CAP_LEN, payload cut to 40, queue 2"
PREROUTING_V6 = "RX NFQUEUE PREROUTING IPv6 queue 2"
META = "RX NFQUEUE COPY_META OUTPUT (no payload), queue 1"

EXPECTED: dict[str, dict[str, Any]] = {
    OUTPUT: {
        "id": 1,
        "hook": nfnet.Hook.OUTPUT,
        "family": nfnet.Family.IPV4,
        "hw_protocol": 0x0800,
        "mark": 0xDEADBEEF,
        "priority": 6,
        "uid": 0,
        "gid": 0,
        "indev": None,
        "outdev": 2,
        "physindev": None,
        "physoutdev": None,
        "indev_name": None,
        "hwaddr": None,
        "timestamp": None,
        "timestamp_ns": None,
        "cap_len": 33,
        "truncated": False,
        "skbinfo": nfnet.SkbInfo.CSUM_NOT_READY,
        "vlan": None,
        "l2header": None,
        "secctx": None,
        "cgroup": None,
        "conntrack": None,
        "ctinfo": None,
    },
    PREROUTING: {
        "id": 1,
        "hook": nfnet.Hook.PREROUTING,
        "indev": 2,
        "outdev": None,
        "mark": 0,
        "priority": 0,
        "hwaddr": bytes.fromhex("020000000002"),
        "timestamp": 1795287298.624434,
        "timestamp_ns": 1795287298624434000,
        "cap_len": 92,
        "truncated": True,
        "uid": None,
        "gid": None,
        "skbinfo": nfnet.SkbInfo(0),
    },
    PREROUTING_V6: {"id": 2, "family": nfnet.Family.IPV6, "hw_protocol": 0x86DD, "cap_len": 51, "truncated": True},
    META: {"id": 2, "payload": b"", "cap_len": 0, "truncated": True, "mark": 0xDEADBEEF},
}


@pytest.mark.parametrize("name", EXPECTED)
def test_recorded_packets(name: str, datagrams: dict[str, bytes]) -> None:
    packet = read(datagrams[name], 2 if "queue 2" in name else 1)
    assert {key: getattr(packet, key) for key in EXPECTED[name]} == EXPECTED[name]
    assert packet.raw == datagrams[name]


def test_payload_of_a_recorded_packet(datagrams: dict[str, bytes]) -> None:
    packet = read(datagrams[OUTPUT])
    assert packet.payload == datagrams[OUTPUT][-33:]
    assert packet.payload.endswith(b"hello")


def test_attributes_show_everything(datagrams: dict[str, bytes]) -> None:
    attributes = read(datagrams[PREROUTING], 2).attributes
    assert attributes[NFQA.HWADDR].address[:6] == bytes.fromhex("020000000002")
    assert attributes[NFQA.CAP_LEN] == 92
    assert [key.name for key in attributes] == [
        "PACKET_HDR",
        "IFINDEX_INDEV",
        "HWADDR",
        "TIMESTAMP",
        "CAP_LEN",
        "PAYLOAD",
    ]


def test_attributes_that_this_kernel_did_not_send() -> None:
    packet = read(
        packet_message(
            3,
            family=7,
            VLAN={1: 0x88A8, 2: 0x6005},
            L2HDR=b"\x01" * 14,
            SECCTX=b"system_u:object_r:packet_t:s0\0",
            CGROUP_CLASSID=0x10001,
            IFINDEX_PHYSINDEV=4,
            IFINDEX_PHYSOUTDEV=5,
            CT={3: 8, 8: 77},
            CT_INFO=3,
            SKB_INFO=6,
        )
    )
    assert packet.family == nfnet.Family.BRIDGE
    assert packet.vlan == nfnet.Vlan(0x88A8, 0x6005)
    assert packet.l2header == b"\x01" * 14
    assert packet.secctx == "system_u:object_r:packet_t:s0"
    assert packet.cgroup == 0x10001
    assert (packet.physindev, packet.physoutdev) == (4, 5)
    assert packet.conntrack is not None
    assert packet.conntrack.mark == 77
    assert packet.ctinfo == nfnet.CtInfo.ESTABLISHED_REPLY
    assert packet.skbinfo == nfnet.SkbInfo.GSO | nfnet.SkbInfo.CSUM_NOT_VERIFIED


def test_numbers_that_nobody_knows_yet_are_kept() -> None:
    packet = read(packet_message(3, family=77, hook=9, CT_INFO=99))
    assert (packet.family, packet.hook, packet.ctinfo) == (77, 9, 99)
    assert (packet.family.name, packet.hook.name) == ("UNKNOWN_77", "UNKNOWN_9")


def test_interface_names() -> None:
    packet = read(packet_message(1, IFINDEX_INDEV=2, IFINDEX_OUTDEV=0x7FFFFFF0))
    assert (packet.indev_name, packet.outdev_name, packet.physindev_name) == ("eth0", None, None)


def test_repr_says_from_where_to_where() -> None:
    packet = read(packet_message(3, testing.udp(b"x", destination="192.0.2.2", destination_port=53)))
    line = "--:--:-- - > - UDP 192.0.2.1.40000 > 192.0.2.2.53 29 bytes"
    assert packet.summary() == line
    assert str(packet) == f"{line} undecided"
    assert repr(packet) == f"<Packet 3 OUTPUT: {line} undecided>"
    assert repr(read(packet_message(3, bytes(60)))) == (
        "<Packet 3 OUTPUT: --:--:-- - > - 60 bytes that are not an IP packet undecided>"
    )


def test_str_says_what_the_command_says(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = FakeKernel()
    kernel.interfaces = {2: "eth0", 3: "eth1"}
    with Queue(1, transport=kernel) as queue:
        more = {"IFINDEX_INDEV": 2, "IFINDEX_OUTDEV": 3, "MARK": 7, "UID": 1000}
        stamp = {"seconds": 1_700_000_000, "microseconds": 42}
        kernel.feed(payload=testing.tcp(flags=2), TIMESTAMP=stamp, hook=2, **more)
        packet = next(iter(queue))
        moment = time.strftime("%H:%M:%S", time.localtime(1_700_000_000)) + ".000042"
        what = "eth0 > eth1 TCP 192.0.2.1.40000 > 192.0.2.2.80 [SYN] 40 bytes mark 0x7 uid 1000"
        assert str(packet) == f"{moment} {what} undecided"
        packet.drop()
        assert str(packet) == packet_text.line(packet, "drop") == f"{moment} {what} drop"
        assert repr(packet) == f"<Packet 1 FORWARD: {packet}>"


def test_repr_takes_all_that_can_come() -> None:
    whole = packet_message(3, testing.udp(b"x"), MARK=7, IFINDEX_INDEV=2)
    packet = read(whole)
    for length in range(len(whole)):
        packet.raw, packet._layout = whole[:length], None
        assert repr(packet).startswith("<Packet ")
    assert repr(Packet()).startswith("<Packet unreadable: ")


def test_a_kept_packet_does_not_change() -> None:
    kernel = FakeKernel()
    with Queue(1, transport=kernel) as queue:
        kernel.deliver(packet_message(1, b"first" + bytes(30)))
        kept = next(iter(queue))
        kernel.deliver(packet_message(2, b"other" + bytes(30)))
        next(iter(queue)).drop()
        assert kept.payload.startswith(b"first")


def test_a_verdict_may_change_the_connection(nfnet_queue: Any) -> None:
    def handler(packet: Packet) -> None:
        if packet.id == 1:
            for wrong, text in (({"ct_mark": 1 << 32}, "ct_mark"), ({"ct_labels": bytes(15)}, "15 bytes")):
                with pytest.raises(ArgumentError, match=text):
                    packet.accept(**wrong)
            packet.accept(ct_mark=7, ct_labels=bytes(range(16)), mark=1)
        else:
            with pytest.raises(ArgumentError, match="conntrack=True"):
                packet.accept(ct_mark=7)
            packet.verdict(Verdict.ACCEPT)

    nfnet_queue.feed(CT={CTA.MARK: 1})
    nfnet_queue.feed()
    nfnet_queue.run(handler)
    (_, word, changes), second = nfnet_queue.kernel.judged
    assert (word, changes[NFQA.MARK]) == (Verdict.ACCEPT, 1)
    assert changes[NFQA.CT] == {CTA.MARK: 7, CTA.LABELS: bytes(range(16))}
    assert second == (2, Verdict.ACCEPT, {})


@pytest.mark.parametrize(
    ("kernel", "hook", "protocol", "refusal"),
    [
        ((6, 12), "OUTPUT", "tcp", None),
        ((6, 12), "OUTPUT", "udp", None),
        ((6, 12), "POSTROUTING", "udp", None),
        ((6, 12), "FORWARD", "udp", None),
        ((6, 12), "INPUT", "tcp", None),
        ((6, 12), "INPUT", "udp", "on its way in"),
        ((6, 12), "PREROUTING", "udp", "on its way in"),
        ((6, 12), "INPUT", "gre", "on its way in"),
        ((6, 12), "OUTPUT", "gre", None),
        ((5, 10), "OUTPUT", "gre", None),
        ((5, 10), "OUTPUT", "tcp", None),
        ((5, 10), "OUTPUT", "udp", "by Linux before 6.12"),
        ((5, 10), "INPUT", "udp", "on its way in"),
        ((5, 10), "OUTPUT", None, "by Linux before 6.12"),
        ((6, 12), "INPUT", None, "on its way in"),
    ],
)
def test_super_packets_that_the_kernel_would_lose_are_not_changed(
    nfnet_queue: Any,
    monkeypatch: pytest.MonkeyPatch,
    kernel: tuple[int, int],
    hook: str,
    protocol: str | None,
    refusal: str | None,
) -> None:
    """Neither by `rewrite` nor by other bytes. The unknown rest of a packet (None) can be anything."""
    monkeypatch.setattr("nfnet.packet._kernel", kernel)
    udp = testing.udp(bytes(3000))
    payload = {"tcp": testing.tcp(bytes(3000)), "udp": udp, "gre": udp[:9] + b"\x2f" + udp[10:], None: None}[protocol]
    packet_id = nfnet_queue.kernel.feed(1, payload=payload, hook=nfnet.Hook[hook], SKB_INFO=3)[0]
    kept: list[nfnet.Packet] = []
    nfnet_queue.run(kept.append)
    (packet,) = kept
    if refusal is None:
        packet.accept(payload=packet.rewrite(ttl=9))
        assert nfnet_queue.verdicts[packet_id].payload[8] == 9
        return
    if payload:
        with pytest.raises(ArgumentError, match=refusal):
            packet.rewrite(ttl=9)
    with pytest.raises(ArgumentError, match=refusal):
        packet.accept(payload=testing.udp(bytes(3000), destination_port=7))
    assert packet.decided is None
    packet.accept(mark=7, payload=packet.payload or None)
    assert nfnet_queue.verdicts[packet_id].payload is None
