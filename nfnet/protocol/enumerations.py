"""Enumerations of the kernel, to which newer kernels can add values: a value that is not known here is also a member.

    >>> Hook(7)
    <Hook.UNKNOWN_7: 7>

So every value of type `Hook` is a member with a name. A member for an unknown value is created each time it is needed,
and never stored, because the sender of packets, or the author of a recording, could cause any number of them. Compare
members by ``==``, not by ``is``.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import TypeVar

_Number = TypeVar("_Number", bound="OpenEnum")


class OpenEnum(IntEnum):
    """An enumeration of numbers, in which values without a name are members, too."""

    @classmethod
    def _missing_(cls: type[_Number], value: object) -> _Number | None:
        if not isinstance(value, int):
            return None  # then Enum raises ValueError
        member = int.__new__(cls, value)
        member._name_ = f"UNKNOWN_{int(value)}"
        member._value_ = int(value)
        return member


class OpenFlag(IntFlag):
    """Flags, in which bits without a name are kept in the value."""

    @classmethod
    def _missing_(cls, value: object) -> object:
        member = super()._missing_(value)
        if isinstance(value, int) and value & ~_known_bits(cls):
            cls._value2member_map_.pop(value, None)  # IntFlag has stored it there
        return member


def _known_bits(kind: type[OpenFlag]) -> int:
    bits = 0
    for member in kind.__members__.values():
        bits |= member._value_
    return bits
