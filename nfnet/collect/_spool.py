"""Stores of batches that an output could not store yet: in memory, or on disk."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from abc import ABC, abstractmethod
from collections import deque

from .._io import private_files
from ..errors import NfnetError
from ._batch import Batch, Session
from ._packed import joined, names, notes, split

_MESSAGE_SIZE = 500  # bytes of memory for a message, besides its contents
_READ = 16 << 20  # bytes that messages which are read together take, at most


class Store(ABC):
    """Batches in the order in which they were added, of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most

    @property
    def has_room(self) -> bool:
        """Whether all messages that are read together fit into it; if it is very small, whether it is half empty."""
        return self.size <= self._most - min(_READ, self._most // 2)

    @abstractmethod
    def add(self, batch: Batch) -> bool:
        """Add a batch at the end; return False if there is no room for it."""

    @abstractmethod
    def first(self) -> Batch | None:
        """Return the first batch; None if there is none."""

    @abstractmethod
    def remove_first(self) -> None:
        """Remove the first batch, which was stored."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of messages."""

    @property
    @abstractmethod
    def size(self) -> int:
        """The size of the messages in bytes."""

    def close(self) -> None:  # noqa: B027  # that in memory has nothing to do
        """Close the file, if there is one."""


class Memory(Store):
    """Batches in memory, of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._batches: deque[Batch] = deque()
        self._size = self._count = 0

    def add(self, batch: Batch) -> bool:
        size = batch.size + _MESSAGE_SIZE * len(batch)
        if self._size + size > self._most:
            return False
        self._batches.append(batch)
        self._size += size
        self._count += len(batch)
        return True

    def first(self) -> Batch | None:
        return self._batches[0] if self._batches else None

    def remove_first(self) -> None:
        batch = self._batches.popleft()
        self._size -= batch.size + _MESSAGE_SIZE * len(batch)
        self._count -= len(batch)

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        return self._size


_TABLE = """
CREATE TABLE IF NOT EXISTS batches (
    id INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL, read_ns INTEGER NOT NULL, lost INTEGER NOT NULL,
    labels TEXT NOT NULL, names TEXT NOT NULL, count INTEGER NOT NULL, size INTEGER NOT NULL, messages BLOB NOT NULL
)
"""
_NOTES = "ALTER TABLE batches ADD COLUMN notes TEXT"  # which databases of older versions lack
_COLUMNS = "session, read_ns, lost, labels, names, count, size, messages, notes"
_FIRST = f"SELECT id, {_COLUMNS} FROM batches WHERE id > ? ORDER BY id LIMIT 1"
_ADD = f"INSERT INTO batches ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"


class Spool(Store):
    """Batches in an SQLite database, of at most ``most`` bytes, which remain after this process has ended.

    Messages are stored as the kernel sent them. Raises NfnetError or OSError if the file cannot be used.
    """

    def __init__(self, path: str, most: int) -> None:
        super().__init__(most)
        self.path = path
        try:
            self._connection = sqlite3.connect(private_files.create_database(path), isolation_level=None)
            self._connection.execute("PRAGMA journal_mode = WAL").fetchall()
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(_TABLE)
            # All rows of each statement: what has rows left keeps PyPy from committing.
            columns = self._connection.execute("PRAGMA table_info(batches)").fetchall()
            if not any(row[1] == "notes" for row in columns):
                self._connection.execute(_NOTES)
            found = self._connection.execute("SELECT total(count), total(size) FROM batches").fetchall()[0]
        except sqlite3.Error as error:
            raise NfnetError(f"spool {path}: {error}") from error
        self._count, self._size = map(int, found)
        self._first: tuple[int, Batch] | None = None
        self._done = 0  # the last one that was stored

    def add(self, batch: Batch) -> bool:
        data = joined(batch.messages)
        if self._size + len(data) > self._most:
            return False
        noted = notes(batch.messages)
        row = (
            *(json.dumps(batch.session), batch.read_ns, batch.lost, json.dumps(dict(batch.labels))),
            *(json.dumps(names(batch.messages)), len(batch), len(data), data),
            json.dumps(noted) if noted else None,
        )
        try:
            self._connection.execute(_ADD, row)
        except sqlite3.Error:  # the disk is full, for instance
            return False
        self._count += len(batch)
        self._size += len(data)
        return True

    def first(self) -> Batch | None:
        if self._first is None:
            try:
                rows = self._connection.execute(_FIRST, (self._done,)).fetchall()
            except sqlite3.Error as error:
                raise NfnetError(f"spool {self.path}: {error}") from error
            if not rows:
                return None
            number, session, read_ns, lost, labels, known, _, _, data, noted = rows[0]
            messages = split(data, json.loads(known), json.loads(noted or "null"))
            batch = Batch(Session(*json.loads(session)), messages, lost, read_ns, json.loads(labels))
            self._first = number, batch
        return self._first[1]

    def remove_first(self) -> None:
        self.first()
        if self._first is None:
            return
        number, batch = self._first
        self._first, self._done = None, number
        with contextlib.suppress(sqlite3.Error):  # the disk is full: the next one removes it, too
            self._connection.execute("DELETE FROM batches WHERE id <= ?", (number,))
        self._count -= len(batch)
        self._size -= sum(len(message.raw) + -len(message.raw) % 4 for message in batch.messages)

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        return self._size

    def close(self) -> None:
        self._connection.close()
