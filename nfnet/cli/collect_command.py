"""``nfnet collect``: bring what rules log to files and databases, for good."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from .. import rules
from ..collect import Collector, Forwarder, NatsSource, Output, source
from ..collect._output import without_password
from ..collect._outputs import describe
from ..collect._settings import Settings, read_settings
from ..collect._units import size
from ..errors import ArgumentError
from .command_line import netns, rule_words, whole_number
from .signals import until_told
from .summaries import say

T = TypeVar("T")

_DESCRIPTION = """\
Brings what firewall rules log to files and databases, until it is told to stop.

    nfnet collect --group 5 --to log.jsonl --to sqlite:firewall.db
    nfnet collect --group 5 --to log.jsonl rotate_size=100M keep=9 compress=yes
    nfnet collect --config /etc/nfnet/collect.toml
    nfnet collect --group 5 --to nats://nats.example:4222
    nfnet collect --from nats://nats.example:4222 --to postgresql:///firewall

An output is a file whose name says what it is (.jsonl, .log, .db, .pcapng), or
has that before it (sqlite:FILE, jsonl:-). What an output cannot take at the
moment is kept in memory, up to 64 MiB, or with --spool on disk; the others go
on. SIGHUP opens files anew; those that were renamed are made anew anyhow.

exit status: 0 when it was told to stop, or after --count messages; 1 if the
kernel refuses, an output cannot begin, or messages could not be stored; 2 for
wrong arguments, or something wrong in the configuration
"""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "collect",
        help="bring what rules log to files and databases",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--group",
        type=whole_number(0, 65535),
        metavar="N",
        action="append",
        default=[],
        help="number of a log group; may be repeated",
    )
    parser.add_argument(
        "--to",
        nargs="+",
        metavar=("OUTPUT", "NAME=VALUE"),
        action="append",
        default=[],
        help="where to, and settings of it; may be repeated",
    )
    parser.add_argument(
        "--from",
        nargs="+",
        metavar=("URL", "NAME=VALUE"),
        dest="source",
        help="take messages from NATS, instead of log groups",
    )
    parser.add_argument("--config", metavar="FILE", help="a TOML file; what options say comes on top of it")
    parser.add_argument("--create", action="store_true", help="first make what outputs lack: tables, a stream")
    parser.add_argument("--check", action="store_true", help="say what is wrong with the configuration, and end")
    parser.add_argument(
        "--label",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        type=_pair,
        help="add this to JSON, and to the table sessions",
    )
    parser.add_argument("--spool", metavar="DIR", help="keep here what an output cannot take")
    parser.add_argument("--spool-size", metavar="SIZE", type=_size, help="of each output at most so much [1G]")
    parser.add_argument(
        "--install-rule",
        metavar="WORDS",
        type=lambda text: rule_words(text, rules.log),
        help='install the rule meanwhile, e.g. "hook=input protocol=tcp state=new"; one group only',
    )
    parser.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in another network namespace: a name, path or process id"
    )
    parser.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after so many")
    parser.add_argument("--metrics", type=whole_number(1, 65535), metavar="PORT", help="serve Prometheus metrics")
    parser.add_argument(
        "--metrics-address", default="127.0.0.1", metavar="ADDRESS", help="on this address [%(default)s]"
    )
    parser.set_defaults(run=_run)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not name=value")
    return name, value


def _size(text: str) -> int:
    try:
        return size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _described(option: str, words: list[str], describe: Callable[[str, dict[str, str]], T]) -> T:
    to, *settings = words
    shown = f"{option} {without_password(to)}"
    wrong = [word for word in settings if "=" not in word]
    if wrong:
        raise ArgumentError(f"{shown}: {wrong[0]!r} is not name=value")
    try:
        return describe(to, dict(word.split("=", 1) for word in settings))
    except ArgumentError as error:
        raise ArgumentError(f"{shown}: {error}") from None


def _settings(options: argparse.Namespace) -> Settings:
    """What the file says, and what options say on top of it."""
    found = Settings()
    if options.config is not None:
        found = read_settings(options.config, lambda text: rule_words(text, rules.log))
    found.groups += [group for group in options.group if group not in found.groups]
    found.outputs += [_described("--to", words, describe) for words in options.to]
    if options.source is not None:
        found.source = _described("--from", options.source, source)
    found.labels = {**found.labels, **dict(options.label)}
    found.spool = options.spool or found.spool
    found.spool_size = options.spool_size or found.spool_size
    if found.source is not None and (found.groups or options.install_rule):
        raise ArgumentError("messages come from a source or from log groups, not from both")
    if found.source is None and not found.groups:
        raise ArgumentError("no log group: --group N, or [[group]] in the configuration")
    if not found.outputs:
        raise ArgumentError("no output: --to OUTPUT, or [[output]] in the configuration")
    if options.install_rule is not None:
        if len(found.groups) > 1:
            raise ArgumentError("--install-rule is for one group; the configuration has rules for several")
        found.rules.append((found.groups[0], options.install_rule))
    return found


def _run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if options.check:
        groups = ", ".join(map(str, settings.groups))
        begin = f"groups {groups}" if settings.source is None else settings.source.name
        print(f"{begin} to {', '.join(each.name for each in settings.outputs)}")
        return 0
    if settings.source is not None:
        return _forward(options, settings, settings.source)
    if settings.spool is not None:
        os.makedirs(settings.spool, mode=0o700, exist_ok=True)
    more: dict[str, Any] = {"spool_size": settings.spool_size, "rcvbuf": settings.rcvbuf}
    with contextlib.ExitStack() as stack:
        collector = Collector(
            settings.groups,
            labels=settings.labels,
            spool=settings.spool,
            netns=options.netns,
            count=options.count,
            report=_report,
            **{name: value for name, value in more.items() if value is not None},
        )
        stack.callback(collector.close)
        for output in _outputs(options, settings):
            collector.add(output, apart=True)
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, *collector.logs, address=options.metrics_address))
        for group, words in settings.rules:
            stack.enter_context(rules.log(group, netns=options.netns, **words))
        stack.enter_context(until_told(collector.stop, collector.reopen))
        complete = collector.run()
        say(collector.summary())
    return 0 if complete else 1


def _forward(options: argparse.Namespace, settings: Settings, source: NatsSource) -> int:
    if options.create:
        source.create()
    forwarder = Forwarder(source, _outputs(options, settings), count=options.count, report=_report)
    with until_told(forwarder.stop, forwarder.reopen):
        complete = forwarder.run()
    say(forwarder.summary())
    return 0 if complete else 1


def _outputs(options: argparse.Namespace, settings: Settings) -> Iterator[Output]:
    for each in settings.outputs:
        output = each.make()
        if options.create:
            output.create()
        yield output


def _report(text: str) -> None:
    say(f"nfnet collect: {text}")
