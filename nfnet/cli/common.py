"""What several commands share: options, a rule in words, and being told to stop."""

from __future__ import annotations

import argparse
import contextlib
import functools
import select
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from .. import rules
from ..errors import ArgumentError
from ..log import Log
from ..match import CRITERIA
from ..queue import Queue
from ..text import printable


def describe(parser: argparse.ArgumentParser, rule: Callable[..., rules.Rule]) -> None:
    """Options of all commands that read from the kernel; ``rule`` makes the one that they may install."""
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
        type=functools.partial(rule_words, rule=rule),
        help='install the rule meanwhile, e.g. "hook=forward protocol=udp destination_port=53%s"'
        % (" bypass=no" if rule is rules.queue else ""),
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


def netns(text: str) -> str:
    """An argument that names a network namespace, or a process that is in it."""
    return f"/proc/{number(1, 0x7FFFFFFF)(text)}/ns/net" if text.isdecimal() else text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


# What each word of a rule is made into; what it may be is for the rule to say.
_WORDS: dict[str, Callable[[str], Any]] = {
    "hook": str,
    "family": str,
    "priority": number(-0x80000000),
    **{name: criterion.word for name, criterion in CRITERIA.items()},
}
_WORDS_OF_ONE: dict[Callable[..., rules.Rule], dict[str, Callable[[str], Any]]] = {
    rules.queue: {"bypass": _yes_or_no, "balance": str},
    rules.log: {"prefix": str, "snaplen": number(0), "threshold": number(0)},
}


def rule_words(text: str, rule: Callable[..., rules.Rule] = rules.queue) -> dict[str, Any]:
    """``hook=forward protocol=udp bypass=no``, quoted as for a shell, as arguments of `nfnet.rules.queue` or `log`."""
    known = {**_WORDS, **_WORDS_OF_ONE[rule]}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in known:
            raise argparse.ArgumentTypeError(f"{word!r} is not name=value with one of the names {', '.join(known)}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is there twice")
        try:
            found[name] = known[name](value)
        except (argparse.ArgumentTypeError, ArgumentError) as error:
            raise argparse.ArgumentTypeError(f"{name}: {error}") from None
    try:
        rule(0, **found)
    except ArgumentError as error:
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


def counted(count: int, what: str) -> str:
    """1 packet, 2 packets."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def link_types(counts: Mapping[int, int]) -> str:
    """How many records there are of each link type."""
    return ", ".join(f"{counted(count, 'record')} of link type {kind}" for kind, count in sorted(counts.items()))


def losses(reader: Queue | Log) -> str:
    """What the kernel could not queue or deliver, for the end of a line; to be asked for while it is open."""
    lost = reader.counters.lost or 0
    text = ""
    if isinstance(reader, Queue) and (row := reader.stats().kernel) is not None:
        lost -= row.queue_dropped + row.user_dropped
        if row.queue_dropped:
            text += f", {row.queue_dropped} dropped by the kernel because the queue was full"
        if row.user_dropped:
            text += f", {row.user_dropped} dropped by the kernel because the receive buffer was full"
    return text + (f", {lost} lost" if lost > 0 else "")


def say(text: str) -> None:
    """What is not the output proper; file names in it may be anybody's."""
    print(printable(text), file=sys.stderr, flush=True)
