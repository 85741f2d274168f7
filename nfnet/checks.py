"""Checks of arguments, made before anything is sent."""

from __future__ import annotations

import operator

from .errors import ArgumentError


def check(name: str, value: int, least: int, most: int) -> int:
    """``value`` as an int within bounds. Raises ArgumentError that names the argument, TypeError for no integer."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None
    if not least <= number <= most:
        raise ArgumentError(f"{name} is {shown(number)} and must be in {least}..{most}")
    return number


def shown(number: float) -> str:
    """A number in the text of an error: Python refuses to write out one of more than 4,300 digits."""
    return str(number) if isinstance(number, float) or number.bit_length() <= 64 else "a number beyond 64 bits"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ArgumentError if ``value`` is none of the ``choices``, TypeError if it is no string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {type(value).__name__}")
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r} and must be one of {', '.join(map(repr, choices))}")
