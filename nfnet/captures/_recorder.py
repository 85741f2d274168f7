"""Records the datagrams between the kernel and a queue or log, for `nfnet.replay` and for Wireshark."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType

from .._io.locks import RLock
from .._recording import Recording, enter, leave
from ..errors import DecodeError, check_system
from ..protocol import netlink, nfnetlink, nfqnl
from ..protocol.nfqnl import NFQA, Verdict
from ._format import netlink_header
from ._link_types import LinkType
from ._writer import Writer

# Records are written to the disk after this many seconds of traffic, and whenever there is no traffic.
_FLUSH_EVERY = 1.0

_log = logging.getLogger("nfnet")


class Recorder(Recording):
    """Writes a capture file, from any thread.

    path: the name of the file: pcapng, or pcap if it ends in ``.pcap``.
    begin: whether the recording begins with the first datagram. If False, it waits for a call of `begin`.

    The file contains every datagram in both directions, with its time. In pcapng, verdicts have a comment that
    describes them. If the file cannot be written (a full disk), the recording stops, not the program: the error is
    logged, and `close` raises it. Raises OSError, EBUSY if another recorder is writing to the same file.

    The first datagram removes the old contents of the file, or `close` does if there was none. Without ``begin``, and
    in a ``with`` statement, the contents stay, and datagrams are kept in memory, until `begin`, which queues and logs
    call once they are open.
    """

    def __init__(self, path: str | os.PathLike[str], *, begin: bool = True) -> None:
        self._writer = Writer(path, LinkType.NETLINK, begin=False)
        self._begun = False
        self._begins_itself = begin
        self._waiting: deque[tuple[int, bool, bytes]] = deque()  # not yet written: time, outgoing, datagram
        self._writing = False
        self._closed = False
        self._header = bytes(netlink_header.build({"family": nfnetlink.NETLINK_NETFILTER}))
        self._lock = RLock()
        self._process = os.getpid()
        self._error: OSError | None = None
        self._flushed = time.monotonic()

    def begin(self) -> None:
        """Remove the file's old contents, and write the kept datagrams. Can be called twice. Raises OSError."""
        with self._lock:
            if not self._begun:
                self._writer.begin()
                self._begun = True
        self._write()

    def tap(self, outgoing: bool, datagram: bytes) -> None:
        """Record a datagram; ``outgoing`` if it was sent to the kernel."""
        if self._error is not None or self._closed or self._process != os.getpid():
            return
        self._waiting.append((time.time_ns(), outgoing, datagram))
        self._write()

    def flush(self) -> None:
        """Write recorded datagrams to the disk."""
        self._write(flush=True)

    def _write(self, *, flush: bool = False) -> None:
        if self._error is not None or self._process != os.getpid():
            return
        with self._lock:
            # If this thread is writing already, this is a signal handler: the interrupted call then writes the rest.
            if self._writing or self._closed or not (self._begun or self._begins_itself):
                return
            try:
                self._writing = True
                if not self._begun:
                    self._writer.begin()
                    self._begun = True
                while True:  # and no condition at its end: see `locks`
                    if not self._waiting:
                        break
                    time_ns, outgoing, datagram = self._waiting.popleft()
                    comment = ", ".join(_verdicts(datagram)) if outgoing else ""
                    self._writer.write(time_ns, self._header + datagram, comment=comment)
                if flush or time.monotonic() - self._flushed > _FLUSH_EVERY:
                    self._flushed = time.monotonic()
                    self._writer.flush()
            except OSError as error:
                check_system(error)
                self._stop(error)
            finally:
                self._writing = False
                if self._closed:  # by a signal handler
                    self._close_late()

    def _stop(self, error: OSError) -> None:
        self._error = error
        self._waiting.clear()
        _log.error("the recording stops here: %s", error)

    def _close_late(self) -> None:
        try:
            self._writer.close()
        except OSError as error:
            check_system(error)
            self._stop(error)

    def close(self) -> None:
        """Finish the file. Can be called twice. Raises the OSError that stopped the recording, if any."""
        if self._process != os.getpid():
            return
        with self._lock:
            leave(self)
            self._write()
            self._closed = True
            if self._writing:  # this is a signal handler
                return
            error, self._error = self._error, None
            self._writer.close()
        if error is not None:
            raise error

    def __enter__(self) -> Recorder:
        self._begins_itself = False
        enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._begins_itself = error is None  # if opening failed in the block, the file keeps its contents
        self.close()


def record(path: str | os.PathLike[str]) -> Recorder:
    """Record to ``path`` every queue and log that is opened in the block.

        with nfnet.record("session.pcapng"), nfnet.Queue(1) as queue:
            queue.run(handler)

    Only the file's owner can read it. It keeps its old contents until the first of them is open. Raises OSError if the
    file cannot be created.
    """
    return Recorder(path)


def _verdicts(datagram: bytes) -> Iterator[str]:
    """Yield a text for each verdict in a datagram."""
    try:
        for _, message in netlink.split_messages(datagram):
            kind = netlink.read_length_and_type(message)[1]
            if kind not in (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH):
                continue
            spans = nfqnl.layouts.find(message).spans
            start = spans[NFQA.VERDICT_HDR].start
            word = int.from_bytes(message[start : start + 4], "big")
            packet_id = int.from_bytes(message[start + 4 : start + 8], "big")
            text = Verdict(word & 0xFF).name
            text += f" {word >> 16}" if word & 0xFF == Verdict.QUEUE else ""
            text += f" packets up to {packet_id}" if kind == nfqnl.MSG_VERDICT_BATCH else f" packet {packet_id}"
            for number, name in ((NFQA.MARK, "mark"), (NFQA.PAYLOAD, "payload")):
                if number in spans:
                    text += f" with another {name}"
            yield text
    except (DecodeError, KeyError):  # not a datagram of nfnet
        return
