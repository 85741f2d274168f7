"""``nfnet run``: run a program written for NetfilterQueue or nflogr, unchanged."""

from __future__ import annotations

import argparse
import os
import sys
from importlib.machinery import PathFinder
from typing import Any

from ..compat import run
from ..errors import NfnetError
from .summaries import say

_DESCRIPTION = """\
Runs a Python program in which "import netfilterqueue" and "import nflogr"
import nfnet's modules of these names, so that neither package is needed.
Arguments, tracebacks and the exit status are as if Python had run the program.

    nfnet run script.py --its-own options
    nfnet run -m package arguments
    nfnet run pytest tests

If there is no file of the given name, a module of that name is run, as with -m.
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "run",
        help="run a program written for NetfilterQueue or nflogr",
        usage="nfnet run SCRIPT|-m MODULE|-c CODE [ARGUMENT ...]",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # All options but --help (below) belong to Python or the program. No argument begins with this character.
        prefix_chars="\0",
        add_help=False,
    )
    parser.add_argument(
        "program", nargs=argparse.REMAINDER, metavar="SCRIPT", help="the script or module, and its arguments"
    )
    parser.set_defaults(run=_run, parser=parser)


def _run(options: argparse.Namespace) -> int:
    if not options.program:
        options.parser.error("a script, -m MODULE or -c CODE is missing")
    if options.program in (["-m"], ["-c"]):
        options.parser.error(f"nothing follows {options.program[0]}")
    if options.program[0] in ("-h", "--help"):
        options.parser.print_help()
        return 0
    try:
        run(_with_option(options.program))
    except (NfnetError, OSError) as error:
        say(f"nfnet run: {error}")
        return 2


def _with_option(program: list[str]) -> list[str]:
    """Put -m before the name of a module, if there is no file of that name."""
    name = program[0]
    if not name.startswith("-") and not os.path.exists(name) and name.replace(".", "").isidentifier():
        spec = PathFinder.find_spec(name.partition(".")[0], [os.getcwd(), *sys.path])
        if spec is not None:
            return ["-m", *program]
    return program
