"""``nfnet block``: have the kernel drop or reject packets for a while, and say how many those were."""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

from .. import rules
from .._printable import counted, printable
from ..errors import ArgumentError
from ..rules import _installation
from ..rules._criteria import CRITERIA
from .command_line import netns
from .summaries import say

_DESCRIPTION = """\
Has the kernel drop what goes from here to the addresses, and what comes from
them or is passed on between them and others; until Ctrl-C or SIGTERM, or for
a time. Then it says how many packets that stopped. No packet goes through
Python, and the rules go away with the command, however it ends (since Linux
5.12; "nfnet rules clean" removes what is left before that).

    nfnet block 192.0.2.66 2001:db8::/32 --for 10m
    nfnet block --port 25,465,587 --reject
    nfnet block --unit backup.service 10.0.0.0/8

All that is given must be true of a packet: the last one keeps a service from
speaking to a network. Ports are those that packets go to.

exit status: 0 when it was told to stop, or the time is over; 1 if the kernel
refuses; 2 for wrong arguments
"""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_STOPPING = {signal.SIGINT, signal.SIGTERM}


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "block",
        help="drop or reject packets for a while",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("packets")
    what.add_argument("addresses", nargs="*", metavar="ADDRESS", help="an address, a network, or two with - in between")
    what.add_argument("--port", metavar="N", help="to which they go: a number, several (25,465), or two with - between")
    what.add_argument("--protocol", metavar="P", help="tcp, udp, icmp, ... [with --port tcp and udp, else any]")
    what.add_argument("--unit", metavar="NAME", help="of a local systemd unit, or of a control group by its path")
    what.add_argument("--user", metavar="USER", help="of programs of a local user, by name or number; what they send")
    how = parser.add_argument_group("what becomes of them").add_mutually_exclusive_group()
    how.add_argument("--drop", dest="action", action="store_const", const=rules.drop, help="drop them (if not said)")
    how.add_argument(
        "--reject",
        dest="action",
        action="store_const",
        const=rules.reject,
        help="drop them, and tell the sender: a TCP reset, or an ICMP error",
    )
    parser.add_argument("--for", dest="seconds", type=_duration, metavar="TIME", help="how long: 90, 90s, 10m, 2h, 1d")
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="name, path or process id of another network namespace"
    )
    parser.add_argument("--json", action="store_true", help="JSON Lines: each rule, and what it stopped, at the end")
    parser.set_defaults(run=_run, action=rules.drop)


def _run(options: argparse.Namespace) -> int:
    found = rules.RuleSet(*_answers(options), *_rules(options))
    # From here on signals wait until `_wait` looks for them: none comes while rules are being installed or removed.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        with found:
            end = "Ctrl-C"
            if options.seconds is not None:
                end = f"{time.strftime('%H:%M:%S', time.localtime(time.time() + options.seconds))} or {end}"
            say(f"{'rejecting' if options.action is rules.reject else 'dropping'} {_what(options)}, until {end}")
            _wait(options.seconds)
            table = _installation.table(found)
            rows = [row for row in rules.installed(options.netns) if row.table == table]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # As `nfnet rules list` shows them.
    stopped = [row for row in rows if not row.words.startswith("accept ")]
    for row in stopped:
        if options.json:
            print(json.dumps(row._asdict()))
        else:
            print(f"  {row.packets:>10} packets {row.bytes:>13} bytes  {printable(row.words)}")
    packets, size = sum(row.packets for row in stopped), sum(row.bytes for row in stopped)
    say(f"stopped {counted(packets, 'packet')}, {counted(size, 'byte')}")
    return 0


def _rules(options: argparse.Namespace) -> Iterator[rules.Rule]:
    """A rule for each way that the packets may take. Raises ArgumentError."""
    common: dict[str, Any] = {}
    for option, name in (("port", "destination_port"), ("protocol", "protocol"), ("unit", "cgroup"), ("user", "uid")):
        if (text := getattr(options, option)) is not None:
            common[name] = CRITERIA[name].parse(text)
            CRITERIA[name].read(f"--{option}", common[name], False)  # complains of the option, not of the criterion
    if options.addresses:
        CRITERIA["source"].read("ADDRESS", options.addresses, False)
    if not common and not options.addresses:
        raise ArgumentError("there is nothing to block: give an address, --port, --protocol, --unit or --user")
    if options.port is not None:
        common.setdefault("protocol", ["tcp", "udp"])
    ways = [("input", "source"), ("output", "destination"), ("forward", "source"), ("forward", "destination")]
    hooks = {"cgroup": ("input", "output"), "uid": ("output",)}
    for hook, side in ways if options.addresses else [("input", ""), ("output", ""), ("forward", "")]:
        if all(hook in hooks.get(name, (hook,)) for name in common):
            where = {side: options.addresses} if side else {}
            yield options.action(hook=hook, netns=options.netns, **where, **common)


def _answers(options: argparse.Namespace) -> Iterator[rules.Rule]:
    """Rules that let the kernel's own answers to what is rejected pass: some are for or from what is blocked."""
    if options.action is rules.reject:
        # To local programs they come by the interface lo, as if the peer had sent them.
        for place in ({"hook": "output"}, {"hook": "input", "in_interface": "lo"}):
            common: dict[str, Any] = {**place, "netns": options.netns}
            yield rules.accept(protocol="tcp", tcp_flags="rst", **common)
            yield rules.accept(protocol=["icmp", "icmpv6"], icmp_type="destination-unreachable", **common)


def _what(options: argparse.Namespace) -> str:
    """Which packets, for people."""
    words = ["packets"]
    for text, name in (
        ("of protocol", options.protocol),
        ("from and to", ", ".join(options.addresses)),
        ("to port", options.port),
        ("of unit", options.unit),
        ("of user", options.user),
    ):
        words += [text, name] if name else []
    return " ".join(words)


def _wait(seconds: float | None) -> None:
    """Until a signal comes, or so long."""
    if seconds is None:
        signal.sigwait(_STOPPING)
    else:
        signal.sigtimedwait(_STOPPING, seconds)


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time, which is like 90, 90s, 10m, 2h or 1d")
    return int(found[1]) * _SECONDS[found[2]]
