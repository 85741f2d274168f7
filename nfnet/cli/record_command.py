"""``nfnet record`` and ``nfnet replay``: write the kernel's messages to a file, and show those of a file."""

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
Records the packets of a queue with their verdicts, or the messages of a log
group. All packets are accepted. Wireshark opens the files, and nfnet.replay
feeds them to a program in place of the kernel.

    nfnet record session.pcapng --queue 1
    nfnet record session.pcap --group 5 -c 100

exit status: 0 after Ctrl-C or SIGTERM, or after --count; 1 if the kernel
refuses, or the file cannot be written; 2 for wrong arguments
"""

_REPLAY = """\
Prints a line for each packet or message of a capture: of a recording of a queue
or log group (nfnet record, an nlmon device, tcpdump -i nflog), or for the IP
packets of any other capture. The time is the packet's arrival, if the message
contains it, else the time of the record. Other kinds of records are skipped and
counted. A damaged record is reported with its number and position in the file,
and reading continues with the next one. FILE is pcap or pcapng, compressed or
not; it can be a pipe, or - for standard input.

    nfnet replay session.pcapng
    nfnet replay session.pcapng --queue 1 --json --realtime
    nfnet replay web.pcap.gz --local 192.0.2.0/24
    tcpdump -i any -U -w - | nfnet replay -

exit status: 0 on success; 1 if the file is damaged, or contains no packets or
messages; 2 for wrong arguments
"""


def add_to(commands: Any) -> None:
    """Add the subcommands."""
    record = commands.add_parser(
        "record",
        help="record the packets of a queue or log group in a file",
        description=_RECORD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    record.add_argument("file", metavar="FILE", help="pcapng, or pcap if its name ends in .pcap; replaced")
    which = record.add_mutually_exclusive_group(required=True)
    which.add_argument("--queue", type=whole_number(0, 65535), metavar="NUM", help="record this queue")
    which.add_argument("--group", type=whole_number(0, 65535), metavar="GROUP", help="record this log group")
    record.add_argument("-c", "--count", type=whole_number(1), metavar="N", help="stop after N packets")
    record.add_argument(
        "--netns", type=netns, metavar="NAME", help="work in this network namespace: a name, path or process id"
    )
    record.set_defaults(run=_record)

    replay = commands.add_parser(
        "replay",
        help="show the packets of a capture",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("file", metavar="FILE", help="pcap or pcapng; - is standard input")
    which = replay.add_mutually_exclusive_group()
    which.add_argument(
        "--queue",
        type=whole_number(0, 65535),
        metavar="NUM",
        help="show this queue (default: the first queue or group in it)",
    )
    which.add_argument("--group", type=whole_number(0, 65535), metavar="GROUP", help="show this log group")
    replay.add_argument("--json", action="store_true", help="print JSON Lines, an object for each packet")
    replay.add_argument("--realtime", action="store_true", help="print each packet when its time has come")
    add_capture_options(replay.add_argument_group("captures that are not of a queue or log group"))
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

    with until_told(stop), reader:  # in this order: a process that sees the open queue can send the signal at once
        if not stopped:  # already, while it was being opened
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
        what = "packets of a queue and no log messages" if queue is None else f"packets of queue {queue}"
        what = what if group is None else f"messages of log group {group}"
        say(f"nfnet replay: no {what} in {options.file}")
    if left_out := replay.left_out():
        say(f"nfnet replay: skipped: {left_out}")
    return 0 if shown and not damaged else 1


def _text(item: Packet | LogMessage, json: bool, queue: int | None, group: int | None) -> str:
    if not json:
        return packet_text.line(item, recorded=True)
    return packet_text.ecs(item, recorded=True, **({"queue": queue} if group is None else {"group": group}))
