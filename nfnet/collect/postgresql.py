"""Log messages as rows of a PostgreSQL database."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ArgumentError, NfnetError
from . import _units
from ._batch import Batch, Session
from ._copy_rows import BEGIN, COLUMNS, END, rows
from ._output import AwayError, Output, OutputError, without_password

if TYPE_CHECKING:
    import psycopg

VERSION = 1
"""Version of the tables, stored in the table ``version``."""

_DAY = 86_400_000_000_000  # nanoseconds
_AHEAD = 3  # days for which partitions are made in advance
_LOOK_AFTER = 60.0  # seconds between two looks at partitions
_LOCK = 0x6E666E6574  # advisory lock of processes that make or remove tables; any number that no other program uses
_LOCK_PATIENCE = "2s"  # other transactions wait for the same table, too
_CONNECT = {
    "connect_timeout": "5",
    "application_name": "nfnet",
    # Without these a broken connection is only noticed after a quarter of an hour.
    "tcp_user_timeout": "20000",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "keepalives_count": "3",
}

_TABLES = f"""
CREATE SCHEMA IF NOT EXISTS nfnet;
CREATE TABLE nfnet.version (version integer NOT NULL);
CREATE TABLE nfnet.sessions (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, host text NOT NULL, boot text NOT NULL,
    log_group integer NOT NULL, started timestamptz NOT NULL, started_ns bigint NOT NULL, labels jsonb,
    UNIQUE (host, boot, log_group, started_ns)
);
CREATE TABLE nfnet.messages (
    {", ".join(f"{column.name} {column.type}" for column in COLUMNS)}
) PARTITION BY RANGE (time);
CREATE INDEX messages_time ON nfnet.messages (time);
CREATE TABLE nfnet.batches (
    time timestamptz NOT NULL, session integer NOT NULL REFERENCES nfnet.sessions, seq bigint NOT NULL,
    count integer NOT NULL, lost bigint NOT NULL, PRIMARY KEY (session, seq, count, time)
) PARTITION BY RANGE (time);
CREATE INDEX batches_time ON nfnet.batches (time);
CREATE VIEW nfnet.losses AS
    SELECT time, host, log_group, session, seq, lost AS count
    FROM nfnet.batches JOIN nfnet.sessions ON id = session WHERE lost > 0;
CREATE VIEW nfnet.records AS
    SELECT host, boot, log_group, labels, messages.* FROM nfnet.messages JOIN nfnet.sessions ON id = session;
