"""`nfnet.testing` and the pytest plugin, as used by tests of programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import GivenVerdict, Hook, Packet, Verdict, inet, testing
from nfnet._io.system import Event
from nfnet.captures import LinkType, Writer
from nfnet.testing import FedQueue

from .conftest import FIXTURES
from .frames import NOT_IP, SAMPLES, write_pcap
from .test_captures import interface, section
from .test_inet import assert_valid
from .test_link_layers import enhanced


def handle(packet: Packet) -> None:
    data = inet.get_data(packet.payload)
    if data and b"secret" in data:
        packet.drop()
    elif packet.indev_name == "lan0":
        packet.accept(mark=packet.mark + 1)
    else:
        packet.accept()


def test_a_handler_in_three_lines(nfnet_queue: FedQueue) -> None:
    packet_id = nfnet_queue.feed(testing.udp(b"a secret"))
    nfnet_queue.run(handle)
    assert nfnet_queue.verdicts[packet_id].verdict == Verdict.DROP


def test_attributes_are_fed(nfnet_queue: FedQueue) -> None:
    ids = [
        nfnet_queue.feed(testing.tcp(b"x"), indev="lan0", mark=7, uid=1000),
        nfnet_queue.feed(testing.udp(b"x", source="2001:db8::1", destination="2001:db8::2"), outdev=4),
    ]
    seen: list[Packet] = []
    nfnet_queue.run(lambda packet: (seen.append(packet), handle(packet)))
    assert nfnet_queue.verdicts == {ids[0]: GivenVerdict(1, 8, None), ids[1]: GivenVerdict(1, None, None)}
    assert (seen[0].uid, seen[0].indev_name, seen[0].family) == (1000, "lan0", nfnet.Family.IPV4)
    assert (seen[1].outdev, seen[1].family) == (4, nfnet.Family.IPV6)
    ids.append(nfnet_queue.feed(testing.udp(b"secret")))
    nfnet_queue.run(handle)
    assert nfnet_queue.verdicts[ids[2]].verdict == Verdict.DROP


def test_the_verdict_and_the_queue_are_apart(nfnet_queue: FedQueue) -> None:
    ids = [nfnet_queue.feed() for _ in range(3)]
    verdicts = iter([lambda p: p.requeue(2), lambda p: p.requeue(0, mark=3, bypass=True), lambda p: p.repeat()])
    nfnet_queue.run(lambda packet: next(verdicts)(packet))
    found = nfnet_queue.verdicts
    assert [found[packet_id].verdict for packet_id in ids] == [Verdict.QUEUE, Verdict.QUEUE, Verdict.REPEAT]
    assert [found[packet_id].verdict.name for packet_id in ids] == ["QUEUE", "QUEUE", "REPEAT"]
    assert [found[packet_id].num for packet_id in ids] == [2, 0, None]
    assert [found[packet_id].bypass for packet_id in ids] == [False, True, False]
    assert found[ids[1]] == GivenVerdict(Verdict.QUEUE, mark=3, num=0, bypass=True)


def test_another_thread_may_receive_what_is_just_being_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = testing.FakeKernel()
    received: list[bytes] = []
    announce = Event.set

    def slower(event: Event) -> None:
        kernel.receive(received, 8)
        announce(event)

    monkeypatch.setattr(Event, "set", slower)
    kernel.deliver(b"one")
    kernel.deliver(b"two")
    assert received == [b"one", b"two"]
    kernel.close()


@pytest.mark.parametrize("build", [testing.udp, testing.tcp])
@pytest.mark.parametrize("ends", [{}, {"source": "2001:db8::1", "destination": "2001:db8::2"}])
def test_built_packets_are_valid(build: Any, ends: dict[str, str]) -> None:
    packet = build(b"some data", source_port=1, destination_port=2, **ends)
    assert_valid(packet)
    assert inet.get_data(packet) == b"some data"


def session(path: Path) -> Path:
    writer = Writer(path, LinkType.NFLOG)
    writer.write(0, testing.log_message(testing.udp(b"logged"), group=9)[16:])
    writer.close()
    return path


def test_a_recording_is_opened(nfnet_replay: Callable[..., Any], tmp_path: Path) -> None:
    log = nfnet_replay(session(tmp_path / "file.pcap"))
    assert [(message.prefix, inet.get_data(message.payload)) for message in log] == [("test", b"logged")]
    assert log.group == 9
    assert list(nfnet_replay(tmp_path / "file.pcap", group=3)) == []
    assert list(nfnet_replay(tmp_path / "file.pcap", num=3)) == []


# --- captures


@pytest.fixture
def web(tmp_path: Path) -> Path:
    """A capture of a device with VLANs, IPv6 and ARP."""
    frames = [sample.before + WEB[0] for sample in (SAMPLES["Ethernet"], SAMPLES["VLAN"])]
    frames += [NOT_IP["ARP"][1], SAMPLES["Ethernet"].before_ipv6 + WEB[1]]
    return write_pcap(tmp_path / "web.pcap", LinkType.ETHERNET, *frames)


WEB = [testing.udp(b"a secret"), testing.tcp(b"GET /", source="2001:db8::1", destination="2001:db8::2")]


def test_packets_of_a_capture_are_fed(nfnet_queue: FedQueue, web: Path) -> None:
    packets = testing.from_pcap(web, local="2001:db8::1")
    assert [packet.payload for packet in packets] == [WEB[0], WEB[0], WEB[1]]
    assert [packet.hook for packet in packets] == [Hook.FORWARD, Hook.FORWARD, Hook.OUTPUT]
    with pytest.raises(nfnet.ClosedError):
        packets[0].accept()
    nfnet_queue.feed(testing.udp(b"another one before"))
    ids = [nfnet_queue.feed(packet) for packet in packets] + [nfnet_queue.feed(packets[0], mark=7, indev="lan0")]
    assert ids == [2, 3, 4, 5]
    seen: list[Packet] = []
    nfnet_queue.run(lambda packet: (seen.append(packet), handle(packet)))
    for packet, source in zip(seen[1:], packets):
        assert packet.payload == source.payload
        assert (packet.hook, packet.family, packet.hwaddr) == (source.hook, source.family, source.hwaddr)
        assert packet.timestamp_ns == source.timestamp_ns == packet.timestamp_ns
    assert [packet.timestamp_ns for packet in seen[1:4]] == [
        1_700_000_000_123_456_000 + second * 10**9 for second in (0, 1, 3)
    ]
    assert (seen[4].mark, seen[4].indev_name, seen[4].hook) == (7, "lan0", Hook.FORWARD)
    found = nfnet_queue.verdicts
    assert [found[packet_id].verdict for packet_id in ids] == [Verdict.DROP, Verdict.DROP, Verdict.ACCEPT, Verdict.DROP]


def test_frames_of_a_capture_are_fed_as_to_a_bridge(nfnet_queue: FedQueue, web: Path) -> None:
    packets = testing.from_pcap(web, family="bridge")
    for packet in packets:
        nfnet_queue.feed(packet)
    seen: list[Packet] = []
    nfnet_queue.run(lambda packet: (seen.append(packet), packet.accept()))
    assert [packet.vlan for packet in seen] == [None, (0x8100, 0x2005), None, None]
    for packet, source in zip(seen, packets):
        for name in ("family", "hw_protocol", "vlan", "l2header", "hwaddr", "payload", "ip"):
            assert getattr(packet, name) == getattr(source, name), name
    assert seen[2].hw_protocol == 0x0806


def test_names_of_interfaces_are_fed(nfnet_queue: FedQueue, tmp_path: Path) -> None:
    path = tmp_path / "two.pcapng"
    data = section("<") + interface("<", 101, (2, b"tun0")) + interface("<", 101, (2, b"tun1"))
    path.write_bytes(data + enhanced("<", 1, WEB[0]) + enhanced("<", 0, WEB[1]))
    for packet in testing.from_pcap(path):
        nfnet_queue.feed(packet)
    seen: list[Packet] = []
    nfnet_queue.run(lambda packet: (seen.append(packet), packet.accept()))
    assert [packet.indev_name for packet in seen] == ["tun1", "tun0"]


def test_what_a_queue_or_a_log_recorded_is_fed(nfnet_queue: FedQueue) -> None:
    for name, kind in (("queue-forward-ipv4", nfnet.Packet), ("log-single", nfnet.LogMessage)):
        packets = testing.from_pcap(FIXTURES / f"{name}.pcapng")
        assert packets
        reader = testing.open_replay(FIXTURES / f"{name}.pcapng")
        recorded = [kind.from_bytes(item.raw) for item in reader]
        reader.close()
        assert [packet.payload for packet in packets] == [item.payload for item in recorded]
        before = len(nfnet_queue.kernel.queued)
        for item in recorded:  # a log message can be fed, too
            nfnet_queue.feed(item)
        for packet, item in zip(packets, recorded):
            for attribute in ("hook", "family", "mark", "uid", "gid", "indev", "outdev", "hwaddr", "timestamp_ns"):
                assert getattr(packet, attribute) == getattr(item, attribute), attribute
        assert len(nfnet_queue.kernel.queued) == before + len(recorded)
    nfnet_queue.run(handle)


def test_a_capture_without_packets_is_an_error(tmp_path: Path) -> None:
    path = write_pcap(tmp_path / "arp.pcap", LinkType.ETHERNET, NOT_IP["ARP"][1])
    with pytest.raises(nfnet.CaptureError, match=r"no packets of a queue .*: 1 record that is not IP \(1 ARP\)"):
        testing.from_pcap(path)
    write_pcap(path, LinkType.RAW, WEB[0])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(nfnet.CaptureError, match="in the middle of a record"):
        testing.from_pcap(path)
    with pytest.raises(FileNotFoundError):
        testing.from_pcap(tmp_path / "nothing.pcap")


def test_the_fixture_takes_the_options_of_a_capture(nfnet_replay: Callable[..., Any], web: Path) -> None:
    queue = nfnet_replay(web, hook="input")
    assert [packet.hook for packet in queue] == [Hook.INPUT] * 3
    assert queue.num == 0
    assert len(list(nfnet_replay(web, num=9, family="bridge"))) == 4
    assert [message.hook for message in nfnet_replay(web, group=9, hook="output")] == [Hook.OUTPUT] * 3


def test_the_plugin_costs_nothing_until_it_is_used(tmp_path: Path) -> None:
    test = (
        "import sys\ndef test_it():\n    assert 'nfnet' not in sys.modules\n    assert 'construct' not in sys.modules\n"
    )
    (tmp_path / "test_it.py").write_text(test)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: testing.udp(b"x", source="nope"), nfnet.ArgumentError, "source"),
        (lambda: testing.udp(b"x", source="::1"), nfnet.ArgumentError, "destination is '192.0.2.2'"),
        (lambda: testing.tcp(b"x", destination_port=70000), nfnet.ArgumentError, "destination_port"),
        (lambda: testing.packet_message(1, MARC=1), nfnet.ArgumentError, "no attribute is called 'MARC'"),
        (lambda: testing.log_message(marc=1), nfnet.ArgumentError, "no attribute is called 'marc'"),
        (lambda: testing.udp("x"), nfnet.ArgumentTypeError, "data must be bytes, not str"),
        (lambda: testing.udp(b"x", source=5), nfnet.ArgumentTypeError, "source must be an address, not int"),
        (lambda: testing.packet_message(1, "text"), nfnet.ArgumentTypeError, "payload must be bytes or None, not str"),
        (lambda: testing.packet_message(b"E"), nfnet.ArgumentTypeError, "packet_id must be an integer, not bytes"),
        (lambda: testing.packet_message(1 << 32), nfnet.ArgumentError, "packet_id is 4294967296"),
        (
            lambda: testing.packet_message(1, bytes(65532)),
            nfnet.ArgumentError,
            "payload has 65532 bytes and may have 65531",
        ),
        (lambda: testing.packet_message(1, num=65536), nfnet.ArgumentError, "num is 65536"),
        (lambda: testing.packet_message(1, family="inet"), nfnet.ArgumentTypeError, "family must be"),
        (lambda: testing.packet_message(1, hook="input"), nfnet.ArgumentTypeError, "hook must be"),
        (lambda: testing.packet_message(1, hw_protocol=65536), nfnet.ArgumentError, "hw_protocol is 65536"),
        (lambda: testing.packet_message(1, time_ns=1.5), nfnet.ArgumentTypeError, "time_ns must be"),
        (lambda: testing.packet_message(1, MARK="7"), nfnet.ArgumentError, "MARK is '7'"),
        (lambda: testing.packet_message(1, HWADDR=5), nfnet.ArgumentError, "HWADDR is 5"),
        (lambda: testing.packet_message(1, CT=b"x"), nfnet.ArgumentError, "CT is b'x'"),
        (lambda: testing.packet_message(1, CT={999: 1}), nfnet.ArgumentError, "CT is {999: 1}"),
        (lambda: testing.packet_message(1, SECCTX=bytes(70000)), nfnet.ArgumentError, "SECCTX is b'"),
        (lambda: testing.log_message("text"), nfnet.ArgumentTypeError, "payload must be bytes or None, not str"),
        (lambda: testing.log_message(group=-1), nfnet.ArgumentError, "group is -1"),
        (lambda: testing.log_message(prefix=b"x"), nfnet.ArgumentTypeError, "prefix must be a string, not bytes"),
        (lambda: testing.error_message(-1, bytes(16)), nfnet.ArgumentError, "number is -1"),
        (lambda: testing.error_message(1, "x"), nfnet.ArgumentTypeError, "request must be bytes, not str"),
        (lambda: testing.error_message(1, b"x"), nfnet.ArgumentError, "request has 1 bytes"),
    ],
)
def test_wrong_input_is_named(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()


@pytest.mark.parametrize("attributes", [{"mark": "lan0"}, {"uid": "root"}, {"hook": "input"}, {"indev": 1.5}])
def test_a_packet_with_a_wrong_attribute_is_not_fed(nfnet_queue: FedQueue, attributes: dict[str, Any]) -> None:
    """Only an interface can be a name; a name is no mark, although an interface's index would be one."""
    with pytest.raises(nfnet.ArgumentError):
        nfnet_queue.feed(**attributes)
    assert not nfnet_queue.kernel.queued
    assert not nfnet_queue.kernel.interfaces
    nfnet_queue.run(Packet.accept)
    assert not nfnet_queue.verdicts
