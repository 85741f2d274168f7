"""The collector without a kernel: stored fields, limits, metrics, its state, and messages to systemd."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest

import nfnet
from nfnet import ArgumentError, LogMessage, NfnetError, _accounts, _ecs, captures, cli, collect, metrics, testing
from nfnet._annotated import Annotated
from nfnet.cli import collect_command
from nfnet.cli.command_line import endpoint
from nfnet.cli.service import Service
from nfnet.collect import (
    Batch,
    Group,
    OutputError,
    _collector,
    _counts,
    _delivery,
    _forwarder,
    _limits,
    _queries,
    _units,
    sqlite,
)
from nfnet.collect._delivery import Delivery
from nfnet.collect._nats_source import Received
from nfnet.collect._settings import read_settings
from nfnet.collect._spool import Memory, Spool
from nfnet.packet import Packet
from nfnet.protocol.nfnetlink import Family
from nfnet.protocol.nfqnl import NFQA_VLAN

from . import collector
from .collector import SESSION, icmp, refusal

message = functools.partial(collector.message, prefix="drop: ")

PROCESS = nfnet.Process(7, "curl", "/usr/bin/curl", ("curl", "-s"), 0, "/system.slice/a.service")


@pytest.fixture
def accounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "passwd"
    path.write_text("# no line\nroot:x:0:0::/:/bin/sh\nalice:x:1000:7::/:/bin/sh\nalias:x:1000:7::/:/bin/sh\nbad:x:y\n")
    monkeypatch.setattr(_accounts, "_users", _accounts._Names(str(path)))
    return path


# --- what a record says

ETHERNET = {
    "IFINDEX_INDEV": 3,
    "IFINDEX_PHYSINDEV": 2,
    "HWADDR": {"length": 6, "address": b"\2\0\0\0\0\1\0\0"},
    "HWTYPE": 1,
    "HWLEN": 14,
    "HWHEADER": b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\0",
}
LOCAL = {"IFINDEX_OUTDEV": 2, "MARK": 7, "UID": 1000, "GID": 7}
VLAN = {NFQA_VLAN.PROTO: 0x8100, NFQA_VLAN.TCI: 0x2005}


def path_in(record: dict[str, Any], path: str) -> Any:
    found: Any = record
    for name in path.split("."):
        found = found[name]
    return found


@pytest.mark.parametrize(
    ("packet", "attributes", "said"),
    [
        (
            testing.tcp(flags=0x12),
            ETHERNET,
            {
                "source.mac": "02-00-00-00-00-01",
                "destination.mac": "02-00-00-00-00-02",
                "observer.ingress.interface.name": "br0",
                "nfnet.physindev.name": "eth0",
                "nfnet.hwtype": 1,
                "nfnet.tcp.flags": ["SYN", "ACK"],
            },
        ),
        (icmp(3, 13), {}, {"nfnet.icmp.type": 3, "nfnet.icmp.code": 13, "network.transport": "icmp"}),
        (
            testing.udp(b""),
            LOCAL,
            {"user.id": "1000", "user.name": "alice", "user.group.id": "7", "nfnet.mark": 7},
        ),
        (
            testing.udp(b""),
            {"family": Family.BRIDGE, "VLAN": VLAN, "L2HDR": b"\2\0\0\0\0\2\2\0\0\0\0\1\x81\0\x20\x05\x08\0"},
            {
                "network.vlan.id": "5",
                "nfnet.vlan.priority": 1,
                "nfnet.vlan.protocol": 0x8100,
                "source.mac": "02-00-00-00-00-01",
                "nfnet.hwheader": "02000000000202000000000181002005" + "0800",
            },
        ),
        (testing.udp(b""), {"CT_INFO": 2}, {"nfnet.conntrack.state": "new"}),
        (testing.udp(b""), {"SEQ_GLOBAL": 9}, {"nfnet.sequence_global": 9}),
    ],
    ids=["ethernet", "icmp", "local", "vlan", "connection", "global"],
)
def test_a_line_of_json_says_all(
    packet: bytes, attributes: dict[str, Any], said: dict[str, Any], accounts: Path
) -> None:
    (line,) = _ecs.JsonLines()([message(1, packet, **attributes)], 0).splitlines()
    record = json.loads(line)
    assert {path: path_in(record, path) for path in said} == said


def test_lines_that_differ_in_flags_types_or_processes_alone() -> None:
    """Most of a line is remembered; these parts are in the key."""
    packets = [testing.tcp(flags=flags) for flags in (2, 16, 2)] + [icmp(8, 0), icmp(0, 0), icmp(3, 1)]
    messages = [message(number, packet) for number, packet in enumerate(packets)]
    for note in ({"process": PROCESS}, {"process": PROCESS._replace(pid=8)}, {"suppressed": 2}):
        messages.append(message(len(messages), packets[0]))
        messages[-1].raw = Annotated(messages[-1].raw, **note)
    records = [json.loads(line) for line in _ecs.JsonLines()(messages, 0).splitlines()]
    assert [record["nfnet"]["tcp"]["flags"] for record in records[:3]] == [["SYN"], ["ACK"], ["SYN"]]
    assert [tuple(record["nfnet"]["icmp"].values()) for record in records[3:6]] == [(8, 0), (0, 0), (3, 1)]
    assert [record.get("process", {}).get("pid") for record in records[6:]] == [7, 8, None]
    assert records[-1]["nfnet"]["suppressed"] == 2
    assert records[-1]["event"]["action"] == "messages-suppressed"
    assert records[6]["process"]["args"] == ["curl", "-s"]
    assert records[6]["nfnet"]["unit"] == "a.service"


def test_a_queued_packet_is_such_a_line_too() -> None:
    packet = Packet.from_bytes(testing.packet_message(1, testing.tcp(flags=2), process=PROCESS, UID=0, GID=0))
    record = json.loads(_ecs.ecs(packet))
    assert record["nfnet"]["tcp"]["flags"] == ["SYN"]
    assert record["process"]["executable"] == "/usr/bin/curl"


def test_names_of_users_are_read_anew_when_they_change(accounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_accounts, "_LOOK_AGAIN", 0.0)
    names = _accounts._Names(str(accounts))
    assert [names(number) for number in (0, 1000, 2000, None)] == ["root", "alice", None, None]
    accounts.write_text("bob:x:2000:\n")
    os.utime(accounts, ns=(1, 1))
    assert [names(number) for number in (0, 2000)] == [None, "bob"]
    accounts.unlink()
    assert names(2000) is None


def rows(path: Path, columns: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT {columns} FROM messages ORDER BY seq").fetchall()


def test_each_output_says_it(tmp_path: Path, accounts: Path) -> None:
    messages = [
        message(1, testing.tcp(flags=2), **ETHERNET),
        message(2, icmp(3, 13)),
        message(3, **LOCAL),
        message(4, family=Family.BRIDGE, VLAN=VLAN),
    ]
    messages[2].raw = Annotated(messages[2].raw, process=PROCESS)
    messages[3].raw = Annotated(messages[3].raw, suppressed=1204)
    files = [tmp_path / name for name in ("log.jsonl", "log.txt", "log.db", "log.pcapng")]
    for file in files:
        output = collect.output(str(file))
        output.begin()
        output.write(Batch(SESSION, messages, labels={"site": "berlin", "verdict": "drop"}))
        output.close()
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert all(line["labels"] == {"site": "berlin", "verdict": "drop"} for line in lines)
    assert all(line["host"]["name"] == "host" for line in lines)
    text = files[1].read_text().splitlines()
    assert "[SYN]" in text[0]
    assert "type 3 code 13" in text[1]
    assert "process curl[7]" in text[2]
    assert "drop: 1,204 more like this:" in text[3]
    assert all(line.endswith(" site=berlin verdict=drop") for line in text)
    columns = "tcp_flags, icmp_type, icmp_code, user_name, gid, physindev, vlan, destination_mac, hwtype"
    assert rows(files[2], columns) == [
        (2, None, None, None, None, "eth0", None, b"\2\0\0\0\0\2", 1),
        (None, 3, 13, None, None, None, None, None, None),
        (None, None, None, "alice", 7, None, None, None, None),
        (None, None, None, None, None, None, 5, None, None),
    ]
    columns = "process, pid, executable, unit, suppressed"
    assert rows(files[2], columns)[2:] == [("curl", 7, "/usr/bin/curl", "a.service", None), (*[None] * 4, 1204)]
    comments = [record.comment for record in captures.read(files[3])]
    assert comments[0] == "drop: (site=berlin verdict=drop)"
    assert comments[2].startswith("drop: (")
    assert "process curl[7]" in comments[2]
    assert comments[3] == "drop: (1,204 more like this, site=berlin verdict=drop)"


def test_the_spool_keeps_what_the_kernel_did_not_say(tmp_path: Path) -> None:
    path = str(tmp_path / "it.spool")
    messages = [message(1), message(2), message(3)]
    messages[1].raw = Annotated(messages[1].raw, process=PROCESS)
    messages[2].raw = Annotated(messages[2].raw, suppressed=4)
    spool = Spool(path, 1 << 20)
    assert spool.add(Batch(SESSION, messages))
    spool.close()
    spool = Spool(path, 1 << 20)
    first = spool.first()
    spool.close()
    assert first is not None
    assert [each.process for each in first.messages] == [None, PROCESS, None]
    assert [each.suppressed for each in first.messages] == [0, 0, 4]


def test_a_spool_of_an_older_version_is_used_on(tmp_path: Path) -> None:
    path = str(tmp_path / "it.spool")
    spool = Spool(path, 1 << 20)
    assert spool.add(Batch(SESSION, [message(1)]))
    spool.close()
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("ALTER TABLE batches DROP COLUMN notes")
    spool = Spool(path, 1 << 20)
    assert spool.add(Batch(SESSION, [message(2)]))
    first = spool.first()
    spool.close()
    assert first is not None
    assert first.messages[0].seq == 1


OLD_COLUMNS = """
    time REAL NOT NULL, log_group INTEGER NOT NULL, prefix TEXT, hook INTEGER,
    indev TEXT, outdev TEXT, mark INTEGER, uid INTEGER, hwaddr BLOB,
    protocol INTEGER, source TEXT, source_port INTEGER, destination TEXT, destination_port INTEGER, payload BLOB,
    length INTEGER, session INTEGER, seq INTEGER
