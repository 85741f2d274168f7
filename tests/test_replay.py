"""Replays of unusual files: with several kinds of records, damaged, cut short, from pipes; and their times."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import io
import json
import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import inet, testing
from nfnet.captures import LinkType, Record, Writer, _records, read, scan
from nfnet.captures._format import netlink_header
from nfnet.cli import packet_text
from nfnet.cli.decode_command import describe
from nfnet.protocol import netlink, nfqnl
from nfnet.testing import log_message, packet_message

from .conftest import FIXTURES
from .frames import write_pcap
from .memory import traced
from .swap import turn
from .test_captures import block, interface, pcap, recording, section

HEAD = bytes(netlink_header.build({"family": 12}))
SECONDS = 1_700_000_000
USB = int(LinkType.USB_LINUX_MMAPPED)  # none that holds packets
HERE, THERE = ("<", ">") if netlink.HOST == "little" else (">", "<")


def packet(packet_id: int, **attributes: Any) -> bytes:
    return packet_message(packet_id, testing.udp(bytes([packet_id])), **attributes)


def damaged(message: bytes) -> bytes:
    """With a first attribute that is longer than the message."""
    return message[:20] + struct.pack(f"{HERE}H", 0x7FFF) + message[22:]


def enhanced(data: bytes, *, which: int = 0, size: int | None = None, options: bytes = b"") -> bytes:
    moment = SECONDS * 10**6
    size = len(data) if size is None else size
    head = struct.pack("<IIIII", which, moment >> 32, moment & 0xFFFFFFFF, size, size)
    return block("<", 6, head + data + bytes(-len(data) % 4) + options)


def drain(reader: Any) -> tuple[list[Any], list[nfnet.CaptureError]]:
    """All packets or messages, and all errors."""
    found: list[Any] = []
    errors: list[nfnet.CaptureError] = []
    for _ in range(1000):
        try:
            for item in reader:
                found.append(item)
            return found, errors
        except nfnet.CaptureError as error:
            errors.append(error)
    raise AssertionError("it does not come to an end")


# --- records of other link types


def mixed(path: Path) -> Path:
    """As dumpcap records two interfaces, or mergecap merges two files."""
    data = section("<") + interface("<", 1) + interface("<", 253) + interface("<", 239) + interface("<", 276)
    data += enhanced(b"Ethernet")
    for number in (1, 2):
        data += enhanced(HEAD + packet(number), which=1) + enhanced(b"Ethernet") + enhanced(b"cooked", which=3)
        data += enhanced(log_message(testing.udp(b"logged"))[16:], which=2)
    path.write_bytes(data)
    return path


def test_records_of_other_link_types_are_skipped_and_counted(tmp_path: Path) -> None:
    path = mixed(tmp_path / "mixed.pcapng")
    replay = nfnet.replay(path)
    assert replay.first() == (1, None)
    with nfnet.Queue(1, transport=replay) as queue:
        assert [packet.id for packet in queue] == [1, 2]
        assert queue.counters.malformed == 0
    assert replay.skipped == {1: 3, 276: 2}
    replay = nfnet.replay(path)
    with nfnet.Log(5, transport=replay) as log:
        assert len(list(log)) == 2
    assert replay.skipped == {1: 3, 276: 2}


def test_a_file_of_other_link_types_alone(tmp_path: Path) -> None:
    path = tmp_path / "usb.pcap"
    path.write_bytes(pcap(b"x" * 60, b"y" * 60, link_type=USB))
    replay = nfnet.replay(path)
    assert replay.first() == (None, None)
    assert replay.first() == (None, None)
    assert replay.skipped == {USB: 2}
    replay.close()
    with pytest.raises(nfnet.CaptureError, match="no packets of a queue and no messages of a log"):
        testing.open_replay(path)


def test_the_loop_can_be_stopped_among_records_of_others(tmp_path: Path) -> None:
    path = tmp_path / "usb.pcap"
    path.write_bytes(
        pcap(link_type=USB) + struct.pack("<IIII", 0, 0, 1, 1) * 0 + (struct.pack("<IIII", 0, 0, 1, 1) + b"x") * 30_000
    )
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        assert queue.process(nfnet.Packet.accept) == 0
        assert 0 < replay.skipped[USB] < 30_000
        queue.run(nfnet.Packet.accept)
        assert replay.skipped == {USB: 30_000}


def test_large_blocks_of_others_are_skipped_in_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.pcapng"
    size = 8 << 20
    with path.open("wb") as file:
        file.write(section("<") + interface("<", 220) + interface("<", 253))
        file.write(block("<", 0x0A, bytes(size)))  # secrets to decrypt TLS
        file.write(enhanced(bytes(size)))  # of a USB disk
        file.write(enhanced(HEAD + packet(1), which=1))
    with traced() as memory:
        large, ours = read(path)
        assert memory()[1] < 6 << 20
    assert (large.number, len(large.data), large.original_length, large.link_type) == (1, 1 << 20, size, 220)
    assert ours.data == HEAD + packet(1)


# --- damage


def test_good_good_bad_good(tmp_path: Path) -> None:
    bad = damaged(packet(3))
    path = recording(tmp_path / "queue.pcap", packet(1), packet(2), bad, packet(4))
    with nfnet.Queue(1, transport=nfnet.replay(path), on_overrun="ignore") as queue:
        seen: list[int] = []
        with pytest.raises(nfnet.CaptureError) as caught:
            queue.run(lambda packet: seen.append(packet.id))
        assert seen == [1, 2]  # records before it are delivered before it
        assert (caught.value.record, caught.value.offset) == (3, path.read_bytes().index(bad) + 20)
        assert str(caught.value).startswith("record 3: attribute 1 of 32767 bytes where only ")
        queue.run(lambda packet: seen.append(packet.id))
        assert seen == [1, 2, 4]
        assert queue.counters.malformed == 1


DAMAGED: dict[str, tuple[bytes, str]] = {
    "no header of netlink": (b"short", "no header of netlink captures"),
    "another header": (b"\0\4\0\1" + HEAD[4:] + packet(3), "no header of netlink captures"),
    "too short for a message": (HEAD + packet(3)[:11], "11 bytes are too few for a netlink header"),
    "longer than its record": (HEAD + packet(3)[:-5], "netlink message of 65 bytes where only 60 are left"),
    "without its first attribute": (HEAD + packet_message(3)[:20] + packet_message(3)[32:], "netlink message of"),
    "an attribute that is too long": (HEAD + damaged(packet(3)), "attribute 1 of 32767 bytes"),
    "a mark of two bytes": (HEAD + packet(3, MARK=5).replace(b"\x08\0\3\0", b"\x06\0\3\0"), "attribute 3 of 2 bytes"),
}


@pytest.mark.skipif(HERE == ">", reason="written for a little-endian machine")
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_records_of_netlink(tmp_path: Path, name: str) -> None:
    record, text = DAMAGED[name]
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 253)
    found = [HEAD + packet(1), record, HEAD + packet(2)]
    data = head + b"".join(struct.pack("<IIII", SECONDS, 0, len(data), len(data)) + data for data in found)
    path = tmp_path / "queue.pcap"
    path.write_bytes(data)
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        packets, errors = drain(queue)
        assert queue.counters.malformed == 1
    assert [packet.id for packet in packets] == [1, 2]
    (error,) = errors
    assert f"record 2: {text}" in str(error)
    start = len(head) + 16 + len(found[0]) + 16
    assert start <= error.offset <= start + len(record)


def test_one_damaged_message_of_a_datagram_hides_no_other(tmp_path: Path) -> None:
    def padded(message: bytes) -> bytes:
        return message + bytes(-len(message) % 4)

    done = netlink.build_message(netlink.NLMSG_DONE, netlink.Flag.MULTI, 0, bytes(4))
    good = [padded(log_message(testing.udp(bytes([n])), MARK=n)) for n in range(1, 5)]
    bundle = good[0] + damaged(good[1]) + good[2] + done
    another = good[1][:20] + good[1][28:]
    another = struct.pack(f"{HERE}I", len(another)) + another[4:]  # without NFULA_PACKET_HDR
    path = recording(tmp_path / "log.pcap", bundle, another, good[3] + done)
    data = path.read_bytes()
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        messages, errors = drain(log)
        assert log.counters.malformed == 2
    assert [message.mark for message in messages] == [1, 3, 4]
    assert [error.record for error in errors] == [1, 2]
    assert errors[0].offset == data.index(damaged(good[1])) + 20
    assert "without NFULA_PACKET_HDR" in str(errors[1])


def test_a_damaged_verdict_of_the_recording(tmp_path: Path) -> None:
    verdict = nfqnl.verdict(1, 2, 1, [(nfqnl.NFQA.MARK, 5)])
    bad = verdict[:20] + struct.pack(f"{HERE}H", 0x7FFF) + verdict[22:]
    path = recording(tmp_path / "queue.pcap", packet(1), packet(2), nfqnl.verdict(1, 1, 0), bad)
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        packets, errors = drain(queue)
    assert len(packets) == 2
    assert [error.record for error in errors] == [4]
    assert list(replay.recorded) == [1]


def test_what_others_said_may_be_as_it_likes(tmp_path: Path) -> None:
    tables = netlink.build_message(0x0A03, 0, 0, bytes(6)) + b"\xff\xff\xff\xff"
    path = recording(tmp_path / "queue.pcap", packet(1), tables, damaged(packet(2, num=7)), packet(3))
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        packets, errors = drain(queue)
    assert ([packet.id for packet in packets], errors) == ([1, 3], [])


BLOCKS: dict[str, tuple[bytes, str]] = {
    "an interface that is not described": (enhanced(b"x", which=9), "record 2: packet of interface 9, which the file"),
    "a packet larger than its block": (enhanced(b"x", size=99), "record 2: packet of 99 bytes in a block that has 4"),
    "a block that is too short": (block("<", 6, bytes(8)), "record 2: packet that is too short"),
    "an option larger than its block": (enhanced(b"x", options=b"\1\0\xff\0"), "record 2: option 1 that is longer"),
    "an interface that is damaged": (interface("<", 253, (9, b"\xff")) + enhanced(b"x", which=1), "resolution"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_damaged_blocks(name: str, tmp_path: Path) -> None:
    bad, text = BLOCKS[name]
    before = section("<") + interface("<", 253) + enhanced(HEAD + packet(1))
    data = before + bad + enhanced(HEAD + packet(2))
    items = list(scan(io.BytesIO(data)))
    records = [item for item in items if isinstance(item, Record)]
    errors = [item for item in items if isinstance(item, nfnet.CaptureError)]
    assert [record.number for record in records] == [1, 3]
    assert text in str(errors[0])
    assert errors[0].offset == len(before)
    with pytest.raises(nfnet.CaptureError) as caught:
        list(read(io.BytesIO(data)))
    assert str(caught.value) == str(errors[0])
    path = tmp_path / "queue.pcapng"
    path.write_bytes(data)
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        packets, found = drain(queue)
    assert [packet.id for packet in packets] == [1, 2]
    assert list(map(str, found)) == list(map(str, errors))


def test_a_cut_file_ends_with_one_error(tmp_path: Path) -> None:
    path = recording(tmp_path / "queue.pcap", packet(1), packet(2), packet(3))
    path.write_bytes(path.read_bytes()[:-7])
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        packets, errors = drain(queue)
    assert [packet.id for packet in packets] == [1, 2]
    assert [(error.record, error.offset) for error in errors] == [(3, path.stat().st_size)]


def test_first_says_what_is_damaged_and_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "log.pcap"
    path.write_bytes(pcap(b"short", b"short", HEAD + log_message(group=7), b"short", link_type=253))
    replay = nfnet.replay(path)
    for number in (1, 2):
        with pytest.raises(nfnet.CaptureError, match=f"record {number}:"):
            replay.first()
    assert replay.first() == (None, 7)
    assert replay.first() == (None, 7)
    with nfnet.Log(7, transport=replay) as log:
        messages, errors = drain(log)
    assert len(messages) == 1
    assert [error.record for error in errors] == [4]


# --- records that were cut short


def cut_file(path: Path, source: Path, size: int, order: str) -> Path:
    """Cut the records of a recording as ``editcap -s`` does, on a machine of that byte order."""
    data = struct.pack(f"{order}IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, size, 253)
    for record in read(source):
        whole = record.data if order == "<" else HEAD + turn(record.data[16:], "<")
        kept = whole[:size]
        seconds, nanoseconds = divmod(record.time_ns or 0, 10**9)
        data += struct.pack(f"{order}IIII", seconds, nanoseconds, len(kept), len(whole)) + kept
    path.write_bytes(data)
    return path


PAYLOAD = ("payload", "ip", "tcp", "udp", "icmp", "flow", "truncated", "attributes")
TIMES = ("timestamp", "timestamp_ns")  # those of the records, where the kernel's are lost


def same_or_missing(cut: Any, whole: Any) -> None:
    """All attributes of a cut packet are those of the whole one."""
    for name in dir(type(whole)):
        if isinstance(getattr(type(whole), name), property) and name not in (*PAYLOAD, *TIMES, "metadata"):
            said = getattr(cut, name)
            assert said == getattr(whole, name) or not said, name


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("name", ["queue-forward-ipv4", "queue-output-ipv6", "queue-range", "queue-late"])
def test_cut_records_of_a_queue_are_truncated_packets(tmp_path: Path, name: str, order: str) -> None:
    source = FIXTURES / f"{name}.pcapng"
    with nfnet.Queue(1, transport=nfnet.replay(source)) as queue:
        whole = list(queue)
    largest = max(len(packet.raw) for packet in whole) + 16
    complete = 0
    for size in [*range(40, largest, 3), largest]:
        with nfnet.Queue(1, transport=nfnet.replay(cut_file(tmp_path / "cut.pcap", source, size, order))) as queue:
            packets, errors = drain(queue)
        if size < 48:  # the pseudo-header, two headers, and NFQA_PACKET_HDR
            assert not packets
            assert all("cut too short" in str(error) for error in errors)
            assert len(errors) == len(whole)
            continue
        assert errors == [], size
        assert [packet.id for packet in packets] == [packet.id for packet in whole]
        for cut, packet in zip(packets, whole):
            same_or_missing(cut, packet)
            assert packet.payload.startswith(cut.payload)
            kept = size - 16 - (len(packet.raw) - len(packet.payload))
            assert len(cut.payload) == max(0, min(kept, len(packet.payload)))
            assert cut.truncated == (packet.truncated or kept < len(packet.payload))
            assert cut.attributes is not None
            if kept >= 0 and packet.payload:
                assert cut.cap_len == packet.cap_len
                assert cut.ip == inet.ip(packet.payload[:kept])
            complete += cut.payload == packet.payload
    assert complete


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", [LinkType.NETLINK, LinkType.NFLOG])
def test_cut_records_of_a_log_are_messages(tmp_path: Path, order: str, kind: LinkType) -> None:
    source = FIXTURES / "log-single.pcapng"
    with nfnet.Log(5, transport=nfnet.replay(source)) as log:
        whole = list(log)
    assert len(whole) > 1
    messages = [message.raw if order == HERE else turn(message.raw, HERE) for message in whole]
    head = HEAD if kind == LinkType.NETLINK else b""
    records = [head + (message if head else message[16:]) for message in messages]
    for size in range(len(head) + 4, max(map(len, records)) + 1):
        data = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, size, kind)
        for record in records:
            data += struct.pack(f"{order}IIII", SECONDS, 0, len(record[:size]), len(record)) + record[:size]
        (tmp_path / "cut.pcap").write_bytes(data)
        with nfnet.Log(5, transport=nfnet.replay(tmp_path / "cut.pcap")) as log:
            found, errors = drain(log)
        if not found:
            assert size < len(head) + 32
            continue
        assert (len(found), errors) == (len(whole), [])
        for cut, message in zip(found, whole):
            same_or_missing(cut, message)
            assert message.payload.startswith(cut.payload)
    assert [cut.payload for cut in found] == [message.payload for message in whole]


def test_a_closed_replay_holds_no_descriptors() -> None:
    """Not only when it is collected, which takes long on PyPy."""
    before = os.listdir("/proc/self/fd")
    replay = nfnet.replay(FIXTURES / "log-single.pcapng")
    with nfnet.Log(5, transport=replay) as log:
        assert list(log)
    replay.close()  # again
    assert os.listdir("/proc/self/fd") == before


def test_a_cut_verdict_is_not_recorded(tmp_path: Path) -> None:
    changed = nfqnl.verdict(1, 1, 1, [(nfqnl.NFQA.PAYLOAD, bytes(60))])
    records = [HEAD + message for message in (packet(1), changed, packet(2), nfqnl.verdict(1, 2, 0))]
    data = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 80, 253)
    for record in records:
        data += struct.pack("<IIII", SECONDS, 0, len(record[:90]), len(record)) + record[:90]
    path = tmp_path / "cut.pcap"
    path.write_bytes(data)
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        packets, errors = drain(queue)
    assert (len(packets), errors) == (2, [])
    assert replay.recorded == {2: nfnet.GivenVerdict(0, None, None)}


def test_bare_packets_larger_than_a_payload_are_truncated(tmp_path: Path) -> None:
    whole = testing.udp(bytes(65_507))
    path = tmp_path / "raw.pcap"
    path.write_bytes(pcap()[:24] + struct.pack("<IIII", 0, 0, len(whole), len(whole)) + whole)
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        (packet,) = queue
    assert (len(packet.payload), packet.cap_len, packet.truncated) == (65_531, 65_535, True)


@pytest.mark.parametrize("name", ["queue-forward-ipv4", "log-single", "queue-refused"])
def test_decode_of_cut_datagrams_shows_what_is_there(name: str) -> None:
    for record in read(FIXTURES / f"{name}.pcapng"):
        datagram = _records.netfilter_datagram(record)
        assert datagram is not None
        whole = list(describe(datagram))
        for size in range(len(datagram)):
            shown = list(describe(datagram[:size], len(datagram)))
            same = [cut == line for cut, line in zip(shown, whole)]
            assert len(shown) <= len(whole)
            assert all(same[:-1])  # but for the last, which is not all there


@pytest.mark.parametrize("order", "<>")
def test_log_messages_in_a_file_of_the_other_byte_order(tmp_path: Path, order: str) -> None:
    """mergecap writes a file in its own machine's byte order, with unchanged records."""
    message = log_message(testing.udp(b"x" * 40), MARK=77)
    message = message if order == HERE else turn(message, HERE)
    for framing in "<>":
        path = recording(tmp_path / "log.pcap", message[16:], byteorder=framing, link_type=239)
        with nfnet.Log(5, transport=nfnet.replay(path)) as log:
            (found,) = log
        assert (found.mark, found.udp and found.udp.data) == (77, b"x" * 40)


