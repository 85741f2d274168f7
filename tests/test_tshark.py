"""Recordings as tshark and nfnet read them. Skipped if tshark is not installed, except in CI."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Log, Packet, Queue
from nfnet.captures import LinkType, Writer, read

from .compare_captures import compare
from .conftest import FIXTURES
from .frames import NOT_IP, SAMPLES, write_pcap
from .swap import turn_file
from .test_captures import block, interface, section
from .test_link_layers import FOUR, SIX

RECORDINGS = sorted(FIXTURES.glob("*.pcapng"))


@pytest.fixture(scope="session")
def tshark() -> str:
    found = shutil.which("tshark")
    if found is None:
        if os.environ.get("NFNET_REQUIRE_LIVE") == "1":
            pytest.fail("tshark is needed as a witness")
        pytest.skip("tshark is not installed")
    return found


def dissect(tshark: str, path: Path) -> list[Any]:
    command = [tshark, "-r", str(path), "-T", "json", "--no-duplicate-keys"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [frame["_source"]["layers"] for frame in json.loads(done.stdout)]


def values(layer: Any, name: str) -> list[str]:
    """All values of a field, at any depth."""
    if isinstance(layer, list):
        return [value for item in layer for value in values(item, name)]
    if not isinstance(layer, dict):
        return []
    found = []
    for key, value in layer.items():
        if key == name:
            found += value if isinstance(value, list) else [value]
        else:
            found += values(value, name)
    return found


def without(layers: Any, *names: str) -> Any:
    """All but the fields of those names, at any depth."""
    if isinstance(layers, list):
        return [without(item, *names) for item in layers]
    if isinstance(layers, dict):
        return {name: without(item, *names) for name, item in layers.items() if name not in names}
    return layers


@pytest.mark.parametrize("framing", [">", "<"], ids=["as recorded", "copied"])
def test_recordings_of_a_machine_of_the_other_byte_order(tshark: str, framing: str, tmp_path: Path) -> None:
    """What these tests take for such recordings says the same to Wireshark, which goes by the first length alone."""
    # It reads no logs in the other order, and takes two numbers for host order that are big-endian. Copies have no
    # comments.
    ignored = ["frame", "pkt_comment", "netlink-netfilter.queue.config.mask", "netlink-netfilter.queue.config.flags"]
    for name in ("queue-forward-ipv4", "queue-64k", "queue-refused", "queue-overrun"):
        source, copy = FIXTURES / f"{name}.pcapng", tmp_path / f"{name}.pcap"
        turn_file(source, copy, framing=framing)
        assert without(dissect(tshark, copy), *ignored) == without(dissect(tshark, source), *ignored), name


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings(tshark: str, path: Path, tmp_path: Path) -> None:
    facts = json.loads(path.with_suffix(".json").read_text())
    frames = dissect(tshark, path)
    cut = any(size < length for _, _, _, size, length, *_ in facts.get("packets", []))
    if not cut:  # else the packets inside stop short, as they must
        assert "_ws.malformed" not in json.dumps(frames)
    if "queue" in facts:
        packets: list[Packet] = []
        with Queue(facts["queue"], transport=nfnet.replay(path)) as queue:
            queue.run(packets.append)

        def numbers(name: str) -> list[int]:
            return [int(value, 0) for value in values(frames, f"netlink-netfilter.queue.{name}")]

        assert numbers("packet.id") == [packet.id for packet in packets]
        assert numbers("packet.hook") == [packet.hook for packet in packets]
        assert numbers("packet.protocol") == [packet.hw_protocol for packet in packets]
        for name, field in (("indev", "ifindex_indev"), ("outdev", "ifindex_outdev"), ("uid", "uid"), ("gid", "gid")):
            ours = [getattr(packet, name) for packet in packets]
            assert numbers(field) == [value for value in ours if value is not None], name
        assert numbers("caplen") == [packet.cap_len for packet in packets if packet.truncated and packet.payload]
    if "group" in facts:
        # The netlink dissector leaves NFLOG's attributes alone; that of tcpdump's format reads them.
        copy = tmp_path / "nflog.pcap"
        writer = Writer(copy, LinkType.NFLOG)
        with Log(facts["group"], transport=nfnet.replay(path), sequence=True) as log:
            messages = list(log)
        for message in messages:
            writer.write(0, message.raw[16:])
        writer.close()
        frames = dissect(tshark, copy)
        assert "_ws.malformed" not in json.dumps(frames)
        assert values(frames, "nflog.prefix") == [message.prefix for message in messages]
        ours = [message.uid for message in messages if message.uid is not None]
        assert [int(value) for value in values(frames, "nflog.uid")] == ours
        assert [int(value) for value in values(frames, "nflog.family")] == [message.family for message in messages]


# --- files that Wireshark's tools made of others


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        if os.environ.get("NFNET_REQUIRE_LIVE") == "1":
            pytest.fail(f"{name} is needed as a witness")
        pytest.skip(f"{name} is not installed")
    return found


def frames_of(tshark: str, path: Path, *fields: str) -> list[list[str]]:
    command = [tshark, "-r", str(path), "-T", "fields", *(word for field in fields for word in ("-e", field))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split("\t") for line in done.stdout.splitlines()]


@pytest.mark.parametrize("size", [50, 84, 100, 121, 5000])
def test_what_editcap_cuts_short(tshark: str, size: int, tmp_path: Path) -> None:
    source, path = FIXTURES / "queue-forward-ipv4.pcapng", tmp_path / "cut.pcapng"
    subprocess.run([program("editcap"), "-s", str(size), str(source), str(path)], check=True)
    wanted = [(int(kept), int(whole)) for kept, whole in frames_of(tshark, path, "frame.cap_len", "frame.len")]
    assert [(len(record.data), record.original_length) for record in read(path)] == wanted
    with Queue(1, transport=nfnet.replay(source)) as queue:
        whole = list(queue)
    with Queue(1, transport=nfnet.replay(path)) as queue:
        packets = list(queue)
    assert [packet.id for packet in packets] == [packet.id for packet in whole]
    for packet, before in zip(packets, whole):
        assert before.payload.startswith(packet.payload)
        assert packet.truncated == (packet.payload != before.payload)


def test_what_mergecap_makes_of_two_files(tshark: str, tmp_path: Path) -> None:
    """Records of another link type between ours; numbers and times are those of Wireshark's frames."""
    source, other, path = FIXTURES / "queue-output-ipv4.pcapng", tmp_path / "other.pcap", tmp_path / "merged.pcapng"
    writer = Writer(other, 1)  # type: ignore[arg-type]
    times = [record.time_ns or 0 for record in read(source)]
    for time_ns in times[::3]:
        writer.write(time_ns, bytes(60))
    writer.close()
    subprocess.run([program("mergecap"), "-w", str(path), str(source), str(other)], check=True)
    fields = ("frame.number", "frame.time_epoch", "netlink-netfilter.queue.packet.id")
    frames = frames_of(tshark, path, *fields)
    stamps = {int(number): seconds for number, seconds, _ in frames}
    records = list(read(path))
    assert [record.number for record in records] == sorted(stamps)
    for record in records:
        assert f"{(record.time_ns or 0) // 10**9}.{(record.time_ns or 0) % 10**9:09}" == stamps[record.number]
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as queue:
        packets = list(queue)
    wanted = [(int(packet_id), seconds) for _, seconds, packet_id in frames if packet_id]
    assert wanted
    assert [packet.id for packet in packets] == [packet_id for packet_id, _ in wanted]
    for packet, (_, seconds) in zip(packets, wanted):  # packets on their way out have no time stamp
        time_ns = packet.timestamp_ns
        assert time_ns is not None
        assert f"{time_ns // 10**9}.{time_ns % 10**9:09}" == seconds
    assert replay.skipped == {1: len(times[::3])}


