"""Byte order: recordings of machines with the other one, and nfnet on such a machine."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet._io.netlink_socket import SO_MEMINFO, SO_RCVBUFFORCE, SO_SNDBUFFORCE, SO_TIMESTAMP, socket_options
from nfnet.captures import read
from nfnet.captures._records import netfilter_datagram
from nfnet.cli.decode_command import describe
from nfnet.errors import DecodeError
from nfnet.protocol import byteorder, layout, netlink, nfqnl
from nfnet.protocol.netlink import HOST
from nfnet.protocol.nfqnl import NFQA
from nfnet.testing import log_message, packet_message

from .conftest import FIXTURES
from .swap import HERE, THERE, turn, turn_file

OTHER: netlink.ByteOrder = "big" if HOST == "little" else "little"

# The same datagrams of either kind of machine, byte by byte.
BY_HAND = {
    "binding queue 1": (
        "1c000000 0203 0500 01000000 00000000 00000001 0800 0100 01000000",
        "0000001c 0302 0005 00000001 00000000 00000001 0008 0001 01000000",
    ),
    "packet with a VLAN tag, and 2 odd bytes": (
        "3a000000 0003 0000 00000000 00000000 07000001 0b00 0100 000000010800 00 00 1400 1380 0600 0200 0005 0000 0600"
        "0100 8100 0000 0600 0a00 4500",
        "0000003a 0300 0000 00000000 00000000 07000001 000b 0001 000000010800 00 00 0014 8013 0006 0002 0005 0000 0006"
        "0001 8100 0000 0006 000a 4500",
    ),
    "log message, and the end of the bundle": (
        "20000000 0004 0200 00000000 00000000 02000005 0900 0a00 6162636400 000000 14000000 0300 0000 00000000 00000000"
        "00000005",
        "00000020 0400 0002 00000000 00000000 02000005 0009 000a 6162636400 000000 00000014 0003 0000 00000000 00000000"
        "00000005",
    ),
    "refusal of a whole request, with its place": (
        "38000000 0200 0002 08000000 21000000 deffffff 1c000000 0203 0500 08000000 00000000 00000001 0600 0300 00010000"
        "0800 0200 14000000",
        "00000038 0002 0200 00000008 00000021 ffffffde 0000001c 0302 0005 00000008 00000000 00000001 0006 0003 00010000"
        "0008 0002 00000014",
    ),
    "consent, capped": (
        "24000000 0200 0001 01000000 92100000 00000000 1c000000 0203 0500 01000000 00000000",
        "00000024 0002 0100 00000001 00001092 00000000 0000001c 0302 0005 00000001 00000000",
    ),
    "consent of an old kernel": (
        "24000000 0200 0000 01000000 92100000 00000000 1c000000 0203 0500 01000000 00000000",
        "00000024 0002 0000 00000001 00001092 00000000 0000001c 0302 0005 00000001 00000000",
    ),
    "rule of nf_tables, which our tables do not know": (
        "28000000 060a 0904 00000000 00000000 02000000 0600 0100 6100 0000 0c00 0480 0800 0100 00000001",
        "00000028 0a06 0409 00000000 00000000 02000000 0006 0001 6100 0000 000c 8004 0008 0001 00000001",
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    little, big = (bytes.fromhex(digits) for digits in BY_HAND[name])
    ours, theirs = (little, big) if HOST == "little" else (big, little)
    assert byteorder.to_host(theirs, OTHER) == ours
    assert byteorder.to_host(ours, HOST) is ours
    for datagram, order in ((ours, HOST), (theirs, OTHER)):
        assert byteorder.order_of(datagram, HOST) == byteorder.order_of(datagram, OTHER) == order
    if "nf_tables" not in name:
        assert (turn(little, "<"), turn(big, ">")) == (big, little)


def test_every_recorded_datagram_is_turned_as_the_tests_own_way_does(datagrams: dict[str, bytes]) -> None:
    recorded = [netfilter_datagram(record) or b"" for path in FIXTURES.glob("*.pcapng") for record in read(path)]
    assert len(recorded) > 250
    end = {1: {1: b"\1\2\3\4", 2: b"\5\6\7\x08"}, 2: {1: 6, 2: 258, 3: 80}}
    entry = {1: end, 2: end, 3: 0x18E, 4: {1: {1: 3, 4: {"flags": 1, "mask": 2}}}, 5: {1: b"ftp"}, 9: {1: 7, 2: 258}}
    recorded.append(packet_message(1, CT={**entry, 12: b"\1\2\3\4", 20: {1: 2}, 24: {1: 5}}, VLAN={1: 0x8100, 2: 5}))
    recorded.append(log_message(CT=entry, VLAN={1: 0x8100, 2: 5}, CT_INFO=2))
    recorded.append(packet_message(2, EXP=[{"type": 4, "data": b"\0\0\0\1"}]))
    for datagram in [*recorded, *datagrams.values()]:
        assert byteorder.to_host(turn(datagram, HERE), OTHER) == datagram


def test_a_length_that_reads_either_way_is_of_the_order_that_was_expected() -> None:
    datagram = (256).to_bytes(4, "little") + bytes(0x10000 - 4)
    assert byteorder.order_of(datagram, "little") == "little"
    assert byteorder.order_of(datagram, "big") == "big"


def test_the_beginning_of_a_datagram_is_told_by_the_length_of_the_whole() -> None:
    datagram = turn(packet_message(1, bytes(100)), HERE)
    assert byteorder.order_of(datagram[:64], HOST) == HOST
    assert byteorder.order_of(datagram[:64], HOST, len(datagram)) == OTHER


WHOLE = turn(packet_message(1, CT={3: 5, 4: {1: {1: 3}}}), HERE) + turn(log_message(VLAN={1: 0x8100}), HERE)
NESTED_TOO_DEEP = b"".join((4 * (100 - depth)).to_bytes(2, OTHER) + (0x8001).to_bytes(2, OTHER) for depth in range(100))


@given(st.binary(max_size=64), st.integers(0, len(WHOLE)))
def test_any_bytes_are_turned_or_a_decode_error(noise: bytes, place: int) -> None:
    for data in (noise, WHOLE[:place], WHOLE[:place] + noise + WHOLE[place + len(noise) :]):
        with contextlib.suppress(DecodeError):
            assert len(byteorder.to_host(data, OTHER)) == len(data)


@pytest.mark.parametrize(
    ("datagram", "words"),
    [
        (WHOLE[:9], "9 bytes are too few"),
        (WHOLE[:50], "where only 50 are left"),
        (turn(packet_message(1), HERE)[:20] + b"\0\0\0\0" + bytes(36), "attribute 0 of impossible length 0"),
        (turn(nfnet.testing.error_message(1, packet_message(1)), HERE)[:16].replace(b"\x24", b"\x10"), "cut short"),
        ((420).to_bytes(4, OTHER) + (0xA06).to_bytes(2, OTHER) + bytes(14) + NESTED_TOO_DEEP, "more than 32 deep"),
    ],
)
def test_damaged_datagrams_are_refused(datagram: bytes, words: str) -> None:
    with pytest.raises(DecodeError, match=words):
        byteorder.to_host(datagram, OTHER)


# --- recordings


def recordings(directory: Path) -> dict[str, Path]:
    """The fixtures: little-endian as they are, as a big-endian machine would have them, and that copied by another."""
    for name in ("little", "big", "copied"):
        (directory / name).mkdir()
    for path in FIXTURES.glob("*.pcapng"):
        (directory / "little" / path.name).write_bytes(path.read_bytes())
        turn_file(path, directory / "big" / path.name)
        turn_file(path, directory / "copied" / path.name, framing="<")
    return {name: directory / name for name in ("little", "big", "copied")}


def values(order: str, directory: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(Path(__file__).parent / "values.py"), order, str(directory)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


def test_recordings_of_either_kind_say_the_same_on_machines_of_either_kind(tmp_path: Path) -> None:
    """Reading packets, log messages and answers, and building requests and verdicts, by fast readers and schemas."""
    places = recordings(tmp_path)
    for order in ("little", "big"):
        expected = values(order, places["little"])
        assert len(expected) == len(list(FIXTURES.glob("*.pcapng"))) + 2
        assert values(order, places["big"]) == expected
        assert values(order, places["copied"]) == expected
        for row in expected.values():
            row.pop("text", None)  # has the bytes as they are on that machine
        if order == "little":
            first = expected
        assert expected == first


def test_the_other_tests_hold_on_a_machine_of_the_other_kind() -> None:
    """Run the tests of modules that handle bytes, in a Python that simulates the other byte order."""
    names = ["protocol", "fixtures", "packet", "log", "queue", "captures", "replay"]
    files = [str(Path(__file__).parent / f"test_{name}.py") for name in names]
    arguments = ["-q", "-p", "no:cacheprovider", *files]
    code = f"import sys; sys.byteorder = {OTHER!r}; import pytest; sys.exit(pytest.main({arguments!r}))"
    root = Path(nfnet.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stdout


def test_decode_turns_what_it_is_given() -> None:
    ours = packet_message(3, MARK=7, VLAN={1: 0x8100, 2: 5})
    text = list(describe(ours))
    command = [sys.executable, "-m", "nfnet", "decode", turn(ours, HERE).hex()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(nfnet.__file__).parents[1])
    assert done.stdout.splitlines()[1:] == text


def test_attributes_within_attributes_of_a_log_that_tcpdump_recorded(tmp_path: Path) -> None:
    from .test_captures import recording

    message = turn(log_message(b"payload" * 3, VLAN={1: 0x8100, 2: 5}), HERE)
    path = recording(tmp_path / "log.pcap", message[16:], byteorder=THERE, link_type=239)
    with nfnet.Log(5, transport=nfnet.replay(path)) as log:
        (found,) = list(log)
    assert found.vlan == (0x8100, 5)
    assert found.attributes[nfnet.protocol.nfulnl.NFULA.VLAN] == {1: 0x8100, 2: 5}


def test_a_damaged_datagram_comes_out_of_the_loop_and_the_next_one_after_it(tmp_path: Path) -> None:
    from .test_captures import recording

    good = turn(packet_message(1), HERE)
    bad = good[:20] + b"\0\1" + good[22:]
    path = recording(tmp_path / "damaged.pcap", good, bad, turn(packet_message(2), HERE), byteorder=THERE)
    seen: list[int] = []
    place = path.read_bytes().index(bad) + 20
    with nfnet.Queue(1, transport=nfnet.replay(path)) as queue:
        with pytest.raises(nfnet.CaptureError, match=f"^record 2: attribute 1 .*at byte {place}"):
            queue.run(lambda packet: seen.append(packet.id))
        queue.run(lambda packet: seen.append(packet.id))
    assert seen == [1, 2]


# --- what differs between machines otherwise


def test_numbers_of_socket_options() -> None:
    assert socket_options("x86_64") == socket_options("armv7l") == socket_options("s390x") == (32, 33, 29, 55)
    assert socket_options("mips64") == (31, 33, 29, 55)
    assert socket_options("parisc64") == (0x100A, 0x100B, 0x4012, 0x4030)
    assert socket_options("sparc64") == (0x100A, 0x100B, 29, 0x39)
    assert socket_options("alpha") == (0x100A, 0x100B, 29, 55)
    assert socket_options(os.uname().machine) == (SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMP, SO_MEMINFO)


def test_layouts_have_the_same_size_everywhere() -> None:
    assert layout.attribute_header.size == 4
    assert netlink.header.sizeof() == netlink.HEADER_SIZE == 16
    assert netlink.nlmsgerr.sizeof() == 20
    assert nfqnl.NFQA_TABLE[NFQA.TIMESTAMP].schema.sizeof() == 16