INSERT INTO nfnet.version VALUES ({VERSION});
"""
_PARTITIONED = ("messages", "batches")
_FIND_SESSION = "SELECT id FROM nfnet.sessions WHERE (host, boot, log_group, started_ns) = (%s, %s, %s, %s)"
_SESSION = (
    "INSERT INTO nfnet.sessions (host, boot, log_group, started_ns, started, labels)"
    " VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING"
)
# This row is committed together with the batch's messages, so that each batch is stored once. A unique index of the
# messages by session and number would take more than half of the server's time for them, and a third of the disk.
_BATCHES = (
    "INSERT INTO nfnet.batches SELECT * FROM unnest(%s::timestamptz[], %s::integer[], %s::bigint[], %s::integer[],"
    " %s::bigint[]) ON CONFLICT DO NOTHING RETURNING time, session, seq, count"
)
_COPY = f"COPY nfnet.messages ({', '.join(column.name for column in COLUMNS)}) FROM STDIN (FORMAT BINARY)"
_PARTITIONS = (
    "SELECT relname FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid"
    " WHERE inhparent = 'nfnet.messages'::regclass"
)


class Postgresql(Output):
    """Copies rows into a table that has a partition for each day.

    A batch is stored once, however often it is written: its messages are committed together with a row of the table
    ``batches``, which has a unique session, sequence number and time.

    target: the part of the URL behind ``postgresql:``.
    keep: drop the partition of a day that ended more than so many seconds ago. Default: never.
    payload: whether to store the packets themselves. Default: yes.
    """

    scheme = "postgresql"
    help = "rows in a PostgreSQL database, postgresql://USER@HOST/DATABASE; needs the extra postgresql"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {"keep": _units.seconds, "payload": _units.yes_or_no}

    def __init__(self, target: str, *, keep: int | None = None, payload: bool = True) -> None:
        super().__init__(target)
        self.check(target)
        self._keep = keep
        self._payload = payload
        self._connection: psycopg.Connection[Any] | None = None
        self._sessions: dict[Session, int] = {}
        self._days: set[int] = set()
        self._looked = 0.0

    @classmethod
    def check(cls, target: str) -> None:
        parameters(f"{cls.scheme}:{target}")

    def begin(self) -> None:
        with self._named(), contextlib.suppress(AwayError):  # `idle` reports it; meanwhile messages are kept
            self._open()

    def create(self) -> None:
        with self._named(), closing(connect(self._url)) as connection, errors():
            with connection.transaction():
                connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                if _version(connection) is None:
                    connection.execute(_TABLES)
            self._check_version(connection)
            self._make_days(connection, self._near())

    def write(self, batch: Batch) -> None:
        self.write_many([batch])

    def write_many(self, batches: Sequence[Batch]) -> None:
        with self._output_errors():
            connection = self._open()
            keys, data, days = {}, {}, set()
            for batch in batches:
                session = self._session(connection, batch)
                key = (_moment(batch.read_ns), session, batch.messages[0].seq or 0, len(batch))
                keys[key] = batch.lost
                data[key], of = rows(batch, session, self._payload)
                days |= {batch.read_ns // _DAY, *of}
            self._make_days(connection, days)
            columns = zip(*[(*key, lost) for key, lost in keys.items()])
            with connection.transaction():
                new = connection.execute(_BATCHES, [list(column) for column in columns]).fetchall()
                if new:
                    with connection.cursor().copy(_COPY) as copy:
                        copy.write(BEGIN)
                        for key in new:
                            copy.write(data[key])
                        copy.write(END)

    def idle(self) -> None:
        with self._output_errors():
            connection = self._open()
            if time.monotonic() >= self._looked + _LOOK_AFTER:
                self._looked = time.monotonic()
                self._make_days(connection, self._near())
                if self._keep:
                    self._drop(connection, time.time_ns() - self._keep * 1_000_000_000)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self._sessions.clear()
        self._days.clear()

    @property
    def _url(self) -> str:
        return f"{self.scheme}:{self.target}"

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except AwayError:
            raise
        except NfnetError as error:
            raise NfnetError(f"{self.name}: {error}") from error

    @contextlib.contextmanager
    def _output_errors(self) -> Iterator[None]:
        try:
            with errors():
                yield
        except NfnetError as error:
            self.close()
            raise OutputError(str(error)) from error

    def _open(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            connection = connect(self._url)
            try:
                with errors():
                    self._check_version(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    def _check_version(self, connection: psycopg.Connection[Any]) -> None:
        version = _version(connection)
        if version is None:
            raise NfnetError("the database has no tables of nfnet: run nfnet collect with --create once")
        if version > VERSION:
            raise NfnetError(
                f"the tables were made by a newer nfnet: their version is {version}, and known is {VERSION}"
            )

    def _session(self, connection: psycopg.Connection[Any], batch: Batch) -> int:
        session = batch.session
        found = self._sessions.get(session)
        if found is None:
            key = (_clean(session.host), session.boot, session.group, session.started)
            labels = _clean(json.dumps(dict(batch.labels))) if batch.labels else None
            connection.execute(_SESSION, (*key, _moment(session.started), labels))
            row = connection.execute(_FIND_SESSION, key).fetchone()
            assert row is not None
            found = self._sessions[session] = int(row[0])
        return found

    # --- partitions

    @staticmethod
    def _near() -> set[int]:
        today = time.time_ns() // _DAY
        return set(range(today, today + _AHEAD + 1))

    def _make_days(self, connection: psycopg.Connection[Any], days: set[int]) -> None:
        """Make the missing partitions for these days."""
        for day in sorted(days - self._days):
            for table in _PARTITIONED:
                name, begin, end = f"{table}_{_date(day):%Y%m%d}", _date(day), _date(day + 1)
                with connection.transaction():
                    if _is_there(connection, name):
                        continue
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                    if _is_there(connection, name):  # another process has made it meanwhile
                        continue
                    # Attaching a table blocks no reader or writer; PARTITION OF would.
                    connection.execute(f"CREATE TABLE nfnet.{name} (LIKE nfnet.{table} INCLUDING ALL)")
                    values = f"FROM ('{begin:%Y-%m-%d}+00') TO ('{end:%Y-%m-%d}+00')"
                    connection.execute(f"ALTER TABLE nfnet.{table} ATTACH PARTITION nfnet.{name} FOR VALUES {values}")
            self._days.add(day)

    def _drop(self, connection: psycopg.Connection[Any], oldest: int) -> None:
        """Drop the partitions of days that ended before."""
        for (name,) in connection.execute(_PARTITIONS).fetchall():
            found = re.fullmatch(r"messages_(\d{8})", name)
            if found is None:
                continue  # the tables belong to another user
            day = (datetime.strptime(found[1], "%Y%m%d") - datetime(1970, 1, 1)).days
            if (day + 1) * _DAY <= oldest:
                self._days.discard(day)
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                    connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_PATIENCE}'")
                    for table in _PARTITIONED:
                        connection.execute(f"DROP TABLE IF EXISTS nfnet.{table}_{found[1]}")


def _date(day: int) -> datetime:
    return datetime(1970, 1, 1) + timedelta(days=day)


def _moment(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds // 1_000_000_000, timezone.utc) + timedelta(
        microseconds=nanoseconds // 1000 % 1_000_000
    )


def _clean(text: str) -> str:
    """Return text without characters that the server refuses."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _is_there(connection: psycopg.Connection[Any], table: str) -> bool:
    row = connection.execute("SELECT to_regclass(%s)", (f"nfnet.{table}",)).fetchone()
    return row is not None and row[0] is not None


