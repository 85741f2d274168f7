"""Human-readable text about messages."""

from __future__ import annotations

import time
from collections.abc import Callable

from .._caching import lru_cache
from .._printable import printable


@lru_cache(16)
def _time_of_day(seconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def clock(moment: float | None) -> str:
    """Return the local time of day; dashes if the moment is None or outside the calendar."""
    try:
        if moment is not None:
            seconds, microseconds = divmod(round(moment * 1e6), 1_000_000)
            return f"{_time_of_day(seconds)}.{microseconds:06}"
    except (OverflowError, ValueError, OSError):  # a damaged recording
        pass
    return "--:--:--"


def or_unreadable(text: Callable[[], str]) -> str:
    """Return the result of ``text()``, or the text of the error that it raises: for logs and debuggers."""
    try:
        return text()
    except Exception as error:  # a damaged recording
        return f"unreadable: {printable(str(error))}"
