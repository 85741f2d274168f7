"""``nfnet query --follow`` shows rows as they are stored."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from nfnet import ArgumentError, LogMessage, NfnetError, cli, collect, testing
from nfnet._annotated import Annotated
from nfnet.collect import Batch
from nfnet.collect._follow import Follower
from nfnet.collect._queries import QUESTIONS

from . import collector
from .collector import SESSION
from .live.conftest import TIMEOUT, wait_for


def message(number: int, *, port: int = 53) -> LogMessage:
    return collector.message(number, testing.udp(b"", destination_port=port), prefix="drop: ")


class Database:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._output = collect.output(str(path))
        self._output.begin()

    def store(self, *numbers: int, lost: int = 0, **attributes: Any) -> None:
        self._output.write(Batch(SESSION, [message(number, **attributes) for number in numbers], lost))

    def write(self, *messages: LogMessage) -> None:
        self._output.write(Batch(SESSION, list(messages)))

    def execute(self, sql: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(sql)

    def move(self, to: Path) -> None:
        for end in ("", "-wal", "-shm"):
            Path(f"{self.path}{end}").rename(f"{to}{end}")

    def close(self) -> None:
        self._output.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with closing(Database(tmp_path / "log.db")) as found:
        yield found


@pytest.fixture
def follow(database: Database) -> Iterator[Callable[..., Follower]]:
    made = []

    def make(condition: str = "") -> Follower:
        made.append(Follower(str(database.path), condition))
        return made[-1]

    yield make
    for each in made:
        each.close()


def numbers(follower: Follower) -> list[int]:
    return [row["seq"] for row in follower.rows() if "count" not in row]


def test_what_is_new_comes_once(database: Database, follow: Callable[..., Follower]) -> None:
    database.store(0, 1)
    follower = follow()
    assert numbers(follower) == []
    database.store(2, 3)
    assert numbers(follower) == [2, 3]
    assert numbers(follower) == []
    database.store(*range(4, 3000))  # more than is read at a time
    assert numbers(follower) == list(range(4, 3000))


def test_only_what_the_condition_holds_for_and_losses(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow("destination_port = 22 -- a comment")
    database.store(1, port=22)
    database.store(2, port=23)
    database.store(7, port=22, lost=4)
    rows = list(follower.rows())
    assert [row["count"] for row in rows if "count" in row] == [4]
    assert [row["seq"] for row in rows if "count" not in row] == [1, 7]


def test_retention(database: Database, follow: Callable[..., Follower]) -> None:
    follower = follow()
    database.store(*range(10))
    assert numbers(follower) == list(range(10))
    database.execute("DELETE FROM messages WHERE seq < 5")
    database.store(10)
    assert numbers(follower) == [10]
    database.execute("DELETE FROM messages")  # rows are numbered from 1 again
    assert numbers(follower) == []
    database.store(11, 12)
    assert numbers(follower) == [11, 12]
    database.execute("DELETE FROM messages")
    database.store(*range(20, 40))  # as many as to hide that the others went
    assert numbers(follower) == list(range(20, 40))


def test_a_database_that_is_replaced(database: Database, follow: Callable[..., Follower], tmp_path: Path) -> None:
    follower = follow()
    database.store(1)
    assert numbers(follower) == [1]
    database.move(tmp_path / "old.db")
    assert numbers(follower) == []
    database.store(2)  # the output makes it anew
    assert numbers(follower) == [2]
    database.store(3)
    assert numbers(follower) == [3]


def test_a_database_that_is_gone_and_one_that_is_not_ready(
    database: Database, follow: Callable[..., Follower], tmp_path: Path
) -> None:
    follower = follow()
    database.close()
    database.path.rename(tmp_path / "old.db")
    assert numbers(follower) == []
    database.path.touch()
    assert numbers(follower) == []
    database.path.unlink()
    with closing(Database(database.path)) as other:
        other.store(5)
        assert numbers(follower) == [5]


def test_a_locked_one_is_waited_for(database: Database, follow: Callable[..., Follower]) -> None:
    database.store(1)
    follower = follow()
    database.store(2)
    database.close()
    with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
        follower.close()  # else the mode cannot be changed to one in which there are such locks
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        assert numbers(follower) == []
        other.execute("ROLLBACK")
    assert 2 in numbers(follower)


@pytest.mark.parametrize("condition", ["colour = 1", "1; DROP TABLE messages", ")", "("])
def test_what_is_no_condition(condition: str, follow: Callable[..., Follower]) -> None:
    with pytest.raises(ArgumentError, match="is no condition about messages"):
        follow(condition)


def test_postgresql_cannot_be_followed_and_the_error_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["query", "postgresql://u:secret@h/d", "--follow", "latest"]) == 2
    errors = capsys.readouterr().err
    assert "only an SQLite database can be followed" in errors
    assert "watch nfnet query postgresql://... latest limit 20" in errors
    assert "secret" not in errors
    assert errors.count("\n") == 1


def test_no_database(tmp_path: Path) -> None:
    with pytest.raises(NfnetError, match=r"no\.db"):
        Follower(str(tmp_path / "no.db"))
    (tmp_path / "empty.db").touch()
    with pytest.raises(NfnetError, match="no such table"):
        Follower(str(tmp_path / "empty.db"))
    assert {path.name for path in tmp_path.iterdir()} == {"empty.db"}


# --- the command


@contextmanager
def following(database: Database, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-m", "nfnet", "query", str(database.path), "--follow", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def shown(process: subprocess.Popen[str], database: Database, first: int) -> str:
    """Return the first line that is shown: not one that was stored before following began."""
    assert process.stdout is not None
    numbers = iter(range(first, 1 << 30))
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()))  # type: ignore[union-attr]
    reader.start()

    def came() -> bool:
        database.store(next(numbers))
        return bool(lines)

    assert wait_for(came)
    reader.join()
    return lines[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_quietly_when_it_is_told_to(number: signal.Signals, database: Database) -> None:
    with following(database, "latest") as process:
        line = shown(process, database, 0)
        assert " drop: - > - udp 192.0.2.1.40000 > 192.0.2.2.53 28 bytes" in line
        process.send_signal(number)
        _, errors = process.communicate(timeout=TIMEOUT)
        assert (process.returncode, errors) == (0, "")


def test_it_ends_quietly_when_nobody_reads_any_more(database: Database) -> None:
    """Also while no row is stored."""
    with following(database, "--json", "destination_port = 53") as process:
        assert json.loads(shown(process, database, 0))["destination_port"] == 53
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(TIMEOUT) in (0, 1)
        assert process.stderr.read() == ""


def test_lines_say_all_that_matters(database: Database, capsys: pytest.CaptureFixture[str]) -> None:
    from nfnet.cli import query_command

    raw = testing.log_message(testing.tcp(flags=2), prefix="\x1b[2Jnew: ", UID=4_000_000_000, MARK=7, SEQ=1)
    first = LogMessage.from_bytes(raw)
    second = message(2)
    second.raw = Annotated(second.raw, suppressed=1204)
    follower = Follower(str(database.path))
    database.write(first, second)
    lines = [query_command._line(row) for row in follower.rows()]
    follower.close()
    assert lines[0].endswith(
        " [1b][2Jnew: - > - tcp 192.0.2.1.40000 > 192.0.2.2.80 [SYN] 40 bytes mark 0x7 user 4000000000"
    )
    assert " drop: 1,204 more like this: - > - udp " in lines[1]


def test_there_are_ten_questions() -> None:
    assert len(QUESTIONS) >= 10
