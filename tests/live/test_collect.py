"""The collector on real log groups: bursts, logrotate, unavailable outputs, and SIGKILL."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from .collecting import (
    burst,
    collecting,
    finish,
    lines_in,
    lines_of,
    numbers,
    rotate,
    rotated,
    rows,
    sending,
    whole_lines,
)
from .conftest import TIMEOUT, UID, stopped, wait_for
from .programs import is_bound
from .traffic import Way, logging

BURST = 50_000 if UID == 0 else 500  # the receive buffer of ordinary users is small


def test_nothing_of_a_burst_is_lost(way: Way, tmp_path: Path) -> None:
    file, database = tmp_path / "log.jsonl", tmp_path / "log.db"
    with logging(way.net), collecting(way, "--to", file, "--to", f"sqlite:{database}") as process:
        burst(way, BURST)
        errors = finish(process)
    assert errors == f"{BURST} messages\n"
    assert numbers(file) == list(range(BURST))
    assert rows(database) == list(range(BURST))
    first = lines_of(file)[0]
    assert first["source"]["ip"] == "10.81.1.1"
    assert (first["destination"]["ip"], first["destination"]["port"]) == ("10.81.2.2", 7000)
    assert first["observer"]["ingress"]["interface"]["name"] == "to-client"


def test_log_shows_all_of_a_burst(way: Way, tmp_path: Path) -> None:
    file = tmp_path / "text"
    with logging(way.net), file.open("w") as output:
        line = [sys.executable, "-m", "nfnet", "log", "5"]
        process = way.net.at("router", lambda: subprocess.Popen(line, stdout=output, stderr=subprocess.PIPE, text=True))
        with process:
            assert wait_for(lambda: is_bound(way.net, group=5))
            burst(way, BURST)
            assert finish(process) == f"{BURST} messages\n"
    shown = file.read_text().splitlines()
    assert len(shown) == BURST
    assert all(" said: to-client > to-server UDP 10.81.1.1." in each for each in shown)


def test_what_the_kernel_lost_is_a_record_in_each_output(way: Way, tmp_path: Path) -> None:
    config = tmp_path / "collect.toml"
    config.write_text("rcvbuf = 4096\n")
    file, database = tmp_path / "log.jsonl", tmp_path / "log.db"
    with logging(way.net), collecting(way, "--config", config, "--to", file, "--to", database) as process:
        with stopped(process):
            burst(way, 3000)

        def told() -> bool:
            way.send(b"x")  # a gap is noticed only at a later message
            return file.exists() and b"messages-lost" in file.read_bytes()

        assert wait_for(told)
        finish(process)
    lost = sum(line["nfnet"].get("lost", 0) for line in lines_of(file))
    stored = numbers(file)
    assert lost > 0
    assert lost + len(stored) == stored[-1] + 1
    assert rows(database) == stored
    assert rows(database, "SELECT sum(count) FROM losses") == [lost]


ROTATE = {
    "create": "create",
    "create and no signal": "create",
    "nocreate": "nocreate",
}


@pytest.mark.parametrize("how", ROTATE)
def test_logrotate_neither_loses_a_line_nor_repeats_one(way: Way, how: str, tmp_path: Path) -> None:
    directory = tmp_path / "logs"
    directory.mkdir(mode=0o700)
    file = directory / "log.jsonl"
    with logging(way.net), collecting(way, "--to", file) as process, sending(way):
        signaled = "" if "no signal" in how else f"postrotate\nkill -HUP {process.pid}\nendscript"
        rotate(file, f"{ROTATE[how]}\n{signaled}", 8)
        assert wait_for(file.exists)
        finish(process)
    files = rotated(file)
    assert len(files) == 9
    found = numbers(*files)
    assert found == list(range(len(found)))
    assert len(found) > 100


def test_a_file_that_was_copied_and_cut_goes_on_at_its_beginning(way: Way, tmp_path: Path) -> None:
    """logrotate's copytruncate loses messages that are written between its two steps, but no others."""
    file, copy = tmp_path / "log.jsonl", tmp_path / "copy"
    with logging(way.net), collecting(way, "--to", file) as process:
        burst(way, 10)
        assert wait_for(lambda: lines_in(file) == 10)
        shutil.copy(file, copy)
        os.truncate(file, 0)
        burst(way, 10)
        finish(process)
    assert (numbers(copy), numbers(file)) == (list(range(10)), list(range(10, 20)))


