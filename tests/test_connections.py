"""Verdicts on whole connections: the messages for them, and their requirements."""

from __future__ import annotations

import struct
from typing import BinaryIO

import pytest

import nfnet
from nfnet import ArgumentError, Packet, Queue, Verdict, inet, rules
from nfnet._core.connections import Connections
from nfnet.captures._replay import GivenVerdict
from nfnet.protocol import conntrack, ctnetlink, netlink, nfqnl
from nfnet.protocol.conntrack import CTA, Endpoints
from nfnet.protocol.markbits import Fate, MarkBits
from nfnet.protocol.nfnetlink import BODY
from nfnet.protocol.nfqnl import NFQA
from nfnet.testing import FakeKernel, FedQueue, tcp, udp

VERDICTS = {
    "accept": (lambda packet: packet.accept(connection=True), GivenVerdict(Verdict.ACCEPT, connection=True)),
    "accept, marked": (
        lambda packet: packet.accept(mark=7, connection=True),
        GivenVerdict(Verdict.ACCEPT, mark=7, connection=True),
    ),
    "drop": (lambda packet: packet.drop(connection=True), GivenVerdict(Verdict.DROP, connection=True)),
    "reject": (
        lambda packet: packet.reject(connection=True),
        GivenVerdict(Verdict.DROP, connection=True, rejected=True),
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdicts_as_tests_see_them(nfnet_queue: FedQueue, name: str) -> None:
    verdict, expected = VERDICTS[name]
    packets: list[Packet] = []
    number = nfnet_queue.feed(tcp(b"data"))
    nfnet_queue.run(lambda packet: (packets.append(packet), verdict(packet))[0])
    assert nfnet_queue.verdicts == {number: expected}
    assert packets[0].decided == expected.verdict
    assert nfnet_queue.injected == []
    counters = nfnet_queue.queue.counters
    assert (counters.accepted, counters.dropped, counters.repeated) == (
        int(expected.verdict == Verdict.ACCEPT),
        int(expected.verdict == Verdict.DROP),
        0,
    )


@pytest.mark.usefixtures("unhurried")
def test_verdicts_as_the_kernel_gets_them() -> None:
    """NF_REPEAT, with the packet's own mark and three more bits; those of many packets in one message."""
    kernel = FakeKernel(ends=True)
    with Queue(1, transport=kernel, bits=0x700) as queue:
        kernel.feed(50, payload=udp(b"1"), MARK=0x80000001)
        queue.run(lambda packet: packet.accept(connection=True))
        queue.flush()
        assert {(word, changes[NFQA.MARK]) for _, word, changes in kernel.judged} == {(4, 0x80000501)}
        verdicts = [message for sent in kernel.sent for _, message in netlink.split_messages(sent)]
        kinds = [netlink.read_length_and_type(message)[1] for message in verdicts]
        assert kinds.count(nfqnl.MSG_VERDICT_BATCH) + kinds.count(nfqnl.MSG_VERDICT) < 5

        kernel.feed(1, payload=udp(b"2"), MARK=0x80000001)
        queue.run(lambda packet: packet.drop(connection=True))
        kernel.feed(1, payload=udp(b"3"))
        queue.run(Packet.reject)
        kernel.feed(1, payload=udp(b"4"))
        queue.run(lambda packet: packet.reject(connection=True))
        kernel.feed(1, payload=udp(b"5"))
        queue.run(lambda packet: packet.accept(mark=0x11, priority=6, payload=udp(b"6"), connection=True))
    assert [(word, changes[NFQA.MARK]) for _, word, changes in kernel.judged[50:]] == [
        (4, 0x80000601),
        (4, 0x300),
        (4, 0x700),
        (4, 0x511),
    ]
    assert kernel.judged[-1][2][NFQA.PAYLOAD] == udp(b"6")
    assert kernel.judged[-1][2][NFQA.PRIORITY] == 6


def test_both_sorts_of_accepting_in_turn() -> None:
    """Each packet gets its own, though they leave together."""
    kernel = FakeKernel(ends=True)
    with Queue(1, transport=kernel) as queue:
        ids = kernel.feed(64, payload=udp(b"1"))
        queue.run(lambda packet: packet.accept(connection=packet.id % 3 == 0) if packet.id % 5 else packet.drop())
        queue.flush()
    given = {number: GivenVerdict.from_word(word, changes, MarkBits()) for number, word, changes in kernel.judged}
    assert sorted(given) == ids
    for number, verdict in given.items():
        expected = Verdict.DROP if number % 5 == 0 else Verdict.ACCEPT
        assert verdict == GivenVerdict(expected, connection=bool(number % 5) and number % 3 == 0)


def test_rejecting_is_injecting_where_there_is_no_kernel(nfnet_queue: FedQueue) -> None:
    number = nfnet_queue.feed(udp(b"1"))
    nfnet_queue.run(Packet.reject)
    assert nfnet_queue.verdicts[number] == GivenVerdict(Verdict.DROP)
    assert len(nfnet_queue.injected) == 1


@pytest.mark.parametrize(
    ("given", "mark", "text"),
    [
        (0x02000000, None, "the packet's mark 0x2000000 has some of the bits 0xe000000"),
        (0, 0x0F000000, "mark 0xf000000 has some of the bits 0xe000000.*bits="),
    ],
)
def test_marks_that_are_in_the_way(nfnet_queue: FedQueue, given: int, mark: int | None, text: str) -> None:
    nfnet_queue.feed(udp(b"1"), mark=given)
    packets: list[Packet] = []
    nfnet_queue.run(packets.append)
    with pytest.raises(ArgumentError, match=text):
        packets[0].accept(mark=mark, connection=True)
    assert packets[0].decided is None
    assert nfnet_queue.verdicts == {}
    packets[0].accept(mark=mark)
    assert len(nfnet_queue.verdicts) == 1


class Elsewhere(FakeKernel):
    """A transport that is no double of the kernel's, and has no socket by which rules could be looked for."""

    simulated = False


def test_without_rules() -> None:
    kernel = Elsewhere(ends=True)
    packets: list[Packet] = []
    with Queue(1, transport=kernel) as queue:
        kernel.feed(1, payload=udp(b"1"))
        queue.run(packets.append)
        for verdict in (packets[0].accept, packets[0].drop, packets[0].reject):
            with pytest.raises(ArgumentError, match=r"no rule .*hook output for queue 1.*remember=True"):
                verdict(connection=True)
        assert kernel.judged == []
        packets[0].reject()
        assert len(kernel.injected) == 1


def test_packets_from_bytes() -> None:
    packet = Packet.from_bytes(nfnet.testing.packet_message(1, udp(b"1")))
    with pytest.raises(nfnet.ClosedError):
        packet.accept(connection=True)


@pytest.mark.parametrize("value", ["yes", 1, None])
def test_connection_is_true_or_false(nfnet_queue: FedQueue, value: object) -> None:
    nfnet_queue.feed(udp(b"1"))
    packets: list[Packet] = []
    nfnet_queue.run(packets.append)
    for verdict in (packets[0].accept, packets[0].drop, packets[0].reject):
        with pytest.raises(ArgumentError, match="connection must be True or False"):
            verdict(connection=value)  # type: ignore[arg-type]
    assert packets[0].decided is None


def test_nothing_is_remembered_where_there_is_no_kernel(nfnet_queue: FedQueue) -> None:
    nfnet_queue.feed(udp(b"1"))
    nfnet_queue.run(lambda packet: packet.drop(connection=True))
    assert nfnet_queue.queue.forget_all() == 0
    assert not nfnet_queue.queue.forget(inet.Flow(17, "192.0.2.1", 1, "192.0.2.2", 2))
    with pytest.raises(ArgumentError, match="flow must be an nfnet.inet.Flow"):
        nfnet_queue.queue.forget("192.0.2.1")  # type: ignore[arg-type]


def test_what_was_changed(nfnet_queue: FedQueue) -> None:
    """Not the mark, if only ours is in it."""
    packets: list[Packet] = []
    for _ in range(3):
        nfnet_queue.feed(udp(b"1"), mark=0x11)
    nfnet_queue.run(packets.append)
    packets[0].accept(connection=True)
    packets[1].accept(mark=0x12, connection=True)
    packets[2].accept(payload=udp(b"2"), connection=True)
    assert [packet.changed for packet in packets] == [False, True, True]


# --- bits


@pytest.mark.parametrize("mask", [0x7, 0x700, 0xE0000000, 0x80000001 | 0x100])
def test_bits(mask: int) -> None:
    bits = MarkBits(mask)
    marks = {fate: bits.spread(fate) for fate in Fate}
    assert len(set(marks.values())) == len(Fate)
    for fate, mark in marks.items():
        assert mark & ~mask == 0
        assert bits.fate(mark | ~mask & 0xFFFFFFFF) == fate
    assert bits.fate(0) is None
    assert bits.fate(~mask & 0xFFFFFFFF) is None


@pytest.mark.parametrize("mask", [0, 1, 3, 0xF, 1 << 32, -1, 0x1000000C0])
def test_bits_that_cannot_be(mask: int) -> None:
    for make in (
        lambda: MarkBits(mask),
        lambda: Queue(1, bits=mask),
        lambda: rules.queue(1, hook="output", remember=True, bits=mask),
    ):
        with pytest.raises(ArgumentError, match="bits"):
            make()


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ({"hook": "forward", "family": "bridge", "remember": True}, "families inet, ip and ip6"),
        ({"hook": "forward", "family": "bridge", "first": 3}, "families inet, ip and ip6"),
        ({"hook": "prerouting", "priority": -200, "remember": True}, "priority is -200"),
        ({"hook": "output", "priority": -300, "first": 3}, "priority is -300"),
        ({"hook": "output", "first": 0}, "first is 0"),
        ({"hook": "output", "bits": 0x700}, "remember=True"),
        ({"hook": "output", "first": 3, "limit": 5}, "limit"),
    ],
)
def test_rules_that_cannot_remember(where: dict[str, object], text: str) -> None:
    with pytest.raises(ArgumentError, match=text):
        rules.queue(1, **where)  # type: ignore[arg-type]


