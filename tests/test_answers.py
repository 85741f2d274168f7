"""Answers, resets, rejections and injected packets: their bytes, and what queues do with them. No packet is sent."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet import Packet, Verdict, inet, testing
from nfnet.captures import LinkType, Writer
from nfnet.errors import (
    AlreadyDecidedError,
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    KernelError,
    NotSupportedError,
)
from nfnet.inet import TcpFlag, _answers
from nfnet.testing import FakeKernel, FedQueue, tcp, udp

from .test_tshark import tshark, values

__all__ = ["tshark"]

V4 = {"source": "192.0.2.1", "destination": "192.0.2.2"}
V6 = {"source": "2001:db8::1", "destination": "2001:db8::2"}
both_versions = pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])

FIN, SYN, RST, ACK, PSH = TcpFlag.FIN, TcpFlag.SYN, TcpFlag.RST, TcpFlag.ACK, TcpFlag.PSH
TOP = 0xFFFFFFFF


def echo_request(data: bytes = b"ping", *, source: str, destination: str) -> bytes:
    from scapy.layers.inet import ICMP, IP
    from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6

    if ":" in source:
        return bytes(IPv6(src=source, dst=destination) / ICMPv6EchoRequest(id=7, seq=9, data=data))
    return bytes(IP(src=source, dst=destination) / ICMP(type=8, id=7, seq=9) / data)


def with_options(packet: bytes, options: bytes) -> bytes:
    """A TCP packet without data, with options."""
    where = inet.transport(packet)
    assert where is not None
    assert len(options) % 4 == 0
    new = bytearray(packet[: where.header + 20]) + options
    new[where.header + 12] = (20 + len(options)) // 4 << 4
    return _answers.mend(bytes(new))


# --- TCP: what is in the resets

# Flags and data of a segment with seq 1000 and ack 5000; seq, ack and flags of the resets to sender and receiver.
RESETS: dict[str, tuple[TcpFlag, bytes, list[tuple[int, int, TcpFlag]], list[tuple[int, int, TcpFlag]]]] = {
    # The sender of a SYN accepts only a reset that acknowledges the SYN (RFC 9293).
    "SYN": (SYN, b"", [(0, 1001, RST | ACK)], [(1000, 0, RST), (1001, 0, RST)]),
    "SYN with data": (SYN, b"four", [(0, 1005, RST | ACK)], [(1000, 0, RST), (1005, 0, RST)]),
    "SYN/ACK": (SYN | ACK, b"", [(5000, 0, RST)], [(1000, 5000, RST | ACK), (1001, 5000, RST | ACK)]),
    "ACK": (ACK, b"", [(5000, 0, RST)], [(1000, 5000, RST | ACK)]),
    "data": (ACK | PSH, b"four", [(5000, 0, RST)], [(1000, 5000, RST | ACK), (1004, 5000, RST | ACK)]),
    "FIN": (ACK | FIN, b"", [(5000, 0, RST)], [(1000, 5000, RST | ACK), (1001, 5000, RST | ACK)]),
    "data and FIN": (ACK | FIN, b"four", [(5000, 0, RST)], [(1000, 5000, RST | ACK), (1005, 5000, RST | ACK)]),
    "RST": (RST, b"", [], [(1000, 0, RST)]),
    "RST/ACK": (RST | ACK, b"", [], [(1000, 5000, RST | ACK)]),
}


@both_versions
@pytest.mark.parametrize("case", RESETS)
def test_resets(case: str, ends: dict[str, str]) -> None:
    flags, data, to_sender, to_receiver = RESETS[case]
    packet = tcp(data, flags=flags, seq=1000, ack=5000, **ends)
    asked = inet.flow(packet)
    assert asked is not None
    forth: list[tuple[int, int, TcpFlag]] = []
    back: list[tuple[int, int, TcpFlag]] = []
    for reset in _answers.resets(packet):
        segment, flow = inet.tcp(reset), inet.flow(reset)
        assert segment is not None
        assert segment.data == b""
        (forth if flow == asked else back).append((segment.seq, segment.ack, segment.flags))
        if flow != asked:
            assert flow is not None
            assert (flow.source, flow.destination) == (asked.destination, asked.source)
            assert (flow.source_port, flow.destination_port) == (asked.destination_port, asked.source_port)
    assert (back, forth) == (to_sender, to_receiver)


def test_sequence_numbers_wrap() -> None:
    resets = _answers.resets(tcp(b"four", seq=TOP - 1, ack=TOP))
    assert [inet.tcp(reset).seq for reset in resets] == [TOP, TOP - 1, 2]  # type: ignore[union-attr]
    answer = _answers.answer(tcp(b"four", seq=TOP - 1, ack=TOP), b"x" * 1300)
    segments = [inet.tcp(each) for each in answer]
    assert [(each.seq, each.ack) for each in segments[:2]] == [(TOP, 2), (1219, 2)]  # type: ignore[union-attr]


def test_the_length_of_what_was_not_copied_counts() -> None:
    whole = tcp(b"x" * 1000, seq=1, ack=2)
    assert _answers.resets(whole[:60], len(whole)) == _answers.resets(whole)
    # A super-packet of more than 64 KiB has the length 0 in its header.
    big = bytearray(tcp(b"x" * 1000, seq=1, ack=2))
    big[2:4] = b"\0\0"
    assert [inet.tcp(reset).seq for reset in _answers.resets(bytes(big), 40 + 90_000)] == [2, 1, 90_001]  # type: ignore[union-attr]


# --- others as witnesses


def questions() -> list[bytes]:
    return [
        packet
        for ends in (V4, V6)
        for packet in (
            udp(b"question", **ends),
            tcp(b"GET /", seq=10, ack=20, **ends),
            with_options(tcp(b"", seq=10, ack=20, **ends), bytes.fromhex("0101080a 00000007 00000009")) + b"GET /",
            tcp(b"", flags=SYN, **ends),
            echo_request(**ends),
        )
    ]


def everything() -> list[bytes]:
    """All kinds of answers, to all kinds of questions."""
    found = []
    for packet in map(_answers.mend, questions()):
        found += _answers.refusals(packet)
        for build in (_answers.resets, lambda packet: _answers.answer(packet, b"an answer" * 200)):
            try:
                found += build(packet)
            except ArgumentError:
                continue
    return found


def test_wireshark_finds_nothing_wrong(tshark: str, tmp_path: Path) -> None:
    assert shutil.which("tshark") == tshark
    packets = everything()
    assert len(packets) == 48
    path = tmp_path / "answers.pcapng"
    writer = Writer(path, LinkType.RAW)
    for packet in packets:
        writer.write(0, packet)
    writer.close()
    checks = [f"-o{name}.check_checksum:TRUE" for name in ("ip", "tcp", "udp")]
    done = subprocess.run([tshark, "-r", path, *checks, "-T", "json"], capture_output=True, text=True, check=True)
    frames = [frame["_source"]["layers"] for frame in json.loads(done.stdout)]
    assert len(frames) == len(packets)
    for packet, frame in zip(packets, frames):
        statuses = [
            value for name in ("tcp", "udp", "icmp", "icmpv6") for value in values(frame, f"{name}.checksum.status")
        ]
        assert "1" in statuses, frame  # good
        assert "0" not in statuses, frame  # bad
        assert values(frame, "ip.checksum.status")[:1] == (["1"] if packet[0] >> 4 == 4 else [])
        assert "_ws.malformed" not in json.dumps(frame)


@both_versions
def test_scapy_takes_them_for_answers(ends: dict[str, str]) -> None:
    scapy = pytest.importorskip("scapy.all")
    layer = scapy.IPv6 if ":" in ends["source"] else scapy.IP
    for packet in (udp(b"question", **ends), echo_request(**ends), tcp(b"GET /", seq=10, ack=20, **ends)):
        answers = [_answers.answer(packet, b"ping")[0]]  # for scapy a reply to an echo request has its data
        answers += _answers.refusals(packet)
        for answer in answers:
            theirs = layer(answer)
            assert theirs.answers(layer(packet)), theirs.summary()
            fresh = theirs.copy()
            for each in (layer, scapy.TCP, scapy.UDP, scapy.ICMP, scapy.ICMPv6EchoReply, scapy.ICMPv6DestUnreach):
                if each in fresh:
                    for name in ("len", "plen", "chksum", "cksum"):
                        if name in fresh[each].fields:
                            fresh[each].delfieldval(name)
            assert bytes(fresh) == answer


def test_what_is_answered() -> None:
    (answer,) = _answers.answer(udp(b"?", source_port=1, destination_port=2, **V4), b"!")
    assert (inet.flow(answer), inet.udp(answer)) == (
        inet.Flow(17, "192.0.2.2", 2, "192.0.2.1", 1),
        inet.Udp(2, 1, b"!"),
    )
    (reply,) = _answers.answer(echo_request(b"what was sent", **V6), b"else")
    assert inet.icmp(reply) == inet.Icmp(129, 0, b"\0\7\0\x09", b"else")


def test_tcp_gets_an_answer_and_the_end() -> None:
    data = bytes(range(256)) * 10
    *segments, reset, other = map(inet.tcp, _answers.answer(tcp(b"GET /", seq=10, ack=20), data))
    assert None not in segments
    assert b"".join(each.data for each in segments if each) == data
    assert [each.flags for each in segments if each] == [ACK | PSH, ACK | PSH, ACK | PSH | FIN]
    assert [(each.seq, each.ack) for each in segments if each] == [(20, 15), (1240, 15), (2460, 15)]
    assert [(each.seq, each.flags) for each in (reset, other) if each] == [(10, RST | ACK), (15, RST | ACK)]


def test_an_empty_answer_of_tcp_is_the_end() -> None:
    first = inet.tcp(_answers.answer(tcp(b"GET /", seq=10, ack=20), b"")[0])
    assert first is not None
    assert (first.seq, first.flags, first.data) == (20, ACK | PSH | FIN, b"")


def test_timestamps_of_tcp_are_answered() -> None:
    """The sender's timestamp option contains 7, and the echo 9."""
    packet = with_options(tcp(b"", seq=10, ack=20), bytes.fromhex("0101080a 00000007 00000009")) + b"GET"
    answer = inet.tcp(_answers.answer(_answers.mend(packet), b"x")[0])
    assert answer is not None
    assert answer.options == bytes.fromhex("0101080a 00000009 00000007")


