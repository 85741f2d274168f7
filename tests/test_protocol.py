"""Schemas against recorded datagrams, and the fast readers and writers against the schemas."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import construct
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nfnet.errors import DecodeError, NfnetError
from nfnet.protocol import conntrack, layout, netlink, nfnetlink, nfqnl
from nfnet.protocol.nfqnl import NFQA, Command, QueueFlag

from .kernel import packet_message
from .swap import HERE

U32 = st.integers(0, 0xFFFFFFFF)
FIXED = {number: row for number, row in nfqnl.NFQA_TABLE.items() if layout.fixed_size(row.schema)}

REQUESTS = {
    "TX config BIND queue 1": lambda: nfqnl.config(1, command=Command.BIND, seq=1, ack=True),
    "TX config PARAMS copy_packet 0xffff queue 1": lambda: nfqnl.config(1, copy_range=0xFFFF, seq=2, ack=True),
    "TX config BIND+PARAMS(range 40) queue 2": lambda: nfqnl.config(
        2, command=Command.BIND, copy_range=40, seq=4, ack=True
    ),
    "TX config BIND queue 1 again": lambda: nfqnl.config(1, command=Command.BIND, seq=5, ack=True),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_are_those_that_the_kernel_took(name: str, datagrams: dict[str, bytes]) -> None:
    assert REQUESTS[name]().hex() == datagrams[name].hex()


def test_flags_request_has_the_same_attributes_as_the_recorded_one(datagrams: dict[str, bytes]) -> None:
    flags = QueueFlag.UID_GID | QueueFlag.GSO
    ours = nfqnl.config(1, flags=flags, max_len=4096, seq=3, ack=True)
    recorded = datagrams["TX config FLAGS=UID_GID|GSO MASK same, QUEUE_MAXLEN 4096, queue 1"]
    parse = nfnetlink.parse_attributes
    assert parse(ours[20:], nfqnl.NFQA_CFG_TABLE) == parse(recorded[20:], nfqnl.NFQA_CFG_TABLE)
    assert ours[:20] == recorded[:20]


def test_batch_verdict_is_the_recorded_one_but_for_the_sequence_number(datagrams: dict[str, bytes]) -> None:
    recorded = bytearray(datagrams["TX VERDICT_BATCH DROP up to id 99 (nothing queued)"])
    recorded[8:12] = bytes(4)
    assert nfqnl.verdict(2, 99, nfqnl.Verdict.DROP, batch=True) == recorded


def test_verdict_with_mark_means_the_same_as_the_recorded_one(datagrams: dict[str, bytes]) -> None:
    ours = nfqnl.verdict(1, 1, nfqnl.Verdict.ACCEPT, [(NFQA.MARK, 0x10)])
    recorded = datagrams["TX VERDICT ACCEPT + MARK 0x10"]
    parse = nfnetlink.parse_attributes
    assert parse(ours[20:], nfqnl.NFQA_TABLE) == parse(recorded[20:], nfqnl.NFQA_TABLE)


def test_output_packet_reads_as_it_was_sent(datagrams: dict[str, bytes]) -> None:
    data = datagrams["RX NFQUEUE OUTPUT mark prio uid gid, odd length payload, queue 1"]
    values = nfnetlink.parse_attributes(data[20:], nfqnl.NFQA_TABLE)
    assert values[NFQA.PACKET_HDR] == {"packet_id": 1, "hw_protocol": 0x0800, "hook": 3}
    assert values[NFQA.MARK] == 0xDEADBEEF
    assert values[NFQA.PAYLOAD].endswith(b"hello")
    assert NFQA.IFINDEX_INDEV not in values


ANSWERS = {
    "TX config BIND queue 1 -> reply": (0, 1, None, None),
    "TX config BIND queue 1 again -> reply": (16, 5, None, None),
    "RX NLMSG_ERROR ENOENT for it": (2, 7, None, None),
    "RX NLMSG_ERROR 524 for NFQNL_MSG_PACKET from user": (524, 9, None, None),
    "RX NLMSG_ERROR ERANGE with TLVs": (34, 8, "Attribute failed policy validation", 20),
}


@pytest.mark.parametrize(("name", "expected"), ANSWERS.items(), ids=str)
def test_answers(name: str, expected: tuple[Any, ...], datagrams: dict[str, bytes]) -> None:
    answer = netlink.parse_answer(datagrams[name])
    assert (answer.errno, answer.seq, answer.message, answer.offset) == expected


def test_answers_are_read_as_their_schemas_read_them(datagrams: dict[str, bytes]) -> None:
    for name in ANSWERS:
        message = datagrams[name]
        echo = netlink.nlmsgerr.parse(message[netlink.HEADER_SIZE :])
        answer = netlink.parse_answer(message)
        assert (answer.errno, answer.seq, answer.type) == (-echo.error, echo.request.seq, echo.request.type)
        for length in range(36):
            with pytest.raises(DecodeError, match="cut short"):
                netlink.parse_answer(message[:length])
    short = bytearray(message)
    short[:4] = (35).to_bytes(4, netlink.HOST)  # its own length counts, not that of the data
    with pytest.raises(DecodeError, match="cut short"):
        netlink.parse_answer(bytes(short))


def test_reading_a_refusal_is_cheap(datagrams: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """There can be one for every packet; the schemas take a hundred times as long."""
    monkeypatch.setattr(construct.Construct, "_parsereport", None)
    assert netlink.parse_answer(datagrams["RX NLMSG_ERROR ENOENT for it"]).errno == 2


def test_fast_structs_read_what_their_schemas_read() -> None:
    checked = 0
    for row in FIXED.values():
        reader = layout.compile_struct(row.schema)
        data = bytes(range(1, 1 + reader.size))
        value = row.schema.parse(data)
        values = [v for k, v in value.items() if k != "_io"] if isinstance(value, dict) else [value]
        assert list(reader.unpack(data)) == values, row.name
        checked += 1
    assert checked >= 14


def test_schema_without_fixed_size_has_no_struct() -> None:
    with pytest.raises(TypeError, match="no fixed size"):
        layout.compile_struct(construct.GreedyBytes)


@st.composite
def packets(draw: st.DrawFn) -> bytes:
    """Messages with any attributes, in any order, unknown ones and repeated ones among them."""
    items = draw(
        st.lists(
            st.tuples(st.sampled_from([*nfqnl.NFQA_TABLE, 23, 500]), st.binary(max_size=24), st.booleans()), max_size=8
        )
    )
    data = b""
    for kind, value, flag in items:
        size = layout.fixed_size(FIXED[kind].schema) if kind in FIXED else 0
        data += layout.build_attribute(kind | (0x8000 if flag else 0), value.ljust(size, b"\x07"))
    if items and draw(st.booleans()):
        data = data[: len(data) - (-len(value) % 4 if len(value) >= size else 0) or None]
    return nfnetlink.build_message(nfqnl.MSG_PACKET, 1, data, family=2)


def spans_by_schema(message: bytes) -> dict[int, bytes]:
    """Number to data of the attributes, by construct alone."""
    return {item.type & 0x3FFF: item.data for item in netlink.attributes.parse(message[20:])}


@given(packets(), packets())
def test_layouts_find_what_the_schema_finds(first: bytes, second: bytes) -> None:
    for message in (first, second, first):
        found = nfqnl.layouts.find(message)
        expected = spans_by_schema(message)
        assert {number: message[span] for number, span in found.spans.items()} == expected
        assert message[found.payload] == expected.get(NFQA.PAYLOAD, b"")


@given(st.binary(max_size=64), U32)
def test_a_payload_cannot_pass_for_a_header(noise: bytes, mark: int) -> None:
    """Same length, other attributes: bytes of the payload lie where a header was learned."""
    with_mark = packet_message(1, bytes(20) + noise, MARK=mark)
    header = struct.pack(HERE + "HH", len(noise) + 24, NFQA.PAYLOAD)
    without = packet_message(1, bytes(4) + header + bytes(20) + noise)
    assert len(with_mark) == len(without)
    for message in (with_mark, without, with_mark):
        assert message[nfqnl.layouts.find(message).payload] == spans_by_schema(message)[NFQA.PAYLOAD]


def found_by(layouts: layout.Layouts, message: bytes) -> Any:
    """Return the attributes found in a message, or the error."""
    try:
        found = layouts.find(message)
    except DecodeError as error:
        return str(error)
    return {number: message[span] for number, span in found.spans.items()}, message[found.payload]


def new_layouts() -> layout.Layouts:
    return layout.Layouts({kind: layout.fixed_size(row.schema) for kind, row in FIXED.items()}, 20, NFQA.PAYLOAD)


@given(st.lists(st.tuples(packets(), st.binary(max_size=9), st.integers(0, 255), st.booleans()), max_size=6))
def test_what_was_learned_before_changes_nothing(items: list[tuple[bytes, bytes, int, bool]]) -> None:
    """Messages that differ only at their end, valid and damaged, are read as by a reader that has seen no other."""
    learned = new_layouts()
    for message, more, place, announced in items:
        longer = bytearray(message + more)
        if announced:
            longer[:4] = struct.pack(HERE + "I", len(longer))
        damaged = bytearray(longer)
        damaged[place % len(damaged)] ^= 1 + place % 7
        other_end = nfnetlink.build_message(
            nfqnl.MSG_PACKET, 1, message[20:] + layout.build_attribute(NFQA.PAYLOAD, more), family=2
        )
        for each in (message, bytes(longer), other_end, bytes(damaged), message[:-1], other_end, message):
            assert found_by(learned, each) == found_by(new_layouts(), each)


def test_only_new_shapes_are_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither new payload lengths nor several layouts of one length cost as much as a new layout."""
    learned = new_layouts()
    mixed = [packet_message(1, bytes(size), **marks) for marks in ({}, {"MARK": 1}) for size in range(20, 9000, 3)]
    for message in (mixed[0], mixed[-1]):
        learned.find(message)
    monkeypatch.setattr(learned, "_learn", None)
    for message in mixed:
        assert message[learned.find(message).payload] == spans_by_schema(message)[NFQA.PAYLOAD]


