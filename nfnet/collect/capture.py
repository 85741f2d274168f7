"""Log messages in a capture file, which tcpdump and Wireshark open."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from .._printable import counted
from ..captures import LinkType, Writer
from ..log import LogMessage
from ..protocol.netlink import HEADER_SIZE
from ._output import Output


class Capture(Output):
    """A capture file. When it cannot be written any more it ends, and nothing else does."""

    option = "-w"
    help = "also write a capture, anew: pcapng, or pcap if it ends so"

    def __init__(self, target: str, group: int, report: Callable[[str], None]) -> None:
        super().__init__(target, group, report)
        self._writer = Writer(target, LinkType.NFLOG, begin=False)
        self._unwritten = 0  # since the last flush

    def begin(self) -> None:
        self._writer.begin()

    def take(self, message: LogMessage) -> None:
        moment = message.timestamp_ns or time.time_ns()
        self._unwritten += 1
        self._try(lambda: self._writer.write(moment, message.raw[HEADER_SIZE:]))

    def flush(self) -> None:
        self._try(self._writer.flush)
        if not self.broken:
            self._unwritten = 0

    def _try(self, step: Callable[[], None]) -> None:
        if self.broken:
            return
        try:
            step()
        except OSError as error:
            self.broken = True
            self.report(f"{error.strerror}; the capture stops here")

    def finish(self, is_enough: Callable[[], bool]) -> bool:
        self.flush()
        if self.broken:
            self.report(f"up to {counted(self._unwritten, 'message')} not written")
        return not self.broken

    def close(self) -> None:
        with contextlib.suppress(OSError) if self.broken else contextlib.nullcontext():
            self._writer.close()