REFUSALS = {
    "UDP": (udp(b"x" * 2000, **V4), (3, 3), 576),
    "UDP over IPv6": (udp(b"x" * 2000, **V6), (1, 4), 1280),
    "ping": (echo_request(**V4), (3, 13), 60),
    "ping over IPv6": (echo_request(**V6), (1, 1), 100),
    "GRE": (_answers.mend(b"E\0\0\0\0\0\0\0\x40\x2f\0\0\xc0\0\2\1\xc0\0\2\2" + b"data"), (3, 13), 52),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    packet, kind, size = REFUSALS[case]
    (refusal,) = _answers.refusals(packet)
    error, ip, asked = inet.icmp(refusal), inet.ip(refusal), inet.ip(packet)
    assert error is not None
    assert ip is not None
    assert asked is not None
    assert ((error.type, error.code), len(refusal)) == (kind, size)
    assert packet.startswith(error.data)
    assert (ip.source, ip.destination) == (asked.destination, asked.source)


def icmp_error(version: dict[str, str]) -> bytes:
    return _answers.refusals(udp(b"x", **version))[0]


def fragment(first: bool) -> bytes:
    pieces = _answers.fragments(udp(b"x" * 100), 60)
    return pieces[0 if first else 1]


# Packets without an answer, and whether `reset` and `reject` send anything.
UNANSWERABLE: dict[str, tuple[bytes, str, int | None, int]] = {
    "RST": (tcp(b"data", flags=RST | ACK), "carries data", 2, 0),
    "SYN": (tcp(b"", flags=SYN), "carries data", 3, 1),
    "ACK": (tcp(b"", flags=ACK), "carries data", 2, 1),
    "signed": (with_options(tcp(b""), b"\x13\x12" + bytes(16) + b"\1\1") + b"data", "signed", 3, 1),
    "error": (icmp_error(V4), "echo request", None, 0),
    "error of IPv6": (icmp_error(V6), "echo request", None, 0),
    "echo reply": (_answers.answer(echo_request(**V4), b"x")[0], "not type 0", None, 1),
    "GRE": (REFUSALS["GRE"][0], "protocol 47", None, 1),
    "first fragment": (fragment(True), "fragment", None, 1),
    "later fragment": (fragment(False), "fragment", None, 0),
    "multicast": (tcp(b"data", destination="239.1.1.1"), "multicast", 0, 0),
    "broadcast": (tcp(b"data", destination="255.255.255.255"), "multicast", 0, 0),
    "multicast of IPv6": (tcp(b"data", source="fd00::1", destination="ff02::1"), "multicast", 0, 0),
    "from nobody": (udp(b"data", source="0.0.0.0"), "unspecified", None, 0),
    "from many": (udp(b"data", source="224.0.0.1"), "multicast", None, 0),
    "from nobody in IPv6": (udp(b"data", source="::", destination="fd00::1"), "unspecified", None, 0),
    "half a header": (_answers.mend(udp(b"")[:24]), "UDP header", None, 1),
    "half a TCP header": (_answers.mend(tcp(b"")[:30]), "TCP header", None, 0),
    "much data": (tcp(b"data", seq=10), "12200", 3, 1),
}


@pytest.mark.parametrize("case", UNANSWERABLE)
def test_what_has_no_answer(case: str, nfnet_queue: FedQueue) -> None:
    packet, text, resets, refusals = UNANSWERABLE[case]
    packet = _answers.mend(packet)
    data = bytes(12_201 if case == "much data" else 1)

    def handle(item: Packet) -> None:
        with pytest.raises(ArgumentError, match=text):
            item.answer(data)
        assert (item.decided, nfnet_queue.injected) == (None, [])
        if resets is not None:
            item.reset()
            return
        with pytest.raises(ArgumentError, match=r"only TCP has resets|TCP header"):
            item.reset()
        assert (item.decided, nfnet_queue.injected) == (None, [])
        item.reject()

    ids = [nfnet_queue.feed(packet)]
    nfnet_queue.run(handle)
    assert len(nfnet_queue.injected) == (refusals if resets is None else resets)
    ids.append(nfnet_queue.feed(packet))
    nfnet_queue.injected.clear()
    nfnet_queue.run(Packet.reject)
    assert len(nfnet_queue.injected) == refusals
    assert [nfnet_queue.verdicts[each].verdict for each in ids] == [Verdict.DROP] * 2


@given(
    st.sampled_from(questions()),
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 255)), max_size=5),
    st.integers(0, 99),
)
def test_damaged_packets(packet: bytes, changes: list[tuple[int, int]], size: int) -> None:
    """Whatever others send is answered, or has no answer."""
    new = bytearray(packet)
    for place, value in changes:
        if place < len(new):
            new[place] = value
    damaged = bytes(new[:size])
    for build in (_answers.resets, _answers.refusals, lambda item, length: _answers.answer(item, b"x", length)):
        try:
            for answer in build(damaged, len(packet)):  # type: ignore[operator]
                assert _answers.mend(answer) == answer
                assert inet.ip(answer) is not None
        except ArgumentError:
            continue


