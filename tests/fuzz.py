"""Fuzzing: damaged input for every reader, and unusual arguments for every call.

    make fuzz                                   # 300,000 inputs
    make fuzz ARGS="10000000 --seed 7"          # other inputs, the same ones for the same seed
    make fuzz ARGS="1000000 --only pcapng"
    make fuzz ARGS="--repeat pcapng 0a0d0d0a..."

Each input, a byte string, is passed to one of `TARGETS`. It is a damaged seed: cut, overwritten, or with parts of other
seeds. Most seeds are from the recordings in tests/fixtures; one in twenty is of another target. The target must accept
the input, or refuse it with a NfnetError, within `LIMIT` of processor time and in memory bounded by the input's size.
Any other result is printed so that it can be repeated. For a sample of the inputs, the values read are compared with
those of the construct schemas, or of a second reader that shares no code with the first.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import gc
import gzip
import io
import ipaddress
import itertools
import json
import logging
import lzma
import os
import random
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from itertools import pairwise, product
from pathlib import Path
from typing import Any, NamedTuple

import nfnet
from nfnet import Transport, cli, inet, rules
from nfnet._core.origin import Origin
from nfnet._io.system import Event
from nfnet.captures import Record, read
from nfnet.captures._frames import Found, Frames
from nfnet.captures._link_layer import LINK_LAYERS
from nfnet.captures._recorder import _verdicts
from nfnet.captures._records import netfilter_datagram
from nfnet.cli import decode_command
from nfnet.cli.command_line import rule_words
from nfnet.collect import _settings, _ulogd
from nfnet.compat import _nflogdata as nflogdata
from nfnet.compat import netfilterqueue
from nfnet.inet import _answers
from nfnet.protocol import byteorder, conntrack, netlink, nfqnl, nfulnl, rtnetlink, sock_diag
from nfnet.protocol.nfnetlink import BODY, Attribute, Subsystem, Table
from nfnet.protocol.nfqnl import NFQA, NFQA_TABLE
from nfnet.protocol.nfulnl import NFULA, NFULA_TABLE
from nfnet.rules import _actions, _finding, _listing, _nftables
from nfnet.rules._criteria import CRITERIA
from nfnet.testing import FakeKernel, FedQueue, packet_message, tcp, udp

from .frames import NOT_IP, SAMPLES
from .swap import turn
from .test_captures import block, interface, pcap, section
from .test_streams import HELLOS

FIXTURES = Path(__file__).parent / "fixtures"
LIMIT = 1.0  # seconds of processor time for one input
ROOM = 256 << 20  # bytes of address space, beyond what was there when it began, for all that is remembered, too
LOOK_EVERY = 20  # so many inputs one is compared with the schemas
WEIGH_EVERY = 5000  # so many inputs the memory of one is measured
CROSSED = 0.05  # of the inputs are seeds of other targets
LITTLE, BIG = "<", ">"
STREAM = 40  # bytes that are kept of one


# --- damage


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NUMBERS = tuple(
    bytes.fromhex(text)
    for text in (
        *words("00000000 ffffffff 00040001 01000400 7fffffff ffffff7f 80000000 00000080 00000001 01000000 00010000"),
        *words("0000 ffff 0100 0001 0300 0003 0400 0004 0500 0005 ff 00 80 7f 00000100 0a0d0d0a 1b5b324a 9b324a c29b"),
        *words("0a0d e280ae eda080"),
    )
)
WORDS = tuple(
    text.encode("utf-8", "surrogateescape")
    for text in (
        *words("= , - / : . 0 1 4 9 -1 0x 0b1 1e9 nan inf 65535 65536 4294967295 4294967296 192.0.2.1 fd00::1 /24"),
        *words("hook= family= protocol= source= destination= in_interface= out_interface= uid= priority= mark="),
        *words("not_source= tcp_flags= icmp_type= length= limit= connection_mark= source_type= cgroup= gid= not_uid="),
        *words("state= source_port= destination_port= input ingress forward netdev bridge inet ip6 udp tcp icmpv6"),
        *words("new,related /129"),
        *words("eth* lo root nobody --queue --group --netns --count --json -w -q --mark --loss --delay --handler a:b"),
        *(" ", "\0", "\n", "\t", '"', "'", "*", "\x1b[2J", "\x9b2J", "\u202e", "\udcff", "\u0663", "\u00b2", "é"),
        "9" * 5000,
    )
)


def damaged(choose: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """Return one of the seeds, usually damaged."""
    chance = choose.random
    data = bytearray(seeds[int(chance() * len(seeds))])
    for _ in range(int(chance() * 5)):
        place = int(chance() * (len(data) + 1))
        kind = int(chance() * 8)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + 4] = choose.getrandbits(32).to_bytes(4, "big")
        elif kind == 2:
            other = seeds[int(chance() * len(seeds))]
            start = int(chance() * (len(other) + 1))
            data[place:place] = other[start : start + int(chance() * 64)]
        elif kind == 3:
            del data[place : place + int(chance() * 32)]
        elif kind == 4:
            data[place:place] = tokens[int(chance() * len(tokens))]
        elif kind == 5 and place < len(data):
            data[place] ^= 1 << int(chance() * 8)
        else:
            token = tokens[int(chance() * len(tokens))]
            data[place : place + len(token)] = token
    return bytes(data)


# --- netlink messages


def properties(kind: type) -> list[str]:
    return [name for name in dir(kind) if isinstance(getattr(kind, name), property)]


NESTED = {"vlan", "conntrack", "attributes"}  # read by themselves: may be damaged where the rest is not
PACKET = [name for name in properties(nfnet.Packet) if name not in ("attributes", "conntrack")]
MESSAGE = [name for name in properties(nfnet.LogMessage) if name not in ("attributes", "conntrack")]
NFLOGR = [*properties(nflogdata.NflogData)]
EXPECTED: dict[str, Callable[[Callable[[str], Any]], Any]] = {
    "mark": lambda value: value("MARK") or 0,
    "indev": lambda value: value("IFINDEX_INDEV"),
    "outdev": lambda value: value("IFINDEX_OUTDEV"),
    "physindev": lambda value: value("IFINDEX_PHYSINDEV"),
    "physoutdev": lambda value: value("IFINDEX_PHYSOUTDEV"),
    "uid": lambda value: value("UID"),
    "gid": lambda value: value("GID"),
    "ctinfo": lambda value: value("CT_INFO"),
    "payload": lambda value: value("PAYLOAD") or b"",
    "l2header": lambda value: value("L2HDR"),
    "hwaddr": lambda value: (a := value("HWADDR")) and a.address[: a.length],
    "timestamp_ns": lambda value: (t := value("TIMESTAMP")) and t.seconds * 10**9 + t.microseconds * 1000,
    "vlan": lambda value: None if (v := value("VLAN")) is None else (v.get(1, 0), v.get(2, 0)),
    "hw_protocol": lambda value: value("PACKET_HDR").hw_protocol,
    "hook": lambda value: value("PACKET_HDR").hook,
}
EXPECTED_PACKET = {
    **EXPECTED,
    "id": lambda value: value("PACKET_HDR").packet_id,
    "priority": lambda value: value("PRIORITY") or 0,
    "cgroup": lambda value: value("CGROUP_CLASSID"),
    "skbinfo": lambda value: value("SKB_INFO") or 0,
    "cap_len": lambda value: len(value("PAYLOAD") or b"") if (n := value("CAP_LEN")) is None else n,
    "secctx": lambda value: (s := value("SECCTX")) and s.rstrip(b"\0").decode("utf-8", "surrogateescape"),
}
EXPECTED_MESSAGE = {
    **EXPECTED,
    "prefix": lambda value: (value("PREFIX") or b"").decode("utf-8", "surrogateescape"),
    "hwtype": lambda value: value("HWTYPE"),
    "hwheader": lambda value: value("HWHEADER"),
    "seq": lambda value: value("SEQ"),
    "seq_global": lambda value: value("SEQ_GLOBAL"),
}


def by_schema(data: bytes) -> dict[int, bytes]:
    """Return the data of attributes by number, read by construct alone."""
    return {item.type & netlink.TYPE_MASK: item.data for item in netlink.attributes.parse(data)}


def value_by_schema(row: Attribute | None, data: bytes) -> Any:
    if row is None:
        return data
    if row.nested is None:
        return row.schema.parse(data)
    return {number: value_by_schema(row.nested.get(number), item) for number, item in by_schema(data).items()}


def touch(item: Any, names: Sequence[str]) -> None:
    for name in names:
        with contextlib.suppress(nfnet.NfnetError):
            getattr(item, name)


def compare(item: Any, table: Table, kind: type[IntEnum], expected: dict[str, Callable[..., Any]]) -> None:
    """Compare the attributes of a message with those that the schemas read."""
    length = netlink.header.parse(item.raw).length
    found = by_schema(item.raw[BODY:length])
    spans = item._layouts.find(item.raw).spans
    assert {number: item.raw[span] for number, span in spans.items()} == found

    def value(name: str) -> Any:
        number = kind[name]
        return value_by_schema(table[number], found[number]) if number in found else None

    for name, wanted in expected.items():
        if name in ("hook", "hw_protocol") and kind.PACKET_HDR not in found:  # type: ignore[attr-defined]
            continue
        try:
            got = getattr(item, name)
        except nfnet.DecodeError:
            assert name in NESTED, name
            continue
        assert got == wanted(value), f"{name} is {got!r}, and by the schema {wanted(value)!r}"
    with contextlib.suppress(nfnet.DecodeError):
        assert item.attributes == {number: value_by_schema(table.get(number), data) for number, data in found.items()}
    with contextlib.suppress(nfnet.DecodeError):
        entry = item.conntrack
        assert (entry and entry.values) == value("CT")
    repr(item)


def read_packet(data: bytes, look: bool) -> None:
    raw = nfqnl.normalized(data, int.from_bytes(data[18:20], "big"))
    packet = netfilterqueue.Packet()
    packet.raw, packet._layout, packet._decision, packet._origin = raw, None, None, Origin(str)
    packet._live, packet._changes, packet._kept = True, None, None
    touch(packet, PACKET)
    str(packet)
    if look:
        mine = nfnet.Packet()
        mine.raw, mine._layout, mine._decision, mine._origin = raw, None, None, Origin(str)
        compare(mine, NFQA_TABLE, NFQA, EXPECTED_PACKET)


def read_message(data: bytes, look: bool) -> None:
    message = nfnet.LogMessage.from_bytes(data, str)
    nfulnl.layouts.find(data)
    touch(message, MESSAGE)
    touch(nflogdata.wrap(message), NFLOGR)
    if look:
        compare(message, NFULA_TABLE, NFULA, EXPECTED_MESSAGE)


def read_answer(data: bytes, look: bool) -> None:
    answer = netlink.parse_answer(data)
    str(nfnet.errors.kernel_error("reading", answer.errno, message=answer.message))
    if look:
        body = data[netlink.HEADER_SIZE : netlink.header.parse(data).length]
        said = netlink.nlmsgerr.parse(body)
        assert (answer.errno, answer.seq, answer.type) == (-said.error, said.request.seq, said.request.type)


def read_messages(data: bytes, look: bool) -> None:
    list(_verdicts(data))
    end = 0
    for offset, message in netlink.split_messages(data):
        netlink.is_answer(message)
        assert offset == (end + 3) & ~3
        end = offset + netlink.header.parse(message).length
        assert message == data[offset:end]


def turn_messages(data: bytes, look: bool) -> None:
    """Convert to the other byte order twice: a message that can be converted must be the same after the second time."""
    other: netlink.ByteOrder = "big" if netlink.HOST == "little" else "little"
    byteorder.order_of(data, other)
    turned = byteorder.to_host(data, other)
    assert len(turned) == len(data)
    if look:
        ends = [offset + len(message) for offset, message in netlink.split_messages(data, other)]
        assert ends == [offset + len(message) for offset, message in netlink.split_messages(turned)]


def read_conntrack(data: bytes, look: bool) -> None:
    entry = conntrack.parse(data)
    if look:
        assert entry.values == value_by_schema(NFQA_TABLE[NFQA.CT], data)


def read_socket(data: bytes, look: bool) -> None:
    with contextlib.suppress(nfnet.DecodeError):
        rtnetlink.is_local(data)
    found = sock_diag.parse_socket(data)
    if look and found is not None:
        message = sock_diag.message.parse(data[netlink.HEADER_SIZE :])
        assert (found.state, found.uid, found.inode) == (message.state, message.uid, message.inode)
        assert (found.source, found.cookie) == (message.id.source[: len(found.source)], message.id.cookie)


class _Socket:
    """A socket that delivers a datagram, and then the end of a dump."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def send(self, datagram: bytes) -> None:
        self._request = datagram

    def receive(self, into: list[bytes], limit: int) -> None:
        # The reader ignores answers whose sequence number is not that of its request.
        number, data = self._request[8:12], self._data
        done = netlink.build_message(netlink.NLMSG_DONE, 0, 1, bytes(4))
        into += [data[:8] + number + data[12:], done[:8] + number + done[12:]]

    def fileno(self) -> int:
        return READABLE.fileno()

    dump = nfnet.NetlinkSocket.dump


