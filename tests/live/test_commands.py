"""The commands as processes, on real queues and groups."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import nfnet
from nfnet import Queue, doctor, rules
from nfnet.captures import _reader as capture

from .conftest import ADDRESS, QUIET, TIMEOUT, UID, Net, in_child, lacking, readable, said, stopped, wait_for
from .programs import is_bound, running
from .test_process import drop_capabilities
from .traffic import Way, logging, queueing

V4 = socket.AF_INET
RULE = "hook=forward protocol=udp destination_port=7000"


@contextmanager
def nfnet_command(net: Net, *arguments: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A command on the router that has its queue 1 or group 5."""
    command = [sys.executable, "-m", "nfnet", *map(str, arguments)]
    number: dict[str, Any] = {"group": 5} if "log" in arguments or "--group" in arguments else {"queue": 1}
    with running(net, command, **options) as process:
        assert wait_for(lambda: is_bound(net, **number) or process.poll() is not None), process
        yield process


def finish(process: subprocess.Popen[str], number: signal.Signals | None = signal.SIGINT) -> tuple[str, str]:
    if number is not None:
        process.send_signal(number)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return output, said(errors)


PATIENT = """\
import struct, sys
from nfnet._io import netlink_socket, poller
from nfnet.cli import main, signals
from nfnet.collect import _collector
poller._LONGEST_WAIT = signals._LONGEST_WAIT = _collector._LONGEST_WAIT = 3600.0
poller.Poller.wait.__defaults__ = (3600.0,)
netlink_socket._RECEIVE_TIMEOUT = struct.pack("@ll", 3600, 0)
sys.exit(main(sys.argv[1:]))
"""


def is_asleep(process: subprocess.Popen[str]) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "1"),
        ("queue", "1", "--delay", "10"),
        ("record", "file.pcapng", "--queue", "1"),
        ("record", "file.pcapng", "--group", "5"),
        ("log", "5", "-q"),
        ("collect", "--group", "5", "--to", "log.jsonl"),
    ],
    ids=" ".join,
)
def test_a_signal_ends_a_command_that_waits(
    net: Net, tmp_path: Path, arguments: tuple[str, ...], number: signal.Signals
) -> None:
    """At once: here nothing else ends a wait before an hour is over, other than usual."""
    (tmp_path / "patient.py").write_text(PATIENT)
    command = [sys.executable, str(tmp_path / "patient.py"), *arguments]
    bound: dict[str, Any] = {"queue": 1} if "1" in arguments else {"group": 5}
    with running(net, command, cwd=tmp_path) as process:
        assert wait_for(lambda: is_bound(net, **bound) or process.poll() is not None)
        assert wait_for(lambda: is_asleep(process))
        finish(process, number)


def test_queue_shows_packets_and_lets_them_go(way: Way) -> None:
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE) as process:
        way.send(b"one", b"two")
        assert way.received(2) == [b"one", b"two"]
        output, errors = finish(process)
    first, second = output.splitlines()
    assert "to-client > to-server UDP 10.81.1.1." in first
    assert first.endswith("> 10.81.2.2.7000 31 bytes accept")
    assert second.endswith("accept")
    assert errors == "2 packets: 2 accepted, 0 dropped\n"
    assert rules.installed(way.here) == []


def test_queue_drops_what_the_filter_chooses(way: Way) -> None:
    other = way.net.receiver("server", V4, 7001)
    rule = "hook=forward protocol=udp"
    arguments = ("queue", "1", "--install-rule", rule, "--drop", "--protocol", "udp", "--port", "7000", "--json")
    with nfnet_command(way.net, *arguments, "--source", "10.81.1.0/24") as process:
        way.send(b"dropped")
        way.sender.sendto(b"passes", (ADDRESS["server", V4], 7001))
        assert other.recv(100) == b"passes"
        output, errors = finish(process, signal.SIGTERM)
    assert not readable(way.receiver, QUIET)
    (row,) = map(json.loads, output.splitlines())
    assert row["nfnet"]["verdict"] == "drop"
    assert row["observer"]["ingress"]["interface"]["name"] == "to-client"
    assert errors == "2 packets: 1 accepted, 1 dropped\n"


