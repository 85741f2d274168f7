"""``nfnet stand-in``: in the place of NetfilterQueue and nflogr, in an environment."""

from __future__ import annotations

import argparse
from typing import Any

from .summaries import say

_DESCRIPTION = """\
Puts modules "netfilterqueue" and "nflogr" into this Python environment, with
metadata, so that programs and pip find NetfilterQueue 1.1.0 and nflogr 0.2.12
installed, and get nfnet's implementation. Refused if the packages themselves
are installed.

    nfnet stand-in install
    nfnet stand-in install netfilterqueue
    nfnet stand-in remove

If the requirements can be changed, require nfnet-netfilterqueue or
nfnet-nflogr instead. To run one script, use nfnet run.

exit status: 0 if it was done, 1 if not
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stand-in",
        help="take the place of NetfilterQueue and nflogr in an environment",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("install", "remove"), help="what to do")
    parser.add_argument("names", nargs="*", metavar="NAME", help="netfilterqueue or nflogr [both]")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from ..compat import _stand_in  # now: few need it

    stand_ins, where = _stand_in.chosen(options.names), _stand_in.place()
    if options.action == "install":
        _stand_in.install(stand_ins, where)
        for item in stand_ins:
            say(f"installed a stand-in for {item.distribution} {item.version} in {where}")
        return 0
    removed = _stand_in.remove(stand_ins, where)
    for item in removed:
        say(f"removed the stand-in for {item.distribution} from {where}")
    if not removed:
        say(f"no stand-in is installed in {where}")
    return 0 if removed else 1