def read_dump(data: bytes, look: bool) -> None:
    _listing.list_rules(_Socket(data))  # type: ignore[arg-type]
    for name, values in _nftables.expressions(_Socket(data)):  # type: ignore[arg-type]
        _actions.queues_of(name, values)
    _finding.find(_Socket(data), 1)  # type: ignore[arg-type]


class _Requests(Transport):
    """A transport that delivers one datagram and accepts everything."""

    def __init__(self, data: bytes) -> None:
        self._data = [data]

    def receive(self, into: list[bytes], limit: int) -> bool:
        into += self._data
        self._data = []
        return False

    def send(self, datagram: bytes) -> None: ...

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        build(1)

    def fileno(self) -> int:
        return READABLE.fileno()

    def close(self) -> None: ...


def run_queue(data: bytes, look: bool) -> None:
    kernel = FakeKernel(num=1, ends=True)
    kernel.trusted = False
    with nfnet.Queue(1, transport=kernel) as queue:
        kernel.deliver(data)
        kernel.deliver(packet_message(9))
        for _ in range(3):
            with contextlib.suppress(nfnet.NfnetError):
                queue.run(lambda packet: packet.accept(mark=packet.mark))
        counters = queue.counters
        assert counters.received == counters.accepted + counters.pending >= 1
    assert len(kernel.judged) + (counters.pending or 0) <= counters.received


