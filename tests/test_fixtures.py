"""The recordings in tests/fixtures contain what their JSON files say; tests/fixtures/make.py makes both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Log, Packet, Queue
from nfnet.captures import read
from nfnet.captures._records import netfilter_datagram
from nfnet.protocol import netlink

from .conftest import FIXTURES

SIDECARS = sorted(path for path in FIXTURES.glob("*.json") if path.with_suffix(".pcapng").exists())


def test_there_are_recordings() -> None:
    assert len(SIDECARS) >= 25


@pytest.fixture(params=SIDECARS, ids=lambda path: path.stem)
def sidecar(request: pytest.FixtureRequest) -> tuple[Path, dict[str, Any]]:
    return request.param.with_suffix(".pcapng"), json.loads(request.param.read_text())


def test_a_recording(sidecar: tuple[Path, dict[str, Any]]) -> None:
    path, facts = sidecar
    if "queue" in facts:
        replay = nfnet.replay(path)
        packets: list[Packet] = []
        with Queue(facts["queue"], transport=replay) as queue:
            queue.run(packets.append)
            assert queue.counters.refused == {int(number): count for number, count in facts["refused"].items()}
            assert queue.counters.lost == facts["lost"]
        found = [[p.id, p.hook, p.family, len(p.payload), p.cap_len, p.mark, p.indev, p.outdev, p.uid] for p in packets]
        assert found == facts["packets"]
        assert {str(number): item.verdict for number, item in replay.recorded.items()} == facts["verdicts"]
    if "group" in facts:
        with Log(facts["group"], transport=nfnet.replay(path), sequence=True) as log:
            found = [[m.prefix, m.hook, m.family, len(m.payload), m.mark, m.indev, m.outdev, m.uid, m.seq] for m in log]
            assert log.counters.lost == facts["lost"]
        assert found == facts["messages"]


def test_every_attribute_in_the_recordings_decodes() -> None:
    """By the schemas, and by the properties."""
    seen: set[str] = set()
    for path in FIXTURES.glob("*.pcapng"):
        facts = json.loads(path.with_suffix(".json").read_text())
        if "queue" in facts:
            with Queue(facts["queue"], transport=nfnet.replay(path)) as queue:
                queue.run(lambda packet: seen.update(key.name for key in packet.attributes))
        if "group" in facts:
            with Log(facts["group"], transport=nfnet.replay(path)) as log:
                log.run(lambda message: seen.update(key.name for key in message.attributes))
    assert {
        "PAYLOAD",
        "HWADDR",
        "TIMESTAMP",
        "UID",
        "CAP_LEN",
        "SEQ",
        "PREFIX",
        "HWHEADER",
        "SKB_INFO",
        "VLAN",
        "L2HDR",
    } <= seen


def test_the_refusal_has_the_kernels_words() -> None:
    datagrams = [netfilter_datagram(record) or b"" for record in read(FIXTURES / "queue-refused.pcapng")]
    texts = [netlink.parse_answer(data).message for data in datagrams if netlink.is_answer(data)]
    assert "Attribute failed policy validation" in texts
