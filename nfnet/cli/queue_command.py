"""``nfnet queue``: show and decide the packets of a queue."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
from typing import Any, Literal

from .. import rules
from .._arguments import network_error
from .._queue_binding import QueueBinding
from ..captures import Replay
from ..errors import ArgumentError
from ..packet import Packet
from ..queue import Queue
from . import handlers, packet_text
from .command_line import add_capture_options, add_options, capture_file, capture_options, whole_number
from .deciding import Decider
from .emulation import Conditions, Line, Rate
from .signals import until_told
from .summaries import losses, say

_DESCRIPTION = """\
Prints a line for each packet of a queue and accepts it, or gives it another
verdict. Packets that do not match the filter are accepted and not shown.

    nfnet queue 1
    nfnet queue 1 --drop --protocol udp --port 53
    nfnet queue 1 --delay 100 --jitter 20 --loss 5 \\
        --install-rule "hook=forward source=192.0.2.0/24"
    nfnet queue 1 --handler my_module:decide --fail-open
    nfnet queue 1 --handler my_module:decide --read web.pcap

At the end it prints how many packets it accepted, dropped, rejected, delayed,
duplicated, corrupted and reordered, and how many the kernel itself dropped.

exit status: 0 after Ctrl-C or SIGTERM, after --count packets, or at the end of
a capture; 1 if the kernel refuses, the handler raises an exception, or the
capture is damaged or has no packets; 2 for wrong arguments
"""

_VERDICT = """\
Reject mail, and let the kernel reject the rest of each connection:

    nfnet queue 1 --reject --connection \\
        --install-rule "hook=output protocol=tcp destination_port=25"
"""

_HANDLER = """\
A handler is a function. It is called with each packet that matches the
filter, a nfnet.Packet, and gives it a verdict, at once or later. When the
command ends, the kernel drops the packets without a verdict, also those that
the handler has not seen; --undecided changes that. Without a handler, packets
that wait at the end get the same verdict as all others.

The handler's module is searched in Python's path. If it is not found, the
current directory is added to the end of the path, unless PYTHONSAFEPATH is
set.

    nfnet queue 1 --handler my_module:decide --undecided accept
"""

_FILTER = """\
Drop the packets from a network:

    nfnet queue 1 --drop --source 192.0.2.0/24
"""

_LINE = """\
Lose, delay or damage packets before they get their verdict. Without --reorder
packets leave in the order in which they arrived. A line of 2 Mbit/s with a
delay of 75 ms that loses one packet in a hundred:

    nfnet queue 1 --rate 2mbit --delay 75 --loss 1 --max-len 100 -q \\
        --install-rule "hook=forward in_interface=eth0"
"""

_QUEUE = """\
Let more packets wait, and accept packets that find the queue full:

    nfnet queue 1 --max-len 4096 --fail-open
"""

_CAPTURE = """\
Read packets from a capture, without the kernel and without privileges: those
of queue NUM if nfnet record wrote it, else its IP packets. FILE is pcap or
pcapng, compressed or not; it can be a pipe, or - for standard input. Nothing
is sent: no resets, for instance.

    nfnet queue 1 --read web.pcap --local 192.0.2.1 --port 443 --drop