def run_log(data: bytes, look: bool) -> None:
    kernel = FakeKernel(ends=True)
    kernel.trusted = False
    with nfnet.Log(5, transport=_NoRequests(kernel), sequence=True) as log:
        kernel.deliver(data)
        for _ in range(2):
            with contextlib.suppress(nfnet.NfnetError):
                log.run(repr)
    kernel.close()


class _NoRequests(Transport):
    """A transport that only receives."""

    def __init__(self, kernel: FakeKernel) -> None:
        self._kernel = kernel

    def receive(self, into: list[bytes], limit: int) -> bool:
        return self._kernel.receive(into, limit)

    def fileno(self) -> int:
        return self._kernel.fileno()

    def interface_name(self, index: int) -> str | None:
        return self._kernel.interface_name(index)

    def close(self) -> None:
        self._kernel.close()

    def send(self, datagram: bytes) -> None: ...

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        build(1)


# --- packets


def reference(packet: bytes) -> tuple[Any, ...] | None:
    """Read what `inet` reads: addresses, protocol, position of its header, and so on, by code of its own."""
    if len(packet) >= 20 and packet[0] >> 4 == 4:
        size = packet[0] % 16 * 4
        if not 20 <= size <= len(packet):
            return None
        tos, length, _, field, ttl, protocol = struct.unpack_from("!xBHHHBB", packet)
        ends = (str(ipaddress.IPv4Address(packet[at : at + 4])) for at in (12, 16))
        return (*ends, protocol, size, ttl, tos, length or len(packet), bool(field & 0x3FFF), bool(field & 0x1FFF))
    if len(packet) < 40 or packet[0] >> 4 != 6:
        return None
    word, length, protocol, ttl = struct.unpack_from("!IHBB", packet)
    if not length and protocol != 59:  # no next header
        length = jumbo(packet) if protocol == 0 else len(packet) - 40
    place, fragment, later = 40, False, False
    while protocol in (0, 43, 44, 60) and not later:
        if place + 8 > len(packet):
            return None
        if protocol == 44:
            field = struct.unpack_from("!H", packet, place + 2)[0]
            fragment, later, size = bool(field & 0xFFF9), field >= 8, 8
        else:
            size = 8 + 8 * packet[place + 1]
        protocol, place = packet[place], place + size
    if place > len(packet):
        return None
    ends = (ipaddress.IPv6Address(packet[at : at + 16]) for at in (8, 24))
    return (*ends, protocol, place, ttl, word >> 20 & 0xFF, length + 40, fragment, later)


def jumbo(packet: bytes) -> int:
    """Return the length of a jumbogram after the IPv6 header: that is 0, and a hop-by-hop header follows (RFC 2675)."""
    options = list(packet[42 : 48 + packet[41] * 8]) if len(packet) >= 48 else []
    while options:
        kind = options.pop(0)
        if kind:
            size = options.pop(0) if options else 0
            value, options = bytes(options[:size]), options[size:]
            if kind == 0xC2 and len(value) == size == 4:
                said = int.from_bytes(value, "big")
                return said if said > 0xFFFF else len(packet) - 40
    return len(packet) - 40


def read_inet(data: bytes, look: bool) -> None:
    ip, flow = inet.ip(data), inet.flow(data)
    udp, tcp, icmp = inet.udp(data), inet.tcp(data), inet.icmp(data)
    got, number = inet.get_data(data), inet.protocol(data)
    expected = reference(data)
    if expected is None or ip is None or flow is None:
        assert expected is ip is flow is None
        return
    source, destination, protocol, place, ttl, tos, length, fragment, later = expected
    ends = [ip.source, ip.destination]
    if ip.version == 6:
        ends = [ipaddress.IPv6Address(end) for end in ends]  # type: ignore[misc]
    assert ends == [source, destination]
    assert (ip.protocol, ip.header, ip.ttl, ip.tos, ip.length, ip.fragment) == (
        protocol, place, ttl, tos, length, fragment,
    )  # fmt: skip
    assert (flow.protocol, flow.source, flow.destination) == (protocol, ip.source, ip.destination)
    assert number == (None if ip.version == 6 and protocol in (0, 43, 44, 60) else protocol)
    if flow.source_port is not None:
        assert not later
        assert (flow.source_port, flow.destination_port) == struct.unpack_from("!HH", data, place)
    for header, kind, size in ((udp, 17, 8), (tcp, 6, 20), (icmp, 1 if ip.version == 4 else 58, 8)):
        whole = min(length, len(data)) >= place + size
        assert header is None or (protocol == kind and whole and not later)
        if kind in (17, 1, 58) and protocol == kind and whole and not later:
            assert header is not None
    if got is not None:
        assert not fragment
        assert data[: min(length, len(data))].find(got) >= 0
        assert got == (udp or tcp).data  # type: ignore[union-attr]


def total(data: bytes) -> int:
    """Return the one's complement sum."""
    data += bytes(len(data) % 2)
    result = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while result >> 16:
        result = (result & 0xFFFF) + (result >> 16)
    return result


CHANGES: tuple[dict[str, Any], ...] = (
    {"data": b"new"},
    {"data": b""},
    {"ttl": 1, "source_port": 5, "seq": 1},
    {"source": "192.0.2.1", "destination": "192.0.2.2", "tos": 1},
    {"source": "fd00::1", "destination_port": 9},
    {"destination": "192.0.2.9"},
    {"flags": 0x12, "ack": 7, "window": 0},
    {"tos": 0xFF},
    {"ttl": 7, "skbinfo": 1},  # an unfinished checksum
    {"destination_port": 5, "skbinfo": 3},  # and segments
)


def answer_inet(data: bytes, look: bool) -> None:
    """Answers must have correct lengths and checksums, whatever the packet is."""
    builds = (_answers.resets, _answers.refusals, lambda packet, size: _answers.answer(packet, b"data", size))
    for build, size in product(builds, (None, len(data) + 1000)):
        try:
            answers = build(data, size)
        except nfnet.ArgumentError:
            continue
        for answer in answers:
            ip = inet.ip(answer)
            assert ip is not None
            assert ip.length == len(answer)
            assert not ip.fragment
            assert _answers.mend(answer) == answer
    with contextlib.suppress(nfnet.ArgumentError):
        mended = _answers.mend(data)
        assert len(mended) == len(data)
        assert _answers.mend(mended) == mended
        for mtu in (68, 1280):
            assert all(len(piece) <= mtu for piece in _answers.fragments(mended, mtu))