# --- any packet


@both_versions
def test_lengths_and_checksums_are_mended(ends: dict[str, str]) -> None:
    for packet in (udp(b"data", **ends), tcp(b"data", **ends), echo_request(**ends)):
        where = _answers.where_in(packet, _answers.upper_of(packet), (1, 6, 17, 58))  # type: ignore[attr-defined]
        assert where is not None
        wrong = bytearray(packet)
        places = [2, 3, 10, 11] if packet[0] >> 4 == 4 else [4, 5]
        for place in places:
            wrong[place] ^= 0x55
        for place in {17: (4, 5, 6, 7), 6: (16, 17)}.get(where.protocol, (2, 3)):
            wrong[where.header + place] ^= 0x55
        assert bytes(wrong) != packet
        assert _answers.mend(bytes(wrong)) == packet


NO_PACKETS = {
    "nothing": (b"", "not an IPv4 or IPv6 packet"),
    "half": (udp(b"")[:19], "not an IPv4 or IPv6 packet"),
    "half of IPv6": (udp(b"", **V6)[:39], "not an IPv4 or IPv6 packet"),
    "a frame": (bytes(14) + udp(b""), "not an IPv4 or IPv6 packet"),
    "long header": (b"\x4f" + udp(b"")[1:], "60 of 28 bytes"),
    "short header": (b"\x44" + udp(b"")[1:], "16 of 28 bytes"),
    "too long": (udp(b"") + bytes(65_536), "65564 bytes and may have 65535"),
    "jumbogram": (b"\x60" + bytes(39) + bytes.fromhex("3b00c20400020000"), "jumbogram"),
}