"""

_MOST_WAITING = 65_536  # the upper limit of a queue's length in Linux 6.18
_MOST_IN_FRONT = (
    1000  # packets in front of a line with a rate: the usual queue length of a network interface (txqueuelen)
)


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "queue",
        usage="nfnet queue [OPTION ...] NUM",
        help="show and decide packets (NFQUEUE)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", type=whole_number(0, 65535), metavar="NUM", help="number of the queue (0 to 65535)")
    group = parser.add_argument_group("verdict", _VERDICT)
    verdict = group.add_mutually_exclusive_group()
    for name, text in (
        ("accept", "accept packets (default)"),
        ("drop", "drop them"),
        ("reject", "drop them, and send a TCP reset or an ICMP error to the sender"),
    ):
        verdict.add_argument(f"--{name}", dest="verdict", action="store_const", const=name, help=text)
    verdict.add_argument("--requeue", type=whole_number(0, 65535), metavar="N", help="move them to queue N")
    group.add_argument("--mark", type=whole_number(0, 0xFFFFFFFF), metavar="M", help="set their mark")
    group.add_argument(
        "--connection",
        action="store_true",
        help="the kernel applies the verdict to the rest of the packet's connection, too, which is queued no more. The"
        " rule must have remember=yes; the one of --install-rule then has it",
    )
    group = parser.add_argument_group("handler", _HANDLER)
    verdict.add_argument(
        "--handler",
        type=handlers.handler_name,
        metavar="MODULE:FUNCTION",
        help="let a Python function decide, see below",
    )
    group.add_argument(
        "--undecided",
        choices=("pending", "accept", "drop"),
        help="the verdict of packets that the handler leaves undecided, and of those that wait for it at the end;"
        " pending (default): the handler can decide them later, and the kernel drops the rest at the end",
    )
    chosen = parser.add_argument_group("filter", _FILTER)
    chosen.add_argument("--protocol", type=_protocol, metavar="P", help="tcp, udp, icmp, icmpv6, or a number")
    chosen.add_argument("--source", type=_network, metavar="NET", help="source: an address or a network")
    chosen.add_argument("--destination", type=_network, metavar="NET", help="destination: an address or a network")
    chosen.add_argument("--port", type=whole_number(0, 65535), metavar="N", help="source or destination port")
    line = parser.add_argument_group("a bad line", _LINE)
    line.add_argument(
        "--rate",
        type=_rate,
        help="let so much pass each second: 1mbit (bits), 500kB (bytes) or 200pps (packets); other packets wait. The"
        " size of a packet includes its IP header",
    )
    line.add_argument("--delay", type=_milliseconds, default=0.0, metavar="MS", help="delay each packet")
    line.add_argument(
        "--jitter",
        type=_milliseconds,
        default=0.0,
        metavar="MS",
        help="vary the delay by up to so much, in both directions",
    )
    for name, text in (
        ("loss", "drop so many, chosen at random"),
        ("duplicate", "send so many twice; the copy has the mark 0x10000000"),
        ("corrupt", "flip a bit behind the IP header of so many, without correcting checksums"),
        ("reorder", "let so many (below 100) wait until a packet behind them has left, at most 100 ms"),
    ):
        line.add_argument(f"--{name}", type=_percent, default=0.0, metavar="PERCENT", help=text)
    line.add_argument("--seed", type=whole_number(0), metavar="N", help="make the same random choices each time")
    size = parser.add_argument_group("queue", _QUEUE)
    size.add_argument(
        "--max-len",
        type=whole_number(1, 0xFFFFFFFF),
        metavar="N",
        help="let at most N packets wait, and drop others (default: 1024). With --rate, the limit is for those that"
        f" wait for their turn (default: {_MOST_IN_FRONT}); with --delay or --jitter, for those that are delayed"
        f" (default: {_MOST_WAITING})",
    )
    size.add_argument("--fail-open", action="store_true", help="accept packets that find the kernel's queue full")
    size.add_argument(
        "--gso", action="store_true", help="queue GSO super-packets whole (default: the kernel segments them)"
    )
    capture = parser.add_argument_group("capture", _CAPTURE)
    capture.add_argument("--read", metavar="FILE", help="read packets from this capture")
    add_capture_options(capture)
    add_options(parser, rules.queue).add_argument(
        "-w",
        dest="write",
        metavar="FILE",
        help="also write a capture (replaced if it exists): pcapng, or pcap if its name ends in .pcap",
    )
    parser.set_defaults(run=_run, verdict="accept")


def _run(options: argparse.Namespace) -> int:
    handler = None if options.handler is None else handlers.load(options)
    _check(options)
    conditions = _conditions(options)
    line: Line[Packet] | None = None if conditions == Conditions(seed=conditions.seed) else Line(conditions)
    undecided: Literal["pending", "accept", "drop"] = options.undecided or "pending"
    if _accepts(options) and options.mark is None and not options.loss and not options.corrupt:
        undecided = "accept"  # also packets that arrive while the queue closes
    netns = options.netns
    replay = None
    if options.read is not None:
        replay = Replay(capture_file(options.read), keep_verdicts=False, **capture_options(options))
    queue = _Queue(
        options.number,
        # The line itself limits the packets that wait in it.
        max_len=_MOST_WAITING if conditions.keeps or (line and options.max_len is None) else options.max_len,
        fail_open=options.fail_open,
        gso=options.gso,
        timestamps=conditions.keeps,
        undecided=undecided,
        netns=netns,
        record=options.write,
        transport=replay,
    )
    with contextlib.ExitStack() as stack:
        if options.metrics is not None:
            from ..metrics import serve

            address, port = options.metrics
            stack.callback(serve(port, queue, address=address))
        if options.install_rule is not None:
            words = {"remember": True, **options.install_rule} if options.connection else options.install_rule
            stack.enter_context(rules.queue(options.number, netns=netns, **words))
        decider = Decider(queue, options, handler, line, replay)
        stack.enter_context(until_told(decider.stop))
        stack.enter_context(queue)  # last: it empties the file of -w
        try:
            decider.run()
        finally:
            decider.finish()
            say(decider.summary() + losses(queue))
            for text in decider.failures():
                say(text)
        if replay is not None:
            if left_out := replay.left_out():
                say(f"nfnet queue: skipped: {left_out}")
            return int(decider.damaged > 0 or not queue.counters.received)
    return 0


def _accepts(options: argparse.Namespace) -> bool:
    return options.handler is None and options.requeue is None and options.verdict == "accept"


def _check(options: argparse.Namespace) -> None:
    """Raise ArgumentError for options that contradict each other."""
    _check_capture(options)
    decides = options.handler is None
    if decides and options.undecided is not None:
        raise ArgumentError("--undecided is about what a --handler leaves undecided, and there is none")
    if options.mark is not None and (not decides or options.verdict in ("drop", "reject")):
        raise ArgumentError("--mark is for packets that are accepted or requeued by this command, not by a handler")
    words = options.install_rule or {}
    for name in ("corrupt", "duplicate"):
        if not getattr(options, name):
            continue
        if not _accepts(options):
            raise ArgumentError(f"--{name} is for packets that are accepted by this command, not by a handler")
        if options.gso:
            raise ArgumentError(f"--{name} is for packets, not for super-packets: leave --gso out")
        if name == "duplicate" and words.get("family") == "bridge":
            raise ArgumentError("--duplicate is for packets that are routed: those of the family bridge cannot be sent")
    if options.connection:
        if not decides or options.requeue is not None:
            raise ArgumentError("--connection is for what is accepted, dropped or rejected by this command")
        if _conditions(options) != Conditions(seed=options.seed):
            raise ArgumentError("--connection leaves the rest of connections to the kernel, which makes no bad line")
        if words.get("remember") is False:
            raise ArgumentError("--connection needs remember=yes in the words of --install-rule")


def _check_capture(options: argparse.Namespace) -> None:
    """Raise ArgumentError for options that do not apply with a capture, or only apply with one."""
    if options.read is None:
        if capture_options(options):
            raise ArgumentError("--hook, --local and --family are for packets of a capture: --read FILE")
        return
    for name in ("install_rule", "netns"):
        if getattr(options, name) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')} is for packets of the kernel, not for those of --read")
    if _conditions(options).keeps:
        raise ArgumentError("--rate, --delay and --jitter are for packets of the kernel, not for those of --read")


def _conditions(options: argparse.Namespace) -> Conditions:
    conditions = Conditions(
        loss=options.loss,
        corrupt=options.corrupt,
        duplicate=options.duplicate,
        reorder=options.reorder,
        rate=options.rate,
        delay=options.delay,
        jitter=options.jitter,
        seed=options.seed,
    )
    if conditions.reorder >= 1:
        raise ArgumentError("--reorder must be below 100: a packet is only late behind one that is not")
    if not conditions.keeps:
        return conditions
    limit = options.max_len or (None if conditions.rate is None else _MOST_IN_FRONT)
    return dataclasses.replace(conditions, limit=limit)


class _Queue(Queue):
    """A queue whose packets can wait without a verdict; its policy applies to those that wait when it closes."""

    def _leave_undecided(self, binding: QueueBinding, packet: Packet) -> None:
        binding.defer(packet)


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
        raise argparse.ArgumentTypeError(network_error(text, error)) from None


def _rate(text: str) -> Rate:
    try:
        return Rate.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _milliseconds(text: str) -> float:
    return _at_least_0(text, "ms") / 1000


def _percent(text: str) -> float:
    value = _at_least_0(text, "%") / 100
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text} must be in 0..100")
    return value


def _at_least_0(text: str, unit: str) -> float:
    """Parse a number, with or without its unit."""
    try:
        value = float(text.removesuffix(unit))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number, such as 5 or 0.5{unit}") from None
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return value
