"""``nfnet collect``: store logged packets in files and databases, as a service."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .. import rules
from .._printable import printable
from ..collect import Collector, Forwarder, Group, NatsSource, Output
from ..collect._output import without_password
from ..collect._outputs import Described, describe, describe_source
from ..collect._settings import Settings, read_settings
from ..collect._ulogd import translate
from ..collect._units import rate, size
from ..errors import ArgumentError
from ..log import Log
from .command_line import add_metrics, endpoint, netns, rule_words, whole_number
from .service import Service
from .signals import until_told
from .summaries import say

T = TypeVar("T")

_DESCRIPTION = """\
Stores the packets that firewall rules log in files and databases, until Ctrl-C
or SIGTERM.

    nfnet collect --group 5 --to firewall.db
    nfnet collect --group 5 --to log.jsonl --to postgresql:///firewall
    nfnet collect --config /etc/nfnet/collect.toml

An output is a URL, or a file: the end of its name (.jsonl, .log, .db, .pcapng)
or the word before it (sqlite:FILE, jsonl:-) selects the kind. While an output
fails, its messages are kept in memory, up to 64 MiB, or on disk with --spool;
the other outputs continue. With --limit only so many messages of each prefix
are stored, and regularly one that contains how many were left out.

SIGHUP reopens the files; a file that was renamed or removed is created again
also without it. SIGUSR1 prints the state on standard error. As a service of
systemd (Type=notify) the command reports when it is ready, its state, and that
it is alive (WatchdogSec=).

exit status: 0 after Ctrl-C or SIGTERM, or after --count messages; 1 if the
kernel refuses, an output cannot be opened, or messages could not be stored; 2
for wrong arguments or an error in the configuration
"""

_INPUT = """\
Install a rule that logs packets, or receive messages of other hosts:

    nfnet collect --install-rule "hook=input state=new" --group 5 --to in.log
    nfnet collect --from nats://nats.example:4222 --to postgresql:///firewall
"""

_OUTPUTS = """\
Files that are rotated, or another host that stores the messages:

    nfnet collect --group 5 --to log.jsonl rotate_size=1G keep=9 compress=yes
    nfnet collect --group 5 --to nats://nats.example:4222 --spool /var/spool
"""

_CONTENTS = """\
Store the program of each packet, and few messages during a port scan:

    nfnet collect --group 5 --to firewall.db --process --limit 100/s
"""

_RUNNING = """\
Check a configuration, or convert one of ulogd2:

    nfnet collect --config collect.toml --check
    nfnet collect --import-ulogd /etc/ulogd.conf
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "collect",
        usage="nfnet collect [OPTION ...]",
        help="store logged packets in files and databases",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    reading = parser.add_argument_group("input", _INPUT)
    reading.add_argument(
        "--group",
        type=whole_number(0, 65535),
        metavar="N",
        action="append",
        default=[],
        help="read this log group; can be repeated",
    )
    reading.add_argument(
        "--install-rule",
        metavar="WORDS",
        type=lambda text: rule_words(text, rules.log),
        help='install this rule while the command runs, e.g. "hook=input protocol=tcp state=new"; one group only',
    )
    reading.add_argument(
        "--from",
        nargs="+",
        metavar=("URL", "NAME=VALUE"),
        dest="source",
        help="read messages from NATS instead of from log groups",
    )
    reading.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in this network namespace: a name, path or process id"
    )
    reading.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after N messages")
    writing = parser.add_argument_group("outputs", _OUTPUTS)
    writing.add_argument(
        "--to",
        nargs="+",
        metavar=("OUTPUT", "NAME=VALUE"),
        action="append",
        default=[],
        help="store in this output, with these settings; can be repeated",
    )
    writing.add_argument("--create", action="store_true", help="create missing tables and streams first")
    writing.add_argument("--spool", metavar="DIR", help="keep messages of failing outputs in this directory")
    writing.add_argument(
        "--spool-size", metavar="SIZE", type=_size, help="keep at most so much for each output (default: 1G)"
    )
    contents = parser.add_argument_group("stored messages", _CONTENTS)
    contents.add_argument(
        "--limit", metavar="RATE", type=_rate, help="store at most so many of each prefix, e.g. 100/s, 20/minute"
    )
    contents.add_argument(
        "--label",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_pair,
        help="add this label to each JSON object, and to the table sessions; can be repeated",
    )
    contents.add_argument(
        "--process", action="store_true", help="store which local process sends or receives the packet"
    )
    contents.add_argument("--conntrack", action="store_true", help="store the state of the packet's connection")
    running = parser.add_argument_group("configuration and monitoring", _RUNNING)
    running.add_argument("--config", metavar="FILE", help="read this TOML file; options add to it or override it")
    running.add_argument(
        "--check", action="store_true", help="check the configuration, print what is wrong with it, and exit"
    )
    running.add_argument(
        "--import-ulogd",
        metavar="FILE",
        help="convert this configuration of ulogd2 to one for --config, print it, and exit",
    )
    add_metrics(running)
    parser.set_defaults(run=_run)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value, such as site=berlin")
    return name, value


