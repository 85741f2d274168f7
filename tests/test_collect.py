"""The collector without a kernel: outputs, their spools, and failures."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nfnet
from nfnet import ArgumentError, LogMessage, NfnetError, _ecs, cli, collect, testing
from nfnet._annotated import Annotated
from nfnet.collect import (
    Batch,
    OutputError,
    _batch,
    _collector,
    _delivery,
    _outputs,
    _queries,
    _settings,
    sqlite,
)
from nfnet.collect._batch import consecutive
from nfnet.collect._delivery import Delivery
from nfnet.collect._spool import Memory, Spool, Store

from .collector import MOMENTS, PACKETS, SESSION, batch, message, numbers, outputs, refusal
from .live.conftest import wait_for

# --- JSON

LINK = {
    "IFINDEX_INDEV": 1,
    "IFINDEX_PHYSINDEV": 2,
    "HWADDR": {"length": 6, "address": b"\2\0\0\0\0\1\0\0"},
    "HWTYPE": 1,
    "HWLEN": 14,
    "HWHEADER": b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\0",
}
PROCESS = nfnet.Process(7, "curl", "/usr/bin/curl", ("curl", "100%s"), 0, "/system.slice/a.service")


@given(
    st.lists(PACKETS, min_size=1, max_size=5),
    st.one_of(st.just({}), st.builds(lambda s: {"TIMESTAMP": {"seconds": s, "microseconds": s % 1_000_000}}, MOMENTS)),
    st.binary(max_size=12).map(lambda data: data.replace(b"\0", b"%s{}").decode("utf-8", "surrogateescape")),
    st.sampled_from([{}, {"IFINDEX_INDEV": 2}, {"IFINDEX_OUTDEV": 1, "UID": 0, "GID": 7, "MARK": 3}, LINK]),
    st.booleans(),
    st.sampled_from([{}, {"process": PROCESS}, {"suppressed": 3}]),
)
def test_the_quick_lines_say_what_the_table_says(
    packets: list[bytes],
    when: dict[str, Any],
    prefix: str,
    attributes: dict[str, Any],
    numbered: bool,
    note: dict[str, Any],
) -> None:
    top = {"labels": {"site": "100 %"}}
    write = _ecs.JsonLines(top, group=5)
    for _ in range(2):  # the second time lines are remembered
        messages = [
            message(n, packet, prefix=prefix, **attributes, **when, **({} if numbered else {"SEQ_GLOBAL": n}))
            for n, packet in enumerate(packets)
        ]
        for each in messages if note else ():
            each.raw = Annotated(each.raw, **note)
        lines = write(messages, 1_000_000_001_234).splitlines()
        assert [json.loads(line) for line in lines] == [
            _ecs.fields(each, 1_000_000_001_234, {"group": 5}, top) for each in messages
        ]


def test_metadata_are_equal_where_only_the_packet_differs() -> None:
    one = message(1, testing.udp(b"a"), prefix="p", TIMESTAMP={"seconds": 1, "microseconds": 2})
    two = message(2, testing.udp(b"another"), prefix="p", TIMESTAMP={"seconds": 3, "microseconds": 4})
    assert one.metadata == two.metadata
    for other in ({"prefix": "q"}, {"MARK": 1}, {"IFINDEX_INDEV": 1}):
        values = {"prefix": "p", "TIMESTAMP": {"seconds": 1, "microseconds": 2}, **other}
        assert message(1, testing.udp(b"a"), **values).metadata != one.metadata
    assert message(1, prefix="p").metadata == message(9, prefix="p").metadata


def test_names_of_labels_may_be_anything() -> None:
    labels = {"50%": "100 %", "%s": "%d", '"': "\\"}
    line = _ecs.JsonLines(labels=labels)([message(1)], 0)
    assert json.loads(line)["nfnet"]["labels"] == labels


# --- losses


def test_a_gap_within_what_was_read_is_found_where_it_is() -> None:
    found, expected = consecutive(batch(3, 4, 8, 9), 2)
    assert [(each.lost, [m.seq for m in each.messages]) for each in found] == [(1, [3, 4]), (3, [8, 9])]
    assert expected == 10
    assert consecutive(batch(10, 11), expected)[0][0].lost == 0


LAST = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        ([[LAST - 1, LAST, 0, 1]], [(0, 0, [LAST - 1, LAST]), (1, 0, [0, 1])]),
        ([[LAST - 1, LAST], [0, 1]], [(0, 0, [LAST - 1, LAST]), (1, 0, [0, 1])]),
        ([[LAST - 1], [1]], [(0, 0, [LAST - 1]), (1, 2, [1])]),  # LAST and 0 are lost
        ([[LAST - 1], [LAST], [3, 5, 6]], [(0, 0, [LAST - 1]), (0, 0, [LAST]), (1, 3, [3]), (1, 1, [5, 6])]),
        ([[LAST - 1, LAST, 0, LAST, 0]], [(0, 0, [LAST - 1, LAST]), (1, 0, [0]), (1, LAST - 1, [LAST]), (2, 0, [0])]),
    ],
)
def test_a_new_session_begins_when_the_numbers_begin_at_0_again(
    read: list[list[int]], expected: list[tuple[int, int, list[int]]]
) -> None:
    """After 2^32 messages."""
    session, number = SESSION, LAST - 1
    sessions, found = [SESSION], []
    for each in read:
        batches, number = consecutive(batch(*each, session=session), number)
        for piece in batches:
            session = piece.session
            if session not in sessions:
                assert session[:3] == SESSION[:3]
                assert session.started > sessions[-1].started
                sessions.append(session)
            found.append((sessions.index(session), piece.lost, [message.seq for message in piece.messages]))
    assert found == expected


def test_numbers_of_a_session_that_begins_while_the_clock_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batch.time, "time_ns", lambda: 0)
    assert SESSION.next() == SESSION._replace(started=2)


def test_a_gap_is_a_record_in_each_output(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("log.jsonl", "log.txt", "log.db", "log.pcapng")]
    for file in files:
        output = collect.output(str(file))
        output.begin()
        output.write(batch(7, lost=6))
        output.close()
    first, second = map(json.loads, files[0].read_text().splitlines())
    assert (first["nfnet"]["lost"], second["event"]["sequence"]) == (6, 7)
    assert "6 messages of group 5 lost" in files[1].read_text().splitlines()[0]
    with contextlib.closing(sqlite3.connect(files[2])) as connection:
        assert connection.execute("SELECT seq, count FROM losses").fetchall() == [(7, 6)]
    from nfnet import captures

    assert [record.comment for record in captures.read(files[3])] == ["nfnet: 6 messages lost", "7"]


# --- a database


def stored(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [int(prefix) for (prefix,) in connection.execute("SELECT prefix FROM messages")]


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Iterator[Delivery]:
    monkeypatch.setattr(_delivery, "_AGAIN", 0.0)
    monkeypatch.setattr(sqlite, "_LOCK_PATIENCE", 0.0)
    output = sqlite.Sqlite(str(tmp_path / "log.db"))
    output.begin()
    delivery = Delivery(output, Memory(64 << 20), said.append, name="db")
    yield delivery
    delivery.close()


# Damage to a database, and SQLite's message for it.
TROUBLE = {
    "full": ("PRAGMA max_page_count = 2", "database or disk is full"),
    "read-only": ("PRAGMA query_only = 1", "attempt to write a readonly database"),
    "gone": ("", ""),
    "no table": ("DROP TABLE messages", ""),
}


@pytest.mark.parametrize("what", TROUBLE)
def test_no_batch_is_lost_to_a_database_that_fails_for_a_while(
    database: Delivery, what: str, tmp_path: Path, said: list[str]
) -> None:
    database.put(batch(0))
    assert isinstance(database.output, sqlite.Sqlite)
    assert database.output._connection is not None
    statement, text = TROUBLE[what]
    database.output._connection.execute(statement)
    if what == "gone":
        for name in ("log.db", "log.db-wal", "log.db-shm"):
            (tmp_path / name).rename(tmp_path / name.replace("log", "moved"))
    for number in range(1, 20):
        database.put(Batch(SESSION, [message(number, testing.udp(bytes(1000)))]))
        database.flush()
    assert database.finish(lambda: False)
    database.close()
    assert stored(tmp_path / "log.db") == list(range(what in ("gone", "no table"), 20))
    if text:
        assert said[0] == f"db: {text}; messages are kept, to be stored later"
        assert said[-1].endswith(" stored late")
        assert len(said) == 2
    assert stat.S_IMODE((tmp_path / "log.db").stat().st_mode) == 0o600


def test_what_is_kept_is_bounded_and_what_is_not_is_said(
    database: Delivery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    one = batch(0)
    database.store = Memory(10 * (one.size + 500))
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(13):
            database.put(batch(number))
            database.flush()
        other.execute("ROLLBACK")
        assert not database.finish(lambda: False)
    database.close()
    assert stored(tmp_path / "log.db") == list(range(10))
    assert said[-1] == "db: 3 messages not stored: database is locked"


def test_what_had_no_room_is_a_loss_of_the_next_record(database: Delivery, tmp_path: Path) -> None:
    database.store = Memory(batch(0).size + 500)
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for number in range(3):
            database.put(batch(number))
        other.execute("ROLLBACK")
        database.flush()
        database.put(batch(3))
    with contextlib.closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        assert connection.execute("SELECT seq, count FROM losses").fetchall() == [(3, 2)]


def test_a_repeat_is_not_stored_twice(tmp_path: Path) -> None:
    for _ in range(2):  # also by another process
        output = sqlite.Sqlite(str(tmp_path / "log.db"))
        output.begin()
        output.write(batch(1, 2, lost=1))
        output.write(batch(2, 3))
        output.write(batch(1, session=SESSION._replace(started=2)))  # another one with this number
        output.close()
    assert stored(tmp_path / "log.db") == [1, 2, 3, 1]


def test_an_older_database_is_brought_up_to_date_and_a_newer_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(sqlite._MESSAGES)
        connection.execute(f"INSERT INTO messages VALUES (1.5, 5, '7' {', NULL' * 12})")
    output = sqlite.Sqlite(str(path))
    output.begin()
    output.write(batch(8))
    output.close()
    assert stored(path) == [7, 8]
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {sqlite.VERSION + 1}")
    with pytest.raises(NfnetError, match="made by a newer nfnet"):
        sqlite.Sqlite(str(path)).begin()


def test_old_rows_and_too_many_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log.db"
    monkeypatch.setattr(sqlite, "_TRIM_ROWS", 10)
    output = collect.output(str(path), {"keep": "1h"})
    output.begin()
    old = Batch(SESSION, [message(n) for n in range(25)], read_ns=time.time_ns() - 3700 * 10**9)
    output.write(old)
    output.write(batch(*range(100, 200)))
    output.idle()
    assert stored(path) == list(range(100, 200))
    output.close()
    small = collect.output(str(path), {"max_size": "48k"})
    small.begin()
    assert isinstance(small, sqlite.Sqlite)
    before = small._size(small._open())
    small.write(batch(*range(200, 1000)))
    assert small._size(small._open()) > 48 << 10
    small.idle()
    assert small._size(small._open()) <= max(48 << 10, before)
    left = stored(path)
    assert left
    assert left == list(range(1000 - len(left), 1000))
    small.close()


# --- files


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Callable[..., collect.Output]]:
    with outputs(tmp_path / "log.jsonl") as make:
        yield make


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_a_renamed_file_is_made_anew(lines: Callable[..., collect.Output], tmp_path: Path) -> None:
    output, path = lines(), tmp_path / "log.jsonl"
    output.write(batch(1))
    path.rename(tmp_path / "log.1")
    output.write(batch(2))
    path.rename(tmp_path / "log.2")
    path.touch(0o600)  # as logrotate does with "create"
    output.write(batch(3))
    path.rename(tmp_path / "log.3")
    output.reopen()
    output.write(batch(4))
    path.unlink()
    output.write(batch(5))
    assert [numbers(tmp_path / f"log.{n}") for n in (1, 2, 3)] == [[1], [2], [3]]
    assert numbers(path) == [5]
    with path.open("r+b") as file:
        file.truncate(0)  # as logrotate does with "copytruncate"
    output.write(batch(6))
    assert numbers(path) == [6]


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_is_rotated_by_size(compress: bool, lines: Callable[..., collect.Output], tmp_path: Path) -> None:
    output = lines(rotate_size="1k", compress=compress, keep=50)
    for number in range(20):
        output.write(batch(number))
    output.close()
    rotated = sorted(tmp_path.glob("log.jsonl.*"))
    assert len(rotated) > 5
    assert numbers(*rotated, tmp_path / "log.jsonl") == list(range(20))
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in rotated)
    if compress:
        lines(compress=True).close()  # rotated files that the thread had not compressed yet
        assert all(file.suffix == ".gz" for file in tmp_path.glob("log.jsonl.*"))


def test_only_so_many_files_are_kept(lines: Callable[..., collect.Output], tmp_path: Path) -> None:
    other = tmp_path / "log.jsonl.mine"
    other.touch()
    output = lines(rotate_size="1k", keep=2)
    for number in range(20):
        output.write(batch(number))
    output.close()
    lines(keep=2).close()
    assert other.exists()
    assert len(list(tmp_path.glob("log.jsonl.2*"))) == 2


def test_a_file_is_rotated_by_time(
    lines: Callable[..., collect.Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, now = lines(rotate_time="1h"), time.time()
    output.write(batch(1))
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    output.idle()
    output.idle()  # nothing is in the new one: it stays
    output.write(batch(2))
    (rotated,) = tmp_path.glob("log.jsonl.*")
    assert (numbers(rotated), numbers(tmp_path / "log.jsonl")) == ([1], [2])


def test_a_write_that_fails_leaves_no_half_line(
    lines: Callable[..., collect.Output], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, write = lines(), os.write
    output.write(batch(1))

    def full(fd: int, data: bytes) -> int:
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return write(fd, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match="No space left"):
        output.write(batch(2, 3))
    monkeypatch.undo()
    output.write(batch(2, 3))
    assert numbers(tmp_path / "log.jsonl") == [1, 2, 3]


# --- the end


class FakeLog:
    """What the collector uses of a log: a descriptor to wait for, which is never readable, and a context."""

    group = 5
    counters = SimpleNamespace(lost=0)

    def __init__(self) -> None:
        self._ends = os.pipe()

    def fileno(self) -> int:
        return self._ends[0]

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *details: object) -> None:
        for end in self._ends:
            os.close(end)


def test_what_came_while_the_process_was_paused_at_its_end_is_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = 100.0, 0

    class Paused(FakeLog):
        """A log that gets a message after the last read before the end; then the process pauses."""

        def __init__(self, group: int, **options: Any) -> None:
            super().__init__()

        def process(self, take: Callable[[LogMessage], object]) -> None:
            nonlocal now, looks
            looks += 1
            if looks == 1:
                collector.stop()
            elif looks == 2:
                now += 10
            elif looks == 3:
                take(message(0))

    output = Slow()
    output.go.set()
    monkeypatch.setattr(_collector, "Log", Paused)
    collector = collect.Collector([5], report=print)
    collector.add(output)
    with monkeypatch.context() as patch:
        patch.setattr(_collector.time, "monotonic", lambda: now)
        assert collector.run()
    assert output.got == [0]
    assert looks == 4


class Scripted(FakeLog):
    """A log that is read so many times, each time with messages of these numbers, all with the same prefix."""

    def __init__(self, collector: collect.Collector, read: list[list[int]]) -> None:
        super().__init__()
        self._collector = collector
        self._read = iter(read)

    def process(self, take: Callable[[LogMessage], object]) -> None:
        numbers = next(self._read, None)
        if numbers is None:
            self._collector.stop()
        for number in numbers or ():
            take(message(number, prefix="same: "))


def collect_scripted(read: list[list[int]], *outputs: collect.Output, **options: Any) -> None:
    collector = collect.Collector([5], outputs, report=print, **options)
    collector.logs = (Scripted(collector, read),)  # type: ignore[assignment]
    assert collector.run()


def test_nothing_more_is_read_while_no_output_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in the receive buffer, which is larger."""
    monkeypatch.setattr(_delivery, "_AGAIN", 0.0)
    monkeypatch.setattr(_collector, "_MOST_IN_MEMORY", 100_000)  # some 150 messages
    output, turns = Slow(), 0
    output.go.set()
    output.error = OutputError("it is away")
    collector = collect.Collector([5], [output], report=print)
    collector.logs = (Scripted(collector, [list(range(n, n + 20)) for n in range(0, 1000, 20)]),)  # type: ignore[assignment]

    def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 100:
            assert 40 <= collector.seen < 200
            output.error = None

    assert collector.run(turn)
    assert output.got == list(range(1000))
    (state,) = collector.state().outputs
    assert (state.stored, state.missed) == (1000, 0)