def test_queue_delays_and_loses(way: Way) -> None:
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "--delay", "150", "-q", "-c", "3") as process:
        way.send(b"one", b"two", b"three")
        assert way.received(3) == [b"one", b"two", b"three"]
        # The third packet ends it, and waiting packets are accepted.
        assert process.wait(TIMEOUT) == 0
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "--delay", "150", "--jitter", "20") as process:
        began = time.monotonic()
        way.send(b"late")
        assert way.received(1) == [b"late"]
        assert time.monotonic() - began >= 0.13
        finish(process)
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "--loss", "100") as process:
        way.send(b"lost")
        output, errors = process.stdout.readline() if process.stdout else "", ""
        assert output.endswith("lost\n")
        _, errors = finish(process)
    assert errors == "1 packet: 0 accepted, 1 dropped (1 by chance)\n"


def test_queue_with_a_handler_and_a_mark(way: Way, tmp_path: Path) -> None:
    (tmp_path / "decider.py").write_text(
        "def decide(packet):\n"
        "    if packet.udp.data == b'raise': raise ValueError('no')\n"
        "    packet.accept(payload=packet.rewrite(data=b'changed'))\n"
    )
    arguments = ("queue", "1", "--install-rule", RULE, "--handler", "decider:decide")
    with nfnet_command(way.net, *arguments, cwd=tmp_path) as process:
        way.send(b"x")
        assert way.received(1) == [b"changed"]
        way.send(b"raise")
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "nfnet queue: the handler decider:decide failed on packet 2: ValueError: no\n" in errors
    assert "Traceback" not in errors


KEEPER = """
import sys
kept = []
def keep(packet):
    kept.append(packet)
def wait(packet):
    packet.accept()
    print("at work", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("policy", [None, "pending", "drop", "accept"])
@pytest.mark.parametrize("delay", [(), ("--delay", "10")], ids=["now", "late"])
def test_what_a_handler_leaves_undecided(way: Way, tmp_path: Path, policy: str | None, delay: tuple[str, ...]) -> None:
    """It stays in the kernel's queue, and is dropped at the end unless an option specifies another verdict."""
    (tmp_path / "keeper.py").write_text(KEEPER)
    arguments = ("queue", "1", "--install-rule", RULE, "--handler", "keeper:keep", *delay)
    arguments += () if policy is None else ("--undecided", policy)
    with nfnet_command(way.net, *arguments, cwd=tmp_path) as process:
        way.send(b"kept")
        assert process.stdout is not None
        line = process.stdout.readline()
        _, errors = finish(process, signal.SIGTERM)
    assert line.split()[-1] == {"drop": "drop", "accept": "accept"}.get(policy or "", "undecided")
    late = ", 1 delayed" if delay else ""
    assert errors == {
        "accept": f"1 packet: 1 accepted, 0 dropped{late}\n",
        "drop": f"1 packet: 0 accepted, 1 dropped{late}\n",
    }.get(policy or "", f"1 packet: 0 accepted, 0 dropped{late}, 1 left undecided, which the kernel drops\n")
    assert readable(way.receiver, TIMEOUT if policy == "accept" else QUIET) == (policy == "accept")


