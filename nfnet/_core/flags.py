"""Flags of queues and log groups: convert arguments to flags, and flags to requests for a single flag."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from .._arguments import check_flag
from ..protocol.nfnetlink import FlagOption

Request = Callable[[int], bytes]
"""Builds a request with a given sequence number."""


def flags_of(options: Iterable[FlagOption], arguments: Mapping[str, bool]) -> int:
    """Return the flags whose arguments are True. Raises ArgumentTypeError for values other than True and False."""
    return sum(option.flag for option in options if check_flag(option.name, arguments[option.name]))


def request_for(option: FlagOption, config: Callable[..., bytes]) -> Request:
    """Return the request for one flag alone."""
    return lambda seq: config(flags=option.flag, seq=seq, ack=True)


def optional_requests(
    options: Iterable[FlagOption], flags: int, config: Callable[..., bytes]
) -> Iterator[tuple[str, Request]]:
    """Yield the name of each flag in ``flags`` that a kernel may lack, and the request for that flag alone."""
    return ((option.name, request_for(option, config)) for option in options if option.optional and flags & option.flag)
