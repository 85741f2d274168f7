"""What log messages say as names and texts, for outputs that have no numbers, lists and tables."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .._ecs import JsonLines
from .._printable import counted
from ._batch import Batch

PACKET, LOST = "packet", "messages-lost"


class Record(NamedTuple):
    """A log message, or how many of them the kernel lost."""

    kind: str
    """PACKET or LOST."""
    time_ns: int
    text: str
    """A line for people, without the time. All of it is printable."""
    values: dict[str, str]
    """By name, as in JSON, with dots between the names of tables and what is in them: ``source.ip``. In the texts may
    be anything that is UTF-8, control characters too."""


class Flat:
    """Makes records of batches. It remembers what `JsonLines` does: an object for all batches of an output."""

    def __init__(self) -> None:
        self._write: dict[str, JsonLines] = {}  # by session

    def __call__(self, batch: Batch) -> Iterator[Record]:
        """A record for each message, and one before them if the kernel lost some."""
        session = batch.session
        more: dict[str, Any] = {"group": session.group, "session": session.id}
        if batch.labels:
            more["labels"] = dict(batch.labels)
        if batch.lost:
            yield _loss(batch, more)
        write = self._write.get(session.id)
        if write is None:
            write = self._write[session.id] = JsonLines(**more)
        # Reading the lines of JSON again takes half the time of asking the table of fields for each message.
        for message, line in zip(batch.messages, write(batch.messages, batch.read_ns).splitlines()):
            moment = message.timestamp_ns
            values: dict[str, str] = {}
            _flatten(json.loads(line), "", values)
            text = message.summary().partition(" ")[2]  # the time is before it
            yield Record(PACKET, batch.read_ns if moment is None else moment, text, values)


def _loss(batch: Batch, more: Mapping[str, Any]) -> Record:
    when = datetime.datetime.fromtimestamp(batch.read_ns / 1e9, datetime.timezone.utc)
    table = {
        "@timestamp": f"{when:%Y-%m-%dT%H:%M:%S.%fZ}",
        "event": {"action": LOST},
        "nfnet": {"lost": batch.lost, **more},
    }
    values: dict[str, str] = {}
    _flatten(table, "", values)
    text = f"{counted(batch.lost, 'message')} of group {batch.session.group} lost"
    return Record(LOST, batch.read_ns, text, values)


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
