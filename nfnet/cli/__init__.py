"""The ``nfnet`` command."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from .. import __version__
from .._printable import printable
from ..errors import ArgumentError, NfnetError
from . import (
    block_command,
    collect_command,
    decode_command,
    demo_command,
    doctor_command,
    log_command,
    query_command,
    queue_command,
    record_command,
    rules_command,
    run_command,
    stand_in_command,
    stats_command,
)
from .summaries import say

_COMMANDS = (
    queue_command,
    block_command,
    log_command,
    collect_command,
    query_command,
    record_command,
    decode_command,
    rules_command,
    stats_command,
    doctor_command,
    run_command,
    stand_in_command,
    demo_command,
)

_FIRST = """\
nfnet decides and logs packets. Four things to do first:

    nfnet demo                  see packets accepted, dropped and rewritten
    nfnet doctor                see what this machine can do, and what is missing
    sudo nfnet queue 1 --install-rule "hook=input protocol=icmp"
                                watch packets go by, and accept them
    sudo nfnet log 5 --install-rule "hook=input protocol=tcp state=new"
                                see who connects to this machine

nfnet --help lists all commands.
"""

_EPILOG = """\
nfnet COMMAND --help says more. exit status: 0 if all went well, 1 if something
failed, 2 for wrong arguments. Completion in bash, zsh and fish: install
argcomplete and have the shell evaluate the output of
"register-python-argcomplete nfnet".
"""


class _Parser(argparse.ArgumentParser):
    """Also of the commands: what is wrong is said with nothing in it that a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build() -> argparse.ArgumentParser:
    """The parser of the command line; what it gives has the function ``run``."""
    parser = _Parser(
        prog="nfnet",
        description="Decide and log packets from Python.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_to(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build()
    with suppress(ImportError):
        import argcomplete

        argcomplete.autocomplete(parser)
    options = parser.parse_args(arguments)
    if options.command is None:
        print(_FIRST, end="", file=sys.stderr)
        return 2
    if isinstance(sys.stdout, io.TextIOWrapper):  # what the encoding of a terminal lacks is no reason to stop
        sys.stdout.reconfigure(errors="backslashreplace")
    return execute(options)


def execute(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit status; errors become a line on standard error."""
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor does the interpreter complain at its end
        return 1
    except KeyboardInterrupt:
        return 130  # as shells have it; commands that run on end by themselves
    except (NfnetError, OSError) as error:
        if options.debug:
            raise
        say(f"nfnet {options.command}: {error}")
        return 2 if isinstance(error, ArgumentError) else 1
    return status
