"""Reads the rows of a database as they are stored."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from typing import Any

from ..errors import ArgumentError, NfnetError
from ._queries import connect
from .sqlite import is_lock

_PORTION = 1000
_MESSAGE_COLUMNS = """
    rowid AS id, time, log_group, prefix, indev, outdev, protocol, source, source_port, destination, destination_port,
    length, tcp_flags, icmp_type, icmp_code, mark, uid, user_name, process, pid, suppressed, session, seq
"""
_LOSS_COLUMNS = "rowid AS id, time, log_group, count, session, seq"

Row = dict[str, Any]


class Follower:
    """Reads new rows of the tables messages and losses, also after the database was replaced by another one.

    condition: an SQL condition on the columns of the table messages; rows of losses are returned in any case.

    Raises ArgumentError for a wrong condition, NfnetError if the database does not exist.
    """

    def __init__(self, path: str, condition: str = "") -> None:
        if path.startswith("postgresql:"):
            # Rows of several collectors are committed in any order, and have no number by which new ones are found.
            hint = "for PostgreSQL repeat a question: watch nfnet query postgresql://... latest limit 20"
            raise ArgumentError(f"only an SQLite database can be followed; {hint}")
        self._path = path
        self._condition = condition.strip() or "1"
        self._connection: sqlite3.Connection | None = None
        self._status: os.stat_result | None = None
        self._tables: list[_Table] = []
        try:
            self._open()
            for table in self._tables:
                table.skip()
        except (sqlite3.Error, OSError) as error:
            raise NfnetError(f"{self._path}: {error}") from error

    def rows(self) -> Iterator[Row]:
        """Yield the rows since the last call; none while the database is locked or does not exist.

        Raises NfnetError for an error of SQLite.
        """
        replaced = self._is_replaced()
        try:
            for table in self._tables:  # also those of a file that was renamed: the last rows that were added to it
                yield from table.new()
            if replaced:
                self.close()
                self._open()
                for table in self._tables:
                    yield from table.new()
        except FileNotFoundError:
            pass
        except sqlite3.Error as error:
            # A database that is just being created has no tables yet, or cannot be opened.
            if not (is_lock(error) or "no such table" in str(error) or self._connection is None):
                raise NfnetError(f"{self._path}: {error}") from error

    def _is_replaced(self) -> bool:
        try:
            return self._status is None or not os.path.samestat(os.stat(self._path), self._status)
        except FileNotFoundError:
            return False  # until there is another one

    def _open(self) -> None:
        """Open the database. Raises sqlite3.Error, FileNotFoundError, and ArgumentError for a wrong condition."""
        status = os.stat(self._path)
        connection = connect(self._path)
        condition = self._condition
        try:
            connection.execute("SELECT 1 FROM messages LIMIT 0")
            try:
                connection.execute(f"SELECT 1 FROM messages WHERE (\n{condition}\n) LIMIT 0")
            except (sqlite3.Error, sqlite3.Warning) as error:
                raise ArgumentError(
                    f"{condition!r} is no condition about messages, such as destination_port = 22: {error}"
                ) from error
        except BaseException:
            connection.close()
            raise
        self._connection, self._status = connection, status
        self._tables = [
            _Table(connection, "losses", _LOSS_COLUMNS, "1"),
            _Table(connection, "messages", _MESSAGE_COLUMNS, condition),
        ]

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._tables, self._status = None, [], None


class _Table:
    """Reads the rows that are added to a table."""

    def __init__(self, connection: sqlite3.Connection, name: str, columns: str, condition: str) -> None:
        self._connection = connection
        self._name = name
        self._sql = (
            f"SELECT {columns} FROM {name} WHERE rowid > ? AND (\n{condition}\n) ORDER BY rowid LIMIT {_PORTION}"
        )
        self._last = 0
        self._id: tuple[Any, ...] | None = None  # of that row

    def skip(self) -> None:
        """Regard the present rows as read."""
        self._remember(self._newest())

    def _newest(self) -> int:
        return int(self._connection.execute(f"SELECT coalesce(max(rowid), 0) FROM {self._name}").fetchone()[0])

    def _remember(self, last: int) -> None:
        self._last, self._id = last, self._identity(last)

    def _identity(self, row: int) -> tuple[Any, ...] | None:
        sql = f"SELECT session, seq, time FROM {self._name} WHERE rowid = ?"
        found: tuple[Any, ...] | None = self._connection.execute(sql, (row,)).fetchone()
        return found

    def new(self) -> Iterator[Row]:
        # SQLite numbers rows from 1 again when there are none left. If the last row that was seen has been removed, all
        # others that were seen are older, and have been removed before it.
        if self._last and self._identity(self._last) != self._id:
            self._last, self._id = 0, None
        newest = self._newest()
        last = self._last
        while True:
            cursor = self._connection.execute(self._sql, (last,))
            names = [column[0] for column in cursor.description]
            rows = cursor.fetchall()
            for row in rows:
                yield dict(zip(names, row))
            if len(rows) < _PORTION:
                break
            last = rows[-1][0]
        last = max([newest, *(row[0] for row in rows[-1:])])
        if last != self._last:
            self._remember(last)
