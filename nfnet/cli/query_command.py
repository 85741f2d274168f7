"""``nfnet query``: questions about what was collected in a database."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from .._printable import printable
from ..collect._queries import QUESTIONS, Answer, ask
from ..errors import ArgumentError

_DESCRIPTION = """\
Answers questions about a database that "nfnet collect --to sqlite:FILE" fills,
or "--to postgresql://...".

    nfnet query firewall.db "top sources last 24h"
    nfnet query postgresql://db.example/firewall "latest limit 20"
    nfnet query firewall.db "scans last 7d limit 50"
    nfnet query firewall.db --json "SELECT prefix, count(*) FROM messages GROUP BY 1"

A question is one of these, "last" and a time (15m, 24h, 30d) if not all times
are meant, and "limit" and how many rows, 10 if that is not said; or SQL that
reads, with the tables messages, losses and sessions. Times are UTC. Nothing
in the database is changed.

"""

_EPILOG = "exit status: 0; 1 if the database cannot be read; 2 for wrong arguments"
_WIDEST = 60  # characters of a column


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    questions = "\n".join(f"    {name:<18}{question.help}" for name, question in QUESTIONS.items())
    parser = commands.add_parser(
        "query",
        help="ask what was collected",
        description=f"{_DESCRIPTION}{questions}\n\n{_EPILOG}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("database", metavar="DATABASE", help="its file or URL")
    parser.add_argument("question", nargs="+", metavar="QUESTION", help="one of the above, or SQL")
    parser.add_argument("--json", action="store_true", help="JSON Lines, an object for each row")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    question = " ".join(options.question)
    if not question.strip():
        raise ArgumentError("the question is empty")
    for answer in ask(options.database, question):
        if options.json:
            for row in answer.rows:
                print(json.dumps(dict(zip(answer.columns, map(_value, row))), default=str))
        else:
            _show(answer)
    return 0


def _value(value: Any) -> Any:
    return value.hex() if isinstance(value, bytes) else value


def _text(value: Any) -> str:
    text = "-" if value is None else printable(str(_value(value)))
    return text if len(text) <= _WIDEST else text[: _WIDEST - 3] + "..."


def _show(answer: Answer) -> None:
    """A table, numbers to the right."""
    rows = list(answer.rows)
    texts = [list(answer.columns), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts)]
    numbers = [all(isinstance(row[place], (int, float)) for row in rows) for place in range(len(widths))]
    for text in texts:
        cells = (cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(text, widths, numbers))
        sys.stdout.write("  ".join(cells).rstrip() + "\n")