"""


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A database of the first version that had sessions."""
    path = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"CREATE TABLE messages ({OLD_COLUMNS})")
        for statement in sqlite._TABLES:
            connection.execute(statement)
        connection.execute("INSERT INTO sessions VALUES (1, 'host', 'boot', 5, 1, NULL)")
        for seq in (1, 2):
            connection.execute(f"INSERT INTO messages VALUES (1000, 5, 'drop: ' {', NULL' * 13}, 1, {seq})")
        connection.execute("PRAGMA user_version = 1")
    return path


def test_a_database_of_version_1_is_brought_up_to_date(version_1: Path) -> None:
    output = collect.output(str(version_1))
    output.begin()
    output.write(Batch(SESSION, [message(2), message(3, testing.tcp(flags=2))]))  # the first one is there
    output.close()
    assert rows(version_1, "seq, tcp_flags") == [(1, None), (2, None), (3, 2)]
    with contextlib.closing(sqlite3.connect(version_1)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)


@pytest.mark.parametrize("question", _queries.QUESTIONS)
def test_questions_about_a_database_that_was_not_brought_up_to_date(question: str, version_1: Path) -> None:
    for answer in _queries.ask(str(version_1), question):
        found = list(answer.rows)
    if question == "top prefixes":
        assert found == [("drop: ", 2)]


