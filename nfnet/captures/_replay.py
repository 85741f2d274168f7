"""`Replay`: a transport that delivers the datagrams of a recording, without the kernel and without privileges."""

from __future__ import annotations

import _thread
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, islice
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypedDict

from .._annotated import Annotated
from .._arguments import check_flag
from .._injection import divert, restore
from .._io import at_fork
from .._io.locks import RLock
from .._io.moves import END
from .._io.poller import Poller
from .._io.system import LINUX
from .._io.transport import Transport
from .._typing import Unpack
from ..errors import CaptureError, ClosedError, DecodeError
from ..protocol import layout, netlink, nfnetlink, nfqnl
from ..protocol.markbits import REST, Fate, MarkBits
from ..protocol.nfnetlink import Hook, Subsystem
from ..protocol.nfqnl import NFQA, QUEUE_BYPASS, Command, Verdict
from . import _records
from ._frames import Found, Frames, interface_name
from ._reader import Record, scan

_PAUSE = 1000  # records of other queues after which `receive` returns, so that the loop can be stopped


class GivenVerdict(NamedTuple):
    """A verdict given on a packet.

    ``mark`` and ``payload`` are the new values, None if unchanged. ``num`` is the number of the queue that gets the
    packet, None if ``verdict`` is not QUEUE, and ``bypass`` whether the packet is accepted if no program reads that
    queue. ``connection`` is True if the verdict applies to the rest of the connection, too, and ``rejected`` if the
    kernel was to notify the sender of the dropped packet.
    """

    verdict: Verdict
    mark: int | None = None
    payload: bytes | None = None
    num: int | None = None
    bypass: bool = False
    connection: bool = False
    rejected: bool = False

    @classmethod
    def from_word(cls, word: int, changes: dict[int, Any], bits: MarkBits | None = None) -> GivenVerdict:
        """Create one from the verdict word and attributes of a message; ``bits`` are those of verdicts for rules."""
        verdict = Verdict(word & 0xFF)
        mark, payload = changes.get(NFQA.MARK), changes.get(NFQA.PAYLOAD)
        if verdict == Verdict.REPEAT and mark and bits and (fate := bits.fate(mark)) is not None:
            verdict = Verdict.ACCEPT if fate == Fate.ACCEPT else Verdict.DROP
            rejected = fate in (Fate.REJECT_PACKET, Fate.REJECT)
            return cls(verdict, mark & ~bits.mask or None, payload, connection=bool(fate & REST), rejected=rejected)
        if verdict != Verdict.QUEUE:
            return cls(verdict, mark, payload)
        return cls(verdict, mark, payload, word >> 16, bool(word & QUEUE_BYPASS))


class _Found(NamedTuple):
    """The datagrams in a record for the queue or log, and the error for a damaged part."""

    time_ns: int | None
    datagrams: list[bytes]
    problem: CaptureError | None
    is_new: bool = False  # a packet with a link layer, from which the message was made


