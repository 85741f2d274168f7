"""Rewriting packets; a second, simpler implementation checks the checksums."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nfnet import inet, testing
from nfnet.errors import ArgumentError
from nfnet.inet import _headers as headers
from nfnet.inet import _rewriting as rewriting
from nfnet.protocol.nfqnl import SkbInfo


def plain_sum(data: bytes) -> int:
    """RFC 1071 by the letter: add 16-bit words, end-around carry."""
    total = 0
    for place in range(0, len(data) - len(data) % 2, 2):
        total += data[place] << 8 | data[place + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def segment(protocol: int, data: bytes, options: bytes = b"") -> bytes:
    if protocol == 17:
        return struct.pack("!HHHH", 1000, 2000, 8 + len(data), 0) + data
    return struct.pack("!HHIIBBHHH", 1000, 2000, 1, 2, (5 + len(options) // 4) << 4, 0x18, 500, 0, 0) + options + data


def ipv4(protocol: int, data: bytes, options: bytes = b"", fragment: int = 0) -> bytes:
    body = segment(protocol, data)
    length = 20 + len(options) + len(body)
    head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, length, 1, fragment, 64, protocol, 0)
    return head + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + options + body


def ipv6(protocol: int, data: bytes, extensions: bytes = b"", first: int | None = None) -> bytes:
    body = extensions + segment(protocol, data)
    next_header = protocol if first is None else first
    return struct.pack("!IHBB", 6 << 28, len(body), next_header, 64) + bytes(range(32)) + body


def assert_valid(packet: bytes) -> None:
    """Check a packet as its receiver does."""
    if packet[0] >> 4 == 4:
        header = (packet[0] & 15) * 4
        assert plain_sum(packet[:header]) == 0xFFFF
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        protocol, addresses = packet[9], packet[12:20]
    else:
        header, protocol, addresses = 40, packet[6], packet[8:40]
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        while protocol in (0, 60):
            protocol, header = packet[header], header + 8 * (packet[header + 1] + 1)
    body = packet[header:]
    assert plain_sum(addresses + struct.pack("!II", len(body), protocol) + body) == 0xFFFF
    if protocol == 17:
        assert int.from_bytes(body[4:6], "big") == len(body)
        assert body[6:8] != b"\0\0"


@given(st.binary(max_size=99))
def test_checksum(data: bytes) -> None:
    assert inet.checksum(data) == plain_sum(data) ^ 0xFFFF


@given(
    st.sampled_from([6, 17]),
    st.binary(max_size=60),
    st.binary(max_size=200),
    st.sampled_from(["v4", "v4 options", "v6", "v6 hop-by-hop"]),
)
def test_replaced_data_is_valid(protocol: int, old: bytes, new: bytes, kind: str) -> None:
    packet = {
        "v4": lambda: ipv4(protocol, old),
        "v4 options": lambda: ipv4(protocol, old, b"\x01" * 8),
        "v6": lambda: ipv6(protocol, old),
        "v6 hop-by-hop": lambda: ipv6(protocol, old, bytes([protocol, 1]) + bytes(14), first=0),
    }[kind]()
    assert inet.get_data(packet) == old
    changed = inet.replace_data(packet, new)
    assert inet.get_data(changed) == new
    assert_valid(changed)


def outcome(packet: bytes, change: dict[str, Any]) -> bytes | str:
    try:
        return inet.rewrite(packet, **change)
    except ArgumentError as error:
        return str(error)


CHANGES: list[dict[str, Any]] = [
    {"data": b"other"},
    {"data": bytes(70_000)},
    {"ttl": 3},
    {"destination_port": 53},
    {"window": 9},
    {"source": "192.0.2.1"},
    {"destination": "2001:db8::1", "data": b"odd"},
]


@given(
    st.sampled_from(
        [
            *(ipv4(protocol, b"data") for protocol in (1, 6, 17)),
            *(ipv4(17, b"data", fragment=field) for field in (0x2000, 0x2001, 0x4000)),
            ipv4(6, b"data", options=bytes(4)),
            *(ipv4(6, b"data")[:32] + bytes((offset << 4,)) + ipv4(6, b"data")[33:] for offset in (4, 6, 15)),
            *(ipv6(protocol, b"data") for protocol in (6, 17)),
        ]
    ),
    st.dictionaries(st.integers(0, 59), st.integers(0, 255), max_size=2),
    st.integers(0, 12),
    st.binary(max_size=3),
    st.sampled_from(CHANGES),
)
def test_usual_packets_are_rewritten_as_all_others(
    packet: bytes, damage: dict[int, int], cut: int, padding: bytes, change: dict[str, Any]
) -> None:
    damaged = bytearray(packet)
    for place, value in damage.items():
        damaged[place % len(damaged)] = value
    raw = bytes(damaged[: len(damaged) - cut] + padding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "usual_transport", lambda packet: None)
        expected = outcome(raw, change)
    assert outcome(raw, change) == expected


def test_udp_checksum_zero_is_sent_as_ones() -> None:
    for number in range(0x10000):
        packet = inet.replace_data(ipv4(17, b""), number.to_bytes(2, "big"))
        if packet[26:28] == b"\xff\xff":
            assert_valid(packet)
            return
    pytest.fail("no data gave that checksum")


def test_link_layer_padding_is_no_data() -> None:
    assert inet.get_data(ipv4(17, b"x") + bytes(17)) == b"x"


NOT_FOR_US = {
    "nothing": b"",
    "no IP": b"\x75" + bytes(60),
    "cut in the header": ipv4(17, b"abc")[:19],
    "cut in the data": ipv4(17, b"abc")[:-1],
    "header length too small": b"\x44" + ipv4(17, b"abc")[1:],
    "first fragment": ipv4(17, b"abc", fragment=0x2000),
    "later fragment": ipv4(17, b"abc", fragment=0x0001),
    "other protocol": ipv4(17, b"abc")[:9] + b"\x2f" + ipv4(17, b"abc")[10:],
    "v6 first fragment": ipv6(17, b"abc", bytes([17, 0, 0, 1]) + bytes(4), first=44),
    "v6 later fragment": ipv6(17, b"abc", bytes([17, 0, 1, 0]) + bytes(4), first=44),
    "v6 routing header": ipv6(17, b"abc", bytes([17, 0, 0, 1]) + bytes(4), first=43),
    "source route": ipv4(17, b"abc", options=bytes([1, 131, 3, 4, 0, 0, 0, 0])),
    "v6 cut in an extension": ipv6(17, b"abc", bytes([17]) + bytes(7), first=0)[:44],
    "TCP with a short offset": ipv4(6, b"")[:32] + b"\xf0" + ipv4(6, b"")[33:],
}


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_what_cannot_be_right_is_refused(name: str) -> None:
    with pytest.raises(ArgumentError, match="not a whole|that begins with a whole|of a fragment|source-routed"):
        inet.replace_data(NOT_FOR_US[name], b"new")


def test_too_long_a_packet_is_refused() -> None:
    with pytest.raises(ValueError, match="65536 bytes"):
        inet.replace_data(ipv4(17, b""), bytes(65536 - 28))


def test_flow_of_a_packet_that_ends_behind_its_ports() -> None:
    packet = ipv4(17, b"")
    assert inet.flow(packet[:24]) == (17, "10.0.0.1", 1000, "10.0.0.2", 2000)
    assert inet.flow(packet[:23]) == (17, "10.0.0.1", None, "10.0.0.2", None)
    assert inet.udp(packet[:27]) is None


def test_ports_behind_the_end_of_the_packet_are_none() -> None:
    """Short Ethernet frames are padded, with bytes that the sender chooses."""
    short4 = ipv4(17, b"")[:2] + (20).to_bytes(2, "big") + ipv4(17, b"")[4:]
    short6 = ipv6(17, b"")[:4] + (3).to_bytes(2, "big") + ipv6(17, b"")[6:]
    for packet, length in ((short4, 20), (short6, 43)):
        flow, ip = inet.flow(packet), inet.ip(packet)
        assert flow is not None
        assert ip is not None
        assert (flow.source_port, flow.destination_port, ip.length) == (None, None, length)
        assert inet.udp(packet) is inet.transport(packet) is None


def test_a_length_of_zero_in_ipv6() -> None:
    """Before a hop-by-hop header, with a jumbogram option or not, the kernel takes it as the length of all data."""
    padding, jumbo = bytes([17, 0, 1, 4, 0, 0, 0, 0]), bytes([17, 0, 0xC2, 4, 0, 0, 0, 9])
    for extension, first in ((b"", None), (padding, 0), (jumbo, 0)):  # a jumbogram has more than 65,535 bytes
        packet = ipv6(17, b"data", extension, first)
        packet = packet[:4] + b"\0\0" + packet[6:]
        assert inet.udp(packet) == (1000, 2000, b"data")
        assert inet.ip(packet).length == len(packet)  # type: ignore[union-attr]
    nothing_follows = struct.pack("!IHBB", 6 << 28, 0, 59, 64) + bytes(range(32))
    assert inet.ip(nothing_follows + bytes(6)).length == 40  # type: ignore[union-attr]
    assert inet.rewrite(nothing_follows + bytes(6), ttl=9) == nothing_follows[:7] + b"\x09" + nothing_follows[8:]


def test_a_packet_without_length_that_is_too_long_for_one_is_not_rewritten() -> None:
    packet = ipv4(6, b"")[:2] + b"\0\0" + ipv4(6, b"")[4:]
    assert inet.ip(inet.rewrite(packet + bytes(65535 - 40), ttl=1)).length == 65535  # type: ignore[union-attr]
    with pytest.raises(ArgumentError, match="65536 bytes and may have 65535"):
        inet.rewrite(packet + bytes(65536 - 40), ttl=1)


def test_tiny_first_fragments_keep_their_size() -> None:
    for packet in (ipv4(6, b"", fragment=0x2000)[:28], ipv6(6, b"", bytes([6, 0, 0, 1]) + bytes(4), first=44)[:56]):
        packet = (
            packet[:2] + (28).to_bytes(2, "big") + packet[4:]
            if packet[0] >> 4 == 4
            else (packet[:4] + (16).to_bytes(2, "big") + packet[6:])
        )
        assert len(inet.rewrite(packet, ttl=9)) == len(packet)
        with pytest.raises(ArgumentError, match="complete header"):
            inet.rewrite(packet, source="10.0.0.9" if packet[0] >> 4 == 4 else "fd00::9")


def test_what_follows_a_udp_datagram_is_not_its() -> None:
    packet = bytearray(ipv4(17, b"abcdSURP"))
    packet[24:26] = (12).to_bytes(2, "big")
    assert inet.get_data(bytes(packet)) == b"abcd"
    new = inet.rewrite(bytes(packet), source_port=5)
    assert inet.udp(new) == (5, 2000, b"abcd")
    assert new.endswith(b"SURP")
    body = new[20:32]
    assert plain_sum(new[12:20] + struct.pack("!II", 12, 17) + body) == 0xFFFF


def test_home_addresses_are_in_checksums() -> None:
    option = bytes([17, 2, 1, 2, 0, 0, 201, 16]) + bytes(16)
    packet = ipv6(17, b"abc", option, first=60)
    with pytest.raises(ArgumentError, match="source-routed"):
        inet.rewrite(packet, data=b"x")


@given(st.binary(max_size=90), st.integers(0, 90))
@example(b"\x01", 9)  # the protocol becomes ICMP
def test_any_bytes_are_read_or_refused(noise: bytes, place: int) -> None:
    for good in (ipv4(6, b"abcdef"), ipv6(17, b"abcdef")):
        for data in (noise, good[:place] + noise + good[place + len(noise) :], good[:place]):
            found = inet.get_data(data)
            assert found is None or found in data
            try:
                new = inet.replace_data(data, b"xyz")
            except ArgumentError:
                continue
            message = inet.icmp(new)  # its data can be replaced, too
            assert (inet.get_data(new) if message is None else message.data) == b"xyz"


def behind_headers(count: int, upper: bytes) -> bytes:
    """An IPv6 packet to UDP behind so many destination options headers."""
    option = bytes((60, 0, 1, 4, 0, 0, 0, 0))
    headers = (option * (count - 1) + bytes((17,)) + option[1:]) if count else b""
    first = 60 if count else 17
    length = len(headers) + len(upper)
    return bytes((0x60, 0, 0, 0)) + length.to_bytes(2, "big") + bytes((first, 64)) + bytes(32) + headers + upper


def test_more_extension_headers_than_anybody_needs_are_not_read() -> None:
    udp = bytes.fromhex("1092 0035 0009 0000 41")
    for count in (0, 1, 15):
        packet = behind_headers(count, udp)
        assert inet.flow(packet) == (17, "::", 4242, "::", 53)
        assert inet.protocol(packet) == 17
        assert inet.udp(packet) == (4242, 53, b"A")
    for count in (16, 180):
        packet = behind_headers(count, udp)
        assert inet.protocol(packet) is inet.flow(packet) is inet.ip(packet) is inet.udp(packet) is None
        with pytest.raises(ArgumentError):
            inet.rewrite(packet, ttl=3)


def test_options_are_not_read_where_they_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading a header with 2,048 bytes of them would take as long as a hundred packets; the sender chooses it."""
    monkeypatch.setattr(headers, "_has_home_address", None)
    monkeypatch.setattr(headers, "_is_source_routed", None)
    udp = bytes.fromhex("1092 0035 0009 0000 41")
    with_options = bytes.fromhex("46000021 00000000 40110000 7f000001 7f000001 01010101") + udp
    for packet in (behind_headers(1, udp), with_options):
        for read in (inet.flow, inet.ip, inet.udp, inet.protocol):
            assert read(packet) is not None


@pytest.mark.parametrize("skbinfo", [SkbInfo.CSUM_NOT_READY, SkbInfo.GSO | SkbInfo.CSUM_NOT_READY])
@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1"])
@pytest.mark.parametrize("make", [testing.tcp, testing.udp])
def test_no_checksum_is_written_behind_the_end_of_the_packet(
    make: Callable[..., bytes], address: str, skbinfo: SkbInfo
) -> None:
    """The IP header ends the packet within the header of TCP or UDP, and the bytes after it are padding."""
    packet = bytearray(make(b"x" * 30, source=address, destination=address))
    if packet[0] >> 4 == 4:
        begin, packet[2:4] = 20, (20 + 5).to_bytes(2, "big")
    else:
        begin, packet[4:6] = 40, (5).to_bytes(2, "big")
    with suppress(ArgumentError):  # the checksum cannot be finished
        new = inet.rewrite(bytes(packet), ttl=9, skbinfo=skbinfo)
        assert new[begin:] == packet[begin : begin + 5]
