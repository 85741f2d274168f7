"""The collector as a service: limits, processes, metrics, its state, and under the seccomp filter of its unit."""

from __future__ import annotations

import ctypes.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from nfnet import captures

from .collecting import Systemd, burst, collecting, finish, lines_in, lines_of, rows
from .conftest import ADDRESS, TIMEOUT, UID, Net, cannot_run, said, wait_for
from .programs import is_bound, program, running
from .traffic import PORT, Way, logging

UNIT = Path(__file__).parents[2] / "examples" / "systemd" / "nfnet-collect.service"


def test_a_limit_leaves_out_what_is_too_much_and_says_so_in_each_output(way: Way, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("log.jsonl", "log.txt", "log.db", "log.pcapng")]
    to = [word for file in files for word in ("--to", file)]
    with logging(way.net), collecting(way, *to, "--limit", "5/hour") as process:
        burst(way, 300)
        assert finish(process) == "300 messages, 295 suppressed\n"
    lines = lines_of(files[0])
    assert [line["event"]["sequence"] for line in lines] == [0, 1, 2, 3, 4, 299]
    assert [line["nfnet"].get("suppressed") for line in lines] == [*[None] * 5, 295]
    assert "said: 295 more like this: to-client > to-server UDP" in files[1].read_text().splitlines()[-1]
    assert rows(files[2], "SELECT suppressed FROM messages ORDER BY seq") == [*[None] * 5, 295]
    assert rows(files[2], "SELECT sum(coalesce(suppressed, 1)) FROM messages") == [300]
    *_, last = captures.read(files[3])
    assert last.comment == "said: (295 more like this)"


def test_the_process_that_sends(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "log.jsonl"
    with logging(way.net, hook="output"), collecting(way, "--to", file, "--process") as process:
        with way.net.open_socket("router") as sender:
            sender.sendto(b"x", (ADDRESS["server", socket.AF_INET], PORT))
            assert wait_for(lambda: lines_in(file) == 1)  # while the socket is open
        finish(process)
    (line,) = lines_of(file)
    assert line["process"]["pid"] == os.getpid()
    assert line["process"]["executable"] == os.readlink("/proc/self/exe")
    assert line["user"]["id"] == str(UID)
    if UID == 0:
        assert line["user"]["name"] == "root"


def free_port(net: Net) -> int:
    def bind() -> int:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return int(server.getsockname()[1])

    return int(net.at("router", bind))


def test_metrics(way: Way, tmp_path: Path) -> None:
    pytest.importorskip("prometheus_client")
    port = free_port(way.net)
    config = tmp_path / "collect.toml"
    config.write_text(f'metrics = "127.0.0.1:{port}"\n[[group]]\nnumber = 5\nverdict = "drop"\n')
    file = tmp_path / "log.jsonl"
    with logging(way.net):
        command = [sys.executable, "-m", "nfnet", "collect", "--config", str(config), "--to", str(file)]
        with running(way.net, command) as process:
            assert wait_for(lambda: is_bound(way.net, group=5) or process.poll() is not None)
            burst(way, 7)
            assert wait_for(lambda: lines_in(file) == 7)

            def read() -> str:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=TIMEOUT) as answer:
                    return str(answer.read().decode())

            series = 'group="5",interface="to-client",prefix="said: ",protocol="udp",verdict="drop"'
            assert f"nfnet_collect_messages_total{{{series}}} 7.0" in way.net.at("router", read)
            finish(process)
    assert lines_of(file)[0]["labels"] == {"verdict": "drop"}