def _size(text: str) -> int:
    try:
        return size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> Any:
    try:
        return rate(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _described(option: str, words: list[str], describe: Callable[[str, dict[str, str]], T]) -> T:
    to, *settings = words
    shown = f"{option} {without_password(to)}"
    wrong = [word for word in settings if "=" not in word]
    if wrong:
        raise ArgumentError(f"{shown}: {wrong[0]!r} is not a setting, such as rotate_size=100M")
    try:
        return describe(to, dict(word.split("=", 1) for word in settings))
    except ArgumentError as error:
        raise ArgumentError(f"{shown}: {error}") from None


def _settings(options: argparse.Namespace) -> Settings:
    """Return the settings of the configuration file, with those of the options added or in their place."""
    found = Settings()
    if options.config is not None:
        found = read_settings(options.config, lambda text: rule_words(text, rules.log), endpoint)
    known = {group.number for group in found.groups}
    found.groups += [Group(number) for number in dict.fromkeys(options.group) if number not in known]
    found.outputs += [_described("--to", words, describe) for words in options.to]
    found.labels = {**found.labels, **dict(options.label)}
    found.spool = options.spool or found.spool
    found.spool_size = options.spool_size or found.spool_size
    found.limit = options.limit or found.limit
    found.metrics = options.metrics or found.metrics
    found.process |= options.process
    found.conntrack |= options.conntrack
    if options.source is not None:
        found.source = _described("--from", options.source, describe_source)
    if found.source is not None and (found.groups or options.install_rule):
        raise ArgumentError("messages come from a source or from log groups, not from both")
    if found.source is None and not found.groups:
        raise ArgumentError(
            f"no log group is given: add --group N, or [[group]] in {options.config or 'a configuration'}"
        )
    if not found.outputs:
        raise ArgumentError(
            f"no output is given: add --to OUTPUT, or [[output]] in {options.config or 'a configuration'}"
        )
    if options.install_rule is not None:
        if len(found.groups) > 1:
            raise ArgumentError("--install-rule is for one group; the configuration has rules for several")
        found.rules.append((found.groups[0].number, options.install_rule))
    return found


def _run(options: argparse.Namespace) -> int:
    if options.import_ulogd is not None:
        print(translate(options.import_ulogd), end="")
        return 0
    settings = _settings(options)
    if options.check:
        if settings.metrics is not None:
            from ..metrics import check_installed

            check_installed()
        groups = ", ".join(str(group.number) for group in settings.groups)
        begin = f"groups {groups}" if settings.source is None else settings.source.name
        print(f"{begin} to {', '.join(each.name for each in settings.outputs)}")
        return 0
    if settings.source is not None:
        return _forward(options, settings, settings.source.make())
    if settings.spool is not None:
        os.makedirs(settings.spool, mode=0o700, exist_ok=True)
    more: dict[str, Any] = {"spool_size": settings.spool_size, "rcvbuf": settings.rcvbuf}
    with contextlib.ExitStack() as stack:
        collector = Collector(
            settings.groups,
            labels=settings.labels,
            limit=settings.limit,
            process=settings.process,
            conntrack=settings.conntrack,
            spool=settings.spool,
            netns=options.netns,
            count=options.count,
            report=lambda text: say(f"nfnet collect: {text}"),
            **{name: value for name, value in more.items() if value is not None},
        )
        stack.callback(collector.close)
        for each in settings.outputs:
            collector.add(_made(options, each), apart=True, groups=each.groups)
        if settings.metrics is not None:
            from ..metrics import serve

            address, port = settings.metrics
            stack.callback(serve(port, collector, address=address))
        for group, words in settings.rules:
            stack.enter_context(rules.log(group, netns=options.netns, **words))
        running = _Running(collector, collector.logs)
        stack.enter_context(until_told(running.stop, running.reopen, running.show))
        complete = collector.run(running.turn)
        say(collector.summary())
    return 0 if complete else 1


def _forward(options: argparse.Namespace, settings: Settings, source: NatsSource) -> int:
    if options.create:
        source.create()
    outputs = [_made(options, each) for each in settings.outputs]
    forwarder = Forwarder(source, outputs, count=options.count, report=lambda text: say(f"nfnet collect: {text}"))
    with contextlib.ExitStack() as stack:
        stack.callback(forwarder.close)
        if settings.metrics is not None:
            from ..metrics import serve

            address, port = settings.metrics
            stack.callback(serve(port, forwarder, address=address))
        running = _Running(forwarder)
        stack.enter_context(until_told(running.stop, running.reopen, running.show))
        complete = forwarder.run(running.turn)
        say(forwarder.summary())
    return 0 if complete else 1


def _made(options: argparse.Namespace, described: Described) -> Output:
    output = described.make()
    if options.create:
        output.create()
    return output


class _Running:
    """Handles signals and systemd while a collector or worker runs."""

    def __init__(self, collector: Collector | Forwarder, logs: Iterable[Log] = ()) -> None:
        self._collector = collector
        self._logs = logs
        self._service = Service(self._status, self._is_well)
        self._show = False

    def stop(self) -> None:
        self._service.stopping()
        self._collector.stop()

    def reopen(self) -> None:
        self._service.reload()
        self._collector.reopen()

    def show(self) -> None:
        self._show = True  # `turn` prints: the signal may have interrupted a print

    def turn(self) -> None:
        """Do what is due; the collector calls this at least once a second."""
        if self._show:
            self._show = False
            for line in self._lines():
                say(f"nfnet collect: {line}")
        self._service.turn(reloading=self._collector.reopening)

    def _lines(self) -> list[str]:
        state = self._collector.state()
        lines = [str(state)]
        if state.source is not None:
            lines.append(str(state.source))
        for log in self._logs:
            counters, kernel, socket = log.stats()
            text = f"group {log.group}: {counters.received:,} messages, {counters.lost or 0:,} lost"
            if kernel is not None:
                text += f", {kernel.waiting:,} in the kernel's buffer"
            if socket is not None:
                text += f", receive buffer {socket.unread:,} of {socket.rcvbuf:,} bytes"
            lines.append(text)
        return [*lines, *map(str, state.outputs)]

    def _status(self) -> str:
        """Return the line that systemctl status shows."""
        state = self._collector.state()
        wrong = [str(output) for output in state.outputs if output.error is not None or output.broken]
        if state.source is not None and state.source.error is not None:
            wrong.insert(0, str(state.source))
        return printable("; ".join([str(state), *wrong]))

    def _is_well(self, patience: float) -> bool:
        """Return whether no output has been busy with one operation for ``patience`` seconds.

        That messages are read needs no check: the loop that reads them makes this call.
        """
        return all(output.busy < patience for output in self._collector.state().outputs)