def change_inet(data: bytes, look: bool) -> None:
    refused: nfnet.NfnetError | None = None
    changed = False
    for change in CHANGES:
        try:
            new = inet.rewrite(data, **change)
        except nfnet.NfnetError as error:
            refused = error
            continue
        changed = True
        ip, expected = inet.ip(new), reference(new)
        assert ip is not None
        assert expected is not None
        assert ip.length == len(new)
        for name in ("source", "destination", "ttl", "tos"):
            assert name not in change or getattr(ip, name) == change[name]
        if ip.version == 4:
            assert total(new[: ip.header]) == 0xFFFF
        if ip.fragment:
            continue
        for name in ("source_port", "destination_port", "seq", "ack", "flags", "window"):
            if name in change:
                assert getattr(inet.tcp(new) or inet.udp(new), name) == change[name]
        if "data" in change:
            assert (inet.tcp(new) or inet.udp(new) or inet.icmp(new)).data == change["data"]  # type: ignore[union-attr]
            upper = new[ip.header :]
            pseudo = new[12:20] if ip.version == 4 else new[8:40]
            pseudo += struct.pack("!II", len(upper), ip.protocol)
            assert total((b"" if ip.protocol == 1 else pseudo) + upper) == 0xFFFF
    if refused is not None and not changed:
        raise refused


def read_streams(data: bytes, look: bool) -> None:
    """Read packets in a row, and compare each stream with a dictionary of its bytes by position."""
    beginnings = inet.Beginnings(max_bytes=STREAM)
    streams: dict[inet.Flow, tuple[int, dict[int, int]]] = {}
    while data:
        ip = inet.ip(data)
        size = (ip and ip.length) or len(data)
        packet, data = data[:size], data[size:]
        got = beginnings.add(packet)
        if look:
            known = add_to_streams(streams, packet)
            length = next((place for place in range(STREAM) if known is None or place not in known), STREAM)
            assert got == (None if known is None else bytes(known[place] for place in range(length)))
    assert len(beginnings) == len(streams) or not look


def add_to_streams(streams: dict[inet.Flow, tuple[int, dict[int, int]]], packet: bytes) -> dict[int, int] | None:
    ip, flow, tcp = inet.ip(packet), inet.flow(packet), inet.tcp(packet)
    if ip is None or flow is None or tcp is None or ip.fragment:
        return None
    seq = tcp.seq
    if tcp.flags & inet.TcpFlag.SYN and not tcp.flags & inet.TcpFlag.RST:
        seq = (seq + 1) % (1 << 32)
        if flow not in streams or streams[flow][0] != seq:
            streams[flow] = seq, {}
    if flow not in streams:
        return None
    start, known = streams[flow]
    first = (seq - start) % (1 << 32)
    first -= first >> 31 << 32
    if ip.length > len(packet) and first + len(tcp.data) < STREAM:
        return None
    for place, byte in enumerate(tcp.data, first):
        if 0 <= place < STREAM:
            known.setdefault(place, byte)
    return known


def read_name(data: bytes, look: bool) -> None:
    """For the beginning of data the answer must be the same as for all data, or that more data is needed."""
    name = inet.server_name(data)
    assert not name or name.isprintable()
    if look:
        for end in range(len(data)):
            assert inet.server_name(data[:end]) in (inet.INCOMPLETE, name)


# --- captures

memory_file = os.memfd_create("capture", os.MFD_CLOEXEC)
PATH = f"/proc/self/fd/{memory_file}"


def put(data: bytes) -> None:
    os.ftruncate(memory_file, 0)
    os.pwrite(memory_file, data, 0)


def read_capture(data: bytes, look: bool) -> None:
    records: list[Record] = []
    try:
        for record in read(io.BytesIO(data)):
            records.append(record)
    finally:
        if look and not data.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zX")):
            is_pcap = data[:4] != b"\x0a\x0d\x0d\x0a"
            for record in records:
                compare_record(data, record, is_pcap)


def compare_record(file: bytes, record: Record, is_pcap: bool) -> None:
    """Compare a record with the bytes at its position in the file."""
    order, at = LITTLE if record.byteorder == "little" else BIG, record.offset
    if is_pcap:
        seconds, fraction, size, original = struct.unpack_from(f"{order}IIII", file, at)
        nanoseconds = struct.unpack_from(f"{order}I", file)[0] == 0xA1B23C4D
        assert record.time_ns == seconds * 10**9 + fraction * (1 if nanoseconds else 1000)
        assert record.link_type == struct.unpack_from(f"{order}H", file, 20 if order == LITTLE else 22)[0]
        modified = struct.unpack_from(f"{order}I", file)[0] == 0xA1B2CD34
        start = at + (24 if modified else 16)
    elif struct.unpack_from(f"{order}I", file, at)[0] == 6 or struct.unpack_from(f"{order}I", file, at)[0] == 2:
        size, original = struct.unpack_from(f"{order}II", file, at + 20)
        start = at + 28
    else:
        original, start, size = struct.unpack_from(f"{order}I", file, at + 8)[0], at + 12, len(record.data)
        assert size <= original
    assert record.original_length == original
    assert record.data_offset == start
    assert len(record.data) == size
    assert record.data == file[start : start + size]


def read_compressed(data: bytes, look: bool) -> None:
    found = list(read(io.BytesIO(data)))
    if look:
        plain = {b"\x1f": gzip.decompress, b"B": bz2.decompress, b"\xfd": lzma.decompress}.get(data[:1])
        assert plain is None or list(read(io.BytesIO(plain(data)))) == found


def read_link_layer(data: bytes, look: bool) -> None:
    """Read a record, with the link type and options that its first two bytes choose."""
    which, choice, frame = (data[:1] or b"\0")[0], (data[1:2] or b"\0")[0], data[2:]
    link_type, frames = LINK_TYPES[which % len(LINK_TYPES)], VIEWS[choice % len(VIEWS)]
    record = Record(5, link_type, frame, len(frame) + choice % 5, "big" if choice & 64 else "little", 0, 0, 1)
    found = frames.find(record)
    if not isinstance(found, Found):
        raise nfnet.NfnetError(f"no packet, EtherType {found:#x}")
    assert 0 < found.start <= len(frame) or link_type in (12, 14, 101, 228, 229)
    queued = frames.message(Subsystem.QUEUE, 7, 9, record, found)
    logged = frames.message(Subsystem.LOG, 7, 9, record, found)
    try:
        read_packet(queued, look)
        read_message(logged, look)
        payload = nfnet.Packet.from_bytes(queued).payload
        assert payload == nfnet.LogMessage.from_bytes(logged).payload
    except nfnet.NfnetError as error:
        raise AssertionError("a message that was made of a frame is refused") from error
    assert frame[found.start :].startswith(payload)