# --- limits


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(_limits.time, "monotonic", lambda: now[0])
    return now


def numbers(batch: Batch | None) -> list[int | None]:
    return [] if batch is None else [each.seq for each in batch.messages]


def test_only_the_first_of_each_prefix_pass_in_each_period(clock: list[float]) -> None:
    limiter = _limits.Limiter(_units.rate("2/s"))
    batch = Batch(SESSION, [message(n, prefix="ab"[n % 2]) for n in range(10)], labels={"a": "b"})
    passed = limiter.limit(batch)
    assert passed is not None
    assert (numbers(passed), passed.labels, limiter.total) == ([0, 1, 2, 3], {"a": "b"}, 6)
    clock[0] += 0.9
    assert limiter.limit(Batch(SESSION, [message(10, prefix="a")])) is None
    clock[0] += 0.2
    assert numbers(limiter.limit(Batch(SESSION, [message(11, prefix="a")]))) == [11]


def test_how_many_were_left_out_is_told_in_time_and_once(clock: list[float]) -> None:
    limiter = _limits.Limiter(_units.rate("1/s"))
    limiter.limit(Batch(SESSION, [message(n) for n in range(5)]))
    assert limiter.due() == ([], 0)
    clock[0] += 10
    (record,), lost = limiter.due()
    assert (record.seq, record.suppressed, lost) == (4, 4, 0)
    assert str(record).split(" ", 1)[1].startswith("drop: 4 more like this: ")
    assert limiter.due(everything=True) == ([], 0)
    limiter.limit(Batch(SESSION, [message(n) for n in range(5, 7)]))
    (record,), _ = limiter.due(everything=True)
    assert (record.seq, record.suppressed) == (6, 1)


