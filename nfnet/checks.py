"""Checks of arguments, made before anything is sent."""

from __future__ import annotations

import operator
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CoroutineType

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


def check_handler(handler: object, remedy: str) -> None:
    """Raises TypeError for what cannot be called, and for async and generator functions, of which a call runs nothing.

    ``remedy`` is what to do with an async one.
    """
    if not callable(handler):
        raise TypeError(f"the handler must be callable, not {type(handler).__name__}")
    while isinstance(handler, partial):
        handler = handler.func
    # As inspect.iscoroutinefunction does, which takes ten times as long: `process` may be called for every packet.
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    if not isinstance(flags, int) or not flags & (CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR):
        return
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    if flags & CO_COROUTINE:
        raise TypeError(f"the handler {name} is an async function, which nobody would await: {remedy}")
    raise TypeError(f"the handler {name} has a yield in it, so that a call runs nothing: it must be a plain function")


def check_result(result: object, remedy: str) -> None:
    """Raises TypeError if a handler returned a coroutine, as a lambda around an async function does."""
    if isinstance(result, CoroutineType):
        result.close()  # else Python would warn of it, too
        raise TypeError(f"the handler returned a coroutine, which nobody awaits: {remedy}")
