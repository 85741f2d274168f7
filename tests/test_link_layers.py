"""Captures with link-layer headers: the packets that a queue or log gets, and their attributes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Family, Hook, testing
from nfnet.captures import LinkType
from nfnet.captures._link_layer import LINK_LAYERS
from nfnet.errors import ArgumentError

from .frames import ETHERNET, IPV4, IPV6, NOT_IP, SAMPLES, SOURCE, Sample, cooked, tagged, write_pcap
from .test_captures import block, interface, section
from .test_replay import drain

FOUR = testing.udp(b"four", source="192.0.2.1", destination="198.51.100.2")
SIX = testing.udp(b"six", source="2001:db8::1", destination="2001:db8:1::2")
CASES = [
    pytest.param(name, packet, id=f"{name} {version}")
    for name, sample in SAMPLES.items()
    for version, packet, other in (("IPv4", FOUR, LinkType.IPV6), ("IPv6", SIX, LinkType.IPV4))
    if sample.link_type != other
]
EACH = pytest.mark.parametrize(("name", "packet"), CASES)


def record_of(sample: Sample, packet: bytes) -> bytes:
    return (sample.before_ipv6 if packet is SIX else sample.before) + packet


def packets_of(path: Path, **options: Any) -> list[nfnet.Packet]:
    with nfnet.Queue(1, transport=nfnet.replay(path, **options)) as queue:
        return list(queue)


def test_there_is_a_sample_of_each_link_type() -> None:
    assert {int(sample.link_type) for sample in SAMPLES.values()} == set(map(int, LINK_LAYERS))


@EACH
def test_the_packet_in_a_frame(name: str, packet: bytes, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    path = write_pcap(tmp_path / "file.pcap", sample.link_type, record_of(sample, packet))
    (found,) = packets_of(path)
    assert found.payload == packet
    assert (found.id, found.truncated, found.cap_len) == (1, False, len(packet))
    assert found.family == (Family.IPV6 if packet is SIX else Family.IPV4)
    assert found.hw_protocol == (0x86DD if packet is SIX else 0x0800)
    assert found.timestamp_ns == 1_700_000_000_123_456_000
    assert found.hook == sample.hook
    sent = sample.hook == Hook.OUTPUT
    assert (found.indev, found.outdev) == ((None, sample.interface) if sent else (sample.interface, None))
    assert found.hwaddr == sample.hwaddr
    assert (found.vlan, found.l2header) == (None, None)  # as in a queue that is no bridge's


@EACH
def test_what_follows_the_packet_in_the_frame_is_cut_off(name: str, packet: bytes, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    record = record_of(sample, packet) + b"padding, and a checksum"
    (found,) = packets_of(write_pcap(tmp_path / "file.pcap", sample.link_type, record))
    assert (found.payload, found.truncated) == (packet, False)


@EACH
def test_frames_that_were_cut_short(name: str, packet: bytes, tmp_path: Path) -> None:
    """Records too short for the beginning of a packet are errors, or contain no packet."""
    sample = SAMPLES[name]
    record = record_of(sample, packet)
    before = len(record) - len(packet)
    sizes = range(1, len(record) + 1)
    path = write_pcap(tmp_path / "file.pcap", sample.link_type, *[record] * len(record), cuts=sizes)
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        found, errors = drain(queue)
    assert all("too few for a header of" in str(error) for error in errors)
    assert [error.record for error in errors] == sorted({error.record or 0 for error in errors} & {*range(before + 1)})
    assert len(errors) + sum(replay.not_ip.values()) == before
    assert [cut.payload for cut in found] == [packet[:size] for size in range(1, len(packet) + 1)]
    assert {cut.cap_len for cut in found} == {len(packet)}
    assert [cut.truncated for cut in found] == [True] * (len(packet) - 1) + [False]


@pytest.mark.parametrize("name", NOT_IP)
def test_what_holds_no_packet_is_counted(name: str, tmp_path: Path) -> None:
    link_type, record, ethertype = NOT_IP[name]
    replay = nfnet.replay(write_pcap(tmp_path / "file.pcap", link_type, record, record))
    with nfnet.Queue(1, transport=replay) as queue:
        assert list(queue) == []
    assert (replay.not_ip, replay.skipped) == ({ethertype: 2}, {})
    assert "2 records that are not IP" in replay.left_out()


def test_frames_of_ip_without_its_header_are_not_called_by_its_name(tmp_path: Path) -> None:
    records = [record for name, (_, record, ethertype) in NOT_IP.items() if ethertype == 0x0800]
    replay = nfnet.replay(write_pcap(tmp_path / "file.pcap", LinkType.ETHERNET, *records, ETHERNET + IPV6 + b"\x40"))
    with nfnet.Queue(1, transport=replay) as queue:
        assert list(queue) == []
    assert replay.left_out() == (
        "3 records that are not IP (2 of EtherType IPv4 without an IPv4 header, "
        "1 of EtherType IPv6 without an IPv6 header)"
    )


def test_nothing_is_left_out_of_a_file_of_packets(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "file.pcap", LinkType.ETHERNET, ETHERNET + IPV4 + FOUR)
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        assert len(list(queue)) == 1
    assert replay.left_out() == ""


def test_other_link_types_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "a file.pcap", LinkType.USB_LINUX, b"usb", b"usb")
    with pytest.raises(nfnet.CaptureError) as caught:
        testing.open_replay(path)
    assert "2 records of link type USB_LINUX (189)" in str(caught.value)
    assert f"tshark -r '{path}' -U IP -w ip.pcapng" in str(caught.value)
    with pytest.raises(nfnet.CaptureError, match="USB_LINUX"):
        testing.from_pcap(path)
    path = write_pcap(tmp_path / "file.pcap", 40_000, b"what")
    with pytest.raises(nfnet.CaptureError, match=r"link type UNKNOWN_40000 \(40000\)"):
        testing.open_replay(path)


def test_what_can_contain_ip_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "file.pcap", LinkType.ETHERNET, ETHERNET + b"\x88\xe5" + bytes(40))
    with pytest.raises(nfnet.CaptureError, match=r"1 record that is not IP \(1 MACsec\)\. To get .*: tshark -r "):
        testing.from_pcap(path)


def test_super_packets_have_the_length_of_their_record(tmp_path: Path) -> None:
    """Captured before the network card wrote the length into each segment."""
    packet = testing.tcp(bytes(3000))
    zero = packet[:2] + b"\0\0" + packet[4:]
    path = write_pcap(tmp_path / "file.pcap", LinkType.ETHERNET, ETHERNET + IPV4 + zero, ETHERNET + IPV4 + packet)
    assert [len(found.payload) for found in packets_of(path)] == [len(packet)] * 2


# --- hook and interface


@pytest.mark.parametrize(
    ("options", "hooks"),
    [
        ({}, [Hook.PREROUTING] * 4),
        ({"hook": "forward"}, [Hook.FORWARD] * 4),
        ({"hook": Hook.POSTROUTING}, [Hook.POSTROUTING] * 4),
        ({"local": "192.0.2.0/24"}, [Hook.OUTPUT, Hook.INPUT, Hook.FORWARD, Hook.OUTPUT]),
        ({"local": ["192.0.2.1", "2001:db8::/32"]}, [Hook.OUTPUT, Hook.INPUT, Hook.OUTPUT, Hook.OUTPUT]),
        ({"local": "192.0.2.0/24", "hook": "input"}, [Hook.INPUT] * 4),
    ],
)
def test_which_hook(options: Any, hooks: list[Hook], tmp_path: Path) -> None:
    back = testing.udp(source="198.51.100.2", destination="192.0.2.1")
    inside = testing.udp(source="192.0.2.1", destination="192.0.2.9")
    path = write_pcap(tmp_path / "file.pcap", LinkType.RAW, FOUR, back, SIX, inside)
    assert [found.hook for found in packets_of(path, **options)] == hooks


def test_local_goes_before_what_the_record_says(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "file.pcap", LinkType.LINUX_SLL, cooked(0) + IPV4 + FOUR)
    (found,) = packets_of(path, local="192.0.2.1")
    assert (found.hook, found.hwaddr) == (Hook.OUTPUT, None)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hook": "sideways"}, "hook is 'sideways' and must be one of 'prerouting'"),
    ({"hook": 3}, "hook must be"),
    ({"local": "192.0.2.1/24"}, "has host bits set"),
    ({"local": "home"}, "local: 'home'"),
    ({"local": 7}, "local must be a network"),
    ({"family": "arp"}, "family is 'arp' and must be one of 'inet', 'bridge'"),
]


@pytest.mark.parametrize(("options", "text"), WRONG)
def test_wrong_options_are_refused(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "file.pcap", LinkType.RAW, FOUR)
    with pytest.raises(ArgumentError, match=text):
        nfnet.replay(path, **options)


def option(code: int, value: bytes, order: str = "<") -> bytes:
    return struct.pack(f"{order}HH", code, len(value)) + value + bytes(-len(value) % 4)


def enhanced(order: str, which: int, data: bytes, *options: bytes) -> bytes:
    head = struct.pack(f"{order}IIIII", which, 0, 5, len(data), len(data))
    return block(order, 6, head + data + bytes(-len(data) % 4) + b"".join(options))


@pytest.mark.parametrize("order", "<>")
def test_what_pcapng_says_of_interface_and_direction(order: str, tmp_path: Path) -> None:
    frame = ETHERNET + IPV4 + FOUR
    data = section(order) + interface(order, 1, (2, b"eth0")) + interface(order, 1, (2, "größer".encode()))
    for which, flags in ((0, 1), (1, 2), (0, 1 | 4 << 2), (1, 0)):
        data += enhanced(order, which, frame, option(2, struct.pack(f"{order}I", flags), order))
    data += enhanced(order, 0, frame)
    path = tmp_path / "file.pcapng"
    path.write_bytes(data)
    found = packets_of(path)
    assert [packet.hook for packet in found] == [
        Hook.INPUT,
        Hook.OUTPUT,
        Hook.FORWARD,
        Hook.PREROUTING,
        Hook.PREROUTING,
    ]
    assert [packet.indev_name for packet in found] == ["eth0", None, "eth0", "größer", "eth0"]
    assert [packet.outdev_name for packet in found] == [None, "größer", None, None, None]
    assert [packet.indev for packet in found] == [1, None, 1, 2, 1]
    assert [packet.hwaddr for packet in found] == [SOURCE, None, SOURCE, SOURCE, SOURCE]


def test_several_link_types_and_sections(tmp_path: Path) -> None:
    data = section("<") + interface("<", 1, (2, b"eth0")) + interface("<", 113, (2, b"any"))
    data += enhanced("<", 0, ETHERNET + IPV4 + FOUR) + enhanced("<", 1, cooked(4) + IPV4 + FOUR)
    data += section(">") + interface(">", 101, (2, b"tun0"))
    data += enhanced(">", 0, SIX)
    path = tmp_path / "file.pcapng"
    path.write_bytes(data)
    found = packets_of(path)
    assert [packet.payload for packet in found] == [FOUR, FOUR, SIX]
    # "any" is the name of no interface.
    assert [(packet.indev_name, packet.outdev_name, packet.outdev) for packet in found] == [
        ("eth0", None, None),
        (None, None, None),
        ("tun0", None, None),
    ]
    assert [packet.id for packet in found] == [1, 2, 3]


@pytest.mark.parametrize("order", "<>")
def test_the_obsolete_packet_block(order: str, tmp_path: Path) -> None:
    frame = ETHERNET + IPV4 + FOUR
    body = struct.pack(f"{order}HHIIII", 1, 9, 1, 2, len(frame), len(frame) + 3) + frame + bytes(-len(frame) % 4)
    body += option(2, struct.pack(f"{order}I", 2), order)
    path = tmp_path / "file.pcapng"
    path.write_bytes(section(order) + interface(order, 9) + interface(order, 1, (2, b"eth1")) + block(order, 2, body))
    (found,) = packets_of(path)
    assert (found.payload, found.hook, found.outdev_name) == (FOUR, Hook.OUTPUT, "eth1")
    assert found.timestamp_ns == ((1 << 32) + 2) * 1000


@pytest.mark.parametrize("order", "<>")
def test_pcap_as_kuznetzov_modified_it(order: str, tmp_path: Path) -> None:
    """The records of old Linux distributions: with interface, protocol and packet type."""
    data = struct.pack(f"{order}IHHiIII", 0xA1B2CD34, 2, 4, 0, 0, 65535, 1)
    frame = ETHERNET + IPV4 + FOUR
    for kind in (0, 4):
        data += struct.pack(f"{order}IIIIIHBx", 7, 8, len(frame), len(frame), 5, 8, kind) + frame
    path = tmp_path / "file.pcap"
    path.write_bytes(data)
    found = packets_of(path)
    assert [(packet.payload, packet.hook) for packet in found] == [(FOUR, Hook.INPUT), (FOUR, Hook.OUTPUT)]
    assert [(packet.indev, packet.outdev) for packet in found] == [(5, None), (None, 5)]
    assert found[0].timestamp_ns == 7_000_008_000


# --- bridges


def test_frames_as_a_bridge_has_them(tmp_path: Path) -> None:
    inner = ETHERNET + tagged((0x88A8, 0x6007), (0x8100, 5)) + IPV4 + FOUR
    stp = ETHERNET + b"\0\x26\x42\x42\x03" + bytes(40)
    arp = ETHERNET + b"\x08\x06" + bytes(28)
    path = write_pcap(tmp_path / "file.pcap", LinkType.ETHERNET, ETHERNET + IPV4 + FOUR, inner, arp, stp)
    plain, tag, address, tree = packets_of(path, family="bridge")
    assert {packet.family for packet in (plain, tag, address, tree)} == {Family.BRIDGE}
    assert (plain.payload, plain.vlan, plain.l2header) == (FOUR, None, ETHERNET + IPV4)
    # The kernel keeps the outermost tag apart, and leaves the others where they are.
    assert (tag.hw_protocol, tag.vlan, tag.l2header) == (0x8100, (0x88A8, 0x6007), ETHERNET + b"\x81\0")
    assert tag.payload == b"\0\5" + IPV4 + FOUR
    assert tag.udp is not None
    assert tag.udp.data == b"four"
    assert (address.hw_protocol, address.payload, address.ip) == (0x0806, bytes(28), None)
    assert (tree.hw_protocol, tree.payload[:3]) == (4, b"\x42\x42\x03")
    assert plain.hwaddr == SOURCE


def test_ethernet_in_another_header_as_a_bridge_has_it(tmp_path: Path) -> None:
    frame = struct.pack("<BBHI", 0, 0, 12, 1) + b"more" + ETHERNET + tagged((0x8100, 5)) + IPV4 + FOUR
    (found,) = packets_of(write_pcap(tmp_path / "file.pcap", LinkType.PPI, frame), family="bridge")
    assert (found.payload, found.vlan, found.l2header) == (FOUR, (0x8100, 5), ETHERNET + IPV4)


def test_a_bridge_has_only_frames_of_ethernet(tmp_path: Path) -> None:
    replay = nfnet.replay(write_pcap(tmp_path / "file.pcap", LinkType.RAW, FOUR), family="bridge")
    with nfnet.Queue(1, transport=replay) as queue:
        assert list(queue) == []
    assert replay.not_ip == {0x0800: 1}


# --- logs, and files that have the kernel's messages, too


def test_a_log_gets_packets_of_any_capture(tmp_path: Path) -> None:
    data = section("<") + interface("<", 1, (2, b"eth0"))
    data += enhanced("<", 0, ETHERNET + IPV4 + FOUR, option(2, struct.pack("<I", 1)))
    data += enhanced("<", 0, ETHERNET + tagged((0x8100, 5)) + IPV4 + FOUR)
    path = tmp_path / "file.pcapng"
    path.write_bytes(data)
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        first, second = log
    assert (first.payload, first.hook, first.indev_name, first.hwaddr) == (FOUR, Hook.INPUT, "eth0", SOURCE)
    assert (first.prefix, first.timestamp_ns, second.payload) == ("", 5000, FOUR)
    with nfnet.Log(5, transport=nfnet.replay(path, family="bridge")) as log:
        first, second = log
    assert (second.vlan, second.l2header, second.payload) == ((0x8100, 5), ETHERNET + IPV4, FOUR)


def test_what_was_logged_and_captured_comes_once(tmp_path: Path) -> None:
    """As dumpcap records it with -i eth0 -i nflog:5."""
    data = section("<") + interface("<", 1) + interface("<", 239)
    data += enhanced("<", 0, ETHERNET + IPV4 + FOUR) + enhanced("<", 1, testing.log_message(FOUR)[16:])
    path = tmp_path / "file.pcapng"
    path.write_bytes(data)
    replay = nfnet.replay(path)
    with nfnet.Log(5, transport=replay) as log:
        assert [message.prefix for message in log] == ["test"]
    assert replay.skipped == {1: 1}
    assert [packet.payload for packet in packets_of(path)] == [FOUR]