class Replay(Transport, at_fork.AtFork):
    """The recorded datagrams of one queue or log group, as a transport.

        replay = nfnet.replay("session.pcapng")
        with nfnet.Queue(1, transport=replay) as queue:
            queue.run(handler)
        assert replay.verdicts == replay.recorded

    The queue or log opened on it gets the datagrams recorded for its number, unchanged except for headers of the other
    byte order, which are converted; its requests are acknowledged and its verdicts collected. At the end of the
    recording, iteration and ``run`` end. Recordings of netlink (LINKTYPE_NETLINK) can be replayed to a queue or a log,
    those of ``tcpdump -i nflog:N`` (LINKTYPE_NFLOG) to a log. If a record was cut short, its packet has a shorter
    payload.

    All other captures, such as those of Ethernet, contain packets for a queue of any number, or a log of any group:
    these get the IP packets in the frames, without the link-layer header and trailing bytes. The hook of a packet is
    ``hook``, if given. Otherwise it is OUTPUT, INPUT or FORWARD, if ``local`` is given or the record contains the
    direction (sent by this machine, to it, or between others), and PREROUTING if neither is known. The packet has the
    interface and the sender's link-layer address, if the file contains them. In a section of a pcapng file that also
    has an interface of netlink (for a log: or NFLOG) such packets are skipped.

    path: the file, pcap or pcapng, also compressed (gzip, bzip2, xz, and with Python 3.14 zstd). It is read once, from
        beginning to end; it can be a pipe that another program is still writing to.
    realtime: whether packets are delivered at the pace of the recording.
    keep_verdicts: whether to fill `verdicts`, `recorded` and `injected`, which takes memory for every packet.
    hook: the hook of all packets that have a link layer: a Hook, or its name in lower case.
    local: addresses and networks of this machine, or of this side of a router: "192.0.2.0/24", or several of them.
        Packets from them get the hook OUTPUT, other packets to them INPUT, and all others FORWARD.
    family: "inet" for IP packets; "bridge" for all Ethernet frames, as a queue of a bridge gets them: with their
        EtherType, VLAN tag and header.

    Raises OSError if the file cannot be opened. For a damaged record the loop raises CaptureError, after the packets
    before it; the next loop continues after that record. A replay can be opened once: after that it raises
    ClosedError.
    """

    verdicts: dict[int, GivenVerdict]
    """The verdicts of this program, by packet id."""
    recorded: dict[int, GivenVerdict]
    """The verdicts in the recording, by packet id, without those that were cut short."""
    injected: list[bytes]
    """The packets of `Packet.answer`, `Packet.reset`, `Packet.reject` and `nfnet.inject`, from the IP header on.

    None is sent: while the replay is open, all packets that this process injects are added to this list.
    """
    skipped: dict[int, int]
    """The number of records of other link types skipped so far, by link type (``LINKTYPE_*``)."""
    not_ip: dict[int, int]
    """The number of records without an IP packet skipped so far, by EtherType; 0 if that is missing or unreadable."""

    recordable = True
    simulated = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        realtime: bool = False,
        keep_verdicts: bool = True,
        hook: Hook | str | None = None,
        local: str | Iterable[str] = (),
        family: str = "inet",
    ) -> None:
        self.verdicts, self.recorded, self.skipped, self.not_ip = {}, {}, {}, {}
        self.injected = []
        self._realtime = check_flag("realtime", realtime)
        self._keep_verdicts = check_flag("keep_verdicts", keep_verdicts)
        self._frames = Frames(hook, local, family)
        self._path = os.fspath(path)
        self._file = open(path, "rb")  # noqa: SIM115 - as long as the replay
        if LINUX and not self._file.seekable():  # elsewhere reading it waits: see `Select`
            # A pipe, which can be empty for hours. It was opened anew, so that other programs' blocking mode stays.
            os.set_blocking(self._file.fileno(), False)
        # None if an exception interrupted the reading, see `_read_on`.
        self._items: Iterator[Record | CaptureError | None] | None = scan(self._file)
        self._taken = 0  # how many of them were processed
        self._next: _Found | None = None
        self._began: tuple[int, float] | None = None
        self._subsystem = int(Subsystem.QUEUE)
        self._number = 0
        self._waiting: dict[int, None] = {}  # packets without a verdict, oldest first
        self._recorded_waiting: dict[int, None] = {}
        self._packets = 0  # how many packets with a link layer have got an id
        self._ended = False
        self._empty = False  # the pipe is empty at the moment
        self._closed = False
        self._lock = RLock()  # `close` can be called by another thread, or by a signal handler
        self._timer: SimpleQueue[None] | None = None  # put an item to cancel the timer
        self._waiter = Poller()  # readable, unless the replay has to wait
        self._waiter.wake()
        at_fork.register(self)

    # --- the transport

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._check_open()
        message = build(1)
        self._tell(True, [message])
        kind = netlink.read_length_and_type(message)[1]
        # CMD is attribute 1 of queues and logs, and begins with the command.
        for number, start, _ in layout.walk(message, nfnetlink.BODY, len(message)):
            if number == 1 and message[start] == Command.BIND:
                self._subsystem = kind >> 8
                divert(self)
                self._number = nfnetlink.resource(message)

    def receive(self, into: list[bytes], limit: int) -> bool:
        start = len(into)
        with self._lock:
            self._check_open()
            try:
                if self._empty:
                    self._go_on()
                while True:  # and no condition at its end: see `locks`
                    if limit <= 0 or self._ended:
                        break
                    if self._next is None and not self._read_on():
                        break
                    assert self._next is not None
                    time_ns, datagrams, problem, _ = self._next
                    if not datagrams:
                        if len(into) > start:
                            return True  # packets before the damaged record are handled first
                        assert problem is not None
                        try:
                            raise problem
                        except CaptureError:  # only this: if Ctrl-C came first, the problem is raised the next time
                            self._next = None
                            raise
                    if self._realtime and time_ns is not None and not self._due(time_ns):
                        return True
                    left = None if problem is None else _Found(None, [], problem)
                    into[END:], self._next = datagrams, left  # one statement, so that no datagram is lost or doubled
                    limit -= len(datagrams)
                return not self._ended
            except ValueError:  # a signal handler closed the file while it was being read
                self._check_open()
                raise
            finally:
                self._tell(False, into[start:])

    def send(self, datagram: bytes) -> None:
        self._check_open()
        if self._keep_verdicts:
            self._note_verdicts(datagram, self.verdicts, self._waiting)
        self._tell(True, [datagram])

    def _tell(self, outgoing: bool, datagrams: list[bytes]) -> None:
        tap = self.tap
        if tap is not None:
            for datagram in datagrams:
                tap(outgoing, datagram)

    def interface_name(self, index: int) -> str | None:
        return None  # not the interfaces of this machine; `Annotated` has the recorded names

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        self._check_open()
        if self._keep_verdicts:
            self.injected.append(packet)

    def fileno(self) -> int:
        self._check_open()
        return self._waiter.fileno()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            restore(self)
            if self._timer is not None:
                self._timer.put(None)
            self._file.close()
            self._waiter.close()

    def after_fork(self) -> None:
        """Replace the lock in a forked child: the thread that held it does not exist there."""
        self._lock = RLock()

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the replay is closed")

    # --- the recording

    @property
    def ended(self) -> bool:
        """Whether the file was read to its end."""
        return self._ended

    def first(self) -> tuple[int | None, int | None]:
        """Return the number of the queue, or of the group, of the first packet or message; the other one is None.

        Both are None if the file contains neither. A packet with a link layer counts as one of queue 0, although it is
        for any queue. Call this before opening the replay, which then begins with that packet or message. Waits for a
        pipe. Raises CaptureError for a damaged record before that; it can be called again then.
        """
        with self._lock:
            self._check_open()
            while True:
                if self._ended:
                    return None, None
                items, self._items = self._items or self._from_the_start(), None
                for item in items:
                    if item is None:
                        break
                    try:
                        if isinstance(item, CaptureError):
                            raise item
                        found = self._owner(item)
                    except CaptureError:
                        self._pass_over(item)
                        self._items = items
                        raise
                    if found != (None, None):
                        self._items = chain([item], items)
                        return found
                    self._pass_over(item)
                else:
                    self._ended = True
                    continue
                self._items = items
                self._wait_for_more()
                self._waiter.wait()
                self._go_on()

    def left_out(self) -> str:
        """Describe the records skipped so far, and how to extract packets of other link types; "" if none."""
        return _records.left_out(self._path, self.skipped, self.not_ip)

    def _read_on(self) -> bool:
        """Find the next record for the queue or log; return False if there is none, at the end or for now."""
        items, self._items = self._items or self._from_the_start(), None
        before = self._taken
        for item in items:
            if self._taken - before >= _PAUSE:
                self._items = chain([item], items)
                return False
            if item is None:
                self._items = items
                self._wait_for_more()
                return False
            found = self._look_into(item)
            if found is None:
                self._pass_over(item)
                continue
            packets = self._packets + found.is_new
            # One statement without a call, as in `receive`. The steps before it can be repeated without harm.
            self._next, self._taken, self._packets = found, self._taken + 1, packets
            self._items = items
            return True
        self._ended = True
        return False

    def _from_the_start(self) -> Iterator[Record | CaptureError | None]:
        """Read the file again, after an exception ended the generator, and skip the records read before."""
        if not self._file.seekable():
            self._ended = True
            raise CaptureError("the replay was interrupted, and only a regular file can be read again", 0)
        self._file.seek(0)
        return islice(scan(self._file), self._taken, None)

    def _owner(self, record: Record) -> tuple[int | None, int | None]:
        if record.link_type in _records.MESSAGES:
            return _records.owner(record)
        return (None, None) if self._find_packet(record) is None else (0, None)

    def _find_packet(self, record: Record) -> Found | None:
        """Return the packet in a record with a link layer; None if it has none for this queue or log."""
        if not _records.is_packet(record, self._subsystem):
            return None
        found = self._frames.find(record)
        return found if isinstance(found, Found) else None

    def _pass_over(self, item: Record | CaptureError) -> None:
        if isinstance(item, CaptureError) or item.link_type in _records.MESSAGES:
            self._taken += 1
            return
        counts, kind = self.skipped, item.link_type
        if _records.is_packet(item, self._subsystem):
            try:
                found = self._frames.find(item)
            except CaptureError:
                self._taken += 1
                return
            assert not isinstance(found, Found)
            counts, kind = self.not_ip, found
        count = counts.get(kind, 0) + 1
        counts[kind], self._taken = count, self._taken + 1

    def _look_into(self, item: Record | CaptureError) -> _Found | None:
        """Return the contents of a record for the queue or log, None if there is none."""
        if isinstance(item, CaptureError):
            return _Found(None, [], item)
        if item.link_type not in _records.MESSAGES:
            return self._look_for_packet(item)
        datagrams: list[bytes] = []
        messages, problem = _records.messages(item, self._subsystem, self._number)
        for start, message in messages:
            kind = netlink.read_length_and_type(message)[1]
            if kind not in _records.VERDICTS:
                datagrams.append(message)
            elif self._keep_verdicts:
                try:
                    self._note_verdicts(message, self.recorded, self._recorded_waiting)
                except DecodeError as error:
                    problem = problem or _records.located(item, error, start)
            if kind == nfqnl.MSG_PACKET:
                self._expect_verdict(message)
        if item.time_ns is not None:
            datagrams = [Annotated(datagram, time_ns=item.time_ns) for datagram in datagrams]
        return _Found(item.time_ns, datagrams, problem) if datagrams or problem is not None else None

    def _look_for_packet(self, record: Record) -> _Found | None:
        """Return a message made from a record with a link layer, None if it has no packet."""
        try:
            packet = self._find_packet(record)
        except CaptureError as error:
            return _Found(None, [], error)
        if packet is None:
            return None
        subsystem, number = self._subsystem, self._number
        message = self._frames.message(subsystem, number, self._packets + 1 & 0xFFFFFFFF, record, packet)
        if subsystem == Subsystem.QUEUE:
            self._expect_verdict(message)
        name = interface_name(record)
        if record.time_ns is not None or name is not None:
            message = Annotated(message, time_ns=record.time_ns, interface_name=name)
        return _Found(record.time_ns, [message], None, is_new=True)

    def _expect_verdict(self, message: bytes) -> None:
        if self._keep_verdicts:
            packet_id = int.from_bytes(message[nfqnl.PACKET_ID], "big")
            self._waiting[packet_id] = self._recorded_waiting[packet_id] = None

    def _due(self, time_ns: int) -> bool:
        now = time.monotonic()
        if self._began is None:
            self._began = (time_ns, now)
        delay = (time_ns - self._began[0]) / 1e9 - (now - self._began[1])
        if delay <= 0:
            self._waiter.wake()
            return True
        try:
            self._waiter.reset()
            if self._timer is not None:
                self._timer.put(None)  # this can be called more often than packets are due
            self._timer = SimpleQueue()
            # Not a `threading.Timer`, which has an Event: see `locks`.
            _thread.start_new_thread(_later, (min(delay, _thread.TIMEOUT_MAX), self._timer, self._waiter.wake))
        except BaseException:  # Ctrl-C came before the thread that would end the wait was started
            self._waiter.wake()
            raise
        return False

    def _wait_for_more(self) -> None:
        """Watch the empty pipe, until `_go_on` is called."""
        try:
            self._waiter.reset()
            self._empty = True
            with suppress(FileExistsError):  # an exception had come before `_empty` was reset
                self._waiter.watch(self._file.fileno())
        except BaseException:  # Ctrl-C came before the pipe was watched
            self._waiter.wake()
            raise

    def _go_on(self) -> None:
        with suppress(FileNotFoundError):
            self._waiter.unwatch(self._file.fileno())
        self._waiter.wake()
        self._empty = False

    def _note_verdicts(self, datagram: bytes, verdicts: dict[int, GivenVerdict], waiting: dict[int, None]) -> None:
        bits = self.bits
        for _, message in netlink.split_messages(datagram):
            kind = netlink.read_length_and_type(message)[1]
            if kind not in _records.VERDICTS:
                continue
            values = nfnetlink.parse_attributes(message[nfnetlink.BODY :], nfqnl.NFQA_TABLE, nfnetlink.BODY)
            header = values.get(NFQA.VERDICT_HDR)
            if header is None or header.verdict & 0xFF not in nfqnl.VERDICTS:  # the kernel refused it
                continue
            given = GivenVerdict.from_word(header.verdict, values, bits)
            if kind == nfqnl.MSG_VERDICT:
                covered = [header.packet_id] if header.packet_id in waiting else []
            else:
                covered = nfqnl.covered_by_batch(waiting, header.packet_id)
            for number in covered:
                verdicts[number] = given
                del waiting[number]


def _later(seconds: float, cancelled: SimpleQueue[None], function: Callable[[], object]) -> None:
    try:
        cancelled.get(timeout=seconds)
    except Empty:
        function()


class ReplayOptions(TypedDict, total=False):
    """The options of `replay` for packets with a link layer, for functions that pass them on."""

    hook: Hook | str | None
    local: str | Iterable[str]
    family: str


def replay(
    path: str | os.PathLike[str],
    *,
    realtime: bool = False,
    keep_verdicts: bool = True,
    **options: Unpack[ReplayOptions],
) -> Replay:
    """Return a transport for a `Queue` or a `Log` that delivers the contents of a recording; see `Replay`.

    path: the file, pcap or pcapng, compressed or not.
    realtime: whether packets are delivered at the pace of the recording.
    keep_verdicts: whether to keep all verdicts, recorded and given, and all packets that were injected.
    options: ``hook``, ``local`` and ``family``, for packets of captures that have a link layer.

    Raises OSError if the file cannot be opened, ArgumentError for invalid options.
    """
    return Replay(path, realtime=realtime, keep_verdicts=keep_verdicts, **options)