@pytest.mark.parametrize("case", NO_PACKETS)
def test_what_is_no_packet_is_not_injected(case: str, nfnet_queue: FedQueue) -> None:
    packet, text = NO_PACKETS[case]
    if case == "jumbogram":
        packet = packet[:6] + b"\0" + packet[7:]
    with pytest.raises(ArgumentError, match=text):
        nfnet.inject(packet)
    assert nfnet_queue.injected == []


def test_bad_arguments(nfnet_queue: FedQueue) -> None:
    for arguments, text in (
        ({"packet": "text"}, "packet must be bytes"),
        ({"packet": udp(b""), "mark": 1 << 32}, "mark is 4294967296"),
        ({"packet": udp(b""), "mark": "7"}, "mark must be an integer"),
        ({"packet": udp(b""), "netns": ""}, "netns"),
    ):
        with pytest.raises(ArgumentError, match=text):
            nfnet.inject(**arguments)  # type: ignore[arg-type]
    assert nfnet_queue.injected == []


def test_scapys_packets_are_injected(nfnet_queue: FedQueue) -> None:
    scapy = pytest.importorskip("scapy.all")
    nfnet.inject(scapy.IP(src="192.0.2.1", dst="192.0.2.2") / scapy.UDP(sport=1, dport=2, chksum=9) / b"x")
    assert [inet.udp(packet) for packet in nfnet_queue.injected] == [inet.Udp(1, 2, b"x")]


