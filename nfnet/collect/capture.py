"""Log messages in a capture file, which tcpdump and Wireshark open."""

from __future__ import annotations

import contextlib

from .._printable import counted
from ..captures import LinkType, Writer
from ..log import LogMessage
from ..protocol import netlink
from ..protocol.nfnetlink import build_message
from ..protocol.nfulnl import MSG_PACKET, NFULA
from ._batch import Batch, remarks
from ._output import Output, OutputError


class Capture(Output):
    """A capture file, made anew. When it cannot be written any more it ends.

    target: the name of the file: pcapng, or pcap if it ends in ``.pcap``.
    """

    scheme = "pcapng"
    suffixes = (".pcapng", ".pcap")
    overwrites = True
    help = "a capture, made anew, whose prefixes are comments; pcap if it ends so"

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._writer = Writer(target, LinkType.NFLOG, begin=False)
        self._broken = False

    def begin(self) -> None:
        self._writer.begin()

    def write(self, batch: Batch) -> None:
        writer = self._writer
        try:
            if batch.lost:
                text = f"nfnet: {counted(batch.lost, 'message')} lost"
                writer.write(batch.read_ns, _note(batch.session.group, text), comment=text)
            for message in batch.messages:
                moment = message.timestamp_ns or batch.read_ns
                writer.write(moment, message.raw[netlink.HEADER_SIZE :], comment=_comment(batch, message))
            writer.flush()
        except OSError as error:
            self._broken = True
            raise OutputError(str(error.strerror), lasting=True) from error

    def close(self) -> None:
        with contextlib.suppress(OSError) if self._broken else contextlib.nullcontext():
            self._writer.close()


def _note(group: int, text: str) -> bytes:
    """A record that has no packet, and a prefix that says something."""
    values = [(int(NFULA.PACKET_HDR), bytes(4)), (int(NFULA.PREFIX), text.encode() + b"\0")]
    return build_message(MSG_PACKET, group, netlink.build_attributes(values))[netlink.HEADER_SIZE :]


def _comment(batch: Batch, message: LogMessage) -> str:
    """The prefix, and what else is no part of the packet."""
    more = [f"{message.suppressed:,} more like this"] if message.suppressed else []
    if text := remarks(batch, message):
        more.append(text)
    if not more:
        return message.prefix
    return f"{message.prefix.rstrip()} ({', '.join(more)})".lstrip()
