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
from nfnet.capture import LinkType, Writer

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