def run_replay(data: bytes, look: bool) -> None:
    put(data)
    replay = nfnet.Replay(PATH)
    number = group = None
    refused: nfnet.NfnetError | None = None
    for _ in range(50 * len(data) + 1):
        try:
            number, group = replay.first()
            break
        except nfnet.NfnetError as error:
            refused = error
    if number is None and group is None:
        replay.close()
        raise refused or nfnet.NfnetError("nothing in it")
    reader: Any
    if group is None:
        reader = nfnet.Queue(number or 0, transport=replay)
        handler: Callable[[Any], object] = nfnet.Packet.accept
    else:
        reader, handler = nfnet.Log(group, transport=replay, sequence=True), repr
    with reader:
        for _ in range(50 * len(data)):  # it may be compressed
            try:
                reader.run(handler)
            except nfnet.NfnetError:
                continue
            break
        else:
            raise AssertionError("the loop does not come to an end")
        if group is None:
            counters = reader.counters
            assert counters.received == counters.accepted + counters.pending


PARSER = cli.build()


@contextlib.contextmanager
def on_screen() -> Iterator[io.StringIO]:
    """Capture the output of the block, which must contain no control characters of a terminal."""
    screen = io.StringIO()
    with contextlib.redirect_stdout(screen), contextlib.redirect_stderr(screen):
        yield screen
    bad = {c for c in screen.getvalue() if not c.isprintable()} - {"\n"}
    assert not bad, f"a terminal would obey {bad!r}"


def command(*arguments: str) -> tuple[int, str]:
    """Run a command, and return its exit status and output."""
    with on_screen() as screen:
        status = cli.execute(PARSER.parse_args(arguments))
    assert status in (0, 1)
    return status, screen.getvalue()


def run_command(*arguments: str) -> Callable[[bytes, bool], None]:
    def run(data: bytes, look: bool) -> None:
        put(data)
        status, text = command(*arguments, PATH)
        if hasattr(gc, "unfreeze"):  # not PyPy
            gc.unfreeze()  # ``nfnet queue`` runs once in a process, and freezes what is there when it begins
        if "--json" in arguments and status == 0:
            for line in text.splitlines():
                if not line.startswith("nfnet "):  # on standard error
                    json.loads(line)
        if status:
            raise nfnet.NfnetError(text)

    return run


def show_fields(data: bytes, look: bool) -> None:
    for line in (
        decode_command.describe(data[: len(data) * 3 // 4], len(data)) if look else decode_command.describe(data)
    ):
        assert line.isprintable(), line


# --- words


def text_of(data: bytes) -> str:
    """Return text like Python's arguments of programs and names of files, with surrogate escapes."""
    return data.decode("utf-8", "surrogateescape")


def parse_arguments(data: bytes, look: bool) -> None:
    with on_screen() as screen:
        try:
            PARSER.parse_args([text_of(part) for part in data.split(b"\0")])
            return
        except SystemExit as end:
            status = end.code
    assert status in (0, 2)
    raise nfnet.NfnetError(screen.getvalue())


def parse_words(data: bytes, look: bool) -> None:
    for rule in (rules.queue, rules.log, rules.mark):
        try:
            found = rule_words(text_of(data), rule)
        except argparse.ArgumentTypeError as error:
            failed = str(error)
            continue
        made = rule(7, **found)
        assert made.describe().isascii() or all(map(str.isprintable, made.describe().splitlines()))
        encode_rule(made)
        return
    raise nfnet.NfnetError(failed)


def encode_rule(rule: rules.Rule) -> None:
    """Build all messages that would install a rule."""
    for step in rule.kernel_rules():
        _nftables.rule(1, "t", "c", [*step.match, *step.choices[0]], b"", itertools.count(1))


ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 5, 7, 20, 0xFF, 0xFFFF, 0x10000, 0xFFFFFFFF, 1 << 32, 1 << 64, -(1 << 31), 10**5000),
    *(0.5, float("nan"), float("inf"), 1e300, "", "tcp", "lo", "eth*", "a b", "a\0b", "\ud800", "\udcff", "é" * 200),
    *("192.0.2.1", "fd00::1", "fd00::/8", "1.2.3.4/8", "1-5", "9" * 5000, "\x1b[2J", "input", "new", "flow", "raise"),
    *(b"", b"x", b"E" + bytes(19), bytes(70000), bytearray(40), memoryview(b"abc"), range(0), range(3), range(1 << 70)),
    *(range(5, 0, -1), [], ["new"], ("new", "old"), (1, 2), (), {}, object(), nfnet.Hook.INPUT, nfnet.Verdict.QUEUE),
)
UDP, TCP = udp(b"hello"), tcp(b"hello", source="fd00::1", destination="fd00::2")


def make_queue(**options: Any) -> None:
    number = options.pop("num", 1)
    queue = nfnet.Queue(number, transport=_Requests(b""), **options)
    queue.open()
    queue.close()


def make_log(**options: Any) -> None:
    log = nfnet.Log(options.pop("group", 5), transport=_Requests(b""), **options)
    log.open()
    log.close()


def make_rule(make: Callable[..., rules.Rule]) -> Callable[..., None]:
    def run(**options: Any) -> None:
        # Most random values are refused. With one argument at a time, and those that it needs, some are not.
        if "hook" not in options:
            options = {"hook": "output", **dict([*options.items()][:2])}
        rule = make(options.pop("number", 1), **options)
        assert rule.describe()
        encode_rule(rule)

    return run


def decide(method: str) -> Callable[..., None]:
    def run(**options: Any) -> None:
        fed = FedQueue()
        try:
            packet_id = fed.feed(UDP, family=7, L2HDR=b"abcdef", CT={8: 5})
            failed: list[BaseException] = []

            def handler(packet: nfnet.Packet) -> None:
                try:
                    getattr(packet, method)(**options)
                except (nfnet.NfnetError, TypeError) as error:
                    failed.append(error)

            fed.run(handler)
            if failed:
                assert packet_id not in fed.verdicts
                raise failed[0]
            decided = fed.verdicts[packet_id]
            assert options.get("mark") is None or decided.mark == options["mark"]
        finally:
            fed.close()

    return run


_MATCH = (
    *words("hook family priority"),
    *(negation + name for name in CRITERIA for negation in ("", "not_")),
)
_VERDICT = words("mark payload priority vlan l2header ct_mark ct_labels")
_REWRITE = words("data source destination source_port destination_port ttl tos seq ack flags window")
CALLS: tuple[tuple[Callable[..., object], Sequence[str]], ...] = (
    (make_rule(rules.queue), ("number", "bypass", "balance", *_MATCH)),
    (make_rule(rules.log), ("number", "prefix", "snaplen", "threshold", *_MATCH)),
    (make_rule(rules.mark), ("number", "mask", *_MATCH)),
    (make_rule(lambda number, **options: rules.reject(**options)), ("error", *_MATCH)),
    (
        make_queue,
        words("num copy_range copy_mode max_len rcvbuf fail_open gso conntrack on_overrun undecided on_error"),
    ),
    (
        make_log,
        words("group copy_range copy_mode timeout threshold buffer_size rcvbuf sequence conntrack on_overrun"),
    ),
    (lambda **options: inet.rewrite(UDP, **options), _REWRITE),
    (lambda **options: inet.rewrite(TCP, **options), _REWRITE),
    (decide("accept"), _VERDICT),
    (decide("verdict"), ("code", *_VERDICT)),
    (decide("requeue"), ("number", "bypass", *_VERDICT[:3])),
)


