"""Replays a recording: a transport that behaves as the kernel did, on a machine without privileges."""

from __future__ import annotations

import _thread
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from ._io import at_fork
from ._io.locks import RLock
from ._io.transport import Transport
from .capture import LinkType, Record, netfilter_datagram, read
from .checks import check_flag
from .errors import CaptureError, ClosedError, DecodeError
from .protocol import byteorder, layout, netlink, nfnetlink, nfqnl, nfulnl
from .protocol.nfqnl import NFQA, QUEUE_BYPASS, Command, Verdict

_END = sys.maxsize  # ``list[_END:] = more`` appends
_QUEUE_KINDS = (nfqnl.MSG_VERDICT, nfqnl.MSG_VERDICT_BATCH)
_BARE = (LinkType.RAW, LinkType.IPV4, LinkType.IPV6)


class Decided(NamedTuple):
    """What was decided about a packet.

    ``mark`` and ``payload`` are the new ones, None where unchanged. ``queue`` is the number of the queue that it was
    handed to, None if ``verdict`` is not QUEUE, and ``bypass`` whether it was to go on if nobody listens there.
    """

    verdict: Verdict
    mark: int | None = None
    payload: bytes | None = None
    queue: int | None = None
    bypass: bool = False

    @classmethod
    def from_word(cls, word: int, changes: dict[int, Any]) -> Decided:
        """From the verdict word and the attributes of a verdict message.

        Raises ValueError if the low byte of the word is none of the verdicts that the kernel takes.
        """
        verdict = Verdict(word & 0xFF)
        mark, payload = changes.get(NFQA.MARK), changes.get(NFQA.PAYLOAD)
        if verdict != Verdict.QUEUE:
            return cls(verdict, mark, payload)
        return cls(verdict, mark, payload, word >> 16, bool(word & QUEUE_BYPASS))


