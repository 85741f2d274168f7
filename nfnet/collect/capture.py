"""Log messages in capture files, which tcpdump and Wireshark open."""

from __future__ import annotations

import logging
import os
from typing import Any

from .._io import private_files
from .._printable import counted
from ..captures import LinkType
from ..captures._writer import Encoder, is_pcapng, whole_size
from ..log import LogMessage
from ..protocol import netlink
from ..protocol.nfnetlink import build_message
from ..protocol.nfulnl import MSG_PACKET, NFULA
from ._batch import Batch, remarks
from ._file import File

_log = logging.getLogger("nfnet")


class Capture(File):
    """A capture file, in which the prefixes of rules are comments of packets.

    target: the name of the file: pcapng, or pcap if the name ends in ``.pcap``; "-" is the standard output.
    anew: whether to empty an existing file instead of renaming it.
    settings: ``rotate_size`` (bytes), ``rotate_time`` (seconds), ``keep`` (how many rotated files) and ``compress``
        (with gzip, True or False). Default: the file is never rotated, all rotated files are kept, none is compressed.

    Each rotated file has its own header. A file that exists when the collector begins is renamed, as in a rotation. A
    part of a record that a killed collector left at its end is removed.
    """

    scheme = "pcapng"
    suffixes = (".pcapng", ".pcap")
    overwrites = True
    help = "a capture with prefixes as comments; pcap if its name ends in .pcap"

    def __init__(self, target: str, *, anew: bool = False, **settings: Any) -> None:
        super().__init__(target, **settings)
        self._encoder = Encoder(LinkType.NFLOG, pcapng=is_pcapng(target))
        self._header = self._encoder.header()
        self._anew = anew

    def header(self) -> bytes:
        """Return the header of a capture; see `File.header`."""
        return self._header

    def begin(self) -> None:
        if self._anew:
            private_files.empty(self._open())
        super().begin()

    def mend(self, path: str) -> None:
        """Remove a part of a record at the end of a file; see `File.mend`."""
        with open(path, "r+b") as file:
            size, whole = os.fstat(file.fileno()).st_size, whole_size(file, self._header)
            if whole < size:
                file.truncate(whole)
                _log.warning("%s: its last record was cut short; its %d bytes were removed", path, size - whole)

    def data(self, batch: Batch) -> bytes:
        """Return the records of a batch; see `File.data`."""
        record = self._encoder.record
        found = []
        if batch.lost:
            text = f"nfnet: {counted(batch.lost, 'message')} lost"
            found.append(record(batch.read_ns, _note(batch.session.group, text), comment=text))
        for message in batch.messages:
            moment = message.timestamp_ns
            data = message.raw[netlink.HEADER_SIZE :]
            found.append(record(batch.read_ns if moment is None else moment, data, comment=_comment(batch, message)))
        return b"".join(found)


def _note(group: int, text: str) -> bytes:
    """A record that has no packet, and a prefix that says something."""
    values = [(int(NFULA.PACKET_HDR), bytes(4)), (int(NFULA.PREFIX), text.encode() + b"\0")]
    return build_message(MSG_PACKET, group, netlink.build_attributes(values))[netlink.HEADER_SIZE :]


def _comment(batch: Batch, message: LogMessage) -> str:
    """Return the comment of a packet: the prefix, and the notes of the collector."""
    prefix = message.prefix.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    more = [f"{message.suppressed:,} more like this"] if message.suppressed else []
    if text := remarks(batch, message):
        more.append(text)
    if not more:
        return prefix
    return f"{prefix.rstrip()} ({', '.join(more)})".lstrip()