def call(data: bytes, look: bool) -> None:
    """Make a rule: the first byte chooses its function, each following pair an argument and a value."""
    function, names = CALLS[data[0] % len(CALLS)] if data else CALLS[0]
    options = {names[key % len(names)]: ODD[value % len(ODD)] for key, value in zip(data[1:9:2], data[2:10:2])}
    try:
        function(**options)
    except TypeError as error:  # what is of another type than the signature says
        raise nfnet.NfnetError(str(error)) from None


# --- seeds


def recordings() -> Iterator[list[Record]]:
    for path in sorted(FIXTURES.glob("*.pcapng")):
        if path.stat().st_size < 5000:
            yield list(read(path))


FILES = [list(records) for records in recordings()]
DATAGRAMS = [netfilter_datagram(record) or b"" for records in FILES for record in records]
SOCKETS = [bytes.fromhex(row["answer"]) for row in json.loads((FIXTURES / "sockets.json").read_text())]
_RAW = [bytes.fromhex(row[2]) for row in json.loads((FIXTURES / "datagrams.json").read_text())]
DATAGRAMS += _RAW if netlink.HOST == "little" else [turn(datagram, "<") for datagram in _RAW]


def of_type(*types: int) -> list[bytes]:
    found = [message for d in DATAGRAMS for _, message in netlink.split_messages(d)]
    return sorted({m for m in found if netlink.read_length_and_type(m)[1] in types})


def pcapng(records: Sequence[Record], order: str, link_type: int, skip: int = 0) -> bytes:
    data = section(order) + interface(order, link_type, (9, b"\x09"))
    for record in records:
        bytes_ = record.data[skip:]
        head = struct.pack(
            f"{order}IIIII", 0, record.time_ns >> 32, record.time_ns & 0xFFFFFFFF, len(bytes_), len(bytes_)
        )
        comment = struct.pack(f"{order}HH", 1, 2) + b"hi\0\0" + bytes(4)
        data += block(order, 6, head + bytes_ + bytes(-len(bytes_) % 4) + comment)
    return data


def several(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if len(record.data) < 400][:3]


def is_logged(record: Record) -> bool:
    return netlink.read_length_and_type(netfilter_datagram(record) or bytes(8))[1] == nfulnl.MSG_PACKET


def captures(make: Callable[[Sequence[Record], str, int, int], bytes]) -> list[bytes]:
    """Return small files in both byte orders: of netlink, of tcpdump's NFLOG, and of packets alone."""
    found = []
    for order in (LITTLE, BIG):
        for records in FILES:
            found.append(make(several(records), order, 253, 0))
            messages = [r for r in several(records) if is_logged(r)]
            if messages and order == LITTLE:
                found.append(make(messages, order, 239, 32))
        found.append(
            make([Record(1 << 60, 101, packet, 0, "little", 0, 0, 0) for packet in PACKETS[:3]], order, 101, 0)
        )
    return found


def old_pcap(records: Sequence[Record], order: str, link_type: int, skip: int = 0) -> bytes:
    magic = 0xA1B23C4D if len(records) % 2 else 0xA1B2C3D4
    return pcap(*(record.data[skip:] for record in records), byteorder=order, magic=magic, link_type=link_type)


def cut_pcap(records: Sequence[Record], order: str, link_type: int, skip: int = 0) -> bytes:
    """Return a capture as after ``editcap -s 90``."""
    data = pcap(byteorder=order, link_type=link_type)
    for record in records:
        whole = record.data[skip:]
        data += struct.pack(f"{order}IIII", 7, 7, len(whole[:90]), len(whole)) + whole[:90]
    return data


QUEUED, LOGGED = of_type(nfqnl.MSG_PACKET), of_type(nfulnl.MSG_PACKET)
PACKETS = sorted({b for d in QUEUED if (b := d[nfqnl.layouts.find(d).payload])})
PACKETS += [UDP, TCP, tcp(b"x"), udp(b"", source="fd00::1", destination="fd00::2")]
PACKETS += [
    TCP[:4] + b"\0\x2a\x2c" + TCP[7:40] + b"\x06\0\0\1\0\0\0\1" + TCP[40:],  # a first fragment
    TCP[:6] + b"\x00" + TCP[7:40] + b"\x3c\0\1\4\0\0\0\0\x06\0\xc9\4\0\0\0\0" + TCP[40:],  # extension headers
    b"\x46" + UDP[1:20] + b"\x83\x04\0\0" + UDP[20:],  # a source route
    UDP[:2] + b"\0\0" + UDP[4:],  # as long as it is
    TCP[:4] + b"\0\0" + TCP[6:],
    TCP[:4] + b"\0\0\0" + TCP[7:40] + b"\x06\0\xc2\4\0\1\0\0" + TCP[40:],  # a jumbogram
]
STREAMS = [
    b"".join(
        tcp(data, flags=flags, seq=(start + place) % (1 << 32), **ends)
        for place, data, flags in ((-1, b"", 2), *((at, b"0123456789", 0x18) for at in (10, 4, 25, 0)))
    )
    for start in (1, 0xFFFFFFF0)
    for ends in ({}, {"source": "fd00::1", "destination": "fd00::2"})
]
CONNECTION: dict[int, Any] = {
    1: {1: {1: bytes(4), 2: b"\1\2\3\4"}, 2: {1: 6, 2: 1, 3: 2}},
    2: {1: {3: bytes(16), 4: bytes(16)}, 2: {1: 17}},
    **dict(zip((3, 7, 8, 12, 18, 22), (1, 300, 7, b"abcd", 1, bytes(16)))),
    **dict(zip((4, 5, 9), ({1: {1: 3}}, {1: b"ftp\0"}, {1: 1, 2: 1}))),
}
QUEUED += [
    packet_message(8, UDP, family=7, hw_protocol=0x88A8, SKB_INFO=3),
    packet_message(5, UDP, CT=CONNECTION, CT_INFO=1, VLAN={1: 0x8100, 2: 5}, L2HDR=b"abcdef", CAP_LEN=99, num=1),
    packet_message(6, None, HWADDR={"length": 6, "address": bytes(8)}, SECCTX=b"a:b\0", UID=0, GID=0, PRIORITY=1),
    packet_message(7, TCP, TIMESTAMP={"seconds": 1 << 30, "microseconds": 5}, MARK=7, CGROUP_CLASSID=1, SKB_INFO=5),
]
LINK_TYPES = sorted(map(int, LINK_LAYERS))
VIEWS = (Frames(None, (), "inet"), Frames("forward", (), "bridge"), Frames(None, ("192.0.2.0/24", "fd00::/8"), "inet"))
RECORDS = [(sample.link_type, sample.before + UDP) for sample in SAMPLES.values()]
RECORDS += [(sample.link_type, sample.before_ipv6 + TCP) for sample in SAMPLES.values()]
RECORDS += [(link_type, record[:100]) for link_type, record, _ in NOT_IP.values()]
LINK_RECORDS = [bytes((LINK_TYPES.index(kind), number % 256)) + data for number, (kind, data) in enumerate(RECORDS)]


