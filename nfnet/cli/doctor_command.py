"""``nfnet doctor``: find out why nfnet does not work on this machine."""

from __future__ import annotations

import argparse
import json
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
    for finding in doctor.examine(options.netns):
        levels[finding.level] += 1
        if options.json:
            print(json.dumps(finding._asdict()), flush=True)
            continue
        text = printable(finding.what)
        print(textwrap.fill(f"{finding.level:<8} {text}", 100, subsequent_indent=" " * 9), flush=True)
        if finding.remedy:
            print(
                textwrap.fill(
                    printable(finding.remedy), 100, initial_indent=" " * 9 + "-> ", subsequent_indent=" " * 12
                )
            )
    if not options.json:
        print(f"\n{_next(levels)}")
    return 1 if levels["failure"] else 0


def _next(levels: Counter[str]) -> str:
    """Return the advice that follows findings of these levels."""
    if levels["failure"]:
        return (
            f"{counted(levels['failure'], 'failure')}. Do what stands behind the first ->, and run nfnet doctor again."
        )
    works = "nfnet works here" + ("; each warning names what it affects." if levels["warning"] else ".")
    return f'{works} Next:\n\n    nfnet demo\n    nfnet queue 1 --install-rule "hook=input protocol=icmp"'
