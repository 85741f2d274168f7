"""``nfnet run``: a script written for NetfilterQueue or nflogr, unchanged."""

from __future__ import annotations

import argparse
from typing import Any

from ..compat import run
from ..errors import NfnetError
from .summaries import say

_DESCRIPTION = """\
Runs a Python script in which "import netfilterqueue" and "import nflogr" give
nfnet's modules of these names, so that neither package is needed. Everything
else is as if Python had run it: arguments, tracebacks, the exit status.

    nfnet run script.py --its-own options
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a script written for NetfilterQueue or nflogr",
        usage="nfnet run SCRIPT [ARGUMENT ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("script", nargs=argparse.REMAINDER, metavar="SCRIPT", help="and its arguments")
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    if not options.script:
        options.parser.error("which script?")
    try:
        run(options.script)
    except (NfnetError, OSError) as error:
        say(f"nfnet run: {error}")
        return 2
