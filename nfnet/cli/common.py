"""What several commands share: options, a rule in words, and being told to stop."""

from __future__ import annotations

import argparse
import contextlib
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import rules
from ..errors import ArgumentError
from ..netns import Netns
from ..text import printable

_WORDS = ("hook", "family", "protocol", "source", "destination", "in_interface", "out_interface", "uid")
_NUMBERS = ("priority", "mark", "not_mark")
_OTHERS = ("source_port", "destination_port", "state")


def describe(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that read from the kernel."""
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in another network namespace: a name, path or process id"
    )
    parser.add_argument("-c", "--count", type=number(1), metavar="N", help="stop after so many")
    parser.add_argument("--json", action="store_true", help="JSON Lines with field names of the Elastic Common Schema")
    parser.add_argument("-q", "--quiet", action="store_true", help="no line for each packet")
    parser.add_argument(
        "-w", dest="write", metavar="FILE", help="also write a capture, anew: pcapng, or pcap if it ends so"
    )
    parser.add_argument(
        "--install-rule",
        metavar="WORDS",
        type=rule_words,
        help='install the rule meanwhile, e.g. "hook=forward protocol=udp destination_port=53"',
    )
    parser.add_argument("--metrics", type=number(1, 65535), metavar="PORT", help="serve Prometheus metrics")
    parser.add_argument(
        "--metrics-address", default="127.0.0.1", metavar="ADDRESS", help="on this address [%(default)s]"
    )


def number(least: int, most: int | None = None) -> Callable[[str], int]:
    """An argument that is a whole number within bounds."""

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(
                f"{value} must be {f'at least {least}' if most is None else f'in {least}..{most}'}"
            )
        return value

    return parse


def netns(text: str) -> Netns:
    """An argument that names a network namespace."""
    return number(1, 0x7FFFFFFF)(text) if text.isdecimal() else text


def rule_words(text: str) -> dict[str, Any]:
    """``hook=forward protocol=udp`` as arguments of `nfnet.rules.queue`."""
    found: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if not equals or name not in (*_WORDS, *_NUMBERS, *_OTHERS):
            known = ", ".join((*_WORDS, *_NUMBERS, *_OTHERS))
            raise argparse.ArgumentTypeError(f"{word!r} is not name=value with one of the names {known}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is there twice")
        if name in _NUMBERS:
            found[name] = number(-0x80000000)(value)
        elif name == "state":
            found[name] = value.split(",")
        else:
            found[name] = number(0)(value) if name == "uid" and value.isdecimal() else value
    try:
        rules.log(0, **found)
    except (ArgumentError, TypeError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found


@contextlib.contextmanager
def until_told(stop: Callable[[], object]) -> Iterator[None]:
    """While the block runs, SIGINT and SIGTERM call ``stop``."""
    before = {number: signal.signal(number, lambda *_: stop()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def wait_readable(file: Any, timeout: float | None) -> bool:
    """Whether a queue or log has something to do in time; a signal ends the wait."""
    return bool(select.select([file], [], [], 1.0 if timeout is None else min(timeout, 1.0))[0])


def link_types(counts: Mapping[int, int]) -> str:
    """How many records there are of each link type."""
    return ", ".join(
        f"{count} {'record' if count == 1 else 'records'} of link type {kind}" for kind, count in sorted(counts.items())
    )


def say(text: str) -> None:
    """What is not the output proper; file names in it may be anybody's."""
    print(printable(text), file=sys.stderr, flush=True)
