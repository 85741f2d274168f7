"""Log messages as rows of an SQLite database."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .._accounts import group_name, user_name
from .._annotated import Annotated
from .._ecs import destination_mac, link_header
from .._io import private_files
from ..errors import NfnetError
from ..log import LogMessage
from . import _units
from ._batch import Batch, Session
from ._output import Output, OutputError

VERSION = 2
"""Version of the tables, in ``user_version``. Older databases are upgraded: 0 had no sessions, 1 fewer columns."""

_MESSAGES = """
CREATE TABLE IF NOT EXISTS messages (
    time REAL NOT NULL, log_group INTEGER NOT NULL, prefix TEXT, hook INTEGER,
    indev TEXT, outdev TEXT, mark INTEGER, uid INTEGER, hwaddr BLOB,
    protocol INTEGER, source TEXT, source_port INTEGER, destination TEXT, destination_port INTEGER,
    payload BLOB
)
"""
_NEW_COLUMNS = (
    "length INTEGER",
    "session INTEGER",
    "seq INTEGER",
    # since version 2
    "gid INTEGER",
    "user_name TEXT",
    "group_name TEXT",
    "physindev TEXT",
    "physoutdev TEXT",
    "ethertype INTEGER",
    "vlan INTEGER",
    "destination_mac BLOB",
    "hwtype INTEGER",
    "hwheader BLOB",
    "tcp_flags INTEGER",
    "icmp_type INTEGER",
    "icmp_code INTEGER",
    "connection_state TEXT",
    "process TEXT",
    "pid INTEGER",
    "executable TEXT",
    "unit TEXT",
    "container TEXT",
    "suppressed INTEGER",
)
_TABLES = (
    """
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY, host TEXT NOT NULL, boot TEXT NOT NULL, log_group INTEGER NOT NULL,
    started INTEGER NOT NULL, labels TEXT, UNIQUE (host, boot, log_group, started)
)
""",
    """