@both_versions
def test_fragments_are_put_together_by_scapy(ends: dict[str, str]) -> None:
    scapy = pytest.importorskip("scapy.all")
    packet = bytearray(udp(bytes(range(256)) * 20, **ends))
    if packet[0] >> 4 == 4:
        packet[4:6] = b"\0\0"  # no id
    pieces = _answers.fragments(bytes(packet), 1500)
    assert len(pieces) == 4
    assert all(len(piece) <= 1500 for piece in pieces)
    layer = scapy.IP if packet[0] >> 4 == 4 else scapy.IPv6
    if layer is scapy.IP:
        (whole,) = scapy.defragment([layer(piece) for piece in pieces])
    else:
        whole = scapy.defragment6([layer(piece) for piece in pieces])
    assert bytes(whole[scapy.UDP]) == packet[20 if layer is scapy.IP else 40 :]


def test_what_must_not_be_cut_up() -> None:
    with pytest.raises(ArgumentError, match="forbids fragmentation"):
        _answers.fragments(tcp(b"x" * 2000)[:6] + b"\x40" + tcp(b"x" * 2000)[7:], 1500)
    with pytest.raises(ArgumentError, match="fragment"):
        _answers.fragments(fragment(True), 30)
    with pytest.raises(ArgumentError, match="no room"):
        _answers.fragments(udp(b"x" * 2000), 24)


