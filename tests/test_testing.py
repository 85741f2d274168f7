"""What `nfnet.testing` and the plugin offer to other people's tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import GivenVerdict, Packet, Verdict, inet, testing
from nfnet._io.system import Event
from nfnet.captures._pcap import LinkType, Writer
from nfnet.testing import FedQueue

from .test_inet import assert_valid


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
        (lambda: testing.packet_message(1, "text"), TypeError, "bytes-like"),
    ],
)
def test_wrong_input_is_named(call: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        call()