class Replay(Transport, at_fork.AtFork):
    """The recorded datagrams of one queue or log group, as a transport.

        replay = nfnet.replay("session.pcapng")
        with nfnet.Queue(1, transport=replay) as queue:
            queue.run(handler)
        assert replay.verdicts == replay.recorded

    The queue or log that is opened on it gets what was recorded for its number, byte for byte, but for headers from a
    machine of the other byte order, which are turned; its requests are acknowledged and its verdicts collected. When
    all has come, iteration and ``run`` end. Recordings of netlink (LINKTYPE_NETLINK) replay both, those of
    ``tcpdump -i nflog:N`` (LINKTYPE_NFLOG) a log, and bare IP packets a queue of any number. With ``realtime`` they
    come at the pace at which they were recorded.

    ``verdicts`` maps the id of each packet to what this program decided, ``recorded`` to what the recording says.
    Raises OSError if the file cannot be opened; CaptureError comes out of the loop, after the records before it.
    A replay is opened once: after that it raises ClosedError.
    """

    recordable = True

    def __init__(self, path: str | os.PathLike[str], *, realtime: bool = False) -> None:
        self.verdicts: dict[int, Decided] = {}
        self.recorded: dict[int, Decided] = {}
        self._realtime = check_flag("realtime", realtime)
        self._file = open(path, "rb")  # noqa: SIM115 - as long as the replay
        # With the number of each; None if an exception came in between, see `_advance`.
        self._records: Iterator[tuple[int, Record]] | None = enumerate(read(self._file), 1)
        self._taken = 0  # the number of the last that is through
        self._next: tuple[int, list[bytes]] | None = None
        self._began: tuple[int, float] | None = None
        self._subsystem = 0
        self._number = 0
        self._waiting: dict[int, None] = {}  # packets without a verdict, oldest first
        self._recorded_waiting: dict[int, None] = {}
        self._bare = 0  # how many bare packets were given an id
        self._ended = False
        self._closed = False
        self._lock = RLock()  # `close` may come from another thread, or in a signal handler
        self._timer: SimpleQueue[None] | None = None  # an item cancels it
        self._readable = os.eventfd(1, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._finalize = weakref.finalize(self, os.close, self._readable)
        self._finalize.atexit = False  # see `reader`
        at_fork.register(self)

    # --- the transport

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._check_open()
        message = build(1)
        self._tell(True, [message])
        kind = netlink.read_length_and_type(message)[1]
        # CMD is attribute 1 of both, and begins with the command.
        for number, start, _ in layout.walk(message, nfnetlink.BODY, len(message)):
            if number == 1 and message[start] == Command.BIND:
                self._subsystem = kind >> 8
                self._number = int.from_bytes(message[18:20], "big")

    def receive(self, into: list[bytes], limit: int) -> bool:
        start = len(into)
        with self._lock:
            self._check_open()
            try:
                while True:  # and no condition at its end: see `locks`
                    if limit <= 0 or self._ended:
                        break
                    if self._next is None and not self._advance():
                        break
                    assert self._next is not None
                    time_ns, datagrams = self._next
                    if self._realtime and not self._due(time_ns):
                        return True
                    into[_END:], self._next = datagrams, None  # one statement, so that none is lost or there twice
                    limit -= len(datagrams)
                return not self._ended
            except ValueError:  # in a signal handler the file was closed as it was being read
                self._check_open()
                raise
            finally:
                self._tell(False, into[start:])

    def send(self, datagram: bytes) -> None:
        self._check_open()
        self._collect(datagram, self.verdicts, self._waiting)
        self._tell(True, [datagram])

    def _tell(self, outgoing: bool, datagrams: list[bytes]) -> None:
        tap = self.tap
        if tap is not None:
            for datagram in datagrams:
                tap(outgoing, datagram)

    def interface_name(self, index: int) -> str | None:
        return None  # the interfaces of this machine are not those of the recording

    def fileno(self) -> int:
        self._check_open()
        return self._readable

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._timer is not None:
                self._timer.put(None)
            self._file.close()
            self._finalize()

    def after_fork(self) -> None:
        """In a forked child: who held the lock is not there."""
        self._lock = RLock()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the replay is closed")

    # --- the recording

    def first(self) -> tuple[int | None, int | None]:
        """The number of the queue, or that of the group, whichever comes first in the file; closes the replay.

        Raises CaptureError if it has neither.
        """
        try:
            for record in read(self._file):
                found = _owner(record)
                if found is not None:
                    return found
        finally:
            self.close()
        raise CaptureError("no packets of a queue and no messages of a log in it", 0)

    def _advance(self) -> bool:
        """Find the next record that has something for us."""
        records, self._records = self._records, None
        if records is None:
            # Ctrl-C, say, came out of the generator, which has ended with that: read again what is through already.
            if not self._file.seekable():
                raise CaptureError("the replay was interrupted, and what is no regular file cannot be read again", 0)
            self._file.seek(0)
            records = islice(enumerate(read(self._file), 1), self._taken, None)
        try:
            for number, record in records:
                datagrams = list(self._datagrams(record))
                found = (record.time_ns, datagrams) if datagrams else None
                bare = self._bare + (found is not None and record.link_type in _BARE)
                # One statement without a call, as in `receive`. What was done before may be done twice.
                self._next, self._taken, self._bare = found, number, bare
                if found is not None:
                    self._records = records
                    return True
        except DecodeError:
            self._records = records  # that record was damaged, there may be others; or the file, and they are at an end
            raise
        self._ended = True
        return False

    def _due(self, time_ns: int) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began = (time_ns, now)
        delay = (time_ns - self._began[0]) / 1e9 - (now - self._began[1])
        if delay <= 0:
            self._wake()
            return True
        with suppress(BlockingIOError):
            if not self._closed:  # in a signal handler, just now
                os.eventfd_read(self._readable)
        if self._timer is not None:
            self._timer.put(None)  # this may be asked more often than something is due
        self._timer = SimpleQueue()
        # No `threading.Timer`, which has an Event: see `locks`.
        _thread.start_new_thread(_later, (min(delay, _thread.TIMEOUT_MAX), self._timer, self._wake))
        return False

    def _wake(self) -> None:
        with self._lock:
            if not self._closed:  # else the number may be another file's by now
                os.eventfd_write(self._readable, 1)

    def _datagrams(self, record: Record) -> Iterator[bytes]:
        if record.link_type == LinkType.NETLINK:
            datagram = netfilter_datagram(record)
            if datagram is not None:
                yield from self._netlink(datagram)
        elif record.link_type == LinkType.NFLOG:
            if self._subsystem == nfnetlink.Subsystem.LOG and int.from_bytes(record.data[2:4], "big") == self._number:
                yield _log_message(record)
        elif record.link_type in _BARE:
            if self._subsystem == nfnetlink.Subsystem.QUEUE:
                yield from self._seen(_packet_message(self._number, self._bare + 1, record))
        else:
            raise CaptureError(f"records of link type {record.link_type}, which cannot be replayed", record.offset)

    def _netlink(self, datagram: bytes) -> Iterator[bytes]:
        """What of a datagram the kernel sent to our queue or group; verdicts in it are those recorded."""
        if len(datagram) < netlink.HEADER_SIZE:
            yield datagram  # damaged: the reader says so
            return
        kind = netlink.read_length_and_type(datagram)[1]
        number = int.from_bytes(datagram[18:20], "big")
        if kind in _QUEUE_KINDS:
            if self._subsystem == nfnetlink.Subsystem.QUEUE and number == self._number:
                self._collect(datagram, self.recorded, self._recorded_waiting)
        elif kind == nfqnl.MSG_PACKET:
            if self._subsystem == nfnetlink.Subsystem.QUEUE and number == self._number:
                yield from self._seen(datagram)
        elif kind == nfulnl.MSG_PACKET:
            if self._subsystem == nfnetlink.Subsystem.LOG and number == self._number:
                yield datagram
        elif netlink.is_answer(datagram) and self._subsystem == nfnetlink.Subsystem.QUEUE:
            answer = netlink.parse_answer(datagram)
            if answer.type in _QUEUE_KINDS:
                yield datagram

    def _seen(self, message: bytes) -> Iterator[bytes]:
        packet_id = int.from_bytes(message[nfqnl.PACKET_ID], "big")
        self._waiting[packet_id] = self._recorded_waiting[packet_id] = None
        yield message

    def _collect(self, datagram: bytes, verdicts: dict[int, Decided], waiting: dict[int, None]) -> None:
        for _, message in netlink.split_messages(datagram):
            kind = netlink.read_length_and_type(message)[1]
            if kind not in _QUEUE_KINDS:
                continue
            values = nfnetlink.parse_attributes(message[nfnetlink.BODY :], nfqnl.NFQA_TABLE, nfnetlink.BODY)
            header = values.get(NFQA.VERDICT_HDR)
            if header is None:
                continue
            try:
                decided = Decided.from_word(header.verdict, values)
            except ValueError:  # the kernel refused it (EINVAL), and the packet went on waiting
                continue
            if kind == nfqnl.MSG_VERDICT:
                covered = [header.packet_id] if header.packet_id in waiting else []
            else:
                covered = nfqnl.covered_by_batch(waiting, header.packet_id)
            for number in covered:
                verdicts[number] = decided
                del waiting[number]


def _later(seconds: float, cancelled: SimpleQueue[None], function: Callable[[], object]) -> None:
    try:
        cancelled.get(timeout=seconds)
    except Empty:
        function()


def replay(path: str | os.PathLike[str], *, realtime: bool = False) -> Replay:
    """A transport for a `Queue` or a `Log` that gives what was recorded; see `Replay`."""
    return Replay(path, realtime=realtime)


def _owner(record: Record) -> tuple[int | None, int | None] | None:
    if record.link_type == LinkType.NFLOG:
        return None, int.from_bytes(record.data[2:4], "big")
    if record.link_type in _BARE:
        return 0, None
    message = netfilter_datagram(record) if record.link_type == LinkType.NETLINK else None
    if message is not None and len(message) >= nfnetlink.BODY:
        kind, number = netlink.read_length_and_type(message)[1], int.from_bytes(message[18:20], "big")
        if kind == nfqnl.MSG_PACKET:
            return number, None
        if kind == nfulnl.MSG_PACKET:
            return None, number
    return None


def _log_message(record: Record) -> bytes:
    """The netlink message that tcpdump took the header from; its attributes are in the order of the file."""
    body = byteorder.attributes_to_host(record.data, nfnetlink.nfgenmsg.sizeof(), record.byteorder, nfulnl.NFULA_TABLE)
    return netlink.build_message(nfulnl.MSG_PACKET, 0, 0, body)


def _packet_message(number: int, packet_id: int, record: Record) -> bytes:
    """A packet message around a bare IP packet."""
    family = 10 if record.data[:1] and record.data[0] >> 4 == 6 else 2
    fields = {"packet_id": packet_id, "hw_protocol": 0x86DD if family == 10 else 0x0800, "hook": 0}
    data = layout.build_attribute(NFQA.PACKET_HDR, bytes(nfqnl.packet_hdr.build(fields)))
    if record.original_length > len(record.data):
        data += layout.build_attribute(NFQA.CAP_LEN, record.original_length.to_bytes(4, "big"))
    payload = record.data[: nfqnl.MAX_PAYLOAD]
    data += layout.build_attribute(NFQA.PAYLOAD, payload)
    padding = -len(payload) % 4  # the kernel does not pad the last one
    return nfnetlink.build_message(nfqnl.MSG_PACKET, number, data[: len(data) - padding], family=family)
