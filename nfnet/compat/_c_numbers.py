"""Conversion of numbers to C's integer types, as in the original packages."""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple


class CType(NamedTuple):
    """An integer type of C."""

    name: str
    least: int
    most: int

    def hold(self, number: int) -> int:
        """Return the number. Raises OverflowError if it does not fit."""
        if number < self.least == 0:
            raise OverflowError(f"can't convert negative value to {self.name}")
        if not self.least <= number <= self.most:
            raise OverflowError(f"value too large to convert to {self.name}")
        return number


INT = CType("int", -(1 << 31), (1 << 31) - 1)
LONG_LONG = CType("long long", -(1 << 63), (1 << 63) - 1)
UNSIGNED_CHAR = CType("unsigned char", 0, 0xFF)
U8 = CType("u_int8_t", 0, 0xFF)
U16 = CType("u_int16_t", 0, 0xFFFF)
U32 = CType("u_int32_t", 0, 0xFFFFFFFF)


def truncated(value: Any, ctype: CType) -> int:
    """Convert a number as Cython does, with which NetfilterQueue is written: a float is truncated.

    Raises OverflowError, TypeError; ValueError for NaN.
    """
    if not hasattr(type(value), "__int__") and not hasattr(type(value), "__index__"):
        raise TypeError("an integer is required")  # `int` would accept strings
    return ctype.hold(int(value))


def whole(value: Any, ctype: CType) -> int:
    """Convert an integer as PyArg_ParseTuple does, which nflogr uses; floats are refused.

    Raises OverflowError, TypeError.
    """
    return ctype.hold(operator.index(value))


def real(value: Any) -> float:
    """Convert a float as PyArg_ParseTuple does; strings are refused. Raises OverflowError, TypeError."""
    try:
        return math.ldexp(value, 0)
    except TypeError:  # PyPy does not use __index__ here
        if isinstance(value, (str, bytes)) or not hasattr(value, "__index__"):
            raise
        return float(operator.index(value))