def test_signals_and_what_systemd_is_told(way: Way, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    systemd = Systemd(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    monkeypatch.setenv("WATCHDOG_USEC", "4000000")
    file, gone = tmp_path / "log.jsonl", tmp_path / "away"
    gone.mkdir(mode=0o700)
    away, spool = gone / "log.db", tmp_path / "spool"
    command = [sys.executable, "-m", "nfnet", "collect", "--group", "5", "--to", str(file), "--to", str(away)]
    with systemd.socket, logging(way.net), running(way.net, [*command, "--spool", str(spool)]) as process:
        systemd.wait("READY=1")
        assert is_bound(way.net, group=5)  # it is ready, and not only about to be
        burst(way, 3)
        assert wait_for(lambda: lines_in(file) == 3 and len(rows(away)) == 3)
        shutil.rmtree(gone)
        burst(way, 2)
        assert wait_for(lambda: lines_in(file) == 5)
        assert wait_for(lambda: rows(next(spool.glob("sqlite*.spool")), "SELECT total(count) FROM batches") == [2])
        process.send_signal(signal.SIGUSR1)
        systemd.all.clear()
        systemd.wait("WATCHDOG=1")
        process.send_signal(signal.SIGHUP)
        systemd.wait("RELOADING=1")
        systemd.all.clear()
        systemd.wait("READY=1")
        process.send_signal(signal.SIGTERM)
        systemd.wait("STOPPING=1")
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors
    state = [line.removeprefix("nfnet collect: ") for line in said(errors).splitlines()]
    assert "5 messages" in state
    (group,) = (line for line in state if line.startswith("group 5: "))
    assert group.startswith("group 5: 5 messages, 0 lost")
    assert f"jsonl:{file}: 5 stored, 0 waiting" in state
    (database,) = (line for line in state if line.startswith(f"sqlite:{away}: 3 stored"))
    assert re.search(r"3 stored, 2 waiting in \S+\.spool \(\d+ bytes\), failing for \d+ s: .*No such file", database)


# --- the unit


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    analyze = program("systemd-analyze")
    text = UNIT.read_text().replace("/opt/nfnet/bin/nfnet", "/bin/true")  # it has to be there
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def allowed_calls() -> list[str]:
    """The system calls that the unit's SystemCallFilter leaves, by name."""
    done = subprocess.run([program("systemd-analyze"), "syscall-filter"], capture_output=True, text=True, timeout=60)
    sets: dict[str, list[str]] = {}
    current: list[str] = []
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            current = sets[line.strip()] = []
        elif line.startswith("    ") and not line.strip().startswith("#"):
            current.append(line.strip())

    def members(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return set().union(*map(members, sets[name]))

    found: set[str] = set()
    for words in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        named = set().union(*map(members, words.removeprefix("~").split()))
        found = found - named if words.startswith("~") else found | named
    return sorted(found)


# Apply the filter and execute the command. A forbidden system call ends the process; in the unit it fails.
FILTER = """
import ctypes, json, os, sys
library = ctypes.CDLL(sys.argv[1])
library.seccomp_init.restype = ctypes.c_void_p
context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(0x80000000)))
for name in json.loads(sys.argv[2]):
    number = library.seccomp_syscall_resolve_name(name.encode())
    if number >= 0:
        library.seccomp_rule_add(context, ctypes.c_uint32(0x7fff0000), number, 0)
if library.seccomp_load(context):
    sys.exit("the filter cannot be loaded")
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.mark.parametrize("denied", [False, True], ids=["as it is", "too strict"])
def test_under_the_filter_of_the_unit(way: Way, denied: bool, tmp_path: Path) -> None:
    library = ctypes.util.find_library("seccomp")
    if library is None:
        cannot_run("libseccomp is not installed")
    calls = allowed_calls()
    assert "sendto" in calls
    assert "mount" not in calls
    if UID == 0:
        calls.append("fchown")  # which SQLite uses for root alone; the unit is an ordinary user's
    if denied:  # shows that the filter is active
        calls.remove("fchmod")
    file, database = tmp_path / "log.jsonl", tmp_path / "log.db"
    command: list[Any] = [sys.executable, "-m", "nfnet", "collect", "--group", "5", "--to", f"jsonl:{file}"]
    command += ["rotate_size=1k", "compress=yes", "keep=50", "--to", database, "--spool", tmp_path / "spool"]
    command += ["--process", "--limit", "1000/s"]
    line = [sys.executable, "-c", FILTER, str(library), json.dumps(calls), *map(str, command)]
    with logging(way.net), running(way.net, line) as process:
        if denied:
            assert process.wait(TIMEOUT) == -signal.SIGSYS
            return
        assert wait_for(lambda: is_bound(way.net, group=5) or process.poll() is not None)
        for number in range(1, 4):
            burst(way, 10)
            assert wait_for(lambda number=number: len(rows(database)) == number * 10 or process.poll() is not None)
        process.send_signal(signal.SIGUSR1)
        process.send_signal(signal.SIGHUP)
        burst(way, 10)
        assert wait_for(lambda: len(rows(database)) == 40 or process.poll() is not None)
        finish(process)
    assert len(list(tmp_path.glob("log.jsonl.*"))) > 1
