"""``nfnet rules``: list the rules that this library installed, and remove those of killed processes."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import rules
from .._printable import printable
from ..errors import NfnetError
from .command_line import netns
from .summaries import say

_DESCRIPTION = """\
"list" shows the rules that programs installed with nfnet.rules in a network
namespace: table and process, and for each rule how many packets and bytes it
matched, and the rule itself, in the words of --install-rule.

"clean" removes the rules of processes that were killed. Since Linux 5.12 the
kernel removes rules together with their process, and there is nothing to clean.

    nfnet rules list
    nfnet rules list --json
    nfnet rules clean --netns blue

exit status: 0 on success; 1 if the kernel refuses, for instance without
CAP_NET_ADMIN
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "rules",
        help="list rules that programs installed, or remove left-over ones",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", choices=("list", "clean"), metavar="list|clean", help="show rules, or remove left-over ones"
    )
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in this network namespace: a name, path or process id"
    )
    parser.add_argument("--json", action="store_true", help="print JSON Lines, an object for each rule")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    try:
        found = rules.installed(netns) if options.what == "list" else rules.clean(netns)
    except NfnetError as error:
        say(f"nfnet rules: {error}")
        return 1
    if options.json:
        for row in found:
            print(json.dumps(row._asdict()))
        return 0
    table = None
    for row in found:
        if table != (row.family, row.table):
            table = (row.family, row.table)
            state = "removed" if options.what == "clean" else "of a process that ended" if row.orphaned else "in use"
            print(f"{row.family:<7} {printable(row.table):<24} process {row.process:<8} {state}")
        if row.words:
            print(f"  {row.packets:>10} packets {row.bytes:>13} bytes  {printable(row.words)}")
    if not found:
        print("no rules" if options.what == "list" else "nothing to remove")
    return 0