@pytest.mark.parametrize("policy", ["pending", "drop", "accept"])
def test_what_a_handler_has_not_seen_at_the_end(way: Way, tmp_path: Path, policy: str) -> None:
    """The handler does not get these packets: the filter decides them."""
    other = way.net.receiver("server", V4, 7001)
    (tmp_path / "keeper.py").write_text(KEEPER)
    arguments = ("queue", "1", "--install-rule", "hook=forward protocol=udp", "--port", "7000", "-q")
    arguments += ("--handler", "keeper:wait", "--undecided", policy)
    with nfnet_command(way.net, *arguments, cwd=tmp_path, stdin=subprocess.PIPE) as process:
        way.send(b"decided")
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        way.send(b"unread", b"unread")
        way.sender.sendto(b"passes", (ADDRESS["server", V4], 7001))
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate("go on\n", timeout=TIMEOUT)
    assert (process.returncode, output) == (0, "")
    assert other.recv(100) == b"passes"
    assert way.received(1) == [b"decided"]
    if policy == "accept":
        assert way.received(2) == [b"unread"] * 2
    assert not readable(way.receiver, QUIET)
    assert (
        errors
        == {
            "accept": "4 packets: 4 accepted, 0 dropped\n",
            "drop": "4 packets: 2 accepted, 2 dropped\n",
            "pending": "4 packets: 2 accepted, 0 dropped, 2 left undecided, which the kernel drops\n",
        }[policy]
    )


def test_a_handler_that_raises_decides_nothing(way: Way, tmp_path: Path) -> None:
    (tmp_path / "decider.py").write_text("def decide(packet): raise ValueError('no')\n")
    arguments = ("queue", "1", "--install-rule", RULE, "--handler", "decider:decide")
    with nfnet_command(way.net, *arguments, cwd=tmp_path) as process:
        with stopped(process):  # so that they arrive together
            way.send(b"one", b"two", b"three")
        _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert "0 accepted, 0 dropped," in errors
    assert not readable(way.receiver, QUIET)


@pytest.mark.parametrize(
    ("options", "passes"), [(("--drop",), 0), (("--loss", "100"), 0), (("--accept",), 5), (("--requeue", "9"), 0)]
)
def test_what_comes_after_the_count_is_decided_likewise(way: Way, options: tuple[str, ...], passes: int) -> None:
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "-c", "1", *options) as process:
        with stopped(process):
            way.send(*[b"x"] * 5)
        output, _ = finish(process, None)
    assert len(output.splitlines()) == 1
    way.received(passes)
    assert not readable(way.receiver, QUIET)


def test_delayed_packets_have_room(way: Way) -> None:
    """More than fit into a queue by the kernel's default, which is 1024."""
    if UID:
        pytest.skip("an ordinary user's receive buffer is too small for what comes at once")
    with nfnet_command(way.net, "queue", "1", "--install-rule", RULE, "--delay", "60000", "-q") as process:
        way.send(*[b"x"] * 2000)
        _, errors = finish(process)  # which decides them
    assert errors == "2000 packets: 2000 accepted, 0 dropped, 2000 delayed\n"


@pytest.mark.parametrize("command", ["queue", "record"])
def test_what_the_kernel_drops_is_in_the_summary(way: Way, tmp_path: Path, command: str) -> None:
    if UID:
        pytest.skip("only root of the machine may read the kernel's rows")
    arguments: tuple[str | Path, ...] = ("queue", "1", "--max-len", "3", "-q", "-c", "3")
    if command == "record":
        arguments = ("record", tmp_path / "session.pcapng", "--queue", "1", "-c", "1024")
    most = int(str(arguments[-1]))
    with queueing(way.net), nfnet_command(way.net, *arguments) as process:
        with stopped(process):
            way.send(*[b"x"] * (most + 7))
        _, errors = finish(process, None)
    assert errors.endswith(", 7 dropped by the kernel because the queue was full\n")


