"""Questions about a database of the collector, by name."""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any, NamedTuple

from .._arguments import nearest
from ..errors import ArgumentError, NfnetError
from . import _units, postgresql
from .postgresql import Postgresql
from .sqlite import VERSION, missing_columns


class _Dialect(NamedTuple):
    """The parts of SQL in which databases differ."""

    since: str
    until: str
    most: str
    clock: str
    """A time, to the millisecond, for people."""
    hour: str

    @property
    def between(self) -> str:
        """The condition of a question."""
        return f"time >= {self.since} AND time < {self.until}"

    def where(self, more: str = "") -> str:
        """Of which messages a question is."""
        return f"FROM messages WHERE {more}{self.between}"

    def top(self, what: str, more: str = "", where: str = "") -> str:
        """What there is most of."""
        return (
            f"SELECT {what}, count(*) AS messages {more} {self.where(where)}"
            f" GROUP BY 1 ORDER BY messages DESC, 1 LIMIT {self.most}"
        )

    def weighed(self, what: str, order: str) -> str:
        """Return a query that also counts the messages that a limit left out; they have the prefix of their record."""
        return (
            f"SELECT {what}, CAST(sum(coalesce(suppressed, 1)) AS BIGINT) AS messages {self.where()}"
            f" GROUP BY 1 ORDER BY {order} LIMIT {self.most}"
        )


_SQLITE = _Dialect(
    ":since",
    ":until",
    ":most",
    "strftime('%Y-%m-%d %H:%M:%f', {}, 'unixepoch')",
    "strftime('%Y-%m-%d %H:00', {}, 'unixepoch')",
)
_POSTGRESQL = _Dialect(
    "to_timestamp(%(since)s)",
    "to_timestamp(%(until)s)",
    "%(most)s",
    "to_char({}, 'YYYY-MM-DD HH24:MI:SS.MS')",
    "to_char({}, 'YYYY-MM-DD HH24:00')",
)


class Question(NamedTuple):
    """A question about the time from ``since`` to ``until``, in seconds since 1970, with at most ``most`` rows."""

    help: str
    sql: Callable[[_Dialect], str]


_PROTOCOL = (
    "CASE protocol WHEN 1 THEN 'icmp' WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 58 THEN 'icmpv6' WHEN 132 THEN 'sctp'"
    " ELSE CAST(protocol AS TEXT) END"
)

QUESTIONS: dict[str, Question] = {
    "top sources": Question(
        "senders of the most packets", lambda d: d.top("source", ", count(DISTINCT destination_port) AS ports")
    ),
    "top destinations": Question("receivers of the most packets", lambda d: d.top("destination")),
    "top ports": Question(
        "destination ports of the most packets",
        lambda d: (
            f"SELECT {_PROTOCOL} AS protocol, destination_port, count(*) AS messages, count(DISTINCT source) AS sources"
            f" {d.where()} GROUP BY 1, 2 ORDER BY messages DESC, 1, 2 LIMIT {d.most}"
        ),
    ),
    "top prefixes": Question(
        "prefixes of the most packets, also those over a limit", lambda d: d.weighed("prefix", "messages DESC, 1")
    ),
    "top protocols": Question("protocols of the most packets", lambda d: d.top(f"{_PROTOCOL} AS protocol")),
    "top interfaces": Question("incoming interfaces of the most packets", lambda d: d.top("indev")),
    "top users": Question(
        "local users that send the most packets",
        lambda d: d.top("coalesce(user_name, CAST(uid AS TEXT)) AS user", where="uid IS NOT NULL AND "),
    ),
    "top programs": Question(
        "local programs that send or receive the most packets",
        lambda d: d.top("coalesce(executable, process) AS program", where="process IS NOT NULL AND "),
    ),
    "scans": Question(
        "senders to many ports or hosts",
        lambda d: (
            "SELECT source, count(DISTINCT destination_port) AS ports, count(DISTINCT destination) AS hosts,"
            f" count(*) AS messages, {d.clock.format('min(time)')} AS first {d.where()} GROUP BY source"
            " HAVING count(DISTINCT destination_port) >= 10 OR count(DISTINCT destination) >= 10"
            " ORDER BY count(DISTINCT destination_port) + count(DISTINCT destination) DESC, source"
            f" LIMIT {d.most}"
        ),
    ),
    "per hour": Question(
        "number of packets in each hour",
        lambda d: d.weighed(f"{d.hour.format('time')} AS hour", "hour DESC"),
    ),
    "latest": Question(
        "the latest packets",
        lambda d: (
            f"SELECT {d.clock.format('time')} AS time, prefix, indev, outdev, {_PROTOCOL} AS protocol, source,"
            f" source_port, destination, destination_port {d.where()} ORDER BY messages.time DESC LIMIT {d.most}"
        ),
    ),
    "suppressed": Question(
        "number of packets that a limit left out",
        lambda d: (
            f"SELECT prefix, CAST(sum(suppressed) AS BIGINT) AS messages, {d.clock.format('max(time)')} AS last"
            f" {d.where('suppressed IS NOT NULL AND ')} GROUP BY prefix ORDER BY messages DESC, prefix LIMIT {d.most}"
        ),
    ),
    "losses": Question(
        "number of packets that the kernel could not deliver",
        lambda d: (
            f"SELECT {d.clock.format('time')} AS time, log_group, count FROM losses WHERE {d.between}"
            f" ORDER BY losses.time DESC LIMIT {d.most}"
        ),
    ),
}
"""By name."""