# --- link layers

NOT_TSHARK = (LinkType.PPP_PPPD, LinkType.C_HDLC_WITH_DIR, LinkType.FRELAY_WITH_DIR)  # 4.0 does not dissect these


@pytest.mark.usefixtures("tshark")
@pytest.mark.parametrize("order", "<>")
def test_frames_of_each_link_type(order: str, tmp_path: Path) -> None:
    """A file with an interface of each link type, in which both read the same packets, and the same of them."""
    data = b""
    interfaces: list[int] = []
    records: list[tuple[int, bytes]] = []
    for sample in SAMPLES.values():
        if sample.link_type in NOT_TSHARK:
            continue
        records += [
            (sample.link_type, before + packet + bytes(9))
            for before, packet, other in ((sample.before, FOUR, 229), (sample.before_ipv6, SIX, 228))
            if sample.link_type != other
        ]
    # Version 0 and IPv6 in place of IPv4 are IP to tshark, but damaged; nfnet has no packet there.
    records += [(kind, record) for name, (kind, record, _) in NOT_IP.items() if "IPv4" not in name]
    for number, (link_type, record) in enumerate(records):
        if link_type not in interfaces:
            interfaces.append(link_type)
        flags = struct.pack(f"{order}HHIHH", 2, 4, number % 3, 0, 0)
        moment = (1_700_000_000 << 20) + number
        head = struct.pack(
            f"{order}IIIII", interfaces.index(link_type), moment >> 32, moment & 0xFFFFFFFF, len(record), len(record)
        )
        data += block(order, 6, head + record + bytes(-len(record) % 4) + flags)
    described = b"".join(
        interface(order, kind, (2, f"if{kind}".encode()), (9, bytes((number % 10,))))
        for number, kind in enumerate(interfaces)
    )
    path = tmp_path / "each.pcapng"
    path.write_bytes(section(order) + described + data)
    outcome = compare(path)
    assert outcome.refused is None
    assert outcome.differences == []
    assert outcome.frames == len(records)
    assert outcome.packets.total() == len(records) - len([name for name in NOT_IP if "IPv4" not in name])


