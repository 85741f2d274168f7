"""The collector with real servers, PostgreSQL and NATS: they stop, start, refuse, and fill up; and SIGKILL."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from nfnet import ArgumentError, NfnetError, cli, collect, testing
from nfnet._annotated import Annotated
from nfnet._processes import Process
from nfnet.collect import Batch, OutputError, Session, _nats_client, _nats_source, _packed, _queries, postgresql
from nfnet.collect._output import without_password

from .. import collector
from ..collector import SESSION
from .collecting import Systemd, burst, finish, lines_in, lines_of, sending
from .conftest import TIMEOUT, UID, cannot_run, wait_for
from .programs import is_bound, program
from .servers import PASSWORD, QUOTED, NatsServer, Postgres
from .traffic import Way, logging

BURST = 20_000 if UID == 0 else 500  # the receive buffer of ordinary users is small
KILLS = int(os.environ.get("NFNET_KILLS", "10"))
message = functools.partial(collector.message, prefix="drop: ", IFINDEX_INDEV=2)
NOW = int(time.time()) * 10**9


def driver(name: str) -> None:
    try:
        __import__(name)
    except ImportError:
        cannot_run(f"{name} is not installed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    driver("psycopg")
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def database(cluster: Postgres) -> str:
    """The URL of a database without tables."""
    return cluster.database()


@contextmanager
def nats_server(more: str = "", jetstream: bool = True) -> Iterator[NatsServer]:
    driver("nats")
    server = NatsServer(more, jetstream)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    with nats_server() as server:
        yield server


def rows(url: str, sql: str = "SELECT seq FROM nfnet.messages ORDER BY session, seq") -> list[Any]:
    return Postgres.execute(url, sql)


def count(url: str) -> int:
    return int(rows(url, "SELECT count(*) FROM nfnet.messages")[0])


# With another host name.
NAMED = "import socket, sys; socket.sethostname(sys.argv.pop(1)); from nfnet.cli import main; sys.exit(main())"


@contextmanager
def command(*arguments: object, host: str = "") -> Iterator[subprocess.Popen[str]]:
    """A collector, which is killed at the end."""
    begin = ["unshare", "--uts", sys.executable, "-c", NAMED, host] if host else [sys.executable, "-m", "nfnet"]
    line = [*begin, "collect", *map(str, arguments)]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def collecting(way: Way, *arguments: object, at: str = "router", host: str = "") -> Iterator[subprocess.Popen[str]]:
    """A collector that reads group 5 of a host; it is itself where the servers are."""
    there = f"/proc/{os.getpid()}/fd/{way.net.hosts[at].fileno()}"
    with command("--group", "5", "--netns", there, *arguments, host=host) as process:
        assert wait_for(lambda: is_bound(way.net, group=5, host=at) or process.poll() is not None)
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        yield process


def told(process: subprocess.Popen[str], text: str) -> str:
    """Return the collector's standard error, up to the line with a text."""
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        lines.append(process.stderr.readline())
        assert lines[-1], "".join(lines)
    return "".join(lines)


def batch(*numbers: int, lost: int = 0, session: Session = SESSION, read_ns: int = NOW) -> Batch:
    return Batch(session, [message(number) for number in numbers], lost, read_ns)


@pytest.fixture
def output(database: str) -> Iterator[collect.Output]:
    made = collect.output(database)
    made.create()
    made.begin()
    yield made
    made.close()


# --- PostgreSQL


def test_nothing_of_a_burst_is_lost(way: Way, database: str) -> None:
    with logging(way.net), collecting(way, "--to", database, "--create", "--label", "site=berlin") as process:
        burst(way, BURST)
        assert finish(process) == f"{BURST} messages\n"
    assert rows(database) == list(range(BURST))
    (first,) = rows(
        database,
        "SELECT host(source), host(destination), destination_port, protocol, length, indev, prefix, labels ->> 'site',"
        " log_group, now() - time < interval '1 hour' FROM nfnet.records WHERE seq = 0",
    )
    assert first == ("10.81.1.1", "10.81.2.2", 7000, 17, 29, "to-client", "said: ", "berlin", 5, True)
    assert rows(database, "SELECT family(source), masklen(source) FROM nfnet.messages LIMIT 1") == [(4, 32)]


