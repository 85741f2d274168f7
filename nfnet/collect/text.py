"""Plain text, as ``nfnet log`` shows it."""

from __future__ import annotations

import time

from .._printable import counted
from ..log import LogMessage
from ._batch import Batch, remarks
from ._line_file import LineFile


class Text(LineFile):
    """A line for each message, and one for each gap.

    target: the name of the file; "-" is the standard output.
    settings: ``rotate_size`` (bytes), ``rotate_time`` (seconds), ``keep`` (how many rotated files) and ``compress``
        (with gzip, True or False). Default: the file is never rotated, all rotated files are kept, none is compressed.
    """

    scheme = "text"
    suffixes = (".log", ".txt")
    help = "lines of text, with local times"

    def lines(self, batch: Batch) -> str:
        """Return the lines of a batch; see `LineFile.lines`."""
        moment = batch.read_ns / 1e9
        text = "".join([_line(batch, message, moment) for message in batch.messages])
        if batch.lost:
            clock = time.strftime("%H:%M:%S", time.localtime(moment))
            text = f"{clock} {counted(batch.lost, 'message')} of group {batch.session.group} lost\n{text}"
        return text


def _line(batch: Batch, message: LogMessage, moment: float) -> str:
    more = remarks(batch, message)
    return f"{message.summary(moment)} {more}\n" if more else f"{message.summary(moment)}\n"
