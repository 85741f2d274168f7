"""``nfnet queue``: watch the packets of a queue, and decide them."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import ipaddress
from typing import Any, Literal

from .. import rules
from ..captures import Replay
from ..errors import ArgumentError
from ..packet import Packet
from ..queue import Queue, QueueBinding
from . import handlers, packet_text
from .command_line import add_capture_options, add_options, capture_file, capture_options, whole_number
from .deciding import Decider
from .emulation import Conditions, Line, Rate
from .signals import until_told
from .summaries import losses, say

_DESCRIPTION = """\
Shows the packets of a queue, a line each, and lets them go; or decides
otherwise. Packets that the filter does not choose are let go unseen.

    nfnet queue 1
    nfnet queue 1 --drop --protocol udp --port 53
    nfnet queue 1 --delay 100 --jitter 20 --loss 5 \\
        --install-rule "hook=forward source=192.0.2.0/24"
    nfnet queue 1 --handler my_module:decide --fail-open
    nfnet queue 1 --handler my_module:decide --read web.pcap

At the end it says how many packets it accepted, dropped, rejected, delayed,
duplicated, corrupted and reordered, and how many the kernel itself dropped.

exit status: 0 when it was told to stop, or after --count packets, or at the end
of a capture; 1 if the kernel refuses, the handler raised, or the capture is
damaged or has no packets; 2 for wrong arguments
"""

_VERDICT = """\
Refuse mail, and have the kernel refuse the rest of each connection:

    nfnet queue 1 --reject --connection \\
        --install-rule "hook=output protocol=tcp destination_port=25"
"""

_HANDLER = """\
A handler is a function that is called with each packet that the filter
chooses, a nfnet.Packet, and gives it a verdict, at once or later. Packets
that have none when the command ends stay with the kernel, which drops them,
also those that the handler has not seen; --undecided changes that. Without
a handler, packets that wait at the end are decided like all others.

The handler's module is looked for in Python's path. If it is not there, the
current directory is added to the end of the path, but not if PYTHONSAFEPATH
is set.

    nfnet queue 1 --handler my_module:decide --undecided accept
"""

_FILTER = """\
Drop what comes from a network:

    nfnet queue 1 --drop --source 192.0.2.0/24
"""

_LINE = """\
What happens to packets on their way, before they are decided. They leave in
the order in which they came, unless --reorder says otherwise. A line of
2 Mbit/s and 75 ms on which one packet in a hundred is lost:

    nfnet queue 1 --rate 2mbit --delay 75 --loss 1 --max-len 100 -q \\
        --install-rule "hook=forward in_interface=eth0"
"""

_QUEUE = """\
Have room for more packets, and let those pass that find none:

    nfnet queue 1 --max-len 4096 --fail-open
"""

_CAPTURE = """\
Read packets from a capture, without the kernel and without privileges: what
nfnet record recorded of queue NUM, or the IP packets of any other capture.
FILE is pcap or pcapng, compressed or not; it may be a pipe, or - for standard
input. What would be sent, resets for instance, is not.

    nfnet queue 1 --read web.pcap --local 192.0.2.1 --port 443 --drop
