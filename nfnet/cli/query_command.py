"""``nfnet query``: answer questions about the packets in a database of ``nfnet collect``."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import select
import sys
import time
from typing import Any

from .._io.system import check_linux
from .._printable import counted, printable
from ..collect._follow import Follower, Row
from ..collect._queries import QUESTIONS, ask
from ..inet import TcpFlag
from .signals import until_told
from .tables import plain, table

_DESCRIPTION = """\
Answers questions about the packets that "nfnet collect" stored in an SQLite or
PostgreSQL database. Changes nothing in the database.

    nfnet query firewall.db
    nfnet query firewall.db "top sources last 24h"
    nfnet query postgresql://db.example/firewall "scans last 7d limit 50"

exit status: 0 on success; 1 if the database cannot be read; 2 for wrong
arguments, or without a question
"""

_QUESTIONS = "".join(f"    {name:<18}{question.help}\n" for name, question in QUESTIONS.items())
_QUESTIONS += """
"last 24h" after a question selects packets of that time (15m, 24h, 30d;
default: all packets); "limit 20" sets the number of rows (default: 10).
Times are UTC.

    nfnet query firewall.db "latest last 15m limit 100"
"""

_SQL = """\
A QUESTION that begins with SELECT or WITH is SQL. The tables are messages,
losses and sessions. Columns of messages are time, prefix, indev, outdev,
protocol, source, source_port, destination, destination_port, length, ...

    nfnet query firewall.db "SELECT prefix, count(*) FROM messages GROUP BY 1"
    nfnet query firewall.db --json "SELECT * FROM messages LIMIT 1"
"""

_FOLLOW = """\
With --follow, messages are shown as they are stored in an SQLite database,
until Ctrl-C: all of them if QUESTION is "latest", else those that match an
SQL condition on the columns of messages.

    nfnet query firewall.db --follow latest
    nfnet query firewall.db --follow "destination_port = 22"
"""

_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_LOOK_AGAIN = 0.3  # seconds


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "query",
        usage="nfnet query [-h] [--json] [-f] DATABASE [QUESTION]",
        help="answer questions about collected packets",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("database", metavar="DATABASE", help="file of SQLite, or URL of PostgreSQL")
    question = parser.add_argument("question", nargs="+", metavar="QUESTION", help="a question, or SQL: see below")
    question.required = False  # nargs="*" would not find it after an option (Python 3.10 to 3.12)
    parser.add_argument("--json", action="store_true", help="print JSON Lines, an object for each row")
    parser.add_argument_group("questions", _QUESTIONS)
    parser.add_argument_group("SQL", _SQL)
    following = parser.add_argument_group("new messages", _FOLLOW)
    following.add_argument("-f", "--follow", action="store_true", help="show messages as they are stored")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    question = " ".join(options.question or ())
    if not question.strip():
        print(f"nfnet query: a question is missing. Questions are:\n\n{_QUESTIONS}\n{_SQL}", end="", file=sys.stderr)
        return 2
    if options.follow:
        condition = "" if question.strip().lower() == "latest" else question
        return _follow(options.database, condition, as_json=options.json)
    for answer in ask(options.database, question):
        if options.json:
            for row in answer.rows:
                print(json.dumps(dict(zip(answer.columns, map(plain, row)))))
        else:
            for line in table(answer.columns, answer.rows):
                print(line)
    return 0


# --- messages as they are stored


def _follow(database: str, condition: str, *, as_json: bool) -> int:
    check_linux("following a database")
    told = False

    def stop() -> None:
        nonlocal told
        told = True

    reader_gone = select.poll()
    with contextlib.suppress(OSError, ValueError):  # standard output has no file descriptor
        reader_gone.register(sys.stdout.fileno(), 0)  # 0: only errors, such as a pipe whose reader closed it
    with contextlib.closing(Follower(database, condition)) as follower, until_told(stop):
        while not told:
            for row in follower.rows():
                print(json.dumps(row) if as_json else _line(row))
                if told:
                    break
            sys.stdout.flush()
            began = time.monotonic()
            # The wait continues after a signal (PEP 475), so a stop is noticed after this time at most.
            if reader_gone.poll(_LOOK_AGAIN * 1000) and time.monotonic() < began + _LOOK_AGAIN:
                break
    return 0


def _line(row: Row) -> str:
    """``2026-11-27 18:00:00.123 drop: eth0 > - tcp 192.0.2.1.40000 > 192.0.2.2.22 [SYN] 60 bytes``."""
    moment = datetime.datetime.fromtimestamp(row["time"], datetime.timezone.utc)
    words = [f"{moment:%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03}"]
    if "count" in row:
        return f"{words[0]} {counted(row['count'], 'message')} of group {row['log_group']} lost"
    if row["prefix"]:
        words.append(f"{row['prefix'].rstrip(' :')}:")
    if row["suppressed"]:
        words.append(f"{row['suppressed']:,} more like this:")
    words.append(f"{row['indev'] or '-'} > {row['outdev'] or '-'}")
    if row["source"] is None:
        words.append("no IP packet")
    else:
        words.append(_PROTOCOLS.get(row["protocol"], f"protocol {row['protocol']}"))
        words.append(f"{_end(row, 'source')} > {_end(row, 'destination')}")
    if row["tcp_flags"] is not None:
        words.append(f"[{'.'.join(flag.name or '' for flag in TcpFlag if flag & row['tcp_flags'])}]")
    if row["icmp_type"] is not None:
        words.append(f"type {row['icmp_type']} code {row['icmp_code']}")
    if row["length"] is not None:
        words.append(f"{row['length']} bytes")
    if row["mark"]:
        words.append(f"mark {row['mark']:#x}")
    if row["uid"] is not None:
        words.append(f"user {row['user_name'] or row['uid']}")
    if row["process"] is not None:
        words.append(f"process {row['process']}[{row['pid']}]")
    return printable(" ".join(words))


def _end(row: Row, name: str) -> str:
    port = row[f"{name}_port"]
    return str(row[name]) if port is None else f"{row[name]}.{port}"
