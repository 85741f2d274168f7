"""A short run of `make fuzz`, and the failures that longer runs found."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from nfnet import ArgumentError, Log, Queue, inet, rules
from nfnet.protocol import netlink
from nfnet.testing import FedQueue, log_message, packet_message, udp

from . import fuzz
from .test_captures import pcap


def test_damaged_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert fuzz.main(["4000", "--seed", str(random.randrange(1 << 30))]) == 0
    assert "4,000 inputs" in capsys.readouterr().out


def netlink_record(message: bytes, arphrd: int = 824) -> bytes:
    return struct.pack("!HH10xH", 4, arphrd, 12) + message


STAMPED = {"seconds": 1 << 40, "microseconds": 0}
FOUND = {
    "an errno that is none": (
        "answer",
        netlink.build_message(netlink.NLMSG_ERROR, 0x100, 1, struct.pack(netlink.PREFIX + "i16x", -(1 << 31))),
    ),
    "a record of another link layer": ("replay", pcap(netlink_record(packet_message(1), 1), link_type=253)),
    "the time of a packet": ("nfnet replay", pcap(netlink_record(packet_message(1, TIMESTAMP=STAMPED)), link_type=253)),
    "the time of a message": (
        "nfnet replay --json",
        pcap(netlink_record(log_message(TIMESTAMP=STAMPED)), link_type=253),
    ),
    "ICMPv6 in IPv4": ("rewrite", bytes.fromhex("4500001d00000000013a0000c0000201c0000202") + bytes(9)),
    "a message of nf_tables without its header": ("dump", netlink.build_message(0x0A00, 0, 1, b"")),
    "many digits": ("rule", b"uid=" + b"9" * 5000),
    "an argument with control characters": ("arguments", "doctor\0\x1b[2J\udcff".encode("utf-8", "surrogateescape")),
}


@pytest.mark.parametrize("name", FOUND)
def test_found(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    target, data = FOUND[name]
    assert fuzz.main(["--repeat", target, data.hex()]) == 0


def verdict(**options: object) -> Callable[[], None]:
    def decide() -> None:
        fed = FedQueue()
        try:
            fed.feed(udp(b"x"), family=7, L2HDR=b"abcdef")
            fed.run(lambda packet: packet.accept(**options))  # type: ignore[arg-type]
        finally:
            fed.close()

    return decide


HUGE = 10**5000
UDP = udp(b"x")
WRONG: dict[str, tuple[Callable[[], object], type[Exception]]] = {
    "a number too long to write": (lambda: Queue(HUGE), ArgumentError),
    "a time too long to write": (lambda: Log(1, timeout=HUGE), ArgumentError),
    "a choice that is a number": (lambda: Queue(1, on_overrun=HUGE), TypeError),  # type: ignore[arg-type]
    "ports too long to read": (
        lambda: rules.queue(1, hook="output", protocol="udp", source_port="9" * 5000),
        ArgumentError,
    ),
    "an interface with a stray surrogate": (
        lambda: rules.queue(1, hook="output", in_interface="\ud800"),
        ArgumentError,
    ),
    "a user with a NUL": (lambda: rules.queue(1, hook="output", uid="root\0"), ArgumentError),
    "an empty network": (lambda: rules.queue(1, hook="output", source=()), ArgumentError),
    "a prefix that is a number": (lambda: rules.log(1, hook="output", prefix=5), TypeError),  # type: ignore[arg-type]
    "a prefix with a stray surrogate": (lambda: rules.log(1, hook="output", prefix="\ud800"), ArgumentError),
    "an address with a stray surrogate": (lambda: inet.rewrite(UDP, source="\ud800"), ArgumentError),
    "an address that is a number": (lambda: inet.rewrite(UDP, source=HUGE), TypeError),  # type: ignore[arg-type]
    "data that are a range": (lambda: inet.rewrite(UDP, data=range(1 << 70)), TypeError),  # type: ignore[arg-type]
    "a bypass that is a number": (lambda: rules.queue(1, hook="output", bypass=1 << 40), ArgumentError),  # type: ignore[arg-type]
    "half a VLAN tag": (verdict(vlan=(0x8100,)), ArgumentError),
    "a link-layer header that is a range": (verdict(l2header=range(1 << 70)), TypeError),
}


@pytest.mark.parametrize("name", WRONG)
def test_odd_arguments(name: str) -> None:
    function, error = WRONG[name]
    with pytest.raises(error):
        function()
