"""``nfnet stand-in``: replace NetfilterQueue and nflogr in a Python environment."""

from __future__ import annotations

import argparse
from typing import Any

from .summaries import say

_DESCRIPTION = """\
Installs modules "netfilterqueue" and "nflogr" with metadata into this Python
environment. Programs and pip then find NetfilterQueue 1.1.0 and nflogr 0.2.12,
in nfnet's implementation. Fails if the original packages are installed.

    nfnet stand-in install
    nfnet stand-in install netfilterqueue
    nfnet stand-in remove

If you can change a program's requirements, require nfnet-netfilterqueue or
nfnet-nflogr instead. To run a single script, use nfnet run.

exit status: 0 on success; 1 if nothing was installed or removed; 2 for wrong
arguments
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "stand-in",
        help="replace NetfilterQueue and nflogr in a Python environment",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "action", choices=("install", "remove"), metavar="install|remove", help="install or remove the modules"
    )
    parser.add_argument("names", nargs="*", default=[], metavar="NAME", help="netfilterqueue or nflogr (default: both)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from ..compat import _stand_in  # only when it is needed

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