def test_a_long_period_tells_once_a_minute(clock: list[float]) -> None:
    limiter = _limits.Limiter(_units.rate("1/hour"))
    limiter.limit(Batch(SESSION, [message(n) for n in range(5)]))
    clock[0] += 59
    assert limiter.due()[0] == []
    clock[0] += 1
    assert len(limiter.due()[0]) == 1


def test_what_was_lost_before_messages_that_are_left_out_is_told_with_the_next(clock: list[float]) -> None:
    limiter = _limits.Limiter(_units.rate("1/s"))
    assert numbers(limiter.limit(Batch(SESSION, [message(0)]))) == [0]
    assert limiter.limit(Batch(SESSION, [message(3)], 2)) is None
    assert limiter.limit(Batch(SESSION, [message(8)], 4)) is None
    clock[0] += 1
    passed = limiter.limit(Batch(SESSION, [message(10)], 1))
    assert passed is not None
    assert passed.lost == 7
    assert limiter.limit(Batch(SESSION, [message(12)], 1)) is None
    assert limiter.due(everything=True)[1] == 1


def test_further_prefixes_share_a_limit(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_limits, "_MOST_PREFIXES", 2)
    limiter = _limits.Limiter(_units.rate("1/s"))
    passed = limiter.limit(Batch(SESSION, [message(n, prefix=str(n)) for n in range(6)]))
    assert numbers(passed) == [0, 1, 2]
    assert len(limiter._prefixes) == 3


@pytest.mark.parametrize(
    ("text", "rate"), [("100/s", (100, 1)), ("20/minute", (20, 60)), (" 5 / hour", (5, 3600)), ("1/day", (1, 86400))]
)
def test_rates(text: str, rate: tuple[int, int]) -> None:
    assert _units.rate(text) == rate
    assert _units.rate(str(_units.rate(text))) == rate


@pytest.mark.parametrize("text", ["", "100", "0/s", "-1/s", "1.5/s", "100/week", "/s", "s/100", 7, None])
def test_what_is_no_rate(text: Any) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        _units.rate(text)
    if text:
        with pytest.raises(ArgumentError, match="limit: .* is no rate"):
            collect.Collector([5], limit=text)


# --- counts, for metrics


def test_messages_are_counted_by_prefix_interface_and_protocol() -> None:
    counts = _counts.Counts()
    hop_by_hop = testing.udp(bytes(30), source="2001:db8::1", destination="2001:db8::2")
    hop_by_hop = hop_by_hop[:6] + b"\0" + hop_by_hop[7:40] + b"\x11" + bytes(7) + hop_by_hop[40:]
    messages = [
        *[message(n, IFINDEX_INDEV=2) for n in range(3)],
        message(3, testing.tcp(), IFINDEX_OUTDEV=1),
        message(4, icmp(8, 0), IFINDEX_INDEV=2),
        message(5, hop_by_hop, IFINDEX_INDEV=2),
        message(6, b"\x45" + bytes(8) + b"\xfd" + bytes(10), prefix="\x1b[2J"),
    ]
    counts.add(Batch(SESSION, messages, labels={"verdict": "drop"}))
    assert counts.all() == {
        ("5", "drop: ", "drop", "eth0", "udp"): 4,
        ("5", "drop: ", "drop", "lo", "tcp"): 1,
        ("5", "drop: ", "drop", "eth0", "icmp"): 1,
        ("5", "[1b][2J", "drop", "", "other"): 1,
    }


