"""Batches as lines of JSON, which the output JsonLines writes, and from which other outputs take their fields."""

from __future__ import annotations

import datetime
import json
from typing import Any

from .._ecs import JsonLines
from ._batch import Batch

LOST = "messages-lost"
"""``event.action`` of the line that reports how many messages the kernel lost."""


class BatchLines:
    """Makes a line for each message of a batch, and one before them if the kernel lost messages."""

    def __init__(self) -> None:
        self._write: dict[str, JsonLines] = {}  # by session

    def __call__(self, batch: Batch) -> str:
        session = batch.session
        write = self._write.get(session.id)
        if write is None:
            write = self._write[session.id] = JsonLines(_top(batch), group=session.group, session=session.id)
        text = write(batch.messages, batch.read_ns)
        return _gap(batch) + text if batch.lost else text


def _top(batch: Batch) -> dict[str, Any]:
    """Return the fields that all lines of a session have."""
    top: dict[str, Any] = {"host": {"name": batch.session.host}}
    if batch.labels:
        top["labels"] = dict(batch.labels)
    return top


def _gap(batch: Batch) -> str:
    when = datetime.datetime.fromtimestamp(batch.read_ns / 1e9, datetime.timezone.utc)
    record = {
        "@timestamp": f"{when:%Y-%m-%dT%H:%M:%S.%fZ}",
        "event": {"action": LOST},
        "nfnet": {"lost": batch.lost, "group": batch.session.group, "session": batch.session.id},
        **_top(batch),
    }
    return json.dumps(record) + "\n"
