"""``nfnet record`` and ``nfnet replay``: what the kernel sends, into a file and out of it again."""

from __future__ import annotations

import argparse
from typing import Any

from ..log import Log, LogMessage
from ..packet import Packet
from ..queue import Queue
from ..replay import Replay
from . import common, lines

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
Shows the packets or messages of a recording, a line each: what nfnet record,
an nlmon device, tcpdump -i nflog or a capture of bare IP packets holds. The
time is that of the packet's arrival, where the kernel said it.

    nfnet replay session.pcapng
    nfnet replay session.pcapng --queue 1 --json --realtime

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
    which.add_argument("--queue", type=common.number(0, 65535), metavar="NUM", help="number of a queue")
    which.add_argument("--group", type=common.number(0, 65535), metavar="GROUP", help="number of a log group")
    record.add_argument("-c", "--count", type=common.number(1), metavar="N", help="stop after so many")
    record.add_argument("--netns", type=common.netns, metavar="NAME", help="work in another network namespace")
    record.set_defaults(run=_record)

    replay = commands.add_parser(
        "replay",
        help="show what a recording holds",
        description=_REPLAY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    replay.add_argument("file", metavar="FILE")
    which = replay.add_mutually_exclusive_group()
    which.add_argument(
        "--queue", type=common.number(0, 65535), metavar="NUM", help="this queue, not the first one in it"
    )
    which.add_argument("--group", type=common.number(0, 65535), metavar="GROUP", help="this log group")
    replay.add_argument("--json", action="store_true", help="JSON Lines")
    replay.add_argument("--realtime", action="store_true", help="at the pace of the recording")
    replay.set_defaults(run=_replay)


def _record(options: argparse.Namespace) -> int:
    netns = options.netns
    seen = 0
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

    with reader:
        with common.until_told(reader.stop):
            reader.run(take)
        losses = common.losses(reader)
    what = "packet" if options.queue is not None else "message"
    common.say(f"{common.counted(seen, what)} in {options.file}{losses}")
    return 0


def _replay(options: argparse.Namespace) -> int:
    queue, group = options.queue, options.group
    if queue is None and group is None:
        queue, group = Replay(options.file).first()
    replay = Replay(options.file, realtime=options.realtime)
    seen = 0
    if group is not None:
        with Log(group, transport=replay) as log, common.until_told(log.stop):
            for message in log:
                print(_text(message, options.json, group=group), flush=True)
                seen += 1
        return _found(seen, f"log group {group}", options.file)
    with Queue(queue or 0, transport=replay) as reader, common.until_told(reader.stop):
        for packet in reader:
            print(_text(packet, options.json, queue=queue), flush=True)
            seen += 1
            packet.accept()
    return _found(seen, f"queue {queue}", options.file)


def _text(item: Packet | LogMessage, json: bool, **number: int | None) -> str:
    return lines.ecs(item, recorded=True, **number) if json else lines.line(item, recorded=True)


def _found(count: int, what: str, file: str) -> int:
    if not count:
        common.say(f"nfnet replay: nothing of {what} in {file}")
    return 0 if count else 1