# --- queues


def test_an_answer_drops_the_packet(nfnet_queue: FedQueue) -> None:
    packet_id = nfnet_queue.feed(udp(b"question"))
    nfnet_queue.run(lambda packet: packet.answer(memoryview(b"answer")))
    assert nfnet_queue.verdicts[packet_id].verdict == Verdict.DROP
    assert [inet.udp(packet).data for packet in nfnet_queue.injected] == [b"answer"]  # type: ignore[union-attr]


CALLS: dict[str, Callable[[Packet], None]] = {
    "answer": lambda packet: packet.answer(b"x"),
    "reset": Packet.reset,
    "reject": Packet.reject,
}
every_call = pytest.mark.parametrize("call", CALLS)


@every_call
def test_a_packet_that_cannot_be_answered_stays_undecided(call: str, nfnet_queue: FedQueue) -> None:
    nfnet_queue.kernel.refuse_inject = errno.ENETUNREACH
    packet_id = nfnet_queue.feed(tcp(b"data"))
    with pytest.raises(KernelError, match="unreachable") as caught:
        nfnet_queue.run(CALLS[call])
    assert caught.value.errno == errno.ENETUNREACH
    (pending,) = nfnet_queue.queue.pending
    assert (pending.id, nfnet_queue.injected, nfnet_queue.verdicts) == (packet_id, [], {})
    nfnet_queue.kernel.refuse_inject = 0
    CALLS[call](pending)
    assert nfnet_queue.verdicts[packet_id].verdict == Verdict.DROP
    assert len(nfnet_queue.injected) > 0


@every_call
def test_a_second_verdict_sends_nothing(call: str, nfnet_queue: FedQueue) -> None:
    def handle(packet: Packet) -> None:
        packet.accept()
        with pytest.raises(AlreadyDecidedError):
            CALLS[call](packet)

    packet_id = nfnet_queue.feed(tcp(b"data"))
    nfnet_queue.run(handle)
    assert (nfnet_queue.verdicts[packet_id].verdict, nfnet_queue.injected) == (Verdict.ACCEPT, [])


@every_call
def test_after_the_queue_was_closed(call: str, nfnet_queue: FedQueue) -> None:
    kept: list[Packet] = []
    nfnet_queue.feed(tcp(b"data"))
    nfnet_queue.run(kept.append)
    nfnet_queue.close()
    with pytest.raises(ClosedError):
        CALLS[call](kept[0])
    assert (kept[0].decided, nfnet_queue.injected) == (None, [])


@every_call
@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"mark": nfnet.INJECTED_MARK}, "injected"),
        ({"family": 7}, "family"),
        ({"payload": None}, "not an IP packet"),
        ({"payload": b"E" + bytes(18)}, "not an IP"),
        ({"payload": b"\x60" + bytes(30)}, "not an IP"),
    ],
)
def test_what_is_not_answered(call: str, attributes: dict[str, Any], text: str, nfnet_queue: FedQueue) -> None:
    options = {"payload": tcp(b"data"), "family": 2, **attributes}
    packet_id = nfnet_queue.feed(**options)
    with pytest.raises(ArgumentError, match=text):
        nfnet_queue.run(CALLS[call])
    (pending,) = nfnet_queue.queue.pending
    pending.accept()
    assert (nfnet_queue.verdicts[packet_id].verdict, nfnet_queue.injected) == (Verdict.ACCEPT, [])


