"""Parsers of sizes, times and rates."""

from __future__ import annotations

import re
from typing import NamedTuple

_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_PERIODS = {
    "s": ("s", "sec", "second"),
    "m": ("m", "min", "minute"),
    "h": ("h", "hour"),
    "d": ("d", "day"),
}
_TIMES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def size(value: object) -> int:
    """Return bytes: 1048576, "1M", "1 MiB". Raises ValueError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    found = re.fullmatch(r"(\d+)\s*([kmgt]?)(i?b)?", str(value).strip().lower())
    if not found or not int(found[1]):
        raise ValueError(f"{value!r} is no size, such as 100M or 2G")
    return int(found[1]) * _SIZES[found[2]]


def seconds(value: object) -> int:
    """Return seconds: "90s", "24h", "30d", "2w". Raises ValueError."""
    found = re.fullmatch(r"(\d+)\s*([smhdw])", str(value).strip().lower())
    if not found or not int(found[1]):
        raise ValueError(f"{value!r} is no time, such as 15m, 24h or 30d")
    return int(found[1]) * _TIMES[found[2]]


def count(value: object) -> int:
    """Return a whole number, 1 or more. Raises ValueError."""
    text = str(value)
    if isinstance(value, bool) or not text.isdecimal() or not int(text):
        raise ValueError(f"{value!r} is no number, 1 or more")
    return int(text)


def yes_or_no(value: object) -> bool:
    """Return a bool for True, False, "yes" or "no". Raises ValueError."""
    if value in (True, "yes", "true"):
        return True
    if value in (False, "no", "false"):
        return False
    raise ValueError(f"{value!r} is neither yes nor no")


class Rate(NamedTuple):
    """A number of messages in a number of seconds."""

    most: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.most}/{next(unit for unit, seconds in _TIMES.items() if seconds == self.seconds)}"


def rate(value: object) -> Rate:
    """Return a rate: "100/s", "20/minute", "5/h", "1/day". Raises ValueError."""
    if isinstance(value, Rate):
        return value
    number, _, period = str(value).strip().lower().partition("/")
    unit = next((unit for unit, names in _PERIODS.items() if period.strip() in names), None)
    number = number.strip()
    if unit is None or not number.isdecimal() or not int(number):
        raise ValueError(f"{value!r} is no rate, such as 100/s, 20/minute or 5/hour")
    return Rate(int(number), _TIMES[unit])
