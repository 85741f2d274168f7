"""Recordings made on the kernel replay with the same result, and Wireshark reads them."""

from __future__ import annotations

import contextlib
import errno
import json
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Log, Packet, Queue, inet, rules
from nfnet.captures import LinkType, Record, Writer, read, scan
from nfnet.captures._format import netlink_header

from .conftest import TIMEOUT, UID, Net, collect, kernel_lacks, readable
from .programs import program
from .test_queue import V4, V6
from .test_queue import Path as Way


def handler(packet: Packet) -> None:
    number = inet.get_data(packet.payload)[0]  # type: ignore[index]
    if number % 5 == 0:
        packet.drop()
    elif number % 5 == 1:
        packet.accept(mark=number)
    elif number % 5 == 2:
        packet.accept(payload=inet.replace_data(packet.payload, b"another"))
    else:
        packet.accept()


def record_session(net: Net, path: Path, family: int) -> None:
    """Packets with all kinds of verdicts, one of which is too late."""
    with Way(net, "output", family, record=path) as way:
        for start in (0, 10):
            for number in range(start, start + 10):
                way.sender.sendto(bytes([number]), way.destination)
            while way.queue.counters.received < start + 10:
                readable(way.queue, TIMEOUT)  # type: ignore[arg-type]
                way.queue.process(handler)
        way.sender.sendto(bytes([20]), way.destination)
        readable(way.queue, TIMEOUT)  # type: ignore[arg-type]
        with rules.queue(99, hook="input", netns=net.hosts["client"]):
            pass  # going, it flushes the queue
        way.queue.process(handler)
        way.queue.fetch()
        assert way.queue.counters.refused == {2: 1}


@pytest.mark.parametrize("suffix", [".pcapng", ".pcap"])
@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_a_recorded_queue_replays(net: Net, tmp_path: Path, suffix: str, family: int) -> None:
    path = tmp_path / f"session{suffix}"
    record_session(net, path, family)
    assert path.stat().st_mode & 0o077 == 0
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as queue:
        queue.run(handler)
        assert queue.counters.received == 21
        assert queue.counters.refused == {2: 1}
    assert len(replay.verdicts) == 21
    assert replay.verdicts == replay.recorded