CREATE TABLE IF NOT EXISTS losses (
    time REAL NOT NULL, log_group INTEGER NOT NULL, session INTEGER NOT NULL, seq INTEGER NOT NULL,
    count INTEGER NOT NULL, UNIQUE (session, seq)
)
""",
    "CREATE INDEX IF NOT EXISTS messages_time ON messages (time)",
    "CREATE UNIQUE INDEX IF NOT EXISTS messages_id ON messages (session, seq)",
)
_COLUMNS = (
    # columns of the rule, which are the same for many messages; see `_of_metadata`
    *("log_group", "prefix", "hook", "indev", "outdev", "mark", "uid", "hwaddr"),
    *("gid", "user_name", "group_name", "physindev", "physoutdev", "ethertype", "vlan", "destination_mac", "hwtype"),
    *("hwheader", "connection_state"),
    # columns of the process and of limits; see `_of_note`
    *("process", "pid", "executable", "unit", "container", "suppressed"),
    # columns of the packet
    *("time", "protocol", "source", "source_port", "destination", "destination_port", "payload", "length"),
    *("tcp_flags", "icmp_type", "icmp_code", "session", "seq"),
)
_ROW = f"INSERT OR IGNORE INTO messages ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"
_NO_NOTE = (None,) * 6
_TCP = 6
_ICMP = (1, 58)
_LOSS = "INSERT OR IGNORE INTO losses VALUES (?, ?, ?, ?, ?)"
_FIND_SESSION = "SELECT id FROM sessions WHERE (host, boot, log_group, started) = (?, ?, ?, ?)"
_SESSION = "INSERT INTO sessions (host, boot, log_group, started, labels) VALUES (?, ?, ?, ?, ?)"
_LOCK_PATIENCE = 0.2  # seconds for which a transaction waits for a lock
_TRIM_AFTER = 60.0  # seconds between two removals of old rows
_TRIM_FOR = 1.0
_TRIM_ROWS = 10_000  # rows at a time, so that no lock is held for long


class Sqlite(Output):
    """Adds rows to a table, also while other processes read it, lock it, or remove the file.

    A message is stored once, however often it is written: rows have a unique session and sequence number.

    target: the name of the database's file.
    keep: remove rows older than so many seconds. Default: never.
    max_size: remove the oldest rows when the data takes more than so many bytes. Default: no limit.
    """

    scheme = "sqlite"
    suffixes = (".db", ".sqlite", ".sqlite3")
    help = "rows in the table messages of a database"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"keep": _units.seconds, "max_size": _units.size}

    def __init__(self, target: str, *, keep: int | None = None, max_size: int | None = None) -> None:
        super().__init__(target)
        self._keep = keep
        self._max_size = max_size
        self._trimmed = 0.0
        self._status: os.stat_result | None = None
        self._connection: sqlite3.Connection | None = None
        self._sessions: dict[Session, int] = {}
        private_files.create_database(target)

    def begin(self) -> None:
        try:
            connection = self._open()
            connection.execute("INSERT INTO messages (time, log_group) VALUES (0, 0)")
            connection.rollback()  # a row can be inserted
        except sqlite3.Error as error:
            if not is_lock(error):
                raise NfnetError(f"{self.target}: {error}") from error

    def write(self, batch: Batch) -> None:
        with self._errors():
            connection = self._open()
            with connection:
                session = self._session(connection, batch)
                if batch.lost:
                    before = batch.messages[0].seq
                    row = (batch.read_ns / 1e9, batch.session.group, session, before, batch.lost)
                    connection.execute(_LOSS, row)
                connection.executemany(_ROW, _rows(batch, session))
            self._sessions[batch.session] = session  # after the commit

    def idle(self) -> None:
        if (self._keep or self._max_size) and (not self._trimmed or time.monotonic() >= self._trimmed + _TRIM_AFTER):
            self._trimmed = time.monotonic()
            with self._errors():
                self.trim()

    def trim(self) -> None:
        """Remove rows that are too old or too many, for at most a second. Raises sqlite3.Error."""
        connection = self._open()
        enough = time.monotonic() + _TRIM_FOR
        if self._keep:
            oldest = time.time() - self._keep
            with connection:
                connection.execute("DELETE FROM losses WHERE time < ?", (oldest,))
            old = "SELECT rowid FROM messages WHERE time < ? ORDER BY time LIMIT ?"
            while _delete(connection, old, (oldest, _TRIM_ROWS)):
                if time.monotonic() > enough:
                    self._trimmed = 0.0  # the rest later; messages are stored in between
                    return
        if self._max_size:
            while self._size(connection) > self._max_size and _delete(
                connection, "SELECT rowid FROM messages ORDER BY time LIMIT ?", (_TRIM_ROWS,)
            ):
                if time.monotonic() > enough:
                    self._trimmed = 0.0
                    return

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):  # its error was reported
                self._connection.close()
            self._connection = None
        self._sessions.clear()

    @staticmethod
    def _size(connection: sqlite3.Connection) -> int:
        """Return the bytes in use, without free pages, which SQLite fills again."""
        size, pages, free = (
            _rows_of(connection, f"PRAGMA {name}")[0][0] for name in ("page_size", "page_count", "freelist_count")
        )
        return int(size * (pages - free))

    @contextlib.contextmanager
    def _errors(self) -> Any:
        try:
            yield
        except (sqlite3.Error, OSError, NfnetError) as error:
            usual = is_lock(error)
            if not usual:
                self.close()
            raise OutputError(str(error), usual=usual) from error

    def _open(self) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            path = private_files.create_database(self.target)
            connection = self._connection = sqlite3.connect(path, timeout=_LOCK_PATIENCE, check_same_thread=False)
            self._status = os.stat(path)
            self._prepare(connection)
        elif not self._is_there(connection):
            self.close()
            return self._open()
        return connection

    def _is_there(self, connection: sqlite3.Connection) -> bool:
        """Return whether file and tables exist: SQLite does not notice if another process moved or removed them."""
        try:
            if self._status is None or not os.path.samestat(os.stat(self.target), self._status):
                return False
        except FileNotFoundError:
            return False
        return bool(_rows_of(connection, "SELECT 1 FROM sqlite_master WHERE name = 'messages'"))

    def _prepare(self, connection: sqlite3.Connection) -> None:
        version = _rows_of(connection, "PRAGMA user_version")[0][0]
        if version > VERSION:
            self.close()
            raise NfnetError(
                f"{self.target} was made by a newer nfnet: its version is {version}, and known is {VERSION}"
            )
        # WAL: readers and the writer do not block each other. NORMAL: killing the process loses nothing; a power
        # failure can lose the last rows, but does not damage the database.
        _rows_of(connection, "PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(_MESSAGES)
            for column in missing_columns(connection):
                connection.execute(f"ALTER TABLE messages ADD COLUMN {column}")
            for statement in _TABLES:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {VERSION}")

    def _session(self, connection: sqlite3.Connection, batch: Batch) -> int:
        session = batch.session
        if session in self._sessions:
            return self._sessions[session]
        key = (session.host, session.boot, session.group, session.started)
        found = _rows_of(connection, _FIND_SESSION, key)
        if not found:
            labels = json.dumps(dict(batch.labels)) if batch.labels else None
            return int(connection.execute(_SESSION, (*key, labels)).lastrowid or 0)
        return int(found[0][0])


def _rows_of(connection: sqlite3.Connection, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Execute a statement and return all of its rows: what has rows left keeps PyPy from committing."""
    return connection.execute(statement, values).fetchall()