def test_what_waits_at_the_end_is_read_when_a_slow_output_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_delivery, "_MOMENT", 0.0)
    monkeypatch.setattr(_collector, "_MOST_IN_MEMORY", 100_000)
    monkeypatch.setattr(_collector, "_LAST_STORING", 600.0)
    monkeypatch.setattr(_collector, "_LAST_READING", 600.0)
    output = Slow()
    collector = collect.Collector([5], [output], report=print)
    collector.logs = (Scripted(collector, [list(range(n, n + 20)) for n in range(0, 1000, 20)]),)  # type: ignore[assignment]
    turns = 0

    def turn() -> None:
        nonlocal turns
        turns += 1
        if turns == 50:
            collector.stop()
        elif turns == 100:
            output.go.set()

    assert collector.run(turn)
    assert output.got == list(range(1000))


def test_an_output_that_has_no_room_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_collector, "_MOST_IN_MEMORY", 100_000)
    away, other = Slow(), Slow()
    away.go.set()
    other.go.set()
    away.error = OutputError("it is away")
    collector = collect.Collector([5], [away, other], report=print)
    collector.logs = (Scripted(collector, [list(range(n, n + 20)) for n in range(0, 1000, 20)]),)  # type: ignore[assignment]
    assert not collector.run()
    assert other.got == list(range(1000))