def test_there_are_only_so_many_series(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_counts, "_MOST_SERIES", 2)
    counts = _counts.Counts()
    for _ in range(2):
        counts.add(Batch(SESSION, [message(n, prefix=str(n)) for n in range(5)]))
    assert counts.all() == {
        ("5", "0", "", "", "udp"): 2,
        ("5", "1", "", "", "udp"): 2,
        ("5", "other", "", "other", "other"): 6,
    }


class LogKernel(testing.FakeKernel):
    """Delivers the messages that were fed, and accepts any request."""

    def send(self, datagram: bytes) -> None:
        self.sent.append(datagram)


class Sink(collect.Output):
    scheme = "sink"
    help = "keeps all"

    def __init__(self, name: str = "it") -> None:
        super().__init__(name)
        self.error: OutputError | None = None
        self.got: list[LogMessage] = []
        self.labels: list[dict[str, str]] = []

    def begin(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        if self.error is not None:
            raise self.error
        self.got += batch.messages
        self.labels += [dict(batch.labels)] * len(batch)

    def close(self) -> None:
        pass


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the logs of collectors that are made next read these messages, by group."""

    def feed(messages: dict[int, list[LogMessage]]) -> None:
        monkeypatch.setattr(
            _collector, "Log", lambda group, **options: nfnet.Log(group, sequence=True, transport=kernel(group))
        )

        def kernel(group: int) -> testing.FakeKernel:
            transport = LogKernel()
            transport.interfaces = {1: "lo", 2: "eth0"}
            for each in messages[group]:
                transport.deliver(each.raw)
            return transport

    return feed


def test_the_collector_limits_labels_and_counts(fed: Callable[..., None]) -> None:
    fed({5: [message(n) for n in range(50)], 6: [message(n) for n in range(9)]})
    sink, only = Sink(), Sink("only")
    collector = collect.Collector(
        [Group(5, {"verdict": "drop"}), Group(6, limit="1000/s")],
        [sink],
        labels={"site": "x"},
        limit="10/min",
        count=59,
    )
    collector.add(only, groups=[6])
    collector.count_messages()
    assert collector.run()
    five = [each for each, labels in zip(sink.got, sink.labels) if "verdict" in labels]
    assert [each.seq for each in five] == [*range(10), 49]
    assert [each.suppressed for each in five] == [*[0] * 10, 40]
    assert [each.seq for each in only.got] == list(range(9))
    assert only.labels[0] == {"site": "x"}
    assert collector.summary() == "59 messages, 40 suppressed"
    assert collector.counts is not None
    assert sorted(collector.counts.all().values()) == [9, 50]
    state = {output.name: output for output in collector.state().outputs}
    assert (state["sink:it"].stored, state["sink:only"].stored) == (20, 9)


def test_metrics_of_a_collector(fed: Callable[..., None]) -> None:
    prometheus = pytest.importorskip("prometheus_client")
    fed({5: [message(n, IFINDEX_INDEV=2) for n in range(7)]})
    collector = collect.Collector([Group(5, {"verdict": "drop"})], [Sink()], limit="2/s", count=7)
    registry = prometheus.CollectorRegistry()
    registry.register(metrics.Collector(collector))  # before it runs
    assert "nfnet_collect_suppressed_total 0.0" in prometheus.generate_latest(registry).decode()
    assert collector.run()
    text = prometheus.generate_latest(registry).decode()
    assert (
        'nfnet_collect_messages_total{group="5",interface="eth0",prefix="drop: ",protocol="udp",verdict="drop"} 7.0'
    ) in text
    assert "nfnet_collect_suppressed_total 5.0" in text
    assert 'nfnet_collect_output_messages_total{event="stored",output="sink:it"} 3.0' in text
    assert 'nfnet_collect_output_waiting{output="sink:it"} 0.0' in text
    assert 'nfnet_log_messages_total{event="received",group="5"} 7.0' in text


class Source:
    """Gives batches as NATS does, which must all be acknowledged; it can be away."""

    name = "nats://h"

    def __init__(self, *batches: Batch) -> None:
        self.left = list(batches)
        self.out: list[Received] = []
        self.error: NfnetError | None = None

    def begin(self) -> None:
        pass

    def close(self) -> None:
        pass

    def receive(self, most: int, timeout: float) -> list[Received]:
        if self.error is not None:
            raise self.error
        self.out = [Received(batch, cast(Any, None)) for batch in self.left[:most]]
        self.left = self.left[most:]
        return self.out

    def give_back(self, received: list[Received]) -> None:
        self.left = [each.batch for each in received] + self.left
        self.out = []

    def acknowledge(self, received: list[Received]) -> None:
        self.out = []

    def waiting(self) -> int:
        if self.error is not None:
            raise self.error
        return len(self.left) + len(self.out)


def suppressed(number: int, count: int) -> LogMessage:
    found = message(number)
    found.raw = Annotated(found.raw, suppressed=count)
    return found


def worker(source: Source, *outputs: collect.Output, **options: Any) -> collect.Forwarder:
    return collect.Forwarder(cast(collect.NatsSource, source), outputs, **options)


def test_the_state_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forwarder, "_AGAIN", 0.0)
    monkeypatch.setattr(_forwarder.time, "monotonic", count(100.0, 0.5).__next__)  # so that it looks in each turn
    first, second = Sink("first"), Sink("second")
    second.error = OutputError("it is away")
    source = Source(Batch(SESSION, [message(1), suppressed(2, 20)], 3), Batch(SESSION, [message(3)]))
    said: list[str] = []
    found = []

    def turn() -> None:
        state = forwarder.state()
        found.append([str(state), str(state.source), *map(str, state.outputs)])
        if len(found) == 6:
            second.error = None
        elif len(found) == 16:
            source.error = NfnetError("no route")
        elif len(found) == 26:
            forwarder.stop()

    forwarder = worker(source, first, second, report=said.append)
    assert forwarder.run(turn)
    assert said == ["sink:second: it is away; trying again", "going on", "no route; trying again"]
    assert found[0] == ["0 messages", "nats://h", "sink:first: 0 stored, 0 waiting", "sink:second: 0 stored, 0 waiting"]
    assert found[5][:2] == ["0 messages", "nats://h: 2 batches wait"]
    assert re.fullmatch(r"sink:second: 0 stored, 0 waiting, failing for \d+ s: it is away", found[5][3])
    assert found[15][:2] == ["3 messages, 3 lost, 20 suppressed", "nats://h: 0 batches wait"]
    assert re.fullmatch(r"sink:first: \d+ stored, 0 waiting", found[15][2])  # it got some of them twice
    assert found[15][3] == "sink:second: 3 stored, 0 waiting"
    assert re.fullmatch(r"nats://h: 0 batches wait, failing for \d+ s: no route", found[25][1])


def test_metrics_of_a_worker() -> None:
    prometheus = pytest.importorskip("prometheus_client")
    source = Source(Batch(SESSION, [message(1, IFINDEX_INDEV=2), suppressed(2, 20)], 3, labels={"verdict": "drop"}))
    forwarder = worker(source, Sink(), count=2)
    registry = prometheus.CollectorRegistry()
    registry.register(metrics.Collector(forwarder))
    text = prometheus.generate_latest(registry).decode()
    assert 'nfnet_collect_source_failing{source="nats://h"} 0.0' in text
    assert "nfnet_collect_source_waiting{" not in text  # not known yet
    assert forwarder.run()
    forwarder._care()
    text = prometheus.generate_latest(registry).decode()
    for line in (
        'nfnet_collect_messages_total{group="5",interface="eth0",prefix="drop: ",protocol="udp",verdict="drop"} 1.0',
        "nfnet_collect_suppressed_total 20.0",
        "nfnet_collect_lost_total 3.0",
        'nfnet_collect_output_messages_total{event="stored",output="sink:it"} 2.0',
        'nfnet_collect_output_failing{output="sink:it"} 0.0',
        'nfnet_collect_source_waiting{source="nats://h"} 0.0',
    ):
        assert line in text.splitlines()


def test_a_worker_tells_systemd_of_its_source(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_forwarder, "_AGAIN", 0.0)
    source = Source()
    source.error = NfnetError("no route")
    forwarder = worker(source, Sink(), report=lambda text: None)
    running = collect_command._Running(forwarder)
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        running.turn()
        if turns == 2:
            running._service._ready = False  # so that it says its state again
            running.turn()
            running.stop()

    assert forwarder.run(turn)
    told = systemd.told()
    assert told[0] == "STATUS=0 messages"
    assert {"READY=1", "WATCHDOG=1", "STOPPING=1"} <= set(told)
    assert any(line.startswith("STATUS=0 messages; nats://h, failing for ") for line in told)


# --- the state of outputs, and signs of life


def test_the_state_of_an_output_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery, "_AGAIN", 0.0)
    sink = Sink()
    sink.error = OutputError("it is away")
    delivery = Delivery(sink, Spool(str(tmp_path / "s"), 1 << 20), lambda text: None)
    delivery.put(Batch(SESSION, [message(1), message(2)]))
    state = delivery.state()
    assert (state.stored, state.waiting, state.error, state.busy) == (0, 2, "it is away", 0.0)
    assert str(state).startswith(f"sink:it: 0 stored, 2 waiting in {tmp_path}/s (")
    assert str(state).endswith("failing for 0 s: it is away")
    sink.error = OutputError("for good", lasting=True)
    delivery.flush()
    state = delivery.state()
    assert (state.broken, state.missed) == (True, 2)
    assert str(state).endswith("2 lost to it, given up: for good")
    delivery.close()


def test_an_output_that_hangs_is_busy() -> None:
    class Hanging(Sink):
        def write(self, batch: Batch) -> None:
            reading.recv(1)

    reading, writing = socket.socketpair()
    with reading, writing:
        delivery = Delivery(Hanging(), Memory(1 << 20), lambda text: None, apart=True)
        assert delivery.busy == 0
        delivery.put(Batch(SESSION, [message(1)]))
        first = delivery.busy
        assert first > 0
        assert delivery.state().waiting == 1
        assert delivery.busy > first
        writing.send(b"x")
        assert delivery.finish(lambda: False)
        assert (delivery.busy, delivery.state().waiting) == (0, 0)
        delivery.close()


class Systemd:
    """The other end of sd_notify."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.setblocking(False)

    def told(self) -> list[str]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found += self.socket.recv(4096).decode().split("\n")
        return found


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Systemd]:
    name = str(tmp_path / "notify")
    if request.param == "abstract":
        name = f"@nfnet-{os.getpid()}-{id(request)}"
    found = Systemd(name.replace("@", "\0"))
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with found.socket:
        yield found