def test_a_server_that_is_away_holds_nobody_up_and_gets_all_from_the_spool(
    way: Way, cluster: Postgres, database: str, tmp_path: Path
) -> None:
    file, spool = tmp_path / "log.jsonl", tmp_path / "spool"
    with (
        logging(way.net),
        collecting(way, "--to", file, "--to", database, "--create", "--spool", spool) as process,
        sending(way),
    ):
        assert wait_for(lambda: count(database) > 100)
        for how in (signal.SIGINT, signal.SIGQUIT):  # at once, and as if the machine had failed
            with cluster.stopped(how):
                assert QUOTED not in told(process, "messages are kept, to be stored later")
                before = lines_in(file)
                assert wait_for(lambda before=before: lines_in(file) > before + 100)
            told(process, "stored late")
        finish(process)
    written = [line["event"]["sequence"] for line in lines_of(file)]
    assert rows(database) == written == list(range(len(written)))


def test_being_killed_loses_nothing_that_was_stored_and_repeats_nothing(
    way: Way, database: str, tmp_path: Path
) -> None:
    collect.output(database).create()
    chance, sessions = random.Random(7), "SELECT count(DISTINCT session) FROM nfnet.messages"
    arguments = ("--to", database, "--spool", tmp_path / "spool")
    with logging(way.net), sending(way):
        for turn in range(KILLS):
            with collecting(way, *arguments) as process:
                assert wait_for(lambda turn=turn: rows(database, sessions) == [turn + 1])
                time.sleep(chance.random() / 5)  # no event to wait for: any moment will do
                process.kill()
                process.wait(TIMEOUT)
        with collecting(way, *arguments) as process:
            assert wait_for(lambda: rows(database, sessions) == [KILLS + 1])
            finish(process)
    by_session: dict[int, list[int]] = {}
    for session, number in rows(database, "SELECT session, seq FROM nfnet.messages ORDER BY session, seq"):
        by_session.setdefault(session, []).append(number)
    assert len(by_session) == KILLS + 1
    for numbers in by_session.values():
        assert numbers == list(range(len(numbers)))


def test_a_batch_is_there_once_however_often_it_is_written(output: collect.Output, database: str) -> None:
    output.write(batch(1, 2, lost=1))
    other = collect.output(database)
    for _ in range(2):
        output.write_many([batch(1, 2, lost=1), batch(3, 4)])
        other.write(batch(3, 4))
    other.write(batch(1, 2, session=SESSION._replace(started=2)))  # another one with these numbers
    other.write(batch(1, 2, read_ns=NOW + 1000))  # and one after 2^32 messages
    other.close()
    assert rows(database) == [1, 1, 2, 2, 3, 4, 1, 2]
    assert rows(database, "SELECT seq, count FROM nfnet.losses") == [(1, 1)]


def test_two_that_write_the_same_at_the_same_time_write_it_once(database: str) -> None:
    collect.output(database).create()

    def write() -> None:
        other = collect.output(database)
        for number in range(50):
            other.write(batch(2 * number, 2 * number + 1))
        other.close()

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows(database) == list(range(100))


def test_a_clock_that_is_set_back_loses_nothing(output: collect.Output, database: str) -> None:
    day = 86400 * 10**9
    for number, moment in enumerate((NOW, NOW - 40 * day, NOW - 400 * day, 5 * 10**9, NOW + 40 * day, NOW)):
        output.write(batch(2 * number, 2 * number + 1, read_ns=moment))
    early = Batch(SESSION, [message(50, TIMESTAMP={"seconds": 1 << 50, "microseconds": 0})], read_ns=NOW)  # no time
    output.write(early)
    assert rows(database) == [*range(12), 50]
    assert rows(database, "SELECT count(*) FROM nfnet.messages WHERE time < '1971-01-01'") == [2]


