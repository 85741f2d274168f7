"""Options that several commands have, the types of their arguments, and a rule in words."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from typing import Any

from .. import rules
from ..captures import ReplayOptions
from ..captures._frames import FAMILIES
from ..errors import ArgumentError
from ..protocol.nfnetlink import Hook
from ..rules._criteria import CRITERIA
from ..rules._values import number


def add_options(parser: argparse.ArgumentParser, rule: Callable[..., rules.Rule]) -> None:
    """Options of all commands that read from the kernel; ``rule`` makes the one that they may install."""
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in another network namespace: a name, path or process id"
    )
    parser.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after so many")
    parser.add_argument("--json", action="store_true", help="JSON Lines with field names of the Elastic Common Schema")
    parser.add_argument("-q", "--quiet", action="store_true", help="no line for each packet")
    parser.add_argument(
        "--install-rule",
        metavar="WORDS",
        type=functools.partial(rule_words, rule=rule),
        help='install the rule meanwhile, e.g. "hook=forward protocol=udp destination_port=53%s"'
        % (" bypass=no" if rule is rules.queue else ""),
    )
    add_metrics(parser)


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """The option of all commands that have metrics."""
    parser.add_argument(
        "--metrics",
        type=endpoint,
        metavar="[ADDRESS:]PORT",
        help="serve Prometheus metrics there; on 127.0.0.1 if no address is given",
    )


def add_capture_options(parser: Any) -> None:
    """Options of commands that read captures, for packets with a link layer: arguments of `nfnet.replay`."""
    parser.add_argument(
        "--hook",
        choices=[hook.name.lower() for hook in Hook],
        metavar="HOOK",
        help="of all packets, where the capture is not of a queue or log; else it is input, output or forward as the"
        " file says of each packet, or --local; and prerouting if neither does",
    )
    parser.add_argument(
        "--local",
        action="append",
        metavar="NET",
        help="an address or network on this side: what comes from it is at output, what goes to it at input, everything"
        " else at forward. May be given several times",
    )
    parser.add_argument(
        "--family", choices=FAMILIES, help="inet: IP packets (if not said); bridge: all Ethernet frames, as in a bridge"
    )


def capture_options(options: argparse.Namespace) -> ReplayOptions:
    """Those of `add_capture_options` that were given."""
    given: ReplayOptions = {}
    if options.hook is not None:
        given["hook"] = options.hook
    if options.local is not None:
        given["local"] = options.local
    if options.family is not None:
        given["family"] = options.family
    return given


def capture_file(text: str) -> str:
    """The name of a capture; "-" is standard input."""
    return "/dev/stdin" if text == "-" else text


def endpoint(text: str) -> tuple[str, int]:
    """An argument that names an address and a port to listen on: ``9464``, ``0.0.0.0:9464``, ``[::]:9464``."""
    address, _, port = text.rpartition(":")
    if not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no port, such as 9464, or address and port: 0.0.0.0:9464")
    if ":" in address and not (address.startswith("[") and address.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text!r}: an IPv6 address stands in brackets, as in [::1]:9464")
    return address.strip("[]") or "127.0.0.1", whole_number(1, 65535)(port)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
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
    return f"/proc/{whole_number(1, 0x7FFFFFFF)(text)}/ns/net" if text.isdecimal() else text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


# What each word of a rule is made into; what it may be is for the rule to say.
_WORDS: dict[str, Callable[[str], Any]] = {
    "hook": str,
    "family": str,
    "priority": whole_number(-0x80000000),
    **{negation + name: criterion.parse for name, criterion in CRITERIA.items() for negation in ("", "not_")},
}
_WORDS_OF_ONE: dict[Callable[..., rules.Rule], dict[str, Callable[[str], Any]]] = {
    rules.queue: {
        "bypass": _yes_or_no,
        "balance": str,
        "remember": _yes_or_no,
        "first": whole_number(0),
        "bits": number,
    },
    rules.log: {"prefix": str, "snaplen": whole_number(0), "threshold": whole_number(0)},
    rules.drop: {},
    rules.accept: {},
    rules.reject: {"error": str},
    rules.mark: {"mask": whole_number(1)},
}
_WITHOUT_NUMBER = (rules.drop, rules.accept, rules.reject)


def rule_words(text: str, rule: Callable[..., rules.Rule] = rules.queue) -> dict[str, Any]:
    """``hook=forward protocol=udp not_mark=7``, quoted as for a shell, as arguments of a function of `nfnet.rules`."""
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
        rule(*(() if rule in _WITHOUT_NUMBER else (0,)), **found)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found