def test_systemd_is_told(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [5000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    status, well = ["starting"], [True]
    service = Service(lambda: status[0], lambda seconds: well[0] and seconds == 60)
    assert systemd.told() == []
    service.turn()
    assert systemd.told() == ["STATUS=starting", "READY=1", "WATCHDOG=1"]
    now[0] += 10
    status[0] = "7 messages"
    service.turn()
    assert systemd.told() == ["STATUS=7 messages"]
    now[0] += 10
    well[0] = False  # the watchdog hears nothing until all is well again
    for _ in range(3):
        service.turn()
        now[0] += 30
    assert systemd.told() == []
    well[0] = True
    service.turn()
    assert systemd.told() == ["WATCHDOG=1"]
    service.reload()
    told = systemd.told()
    assert told[0] == "RELOADING=1"
    assert told[1].removeprefix("MONOTONIC_USEC=").isdecimal()
    service.turn(reloading=True)
    assert "READY=1" not in systemd.told()
    service.turn()
    assert systemd.told() == ["READY=1"]
    service.stopping()
    assert systemd.told() == ["STOPPING=1"]


def test_a_watchdog_of_another_process_is_none_of_ours(systemd: Systemd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Service(lambda: "x", lambda seconds: True).turn()
    assert "WATCHDOG=1" not in systemd.told()


def test_nobody_is_told_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service = Service(lambda: pytest.fail("asked"), lambda seconds: pytest.fail("asked"))
    service.turn()
    service.reload()
    service.stopping()


def test_an_output_that_hangs_keeps_the_watchdog_waiting(
    systemd: Systemd, fed: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fed({5: [message(1)]})
    collector = collect.Collector([5], [Sink()])
    running = collect_command._Running(collector)
    running.turn()
    assert "WATCHDOG=1" in systemd.told()
    monkeypatch.setattr(Delivery, "busy", 61.0)
    assert not running._is_well(60.0)
    assert running._is_well(62.0)
    monkeypatch.undo()
    collector.close()


# --- the configuration

CONFIGURATION = """\
limit = "100/s"
process = true
metrics = "127.0.0.1:9464"

[labels]
site = "berlin"

[[group]]
number = 5
verdict = "drop"
limit = "1/s"
labels = { line = "1" }

[[output]]
to = "log.jsonl"
groups = [5]

[[output]]
to = "sqlite:firewall.db"
keep = "90d"
"""


def test_a_configuration_says_limits_labels_and_groups(tmp_path: Path) -> None:
    path = tmp_path / "collect.toml"
    path.write_text(CONFIGURATION)
    found = read_settings(path, endpoint=endpoint)
    assert found.groups == [Group(5, {"line": "1", "verdict": "drop"}, _units.Rate(1, 1))]
    assert (found.limit, found.process, found.conntrack) == ((100, 1), True, False)
    assert found.metrics == ("127.0.0.1", 9464)
    assert [output.groups for output in found.outputs] == [(5,), None]


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ('"100/s"', "100", 1, "limit: 100 is no rate, such as 100/s"),
        ('limit = "100/s"', 'limt = "100/s"', 1, "unknown key 'limt'; did you mean 'limit'?"),
        ("true", '"perhaps"', 2, "process: 'perhaps' is neither yes nor no"),
        ("127.0.0.1:9464", "127.0.0.1", 3, "'127.0.0.1' is no port, such as 9464, or address and port"),
        ("127.0.0.1:9464", "::1:9464", 3, "an IPv6 address must be in brackets"),
        ("127.0.0.1:9464", "127.0.0.1:99999", 3, "99999 must be in 1..65535"),
        ('"berlin"', '"berlin', 6, "a text without the quote at its end?"),
        ('"berlin"', "berlin", 6, "texts stand in quotes"),
        ('"drop"', '"block"', 10, "verdict: 'block' is none of accept, drop, reject"),
        ("1/s", "1/eon", 11, "limit: '1/eon' is no rate"),
        ('line = "1"', "line = 1", 12, "label line is 1 and must be a string"),
        ('labels = { line = "1" }', "[group.labels]\nline = 1", 12, "label line is 1 and must be a string"),
        ('labels = { line = "1" }', 'labels = "x"', 12, "labels are a table: [group.labels]"),
        ('to = "log.jsonl"', 'too = "log.jsonl"', 15, "[[output]] without 'to'; is that meant by 'too'?"),
        ("groups = [5]", "groups = 5", 16, "groups: 5 is no list of groups, such as [5, 6]"),
        ("groups = [5]", "groups = [6]", 16, "groups: 6 is none of the groups of this file"),
        ("groups = [5]", "group = [5]", 16, "jsonl has no setting 'group'; did you mean 'groups'?"),
        ('[[output]]\nto = "sql', '[output]\nto = "sql', 18, "two brackets each time"),
        ('to = "sqlite:firewall.db"\nkeep = "90d"', 'to = "log.jsonl"', 19, "log.jsonl is there twice"),
        ("keep", "kepe", 20, "sqlite has no setting 'kepe'; did you mean 'keep'?"),
    ],
)
def test_what_is_wrong_with_it_is_said_with_its_line(
    old: str, new: str, line: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collect.toml"
    assert CONFIGURATION.count(old) == 1
    path.write_text(CONFIGURATION.replace(old, new))
    assert text in refusal(path, line, capsys)


@pytest.mark.parametrize(("cut", "text"), [("[[group]]", "no log group"), ("[[output]]", "no output")])
def test_a_configuration_without_groups_or_outputs(
    cut: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collect.toml"
    path.write_text(CONFIGURATION[: CONFIGURATION.index(cut)])
    assert cli.main(["collect", "--config", str(path), "--check"]) == 2
    errors = capsys.readouterr().err
    assert text in errors
    assert str(path) in errors


def test_the_configuration_beside_the_unit(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[1] / "examples" / "systemd" / "collect.toml"
    assert cli.main(["collect", "--config", str(path), "--check"]) == 0
    assert capsys.readouterr().out == "groups 5 to sqlite:/var/lib/nfnet/firewall.db\n"