def _delete(connection: sqlite3.Connection, which: str, values: tuple[Any, ...]) -> int:
    with connection:
        return connection.execute(f"DELETE FROM messages WHERE rowid IN ({which})", values).rowcount


def is_lock(error: BaseException | None) -> bool:
    """Return whether an error means that another process has the database locked."""
    return isinstance(error, sqlite3.OperationalError) and "locked" in str(error)


def _text(value: str | None) -> str | None:
    """Return text that is valid UTF-8, which SQLite requires."""
    return None if value is None else value.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _rows(batch: Batch, session: int) -> list[tuple[Any, ...]]:
    """Yield a row for each message. Columns of the metadata are read once for all messages with the same metadata."""
    known: dict[bytes, tuple[Any, ...]] = {}
    group, moment = batch.session.group, batch.read_ns / 1e9
    found = []
    for message in batch.messages:
        metadata = message.metadata
        rule = known.get(metadata)
        if rule is None:
            rule = known[metadata] = _of_metadata(message, group)
        raw = message.raw
        note = _of_note(raw) if isinstance(raw, Annotated) else _NO_NOTE
        flow = message.flow
        ends = (None,) * 5 if flow is None else (flow[0], flow[1], flow[2], flow[3], flow[4])
        payload = message.payload
        ip = message.ip
        length = flags = icmp_type = icmp_code = None
        if ip is not None:
            length = ip.length
            if ip.protocol == _TCP:
                if (tcp := message.tcp) is not None:
                    flags = int(tcp.flags)
            elif ip.protocol in _ICMP and (icmp := message.icmp) is not None:
                icmp_type, icmp_code = icmp.type, icmp.code
        of_packet = (payload, length, flags, icmp_type, icmp_code)
        found.append((*rule, *note, message.timestamp or moment, *ends, *of_packet, session, message.seq))
    return found


def _of_metadata(message: LogMessage, group: int) -> tuple[Any, ...]:
    vlan, ctinfo = message.vlan, message.ctinfo
    return (
        group,
        _text(message.prefix),
        int(message.hook),
        _text(message.indev_name),
        _text(message.outdev_name),
        message.mark,
        message.uid,
        message.hwaddr,
        message.gid,
        _text(user_name(message.uid, message.raw)),
        _text(group_name(message.gid, message.raw)),
        _text(message.physindev_name),
        _text(message.physoutdev_name),
        message.hw_protocol,
        None if vlan is None else vlan.tci & 0xFFF,
        destination_mac(message),
        message.hwtype,
        link_header(message) or None,
        None if ctinfo is None else ctinfo.name.lower(),
    )


def _of_note(raw: Annotated) -> tuple[Any, ...]:
    process, suppressed = raw.process, raw.suppressed or None
    if process is None:
        return (*_NO_NOTE[:-1], suppressed)
    text = _text(process.name), process.pid, _text(process.executable), _text(process.unit), process.container
    return (*text, suppressed)


def missing_columns(connection: sqlite3.Connection) -> list[str]:
    """Return the definitions of columns that a table of an older version lacks."""
    there = {row[1] for row in _rows_of(connection, "PRAGMA table_info(messages)")}
    return [column for column in _NEW_COLUMNS if column.split()[0] not in there]