# --- times


def test_a_message_without_a_stamp_has_the_time_of_its_record(tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    stamp = {"seconds": 5, "microseconds": 7}
    writer = Writer(path, LinkType.NETLINK)
    bundle = b"".join(
        m + bytes(-len(m) % 4) for m in (log_message(MARK=1), log_message(TIMESTAMP=stamp), log_message())
    )
    for number, message in enumerate((packet(1), packet(2, TIMESTAMP=stamp), bundle, packet(3))):
        writer.write(SECONDS * 10**9 + number, HEAD + message)
    writer.close()
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        times = [(packet.timestamp_ns, packet.timestamp) for packet in queue]
        assert type(queue.pending[0].raw) is not bytes
        assert queue.pending[0].raw == packet(1)
    assert times == [(SECONDS * 10**9, SECONDS), (5_000_007_000, 5.000007), (SECONDS * 10**9 + 3, SECONDS)]
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        assert [message.timestamp_ns for message in log] == [SECONDS * 10**9 + 2, 5_000_007_000, SECONDS * 10**9 + 2]


def test_bare_packets_and_those_of_tcpdump_have_the_time_of_their_record(tmp_path: Path) -> None:
    path = recording(tmp_path / "raw.pcap", testing.udp(), link_type=101)
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        assert [packet.timestamp_ns for packet in queue] == [1000_000_007_000]
    path = recording(tmp_path / "log.pcap", log_message()[16:], link_type=239)
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        assert [message.timestamp for message in log] == [1000.000007]


def test_a_simple_packet_has_no_time(tmp_path: Path) -> None:
    """Not 1970, which is not in the record."""
    path = tmp_path / "simple.pcapng"
    data = testing.udp()
    simple = block("<", 3, struct.pack("<I", len(data)) + data)
    path.write_bytes(section("<") + interface("<", 101, (14, struct.pack("<q", SECONDS))) + simple)
    with nfnet.Queue(1, transport=nfnet.replay(path, realtime=True)) as queue:
        (found,) = queue
    assert (found.timestamp, found.timestamp_ns) == (None, None)
    assert packet_text.line(found, recorded=True).startswith("--:--:-- ")
    assert "@timestamp" not in json.loads(packet_text.ecs(found, recorded=True))


@pytest.mark.parametrize("zone", ["UTC", "Pacific/Kiritimati", "Pacific/Pago_Pago"])
@pytest.mark.parametrize("moment", [-62135596800, 253402300799, 1 << 63, -(1 << 63)])
def test_times_that_no_calendar_has(tmp_path: Path, zone: str, moment: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "odd.pcapng"
    offset = struct.pack("<q", max(-(1 << 63), min(moment, (1 << 63) - 1)))
    packet = struct.pack("<IIIII", 0, 0, 0, 28, 28) + testing.udp()
    path.write_bytes(section("<") + interface("<", 101, (14, offset)) + block("<", 6, packet))
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        (found,) = queue
    with monkeypatch.context() as patches:
        patches.setenv("TZ", zone)
        time.tzset()
        try:
            assert "UDP 192.0.2.1.40000" in packet_text.line(found, recorded=True)
            json.loads(packet_text.ecs(found, recorded=True))
        finally:
            patches.undo()
            time.tzset()


# --- pipes


@pytest.fixture
def pipe() -> Iterator[tuple[str, Callable[[bytes], Any], Callable[[], None]]]:
    """A pipe: its name, a function that writes to it, and one that ends it."""
    reading, writing = os.pipe()
    ended = False

    def end() -> None:
        nonlocal ended
        if not ended:
            ended = True
            os.close(writing)

    yield f"/dev/fd/{reading}", lambda data: os.write(writing, data), end
    end()
    os.close(reading)


@pytest.mark.parametrize("suffix", [".pcap", ".pcapng"])
def test_a_file_that_comes_byte_by_byte(suffix: str, tmp_path: Path, pipe: Any) -> None:
    name, write, end = pipe
    writer = Writer(tmp_path / f"file{suffix}", LinkType.NETLINK)
    for number in range(1, 4):
        writer.write(SECONDS * 10**9, HEAD + packet(number), comment="hello")
    writer.close()
    data = (tmp_path / f"file{suffix}").read_bytes()
    replay = nfnet.replay(name)
    with nfnet.Queue(1, transport=replay) as queue:
        seen: list[int] = []
        for place in range(len(data)):
            assert queue.process(lambda packet: seen.append(packet.id)) in (0, 1)
            write(data[place : place + 1])
        queue.process(lambda packet: seen.append(packet.id))
        assert seen == [1, 2, 3]
        end()
        queue.run(nfnet.Packet.accept)  # ends


def test_an_empty_pipe_keeps_nobody_busy(pipe: Any) -> None:
    """A waiting program sleeps until there is something to do."""
    import select

    name, write, end = pipe
    data = pcap(HEAD + packet(1), HEAD + packet(2), link_type=253)
    half = 24 + (len(data) - 24) // 2
    with nfnet.Queue(1, transport=nfnet.replay(name)) as queue:

        def readable() -> bool:
            return bool(select.select([queue], [], [], 0)[0])

        assert queue.process(nfnet.Packet.accept) == 0
        assert not readable()
        write(data[: half + 3])
        assert readable()
        assert queue.process(nfnet.Packet.accept) == 1
        queue.process(nfnet.Packet.accept)
        assert not readable()
        write(data[half + 3 :])
        assert readable()
        assert queue.process(nfnet.Packet.accept) == 1
        queue.process(nfnet.Packet.accept)
        assert not readable()
        end()
        assert readable()
        assert queue.process(nfnet.Packet.accept) == 0
        assert list(queue) == []


def test_stop_ends_a_loop_that_waits_for_a_pipe(pipe: Any) -> None:
    name, write, _ = pipe
    write(pcap(HEAD + packet(1), link_type=253)[:-5])  # in the middle of a record
    with nfnet.Queue(1, transport=nfnet.replay(name)) as queue:
        thread = threading.Thread(target=queue.run, args=(nfnet.Packet.accept,))
        thread.start()
        queue.stop()
        thread.join(60)
        assert not thread.is_alive()


def test_first_waits_for_a_pipe(pipe: Any) -> None:
    name, write, end = pipe
    data = pcap(HEAD + packet(1, num=7), link_type=253)
    replay = nfnet.replay(name)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(replay.first()))
    write(data[:50])
    thread.start()
    write(data[50:])
    thread.join(60)
    assert found == [(7, None)]
    end()
    with nfnet.Queue(7, transport=replay) as queue:
        assert [packet.id for packet in queue] == [1]


def test_a_fifo_is_opened_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = pcap(HEAD + packet(1, num=3), HEAD + packet(2, num=3), link_type=253)
    thread = threading.Thread(target=fifo.write_bytes, args=(data,))
    thread.start()
    with contextlib.closing(testing.open_replay(fifo)) as queue:
        assert [packet.id for packet in queue] == [1, 2]
    thread.join(60)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="there all objects are left to the collector")
