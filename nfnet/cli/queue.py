"""``nfnet queue``: watch the packets of a queue, and decide them."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import importlib
import inspect
import ipaddress
import itertools
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from .. import rules
from ..errors import ArgumentError, NfnetError
from ..packet import Packet
from ..queue import Queue
from . import common, lines

_DESCRIPTION = """\
Shows the packets of a queue, a line each, and lets them go; or decides
otherwise. Packets that the filter does not choose are let go unseen.

    nfnet queue 1
    nfnet queue 1 --drop --protocol udp --port 53
    nfnet queue 1 --delay 100 --jitter 20 --loss 5 \\
        --install-rule "hook=forward source=192.0.2.0/24"
    nfnet queue 1 --handler my_module:decide --fail-open

A handler is a function that is called with each packet that the filter
chooses, a nfnet.Packet, and gives it its verdict.

exit status: 0 when it was told to stop, or after --count packets; 1 if the
kernel refuses, or the handler raised; 2 for wrong arguments
"""


_LAST_ROUNDS = 20  # of up to 512 packets


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "queue",
        help="watch and decide packets (NFQUEUE)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", type=common.number(0, 65535), metavar="NUM", help="number of the queue")
    verdict = parser.add_argument_group("verdict").add_mutually_exclusive_group()
    verdict.add_argument(
        "--accept", dest="verdict", action="store_const", const="accept", help="let them go (if not said)"
    )
    verdict.add_argument("--drop", dest="verdict", action="store_const", const="drop", help="drop them")
    verdict.add_argument("--requeue", type=common.number(0, 65535), metavar="N", help="hand them to queue N")
    verdict.add_argument("--handler", type=_handler_name, metavar="MODULE:FUNCTION", help="let a function decide")
    parser.add_argument("--mark", type=common.number(0, 0xFFFFFFFF), metavar="M", help="set their mark")
    chosen = parser.add_argument_group("filter")
    chosen.add_argument("--protocol", type=_protocol, metavar="P", help="tcp, udp, icmp, icmpv6, or a number")
    chosen.add_argument("--source", type=_network, metavar="NET", help="an address or a network")
    chosen.add_argument("--destination", type=_network, metavar="NET", help="likewise")
    chosen.add_argument("--port", type=common.number(0, 65535), metavar="N", help="of either end")
    network = parser.add_argument_group("a bad network")
    network.add_argument("--delay", type=_milliseconds, default=0.0, metavar="MS", help="let them wait")
    network.add_argument("--jitter", type=_milliseconds, default=0.0, metavar="MS", help="more or less, by up to this")
    network.add_argument("--loss", type=_percent, default=0.0, metavar="PERCENT", help="drop so many, by chance")
    parser.add_argument("--fail-open", action="store_true", help="let packets go that find the queue full")
    parser.add_argument("--gso", action="store_true", help="take super-packets as they are")
    common.describe(parser, rules.queue)
    parser.set_defaults(run=_run, verdict="accept")


def _run(options: argparse.Namespace) -> int:
    handler = None if options.handler is None else _load(*options.handler)
    netns = options.netns
    queue = Queue(options.number, fail_open=options.fail_open, gso=options.gso, netns=netns, record=options.write)
    with contextlib.ExitStack() as stack:
        if options.install_rule is not None:
            stack.enter_context(rules.queue(options.number, netns=netns, **options.install_rule))
        stack.enter_context(queue)
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, queue, address=options.metrics_address))
        decider = _Decider(options, handler)
        stack.enter_context(common.until_told(decider.stop))
        try:
            decider.run(queue)
        finally:
            decider.finish(queue)
            common.say(_summary(queue))
    return 0


class _Decider:
    """Chooses, shows and decides packets, now or later."""

    def __init__(self, options: argparse.Namespace, handler: Callable[[Packet], object] | None) -> None:
        self._options, self._handler = options, handler
        self._waiting: list[tuple[float, int, Packet]] = []
        self._order = itertools.count()
        self._seen = 0
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def run(self, queue: Queue) -> None:
        while not self._stopped:
            if not queue.process(self._take):
                left = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
                common.wait_readable(queue, left)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._decide(heapq.heappop(self._waiting)[2])

    def finish(self, queue: Queue) -> None:
        """Whatever ended it, what still waits is decided, without showing it; a handler is not asked any more."""
        self._stopped = True
        self._handler = None
        self._options.quiet = True
        while self._waiting:
            self._decide(heapq.heappop(self._waiting)[2])
        for _ in range(_LAST_ROUNDS):  # what was read, or waits to be; but not for ever
            if not queue.process(self._decide_unseen):
                break
        for packet in queue.pending:
            self._decide_unseen(packet)
        queue.flush()

    def _decide_unseen(self, packet: Packet) -> None:
        if self._is_chosen(packet):
            self._decide(packet)
        else:
            packet.accept()

    def _take(self, packet: Packet) -> None:
        options = self._options
        if self._stopped or not self._is_chosen(packet):
            packet.accept()
            return
        self._seen += 1
        if options.count is not None and self._seen >= options.count:
            self._stopped = True
        if options.loss and random.random() < options.loss:
            packet.drop()
            self._show(packet, "lost")
            return
        if options.delay or options.jitter:
            delay = max(0.0, options.delay + random.uniform(-options.jitter, options.jitter))
            heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._order), packet))
            return
        self._decide(packet)

    def _is_chosen(self, packet: Packet) -> bool:
        options = self._options
        if options.protocol is None and options.source is None and options.destination is None and options.port is None:
            return True
        flow = packet.flow
        return (
            flow is not None
            and options.protocol in (None, flow.protocol)
            and (options.source is None or ipaddress.ip_address(flow.source) in options.source)
            and (options.destination is None or ipaddress.ip_address(flow.destination) in options.destination)
            and (options.port is None or options.port in (flow.source_port, flow.destination_port))
        )

    def _decide(self, packet: Packet) -> None:
        options = self._options
        if self._handler is not None:
            self._handler(packet)
        elif options.requeue is not None:
            packet.requeue(options.requeue, mark=options.mark)
        elif options.verdict == "drop":
            packet.drop()
        else:
            packet.accept(mark=options.mark)
        verdict = packet.decided
        self._show(packet, "undecided" if verdict is None else verdict.name.lower())

    def _show(self, packet: Packet, verdict: str) -> None:
        if self._options.quiet:
            return
        if self._options.json:
            print(lines.ecs(packet, queue=self._options.number, verdict=verdict), flush=True)
        else:
            print(lines.line(packet, verdict), flush=True)


def _summary(queue: Queue) -> str:
    c = queue.counters
    text = f"{c.received} packet{'' if c.received == 1 else 's'}: {c.accepted} accepted, {c.dropped} dropped"
    for name, count in (("repeated", c.repeated), ("requeued", c.requeued), ("pending", c.pending), ("lost", c.lost)):
        text += f", {count} {name}" if count else ""
    return text


def _handler_name(text: str) -> tuple[str, str]:
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION")
    return module, function


def _load(module: str, function: str) -> Callable[[Packet], object]:
    """Raises NfnetError that says what is wrong with it."""
    if "" not in sys.path:
        sys.path.insert(0, "")  # the current directory, where one writes such things
    try:
        found = importlib.import_module(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"--handler: the module {module!r} cannot be imported: {what}") from error
    handler = getattr(found, function, None)
    if not callable(handler):
        raise ArgumentError(f"--handler: there is no function {function!r} in {module!r} ({found.__file__})")

    if inspect.iscoroutinefunction(handler):
        raise ArgumentError(f"--handler: {module}:{function} is async, and must be a plain function")

    def call(packet: Packet) -> object:
        try:
            return handler(packet)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise NfnetError(f"the handler {module}:{function} failed on packet {packet.id}: {what}") from error

    return call


def _protocol(text: str) -> int:
    try:
        number = lines.protocol_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return common.number(0, 255)(str(number))


def _network(text: str) -> Any:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _milliseconds(text: str) -> float:
    return _at_least_0(text) / 1000


def _percent(text: str) -> float:
    value = _at_least_0(text) / 100
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be in 0..100")
    return value


def _at_least_0(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value
