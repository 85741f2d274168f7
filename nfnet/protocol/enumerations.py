"""Enumerations of the kernel's, to which newer kernels add: a value that is not known here is a member all the same.

    >>> Hook(7)
    <Hook.UNKNOWN_7: 7>

So whatever is said to be a `Hook` is one, with a name and a value. Members for unknown values are made anew each time,
and kept nowhere: whoever sends packets, or wrote a recording, could have any number of them made. Compare them by
``==``, not by ``is``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TypeVar

_Number = TypeVar("_Number", bound="OpenEnum")


class OpenEnum(IntEnum):
    """An enumeration of numbers that may have other members elsewhere."""

    @classmethod
    def _missing_(cls: type[_Number], value: object) -> _Number | None:
        if not isinstance(value, int):
            return None  # a ValueError
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{int(value)}"
        member._value_ = int(value)
        return member


class OpenFlag(IntFlag):
    """Flags that may have other bits elsewhere; unknown ones are kept in the value."""

    @classmethod
    def _missing_(cls, value: object) -> object:
        member = super()._missing_(value)
        if isinstance(value, int) and value & ~_known_bits(cls):
            cls._value2member_map_.pop(value, None)  # where IntFlag has kept it
        return member


def _known_bits(kind: type[OpenFlag]) -> int:
    bits = 0
    for member in kind.__members__.values():
        bits |= member._value_
    return bits