def test_partitions_are_made_ahead_and_old_ones_dropped(database: str) -> None:
    output = collect.output(database, {"keep": "3d"})
    output.create()
    output.begin()
    day = 86400 * 10**9
    for age in (0, 1, 3, 5, 400):
        output.write(batch(age, read_ns=NOW - age * day))
    output.idle()
    assert rows(database) == [0, 1, 3]
    names = rows(database, "SELECT relname FROM pg_class WHERE relname ~ '^(messages|batches)_[0-9]{8}$' ORDER BY 1")
    days = [datetime.fromtimestamp((NOW + ahead * day) / 1e9, timezone.utc) for ahead in (-3, -1, 0, 1, 2, 3)]
    expected = [f"{table}_{moment:%Y%m%d}" for table in ("batches", "messages") for moment in days]
    assert set(expected) <= set(names)  # and perhaps those of a day that began meanwhile
    assert len(names) <= len(expected) + 2
    output.write(batch(7, read_ns=NOW - 5 * day))  # its partition is made anew
    output.close()
    assert rows(database) == [0, 1, 3, 7]


def test_a_reader_holds_up_neither_rows_nor_new_partitions(output: collect.Output, database: str) -> None:
    import psycopg

    with psycopg.connect(database) as reader:
        reader.execute("SELECT * FROM nfnet.messages")  # in a transaction, and so locked
        output.write(batch(1))
        output.write(batch(2, read_ns=NOW - 20 * 86400 * 10**9))
    assert rows(database) == [1, 2]


def test_everything_that_a_record_says_is_a_column(output: collect.Output, database: str) -> None:
    packets = [
        testing.tcp(b"", source="2001:db8::1", destination="2001:db8::2", flags=0x12),
        testing.udp(b"data"),
        b"\x45\x00no packet",
    ]
    hwaddr = {"length": 6, "address": b"\2\0\0\0\0\1\0\0"}
    attributes = {"UID": 1000, "GID": 100, "MARK": 0xFFFFFFFF, "IFINDEX_OUTDEV": 9, "HWADDR": hwaddr}
    messages = [message(n, packet, prefix="pré\udcff", **attributes) for n, packet in enumerate(packets)]
    output.write(Batch(SESSION, messages, read_ns=NOW))
    columns = (
        "host(source), source_port, tcp_flags, uid, gid, mark, indev, outdev, hwaddr::text, prefix, length(payload)"
    )
    found = rows(database, f"SELECT {columns} FROM nfnet.messages ORDER BY seq")
    same = (1000, 100, 0xFFFFFFFF, "eth0", "9", "02:00:00:00:00:01", "pré\ufffd")
    assert found == [
        ("2001:db8::1", 40000, 0x12, *same, len(packets[0])),
        ("192.0.2.1", 40000, None, *same, len(packets[1])),
        (None, None, None, *same, len(packets[2])),
    ]


def test_packets_are_left_out_if_that_is_asked_for(database: str) -> None:
    output = collect.output(database, {"payload": "no"})
    output.create()
    output.write(batch(1))
    output.close()
    assert rows(database, "SELECT payload, length FROM nfnet.messages") == [(None, 38)]