@pytest.mark.parametrize("link_type", [LinkType.NETLINK, LinkType.NFLOG, LinkType.ETHERNET])
@pytest.mark.parametrize("cut", [0, 5], ids=["whole", "cut short"])
def test_records_leave_nothing_to_the_garbage_collector(link_type: int, cut: int, tmp_path: Path) -> None:
    """In free-threaded CPython it waits until new objects are a quarter of all."""
    content = {
        LinkType.NETLINK: HEAD + packet(1),
        LinkType.NFLOG: log_message()[16:],
        LinkType.ETHERNET: bytes(12) + b"\x08\0" + testing.udp(b"data"),
    }[LinkType(link_type)]
    left: list[int] = []
    # Each time also the reader of the time before is collected, of ten records in the two that are compared.
    for count in (10, 10, 200):
        path = tmp_path / f"{count}.pcap"
        write_pcap(path, link_type, *[content] * count, cuts=[len(content) - cut] * count)
        gc.collect()
        gc.disable()
        try:
            with (
                nfnet.Log(5, transport=nfnet.replay(path))
                if link_type == LinkType.NFLOG
                else nfnet.Queue(1, transport=nfnet.replay(path)) as reader
            ):
                found, errors = drain(reader)
            assert (len(found), errors) == (count, [])
            del found
            left.append(gc.collect())
        finally:
            gc.enable()
    assert left[2] < left[1] + 100


