"""Log messages as rows of an SQLite database."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from .._io import private_files
from .._printable import counted
from ..errors import NfnetError
from ..log import LogMessage
from ._output import Output

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


class Sqlite(Output):
    """Adds rows to a table, also where others lock the database, or it is away for a while."""

    option = "--sqlite"
    help = "add rows to the table messages of a database"

    def __init__(self, target: str, group: int, report: Callable[[str], None]) -> None:
        super().__init__(target, group, report)
        private_files.create_database(target)
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
                raise NfnetError(f"--sqlite {self.target}: {error}") from error

    def take(self, message: LogMessage) -> None:
        size = _ROW_SIZE + len(message.payload)
        if self._size + size > _MOST_KEPT:
            self._missed += 1
        else:
            self._rows.append(_row(self.group, message))
            self._size += size
        if len(self._rows) >= _BATCH:
            self.flush()

    def flush(self) -> None:
        """Store what is there, unless that failed just now."""
        if self._rows and (self._trouble is None or time.monotonic() >= self._tried + _AGAIN):
            self._store()

    def finish(self, is_enough: Callable[[], bool]) -> bool:
        """As `Output.finish`; waits for others who have the database locked."""
        deadline = time.monotonic() + _LAST_PATIENCE
        tries = 0
        while self._rows and not self._store():
            tries += 1  # twice at least: an error that is no lock lets go of the file, to open it anew
            if tries > 1 and (is_enough() or time.monotonic() > deadline or not _is_lock(self._trouble)):
                break
            if tries == 1 and _is_lock(self._trouble):
                text = f"waiting for it, for {_LAST_PATIENCE:.0f} s or until told to stop again"
                self.report(f"{self._trouble}; {text}")
        self._missed += len(self._rows)
        if self._missed:
            self.report(f"{counted(self._missed, 'message')} not stored: {self._last_trouble}")
        return not self._missed

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # what was wrong with it has been said
                self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = sqlite3.connect(private_files.create_database(self.target), timeout=_LOCK_PATIENCE)
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
            self.report(f"{counted(len(self._rows), 'message')} stored late")
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
            self.report(f"{error}; messages are kept, to be stored later")


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