def test_rules_of_one_chain_have_the_same_bits() -> None:
    first = rules.queue(1, hook="output", protocol="tcp", remember=True)
    second = rules.queue(2, hook="output", protocol="udp", remember=True, bits=0x700)
    with pytest.raises(ArgumentError, match="same bits"):
        rules.RuleSet(first, second)
    rules.RuleSet(first, rules.queue(2, hook="input", remember=True, bits=0x700))


def test_what_comes_first_in_a_chain() -> None:
    """Rules for Python's verdicts come first, those for remembered verdicts directly before the rule that queues."""
    drop = rules.drop(hook="output", destination="192.0.2.1")
    words = rules.describe(drop, rules.queue(1, hook="output", remember=True)).splitlines()
    chain = [line for line in words if line.startswith("nft add rule inet nfnet output ")]
    order = ["jump output-decided", "daddr 192.0.2.1", "accept'", "jump output-remembered", "queue num 1"]
    assert len(chain) == len(order)
    for line, part in zip(chain, order, strict=True):
        assert part in line


# --- connection tracking


def test_requests_to_connection_tracking() -> None:
    """The schemas read the messages that were sent; live tests show their effect in the kernel."""
    there = Endpoints("2001:db8::1", "2001:db8::2", 6, 1234, 80)
    request = ctnetlink.create(there, 0x0C000000, 120)
    header = netlink.header.parse(request)
    assert header.type == 0x100
    assert header.flags == 0x1 | 0x400 | 0x200  # REQUEST, CREATE, EXCL
    assert request[16] == 10
    entry = conntrack.parse(request[BODY:])
    assert (entry.original, entry.mark, entry.timeout) == (there, 0x0C000000, 120)
    assert entry.reply == Endpoints("2001:db8::2", "2001:db8::1", 6, 80, 1234)

    changed, again = (
        message for _, message in netlink.split_messages(ctnetlink.set_marks([request] * 2, 0, 0x0E000000))
    )
    assert again == changed
    assert changed[16] == 10
    values = conntrack.parse(changed[BODY:]).values
    assert conntrack.parse(changed[BODY:]).original == there
    assert sorted(values) == [CTA.TUPLE_ORIG, CTA.MARK, CTA.MARK_MASK]
    assert (values[CTA.MARK], values[CTA.MARK_MASK]) == (0, 0x0E000000)
    assert netlink.header.parse(changed).flags == 0x1

    dump = ctnetlink.dump_marked(0x08000000, 0x08000000)
    assert struct.unpack_from("=HH", dump, 4) == (0x101, 0x301)


