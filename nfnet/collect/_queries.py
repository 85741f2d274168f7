"""Questions about a database of the collector, by name."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

from ..errors import ArgumentError, NfnetError
from . import _units
from ._outputs import nearest
from .sqlite import VERSION, missing_columns


class Question(NamedTuple):
    """What is asked: ``:since`` and ``:until`` are seconds since 1970, ``:most`` is how many rows."""

    help: str
    sql: str


_WHERE = "FROM messages WHERE time >= :since AND time < :until"
_PROTOCOL = (
    "CASE protocol WHEN 1 THEN 'icmp' WHEN 6 THEN 'tcp' WHEN 17 THEN 'udp' WHEN 58 THEN 'icmpv6' WHEN 132 THEN 'sctp'"
    " ELSE protocol END"
)
_TIME = "strftime('%Y-%m-%d %H:%M:%f', time, 'unixepoch')"
_LIMIT = "LIMIT :most"


def _top(what: str, more: str = "") -> str:
    return f"SELECT {what}, count(*) AS messages {more} {_WHERE} GROUP BY 1 ORDER BY messages DESC, 1 {_LIMIT}"


def _weighed(what: str, order: str = "messages DESC, 1") -> str:
    """Counts those, too, for which a message stands that a limit left out; they have the same prefix."""
    return f"SELECT {what}, sum(coalesce(suppressed, 1)) AS messages {_WHERE} GROUP BY 1 ORDER BY {order} {_LIMIT}"


QUESTIONS: dict[str, Question] = {
    "top sources": Question("who sends most", _top("source", ", count(DISTINCT destination_port) AS ports")),
    "top destinations": Question("to whom", _top("destination")),
    "top ports": Question(
        "to which port",
        f"SELECT {_PROTOCOL} AS protocol, destination_port, count(*) AS messages, count(DISTINCT source) AS sources"
        f" {_WHERE} GROUP BY 1, 2 ORDER BY messages DESC, 1, 2 {_LIMIT}",
    ),
    "top prefixes": Question("which rule logs most; what a limit left out included", _weighed("prefix")),
    "top protocols": Question("which protocol", _top(f"{_PROTOCOL} AS protocol")),
    "top interfaces": Question("by which interface it came", _top("indev")),
    "top users": Question(
        "which local user sends most",
        _top("coalesce(user_name, uid) AS user").replace("WHERE", "WHERE uid IS NOT NULL AND"),
    ),
    "top programs": Question(
        "which local program sends or receives most",
        _top("coalesce(executable, process) AS program").replace("WHERE", "WHERE process IS NOT NULL AND"),
    ),
    "scans": Question(
        "who tried many ports or hosts",
        f"SELECT source, count(DISTINCT destination_port) AS ports, count(DISTINCT destination) AS hosts,"
        f" count(*) AS messages, {_TIME.replace('time,', 'min(time),')} AS first {_WHERE} GROUP BY source"
        f" HAVING ports >= 10 OR hosts >= 10 ORDER BY ports + hosts DESC, source {_LIMIT}",
    ),
    "per hour": Question(
        "how many in each hour",
        _weighed("strftime('%Y-%m-%d %H:00', time, 'unixepoch') AS hour", "hour DESC"),
    ),
    "latest": Question(
        "the last ones",
        f"SELECT {_TIME} AS time, prefix, indev, outdev, {_PROTOCOL} AS protocol, source, source_port, destination,"
        f" destination_port {_WHERE} ORDER BY messages.time DESC {_LIMIT}",
    ),
    "suppressed": Question(
        "what a limit left out",
        f"SELECT prefix, sum(suppressed) AS messages, {_TIME.replace('time,', 'max(time),')} AS last {_WHERE}"
        f" AND suppressed IS NOT NULL GROUP BY prefix ORDER BY messages DESC, prefix {_LIMIT}",
    ),
    "losses": Question(
        "what the kernel lost",
        f"SELECT {_TIME} AS time, log_group, count FROM losses WHERE time >= :since AND time < :until"
        f" ORDER BY losses.time DESC {_LIMIT}",
    ),
}
"""By name."""

_NO_LOSS = ", ".join(f"0 AS {name}" for name in ("rowid", "time", "log_group", "count", "session", "seq"))
_STATEMENT = re.compile(r"\s*(select|with|explain|values)\b", re.IGNORECASE)
_WORDS = re.compile(r"(?P<name>[a-z ]+?)(\s+last\s+(?P<last>\S+))?(\s+limit\s+(?P<limit>\S+))?", re.IGNORECASE)
_MOST = 10


class Answer(NamedTuple):
    """Names of columns, and the rows, which are read while they are asked for."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


def statement(question: str, now: float | None = None) -> tuple[str, dict[str, Any]]:
    """SQL and values for ``top sources last 24h limit 20``, or for SQL that reads. Raises ArgumentError."""
    if _STATEMENT.match(question):
        return question, {}
    now = time.time() if now is None else now
    words = _WORDS.fullmatch(" ".join(question.split()))
    name = words["name"].lower() if words else question
    if words is None or name not in QUESTIONS:
        raise ArgumentError(f"no question is called {name!r}{nearest(name, QUESTIONS)}")
    try:
        since = now - _units.seconds(words["last"]) if words["last"] else 0.0
        most = _units.count(words["limit"]) if words["limit"] else _MOST
    except ValueError as error:
        raise ArgumentError(str(error)) from None
    return QUESTIONS[name].sql, {"since": since, "until": now + 1, "most": most}


def ask(path: str, question: str) -> Iterator[Answer]:
    """Answer a question about a database, which nothing can be changed in; one item, valid until the next is asked for.

    Raises ArgumentError for a question that is none, NfnetError for what SQLite says against it.
    """
    sql, values = statement(question)
    try:
        with closing(connect(path)) as connection:
            cursor = connection.execute(sql, values)
            yield Answer(tuple(column[0] for column in cursor.description or ()), _rows(path, cursor))
    except (sqlite3.Error, sqlite3.Warning) as error:
        raise NfnetError(f"{path}: {error}") from error


def connect(path: str) -> sqlite3.Connection:
    """A connection by which nothing can be changed. Raises sqlite3.Error.

    In a database of an older version the table messages has the columns of the present one, too.
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