def test_a_handler_is_not_where_everything_else_is_looked_for(way: Way, tmp_path: Path) -> None:
    """Modules of the current directory are imported only for the handler, and only if no other directory has them."""
    for name in ("pyroute2", "prometheus_client", "ipaddress", "ctypes", "construct"):
        (tmp_path / f"{name}.py").write_text("import os; os._exit(77)")
    (tmp_path / "installed").mkdir()
    code = "import sys\ndef decide(packet):\n    packet.accept()\n    print(sys.path[-1], flush=True)\n"
    (tmp_path / "installed" / "installed_decider.py").write_text(code)
    (tmp_path / "installed_decider.py").write_text("import os; os._exit(77)")
    (tmp_path / "decider.py").write_text("import ipaddress, helper\n" + code)
    (tmp_path / "helper.py").write_text("")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    netns = f"/proc/{os.getpid()}/fd/{way.here.fileno()}"
    for module in ("installed_decider", "decider"):
        arguments = ("queue", "1", "--install-rule", RULE, "--netns", netns, "-q", "-c", "1")
        with nfnet_command(way.net, *arguments, "--handler", f"{module}:decide", cwd=tmp_path, env=env) as process:
            way.send(b"x")
            output, _ = finish(process, None)
        assert (output == f"{tmp_path}\n") == (module == "decider")


def test_queue_records_and_serves_metrics(way: Way, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    file = tmp_path / "session.pcapng"
    arguments = ("queue", "1", "--install-rule", RULE, "--netns", f"/proc/{os.getpid()}/fd/{way.here.fileno()}")
    command = [sys.executable, "-m", "nfnet", *arguments, "-w", str(file), "--metrics", "9464", "-q"]
    with running(way.net, command, "server") as process:  # where no other program has that port
        assert wait_for(lambda: is_bound(way.net, queue=1) or process.poll() is not None)
        way.send(b"one")
        assert way.received(1) == [b"one"]
        text = ""

        def ask() -> Any:
            return urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=TIMEOUT)

        def is_counted() -> bool:  # the packet can arrive before its verdict is counted
            nonlocal text
            with way.net.at("server", ask) as answer:
                text = answer.read().decode()
            return 'nfnet_queue_packets_total{event="accepted",queue="1"} 1.0' in text

        assert wait_for(is_counted)
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT) == 0
    assert 'nfnet_queue_pending{queue="1"} 0.0' in text
    if way.net.proc("router", "nfnetlink_queue") is not None:  # otherwise only root of the machine can read that
        assert 'nfnet_queue_kernel_dropped_total{queue="1",reason="queue full"} 0.0' in text
    with Queue(1, transport=nfnet.replay(file)) as queue:
        assert [packet.udp.data for packet in queue if packet.udp] == [b"one"]


def test_log_shows_stores_and_writes(way: Way, tmp_path: Path) -> None:
    database, capture = tmp_path / "log.db", tmp_path / "log.pcap"
    rule = ("--install-rule", RULE, "--prefix", "said: ")
    arguments = ("log", "5", *rule, "--sqlite", database, "-w", capture, "-c", "2")
    with nfnet_command(way.net, *arguments) as process:
        way.send(b"one", b"two", b"three")
        output, errors = finish(process, None)
    first, second = output.splitlines()
    assert " said: to-client > to-server UDP 10.81.1.1." in first
    assert second.endswith("> 10.81.2.2.7000 31 bytes")
    assert errors.startswith("2 messages")
    with contextlib.closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT prefix, indev, protocol, source, destination_port FROM messages").fetchall()
    assert rows == [("said: ", "to-client", 17, "10.81.1.1", 7000)] * 2
    with nfnet.Log(5, transport=nfnet.replay(capture)) as log:
        assert [message.udp.data for message in log if message.udp] == [b"one", b"two"]


def test_log_as_json_into_a_pipe_that_closes(way: Way) -> None:
    with logging(way.net), nfnet_command(way.net, "log", "5", "--json") as process:
        assert process.stdout is not None
        way.send(b"one")
        row = json.loads(process.stdout.readline())
        assert row["nfnet"]["prefix"] == "said: "
        process.stdout.close()
        way.send(b"two")
        assert process.wait(TIMEOUT) == 1
        assert process.stderr is not None
        assert said(process.stderr.read()) == ""