def test_the_way_out_of_other_link_types(tshark: str, tmp_path: Path) -> None:
    """The command in the message, on a file of a link type that Wireshark reads and nfnet does not."""
    path = tmp_path / "arcnet.pcap"
    headers = bytes.fromhex("01020000d4000001")  # of ARCnet on Linux, for IPv4
    write_pcap(path, LinkType.ARCNET_LINUX, headers + FOUR)
    replay = nfnet.replay(path)
    assert replay.first() == (None, None)
    replay.close()
    command = replay.left_out().partition(": ")[2].split()
    assert command[0] == "tshark"
    subprocess.run([tshark, *command[1:]], cwd=tmp_path, check=True, capture_output=True)
    (packet,) = nfnet.testing.from_pcap(tmp_path / "ip.pcapng")
    assert packet.payload == FOUR


def test_files_that_editcap_converts(tshark: str, tmp_path: Path) -> None:
    """The command in the message about files that are neither pcap nor pcapng."""
    source, path = tmp_path / "file.pcap", tmp_path / "file.snoop"
    write_pcap(source, LinkType.ETHERNET, SAMPLES["Ethernet"].before + FOUR)
    subprocess.run([program("editcap"), "-F", "snoop", str(source), str(path)], check=True)
    with pytest.raises(nfnet.CaptureError, match="neither pcap nor pcapng; if Wireshark opens it: (.*)") as caught:
        nfnet.testing.from_pcap(path)
    command = str(caught.value).partition("opens it: ")[2].partition(" (at")[0].split()
    assert command[0] == "editcap"
    command = [program("editcap"), *(str(path) if word == "FILE" else word for word in command[1:])]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert [packet.payload for packet in nfnet.testing.from_pcap(tmp_path / "converted.pcapng")] == [FOUR]
