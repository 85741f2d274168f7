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
nfnet COMMAND --help describes a command.

exit status: 0 on success, 1 if something failed, 2 for wrong arguments

Completion in bash, zsh and fish: install argcomplete, and let the shell
evaluate the output of "register-python-argcomplete nfnet".
"""


class _Parser(argparse.ArgumentParser):
    """A parser, also of the subcommands, whose error messages contain no control characters."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build() -> argparse.ArgumentParser:
    """Return the parser of the command line; the options that it returns have the function ``run``."""
    parser = _Parser(
        prog="nfnet",
        description="Decide packets that a firewall rule queued, and collect those that a rule logged.",
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
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape characters that the terminal's encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    return execute(options)


def execute(options: argparse.Namespace) -> int:
    """Do what the options say and return the exit status; errors become a line on standard error."""
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        return 1
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as in shells; commands that run until a signal handle it themselves
    except (NfnetError, OSError) as error:
        if options.debug:
            raise
        say(f"nfnet {options.command}: {error}")
        return 2 if isinstance(error, ArgumentError) else 1
    return status
