"""``nfnet log``: show, store and record what rules log."""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from .. import rules
from .._io import private_files
from ..captures._pcap import LinkType, Writer
from ..errors import ArgumentError, NfnetError
from ..log import Log, LogMessage
from ..protocol.netlink import HEADER_SIZE
from . import packet_text
from .command_line import add_options, whole_number
from .signals import until_told, wait_readable
from .summaries import counted, losses, say

_DESCRIPTION = """\
Shows what firewall rules log to a group, a line each; writes captures that
tcpdump and Wireshark open, and rows of an SQLite database.

    nfnet log 5
    nfnet log 5 --json --install-rule "hook=input protocol=tcp state=new"
    nfnet log 5 -w log.pcap --sqlite log.db --quiet

While others have the database locked, its disk is full, or it is away, rows
are kept in memory, up to 64 MiB, and stored later; a database that was moved
or removed is made anew. What could not be stored is said at the end.

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
_BATCH = 1000  # rows in a transaction, or fewer if nothing more comes
_MOST_KEPT = 64 << 20  # bytes of rows that cannot be stored yet
_ROW_SIZE = 1000  # bytes of a row in memory, beside its payload
_LOCK_PATIENCE = 0.2  # seconds for which a transaction waits for a lock: nothing is read meanwhile
_AGAIN = 1.0  # seconds until the next try
_SAY_LOCKED = 5.0  # seconds: a lock is nothing unusual, and soon gone
_LAST_PATIENCE = 30.0  # seconds, at the end


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "log",
        help="show what rules log (NFLOG)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("group", type=whole_number(0, 65535), metavar="GROUP", help="number of the group")
    parser.add_argument("--prefix", default="", help="what the installed rule shall say")
    parser.add_argument("--sqlite", metavar="FILE", help="add rows to the table messages of a database")
    add_options(parser, rules.log)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    if options.prefix and (options.install_rule is None or "prefix" in options.install_rule):
        raise ArgumentError("--prefix is what the rule of --install-rule says, and may be given once")
    log = Log(options.group, threshold=1, sequence=True, netns=netns)
    with contextlib.ExitStack() as stack:
        sinks = _Sinks(options, stack)
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, log, address=options.metrics_address))
        if options.install_rule is not None:
            rule = {"prefix": options.prefix, **options.install_rule}
            stack.enter_context(rules.log(options.group, netns=netns, **rule))
        stack.enter_context(until_told(sinks.stop))
        stack.enter_context(log)
        sinks.begin()  # last: what was in a file to write to is gone with this
        try:
            while not sinks.stopped:
                if not log.process(sinks.take):
                    sinks.flush()
                    wait_readable(log, None)
        finally:
            complete = sinks.finish()
        say(f"{counted(sinks.seen, 'message')}{losses(log)}")
    return 0 if complete else 1


class _Sinks:
    """Where messages go."""

    def __init__(self, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._options = options
        self.seen = 0
        self.stopped = 0  # how often
        self._capture: _Capture | None = None
        self._database: _Database | None = None
        if options.write is not None:
            self._capture = _Capture(options.write)
            stack.callback(self._capture.close)
        if options.sqlite is not None:
            self._database = _Database(options.sqlite, options.group)
            stack.callback(self._database.close)

    def begin(self) -> None:
        """Raises NfnetError or OSError if one of the files cannot be written; then nothing in them was touched."""
        if self._database is not None:
            self._database.begin()
        if self._capture is not None:
            self._capture.begin()

    def stop(self) -> None:
        self.stopped += 1

    def take(self, message: LogMessage) -> None:
        if self.stopped:
            return
        self.seen += 1
        if self._options.count is not None and self.seen >= self._options.count:
            self.stop()
        if self._capture is not None:
            self._capture.take(message)
        if self._database is not None:
            self._database.take(message)
        if not self._options.quiet:  # last: whoever reads it may be gone
            text = (
                packet_text.ecs(message, group=self._options.group) if self._options.json else packet_text.line(message)
            )
            print(text, flush=True)

    def flush(self) -> None:
        """Nothing comes for a while: let it be on the disk."""
        if self._capture is not None:
            self._capture.flush()
            if self._capture.broken and self._database is None and self._options.quiet:
                self.stop()  # nothing is left to be done
        if self._database is not None:
            self._database.flush()

    def finish(self) -> bool:
        """Whether everything is on the disk; what is not is said."""
        complete = True
        if self._capture is not None:
            complete &= self._capture.finish()
        if self._database is not None:
            before = self.stopped
            complete &= self._database.finish(lambda: self.stopped > before)
        return complete


class _Capture:
    """A capture file. When it cannot be written any more it ends, and nothing else does."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._writer = Writer(path, LinkType.NFLOG, begin=False)
        self._unwritten = 0  # since the last flush
        self.broken = False

    def begin(self) -> None:
        self._writer.begin()

    def take(self, message: LogMessage) -> None:
        moment = message.timestamp_ns or time.time_ns()
        self._unwritten += 1
        self._try(lambda: self._writer.write(moment, message.raw[HEADER_SIZE:]))

    def flush(self) -> None:
        self._try(self._writer.flush)
        if not self.broken:
            self._unwritten = 0

    def _try(self, step: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            step()
        except OSError as error:
            self.broken = True
            say(f"nfnet log: -w {self._path}: {error.strerror}; the capture stops here")

    def finish(self) -> bool:
        """Whether all messages are there; if not, how many may be missing is said."""
        self.flush()
        if self.broken:
            what = counted(self._unwritten, "message")
            say(f"nfnet log: -w {self._path}: up to {what} not written")
        return not self.broken

    def close(self) -> None:
        with contextlib.suppress(OSError) if self.broken else contextlib.nullcontext():
            self._writer.close()


class _Database:
    """Adds rows to a table, also where others lock the database, or it is away for a while."""

    def __init__(self, path: str, group: int) -> None:
        self._path, self._group = path, group
        private_files.create_database(path)
        self._connection: sqlite3.Connection | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._size = self._missed = 0
        self._trouble: Exception | None = None  # of the last try
        self._last_trouble: Exception | None = None
        self._since = self._tried = 0.0
        self._said = False

    def begin(self) -> None:
        """Make the table if it is missing. Raises NfnetError if no rows could be added."""
        try:
            connection = self._open()
            connection.execute(_ROW, [0, 0, *[None] * 13])
            connection.rollback()  # it would have worked
        except sqlite3.Error as error:
            if not _is_lock(error):
                raise NfnetError(f"--sqlite {self._path}: {error}") from error

    def take(self, message: LogMessage) -> None:
        size = _ROW_SIZE + len(message.payload)
        if self._size + size > _MOST_KEPT:
            self._missed += 1
        else:
            self._rows.append(_row(self._group, message))
            self._size += size
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Store what is there, unless that failed just now."""
        if self._rows and (self._trouble is None or time.monotonic() >= self._tried + _AGAIN):
            self._store()

    def finish(self, is_enough: Callable[[], bool]) -> bool:
        """Store the rest, also if that means to wait for others; whether all messages are there, and if not say so."""
        deadline = time.monotonic() + _LAST_PATIENCE
        tries = 0
        while self._rows and not self._store():
            tries += 1  # twice at least: an error that is no lock lets go of the file, to open it anew
            if tries > 1 and (is_enough() or time.monotonic() > deadline or not _is_lock(self._trouble)):
                break
            if tries == 1 and _is_lock(self._trouble):
                text = f"waiting for it, for {_LAST_PATIENCE:.0f} s or until told to stop again"
                say(f"nfnet log: --sqlite {self._path}: {self._trouble}; {text}")
        self._missed += len(self._rows)
        if self._missed:
            what = counted(self._missed, "message")
            say(f"nfnet log: --sqlite {self._path}: {what} not stored: {self._last_trouble}")
        return not self._missed

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # what was wrong with it has been said
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(private_files.create_database(self._path), timeout=_LOCK_PATIENCE)
        self._connection.execute(_SCHEMA)
        return self._connection

    def _store(self) -> bool:
        self._tried = time.monotonic()
        try:
            connection = self._open()
            with connection:
                connection.executemany(_ROW, self._rows)
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            return False
        if self._said:
            say(f"nfnet log: --sqlite {self._path}: {counted(len(self._rows), 'message')} stored late")
        self._trouble, self._said = None, False
        self._rows.clear()
        self._size = 0
        return True

    def _failed(self, error: Exception) -> None:
        if self._trouble is None:
            self._since = self._tried
        self._trouble = self._last_trouble = error
        locked = _is_lock(error)
        if not locked:
            self.close()
        if not self._said and (not locked or self._tried >= self._since + _SAY_LOCKED):
            self._said = True
            say(f"nfnet log: --sqlite {self._path}: {error}; messages are kept, to be stored later")


def _is_lock(error: Exception | None) -> bool:
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


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
