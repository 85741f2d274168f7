"""``nfnet stats``: all queues and log groups, who has them, and what they drop."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from ..doctor import process
from ..stats import LogRow, QueueRow, log_rows, queue_rows
from . import common

_DESCRIPTION = """\
Shows the kernel's rows about all queues and log groups of this network
namespace: who has them, how many packets wait, how many were dropped because
the queue or the receive buffer was full. Only root may read them.

    nfnet stats
    nfnet stats --watch
    nfnet stats --json

exit status: 0; 1 if they may not be read
"""

_QUEUES = ("queue", "process", "waiting", "packets", "packets/s", "queue full", "buffer full")
_LOGS = ("group", "process", "waiting", "timeout")


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stats",
        help="queues and log groups, and what they drop",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--watch", action="store_true", help="again every second, until told to stop")
    parser.add_argument("--json", action="store_true", help="JSON Lines")
    parser.add_argument("--netns", metavar="NAME", help="of another network namespace")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = common.netns_of(options)
    before: dict[int, QueueRow] = {}
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True

    with common.until_told(stop):
        while True:
            queues, logs = queue_rows(netns), log_rows(netns)
            if options.json:
                found: list[QueueRow | LogRow] = [*queues, *logs]
                for row in found:
                    print(json.dumps({**row._asdict(), "process": process(row.port_id)}), flush=True)
            else:
                _show(queues, logs, before, clear=options.watch and sys.stdout.isatty())
            if not options.watch:
                return 0
            before = {row.number: row for row in queues}
            deadline = time.monotonic() + 1
            while not stopped and time.monotonic() < deadline:
                time.sleep(0.05)
            if stopped:
                return 0


def _show(queues: Sequence[QueueRow], logs: Sequence[LogRow], before: dict[int, QueueRow], *, clear: bool) -> None:
    if clear:
        print("\x1b[H\x1b[J", end="")
    rows = []
    for row in queues:
        rate = (row.last_id - before[row.number].last_id) & 0xFFFFFFFF if row.number in before else None
        rows.append([row.number, process(row.port_id), row.waiting, row.last_id, "" if rate is None else rate,
                     row.queue_dropped, row.user_dropped])  # fmt: skip
    _table(_QUEUES, rows, "no queues")
    print()
    _table(_LOGS, [[row.group, process(row.port_id), row.waiting, f"{row.timeout} s"] for row in logs], "no log groups")
    sys.stdout.flush()


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> None:
    if not rows:
        print(nothing)
        return
    texts = [list(names), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(names))]
    for row in texts:
        print("  ".join(cell.rjust(width) if column != 1 else cell.ljust(width)
                        for column, (cell, width) in enumerate(zip(row, widths))).rstrip())  # fmt: skip