def test_files_that_cannot_be_written(way: Way) -> None:
    for arguments in (
        ("log", "5", "-w", "/nowhere/file.pcap"),
        ("log", "5", "--sqlite", "/nowhere/file.db"),
        ("queue", "1", "-w", "/nowhere/file.pcap"),
        ("record", "/nowhere/file.pcap", "--queue", "1"),
    ):
        command = [sys.executable, "-m", "nfnet", *arguments]
        done = way.net.at("router", lambda command=command: subprocess.run(command, capture_output=True, text=True))
        assert done.returncode == 1
        assert done.stderr.startswith(f"nfnet {arguments[0]}: ")
        assert "/nowhere/file" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_keeps_what_is_in_it_when_nothing_can_be_written(way: Way, tmp_path: Path) -> None:
    precious, text, other = tmp_path / "precious.pcap", tmp_path / "text", tmp_path / "other.db"
    precious.write_bytes(b"precious")
    text.write_text("This is no database, and long enough to be sure of that. " * 10)
    with contextlib.closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE messages (something)")
    unknown = "hook=input in_interface=no-such"
    cases: list[tuple[str, ...]] = [
        ("log", "5", "-w", str(precious), "--install-rule", unknown),
        ("log", "5", "-w", str(precious), "--sqlite", str(text)),
        ("log", "5", "-w", str(precious), "--sqlite", str(other)),
        ("log", "5", "-w", str(precious), "--sqlite", "/nowhere/file.db"),
        ("log", "6", "-w", str(precious)),  # others have it, and queue 2
        ("log", "6", "-w", str(precious), "--sqlite", str(tmp_path / "new.db")),
        ("queue", "1", "-w", str(precious), "--install-rule", unknown),
        ("queue", "2", "-w", str(precious)),
        ("record", str(precious), "--queue", "2"),
        ("record", str(precious), "--group", "6"),
    ]
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        way.net.at("router", lambda: None)
        netns = f"/proc/{os.getpid()}/fd/{way.here.fileno()}"
        if importlib.util.find_spec("prometheus_client"):
            port = str(sock.getsockname()[1])
            cases += [(*what, "-w", str(precious), "--metrics", port) for what in (("log", "5"), ("queue", "1"))]
        with Queue(2, netns=way.here), nfnet.Log(6, netns=way.here):
            for case in cases:
                done = subprocess.run(
                    [sys.executable, "-m", "nfnet", *case, "--netns", netns],
                    capture_output=True,
                    text=True,
                    timeout=TIMEOUT,
                )
                assert done.returncode in (1, 2), case
                assert done.stderr.count("\n") == 1, done.stderr
                assert precious.read_bytes() == b"precious", case
            with pytest.raises(nfnet.BusyError), nfnet.record(precious), Queue(2, netns=way.here):
                pass
            with pytest.raises(nfnet.BusyError), nfnet.record(precious):
                Queue(2, netns=way.here).open()
    assert precious.read_bytes() == b"precious"
    with nfnet.record(precious), Queue(2, netns=way.here):
        pass
    assert list(capture.read(precious))


