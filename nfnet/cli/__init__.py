"""The ``nfnet`` command."""

# PYTHON_ARGCOMPLETE_OK

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from .. import __version__
from .._arguments import nearest
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


class _Job(NamedTuple):
    """What commands are used for: a title, their modules, and examples of them."""

    title: str
    modules: tuple[ModuleType, ...]
    examples: tuple[str, ...]


_JOBS = (
    _Job(
        "decide packets",
        (queue_command, block_command),
        (
            'sudo nfnet queue 1 --install-rule "hook=input protocol=icmp"',
            "sudo nfnet block 192.0.2.66 --for 10m",
        ),
    ),
    _Job(
        "see and collect logged packets",
        (log_command, collect_command, query_command),
        (
            'sudo nfnet log 5 --install-rule "hook=input protocol=tcp state=new"',
            "sudo nfnet collect --group 5 --to firewall.db",
            'nfnet query firewall.db "top sources last 24h"',
        ),
    ),
    _Job(
        "record and read captures",
        (record_command, decode_command),
        ("sudo nfnet record session.pcapng --queue 1", "nfnet replay session.pcapng"),
    ),
    _Job(
        "look after a machine",
        (doctor_command, stats_command, rules_command),
        ("sudo nfnet doctor", "sudo nfnet stats --watch"),
    ),
    _Job(
        "replace NetfilterQueue and nflogr",
        (run_command, stand_in_command),
        ("sudo nfnet run script.py",),
    ),
    _Job("try it", (demo_command,), ("nfnet demo",)),
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

_DESCRIPTION = "Decide packets that firewall rules queue, and collect those that they log.\n"

_EPILOG = """\
nfnet COMMAND --help describes a command.

exit status: 0 on success, 1 if something failed, 2 for wrong arguments

Completion in bash, zsh and fish: install argcomplete, and let the shell
evaluate the output of "register-python-argcomplete nfnet".
"""


_GENERAL = ("--debug", "--version")  # options that are not a command's


class _Parser(argparse.ArgumentParser):
    """A parser whose error messages are one line without control characters."""

    def error(self, message: str) -> NoReturn:
        end = "" if message.endswith("?") else "."
        self.exit(2, printable(f"{self.prog}: {message}{end} See {self.prog} --help") + "\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments. The parser of a command reports unknown ones itself, not the main parser."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._advice(unknown)}")
        return found, unknown

    def _advice(self, unknown: Sequence[str]) -> str:
        """Return the end of the error message about unknown arguments."""
        known = self._option_string_actions
        if unknown[0] in _GENERAL:
            return f"; {unknown[0]} must be before the command"
        if "--install-rule" in known and any(re.match(r"\w+=", word) for word in unknown):
            return "; the words of --install-rule must be one argument, in quotes"
        close = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
        return f"; did you mean {close[0]}?" if close else ""


class _MainParser(_Parser):
    """The parser of the whole command line."""

    commands: Any = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, after a check of the command's name."""
        words = sys.argv[1:] if args is None else args
        command = next((word for word in words if not word.startswith("-")), None)
        if command is not None and command not in self.commands.choices:
            self.error(f"no command is called {command!r}{nearest(command, self.commands.choices)}")
        return super().parse_known_args(args, namespace)


class _Listing:
    """Adds commands to the parser, and keeps their lines of help."""

    def __init__(self, commands: Any) -> None:
        self._commands = commands
        self.lines: list[str] = []

    def add_parser(self, name: str, *, help: str, **options: Any) -> argparse.ArgumentParser:
        self.lines.append(f"  {name:<10}  {help}\n")
        parser: argparse.ArgumentParser = self._commands.add_parser(name, help=help, **options)
        return parser


def build() -> argparse.ArgumentParser:
    """Return the parser of the command line; the options that it returns have the function ``run``."""
    parser = _MainParser(
        prog="nfnet",
        usage="nfnet [-h] [--version] [--debug] COMMAND ...",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    # The description lists the commands by job; argparse would list them all together.
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", help=argparse.SUPPRESS, prog="nfnet", parser_class=_Parser
    )
    parser.commands = commands
    parser.description = _DESCRIPTION
    for job in _JOBS:
        listing = _Listing(commands)
        for module in job.modules:
            module.add_to(listing)
        examples = "".join(f"    {example}\n" for example in job.examples)
        parser.description += f"\n{job.title}:\n{''.join(listing.lines)}\n{examples}"
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
        say(f"nfnet {options.command}: {_text(error)}")
        return 2 if isinstance(error, ArgumentError) else 1
    return status


def _text(error: NfnetError | OSError) -> str:
    """Return the message of an error; that of a plain OSError in the form of `KernelError`."""
    if isinstance(error, NfnetError) or error.errno is None or error.strerror is None:
        return str(error)
    text = error.strerror
    if error.filename is not None:
        text = f"{error.filename}: {text[:1].lower()}{text[1:]}"
    name = errno.errorcode.get(error.errno)  # a failed look-up of a host name has another kind of number
    return text if name is None else f"{text} [{name}]"