def _version(connection: psycopg.Connection[Any]) -> int | None:
    if not _is_there(connection, "version"):
        return None
    row = connection.execute("SELECT max(version) FROM nfnet.version").fetchone()
    return None if row is None else row[0]


# --- connecting, also for questions


def _driver() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise ArgumentError(f"PostgreSQL needs psycopg: pip install 'nfnet[postgresql]' ({error})") from None
    return psycopg


def parameters(url: str) -> dict[str, Any]:
    """Return the parameters of a connection. Raises ArgumentError if the URL is wrong or psycopg is not installed."""
    driver = _driver()
    shown = without_password(url)
    hint = "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in the password, and the like"
    try:
        if not url.startswith("postgresql://"):
            raise ValueError("it has no //")
        found: dict[str, Any] = driver.conninfo.conninfo_to_dict(url)
        # psycopg checks host and port only when it connects, and then shows them: they can be parts of a password.
        if "@" in str(found.get("host")):
            raise ValueError("the host has an @")
        if not all(port.isdecimal() for port in str(found.get("port") or 0).split(",") if port):
            raise ValueError("the port is no number")
    except (driver.Error, ValueError) as error:
        reason = f": {_line(error)}" if "@" not in url else ""
        raise ArgumentError(f"{shown} is no URL of a database{reason}; {hint}") from None
    return {**_CONNECT, **found}


def connect(url: str) -> psycopg.Connection[Any]:
    """Connect to a database. Raises NfnetError."""
    driver = _driver()
    found = parameters(url)
    try:
        # Without prepared statements the connection can be one of a pool, such as pgbouncer.
        connection: psycopg.Connection[Any] = driver.connect(**found, autocommit=True, prepare_threshold=None)
    except driver.Error as error:
        # psycopg raises the same error if the server refuses and if it cannot be reached.
        answer = driver.pq.PGconn.ping(driver.conninfo.make_conninfo(**found).encode())
        kind = NfnetError if answer == driver.pq.Ping.OK else AwayError
        raise kind(without_password(_line(error))) from error
    with errors():
        encoding = connection.info.parameter_status("server_encoding")
        connection.execute("SET client_encoding = 'UTF8'")
        connection.execute("SET timezone = 'UTC'")
        if encoding not in ("UTF8", "SQL_ASCII"):
            connection.close()
            raise NfnetError(f"the database's encoding is {encoding}; it must be UTF8")
    return connection


@contextlib.contextmanager
def closing(connection: psycopg.Connection[Any]) -> Iterator[psycopg.Connection[Any]]:
    """Close the connection at the end."""
    try:
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Convert exceptions of psycopg to NfnetError, with a message of one line without a password."""
    driver = _driver()
    try:
        yield
    except driver.Error as error:
        raise NfnetError(without_password(_line(error))) from error


def _line(error: Exception) -> str:
    primary = getattr(getattr(error, "diag", None), "message_primary", None)
    lines = (primary or str(error)).removeprefix("connection failed: ").splitlines()
    said = [line.strip() for line in lines if not line.startswith("\t")]  # the others are hints
    return " ".join(" ".join(said).split()) or type(error).__name__
