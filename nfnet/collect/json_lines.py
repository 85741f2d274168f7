"""JSON Lines with the field names of the Elastic Common Schema."""

from __future__ import annotations

from typing import Any

from ._batch import Batch
from ._json import BatchLines
from ._line_file import LineFile


class JsonLines(LineFile):
    """A line of JSON for each message, and one for each gap.

    target: the name of the file; "-" is the standard output.
    settings: ``rotate_size`` (bytes), ``rotate_time`` (seconds), ``keep`` (how many rotated files) and ``compress``
        (with gzip, True or False). Default: the file is never rotated, all rotated files are kept, none is compressed.
    """

    scheme = "jsonl"
    suffixes = (".jsonl", ".json", ".ndjson")
    line_begins = b'{"@timestamp": '
    help = "JSON Lines, fields named as in the Elastic Common Schema"

    def __init__(self, target: str, **settings: Any) -> None:
        super().__init__(target, **settings)
        self._lines = BatchLines()

    def lines(self, batch: Batch) -> str:
        """Return the lines of a batch; see `LineFile.lines`."""
        return self._lines(batch)
