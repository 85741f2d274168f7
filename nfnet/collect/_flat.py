"""What log messages say as names and texts, for outputs that have no numbers, lists and tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .._ecs import fields
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


def records(batch: Batch) -> Iterator[Record]:
    """A record for each message, and one before them if the kernel lost some."""
    session = batch.session
    more: dict[str, Any] = {"group": session.group, "session": session.id}
    if batch.labels:
        more["labels"] = dict(batch.labels)
    if batch.lost:
        when = datetime.datetime.fromtimestamp(batch.read_ns / 1e9, datetime.timezone.utc)
        values = {"@timestamp": f"{when:%Y-%m-%dT%H:%M:%S.%fZ}", "event.action": LOST, "nfnet.lost": str(batch.lost)}
        values |= dict(_flat({"nfnet": more}))
        yield Record(LOST, batch.read_ns, f"{counted(batch.lost, 'message')} of group {session.group} lost", values)
    for message in batch.messages:
        text = message.summary().partition(" ")[2]  # the time is before it
        moment = message.timestamp_ns
        yield Record(
            PACKET, batch.read_ns if moment is None else moment, text, dict(_flat(fields(message, batch.read_ns, more)))
        )


def _flat(table: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        elif isinstance(value, list):
            yield f"{path}{name}", " ".join(map(_text, value))
        else:
            yield f"{path}{name}", _text(value)


def _text(value: Any) -> str:
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