def test_questions_have_the_same_answers_as_in_sqlite(
    output: collect.Output, database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packets = [testing.udp(b"", source="10.0.0.1", destination_port=port) for port in range(100, 115)]
    packets += [testing.udp(b"", source="10.0.0.2", destination_port=53)] * 2
    messages = [message(n, packet, UID=1000) for n, packet in enumerate(packets, 3)]
    messages[3].raw = Annotated(messages[3].raw, process=Process(7, "curl", executable="/bin/curl"), suppressed=20)
    other = collect.output(str(tmp_path / "log.db"))
    other.begin()
    for each in (output, other):
        each.write(Batch(SESSION, messages, 3, read_ns=NOW))
    other.close()

    def ask(where: str, question: str) -> list[list[str]]:
        return [[str(value) for value in row] for answer in _queries.ask(where, question) for row in answer.rows]

    for question in _queries.QUESTIONS:
        answer = ask(database, f"{question} last 24h")
        assert sorted(answer) == sorted(ask(other.target, f"{question} last 24h")), question
        assert answer, question
    for question in ("DELETE", "SELECT 1; COMMIT; DELETE", "EXPLAIN ANALYZE DELETE", "WITH a AS (SELECT 1) DELETE"):
        with pytest.raises(NfnetError):
            ask(database, f"{question} FROM nfnet.messages")
    assert count(database) == 17
    assert cli.main(["query", "--json", database, "SELECT source, time FROM messages LIMIT 1"]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "10.0.0.1"
    assert cli.main(["query", database.replace(QUOTED, "wrong"), "latest"]) == 1
    assert "password authentication failed" in capsys.readouterr().err


def run(*arguments: object) -> tuple[int, str]:
    line = [sys.executable, "-m", "nfnet", "collect", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda url: url, "run nfnet collect with --create once"),
        (lambda url: url.replace(QUOTED, "sesame"), "password authentication failed"),
        (lambda url: url.replace("/test", "/none"), "does not exist"),
        (lambda url: url.replace(QUOTED, PASSWORD), "is no URL of a database; write postgresql://"),
        (lambda url: url.replace("postgresql", "postgres"), "did you mean 'postgresql'?"),
        (lambda url: f"{url}?sslmod=require", "is no URL of a database"),
    ],
    ids=["no tables", "wrong password", "no database", "unquoted", "wrong scheme", "wrong parameter"],
)
def test_what_cannot_be_right_is_one_line_without_a_password(
    change: Callable[[str], str], text: str, database: str
) -> None:
    status, errors = run("--group", "5", "--to", change(database))
    assert status in (1, 2)
    assert text in errors
    assert errors.startswith("nfnet collect: ")
    assert errors.count("\n") == 1
    for word in (PASSWORD, QUOTED, "sesame", "r@t", "se:c"):
        assert word not in errors


def test_a_newer_database_is_refused(output: collect.Output, database: str) -> None:
    rows(database, f"UPDATE nfnet.version SET version = {postgresql.VERSION + 1}")
    with pytest.raises(NfnetError, match="made by a newer nfnet"):
        collect.output(database).begin()
    with pytest.raises(NfnetError, match="made by a newer nfnet"):
        collect.output(database).create()


def test_a_server_that_is_not_there_yet_is_waited_for(way: Way, cluster: Postgres, database: str) -> None:
    collect.output(database).create()
    with logging(way.net):
        with cluster.stopped():
            with collecting(way, "--to", database) as process:
                told(process, "messages are kept, to be stored later")
                burst(way, 10)
                cluster.start()
                assert wait_for(lambda: count(database) == 10)
                finish(process)
    assert rows(database) == list(range(10))


def test_what_a_full_disk_refuses_is_stored_when_there_is_room() -> None:
    driver("psycopg")
    server = Postgres(small=32 << 20)
    try:
        server.start()
        url = server.small_database()
        filler = server.inside / "filler"
        filler.write_bytes(bytes(8 << 20))
        output = collect.output(url)
        output.create()
        chance, sent = random.Random(7), []

        def fill() -> None:
            for number in range(1000):
                packet = testing.udp(chance.randbytes(50_000))  # which cannot be compressed
                sent.append(Batch(SESSION, [message(number, packet)], read_ns=NOW))
                output.write(sent[-1])

        with pytest.raises(OutputError, match="No space left on device"):
            fill()
        assert rows(url) == list(range(len(sent) - 1))
        filler.unlink()
        output.write(sent[-1])
        output.close()
        assert rows(url) == list(range(len(sent)))
    finally:
        server.remove()


def test_tables_that_vanish_are_an_error_that_says_what_to_do(output: collect.Output, database: str) -> None:
    output.write(batch(1))
    rows(database, "DROP SCHEMA nfnet CASCADE")
    with pytest.raises(OutputError):
        output.write(batch(2))
    with pytest.raises(OutputError, match="run nfnet collect with --create once"):
        output.write(batch(2))
    collect.output(database).create()
    output.write(batch(2))
    assert rows(database) == [2]


