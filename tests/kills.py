"""Kill -9 of a collector at any moment, again and again; then every packet is looked for in each of its outputs.

    python -m tests.kills 100        so many kills
    NFNET_KILLS=100 python -m pytest tests/live/test_collect_servers.py -k killed     with PostgreSQL and NATS

Packets are logged all the time, each to a destination address of its own, which is its number: every output says it.
What was in the socket when the collector was killed, and what was sent until the next one had bound the group, is
missing: in each output only numbers right before the first one of a session. All others must be there, in databases
once, and every line and every capture must be readable to its end.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, NamedTuple

import nfnet
from nfnet import NfnetError, captures, netns, rules
from nfnet._io.netlink_socket import SO_RCVBUFFORCE
from nfnet.stats import find_log

from .flood import start_loopback
from .live.conftest import TIMEOUT, wait_for

GROUP, PORT = 5, 7000
EARLY = 0.2  # of the collectors are killed at any moment after they were started, the others when they store
MOST = 1 << 24  # packets: numbers have 24 bits
MANY = 1_000_000  # bytes of lines, of some thousand packets: several batches
PAUSE = 0.002  # seconds after ten packets


class Unaccounted(Exception):
    """A packet is missing, or there twice, or a file cannot be read."""


class Found(NamedTuple):
    """What is in an output."""

    name: str
    numbers: Counter[int]  # of packets, and how often each is there
    first: set[int]  # those with which a session begins
    lost: int  # by the kernel, as its records say


def number_of(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address), "big") & 0xFFFFFF


def address_of(number: int) -> str:
    return socket.inet_ntoa((127 << 24 | number).to_bytes(4, "big"))


# --- what was stored


def in_lines(file: Path) -> Found:
    numbers, first, lost = Counter[int](), set[int](), 0
    with file.open("rb") as opened:
        for line in opened:
            record = json.loads(line)
            if "lost" in record["nfnet"]:
                lost += record["nfnet"]["lost"]
                continue
            number = number_of(record["destination"]["ip"])
            numbers[number] += 1
            if record["event"]["sequence"] == 0:
                first.add(number)
    return Found("lines", numbers, first, lost)


def in_database(file: Path) -> Found:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT destination, seq FROM messages").fetchall()
        lost = connection.execute("SELECT coalesce(sum(count), 0) FROM losses").fetchone()[0]
        (check,) = connection.execute("PRAGMA integrity_check").fetchone()
    if check != "ok":
        raise Unaccounted(f"the database is damaged: {check}")
    numbers = Counter(number_of(address) for address, _ in rows)
    return Found("database", numbers, {number_of(address) for address, seq in rows if seq == 0}, lost)


def in_captures(files: list[Path]) -> Found:
    numbers, first, lost = Counter[int](), set[int](), 0
    for file in files:
        for record in captures.read(file):
            raw = (len(record.data) + 16).to_bytes(4, sys.byteorder) + b"\x00\x04" + bytes(10) + record.data
            message = nfnet.LogMessage.from_bytes(raw)
            if message.ip is None:
                lost += int(message.prefix.split()[1])
                continue
            number = number_of(message.ip.destination)
            numbers[number] += 1
            if message.seq == 0:
                first.add(number)
    return Found("captures", numbers, first, lost)


def read_by_tshark(files: list[Path]) -> None:
    """Raise Unaccounted if tshark finds fault with a capture."""
    if (tshark := shutil.which("tshark", path=f"{os.environ['PATH']}:/usr/sbin")) is None:
        return
    for file in files:
        done = subprocess.run([tshark, "-r", str(file), "-T", "fields", "-e", "frame.number"], capture_output=True)
        if done.returncode:
            raise Unaccounted(f"tshark: {file.name}: {done.stderr.decode()}")


def check(found: Found, first: set[int], sent: int) -> int:
    """Return how many packets are missing where they may be: right before a session. Raises Unaccounted for others."""
    there = sorted(found.numbers)
    lost = found.lost
    gaps = 0
    for before, after in pairwise([0, *there]):
        gap = after - before - 1
        if gap and after not in first:
            lost -= gap
            if lost < 0:
                raise Unaccounted(f"{found.name}: {gap} packets before {after} are missing in the midst of a session")
        gaps += gap
    if lost:
        raise Unaccounted(f"{found.name}: {lost} packets are there of which a record says that they were lost")
    if there[-1] != sent:
        raise Unaccounted(f"{found.name}: the last one is {there[-1]} of {sent}, although the collector was not killed")
    return gaps


# --- packets, and collectors


@contextlib.contextmanager
def sending(place: BinaryIO) -> Iterator[Callable[[], int]]:
    """Packets, numbered from 1; the function ends it and returns the last number."""

    def make() -> tuple[socket.socket, socket.socket]:
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 12)
        receiver.bind(("", PORT))  # otherwise the kernel would answer each packet
        return socket.socket(socket.AF_INET, socket.SOCK_DGRAM), receiver

    sender, receiver = netns.call_in(place, make)
    reader, writer = os.pipe()
    stop_reader, stop_writer = os.pipe()
    os.set_blocking(stop_reader, False)
    child = os.fork()
    if child == 0:
        number = 0
        stopped = False
        os.close(stop_writer)
        while not stopped and number < MOST - 12:
            for _ in range(10):
                number += 1
                sender.sendto(b"", (address_of(number), PORT))
            time.sleep(PAUSE)
            with contextlib.suppress(BlockingIOError):
                stopped = os.read(stop_reader, 1) == b""
        os.write(writer, b"%d" % number)
        os._exit(0)
    os.close(stop_reader)
    os.close(writer)
    ended = False

    def end() -> int:
        nonlocal ended
        ended = True
        os.close(stop_writer)
        return int(os.read(reader, 20))

    try:
        yield end
    finally:
        if not ended:
            os.close(stop_writer)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reader)
        sender.close()
        receiver.close()


@contextlib.contextmanager
def collecting(place: BinaryIO, directory: Path) -> Iterator[subprocess.Popen[str]]:
    there = f"/proc/{os.getpid()}/fd/{place.fileno()}"
    outputs = ("log.jsonl", "log.db", "log.pcapng")
    to = [word for name in outputs for word in ("--to", str(directory / name))]
    command = [sys.executable, "-m", "nfnet", "collect", "--group", str(GROUP), "--netns", there, *to]
    with subprocess.Popen(
        [*command, "--spool", str(directory / "spool")], stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def cut(file: Path) -> None:
    """Remove some bytes at the end, as if the signal had ended the write: the kernel does that to large ones only."""
    size = file.stat().st_size if file.exists() else 0
    with contextlib.suppress(FileNotFoundError):
        os.truncate(file, max(0, size - random.randrange(80)))


def run(kills: int, directory: Path, say: Callable[[str], None] = print) -> str:
    """Kill so many collectors, and return what became of the packets. Raises Unaccounted."""
    lines = directory / "log.jsonl"
    place = netns.create()
    netns.call_in(place, start_loopback)

    def size() -> int:
        return lines.stat().st_size if lines.exists() else 0

    with (
        contextlib.closing(place),
        rules.log(GROUP, hook="output", protocol="udp", destination_port=PORT, prefix="kill: ", netns=place),
        sending(place) as end,
    ):
        for number in range(1, kills + 1):
            before = size()
            with collecting(place, directory) as process:
                if random.random() >= EARLY and not wait_for(lambda before=before: size() > before):
                    raise Unaccounted(f"nothing is stored: {process.poll()}")
                time.sleep(random.random() / 2)  # no event to wait for: any moment will do
                process.kill()
                process.wait(TIMEOUT)
            if not wait_for(lambda: find_log(GROUP, place) is None):
                raise Unaccounted("a killed collector still has the group")
            cut(lines)
            cut(directory / "log.pcapng")
            if number % 10 == 0:
                say(f"{number} of {kills} kills")
        before = size()
        with collecting(place, directory) as process:
            if not wait_for(lambda: size() > before + MANY):
                raise Unaccounted(f"nothing is stored: {process.poll()}")
            sent = end()
            process.send_signal(signal.SIGTERM)
            _, errors = process.communicate(timeout=TIMEOUT)
            if process.returncode:
                raise Unaccounted(f"the last collector failed: {errors}")
    files = sorted(directory.glob("log.pcapng*"))
    read_by_tshark(files)
    found = (in_lines(lines), in_database(directory / "log.db"), in_captures(files))
    first = set[int]().union(*(each.first for each in found))
    words = [f"{kills} kills, {sent:,} packets, {len(first)} sessions, {len(files)} captures"]
    for each in found:
        missing = check(each, first, sent)
        twice = each.numbers.total() - len(each.numbers)
        if twice and each.name == "database":
            raise Unaccounted(f"{twice} packets are twice in the database")
        text = f"{each.name}: {len(each.numbers):,} stored + {missing:,} between sessions"
        words.append(text + (f", {twice:,} twice" if twice else ""))
    return "\n".join(words)


def main() -> int:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    began = time.monotonic()
    directory = tempfile.mkdtemp(dir="/var/tmp")
    try:
        print(run(kills, Path(directory), lambda text: print(text, flush=True)))
    except (Unaccounted, NfnetError, ValueError) as error:
        print(f"NOT ACCOUNTED FOR: {error}; see {directory}", file=sys.stderr)
        return 1
    shutil.rmtree(directory)
    print(f"all accounted for, {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