def test_a_recorded_log_replays(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "log.pcapng"
    here = net.hosts["client"]
    with nfnet.record(path), Log(5, netns=here, threshold=4, timeout=0.1, sequence=True) as log:
        with rules.log(5, hook="output", prefix="recorded: ", protocol="udp", netns=here):
            sock = net.open_socket("client")
            for number in range(10):
                sock.sendto(bytes([number]), ("10.81.2.2", 7000))
            live = [(message.seq, message.prefix, message.payload) for message in collect(log, 10)]
    with Log(5, transport=nfnet.replay(path), sequence=True) as log:
        assert [(message.seq, message.prefix, message.payload) for message in log] == live
        assert log.counters.lost == 0
    with Log(6, transport=nfnet.replay(path)) as other:
        assert list(other) == []


@pytest.mark.feature("nlmon")
def test_what_an_nlmon_device_sees_replays(net: Net, tmp_path: Path) -> None:
    from pyroute2 import IPRoute, NetlinkError

    def listen() -> socket.socket:
        with IPRoute() as ip:
            ip.link("add", ifname="nlmon0", kind="nlmon")
            ip.link("set", index=ip.link_lookup(ifname="nlmon0")[0], state="up")
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind(("nlmon0", 3))
        return sock

    try:
        monitor = net.at("client", listen)
    except NetlinkError as error:
        if error.code != errno.EOPNOTSUPP:
            raise
        kernel_lacks("nlmon", option="CONFIG_NLMON")
    path = tmp_path / "nlmon.pcapng"
    with monitor, contextlib.closing(Writer(path, LinkType.NETLINK)) as writer:
        with Way(net, "output", V4) as way:
            for number in range(5):
                way.sender.sendto(bytes([number]), way.destination)
            while way.queue.counters.received < 5:
                readable(way.queue, TIMEOUT)  # type: ignore[arg-type]
                way.queue.process(handler)
            live = way.queue.counters
        while readable(monitor, 0):
            frame, address = monitor.recvfrom(70000)
            header = netlink_header.build({"packet_type": address[2], "family": address[1]})
            writer.write(time.time_ns(), header + frame)
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as queue:
        queue.run(handler)
        # Closing sends a verdict on all packets that wait. If none waits, the device sees an answer of the kernel that
        # the closed queue did not read.
        assert queue.counters.refused in ({}, {errno.ENOENT: 1})
        assert queue.counters._replace(refused={}) == live
    assert len(replay.verdicts) == 5
    assert replay.verdicts == replay.recorded


def dissect(path: Path) -> list[Any]:
    """The netlink layers of a file, as tshark sees them."""
    command = [program("tshark"), "-r", str(path), "-T", "json", "--no-duplicate-keys"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [frame["_source"]["layers"] for frame in json.loads(done.stdout)]


def fields(layer: Any, name: str) -> list[str]:
    """All values of a field, at any depth."""
    if not isinstance(layer, dict):
        return []
    found = []
    for key, value in layer.items():
        if key == name:
            found += value if isinstance(value, list) else [value]
        elif isinstance(value, list):
            for item in value:
                found += fields(item, name)
        else:
            found += fields(value, name)
    return found


def test_wireshark_reads_the_recording(net: Net, tmp_path: Path) -> None:
    path = tmp_path / "session.pcapng"
    record_session(net, path, V4)
    frames = dissect(path)
    text = json.dumps(frames)
    assert "_ws.malformed" not in text

    def all_of(name: str) -> list[int]:
        found = [fields(frame, f"netlink-netfilter.queue.{name}") for frame in frames]
        return [int(value, 0) for values in found for value in values]

    packets: list[Packet] = []
    replay = nfnet.replay(path)
    with Queue(1, transport=replay) as queue:
        queue.run(packets.append)
        assert all_of("packet.id") == [packet.id for packet in packets]
        assert all_of("packet.hook") == [packet.hook for packet in packets]
        assert all_of("packet.protocol") == [packet.hw_protocol for packet in packets]
        assert all_of("ifindex_outdev") == [packet.outdev for packet in packets]
    single = dict(zip(all_of("verdict.id"), all_of("verdict.verdict")))  # a batch has the highest id of several
    assert {number: replay.recorded[number].verdict for number in single} == single
    assert len(single) >= 4  # of a datagram with several verdicts tshark shows the first
    comments = " ".join(value for frame in frames for value in fields(frame, "frame.comment"))
    assert "DROP packet 1" in comments
    assert "ACCEPT packet 2 with another mark" in comments
    assert "ACCEPT packet 3 with another payload" in comments


def test_a_file_of_dumpcap_of_two_interfaces_replays(net: Net, tmp_path: Path) -> None:
    """Ethernet frames of lo between the messages of a log."""
    dumpcap = program("dumpcap")
    path = tmp_path / "two.pcapng"
    if UID:
        pytest.skip("dumpcap wants to be root of the machine")
    here = net.hosts["client"]

    def start() -> subprocess.Popen[bytes]:
        command = [dumpcap, "-q", "-i", "lo", "-i", "nflog:5", "-w", str(path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[here.fileno()])

    def recorded(link_type: int) -> int:
        with path.open("rb") as file:  # the last record can be incomplete
            return sum(isinstance(item, Record) and item.link_type == link_type for item in scan(file))

    process = net.at("client", start)
    try:
        assert process.stderr is not None
        while line := process.stderr.readline():
            if line.startswith(b"File:"):
                break
        with rules.log(5, hook="output", prefix="dumped", protocol="udp", out_interface="lo", threshold=1, netns=here):
            sock = net.open_socket("client")
            deadline = time.monotonic() + TIMEOUT
            for number in range(6):
                sock.sendto(bytes([number]), ("127.0.0.1", 7000))
            while recorded(LinkType.NFLOG) < 6 or not recorded(1):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    replay = nfnet.replay(path)
    assert replay.first() == (None, 5)
    with Log(5, transport=replay) as log:
        messages = list(log)
    assert [inet.get_data(message.payload) for message in messages] == [bytes([number]) for number in range(6)]
    assert replay.skipped[1] >= 6
    times = [record.time_ns for record in read(path) if record.link_type == LinkType.NFLOG]
    assert [message.timestamp_ns for message in messages] == times  # on their way out the kernel stamps none


def test_a_file_of_tcpdump_replays_as_a_log(net: Net, tmp_path: Path) -> None:
    tcpdump = program("tcpdump")
    path = tmp_path / "nflog.pcap"
    fd = net.hosts["client"].fileno()

    def start() -> subprocess.Popen[bytes]:
        command = [tcpdump, "-Z", "root", "-U", "-i", "nflog:5", "-c", "6", "-w", str(path)]
        return subprocess.Popen(command, stderr=subprocess.PIPE, pass_fds=[fd])

    if UID:
        pytest.skip("tcpdump wants to be root of the machine")
    process = net.at("client", start)
    try:
        assert b"listening" in process.stderr.readline()
        with rules.log(5, hook="output", prefix="dumped", protocol="udp", netns=net.hosts["client"]):
            sock = net.open_socket("client")
            for number in range(6):
                sock.sendto(bytes([number]), ("10.81.2.2", 7000))
            assert process.wait(TIMEOUT) == 0, process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    with Log(5, transport=nfnet.replay(path)) as log:
        messages = list(log)
    assert [inet.get_data(message.payload) for message in messages] == [bytes([number]) for number in range(6)]
    assert {message.prefix for message in messages} == {"dumped"}
