"""``nfnet record`` and ``nfnet replay``: what the kernel sends, into a file and out of it again."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from .._printable import counted
from ..captures._replay import Replay
from ..errors import CaptureError
from ..log import Log, LogMessage
from ..packet import Packet
from ..queue import Queue
from . import packet_text
from .command_line import add_capture_options, capture_file, capture_options, netns, whole_number
from .signals import until_told
from .summaries import losses, say

_RECORD = """\
Records what passes between the kernel and a queue or log group: packets or
messages, and the verdicts on them, which is to let them go. Wireshark opens
such files, and nfnet.replay feeds them to a program in place of the kernel.

    nfnet record session.pcapng --queue 1
    nfnet record session.pcap --group 5 -c 100

exit status: 0 when it was told to stop, or after --count; 1 if the kernel
refuses, or the file cannot be written; 2 for wrong arguments
"""

_REPLAY = """\
Shows the packets or messages of a capture, a line each: what nfnet record, an
nlmon device or tcpdump -i nflog recorded of a queue or log, or the IP packets
of any other capture, pcap or pcapng, compressed or not. The time is that of the
packet's arrival, where the kernel said it, else that of its record. Records of
other kinds are skipped and counted; what is wrong with a damaged one is said,
with its number and the place in the file, and the next ones follow. FILE may be
a pipe, or - for standard input.

    nfnet replay session.pcapng
    nfnet replay session.pcapng --queue 1 --json --realtime
    nfnet replay web.pcap.gz --local 192.0.2.0/24
    tcpdump -i any -U -w - | nfnet replay -

exit status: 0; 1 if the file is damaged, or has nothing of that; 2 for wrong
arguments
"""


def add_to(commands: Any) -> None:
    """Add the subcommands."""
    record = commands.add_parser(
        "record",
        help="record a queue or a log to a file",
        description=_RECORD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    record.add_argument("file", metavar="FILE", help="pcapng, or pcap if it ends so; what was in it is gone")
    which = record.add_mutually_exclusive_group(required=True)
    which.add_argument("--queue", type=whole_number(0, 65535), metavar="NUM", help="number of a queue")
    which.add_argument("--group", type=whole_number(0, 65535), metavar="GROUP", help="number of a log group")
    record.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after so many")
    record.add_argument("--netns", type=netns, metavar="NAME", help="work in another network namespace")
    record.set_defaults(run=_record)

    replay = commands.add_parser(
        "replay",
        help="show what a capture holds",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("file", metavar="FILE")
    which = replay.add_mutually_exclusive_group()
    which.add_argument(
        "--queue", type=whole_number(0, 65535), metavar="NUM", help="this queue, not the first one in it"
    )
    which.add_argument("--group", type=whole_number(0, 65535), metavar="GROUP", help="this log group")
    replay.add_argument("--json", action="store_true", help="JSON Lines")
    replay.add_argument("--realtime", action="store_true", help="at the pace of the recording")
    add_capture_options(replay.add_argument_group("captures of other things than queues and logs"))
    replay.set_defaults(run=_replay)


def _record(options: argparse.Namespace) -> int:
    netns = options.netns
    seen = 0
    stopped = False
    reader: Queue | Log
    if options.queue is not None:
        reader = Queue(options.queue, undecided="accept", netns=netns, record=options.file)
    else:
        reader = Log(options.group, threshold=1, sequence=True, netns=netns, record=options.file)

    def take(item: Any) -> None:
        nonlocal seen
        seen += 1
        if options.queue is not None:
            item.accept()
        if options.count is not None and seen >= options.count:
            reader.stop()

    def stop() -> None:
        nonlocal stopped
        stopped = True
        reader.stop()

    with until_told(stop), reader:  # in this order: whoever sees that it has begun may tell it to stop
        if not stopped:  # while it was being opened
            reader.run(take)
        lost = losses(reader)
    what = "packet" if options.queue is not None else "message"
    say(f"{counted(seen, what)} in {options.file}{lost}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    queue, group = options.queue, options.group
    replay = Replay(
        capture_file(options.file), realtime=options.realtime, keep_verdicts=False, **capture_options(options)
    )
    shown = damaged = 0
    stopped = False

    def report(error: CaptureError) -> None:
        nonlocal damaged
        damaged += 1
        say(f"nfnet replay: {error}")

    with contextlib.closing(replay):
        searching = queue is None and group is None
        while searching:
            try:
                queue, group = replay.first()
                searching = False
            except CaptureError as error:
                report(error)
        reader: Queue | Log
        reader = Log(group, transport=replay) if group is not None else Queue(queue or 0, transport=replay)

        def stop() -> None:
            nonlocal stopped
            stopped = True
            reader.stop()

        with reader, until_told(stop):
            while not stopped:
                try:
                    for item in reader:
                        print(_text(item, options.json, queue=queue, group=group), flush=True)
                        shown += 1
                        if isinstance(item, Packet):
                            item.accept()
                    break
                except CaptureError as error:
                    report(error)
    if not shown and not damaged:
        what = "a queue or log" if queue is None else f"queue {queue}"
        what = what if group is None else f"log group {group}"
        say(f"nfnet replay: nothing of {what} in {options.file}")
    if left_out := replay.left_out():
        say(f"nfnet replay: skipped: {left_out}")
    return 0 if shown and not damaged else 1


def _text(item: Packet | LogMessage, json: bool, queue: int | None, group: int | None) -> str:
    if not json:
        return packet_text.line(item, recorded=True)
    return packet_text.ecs(item, recorded=True, **({"queue": queue} if group is None else {"group": group}))