@contextmanager
def locked(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(database, timeout=TIMEOUT, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield connection


def rows_of(database: Path) -> int:
    with contextlib.closing(sqlite3.connect(database, timeout=TIMEOUT)) as connection:
        if not connection.execute("SELECT name FROM sqlite_schema").fetchall():
            return 0  # it has only just been made
        return int(connection.execute("SELECT count(*) FROM messages").fetchone()[0])


def test_log_waits_for_a_database_that_is_locked(way: Way, tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    with logging(way.net), nfnet_command(way.net, "log", "5", "--sqlite", database) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        way.send(b"before")
        assert wait_for(lambda: rows_of(database) == 1)
        with locked(database):
            way.send(b"one", b"two")
            said = process.stderr.readline()  # for longer than SQLite waits by default
            way.send(b"three")
            for _ in range(4):  # the output was buffered
                assert process.stdout.readline()
        assert wait_for(lambda: rows_of(database) == 4)
        _, errors = finish(process)
    assert said == f"nfnet log: --sqlite {database}: database is locked; messages are kept, to be stored later\n"
    assert errors == f"nfnet log: --sqlite {database}: 3 messages stored late\n4 messages\n"


def test_log_waits_for_a_locked_database_at_the_beginning_and_at_the_end(way: Way, tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    with locked(database) as lock, logging(way.net):
        with nfnet_command(way.net, "log", "5", "--sqlite", database, "-c", "1") as process:
            assert process.stderr is not None
            way.send(b"one")
            assert "waiting for it, for 30 s" in process.stderr.readline()
            lock.execute("ROLLBACK")
            finish(process, None)
        assert rows_of(database) == 1


def test_log_says_what_it_could_not_store(way: Way, tmp_path: Path) -> None:
    """Also if it gets the signal again while it waits for the lock."""
    database = tmp_path / "log.db"
    with locked(database), logging(way.net):
        with nfnet_command(way.net, "log", "5", "--sqlite", database, "-c", "2") as process:
            assert process.stderr is not None
            way.send(b"one", b"two")
            assert "until told to stop again" in process.stderr.readline()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert errors == f"nfnet log: --sqlite {database}: 2 messages not stored: database is locked\n2 messages\n"


def test_a_full_disk_ends_the_capture_and_not_the_database(way: Way, tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    with logging(way.net):
        with nfnet_command(way.net, "log", "5", "-w", "/dev/full", "--sqlite", database, "-q") as process:
            assert process.stderr is not None
            way.send(b"one")
            said = process.stderr.readline()
            way.send(b"two")
            assert wait_for(lambda: rows_of(database) == 2)
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 1
        assert said == "nfnet log: -w /dev/full: No space left on device; nothing more is stored there\n"
        assert errors == "nfnet log: -w /dev/full: 2 messages not stored: No space left on device\n2 messages\n"
        with nfnet_command(way.net, "log", "5", "-w", "/dev/full", "-q") as process:
            way.send(b"one")
            assert process.wait(TIMEOUT) == 1  # nothing is left to be done


def test_record_and_replay(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "session.pcapng"
    with queueing(way.net), nfnet_command(way.net, "record", file, "--queue", "1", "-c", "2") as process:
        way.send(b"one", b"two")
        assert way.received(2) == [b"one", b"two"]
        _, errors = finish(process, None)
    assert errors == f"2 packets in {file}\n"
    command = [sys.executable, "-m", "nfnet", "replay", str(file)]
    assert subprocess.run(command, capture_output=True, text=True).stdout.count("UDP 10.81.1.1.") == 2
    with logging(way.net), nfnet_command(way.net, "record", file, "--group", "5", "-c", "1") as process:
        way.send(b"one")
        finish(process, None)
    assert subprocess.run(command, capture_output=True, text=True).stdout.count("said: ") == 1


def test_a_taken_queue_is_one_line(way: Way) -> None:
    with Queue(1, netns=way.here):
        command = [sys.executable, "-m", "nfnet", "queue", "1"]
        done = way.net.at("router", lambda: subprocess.run(command, capture_output=True, text=True))
    assert done.returncode == 1
    assert said(done.stderr).startswith("nfnet queue: binding queue 1: another socket has it")
    assert said(done.stderr).count("\n") == 1


def test_stats(way: Way) -> None:
    if UID:
        pytest.skip("only root of the machine may read the kernel's rows")
    path = f"/proc/{os.getpid()}/fd/{way.here.fileno()}"

    def stats(*arguments: str) -> str:
        command = [sys.executable, "-m", "nfnet", "stats", "--netns", path, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=True).stdout

    assert stats() == "no queues\n\nno log groups\n"
    with nfnet_command(way.net, "queue", "1") as process:
        lines = stats().splitlines()
        assert lines[0].split()[:3] == ["queue", "process", "waiting"]
        assert lines[1].split()[0] == "1"
        assert f"(process {process.pid})" in lines[1]
        row = json.loads(stats("--json"))
        assert (row["num"], row["waiting"]) == (1, 0)
        finish(process)


def test_stats_on_a_terminal(way: Way) -> None:
    """Again and again in place, until Ctrl-C."""
    if UID:
        pytest.skip("only root of the machine may read the kernel's rows")
    primary, secondary = os.openpty()
    path = f"/proc/{os.getpid()}/fd/{way.here.fileno()}"
    command = [sys.executable, "-m", "nfnet", "stats", "--watch", "--netns", path]
    with (
        Queue(1, netns=way.here),
        subprocess.Popen(command, stdout=secondary, env={**os.environ, "TERM": "xterm"}) as process,
    ):
        os.close(secondary)
        shown = b""
        while shown.count(b"queue full") < 2:
            assert readable(primary, TIMEOUT)  # type: ignore[arg-type]
            shown += os.read(primary, 10_000)
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0
    os.close(primary)


# --- doctor


def findings(net: Net, host: str = "router") -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(net.hosts[host])}


def test_doctor_of_a_healthy_namespace(way: Way) -> None:
    found = findings(way.net)
    for what in ("NFQUEUE", "NFLOG", "packet.process", "nfnet.rules.queue", "nfnet.rules.log", "Queue(gso=True)"):
        assert found[what].level == "ok", found[what]
    missing = " is not supported" if lacking(Queue(1, conntrack=True, netns=way.here)) else ""
    assert f"Queue(conntrack=True){missing}" in found
    assert rules.installed(way.here) == []


def test_doctor_sees_rules_that_feed_nobody_and_queues_that_drop(way: Way) -> None:
    if UID:
        pytest.skip("only root of the machine may read the kernel's rows")
    here = way.here
    with (
        rules.queue(range(3, 5), hook="forward", protocol="udp", bypass=False, netns=here),
        rules.queue(1, hook="forward", protocol="tcp", netns=here),
        Queue(3, max_len=1, netns=here),
        Queue(4, max_len=1, netns=here),
    ):
        way.send(*[b"x"] * 20)
        text = "\n".join(finding.what for finding in doctor.examine(here) if finding.level == "warning")
    assert "a rule feeds queue 1, which no program reads: its packets are accepted (bypass)" in text
    assert "dropped because it was full" in text
    with rules.queue(3, hook="forward", bypass=False, netns=here):
        text = "\n".join(finding.what for finding in doctor.examine(here) if finding.level == "warning")
    assert "a rule feeds queue 3, which no program reads: its packets are dropped" in text


def test_doctor_without_privilege(way: Way) -> None:
    def child() -> None:
        netns = way.here
        nfnet.netns.enter(netns)
        drop_capabilities()
        found = list(doctor.examine())
        failures = [finding.what for finding in found if finding.level == "failure"]
        assert any("CAP_NET_ADMIN" in what for what in failures)
        assert any("setcap" in finding.remedy for finding in found)
        assert any("packet.process, only for processes of this user" in finding.what for finding in found)

    assert in_child(child) == 0


def test_doctor_of_a_namespace_without_interfaces(net: Net) -> None:
    """A new namespace has only lo, which is down."""
    with nfnet.netns.create() as place:
        found = [finding for finding in doctor.examine(place) if "no packets pass here" in finding.what]
        assert [finding.level for finding in found] == ["warning"]
        up = ["ip", "link", "set", "lo", "up"]
        nfnet.netns.call_in(place, lambda: subprocess.run(up, check=True, timeout=TIMEOUT))
        assert not [finding for finding in doctor.examine(place) if "no packets pass here" in finding.what]


def test_doctor_as_a_command(way: Way) -> None:
    command = [sys.executable, "-m", "nfnet", "doctor"]
    done = way.net.at("router", lambda: subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT))
    assert (done.returncode, done.stderr) == (0, "")
    assert "ok       NFQUEUE\n" in done.stdout
    done = way.net.at("router", lambda: subprocess.run([*command, "--json"], capture_output=True, text=True))
    assert all(json.loads(line)["level"] in ("ok", "warning") for line in done.stdout.splitlines())