"""

_MOST_WAITING = 65_536  # Linux 6.18 keeps no more in a queue, whatever it is asked for
_MOST_IN_FRONT = 1000  # packets, of a line with a rate: as long as the queue of a network interface (txqueuelen)


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "queue",
        help="watch and decide packets (NFQUEUE)",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("number", type=whole_number(0, 65535), metavar="NUM", help="number of the queue")
    group = parser.add_argument_group("verdict", _VERDICT)
    verdict = group.add_mutually_exclusive_group()
    for name, text in (
        ("accept", "let them go (if not said)"),
        ("drop", "drop them"),
        ("reject", "drop them, and tell the sender: a TCP reset, or an ICMP error"),
    ):
        verdict.add_argument(f"--{name}", dest="verdict", action="store_const", const=name, help=text)
    verdict.add_argument("--requeue", type=whole_number(0, 65535), metavar="N", help="hand them to queue N")
    group.add_argument("--mark", type=whole_number(0, 0xFFFFFFFF), metavar="M", help="set their mark")
    group.add_argument(
        "--connection",
        action="store_true",
        help="the verdict is for the rest of the packet's connection, too: no more of it comes here. The rule must have"
        " remember=yes, as the one of --install-rule then has",
    )
    group = parser.add_argument_group("handler", _HANDLER)
    verdict.add_argument(
        "--handler", type=handlers.handler_name, metavar="MODULE:FUNCTION", help="let a function decide"
    )
    group.add_argument(
        "--undecided",
        choices=("pending", "accept", "drop"),
        help="what becomes of packets that the handler leaves undecided, and of those that wait for it at the end:"
        " pending ones can be decided later, and are dropped at the end [pending]",
    )
    chosen = parser.add_argument_group("filter", _FILTER)
    chosen.add_argument("--protocol", type=_protocol, metavar="P", help="tcp, udp, icmp, icmpv6, or a number")
    chosen.add_argument("--source", type=_network, metavar="NET", help="an address or a network")
    chosen.add_argument("--destination", type=_network, metavar="NET", help="likewise")
    chosen.add_argument("--port", type=whole_number(0, 65535), metavar="N", help="of either end")
    line = parser.add_argument_group("a bad line", _LINE)
    line.add_argument(
        "--rate",
        type=_rate,
        help="let so much pass in a second: 1mbit (bits), 500kB (bytes) or 200pps (packets). Bytes are counted from"
        " the IP header on. The others wait for their turn",
    )
    line.add_argument("--delay", type=_milliseconds, default=0.0, metavar="MS", help="let them wait")
    line.add_argument("--jitter", type=_milliseconds, default=0.0, metavar="MS", help="more or less, by up to this")
    for name, text in (
        ("loss", "drop so many, by chance"),
        ("duplicate", "send so many twice; the copy has the mark 0x10000000"),
        ("corrupt", "flip a bit of so many, behind the IP header; checksums stay as they are"),
        ("reorder", "let so many wait until one behind them has left, for at most 100 ms; below 100"),
    ):
        line.add_argument(f"--{name}", type=_percent, default=0.0, metavar="PERCENT", help=text)
    line.add_argument("--seed", type=whole_number(0), metavar="N", help="chance that is the same each time")
    size = parser.add_argument_group("queue", _QUEUE)
    size.add_argument(
        "--max-len",
        type=whole_number(1, 0xFFFFFFFF),
        metavar="N",
        help=f"how many packets may wait; others are dropped: with --rate those that wait for their turn"
        f" [{_MOST_IN_FRONT}], with --delay or --jitter those under way [{_MOST_WAITING}], else those without a verdict"
        " [1024]",
    )
    size.add_argument("--fail-open", action="store_true", help="let packets go that find the kernel's queue full")
    size.add_argument("--gso", action="store_true", help="take super-packets as they are")
    capture = parser.add_argument_group("capture", _CAPTURE)
    capture.add_argument("--read", metavar="FILE", help="read packets from this capture")
    add_capture_options(capture)
    add_options(parser, rules.queue)
    parser.add_argument(
        "-w", dest="write", metavar="FILE", help="also write a capture, anew: pcapng, or pcap if it ends so"
    )
    parser.set_defaults(run=_run, verdict="accept")


def _run(options: argparse.Namespace) -> int:
    handler = None if options.handler is None else handlers.load(options)
    _check(options)
    conditions = _conditions(options)
    line: Line[Packet] | None = None if conditions == Conditions(seed=conditions.seed) else Line(conditions)
    undecided: Literal["pending", "accept", "drop"] = options.undecided or "pending"
    if _accepts(options) and options.mark is None and not options.loss and not options.corrupt:
        undecided = "accept"  # also what arrives while the queue closes
    netns = options.netns
    replay = None
    if options.read is not None:
        replay = Replay(capture_file(options.read), keep_verdicts=False, **capture_options(options))
    queue = _Queue(
        options.number,
        # The line has a limit of its own for those that it keeps.
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
        stack.enter_context(queue)  # last: what was in a file to write to is gone with this
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
    """Raises ArgumentError for options that contradict each other."""
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
    """Raises ArgumentError for options that have no meaning with a capture, or none without one."""
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
        raise ArgumentError("--reorder must be below 100: what is late is late behind something that is not")
    if not conditions.keeps:
        return conditions
    limit = options.max_len or (None if conditions.rate is None else _MOST_IN_FRONT)
    return dataclasses.replace(conditions, limit=limit)


class _Queue(Queue):
    """A queue whose packets may wait without a verdict: its policy is for what is there when it closes."""

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
        raise argparse.ArgumentTypeError(str(error)) from None


def _rate(text: str) -> Rate:
    try:
        return Rate.read(text)
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
