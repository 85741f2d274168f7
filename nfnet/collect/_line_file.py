"""Lines in a file, or on standard output."""

from __future__ import annotations

import logging
import os
from abc import abstractmethod
from typing import ClassVar

from ._batch import Batch
from ._file import File

_log = logging.getLogger("nfnet")

_LONGEST_LINE = 1 << 20  # a process can have a command line of 64 KiB, of characters that JSON writes as six


class LineFile(File):
    """Appends lines to a file."""

    line_begins: ClassVar[bytes] = b""
    """The common beginning of all lines, by which a line that was cut short is recognized; empty if there is none."""

    @abstractmethod
    def lines(self, batch: Batch) -> str:
        """Return the lines to write for a batch, including a line for the loss before it."""

    def data(self, batch: Batch) -> bytes:
        """Return the lines as bytes; see `File.data`."""
        return self.lines(batch).encode("utf-8", "backslashreplace")

    def begin(self) -> None:
        super().begin()
        if self._regular:
            self._end_line()

    def _end_line(self) -> None:
        """Begin a new line. A process that was killed while it wrote can have left a part of one."""
        with open(self.target, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST_LINE))
            part = file.read().rpartition(b"\n")[2]
        begin = self.line_begins
        if part and begin and (part.startswith(begin) or begin.startswith(part)):
            os.truncate(self.target, size - len(part))
            _log.warning("%s: its last line was cut short; its %d bytes were removed", self.name, len(part))
        elif part:
            self._append(b"\n")
