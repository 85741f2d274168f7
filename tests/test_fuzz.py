"""A short run of `make fuzz`, and what longer ones have found."""

from __future__ import annotations

import random
import struct

import pytest

from nfnet.protocol import netlink
from nfnet.testing import log_message, packet_message

from . import fuzz
from .test_capture import pcap


def test_damaged_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["4000", "--seed", str(random.randrange(1 << 30))]) == 0
    assert "4,000 inputs" in capsys.readouterr().out


def netlink_record(message: bytes, arphrd: int = 824) -> bytes:
    return struct.pack("!HH10xH", 4, arphrd, 12) + message


STAMPED = {"seconds": 1 << 40, "microseconds": 0}
FOUND = {
    "an errno that is none": (
        "answer",
        netlink.build_message(netlink.NLMSG_ERROR, 0x100, 1, struct.pack("=i16x", -(1 << 31))),
    ),
    "a record of another link layer": ("replay", pcap(netlink_record(packet_message(1), 1), link_type=253)),
    "the time of a packet": ("nfnet replay", pcap(netlink_record(packet_message(1, TIMESTAMP=STAMPED)), link_type=253)),
    "the time of a message": (
        "nfnet replay --json",
        pcap(netlink_record(log_message(TIMESTAMP=STAMPED)), link_type=253),
    ),
    "a message of nf_tables without its header": ("dump", netlink.build_message(0x0A00, 0, 1, b"")),
    "many digits": ("rule", b"uid=" + b"9" * 5000),
    "an argument with control characters": ("arguments", "doctor\0\x1b[2J\udcff".encode("utf-8", "surrogateescape")),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target, data = FOUND[name]
    assert fuzz.main(["--repeat", target, data.hex()]) == 0