# --- NATS


def stored_in(server: NatsServer, url: str = "") -> list[Batch]:
    """Return and remove the messages in the stream."""
    source = collect.source(url or server.url())
    source.begin()
    found = []
    while received := source.receive(100, 0.5):
        found += [each.batch for each in received]
        source.acknowledge(received)
    source.close()
    return found


def numbers(batches: list[Batch]) -> list[int]:
    return [each.seq or 0 for batch in batches for each in batch.messages]


def test_a_batch_comes_out_as_it_went_in_and_once(nats: NatsServer) -> None:
    output = collect.output(nats.url(), {"compress": "yes"})
    output.create()
    output.begin()
    before = Batch(SESSION, [message(n, UID=7) for n in (4, 5)], 4, NOW, {"site": "berlin"})
    for _ in range(3):
        output.write(before)
    output.close()
    (after,) = stored_in(nats)
    assert (after.session, after.lost, after.read_ns, after.labels) == (SESSION, 4, NOW, {"site": "berlin"})
    assert [each.raw for each in after.messages] == [each.raw for each in before.messages]
    assert [each.indev_name for each in after.messages] == ["eth0", "eth0"]


def test_a_large_batch_goes_in_pieces(nats: NatsServer) -> None:
    output = collect.output(nats.url())
    output.create()
    output.write(Batch(SESSION, [message(n, testing.udp(bytes(60_000))) for n in range(30)], 9))
    output.close()
    found = stored_in(nats)
    assert len(found) > 5
    assert sorted(numbers(found)) == list(range(30))
    assert sum(each.lost for each in found) == 9