def test_an_endless_pipe_takes_no_memory(pipe: Any) -> None:
    """With nothing kept of the verdicts, that is."""
    name, write, end = pipe
    message = packet(1)
    place = nfqnl.PACKET_ID.start
    head = struct.pack("<IIII", SECONDS, 0, len(HEAD + message), len(HEAD + message)) + HEAD
    # The thread writes a few packets at a time, which are decided before it writes more: if it were ahead, the memory
    # of the packets between the two would be measured, too.
    go_on = threading.Semaphore(0)

    def feed() -> None:
        write(pcap(link_type=253))
        for number in range(1, 12_001):
            write(head + message[:place] + struct.pack("!I", number) + message[place + 4 :])
            if number % 20 == 0:
                go_on.acquire(timeout=60)
        end()

    sizes: dict[int, int] = {}
    thread = threading.Thread(target=feed)

    def handler(packet: nfnet.Packet) -> None:
        packet.accept()
        if packet.id % 20 == 0:
            sizes[packet.id] = memory()[0]
            go_on.release()

    with traced() as memory:
        replay = nfnet.replay(name, keep_verdicts=False)
        with nfnet.Queue(1, transport=replay) as queue:
            thread.start()
            try:
                queue.run(handler)
            finally:
                thread.join(60)
            assert queue.counters.received == 12_000
    # The least over a third of the run: caches are filled and emptied in between.
    first = min(size for number, size in sizes.items() if number <= 4_000)
    last = min(size for number, size in sizes.items() if number > 8_000)
    assert last < first + 8_000 * 60  # and the record of a verdict has some 120 bytes
    assert replay.verdicts == replay.recorded == {}


