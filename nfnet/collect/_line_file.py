"""Lines in a file, or on standard output."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import ClassVar

from ._batch import Batch
from ._file import File

_LONGEST_LINE = 1 << 16


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
        if part and self.line_begins and part.startswith(self.line_begins):
            os.truncate(self.target, size - len(part))
        elif part:
            self._append(b"\n")