def test_a_server_of_messages_that_stops_loses_nothing(way: Way, nats: NatsServer, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    arguments = ("--to", file, "--to", nats.url(), "--create", "--spool", tmp_path / "spool")
    with logging(way.net), collecting(way, *arguments) as process, sending(way):
        assert wait_for(lambda: lines_in(file) > 100)
        for how in (signal.SIGINT, signal.SIGKILL):
            with nats.stopped(how):
                told(process, "messages are kept, to be stored later")
                before = lines_in(file)
                assert wait_for(lambda before=before: lines_in(file) > before + 100)
            told(process, "stored late")
        finish(process)
    written = [line["event"]["sequence"] for line in lines_of(file)]
    assert sorted(numbers(stored_in(nats))) == written == list(range(len(written)))


def test_what_a_full_stream_refuses_is_kept_until_there_is_room(nats: NatsServer) -> None:
    output = collect.output(nats.url(), {"max_size": "100k"})
    output.create()
    for number in range(10):
        output.write(Batch(SESSION, [message(number, testing.udp(bytes(5000)))]))
    sent = 10
    with pytest.raises(OutputError, match="maximum bytes exceeded"):
        output.write(Batch(SESSION, [message(sent, testing.udp(bytes(60_000)))]))
    assert numbers(stored_in(nats)) == list(range(sent))
    output.write(Batch(SESSION, [message(sent)]))
    output.close()
    assert numbers(stored_in(nats)) == [sent]


def test_each_message_goes_to_one_worker_and_again_if_it_was_given_back(nats: NatsServer) -> None:
    output = collect.output(nats.url())
    output.create()
    for number in range(10):
        output.write(batch(number))
    output.close()
    one, two = collect.source(nats.url()), collect.source(nats.url())
    one.begin()
    two.begin()
    mine, others = one.receive(4, 1.0), two.receive(100, 1.0)
    assert sorted(numbers([each.batch for each in mine + others])) == list(range(10))
    one.acknowledge(mine[1:])
    two.acknowledge(others)
    one.give_back(mine[:1])
    again: list[Any] = []
    assert wait_for(lambda: again.extend(two.receive(100, 1.0)) or again)
    assert numbers([each.batch for each in again]) == numbers([mine[0].batch])
    two.acknowledge(again)
    one.close()
    two.close()


def test_what_is_no_batch_is_thrown_away_and_a_newer_one_left(
    nats: NatsServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_nats_source, "_NEWER_AGAIN", 0.1)
    output = collect.output(nats.url())
    assert isinstance(output, collect.Nats)
    output.create()
    good = _packed.pack(batch(1))
    newer = good.replace(b'"version": 1', b'"version": 2')

    async def publish(connection: Any) -> None:
        for data in (b"nonsense", good[:-3], newer, good):
            await connection.jetstream().publish("nfnet.log.x", data)

    output._client.run(publish)
    output.close()
    source = collect.source(nats.url())
    source.begin()
    received = source.receive(100, 1.0)
    assert numbers([each.batch for each in received]) == [1]
    source.acknowledge(received)
    assert len(caplog.messages) == 3
    assert source.receive(1, 1.0) == []
    assert "version 2; known is 1" in caplog.messages[-1]
    assert len(caplog.messages) == 4  # it was delivered again, and the others were not
    source.close()


LOGIN = 'authorization { user: "fw", password: "se:c/r@t" }'
TOKEN = 'authorization { token: "se:c/r@t" }'


@pytest.mark.parametrize(
    ("more", "jetstream", "login", "settings", "text"),
    [
        ("", True, "", (), "there is no stream nfnet: run nfnet collect with --create once"),
        ("", False, "", (), "the server has no JetStream"),
        (LOGIN, True, "", (), "Authorization Violation"),
        (LOGIN, True, "fw:sesame", (), "Authorization Violation"),
        (LOGIN, True, f"fw:{QUOTED}", (), "run nfnet collect with --create once"),
        (TOKEN, True, "sesame", (), "Authorization Violation"),
        (TOKEN, True, QUOTED, (), "run nfnet collect with --create once"),
        ("", True, "", ("tls=yes",), "the server offers no TLS"),
    ],
)
def test_what_a_server_of_messages_refuses_is_one_line(
    more: str, jetstream: bool, login: str, settings: tuple[str, ...], text: str
) -> None:
    with nats_server(more, jetstream) as server:
        for option in ("--group 5 --to", "--to jsonl:- --from"):
            status, errors = run(*option.split(), server.url(login), *settings)
            assert status in (1, 2)
            assert text in errors
            assert errors.startswith("nfnet collect: ")
            assert errors.count("\n") == 1
            for word in (PASSWORD, QUOTED, "sesame"):
                assert word not in errors


def make_certificate(directory: Path, name: str) -> None:
    """A certificate that signs itself, NAME.pem, and its key."""
    command = [program("openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    command += ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")]
    subprocess.run([*command, *files], check=True, capture_output=True, timeout=TIMEOUT)
    (directory / f"{name}.key").chmod(0o644)  # the server is another user


def test_connections_are_encrypted_and_both_sides_known(tmp_path: Path) -> None:
    driver("nats")
    server = NatsServer()
    try:
        for name in ("server", "client", "other"):
            make_certificate(server.directory, name)
        files = {name: str(server.directory / name) for name in ("server.pem", "client.pem", "client.key", "other.pem")}
        server.configure(
            f'tls {{ cert_file: "{files["server.pem"]}", key_file: "{server.directory}/server.key",'
            f' ca_file: "{files["client.pem"]}", verify: true }}'
        )
        server.start()
        mine = {"certificate": files["client.pem"], "key": files["client.key"]}
        output = collect.output(server.url(), {"ca": files["server.pem"], **mine})
        output.create()
        output.begin()
        output.write(batch(1, 2))
        output.idle()
        output.close()
        for settings, text in (
            ({"ca": files["other.pem"], **mine}, "TLS: "),
            ({"tls": "yes"}, "TLS: "),
            ({"ca": files["server.pem"]}, "."),  # the server refuses, at a time of its choice
        ):
            wrong = collect.output(server.url(), settings)
            with pytest.raises(NfnetError, match=text):
                wrong.create()
            wrong.close()
        with pytest.raises(ArgumentError, match="no certificates, or another key"):
            collect.output(server.url(), {**mine, "certificate": files["other.pem"]})
    finally:
        server.remove()


def test_a_host_may_have_a_key(tmp_path: Path) -> None:
    driver("nats")
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.importorskip("nkeys", reason="it needs PyNaCl, which has no release for free-threaded builds")
    driver("nkeys")
    import nkeys

    seeds = {name: nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER) for name in ("right", "wrong")}
    for name, seed in seeds.items():
        (tmp_path / name).write_bytes(seed)
    known = nkeys.from_seed(bytearray(seeds["right"])).public_key.decode()
    with nats_server(f"authorization {{ users: [ {{ nkey: {known} }} ] }}") as server:
        output = collect.output(server.url(), {"nkey": str(tmp_path / "right")})
        output.create()
        output.write(batch(1))
        output.close()
        wrong = collect.output(server.url(), {"nkey": str(tmp_path / "wrong")})
        with pytest.raises(NfnetError, match="Authorization Violation"):
            wrong.create()
        wrong.close()


