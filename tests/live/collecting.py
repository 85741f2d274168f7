"""Collectors that tests start on the router, what they stored, and messages for them."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .conftest import TIMEOUT, said, wait_for
from .programs import is_bound, program, running
from .traffic import Way


@contextmanager
def collecting(way: Way, *arguments: str | Path, command: str = "collect") -> Iterator[subprocess.Popen[str]]:
    group = ("5",) if command == "log" else ("--group", "5")
    line = [sys.executable, "-m", "nfnet", command, *group, *map(str, arguments)]
    with running(way.net, line) as process:
        assert wait_for(lambda: is_bound(way.net, group=5) or process.poll() is not None)
        yield process


def finish(process: subprocess.Popen[str]) -> str:
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return said(errors)


def lines_of(*files: Path) -> list[dict[str, Any]]:
    found = []
    for file in files:
        if file.exists():
            data = file.read_text()
            assert data.endswith("\n") or not data
            found += [json.loads(line) for line in data.splitlines()]
    return found


def whole_lines(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file that killed processes wrote. Each can have left a part of a line."""
    for line in data.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def lines_in(file: Path) -> int:
    """How many lines there are, while more are being written."""
    return file.read_bytes().count(b"\n") if file.exists() else 0


def numbers(*files: Path) -> list[int]:
    return [line["event"]["sequence"] for line in lines_of(*files) if "sequence" in line["event"]]


def rows(path: Path, sql: str = "SELECT seq FROM messages ORDER BY session, seq") -> list[Any]:
    with contextlib.closing(sqlite3.connect(path, timeout=TIMEOUT)) as connection:
        try:
            return [row[0] if len(row) == 1 else row for row in connection.execute(sql)]
        except sqlite3.OperationalError:  # there is no table yet
            return []


def burst(way: Way, count: int) -> None:
    for number in range(count):
        way.send(b"%d" % number)


@contextmanager
def sending(way: Way) -> Iterator[None]:
    """Some thousand packets a second, all the time."""
    done = False

    def send() -> None:
        while not done:
            way.send(*[b"x"] * 10)
            time.sleep(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        done = True
        thread.join()


def rotate(file: Path, how: str, times: int) -> None:
    """Let logrotate rotate a file several times, each time after the collector has written 5000 bytes."""
    config = file.parent.with_name("logrotate.conf")
    config.write_text(f"{file} {{\nrotate 50\n{how}\n}}\n")
    config.chmod(0o600)
    command = [program("logrotate"), "--force", "--state", str(config.with_name("state")), str(config)]
    for turn in range(times):
        assert wait_for(lambda: file.exists() and file.stat().st_size > 5000)
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        assert (done.returncode, done.stderr) == (0, ""), turn


def rotated(file: Path) -> list[Path]:
    """Return the files that logrotate made of a file, oldest first, and the file itself."""
    found = file.parent.iterdir()
    return sorted(found, key=lambda path: -int(path.suffix[1:]) if path.suffix[1:].isdecimal() else 0)


class Systemd:
    """The other end of sd_notify."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.settimeout(TIMEOUT)
        self.all: list[str] = []

    def wait(self, line: str) -> None:
        """Wait for this line."""
        deadline = time.monotonic() + TIMEOUT
        while line not in self.all:
            assert time.monotonic() < deadline, self.all
            self.all += self.socket.recv(4096).decode().split("\n")
