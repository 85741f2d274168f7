"""``nfnet doctor``: why does it not work here?"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import Any

from .. import doctor
from .._printable import printable
from .command_line import netns

_DESCRIPTION = """\
Asks the kernel what it can do, looks at what this process may, and at queues
that drop packets and rules that feed queues nobody reads. Says what to do
about it. Nothing is changed.

    nfnet doctor
    sudo nfnet doctor --netns blue

exit status: 0 if nothing is a failure, else 1
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "doctor",
        help="why does it not work here?",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--netns", type=netns, metavar="NAME", help="of another network namespace")
    parser.add_argument("--json", action="store_true", help="JSON Lines")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    failures = 0
    for finding in doctor.examine(options.netns):
        failures += finding.level == "failure"
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
    return 1 if failures else 0