@pytest.mark.parametrize("read", [[[0, 1], [LAST], [0, 1]], [[0, 1, LAST, 0, 1]]], ids=["apart", "together"])
def test_what_has_a_number_again_after_the_wrap_is_no_repeat(read: list[list[int]], tmp_path: Path) -> None:
    database, lines = tmp_path / "log.db", tmp_path / "log.jsonl"
    collect_scripted(read, collect.output(str(database)), collect.output(str(lines)))
    assert [line["event"].get("sequence") for line in lines_of(lines)] == [0, 1, None, LAST, 0, 1]
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT session, seq FROM messages").fetchall() == [
            *[(1, 0), (1, 1), (1, LAST)],
            *[(2, 0), (2, 1)],
        ]
        assert connection.execute("SELECT session, seq, count FROM losses").fetchall() == [(1, LAST, LAST - 2)]


def test_what_a_limit_left_out_before_the_wrap_has_its_own_session(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    collect_scripted([[0, 1, LAST], [0, 1]], collect.output(str(database)), limit="1/hour")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute("SELECT session, seq, coalesce(suppressed, 0) FROM messages").fetchall()
    assert found == [(1, 0, 0), (1, LAST, 2), (2, 1, 2)]


# --- spool, and outputs that are slow


class Slow(collect.Output):
    scheme = "slow"
    help = "waits"

    def __init__(self) -> None:
        super().__init__("it")
        self.go = threading.Event()
        self.in_time = True
        self.error: Exception | None = None
        self.got: list[int] = []

    def begin(self) -> None:
        pass

    def write(self, batch: Batch) -> None:
        self.in_time &= self.go.wait(60)
        if self.error is not None:
            raise self.error
        self.got += [message.seq or 0 for message in batch.messages]

    def close(self) -> None:
        pass


def test_a_slow_output_holds_nobody_up_and_gets_all(tmp_path: Path, said: list[str]) -> None:
    slow = Slow()
    delivery = Delivery(slow, Spool(str(tmp_path / "it.spool"), 1 << 20), said.append, apart=True)
    for number in range(10):
        delivery.put(batch(number))
        delivery.flush()
    assert len(delivery.store) == 10  # also the batch that is being written: that can take forever
    slow.go.set()
    assert wait_for(lambda: delivery.flush() or not len(delivery.store))
    assert delivery.finish(lambda: False)
    delivery.close()
    assert slow.got == list(range(10))
    assert slow.in_time


def test_the_spool_outlives_the_process(tmp_path: Path, said: list[str]) -> None:
    slow, path = Slow(), str(tmp_path / "it.spool")
    slow.go.set()
    slow.error = OutputError("it is away")
    delivery = Delivery(slow, Spool(path, 1 << 20), said.append)
    delivery.put(Batch(SESSION, [message(1, IFINDEX_INDEV=2)], 4, 77, {"site": "here"}))
    delivery.put(batch(2))
    assert delivery.finish(lambda: False)
    delivery.close()
    assert said == [
        "slow:it: it is away; messages are kept, to be stored later",
        "slow:it: 2 messages in the spool, to be stored the next time",
    ]
    spool = Spool(path, 1 << 20)
    first = spool.first()
    assert first is not None
    assert (first.session, first.lost, first.read_ns, first.labels) == (SESSION, 4, 77, {"site": "here"})
    assert (first.messages[0].seq, first.messages[0].indev_name) == (1, "eth0")
    slow.error = None
    delivery = Delivery(slow, spool, said.append)
    delivery.put(batch(3))
    delivery.flush()
    assert slow.got == [1, 2, 3]
    delivery.close()


@pytest.mark.parametrize("make", [lambda path: Memory(3000), lambda path: Spool(path, 400)], ids=["memory", "disk"])
def test_stores_are_bounded(make: Callable[[str], Store], tmp_path: Path) -> None:
    store = make(str(tmp_path / "spool"))
    taken = [store.add(batch(number)) for number in range(30)]
    assert 1 <= sum(taken) < 30
    assert len(store) == sum(taken)
    store.first()
    store.remove_first()
    assert store.add(batch(99))
    while (first := store.first()) is not None:
        last = first.messages[0].seq
        store.remove_first()
    assert (last, len(store)) == (99, 0)
    assert store.add(batch(100))  # also when it was empty in between
    assert (again := store.first()) is not None
    assert again.messages[0].seq == 100
    store.close()


def test_a_mistake_of_an_output_is_reported_and_not_the_end(said: list[str]) -> None:
    slow = Slow()
    slow.go.set()
    slow.error = ZeroDivisionError("mine")
    delivery = Delivery(slow, Memory(1 << 20), said.append)
    delivery.put(batch(1))
    assert said == ["slow:it: ZeroDivisionError: mine; messages are kept, to be stored later"]
    delivery.close()


# --- names


@pytest.mark.parametrize(
    ("to", "settings", "text"),
    [
        ("log.xyz", {}, "names no output"),
        ("sqlit:log.db2", {}, "did you mean 'sqlite'"),
        ("sqlite:", {}, "does not say where"),
        ("log.jsonl", {"rotate_sise": "1M"}, "did you mean 'rotate_size'"),
        ("log.jsonl", {"rotate_size": "much"}, "rotate_size: 'much' is no size"),
        ("log.db", {"keep": "0d"}, "keep: '0d' is no time"),
        ("x.pcapng", {"compress": "perhaps"}, "neither yes nor no"),
    ],
)
def test_wrong_outputs(to: str, settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    os.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=text):
        collect.output(to, settings)
    assert not list(tmp_path.iterdir())


# --- questions

NOBODY = 4_000_000_000  # is called nothing on any machine
ASKED = {
    "top sources": [["10.0.0.1", 15, 15], ["10.0.0.2", 2, 1]],
    "top destinations": [["192.0.2.2", 17]],
    "top prefixes": [["drop: ", 17]],
    "top protocols": [["udp", 17]],
    "top interfaces": [["eth0", 17]],
    "top users": [[str(NOBODY), 17]],
    "per hour": [["1970-01-01 00:00", 17]],
    "losses": [["1970-01-01 00:16:40.000", 5, 3]],
}


@pytest.fixture
def collected(tmp_path: Path) -> str:
    """Fifteen messages to as many ports, two more from another host, all of the same second; three lost before."""
    packets = [testing.udp(b"", source="10.0.0.1", destination_port=port) for port in range(100, 115)]
    packets += [testing.udp(b"", source="10.0.0.2", destination_port=53)] * 2
    messages = [message(n, packet, prefix="drop: ", IFINDEX_INDEV=2, UID=NOBODY) for n, packet in enumerate(packets, 3)]
    output = sqlite.Sqlite(str(tmp_path / "odd%name?.db"))
    output.begin()
    output.write(Batch(SESSION, messages, 3, read_ns=1000 * 10**9))
    output.close()
    return output.target


@pytest.mark.parametrize("question", ASKED)
def test_questions_by_name(question: str, collected: str) -> None:
    for answer in _queries.ask(collected, question):
        rows = [list(row) for row in answer.rows]
    assert rows == ASKED[question]


def test_other_questions(collected: str) -> None:
    def ask(question: str) -> list[Any]:
        return [row for answer in _queries.ask(collected, question) for row in answer.rows]

    assert ask("top ports limit 1") == [("udp", 53, 2, 1)]
    assert ask("scans") == [("10.0.0.1", 15, 1, 15, "1970-01-01 00:16:40.000")]
    assert len(ask("Latest limit 3")) == 3
    assert ask("top  sources last 24h") == []  # they are from 1970
    assert ask("SELECT max(destination_port) FROM messages") == [(114,)]


def test_every_question_has_an_index_to_find_the_time(collected: str) -> None:
    for name, question in _queries.QUESTIONS.items():
        sql, values = _queries.statement(f"{name} last 24h")
        with contextlib.closing(sqlite3.connect(collected)) as connection:
            plan = str(connection.execute(f"EXPLAIN QUERY PLAN {sql}", values).fetchall())
        assert "messages_time" in plan or name == "losses", question


@pytest.mark.parametrize(
    ("question", "error", "text"),
    [
        ("top sorces", ArgumentError, "did you mean 'top sources'"),
        ("top sources last week", ArgumentError, "'week' is no time"),
        ("top sources limit 0", ArgumentError, "'0' is no number"),
        ("SELECT colour FROM messages", NfnetError, "no such column"),
        ("WITH a AS (SELECT 1) DELETE FROM messages", NfnetError, "readonly"),
        ("SELECT 1; SELECT 2", NfnetError, "one statement"),
    ],
)
def test_questions_that_are_none(question: str, error: type[Exception], text: str, collected: str) -> None:
    with pytest.raises(error, match=text):
        list(_queries.ask(collected, question))


def test_no_database_is_made_by_a_question(tmp_path: Path) -> None:
    with pytest.raises(NfnetError, match="unable to open"):
        list(_queries.ask(str(tmp_path / "no.db"), "latest"))
    assert not list(tmp_path.iterdir())


def test_the_query_command(collected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["query", collected, "top", "sources"]) == 0
    assert capsys.readouterr().out == (
        "source    messages  ports\n10.0.0.1        15     15\n10.0.0.2         2      1\n"
    )
    assert cli.main(["query", collected, "--json", "SELECT payload, prefix FROM messages LIMIT 1"]) == 0
    assert json.loads(capsys.readouterr().out)["prefix"] == "drop: "


# --- configuration

GOOD = """\
spool_size = "1G"  # a comment

[labels]
site = "berlin"

[[group]]
number = 5
rule = "hook=input protocol=udp prefix=x"

[[output]]
to = "log.jsonl"
rotate_size = "100M"
compress = true

[[output]]
to = "sqlite:log.db"
keep = "90d"
"""


def test_a_configuration(tmp_path: Path) -> None:
    path = tmp_path / "collect.toml"
    path.write_text(GOOD)
    found = _settings.read_settings(path)
    assert ([group.number for group in found.groups], found.labels, found.spool_size) == (
        [5],
        {"site": "berlin"},
        1 << 30,
    )
    assert found.rules == [(5, "hook=input protocol=udp prefix=x")]
    assert [(each.kind, each.target, each.settings) for each in found.outputs] == [
        (collect.JsonLines, "log.jsonl", {"rotate_size": 100 << 20, "compress": True}),
        (collect.Sqlite, "log.db", {"keep": 90 * 86400}),
    ]


@pytest.mark.parametrize(
    ("old", "new", "line", "text"),
    [
        ("spool_size", "spool_sise", 1, "unknown key 'spool_sise'; did you mean 'spool_size'?"),
        ('"1G"', '"big"', 1, "spool_size: 'big' is no size"),
        ('"1G"', '"1G', 1, ""),
        ('"berlin"', "7", 4, "label site is 7 and must be a string"),
        ("[[group]]", "[group]", 6, "group is one or more tables"),
        ("[[group]]", "[[groups]]", 6, "unknown key 'groups'; did you mean 'group'?"),
        ("number = 5", "number = 70000", 7, "0..65535"),
        ("number = 5\n", "", 6, "[[group]] without 'number'"),
        ("hook=input", "hok=input", 8, "hok=input"),
        ('"log.jsonl"', '"log.jsonx"', 11, "names no output"),
        ("compress = true", 'compress = "maybe"', 13, "compress: 'maybe' is neither yes nor no"),
        ("keep", "kep", 17, "sqlite has no setting 'kep'; did you mean 'keep'?"),
        ("[labels]", "[labels]\n[labels]", 4, ""),
    ],
)
def test_what_is_wrong_with_a_configuration_is_said_with_its_line(
    old: str, new: str, line: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collect.toml"
    assert GOOD.count(old) == 1
    path.write_text(GOOD.replace(old, new))
    assert text in refusal(path, line, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["collect.toml"]


def test_a_good_configuration_passes_the_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "collect.toml"
    path.write_text(GOOD)
    assert cli.main(["collect", "--config", str(path), "--check"]) == 0
    assert capsys.readouterr().out == "groups 5 to jsonl:log.jsonl, sqlite:log.db\n"


def test_the_check_reports_that_the_metrics_cannot_be_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "collect.toml"
    path.write_text('metrics = "127.0.0.1:9464"\n' + GOOD)
    assert cli.main(["collect", "--config", str(path), "--check"]) == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    assert cli.main(["collect", "--config", str(path), "--check"]) == 1
    assert capsys.readouterr().err.startswith("nfnet collect: metrics need prometheus-client: pip install")


# --- third parties


def test_outputs_of_others_are_found_by_their_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "slow", "package:Slow"

        def load(self) -> Any:
            return Slow

    monkeypatch.setattr(_outputs, "entry_points", lambda group: [Entry()] if group == "nfnet.outputs" else [])
    assert collect.known()["slow"] is Slow
    monkeypatch.setattr(Entry, "load", lambda self: dict)
    with pytest.raises(ArgumentError, match="no subclass"):
        collect.known()