@contextmanager
def locked(database: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(database, timeout=TIMEOUT, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield


def test_a_locked_database_holds_nobody_up_and_gets_all_from_the_spool(way: Way, tmp_path: Path) -> None:
    file, database, spool = tmp_path / "log.jsonl", tmp_path / "log.db", tmp_path / "spool"
    arguments = ("--to", file, "--to", database, "--spool", spool)
    with logging(way.net):
        with collecting(way, *arguments) as process:
            burst(way, 10)
            assert wait_for(lambda: len(rows(database)) == 10)
            with locked(database):
                for number in range(2, 8):
                    burst(way, 10)
                    assert wait_for(lambda number=number: lines_in(file) == 10 * number)
                # The last batch can be in no spool yet: if the process is killed, the database lacks it.
                (kept,) = spool.glob("sqlite*.spool")
                assert wait_for(lambda: rows(kept, "SELECT total(count) FROM batches") == [60])
                process.kill()
                process.wait(TIMEOUT)
                assert len(rows(database)) == 10
        with collecting(way, *arguments) as process:
            burst(way, 10)
            assert wait_for(lambda: len(rows(database)) == 80)
            finish(process)
    assert rows(database) == [*range(70), *range(10)]  # of two sessions
    assert numbers(file) == [*range(70), *range(10)]


def test_being_killed_loses_nothing_that_was_stored(way: Way, tmp_path: Path) -> None:
    """Each time the file and the database contain every message up to some moment, except the batch being written.

    The database contains none twice.
    """
    file, database, spool = tmp_path / "log.jsonl", tmp_path / "log.db", tmp_path / "spool"
    chance = random.Random(7)

    def sessions(place: int = 0) -> set[str]:
        """Those of which something is in the file, from a place on."""
        with file.open("rb") as opened:
            opened.seek(place)
            return {line["nfnet"]["session"] for line in whole_lines(opened.read())}

    with logging(way.net), sending(way):
        for turn in range(11):
            known, place = (sessions(), file.stat().st_size) if turn else (set(), 0)
            with collecting(way, "--to", file, "--to", database, "--spool", spool) as process:
                # The previous process's spool is stored first.
                assert wait_for(lambda known=known, place=place: file.exists() and bool(sessions(place) - known))
                if turn == 10:
                    finish(process)
                    break
                time.sleep(chance.random() / 5)  # no event to wait for: any moment will do
                process.kill()
                process.wait(TIMEOUT)
    by_session: dict[str, list[int]] = {}
    for line in whole_lines(file.read_bytes()):
        by_session.setdefault(line["nfnet"]["session"], []).append(line["event"]["sequence"])
    assert len(by_session) == 11
    for found in by_session.values():
        # A batch is written again if the process was killed between writing it, which took long, and noting that.
        assert list(dict.fromkeys(found)) == list(range(len(set(found))))
    for session in set(rows(database, "SELECT session FROM messages")):
        stored = rows(database, f"SELECT seq FROM messages WHERE session = {session} ORDER BY rowid")
        assert stored == list(range(len(stored)))


def test_a_reader_that_is_slow_holds_nobody_up(way: Way, tmp_path: Path) -> None:
    """Standard output is a pipe of 64 KiB that no process reads."""
    file = tmp_path / "log.jsonl"
    with logging(way.net), collecting(way, "--to", "jsonl:-", "--to", file, "--spool", tmp_path / "spool") as process:
        burst(way, 500)
        assert wait_for(lambda: lines_in(file) == 500)
        burst(way, 500)
        assert wait_for(lambda: lines_in(file) == 1000)
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=TIMEOUT)
    shown = [json.loads(line)["event"]["sequence"] for line in output.splitlines()]
    assert shown == list(range(1000)), errors


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "/nowhere/log.jsonl"), "/nowhere/log.jsonl"),
        (("--to", "sqlite:/nowhere/log.db"), "/nowhere/log.db"),
        (("--to", "log.xyz"), "names no output"),
        (("--to", "log.jsonl", "often"), "'often' is not name=value"),
        ((), "no output"),
    ],
)
def test_what_cannot_be_right_is_one_line(way: Way, arguments: tuple[str, ...], text: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "nfnet", "collect", "--group", "5", *arguments]
    run: Callable[[], Any] = lambda: subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)  # noqa: E731
    done = way.net.at("router", run)
    assert done.returncode in (1, 2)
    assert done.stderr.startswith("nfnet collect: ")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1
