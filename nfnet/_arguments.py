"""Checks of arguments, made before anything is sent."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from functools import partial
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import CoroutineType, FunctionType

from .errors import ArgumentError, ArgumentTypeError

_NOT_RUN = CO_COROUTINE | CO_GENERATOR | CO_ASYNC_GENERATOR  # flags of functions whose body a call does not run


def wrong_type(name: str, value: object, what: str) -> ArgumentTypeError:
    """Return the error for an argument that must be ``what`` and has another type."""
    return ArgumentTypeError(f"{name} must be {what}, not {type(value).__name__}")


def check(name: str, value: int, least: int, most: int, *, what: str = "an integer") -> int:
    """Return ``value`` as an int, if it is within bounds.

    Raises ArgumentError with the name of the argument; ArgumentTypeError, with ``what`` it must be, for a non-integer.
    """
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, what) from None
    if not least <= number <= most:
        raise ArgumentError(f"{name} is {shown(number)} and must be in {least}..{most}")
    return number


def shown(number: float) -> str:
    """Return a number as text for an error message; Python does not convert ints of more than 4,300 digits."""
    return str(number) if isinstance(number, float) or number.bit_length() <= 64 else "a number beyond 64 bits"


def network_error(text: object, error: ValueError) -> str:
    """Return the message of `ipaddress.ip_network` about a network, and the right network if there is one."""
    from ipaddress import ip_network  # the import takes milliseconds

    try:
        return f"{error}; the network is {ip_network(text, strict=False)}"  # type: ignore[arg-type]
    except ValueError:
        is_name = isinstance(text, str) and re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[a-z]+", text) is not None
        return f"{error}; names are not looked up" if is_name else str(error)


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the end of an error about a wrong name: the most similar valid name, or all of them."""
    import difflib  # imports others; few programs make such a mistake

    names = list(names)
    close = difflib.get_close_matches(name, names, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is {', '.join(names)}" if names else "; it has none"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ArgumentError if ``value`` is not one of the ``choices``, ArgumentTypeError if it is not a string."""
    allowed = f"one of {', '.join(map(repr, choices))}"
    if not isinstance(value, str):
        raise wrong_type(name, value, allowed)
    if value not in choices:
        raise ArgumentError(f"{name} is {value!r} and must be {allowed}")


def check_flag(name: str, value: bool) -> bool:
    """Return ``value`` if it is True or False; else raise ArgumentTypeError, because Python treats "no" as true."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")
    return value


def check_handler(handler: object, remedy: str) -> None:
    """Raise ArgumentTypeError for objects that cannot be called, and for async and generator functions.

    Calling the latter does not run their body. ``remedy`` tells the user what to do with an async function.
    """
    # Like inspect.iscoroutinefunction, but faster, most of all for plain functions: programs can call `process` for
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
    """Raise ArgumentTypeError if a handler returned a coroutine, as a lambda around an async function does."""
    if isinstance(result, CoroutineType):
        result.close()  # otherwise Python would warn about it, too
        raise ArgumentTypeError(f"the handler returned a coroutine, which nobody awaits: {remedy}")