@given(st.binary(max_size=120))
def test_any_bytes_are_a_message_or_a_decode_error(noise: bytes) -> None:
    for data in (noise, packet_message(1)[:20] + noise, packet_message(7, b"x" * 21)[: len(noise)] + noise):
        for read in (nfqnl.layouts.find, lambda d: nfqnl.normalized(d, 1), netlink.parse_answer, conntrack.parse):
            with contextlib.suppress(NfnetError):
                read(data)


@pytest.mark.parametrize(
    ("attributes", "offset"),
    [
        (struct.pack(HERE + "HH", 3, 3), 20),  # shorter than its own header
        (struct.pack(HERE + "HHI", 12, 3, 1), 20),  # longer than the rest
        (struct.pack(HERE + "HHHH", 6, 3, 1, 0), 24),  # a mark of two bytes
        (struct.pack(HERE + "HHIH", 8, 3, 1, 8), 28),  # half a header behind
    ],
)
def test_decode_errors_name_the_offset(attributes: bytes, offset: int) -> None:
    with pytest.raises(DecodeError) as caught:
        nfqnl.layouts.find(nfnetlink.build_message(nfqnl.MSG_PACKET, 1, attributes))
    assert caught.value.offset == offset
    assert f"at byte {offset}" in str(caught.value)


