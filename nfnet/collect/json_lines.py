"""JSON Lines with the field names of the Elastic Common Schema."""

from __future__ import annotations

import datetime
import json
from typing import Any

from .._ecs import JsonLines as _Lines
from ._batch import Batch
from ._line_file import LineFile


class JsonLines(LineFile):
    """A line of JSON for each message, and one for each gap; target and settings as for `LineFile`."""

    scheme = "jsonl"
    suffixes = (".jsonl", ".json", ".ndjson")
    help = "JSON Lines with field names of the Elastic Common Schema"

    def __init__(self, target: str, **settings: Any) -> None:
        super().__init__(target, **settings)
        self._write: dict[str, _Lines] = {}  # by session

    def lines(self, batch: Batch) -> str:
        """As `LineFile.lines`."""
        session = batch.session
        write = self._write.get(session.id)
        if write is None:
            write = self._write[session.id] = _Lines(_top(batch), group=session.group, session=session.id)
        text = write(batch.messages, batch.read_ns)
        return _gap(batch) + text if batch.lost else text


def _top(batch: Batch) -> dict[str, Any]:
    """What each line of a session says."""
    top: dict[str, Any] = {"host": {"name": batch.session.host}}
    if batch.labels:
        top["labels"] = dict(batch.labels)
    return top


def _gap(batch: Batch) -> str:
    when = datetime.datetime.fromtimestamp(batch.read_ns / 1e9, datetime.timezone.utc)
    record = {
        "@timestamp": f"{when:%Y-%m-%dT%H:%M:%S.%fZ}",
        "event": {"action": "messages-lost"},
        "nfnet": {"lost": batch.lost, "group": batch.session.group, "session": batch.session.id},
        **_top(batch),
    }
    return json.dumps(record) + "\n"
