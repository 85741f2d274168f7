"""``nfnet stats``: show all queues and log groups, their processes, and how many packets were dropped."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import stats
from .._io.poller import Poller
from .._printable import printable
from ..netns import Netns
from ..stats import LogStatus, QueueStatus, process
from .command_line import netns
from .signals import until_told

_DESCRIPTION = """\
Shows the kernel's counters of all queues and log groups of this network
namespace: the process that bound each, how many packets wait, and how many were
dropped because the queue or the receive buffer was full. Only root can read
these counters.

    nfnet stats
    nfnet stats --watch
    nfnet stats --json

exit status: 0 on success; 1 if the counters cannot be read
"""

_QUEUES = ("queue", "process", "waiting", "packets", "packets/s", "queue full", "buffer full")
_LOGS = ("group", "process", "waiting", "timeout")


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stats",
        help="show queues and log groups, and what they dropped",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--watch", action="store_true", help="show them again every second, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print JSON Lines, an object for each queue and group")
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="show this network namespace: a name, path or process id"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    before: dict[int, QueueStatus] = {}
    poller = Poller()
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        poller.wake()

    with until_told(stop), contextlib.ExitStack() as stack:
        live = _live(stack) if options.watch and not options.json and sys.stdout.isatty() else None
        while True:
            queues, logs = stats.queues(netns), stats.logs(netns)
            if options.json:
                found: list[QueueStatus | LogStatus] = [*queues, *logs]
                for status in found:
                    print(json.dumps({**status._asdict(), "process": process(status.port_id, netns)}), flush=True)
            else:
                text = "\n".join(_tables(queues, logs, before, netns))
                if live is None:
                    print(text, flush=True)
                else:
                    live(text)
            if not options.watch:
                return 0
            before = {queue.num: queue for queue in queues}
            deadline = time.monotonic() + 1
            while not stopped and (left := deadline - time.monotonic()) > 0:
                poller.wait(left)
            if stopped:
                return 0


def _live(stack: contextlib.ExitStack) -> Callable[[str], None]:
    """Return a function that shows a text in place of the previous one; without flicker if rich is installed."""
    try:
        from rich.live import Live
        from rich.text import Text
    except ImportError:
        return lambda text: print(f"\x1b[H\x1b[J{text}", flush=True)
    live = stack.enter_context(Live(auto_refresh=False))
    return lambda text: live.update(Text(text), refresh=True)


def _tables(
    queues: Sequence[QueueStatus], logs: Sequence[LogStatus], before: dict[int, QueueStatus], netns: Netns | None
) -> Iterator[str]:
    rows: list[list[object]] = []
    for queue in queues:
        rate = (queue.last_id - before[queue.num].last_id) & 0xFFFFFFFF if queue.num in before else ""
        counts = (queue.waiting, queue.last_id, rate, queue.queue_dropped, queue.user_dropped)
        rows.append([queue.num, process(queue.port_id, netns), *counts])
    yield from _table(_QUEUES, rows, "no queues")
    yield ""
    rows = [[log.group, process(log.port_id, netns), log.waiting, f"{log.timeout} s"] for log in logs]
    yield from _table(_LOGS, rows, "no log groups")


def _table(names: Sequence[str], rows: Sequence[Sequence[object]], nothing: str) -> Iterator[str]:
    if not rows:
        yield nothing
        return
    texts = [list(names), *[[printable(str(cell)) for cell in row] for row in rows]]
    widths = [max(len(row[column]) for row in texts) for column in range(len(names))]
    for row in texts:
        cells = [cell.rjust(width) for cell, width in zip(row, widths)]
        cells[1] = row[1].ljust(widths[1])  # the name of the process
        yield "  ".join(cells).rstrip()
