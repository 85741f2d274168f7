"""``nfnet queue``: watch the packets of a queue, and decide them."""

from __future__ import annotations

import argparse
import contextlib
import heapq
import importlib
import ipaddress
import itertools
import os
import random
import sys
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from .. import rules
from .._arguments import check_handler
from .._printable import counted
from ..errors import ArgumentError, NfnetError
from ..packet import Packet
from ..queue import Queue, QueueBinding, apply_policy
from . import packet_text
from .command_line import add_options, whole_number
from .signals import until_told, wait_readable
from .summaries import losses, say

_DESCRIPTION = """\
Shows the packets of a queue, a line each, and lets them go; or decides
otherwise. Packets that the filter does not choose are let go unseen.

    nfnet queue 1
    nfnet queue 1 --drop --protocol udp --port 53
    nfnet queue 1 --delay 100 --jitter 20 --loss 5 \\
        --install-rule "hook=forward source=192.0.2.0/24"
    nfnet queue 1 --handler my_module:decide --fail-open

A handler is a function that is called with each packet that the filter
chooses, a nfnet.Packet, and gives it a verdict, at once or later. Packets that
have none when the command ends stay with the kernel, which drops them, also
those that the handler has not seen; --undecided changes that. Without a
handler, packets that wait at the end are decided like all others.

The handler's module is looked for in Python's path. If it is not there, the
current directory is added to the end of the path, but not if PYTHONSAFEPATH is
set.

exit status: 0 when it was told to stop, or after --count packets; 1 if the
kernel refuses, or the handler raised; 2 for wrong arguments
"""


_LAST_ROUNDS = 20  # of up to 512 packets
_MOST_DELAYED = 65_536  # Linux 6.18 keeps no more in a queue, whatever it is asked for


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "queue",
        help="watch and decide packets (NFQUEUE)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", type=whole_number(0, 65535), metavar="NUM", help="number of the queue")
    verdict = parser.add_argument_group("verdict").add_mutually_exclusive_group()
    verdict.add_argument(
        "--accept", dest="verdict", action="store_const", const="accept", help="let them go (if not said)"
    )
    verdict.add_argument("--drop", dest="verdict", action="store_const", const="drop", help="drop them")
    verdict.add_argument("--requeue", type=whole_number(0, 65535), metavar="N", help="hand them to queue N")
    verdict.add_argument("--handler", type=_handler_name, metavar="MODULE:FUNCTION", help="let a function decide")
    parser.add_argument(
        "--undecided",
        choices=("pending", "accept", "drop"),
        help="what becomes of packets that the handler leaves undecided, and of those that wait for it at the end:"
        " pending ones can be decided later, and are dropped at the end [pending]",
    )
    parser.add_argument("--mark", type=whole_number(0, 0xFFFFFFFF), metavar="M", help="set their mark")
    chosen = parser.add_argument_group("filter")
    chosen.add_argument("--protocol", type=_protocol, metavar="P", help="tcp, udp, icmp, icmpv6, or a number")
    chosen.add_argument("--source", type=_network, metavar="NET", help="an address or a network")
    chosen.add_argument("--destination", type=_network, metavar="NET", help="likewise")
    chosen.add_argument("--port", type=whole_number(0, 65535), metavar="N", help="of either end")
    network = parser.add_argument_group("a bad network")
    network.add_argument("--delay", type=_milliseconds, default=0.0, metavar="MS", help="let them wait")
    network.add_argument("--jitter", type=_milliseconds, default=0.0, metavar="MS", help="more or less, by up to this")
    network.add_argument("--loss", type=_percent, default=0.0, metavar="PERCENT", help="drop so many, by chance")
    parser.add_argument(
        "--max-len",
        type=whole_number(1, 0xFFFFFFFF),
        metavar="N",
        help=f"how many packets may wait for a verdict; the kernel drops others"
        f" [1024; with --delay or --jitter {_MOST_DELAYED}]",
    )
    parser.add_argument("--fail-open", action="store_true", help="let packets go that find the queue full")
    parser.add_argument("--gso", action="store_true", help="take super-packets as they are")
    add_options(parser, rules.queue)
    parser.add_argument(
        "-w", dest="write", metavar="FILE", help="also write a capture, anew: pcapng, or pcap if it ends so"
    )
    parser.set_defaults(run=_run, verdict="accept")


def _run(options: argparse.Namespace) -> int:
    handler = None if options.handler is None else _load(options)
    if handler is None and options.undecided is not None:
        raise ArgumentError("--undecided is about what a --handler leaves undecided, and there is none")
    if options.mark is not None and (handler is not None or options.verdict == "drop"):
        raise ArgumentError("--mark is for packets that are accepted or requeued by this command, not by a handler")
    delayed = options.delay or options.jitter
    undecided: Literal["pending", "accept", "drop"] = options.undecided or "pending"
    accepts = handler is None and options.verdict == "accept" and options.requeue is None
    if accepts and options.mark is None and not options.loss:
        undecided = "accept"  # also what arrives while the queue closes
    netns = options.netns
    queue = _Queue(
        options.number,
        max_len=_MOST_DELAYED if options.max_len is None and delayed else options.max_len,
        fail_open=options.fail_open,
        gso=options.gso,
        undecided=undecided,
        netns=netns,
        record=options.write,
    )
    with contextlib.ExitStack() as stack:
        if options.metrics is not None:
            from ..metrics import serve

            stack.callback(serve(options.metrics, queue, address=options.metrics_address))
        if options.install_rule is not None:
            stack.enter_context(rules.queue(options.number, netns=netns, **options.install_rule))
        decider = _Decider(options, handler)
        stack.enter_context(until_told(decider.stop))
        stack.enter_context(queue)  # last: what was in a file to write to is gone with this
        try:
            decider.run(queue)
        finally:
            decider.finish(queue)
            say(_summary(queue))
    return 0


