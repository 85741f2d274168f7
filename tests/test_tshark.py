"""Wireshark's reading of the recordings, beside ours; where tshark is not installed this is skipped, in CI required."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Log, Packet, Queue
from nfnet.captures import LinkType, Writer, read

from .conftest import FIXTURES
from .swap import turn_file

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