# --- many hosts, several workers


def left_in(server: NatsServer) -> int:
    """How many messages are in the stream."""
    client = _nats_client.Client(server.url())

    async def ask(connection: Any) -> int:
        return int((await connection.jetstream().stream_info("nfnet")).state.messages)

    try:
        return client.run(ask)
    finally:
        client.close()


def impatient(server: NatsServer) -> None:
    """Create the workers' consumer, which soon passes unacknowledged messages to another worker."""
    client = _nats_client.Client(server.url())
    client.create()

    async def create(connection: Any) -> None:
        from nats.js.api import AckPolicy, ConsumerConfig

        config = ConsumerConfig(durable_name="nfnet", ack_policy=AckPolicy.EXPLICIT, ack_wait=2.0)
        await connection.jetstream().add_consumer("nfnet", config)

    client.run(create)
    client.close()


@pytest.mark.parametrize("what", ["nothing happens", "workers are killed", "collectors are killed"])
def test_two_hosts_and_two_workers_store_every_record_once(
    way: Way, nats: NatsServer, database: str, what: str, tmp_path: Path
) -> None:
    collect.output(database).create()
    impatient(nats)
    chance = random.Random(7)
    kills = 0 if what == "nothing happens" else max(2, KILLS // 3)
    with contextlib.ExitStack() as stack:
        hosts = {"client": "fw-1.example", "router": "fw-2.example"}
        for at, hook in (("client", "output"), ("router", "forward")):
            stack.enter_context(logging(way.net, at, hook))

        def collector(at: str) -> subprocess.Popen[str]:
            arguments = ("--to", nats.url(), "--spool", tmp_path / at)
            return stack.enter_context(collecting(way, *arguments, at=at, host=hosts[at]))

        def worker() -> subprocess.Popen[str]:
            return stack.enter_context(command("--from", nats.url(), "--to", database))

        with sending(way):
            collectors = [collector(at) for at in hosts]
            workers = [worker(), worker()]
            for turn in range(kills):
                before = count(database)
                assert wait_for(lambda before=before: count(database) > before)
                time.sleep(chance.random() / 5)  # no event to wait for: any moment will do
                place = turn % 2
                if what == "workers are killed":
                    workers[place].kill()
                    workers[place] = worker()
                else:
                    collectors[place].kill()
                    collectors[place].wait(TIMEOUT)
                    collectors[place] = collector(list(hosts)[place])
            before = count(database)
            assert wait_for(lambda: count(database) > before)
        read = [int(finish(process).split()[-2]) for process in collectors]
        assert wait_for(lambda: left_in(nats) == 0)  # all is acknowledged, and so stored
    found: dict[tuple[str, int], list[int]] = {}
    records = "SELECT host, started_ns, seq FROM nfnet.messages JOIN nfnet.sessions ON id = session ORDER BY 1, 2, 3"
    for host, session, number in rows(database, records):
        found.setdefault((host, session), []).append(number)
    for numbers in found.values():
        assert numbers == list(range(len(numbers)))
    last = {host: len(numbers) for (host, _), numbers in found.items()}  # of each host the last session
    assert last == dict(zip(hosts.values(), read))
    assert rows(database, "SELECT count(*) FROM nfnet.losses") == [0]


def test_what_a_worker_cannot_store_comes_again(nats: NatsServer, cluster: Postgres, database: str) -> None:
    collect.output(database).create()
    output = collect.output(nats.url())
    output.create()
    for number in range(200):
        output.write(batch(number))
    output.close()
    with contextlib.ExitStack() as stack:
        with cluster.stopped():
            workers = [stack.enter_context(command("--from", nats.url(), "--to", database)) for _ in range(2)]
            for process in workers:
                assert QUOTED not in told(process, "trying again")
            assert left_in(nats) == 200
        assert wait_for(lambda: count(database) == 200)
        for process in workers:
            finish(process)
    assert rows(database) == list(range(200))
    assert left_in(nats) == 0


def test_a_worker_goes_on_when_the_server_of_messages_comes_back(nats: NatsServer, database: str) -> None:
    collect.output(database).create()
    output = collect.output(nats.url())
    output.create()
    output.write(batch(1))
    with command("--from", nats.url(), "--to", database) as process:
        assert wait_for(lambda: count(database) == 1)
        with nats.stopped():
            told(process, "trying again")
        with pytest.raises(OutputError):  # the old connection; the next time there is a new one
            output.write(batch(2))
        output.write(batch(2))
        assert wait_for(lambda: count(database) == 2)
        finish(process)
    output.close()


def test_a_worker_writes_files_too_and_ends_after_so_many(nats: NatsServer, tmp_path: Path) -> None:
    output = collect.output(nats.url())
    output.create()
    for number in range(10):
        output.write(batch(number, lost=number == 3))
    output.close()
    file, config = tmp_path / "log.jsonl", tmp_path / "collect.toml"
    config.write_text(f'[source]\nfrom = "{nats.url()}"\n\n[[output]]\nto = "{file}"\n')
    assert run("--config", config, "--count", "10") == (0, "10 messages stored\n")
    lines = lines_of(file)
    assert [line["event"]["sequence"] for line in lines if "sequence" in line["event"]] == list(range(10))
    assert [line["nfnet"]["lost"] for line in lines if "lost" in line["nfnet"]] == [1]


def test_a_worker_has_metrics_a_state_and_signs_of_life(
    nats: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver("prometheus_client")
    systemd = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    output = collect.output(nats.url())
    output.create()
    for number in range(10):
        output.write(batch(number, lost=number == 3))
    output.close()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = int(server.getsockname()[1])
    file = tmp_path / "log.jsonl"
    metrics = f"127.0.0.1:{port}"

    def served(line: str) -> bool:
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=TIMEOUT) as answer:
            return line in answer.read().decode().splitlines()

    source = without_password(nats.url())
    with systemd.socket, command("--from", nats.url(), "--to", file, "--metrics", metrics) as process:
        systemd.wait("READY=1")
        assert wait_for(lambda: served(f'nfnet_collect_source_waiting{{source="{source}"}} 0.0'))
        assert served(f'nfnet_collect_output_messages_total{{event="stored",output="jsonl:{file}"}} 10.0')
        assert served("nfnet_collect_lost_total 1.0")
        process.send_signal(signal.SIGUSR1)
        said = told(process, f"jsonl:{file}: 10 stored, 0 waiting")
        assert "nfnet collect: 10 messages, 1 lost\n" in said
        assert f"nfnet collect: {source}: 0 batches wait\n" in said
        systemd.wait("WATCHDOG=1")
        with nats.stopped():
            told(process, "trying again")
            assert wait_for(lambda: served(f'nfnet_collect_source_failing{{source="{source}"}} 1.0'))
        assert wait_for(lambda: served(f'nfnet_collect_source_failing{{source="{source}"}} 0.0'))
        process.send_signal(signal.SIGHUP)
        systemd.wait("RELOADING=1")
        systemd.all.clear()
        systemd.wait("READY=1")
        finish(process)
        systemd.wait("STOPPING=1")