def test_a_pipe_in_real_time(pipe: Any, tmp_path: Path) -> None:
    name, write, end = pipe
    writer = Writer(tmp_path / "slow.pcap", LinkType.RAW)
    for number in range(3):
        writer.write(SECONDS * 10**9 + number * 60_000_000, testing.udp())
    writer.close()
    write((tmp_path / "slow.pcap").read_bytes())
    end()
    began, times = time.monotonic(), []
    with nfnet.Queue(1, transport=nfnet.replay(name, realtime=True)) as queue:
        for found in queue:
            found.accept()
            times.append(time.monotonic() - began)
    assert len(times) == 3
    assert times[2] >= 0.115


def test_a_signal_while_a_pipe_is_empty(pipe: Any) -> None:
    """KeyboardInterrupt is raised, and the loop can continue with the next packet."""
    name, write, end = pipe
    data = pcap(HEAD + packet(1), HEAD + packet(2), link_type=253)
    half = 24 + (len(data) - 24) // 2
    write(data[:half])
    seen: list[int] = []

    def raise_it(*_: Any) -> None:
        raise KeyboardInterrupt

    def run() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        queue.run(lambda packet: seen.append(packet.id))

    before = signal.signal(signal.SIGALRM, raise_it)
    try:
        with nfnet.Queue(1, transport=nfnet.replay(name)) as queue:
            with pytest.raises(KeyboardInterrupt):
                run()
            write(data[half:])
            end()
            queue.run(lambda packet: seen.append(packet.id))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert seen == [1, 2]


@pytest.mark.parametrize("plain", [False, True])
def test_asyncio_reads_a_damaged_recording_from_a_pipe(pipe: Any, plain: bool) -> None:
    name, write, end = pipe
    seen: list[int] = []

    def handler(packet: nfnet.Packet) -> None:
        seen.append(packet.id)
        packet.accept()

    async def slowly(data: bytes) -> None:
        for place in range(0, len(data), 50):
            write(data[place : place + 50])
            await asyncio.sleep(0)
        end()

    async def main() -> None:
        data = pcap(HEAD + packet(1), HEAD + damaged(packet(2)), HEAD + packet(3), link_type=253)
        async with nfnet.AsyncQueue(1, transport=nfnet.replay(name), on_overrun="ignore") as queue:
            writer = asyncio.create_task(slowly(data))
            with pytest.raises(nfnet.CaptureError, match="record 2"):
                await read_all(queue)
            await read_all(queue)
            assert queue.counters.malformed == 1
            await writer

    async def read_all(queue: nfnet.AsyncQueue) -> None:
        if plain:
            await queue.run(handler)
        else:
            async for found in queue:
                handler(found)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert seen == [1, 3]
