"""``nfnet log``: show, store and record what rules log."""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import time
from typing import Any

from .. import rules
from ..capture import LinkType, Writer
from ..errors import ArgumentError, NfnetError
from ..files import create
from ..log import Log, LogMessage
from ..protocol.netlink import HEADER_SIZE
from . import common, lines

_DESCRIPTION = """\
Shows what firewall rules log to a group, a line each; writes captures that
tcpdump and Wireshark open, and rows of an SQLite database.

    nfnet log 5
    nfnet log 5 --json --install-rule "hook=input protocol=tcp state=new"
    nfnet log 5 -w log.pcap --sqlite log.db --quiet

exit status: 0 when it was told to stop, or after --count messages; 1 if the
kernel refuses, or a file cannot be written; 2 for wrong arguments
"""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    time REAL NOT NULL, log_group INTEGER NOT NULL, prefix TEXT, hook INTEGER,
    indev TEXT, outdev TEXT, mark INTEGER, uid INTEGER, hwaddr BLOB,
    protocol INTEGER, source TEXT, source_port INTEGER, destination TEXT, destination_port INTEGER,
    payload BLOB
)
"""
_ROW = "INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_BATCH = 1000


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "log",
        help="show what rules log (NFLOG)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", type=common.number(0, 65535), metavar="GROUP", help="number of the group")
    parser.add_argument("--prefix", default="", help="what the installed rule shall say")
    parser.add_argument("--sqlite", metavar="FILE", help="add rows to the table messages of a database")
    common.describe(parser, rules.log)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    if options.prefix and (options.install_rule is None or "prefix" in options.install_rule):
        raise ArgumentError("--prefix is what the rule of --install-rule says, and may be given once")
    log = Log(options.group, threshold=1, sequence=True, netns=netns)
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(options, stack)
        if options.install_rule is not None:
            rule = {"prefix": options.prefix, **options.install_rule}
            stack.enter_context(rules.log(options.group, netns=netns, **rule))
        stack.enter_context(log)
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, log, address=options.metrics_address))
        stack.enter_context(common.until_told(sinks.stop))
        try:
            while not sinks.stopped:
                if not log.process(sinks.take):
                    sinks.flush()
                    common.wait_readable(log, None)
        finally:
            sinks.flush()
        lost = log.counters.lost
        common.say(f"{sinks.seen} message{'' if sinks.seen == 1 else 's'}" + (f", {lost} lost" if lost else ""))
    return 0


class _Sinks:
    """Where messages go."""

    def __init__(self, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._options = options
        self.seen = 0
        self.stopped = False
        self._rows: list[tuple[Any, ...]] = []
        self._writer: Writer | None = None
        self._database: sqlite3.Connection | None = None
        if options.write is not None:
            self._writer = Writer(options.write, LinkType.NFLOG)
            stack.callback(self._writer.close)
        if options.sqlite is not None:
            os.close(create(options.sqlite))
            try:
                self._database = sqlite3.connect(options.sqlite)
                stack.callback(self._database.close)
                self._database.execute(_SCHEMA)
            except sqlite3.Error as error:
                raise NfnetError(f"--sqlite {options.sqlite}: {error}") from error

    def stop(self) -> None:
        self.stopped = True

    def take(self, message: LogMessage) -> None:
        if self.stopped:
            return
        self.seen += 1
        if self._options.count is not None and self.seen >= self._options.count:
            self.stopped = True
        if self._writer is not None:
            moment = message.timestamp_ns or time.time_ns()
            self._writer.write(moment, message.raw[HEADER_SIZE:])
        if self._database is not None:
            self._rows.append(_row(self._options.group, message))
            if len(self._rows) >= _BATCH:
                self.flush()
        if not self._options.quiet:  # last: whoever reads it may be gone
            text = lines.ecs(message, group=self._options.group) if self._options.json else lines.line(message)
            print(text, flush=True)

    def flush(self) -> None:
        """Nothing comes for a while: let it be on the disk."""
        if self._writer is not None:
            self._writer.flush()
        if self._database is not None and self._rows:
            try:
                with self._database:
                    self._database.executemany(_ROW, self._rows)
            except sqlite3.Error as error:
                raise NfnetError(f"--sqlite {self._options.sqlite}: {error}") from error
            self._rows.clear()


def _text(value: str | None) -> str | None:
    """SQLite has no text that is no UTF-8."""
    return None if value is None else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _row(group: int, message: LogMessage) -> tuple[Any, ...]:
    flow = message.flow
    return (
        message.timestamp or time.time(),
        group,
        _text(message.prefix),
        int(message.hook),
        _text(message.indev_name),
        _text(message.outdev_name),
        message.mark,
        message.uid,
        message.hwaddr,
        *(
            (flow.protocol, flow.source, flow.source_port, flow.destination, flow.destination_port)
            if flow
            else [None] * 5
        ),
        message.payload,
    )