def mixed_pcapng(order: str) -> bytes:
    """Return pcapng data: named interfaces of several link types, and blocks of each kind, with directions."""
    some = [RECORDS[number] for number in range(0, len(RECORDS), 9)]
    data = section(order) + b"".join(interface(order, kind, (2, b"eth\x1b0")) for kind, _ in some)
    for number, (_, frame) in enumerate(some):
        flags = struct.pack(f"{order}HHIHH", 2, 4, number % 3, 0, 0)
        padded = frame + bytes(-len(frame) % 4) + flags
        data += block(order, 6, struct.pack(f"{order}IIIII", number, 1, 7, len(frame), len(frame)) + padded)
        data += block(order, 2, struct.pack(f"{order}HHIIII", number, 0, 1, 7, len(frame), len(frame)) + padded)
    return data + block(order, 3, struct.pack(f"{order}I", len(some[0][1])) + some[0][1])


def modified_pcap(order: str) -> bytes:
    data = pcap(byteorder=order, magic=0xA1B2CD34, link_type=1)
    for kind in (0, 3, 4):
        frame = SAMPLES["VLAN"].before + UDP
        data += struct.pack(f"{order}IIIIIHBx", 7, 8, len(frame), len(frame), 5, 8, kind) + frame
    return data


PCAP, PCAPNG, CUT = captures(old_pcap), captures(pcapng), captures(cut_pcap)
PCAP += [pcap(record, record, link_type=kind) for kind, record in RECORDS[::5]]
PCAP += [modified_pcap(LITTLE), modified_pcap(BIG)]
PCAPNG += [mixed_pcapng(LITTLE), mixed_pcapng(BIG)]
COMPRESSED = [gzip.compress(data) for data in (*PCAP[::9], *PCAPNG[::9])]
COMPRESSED += [bz2.compress(data, 1) for data in PCAP[::19]] + [lzma.compress(data, preset=0) for data in PCAP[::19]]
COMPRESSED += [gzip.compress(PCAP[0][:50]) + gzip.compress(PCAP[0][50:]) + bytes(9)]
WHOLE = [path.read_bytes() for path in sorted(FIXTURES.glob("*.pcapng")) if path.stat().st_size < 1600]
RULES = [
    b"hook=forward protocol=udp destination_port=1-5 source=192.0.2.0/24 mark=0x7 state=new,related priority=-5",
    b"hook=input family=ip6 source=fd00::/8 protocol=tcp source_port=80 uid=0",
    b"hook=ingress family=netdev in_interface=eth0 not_mark=1",
    b"hook=postrouting out_interface=eth* uid=root protocol=icmp",
    b"hook=input protocol=icmp,icmpv6 icmp_type=echo-request,redirect 'limit=10/minute burst 20' not_length=0-60",
    b"hook=output protocol=tcp 'tcp_flags=syn,!ack' not_source=10.0.0.0/8,192.0.2.1-192.0.2.9,fd00::/8 not_uid=5-9",
    b"hook=output connection_mark=0x1/0xff not_mark=1,2 not_destination_type=local,broadcast cgroup=init.scope gid=0",
    b"",
]
ARGUMENTS = [
    line.replace(b" ", b"\0")
    for line in (
        b"queue 1 --drop --protocol udp --port 53 --source 192.0.2.0/24 -c 5 --netns blue",
        b"queue 1 --delay 100 --jitter 20 --loss 5 --requeue 7 --mark 0x7 --netns 12",
        b"queue 1 --rate 1.5mbit --reorder 3 --duplicate 1 --corrupt 2 --seed 7 --max-len 100",
        b"queue 1 --reject --connection --rate 200pps",
        b"block 192.0.2.1 2001:db8::/32 --port 25,80-90 --protocol tcp --unit x.service --user root --for 10m",
        b"queue 0x1 --handler a:b --fail-open --gso --json -q -w x.pcap --metrics 9464",
        b"log 5 --prefix x --sqlite db --install-rule hook=input",
        b"record x.pcapng --queue 1 -c 10 --netns /run/netns/x",
        b"replay x.pcapng --group 5 --json --realtime",
        b"replay - --hook input --local 192.0.2.0/24 --family bridge",
        b"queue 1 --read x.pcap --local fd00::1 --drop",
        b"decode 1c000000020305000100000000000000",
        b"rules clean --netns blue",
        b"stats --watch --json",
        b"doctor --netns 1",
        b"run script.py --its-own options",
        b"--debug demo",
    )
]
TURNED = [turn(datagram, netlink.PREFIX) for datagram in DATAGRAMS]
READABLE = Event()
READABLE.set()


class Target(NamedTuple):
    """A target of inputs: its share of a thousand inputs, its seeds, and the function that reads an input.

    Its second argument is whether to compare the result. It raises NfnetError if it refuses the input.
    """

    name: str
    share: int
    seeds: Sequence[bytes]
    read: Callable[[bytes, bool], None]
    tokens: Sequence[bytes] = NUMBERS


SETS = [
    b"\0192.0.2.1\n2001:db8::1 # comment\n::ffff:192.0.2.1\n",
    b"\x0110.0.0.0/8\n2001:db8::/32; comment\n192.0.2.1-192.0.2.9\n10.0.0.0/255.0.0.0\n",
    b"\x0280\n1024-2047\n",
    b"\x030x7\n4294967295\n",
    b"\x04eth0\nto-*\n",
]


def read_set(data: bytes, look: bool) -> None:
    """Read a file of elements; the first byte chooses the kind of elements."""
    kinds: tuple[Any, ...] = ("address", "network", "port", "mark", "interface")
    kind = kinds[(data or b"\0")[0] % len(kinds)]
    found = rules.Set(kind, io.StringIO(data[1:].decode("utf-8", "surrogateescape")))
    if look:
        again = rules.Set(kind, found)
        assert list(again) == list(found)
        assert all(element in again for element in found)
        for element in found:
            again.remove(element)
        assert not list(again)


ULOGD = [
    b'[global]\nstack=a:NFLOG,b:BASE,c:JSON\n[a]\ngroup=1\nnumeric_label=1\n[c]\nfile="/x"\ndevice="d"\nboolean_label=1\n',
    b"[global]\nstack=a:NFLOG,b:MARK,c:SQLITE3\nstack=x:NFCT,c:LOGEMU\n[b]\nmark=1\n[c]\ntable=t\ndb=/y\n",
    b'[global]\nstack=a:NFLOG,c:PGSQL\nstack=a:NFLOG,d:SYSLOG\n[c]\nconnstring="host=h port=1 dbname=n"\n'
    b"pass=p\n[d]\nlevel=LOG_INFO\n",
]


def translate_ulogd(data: bytes, compare: bool = True) -> None:
    """The result, if there is one, must be TOML with only the expected keys."""
    found = _ulogd.translate_text(data.decode("utf-8", "replace"), "ulogd.conf")
    assert _settings._load(found).keys() <= {"group", "output"}, found


