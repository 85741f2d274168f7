"""``nfnet doctor``: find out why nfnet does not work on this machine."""

from __future__ import annotations

import argparse
import json
import shlex
import textwrap
from collections import Counter
from typing import Any

from .. import doctor
from .._printable import counted, printable
from .command_line import netns

_DESCRIPTION = """\
Checks what the kernel supports and what this process is permitted to do. Finds
queues that drop packets, and rules that queue to a queue that no program has
bound. Prints a remedy for each finding, and what to do next. Changes nothing.

    nfnet doctor
    sudo nfnet doctor --netns blue

exit status: 0 if there are no failures, else 1
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="find out why it does not work here",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="check this network namespace: a name, path or process id"
    )
    parser.add_argument("--json", action="store_true", help="print JSON Lines, an object for each finding")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    levels: Counter[str] = Counter()
    failure = None
    for finding in doctor.examine(options.netns):
        levels[finding.level] += 1
        if finding.level == "failure" and failure is None:
            failure = finding
        if options.json:
            print(json.dumps(finding._asdict()), flush=True)
        else:
            _show(finding)
    if not options.json:
        _show_next(levels, failure, options.netns)
    return 0 if failure is None else 1


def _show(finding: doctor.Finding) -> None:
    text = printable(finding.what)
    print(textwrap.fill(f"{finding.level:<8} {text}", 100, subsequent_indent=" " * 9), flush=True)
    if finding.remedy:
        before, after = " " * 9 + "-> ", " " * 12
        print(textwrap.fill(printable(finding.remedy), 100, initial_indent=before, subsequent_indent=after))


def _show_next(levels: Counter[str], failure: doctor.Finding | None, netns: str | None) -> None:
    """Print what to do next. ``failure`` is the first failure, which others often follow from."""
    if failure is not None:
        first = "the first one" if levels["failure"] > 1 else "it"
        print(f"\n{counted(levels['failure'], 'failure')}. Do what {first} says, and run nfnet doctor again:\n")
        _show(failure)
        print("\nThese work nevertheless: nfnet demo, nfnet replay FILE, nfnet query DATABASE.")
        return
    where = "" if netns is None else f" --netns {shlex.quote(netns)}"
    print("\nnfnet works here" + ("; each warning names what it affects." if levels["warning"] else ".") + " Next:\n")
    print("    nfnet demo")
    print(printable(f'    nfnet queue 1{where} --install-rule "hook=input protocol=icmp"'))
