"""Options that several commands have, the types of their arguments, and a rule in words."""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from typing import Any

from .. import rules
from .._arguments import nearest
from ..captures import ReplayOptions
from ..captures._frames import FAMILIES
from ..errors import ArgumentError
from ..protocol.nfnetlink import Hook
from ..rules._criteria import CRITERIA
from ..rules._values import number


def add_options(parser: argparse.ArgumentParser, rule: Callable[..., rules.Rule]) -> Any:
    """Add the options of all commands that read from the kernel; ``rule`` makes the rule of --install-rule.

    Returns the group of the options about output.
    """
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in this network namespace: a name, path or process id"
    )
    parser.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after N packets")
    parser.add_argument(
        "--install-rule",
        metavar="WORDS",
        type=functools.partial(rule_words, rule=rule),
        help='install this rule while the command runs, e.g. "hook=forward protocol=udp destination_port=53%s"'
        % (" bypass=no" if rule is rules.queue else ""),
    )
    output = parser.add_argument_group("output and metrics")
    output.add_argument(
        "--json", action="store_true", help="print JSON Lines, fields named as in the Elastic Common Schema"
    )
    output.add_argument("-q", "--quiet", action="store_true", help="print no line for each packet")
    add_metrics(output)
    return output


def add_metrics(parser: Any) -> None:
    """Add the option of all commands that have metrics."""
    parser.add_argument(
        "--metrics",
        type=endpoint,
        metavar="[ADDRESS:]PORT",
        help="serve Prometheus metrics at this address (default: 127.0.0.1) and port",
    )


def add_capture_options(parser: Any) -> None:
    """Add options for packets of general captures, which become arguments of `nfnet.replay`."""
    parser.add_argument(
        "--hook",
        choices=[hook.name.lower() for hook in Hook],
        metavar="HOOK",
        help="the hook of all packets, if the capture is not one of a queue or log (default: input, output or forward"
        " by the direction in the file or by --local, else prerouting)",
    )
    parser.add_argument(
        "--local",
        action="append",
        metavar="NET",
        help="an address or network of this host: packets from it are at output, packets to it at input, all others at"
        " forward; can be repeated",
    )
    parser.add_argument(
        "--family", choices=FAMILIES, help="inet: IP packets (default); bridge: all Ethernet frames, as a bridge has"
    )


def capture_options(options: argparse.Namespace) -> ReplayOptions:
    """Return the options of `add_capture_options` that were given."""
    given: ReplayOptions = {}
    if options.hook is not None:
        given["hook"] = options.hook
    if options.local is not None:
        given["local"] = options.local
    if options.family is not None:
        given["family"] = options.family
    return given


def capture_file(text: str) -> str:
    """Return the path of a capture; "-" is standard input."""
    return "/dev/stdin" if text == "-" else text


def endpoint(text: str) -> tuple[str, int]:
    """Parse an argument with a port and optionally an address: ``9464``, ``0.0.0.0:9464``, ``[::]:9464``."""
    address, _, port = text.rpartition(":")
    if not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no port, such as 9464, or address and port: 0.0.0.0:9464")
    if ":" in address and not (address.startswith("[") and address.endswith("]")):
        raise argparse.ArgumentTypeError(f"{text!r}: an IPv6 address must be in brackets, as in [::1]:9464")
    return address.strip("[]") or "127.0.0.1", whole_number(1, 65535)(port)


def whole_number(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a parser of an argument that is a whole number within bounds."""

    bounds = f"at least {least}" if most is None else f"in {least}..{most}"

    def parse(text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number; it must be {bounds}") from None
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{value} must be {bounds}")
        return value

    return parse


def netns(text: str) -> str:
    """Parse an argument that names a network namespace, or is the id of a process in it."""
    return f"/proc/{whole_number(1, 0x7FFFFFFF)(text)}/ns/net" if text.isdecimal() else text


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither yes nor no")
    return text == "yes"


# The parser of each word of a rule; the rule's function checks the values.
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
# Names that nft and iptables have for some of these.
_OTHER_NAMES = {
    "saddr": "source",
    "daddr": "destination",
    "sport": "source_port",
    "dport": "destination_port",
    "port": "destination_port",
    "iif": "in_interface",
    "iifname": "in_interface",
    "oif": "out_interface",
    "oifname": "out_interface",
    "proto": "protocol",
    "chain": "hook",
    "table": "family",
}
_WITHOUT_NUMBER = (rules.drop, rules.accept, rules.reject)


def rule_words(text: str, rule: Callable[..., rules.Rule] = rules.queue) -> dict[str, Any]:
    """Parse words like ``hook=forward protocol=udp not_mark=7``, quoted as for a shell.

    Returns them as keyword arguments of a function of `nfnet.rules`.
    """
    known = {**_WORDS, **_WORDS_OF_ONE[rule]}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise argparse.ArgumentTypeError(f"{word!r} is not name=value, such as protocol=udp")
        if name not in known:
            name = _OTHER_NAMES.get(name, name)
            names = [each for each in known if not each.startswith("not_")]
            raise argparse.ArgumentTypeError(f"{word!r}: there is no such name{nearest(name, names)}")
        if name in found:
            raise argparse.ArgumentTypeError(f"{name} is given twice")
        try:
            found[name] = known[name](value)
        except (argparse.ArgumentTypeError, ArgumentError) as error:
            raise argparse.ArgumentTypeError(f"{name}: {error}") from None
    try:
        rule(*(() if rule in _WITHOUT_NUMBER else (0,)), **found)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return found
