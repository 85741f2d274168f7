"""Lines on standard error: counts and losses, without control characters of a terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from .._printable import counted, printable
from ..captures._records import link_type_name
from ..log import Log
from ..queue import Queue


def link_types(counts: Mapping[int, int]) -> str:
    """Return a text with the number of records of each link type."""
    return ", ".join(f"{counted(count, 'record')} of {link_type_name(kind)}" for kind, count in sorted(counts.items()))


def losses(reader: Queue | Log) -> str:
    """Return a text with what the kernel dropped, for the end of a line. Call this while the reader is open."""
    lost = reader.counters.lost or 0
    text = ""
    if isinstance(reader, Queue) and (status := reader.stats().kernel) is not None:
        lost -= status.queue_dropped + status.user_dropped
        if status.queue_dropped:
            text += f", {status.queue_dropped} dropped by the kernel because the queue was full"
        if status.user_dropped:
            text += f", {status.user_dropped} dropped by the kernel because the receive buffer was full"
    return text + (f", {lost} lost" if lost > 0 else "")


def say(text: str) -> None:
    """Print a line on standard error. Control characters in it, as in file names, are escaped."""
    print(printable(text), file=sys.stderr, flush=True)