class _Queue(Queue):
    """A queue whose packets may wait without a verdict: its policy is for what is there when it closes."""

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        binding.defer(packet)


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
                wait_readable(queue, left)
            while self._waiting and self._waiting[0][0] <= time.monotonic():
                self._decide(heapq.heappop(self._waiting)[2])

    def finish(self, queue: Queue) -> None:
        """Whatever ended it: what still waits is decided by the options, without showing it, or not at all."""
        self._stopped = True
        self._options.quiet = True
        for _, _, packet in sorted(self._waiting):
            self._decide_last(packet, was_lucky=True)
        self._waiting.clear()
        for _ in range(_LAST_ROUNDS):  # what was read, or waits to be; but not for ever
            if not queue.process(self._decide_last):
                break
        for packet in queue.pending:
            self._decide_last(packet)
        queue.flush()

    def _decide_last(self, packet: Packet, *, was_lucky: bool = False) -> None:
        """As `_take` would have, but now; the handler is not asked any more."""
        if not self._is_chosen(packet):
            packet.accept()
        elif self._handler is not None:
            self._leave_undecided(packet)
        elif not was_lucky and self._is_lost():
            packet.drop()
        else:
            self._decide(packet)

    def _leave_undecided(self, packet: Packet) -> None:
        if self._options.undecided not in (None, "pending"):
            apply_policy(self._options.undecided, packet)

    def _is_lost(self) -> bool:
        return bool(self._options.loss) and random.random() < self._options.loss

    def _take(self, packet: Packet) -> None:
        options = self._options
        if self._stopped:
            return  # `finish` sees to it
        if not self._is_chosen(packet):
            packet.accept()
            return
        self._seen += 1
        if options.count is not None and self._seen >= options.count:
            self._stopped = True
        if self._is_lost():
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
            if packet.decided is None:
                self._leave_undecided(packet)
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
            print(packet_text.ecs(packet, queue=self._options.number, verdict=verdict), flush=True)
        else:
            print(packet_text.line(packet, verdict), flush=True)


def _summary(queue: Queue) -> str:
    c = queue.counters
    text = f"{counted(c.received, 'packet')}: {c.accepted} accepted, {c.dropped} dropped"
    for name, count in (("repeated", c.repeated), ("requeued", c.requeued)):
        text += f", {count} {name}" if count else ""
    if c.pending:
        text += f", {c.pending} left undecided, which the kernel drops"
    return text + losses(queue)


def _handler_name(text: str) -> tuple[str, str]:
    module, colon, function = text.partition(":")
    if not colon or not module or not function:
        raise argparse.ArgumentTypeError(f"{text!r} is not MODULE:FUNCTION")
    return module, function


def _import_ours(options: argparse.Namespace) -> None:
    """What would be imported when it is needed: before a directory of others comes into the path."""
    if options.netns is not None:
        import ctypes  # noqa: F401
    if options.metrics is not None:
        import wsgiref.simple_server  # noqa: F401

        with contextlib.suppress(ImportError):  # `metrics.serve` says what is missing
            import prometheus_client  # noqa: F401


def _import(module: str) -> ModuleType:
    """The module of that name; from the current directory only if there is none elsewhere, as one's own may be."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if f"{module}.".startswith(f"{error.name}.") and not _safe_path():
            sys.path.append(os.getcwd())
            importlib.invalidate_caches()
            return importlib.import_module(module)
        raise


def _safe_path() -> bool:
    """Whether the user told Python to find nothing in the current directory."""
    if sys.version_info >= (3, 11):
        return sys.flags.safe_path
    return bool(sys.flags.isolated or os.environ.get("PYTHONSAFEPATH"))


def _load(options: argparse.Namespace) -> Callable[[Packet], object]:
    """Raises NfnetError that says what is wrong with it."""
    module, function = options.handler
    _import_ours(options)
    try:
        found = _import(module)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ArgumentError(f"--handler: the module {module!r} cannot be imported: {what}") from error
    handler = getattr(found, function, None)
    if not callable(handler):
        where = getattr(found, "__file__", None) or "built in"
        raise ArgumentError(f"--handler: there is no function {function!r} in {module!r} ({where})")

    try:
        check_handler(handler, "it must be a plain function")
    except ArgumentError as error:
        raise ArgumentError(f"--handler: {module}:{function}: {error}") from None

    def call(packet: Packet) -> object:
        try:
            return handler(packet)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise NfnetError(f"the handler {module}:{function} failed on packet {packet.id}: {what}") from error

    return call


def _protocol(text: str) -> int:
    try:
        number = packet_text.protocol_number(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return whole_number(0, 255)(str(number))


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
