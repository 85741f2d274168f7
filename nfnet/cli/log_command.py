"""``nfnet log``: show, store and record what rules log."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from .. import rules
from ..collect import Capture, Collector, JsonLines, Sqlite, Text
from ..collect._delivery import Delivery
from ..errors import ArgumentError
from .command_line import add_options, whole_number
from .signals import until_told
from .summaries import say

_DESCRIPTION = """\
Prints a line for each packet that firewall rules log to a group. Can also write
a capture for tcpdump and Wireshark, and rows of an SQLite database.

    nfnet log 5
    nfnet log 5 --json --install-rule "hook=input protocol=tcp state=new"
    nfnet log 5 -w log.pcap --sqlite log.db --quiet

While another process has the database locked, or its disk is full, rows are
kept in memory, up to 64 MiB, and stored later. A database that was moved or
removed is created again. At the end the command prints how many rows could not
be stored.

exit status: 0 after Ctrl-C or SIGTERM, or after --count messages; 1 if the
kernel refuses, or a file cannot be written; 2 for wrong arguments
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "log",
        help="show what rules log (NFLOG)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "group", type=whole_number(0, 65535), metavar="GROUP", help="number of the log group (0 to 65535)"
    )
    output = add_options(parser, rules.log)
    parser.add_argument("--prefix", default="", help="prefix of the rule of --install-rule")
    output.add_argument(
        "-w",
        dest="capture",
        metavar="FILE",
        help="also write a capture (replaced if it exists): pcapng with the prefixes as comments, or pcap if its name"
        " ends in .pcap",
    )
    output.add_argument("--sqlite", metavar="FILE", help=f"add {Sqlite.help}")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    if options.prefix and options.install_rule is None:
        raise ArgumentError("--prefix is for the rule of --install-rule, which is missing")
    if options.prefix and "prefix" in options.install_rule:
        raise ArgumentError("the prefix is given twice: as --prefix, and in the words of --install-rule")
    collector = Collector(
        [options.group], netns=netns, count=options.count, report=lambda text: say(f"nfnet log: {text}")
    )
    with contextlib.ExitStack() as stack:
        stack.callback(collector.close)
        if options.sqlite is not None:
            collector.add(Sqlite(options.sqlite), name=f"--sqlite {options.sqlite}")
        if options.capture is not None:
            collector.add(Capture(options.capture, anew=True), name=f"-w {options.capture}")
        shown: Delivery | None = None
        if not options.quiet:

            def report(_: str) -> None:  # the reader of standard output may have closed it
                if shown is not None and shown.broken:
                    collector.stop()

            shown = collector.add(JsonLines("-") if options.json else Text("-"), report=report)
        if options.metrics is not None:
            from ..metrics import serve

            address, port = options.metrics
            stack.callback(serve(port, collector, address=address))
        if options.install_rule is not None:
            rule = {"prefix": options.prefix, **options.install_rule}
            stack.enter_context(rules.log(options.group, netns=netns, **rule))
        stack.enter_context(until_told(collector.stop))
        complete = collector.run()
        if shown is None or not shown.broken:
            say(collector.summary())
    return 0 if complete else 1