_NO_LOSS = ", ".join(f"0 AS {name}" for name in ("rowid", "time", "log_group", "count", "session", "seq"))
_STATEMENT = re.compile(r"\s*(select|with|explain|values)\b", re.IGNORECASE)
_WORDS = re.compile(r"(?P<name>[a-z ]+?)(\s+last\s+(?P<last>\S+))?(\s+limit\s+(?P<limit>\S+))?", re.IGNORECASE)
_MOST = 10


class Answer(NamedTuple):
    """Names of columns, and the rows, which are read from the database during iteration."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


def statement(question: str, now: float | None = None, dialect: _Dialect = _SQLITE) -> tuple[str, dict[str, Any]]:
    """Return SQL and values for ``top sources last 24h limit 20``, or for an SQL query. Raises ArgumentError."""
    if _STATEMENT.match(question):
        return question, {}
    now = time.time() if now is None else now
    words = _WORDS.fullmatch(" ".join(question.split()))
    name = words["name"].lower() if words else question
    if words is None or name not in QUESTIONS:
        text = f"no question is called {name!r}{nearest(name, QUESTIONS)}"
        raise ArgumentError(f"{text} (an SQL query begins with SELECT or WITH)" if not text.endswith("?") else text)
    try:
        since = now - _units.seconds(words["last"]) if words["last"] else 0.0
        most = _units.count(words["limit"]) if words["limit"] else _MOST
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return QUESTIONS[name].sql(dialect), {"since": since, "until": now + 1, "most": most}


def ask(database: str, question: str) -> Iterator[Answer]:
    """Answer a question about a database, without changing it. Yields one answer, which is valid during iteration.

    database: the file of an SQLite database, or ``postgresql://...``.

    Raises ArgumentError for an unknown question, NfnetError for an error of the database.
    """
    yield from (_ask_postgresql if database.startswith(f"{Postgresql.scheme}:") else _ask_sqlite)(database, question)


def _ask_postgresql(url: str, question: str) -> Iterator[Answer]:
    sql, values = statement(question, dialect=_POSTGRESQL)
    with postgresql.connect(url) as connection, postgresql.errors():
        connection.execute("SET search_path = nfnet")
        connection.read_only = True  # of transactions that begin explicitly
        with connection.transaction():
            # Only a single statement can be prepared: a COMMIT after it would end the read-only transaction.
            connection.prepare_threshold = 0
            cursor = connection.execute(sql, values or None, prepare=True)
            yield Answer(tuple(column.name for column in cursor.description or ()), iter(cursor))


def _ask_sqlite(path: str, question: str) -> Iterator[Answer]:
    sql, values = statement(question)
    try:
        with closing(connect(path)) as connection:
            cursor = connection.execute(sql, values)
            yield Answer(tuple(column[0] for column in cursor.description or ()), _rows(path, cursor))
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise NfnetError(f"{path}: {error}{_advice(path, str(error))}") from error


def _advice(path: str, error: str) -> str:
    """Return the end of an error of SQLite: what is probably wrong with the file or the query."""
    if error.startswith("no such table: "):
        return "; nfnet collect makes databases with the tables messages, losses and sessions"
    if error.startswith("no such column: "):
        try:
            with closing(connect(path)) as connection:
                columns = [row[0] for row in connection.execute("SELECT * FROM messages LIMIT 0").description]
        except sqlite3.Error:  # the query was about other tables
            return ""
        return nearest(error.partition(": ")[2], columns)
    return "" if os.path.exists(path) else ": there is no such file"


def connect(path: str) -> sqlite3.Connection:
    """Return a read-only connection. Raises sqlite3.Error.

    In a database of an older version the table messages also has the columns of the present version.
    """
    # The name as a URI, for that is how to open a file without making one, and without writing to it.
    connection = sqlite3.connect(f"file:{_escaped(path)}?mode=ro", uri=True)
    try:
        if (version := connection.execute("PRAGMA user_version").fetchone()[0]) < VERSION:
            missing = "".join(f", NULL AS {column.split()[0]}" for column in missing_columns(connection))
            if missing and connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'messages'").fetchone():
                connection.execute(f"CREATE TEMP VIEW messages AS SELECT rowid, *{missing} FROM main.messages")
            if version == 0:
                connection.execute(f"CREATE TEMP VIEW losses AS SELECT {_NO_LOSS} LIMIT 0")
    except BaseException:
        connection.close()
        raise
    return connection


def _rows(path: str, cursor: sqlite3.Cursor) -> Iterator[tuple[Any, ...]]:
    try:
        yield from cursor
    except sqlite3.Error as error:
        raise NfnetError(f"{path}: {error}") from error


def _escaped(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
