"""The fields of log messages as names and texts, for outputs without numbers, lists and tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .._printable import counted
from ._batch import Batch
from ._json import LOST, BatchLines

PACKET = "packet"


class Record(NamedTuple):
    """A log message, or a report of how many messages the kernel lost."""

    kind: str
    """PACKET or LOST."""
    time_ns: int
    text: str
    """A line of printable text, without the time."""
    values: dict[str, str]
    """The fields by name, as in JSON, with dots in nested names: ``source.ip``. Texts can contain any UTF-8,
    including control characters."""


class Flat:
    """Makes records of batches. It has a cache, as `BatchLines`: use one object for all batches of an output."""

    def __init__(self) -> None:
        self._lines = BatchLines()

    def __call__(self, batch: Batch) -> Iterator[Record]:
        """Return a record for each message, and one before them if the kernel lost some."""
        # Reading the lines of JSON again takes half the time of asking the table of fields for each message.
        lines = iter(self._lines(batch).splitlines())
        if batch.lost:
            text = f"{counted(batch.lost, 'message')} of group {batch.session.group} lost"
            yield Record(LOST, batch.read_ns, text, _values(next(lines)))
        for message, line in zip(batch.messages, lines):
            moment = message.timestamp_ns
            text = message.summary().partition(" ")[2]  # the line begins with the time
            yield Record(PACKET, batch.read_ns if moment is None else moment, text, _values(line))


def _values(line: str) -> dict[str, str]:
    values: dict[str, str] = {}
    _flatten(json.loads(line), "", values)
    return values


def _flatten(table: Mapping[str, Any], path: str, into: dict[str, str]) -> None:
    for name, value in table.items():
        if isinstance(value, dict):
            _flatten(value, f"{path}{name}.", into)
        elif isinstance(value, list):
            into[path + name] = " ".join(map(_text, value))
        else:
            into[path + name] = _text(value)


def _text(value: Any) -> str:
    text = str(value)
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
