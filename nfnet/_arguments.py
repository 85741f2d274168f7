"""Checks of arguments, made before anything is sent."""

from __future__ import annotations

import operator
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CoroutineType, FunctionType

from .errors import ArgumentError, ArgumentTypeError

_NOT_RUN = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR  # by a call


def wrong_type(name: str, value: object, what: str) -> ArgumentTypeError:
    """The error for an argument that must be ``what`` and is of another type."""
    return ArgumentTypeError(f"{name} must be {what}, not {type(value).__name__}")


def check(name: str, value: int, least: int, most: int, *, what: str = "an integer") -> int:
    """``value`` as an int within bounds.

    Raises ArgumentError that names the argument; ArgumentTypeError, which says ``what`` it must be, for no integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, what) from None
    if not least <= number <= most:
        raise ArgumentError(f"{name} is {shown(number)} and must be in {least}..{most}")
    return number


def shown(number: float) -> str:
    """A number in the text of an error: Python refuses to write out one of more than 4,300 digits."""
    return str(number) if isinstance(number, float) or number.bit_length() <= 64 else "a number beyond 64 bits"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises ArgumentError if ``value`` is none of the ``choices``, ArgumentTypeError if it is no string."""
    allowed = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise wrong_type(name, value, allowed)
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r} and must be {allowed}")


def check_flag(name: str, value: bool) -> bool:
    """``value``, which must be True or False itself: "no" is true for Python. Raises ArgumentTypeError."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")
    return value


def check_handler(handler: object, remedy: str) -> None:
    """Raises ArgumentTypeError for what cannot be called, and for async and generator functions.

    A call of those runs nothing of them. ``remedy`` is what to do with an async one.
    """
    # As inspect.iscoroutinefunction does, but quicker, most of all for plain functions: `process` may be called for
    # every packet.
    if type(handler) is FunctionType and not handler.__code__.co_flags & _NOT_RUN:
        return
    if not callable(handler):
        raise wrong_type("the handler", handler, "callable")
    while isinstance(handler, partial):
        handler = handler.func
    code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
    flags = getattr(code, "co_flags", 0)
    if not isinstance(flags, int) or not flags & _NOT_RUN:
        return
    name = getattr(handler, "__qualname__", type(handler).__qualname__)
    if flags & CO_COROUTINE:
        raise ArgumentTypeError(f"the handler {name} is an async function, which nobody would await: {remedy}")
    raise ArgumentTypeError(f"the handler {name} has a yield in it, so that a call runs nothing: it must be a function")


def check_result(result: object, remedy: str) -> None:
    """Raises ArgumentTypeError if a handler returned a coroutine, as a lambda around an async function does."""
    if isinstance(result, CoroutineType):
        result.close()  # else Python would warn of it, too
        raise ArgumentTypeError(f"the handler returned a coroutine, which nobody awaits: {remedy}")