TARGETS = (
    Target("packet", 147, QUEUED, read_packet),
    Target("message", 150, LOGGED, read_message),
    Target("messages", 40, DATAGRAMS, read_messages),
    Target("answer", 60, of_type(netlink.NLMSG_ERROR), read_answer),
    Target("socket", 10, SOCKETS, read_socket),
    Target("other order", 40, TURNED, turn_messages),
    Target("conntrack", 50, [m[nfqnl.layouts.find(m).spans[11]] for m in QUEUED[-3:-2]], read_conntrack),
    Target("dump", 30, [*DATAGRAMS], read_dump),
    Target("queue", 8, QUEUED, run_queue),
    Target("log", 9, LOGGED, run_log),
    Target("inet", 156, PACKETS, read_inet),
    Target("streams", 10, STREAMS, read_streams),
    Target("server name", 10, [hello for hello in HELLOS.values() if len(hello) < 1000], read_name),
    Target("rewrite", 90, PACKETS, change_inet),
    Target("answers", 40, PACKETS, answer_inet),
    Target("pcap", 60, PCAP, read_capture),
    Target("pcapng", 60, PCAPNG, read_capture),
    Target("compressed", 20, COMPRESSED, read_compressed),
    Target("link layer", 60, LINK_RECORDS, read_link_layer),
    Target("replay", 10, [*PCAP, *PCAPNG, *CUT, *WHOLE], run_replay),
    Target("fields", 10, [m for m in DATAGRAMS if len(m) < 400], show_fields),
    Target("nfnet decode", 4, [*PCAP, *PCAPNG, *CUT, *DATAGRAMS], run_command("decode")),
    Target("nfnet replay", 4, [*PCAP, *PCAPNG], run_command("replay")),
    Target("nfnet replay --json", 4, [*PCAP, *PCAPNG], run_command("replay", "--json")),
    Target("nfnet queue --read", 4, [*PCAP, *PCAPNG], run_command("queue", "1", "--reject", "--read")),
    Target("arguments", 8, ARGUMENTS, parse_arguments, WORDS),
    Target("rule", 15, RULES, parse_words, WORDS),
    Target("set", 15, SETS, read_set),
    Target("ulogd.conf", 20, ULOGD, translate_ulogd),
    Target("call", 15, [bytes((which, *pair)) for which in range(9) for pair in pairwise(range(80))], call),
)


# --- the run


class Failure(Exception):
    """An input whose reader failed, with the line that repeats it."""


class _Watch:
    """Stops the reader of an input after a time."""

    def __init__(self) -> None:
        self.number = self._seen = -1

    def __call__(self, *_: object) -> None:
        if self.number == self._seen:
            raise AssertionError(f"still at it after {LIMIT} s")
        self._seen = self.number


def peak_of(function: Callable[[], None]) -> int:
    """Return how much memory the reader used at most, in bytes; 0 on PyPy, whose memory cannot be traced."""
    try:
        import tracemalloc
    except ModuleNotFoundError:
        return 0
    tracemalloc.start()
    try:
        with contextlib.suppress(nfnet.NfnetError):
            function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def run(count: int, seed: int, targets: Sequence[Target], progress: bool = False) -> None:
    choose = random.Random(seed)
    chance, clock = choose.random, time.thread_time
    plan = [target for target in targets for _ in range(target.share)]
    numbers = {target.name: [0, 0, 0.0, 0.0] for target in targets}  # inputs, refused, seconds, slowest
    watch = _Watch()
    for target in targets:  # what is loaded when it is first needed is no input's fault
        for data in target.seeds[:20]:
            with contextlib.suppress(nfnet.NfnetError):
                target.read(data, True)
    before = signal.signal(signal.SIGPROF, watch)
    signal.setitimer(signal.ITIMER_PROF, 2 * LIMIT, 2 * LIMIT)
    gc.collect()
    gc.disable()
    room = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + ROOM, room[1]))
    began, largest, before_files = time.monotonic(), 0, _open_files()
    try:
        for number in range(count):
            target = plan[int(chance() * len(plan))]
            seeds = target.seeds if chance() > CROSSED else TARGETS[int(chance() * len(TARGETS))].seeds
            data = damaged(choose, seeds, target.tokens)
            row = numbers[target.name]
            row[0] += 1
            watch.number = number
            start = clock()
            try:
                target.read(data, not number % LOOK_EVERY)
                took = clock() - start
            except nfnet.NfnetError:
                took = clock() - start
                row[1] += 1
            except Exception as error:
                raise Failure(_repeat(seed, number, target, data)) from error
            row[2] += took
            if took > row[3]:
                row[3] = took
                if took > LIMIT:
                    raise Failure(f"{took:.3f} s: " + _repeat(seed, number, target, data))
            if not number % WEIGH_EVERY:
                gc.collect()
                if (files := _open_files()) > before_files + 16:
                    raise Failure(f"{files} files are open: seed {seed}, one of the inputs before {number}")
                peak = peak_of(lambda: target.read(data, False))  # noqa: B023 - called at once
                largest = max(largest, peak)
                if peak > 4_000_000 + 100 * len(data):
                    raise Failure(f"{peak:,} bytes: " + _repeat(seed, number, target, data))
                if progress and not number % 500_000:
                    print(f"{number:,} in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, room)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
        gc.enable()
    print(f"{'target':<20} {'inputs':>10} {'refused':>10} {'mean':>9} {'slowest':>10}")
    for name, (inputs, refused, seconds, slowest) in numbers.items():
        mean = seconds / max(inputs, 1)
        print(f"{name:<20} {inputs:10,} {refused:10,} {mean * 1e6:6.0f} µs {slowest * 1e3:7.1f} ms")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slowest = max(row[3] for row in numbers.values())
    print(
        f"{count:,} inputs in {time.monotonic() - began:.0f} s, seed {seed}; slowest {slowest * 1e3:.1f} ms,"
        f" most memory for one {largest:,} bytes, peak memory of the process {peak:,} KiB"
    )


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _repeat(seed: int, number: int, target: Target, data: bytes) -> str:
    again = f"--repeat '{target.name}' {data.hex() or repr('')}"
    return f'seed {seed}, input {number}; once more: make fuzz ARGS="{again}"'


def main(arguments: Sequence[str] | None = None) -> int:
    names = {target.name: target for target in TARGETS}
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=", description="Damaged input for everything that reads any.")
    parser.add_argument("count", nargs="?", type=int, default=300_000, help="how many inputs [%(default)s]")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--only", action="append", choices=names, help="this target; may come several times")
    parser.add_argument("--repeat", nargs=2, metavar=("TARGET", "HEX"), help="one input")
    parser.add_argument("--progress", action="store_true", help="say how far it is")
    options = parser.parse_args(arguments)
    if options.repeat:
        try:
            names[options.repeat[0]].read(bytes.fromhex(options.repeat[1]), True)
        except nfnet.NfnetError as error:
            print(f"refused: {error}")
        return 0
    logging.getLogger("nfnet").addHandler(logging.NullHandler())  # not to standard error
    try:
        run(options.count, options.seed, [names[name] for name in options.only or names], options.progress)
    except Failure as failure:
        import traceback

        traceback.print_exception(failure.__cause__ or failure)
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
