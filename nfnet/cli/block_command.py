"""``nfnet block``: let the kernel drop or reject packets for a time, and print how many there were."""

from __future__ import annotations

import argparse
import json
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

from .. import rules
from .._io.system import wait_for_signal
from .._printable import counted, printable
from ..errors import ArgumentError
from ..rules import _installation
from ..rules._criteria import CRITERIA
from .command_line import netns
from .summaries import say

_DESCRIPTION = """\
Installs rules by which the kernel drops all packets from and to the addresses,
those that this machine forwards included, until Ctrl-C or SIGTERM, or for a
time. Then prints how many packets the rules stopped. No packet is handed to
Python. The kernel removes the rules with the command, however it ends (since
Linux 5.12; with older kernels run "nfnet rules clean" if it was killed).

    nfnet block 192.0.2.66 2001:db8::/32 --for 10m
    nfnet block --port 25,465,587 --reject
    nfnet block --unit backup.service 10.0.0.0/8

A packet is blocked if it matches all conditions: the last example keeps a
service from sending to a network.

exit status: 0 after Ctrl-C or SIGTERM, or when the time is over; 1 if the
kernel refuses the rules; 2 for wrong arguments
"""

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_STOPPING = {signal.SIGINT, signal.SIGTERM}


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "block",
        help="drop or reject packets for a time, in the kernel",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("packets")
    what.add_argument("addresses", nargs="*", metavar="ADDRESS", help="an address, a network, or a range with -")
    what.add_argument("--port", metavar="N", help="destination port: one, several (25,465), or a range (25-30)")
    what.add_argument(
        "--protocol", metavar="P", help="tcp, udp, icmp, ... (default: tcp and udp with --port, any without)"
    )
    what.add_argument("--unit", metavar="NAME", help="a systemd unit of this machine, or the path of a control group")
    what.add_argument("--user", metavar="USER", help="sent by programs of this local user (name or number)")
    how = parser.add_argument_group("verdict").add_mutually_exclusive_group()
    how.add_argument("--drop", dest="action", action="store_const", const=rules.drop, help="drop them (default)")
    how.add_argument(
        "--reject",
        dest="action",
        action="store_const",
        const=rules.reject,
        help="drop them, and send a TCP reset or an ICMP error to the sender",
    )
    parser.add_argument(
        "--for",
        dest="seconds",
        type=_duration,
        metavar="TIME",
        help="stop after this time: 90, 90s, 10m, 2h, 1d (default: run until Ctrl-C)",
    )
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in this network namespace: a name, path or process id"
    )
    parser.add_argument("--json", action="store_true", help="print each rule and its counters as JSON Lines at the end")
    parser.set_defaults(run=_run, action=rules.drop)


def _run(options: argparse.Namespace) -> int:
    found = rules.RuleSet(*_answers(options), *_rules(options))
    # From here on signals are blocked until `_wait`, so that none interrupts the installation or removal of rules.
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
    """Yield a rule for each hook and direction in which the packets can pass. Raises ArgumentError."""
    common: dict[str, Any] = {}
    for option, name in (("port", "destination_port"), ("protocol", "protocol"), ("unit", "cgroup"), ("user", "uid")):
        if (text := getattr(options, option)) is not None:
            common[name] = CRITERIA[name].parse(text)
            CRITERIA[name].read(f"--{option}", common[name], False)  # its error names the option
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
    """Yield rules that accept the kernel's own answers to rejected packets; the blocking rules would match some."""
    if options.action is rules.reject:
        # Local programs receive them from the interface lo, with the peer's address as source.
        for place in ({"hook": "output"}, {"hook": "input", "in_interface": "lo"}):
            common: dict[str, Any] = {**place, "netns": options.netns}
            yield rules.accept(protocol="tcp", tcp_flags="rst", **common)
            yield rules.accept(protocol=["icmp", "icmpv6"], icmp_type="destination-unreachable", **common)


def _what(options: argparse.Namespace) -> str:
    """Return a description of the blocked packets."""
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
    """Wait for a signal, at most ``seconds``."""
    if seconds is None:
        signal.sigwait(_STOPPING)
    else:
        wait_for_signal(_STOPPING, seconds)


def _duration(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if found is None or not int(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time, which is like 90, 90s, 10m, 2h or 1d")
    return int(found[1]) * _SECONDS[found[2]]