def test_bytes_are_asked_for(nfnet_queue: FedQueue) -> None:
    nfnet_queue.feed(udp(b""))
    with pytest.raises(ArgumentTypeError, match="data must be bytes, not str"):
        nfnet_queue.run(lambda packet: packet.answer("text"))  # type: ignore[arg-type]
    assert nfnet_queue.injected == []


def test_the_rest_of_a_cut_packet_need_not_be_there(nfnet_queue: FedQueue) -> None:
    whole = tcp(b"x" * 1000, seq=10, ack=20)
    nfnet_queue.feed(whole[:40], CAP_LEN=len(whole))
    nfnet_queue.run(Packet.reset)
    assert nfnet_queue.injected == _answers.resets(whole)


def test_packets_read_from_bytes_cannot_be_answered() -> None:
    packet = Packet.from_bytes(testing.packet_message(1, udp(b"x")))
    with pytest.raises(ClosedError, match="read from bytes"):
        packet.answer(b"y")


def test_answers_in_tasks() -> None:
    async def main() -> FakeKernel:
        kernel = FakeKernel(ends=True)
        kernel.feed(3, payload=udp(b"question"))

        async def handle(packet: Packet) -> None:
            await asyncio.sleep(0)
            packet.answer(b"answer")

        async with nfnet.AsyncQueue(1, transport=kernel) as queue:
            await queue.run(handle)
        return kernel

    kernel = asyncio.run(main())
    assert len(kernel.injected) == 3
    assert [word for _, word, _ in kernel.judged] == [Verdict.DROP] * 3


class Plain(FakeKernel):
    """A program's transport that does not implement `inject`."""

    inject = nfnet.Transport.inject


def test_a_transport_that_sends_nothing() -> None:
    kernel = Plain(ends=True)
    kernel.feed(1, payload=udp(b"x"))
    with nfnet.Queue(1, transport=kernel) as queue:
        with pytest.raises(NotSupportedError, match="a Plain has no network|A Plain has no network"):
            queue.run(lambda packet: packet.answer(b"y"))
        assert len(queue.pending) == 1


# --- doubles


def test_a_fed_queue_keeps_what_is_injected(nfnet_queue: FedQueue) -> None:
    nfnet.inject(udp(b"by itself"), mark=7)
    nfnet_queue.feed(udp(b"question"))
    nfnet_queue.run(lambda packet: nfnet.inject(udp(b"more")) or packet.answer(b"answer"))
    data = [inet.udp(packet).data for packet in nfnet_queue.injected]  # type: ignore[union-attr]
    assert data == [b"by itself", b"more", b"answer"]


def test_a_replay_keeps_what_is_injected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "packets.pcapng"
    writer = Writer(path, LinkType.RAW)
    writer.write(0, udp(b"question"))
    writer.close()
    sent: list[bytes] = []
    monkeypatch.setattr("nfnet._injection.RawSocket.send", lambda self, packet: sent.append(packet))
    replay = nfnet.replay(path)
    with nfnet.Queue(1, transport=replay) as queue:
        queue.run(lambda packet: nfnet.inject(udp(b"more")) or packet.answer(b"answer"))
    assert [inet.udp(packet).data for packet in replay.injected] == [b"more", b"answer"]  # type: ignore[union-attr]
    assert sent == []
    nfnet.inject(udp(b"afterwards"))
    assert (len(sent), len(replay.injected)) == (1, 2)


def test_the_newest_double_gets_it() -> None:
    first = FedQueue()
    second = FedQueue(2)
    nfnet.inject(udp(b"1"))
    second.close()
    nfnet.inject(udp(b"2"))
    first.close()
    assert (len(first.injected), len(second.injected)) == (1, 1)