class Socket(FakeKernel):
    """A kernel with a table of connections."""

    simulated = False
    port_id = 5

    def __init__(self, entries: list[bytes]) -> None:
        super().__init__()
        self.entries = entries
        self.sent_beside: list[bytes] = []

    def open_netns(self) -> BinaryIO:
        return open("/proc/self/ns/net", "rb")

    def dump(self, request: bytes, operation: str):  # type: ignore[no-untyped-def]
        return iter(self.entries)

    def send(self, datagram: bytes) -> None:
        self.sent_beside.append(datagram)

    def close(self) -> None:
        pass


def entry(original: Endpoints, reply: Endpoints) -> bytes:
    values = {CTA.TUPLE_ORIG: conntrack.tuple_of(original), CTA.TUPLE_REPLY: conntrack.tuple_of(reply)}
    return bytes(16) + b"\2\0\0\0" + ctnetlink.build_attributes(values)


@pytest.mark.parametrize(
    ("flow", "found"),
    [
        (inet.Flow(17, "10.0.0.1", 1000, "10.0.0.9", 53), True),  # unchanged
        (inet.Flow(17, "10.0.0.1", 1000, "192.0.2.5", 5353), True),  # its destination translated
        (inet.Flow(17, "192.0.2.1", 2000, "192.0.2.5", 5353), True),  # its source, too
        (inet.Flow(17, "192.0.2.5", 5353, "192.0.2.1", 2000), True),  # the answer
        (inet.Flow(17, "192.0.2.5", 5353, "10.0.0.1", 1000), True),
        (inet.Flow(17, "10.0.0.9", 53, "10.0.0.1", 1000), True),
        (inet.Flow(6, "10.0.0.1", 1000, "10.0.0.9", 53), False),
        (inet.Flow(17, "10.0.0.1", 1001, "10.0.0.9", 53), False),
        (inet.Flow(17, "10.0.0.1", 53, "10.0.0.9", 1000), False),
    ],
)
def test_flows_of_a_translated_connection(flow: inet.Flow, found: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Endpoints("10.0.0.1", "10.0.0.9", 17, 1000, 53)
    reply = Endpoints("192.0.2.5", "192.0.2.1", 17, 5353, 2000)
    other = Endpoints("10.0.0.2", "10.0.0.9", 17, 1000, 53)
    sock = Socket([entry(original, reply), entry(other, Endpoints("10.0.0.9", "10.0.0.2", 17, 53, 1000))])
    monkeypatch.setattr("nfnet._core.connections.NetlinkSocket", lambda: sock)
    connections = Connections(1, sock, MarkBits())
    assert connections.forget(flow) == found
    assert len(sock.sent_beside) == found
    assert connections.forget() == 2


def test_an_entry_that_names_one_direction_only_is_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Endpoints("10.0.0.1", "10.0.0.9", 17, 1000, 53)
    values = {CTA.TUPLE_ORIG: conntrack.tuple_of(original)}
    sock = Socket([bytes(16) + b"\2\0\0\0" + ctnetlink.build_attributes(values)])
    monkeypatch.setattr("nfnet._core.connections.NetlinkSocket", lambda: sock)
    connections = Connections(1, sock, MarkBits())
    assert connections.forget(inet.Flow(17, "10.0.0.1", 1000, "10.0.0.9", 53)) == 0
    assert sock.sent_beside == []


def test_connections_of_a_transport_without_a_socket() -> None:
    with (
        Queue(1, transport=Elsewhere(), bits=0x700) as queue,
        pytest.raises(nfnet.NotSupportedError, match="Elsewhere has no socket"),
    ):
        queue.forget_all()
