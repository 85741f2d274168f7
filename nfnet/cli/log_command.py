"""``nfnet log``: show, store and record what rules log."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from .. import rules
from .._printable import counted
from ..collect import OUTPUTS, Output
from ..errors import ArgumentError
from ..log import Log, LogMessage
from . import packet_text
from .command_line import add_options, whole_number
from .signals import until_told, wait_readable
from .summaries import losses, say

_DESCRIPTION = """\
Shows what firewall rules log to a group, a line each; writes captures that
tcpdump and Wireshark open, and rows of an SQLite database.

    nfnet log 5
    nfnet log 5 --json --install-rule "hook=input protocol=tcp state=new"
    nfnet log 5 -w log.pcap --sqlite log.db --quiet

While others have the database locked, its disk is full, or it is away, rows
are kept in memory, up to 64 MiB, and stored later; a database that was moved
or removed is made anew. What could not be stored is said at the end.

exit status: 0 when it was told to stop, or after --count messages; 1 if the
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
    parser.add_argument("group", type=whole_number(0, 65535), metavar="GROUP", help="number of the group")
    parser.add_argument("--prefix", default="", help="what the installed rule shall say")
    add_options(parser, rules.log)
    for output in OUTPUTS:
        parser.add_argument(output.option, dest=output.__name__, metavar=output.metavar, help=output.help)
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    netns = options.netns
    if options.prefix and (options.install_rule is None or "prefix" in options.install_rule):
        raise ArgumentError("--prefix is what the rule of --install-rule says, and may be given once")
    log = Log(options.group, threshold=1, sequence=True, netns=netns)
    with contextlib.ExitStack() as stack:
        messages = _Messages(options, stack)
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, log, address=options.metrics_address))
        if options.install_rule is not None:
            rule = {"prefix": options.prefix, **options.install_rule}
            stack.enter_context(rules.log(options.group, netns=netns, **rule))
        stack.enter_context(until_told(messages.stop))
        stack.enter_context(log)
        messages.begin()  # last: what was in a file to write to is gone with this
        try:
            while not messages.stopped:
                if not log.process(messages.take):
                    messages.flush()
                    wait_readable(log, None)
        finally:
            complete = messages.finish()
        say(f"{counted(messages.seen, 'message')}{losses(log)}")
    return 0 if complete else 1


class _Messages:
    """Takes messages: shows them, and hands them to the outputs."""

    def __init__(self, options: argparse.Namespace, stack: contextlib.ExitStack) -> None:
        self._options = options
        self.seen = 0
        self.stopped = 0  # how often
        self._outputs: list[Output] = []
        for output in OUTPUTS:
            target = getattr(options, output.__name__)
            if target is not None:
                self._outputs.append(output(target, options.group, lambda text: say(f"nfnet log: {text}")))
                stack.callback(self._outputs[-1].close)

    def begin(self) -> None:
        """Raises NfnetError or OSError if one of the files cannot be written; then nothing in them was touched."""
        for output in reversed(self._outputs):  # the capture last: what was in its file is gone with this
            output.begin()

    def stop(self) -> None:
        self.stopped += 1

    def take(self, message: LogMessage) -> None:
        if self.stopped:
            return
        self.seen += 1
        if self._options.count is not None and self.seen >= self._options.count:
            self.stop()
        for output in self._outputs:
            output.take(message)
        if not self._options.quiet:  # last: whoever reads it may be gone
            if self._options.json:
                print(packet_text.ecs(message, group=self._options.group), flush=True)
            else:
                print(packet_text.line(message), flush=True)

    def flush(self) -> None:
        """Nothing comes for a while: let it be on the disk."""
        for output in self._outputs:
            output.flush()
        if self._options.quiet and self._outputs and all(output.broken for output in self._outputs):
            self.stop()  # nothing is left to be done

    def finish(self) -> bool:
        """Whether everything is on the disk; what is not is said."""
        before = self.stopped
        complete = True
        for output in self._outputs:
            complete &= output.finish(lambda: self.stopped > before)
        return complete
