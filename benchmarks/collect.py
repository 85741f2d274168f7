"""Log a burst with `nfnet collect` and with ulogd2, to a file or database: cost of a line, and lines stored."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import PORT, fill, options, write

from nfnet import rules
from nfnet.stats import find_log

GROUP = 5
PATIENCE = 60.0  # seconds
GOAL = 1.0
_SLOWER = 10  # so many times fewer rows than lines: ulogd2 commits each by itself

_ULOGD = """
[global]
logfile="{directory}/ulogd.log"
loglevel=5
plugin="{plugins}/ulogd_inppkt_NFLOG.so"
plugin="{plugins}/ulogd_filter_IFINDEX.so"
plugin="{plugins}/ulogd_filter_IP2STR.so"
plugin="{plugins}/ulogd_filter_IP2BIN.so"
plugin="{plugins}/ulogd_filter_HWHDR.so"
plugin="{plugins}/ulogd_raw2packet_BASE.so"
plugin="{plugins}/ulogd_output_JSON.so"
plugin="{plugins}/ulogd_output_SQLITE3.so"
stack={stack}
[log]
group={group}
; it takes a size only if it is smaller than the maximum
netlink_socket_buffer_size=134217728
netlink_socket_buffer_maxsize=268435456
netlink_qthreshold=100
netlink_qtimeout=10
[json]
file="{output}"
sync=0
[sqlite]
db="{output}"
table="ulog"
buffer=1000
"""
_STACKS = {
    "json": "log:NFLOG,base:BASE,ifi:IFINDEX,ip2str:IP2STR,mac:HWHDR,json:JSON",
    "sqlite": "log:NFLOG,base:BASE,ifi:IFINDEX,ip2str:IP2STR,mac:HWHDR,sqlite:SQLITE3",
}
_TABLE = """
CREATE TABLE ulog (oob_time_sec INTEGER, oob_time_usec INTEGER, oob_prefix TEXT, oob_mark INTEGER, oob_hook INTEGER,
    oob_in TEXT, oob_out TEXT, mac_saddr_str TEXT, ip_protocol INTEGER, ip_saddr_str TEXT, ip_daddr_str TEXT,
    ip_totlen INTEGER, udp_sport INTEGER, udp_dport INTEGER, raw_pktlen INTEGER)
"""


def plugins() -> Path | None:
    found = [path for path in Path("/usr/lib").glob("*/ulogd") if (path / "ulogd_output_JSON.so").exists()]
    return found[0] if found and shutil.which("ulogd") else None


def nfnet_command(kind: str, output: Path) -> list[str]:
    to = f"jsonl:{output}" if kind == "json" else f"sqlite:{output}"
    return [sys.executable, "-m", "nfnet", "collect", "--group", str(GROUP), "--to", to]


def ulogd_command(kind: str, output: Path) -> list[str]:
    directory, where = output.parent, plugins()
    if kind == "sqlite":
        with contextlib.closing(sqlite3.connect(output)) as connection, connection:
            connection.execute(_TABLE)
    file = directory / "ulogd.conf"
    file.write_text(_ULOGD.format(directory=directory, plugins=where, stack=_STACKS[kind], group=GROUP, output=output))
    return ["ulogd", "--configfile", str(file)]


def stored(kind: str, name: str, output: Path) -> int:
    if not output.exists():
        return 0
    if kind == "json":
        with output.open("rb") as file:
            return sum(1 for _ in file)
    with contextlib.closing(sqlite3.connect(output)) as connection:
        try:
            table = "ulog" if name == "ulogd2" else "messages"
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
        except sqlite3.OperationalError:  # locked, or not there yet
            return 0


def processor_time(process: subprocess.Popen[Any]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(name: str, kind: str, count: int) -> tuple[float, int]:
    """Processor time of the collector for a line that is stored, in microseconds, and how many are."""
    command = ulogd_command if name == "ulogd2" else nfnet_command
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        output = Path(directory) / f"out.{kind}"
        with subprocess.Popen(command(kind, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + PATIENCE
                while find_log(GROUP) is None:
                    if process.poll() is not None or time.monotonic() > deadline:
                        raise SystemExit(f"{name} does not start")
                    time.sleep(0.01)
                time.sleep(0.2)
                before = processor_time(process)
                fill(count)
                last, quiet = before, time.monotonic()
                while time.monotonic() < quiet + 1.5:  # until it has had nothing to do for as long
                    time.sleep(0.1)
                    if processor_time(process) > last + 0.02:
                        last, quiet = processor_time(process), time.monotonic()
                took = processor_time(process) - before
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(PATIENCE)
        lines = stored(kind, name, output)
        return took / max(lines, 1) * 1e6, lines


def main() -> int:
    found: argparse.Namespace = options(__doc__, [50_000])
    names = ["nfnet", *(["ulogd2"] if plugins() else [])]
    if len(names) == 1:
        print("ulogd2 is not there to compare with: apt-get install ulogd2 ulogd2-json ulogd2-sqlite3\n")
    figures: list[dict[str, Any]] = []
    failed = False
    with (
        rules.log(GROUP, prefix="bench: ", hook="input", protocol="udp", destination_port=PORT),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind(("127.0.0.1", PORT))
        for kind in _STACKS:
            for many in found.packets:
                count = many // (_SLOWER if kind == "sqlite" else 1)
                times: dict[str, list[float]] = {name: [] for name in names}
                least = dict.fromkeys(names, count)
                for _ in range(found.rounds):
                    for name in random.sample(names, len(names)):
                        took, lines = measure(name, kind, count)
                        times[name].append(took)
                        least[name] = min(least[name], lines)
                print(f"{kind}, a burst of {count:,}")
                for name in names:
                    ratio = statistics.median(a / b for a, b in zip(times["nfnet"], times[name]))
                    text = f"    {name:<8} cpu {statistics.median(times[name]):5.2f} (least {min(times[name]):5.2f})"
                    text += f"   at least {least[name]:,} stored"
                    if name != "nfnet":
                        text += f"   nfnet takes {ratio:.2f} of it (goal: {GOAL})"
                        failed |= ratio > GOAL
                    print(text, flush=True)
                    row = {"case": kind, "packets": count, "program": name, "subject": "nfnet", "ratio": ratio}
                    figures.append({**row, "cpu": times[name], "least": least[name]})
                failed |= least["nfnet"] < count
                print()
    write(found.json, figures)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
