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
        raise ArgumentError(f"{name} is {number} and must be in {least}..{most}")
    return number


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ArgumentError if ``value`` is none of the ``choices``."""
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r} and must be one of {', '.join(map(repr, choices))}")