def test_a_packet_in_unusual_order_is_put_in_order() -> None:
    usual = packet_message(9, MARK=5)
    items = spans_by_schema(usual)
    data = b"".join(layout.build_attribute(kind, items[kind]) for kind in (NFQA.MARK, NFQA.PACKET_HDR, NFQA.PAYLOAD))
    odd = nfnetlink.build_message(nfqnl.MSG_PACKET, 1, data, family=2)
    assert spans_by_schema(nfqnl.normalized(odd, 1)) == items
    assert nfqnl.normalized(odd, 1)[nfqnl.PACKET_ID] == b"\0\0\0\x09"
    assert nfqnl.normalized(usual, 1) is usual
    with pytest.raises(DecodeError, match="queue 1 where one of queue 2"):
        nfqnl.normalized(usual, 2)


def test_conntrack_entry() -> None:
    def endpoints(source: bytes, destination: bytes, ports: tuple[int, int]) -> dict[int, Any]:
        return {1: {1: source, 2: destination}, 2: {1: 6, 2: ports[0], 3: ports[1]}}

    there, back = b"\x0a\0\0\x01", b"\x0a\0\0\x02"
    values = {
        conntrack.CTA.TUPLE_ORIG: endpoints(there, back, (40000, 80)),
        conntrack.CTA.TUPLE_REPLY: endpoints(back, there, (80, 40000)),
        conntrack.CTA.ID: b"\x01\x02\x03\x04",
        conntrack.CTA.STATUS: 0x18E,
        conntrack.CTA.TIMEOUT: 300,
        conntrack.CTA.HELP: {1: b"ftp\0"},
        conntrack.CTA.MARK: 7,
        conntrack.CTA.LABELS: bytes(15) + b"\x01",
    }
    message = packet_message(1, CT=values, CT_INFO=2)
    found = nfqnl.layouts.find(message).spans
    entry = conntrack.parse(message[found[NFQA.CT]])
    assert entry.original == conntrack.Endpoints("10.0.0.1", "10.0.0.2", 6, 40000, 80)
    assert entry.reply == conntrack.Endpoints("10.0.0.2", "10.0.0.1", 6, 80, 40000)
    assert entry.status == conntrack.Status(0x18E)
    assert conntrack.Status.ASSURED in entry.status
    assert (entry.mark, entry.timeout, entry.helper, entry.zone) == (7, 300, "ftp", 0)
    assert entry.id == b"\x01\x02\x03\x04"
    assert entry.labels is not None
    assert len(entry.labels) == 16


@given(
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    st.integers(0, 0xFFFF),
    st.integers(0, 2**32 - 1),
)
def test_a_message_is_built_as_by_the_schemas(kind: int, resource: int, family: int, flags: int, seq: int) -> None:
    body = nfnetlink.nfgenmsg.build({"family": family, "resource": resource}) + b"data"
    message = nfnetlink.build_message(kind, resource, b"data", family=family, flags=flags, seq=seq)
    assert message == netlink.build_message(kind, flags, seq, body)
