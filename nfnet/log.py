"""`Log`: receives the packets that firewall rules log (NFLOG)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import partial
from operator import length_hint
from typing import Literal, TypedDict, TypeVar

from ._annotated import Annotated
from ._arguments import check, check_choice, check_result, shown
from ._caching import lru_cache
from ._construct import Int16ub
from ._core.binding import Binding
from ._core.flags import Request, flags_of, optional_requests
from ._core.message import FAMILY, Message
from ._core.reader import Reader
from ._io.netlink_socket import MAX_DATAGRAM
from ._io.transport import Transport
from ._printable import printable
from .errors import ArgumentError, DecodeError
from .netns import Netns
from .protocol import netlink, nfulnl
from .protocol.layout import compile_struct
from .protocol.nfnetlink import BODY, ArpHook, Family, Hook, NetdevHook
from .protocol.nfqnl import Command, CopyMode
from .protocol.nfulnl import (
    MAX_BUFFER_SIZE,
    MAX_TIMEOUT,
    MIN_BUFFER_SIZE,
    MSG_PACKET,
    NFULA,
    NFULA_TABLE,
    LogFlag,
)
from .stats import LogCounters, LogStats, LogStatus, find_log

_HOOKS: dict[int, type[Hook | ArpHook | NetdevHook]] = {Family.ARP: ArpHook, Family.NETDEV: NetdevHook}
_ETHERNET_HEADER = 14
# The attributes that differ from packet to packet, in the kernel's order.
_OF_ONE_PACKET = (NFULA.TIMESTAMP, NFULA.SEQ, NFULA.SEQ_GLOBAL, NFULA.PAYLOAD)

_read_header = compile_struct(nfulnl.packet_hdr).unpack_from
_read_u16 = compile_struct(Int16ub).unpack_from
_read_length_and_type = netlink.read_length_and_type

Self = TypeVar("Self", bound="LogMessage")


@lru_cache(256)
def _decode_prefix(data: bytes) -> str:
    return data.rstrip(b"\0").decode("utf-8", "surrogateescape")


class LogMessage(Message, kind=NFULA, layouts=nfulnl.layouts, table=NFULA_TABLE):
    """A packet that a rule logged.

    An attribute is decoded from the message when it is read. Numbers are in host byte order; names in capitals are the
    kernel's, without the prefix ``NFULA_``. Reading an attribute raises DecodeError if the message is malformed.

    If only the beginning of a packet was logged, no attribute contains its full length; the packet's own header does.
    Packets on their way out can have unfinished checksums.
    """

    __slots__ = ()

    def __copy__(self: Self) -> Self:
        return self  # it never changes

    def __deepcopy__(self: Self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Callable[..., LogMessage], tuple[bytes, Callable[[int], str | None]]]:
        """Support `pickle`; the pickled message keeps the current names of its interfaces."""
        indexes = {self.indev, self.outdev, self.physindev, self.physoutdev} - {None}
        return type(self).from_bytes, (self.raw, {index: self._name(index) for index in indexes}.get)

    def _words(self) -> Iterator[str]:
        if self.prefix:
            yield printable(self.prefix.rstrip(" :")) + ":"
        if self.suppressed:
            yield f"{self.suppressed:,} more like this:"
        yield from super()._words()

    @property
    def prefix(self) -> str:
        """The prefix that the rule sets (PREFIX); bytes that are not UTF-8 become surrogates (surrogateescape)."""
        span = self._find(NFULA.PREFIX)
        return "" if span is None else _decode_prefix(self.raw[span])

    @property
    def suppressed(self) -> int:
        """How many messages this one represents, itself included, if a collector has a limit; else 0.

        The collector stores the last of the messages that it left out, with their number; see
        `nfnet.collect.Collector`.
        """
        raw = self.raw
        return raw.suppressed if isinstance(raw, Annotated) else 0

    @property
    def hook(self) -> Hook | ArpHook | NetdevHook:
        """The hook of the rule (PACKET_HDR); the families ARP and NETDEV have their own hooks."""
        return _HOOKS.get(self.raw[FAMILY], Hook)(self._header()[1])

    @property
    def hw_protocol(self) -> int:
        """EtherType (PACKET_HDR): 0x0800 for IPv4, 0x86DD for IPv6; after a VLAN tag, that of the inner packet."""
        return self._header()[0]

    def _link_layer_size(self) -> int:
        family = self.raw[FAMILY]
        if family == Family.NETDEV and self.hook == NetdevHook.EGRESS:
            return len(self.l2header or b"")
        if family == Family.ARP and self.hook == ArpHook.OUT:
            return _ETHERNET_HEADER  # ARP has no L2HDR
        return 0

    def _header(self) -> tuple[int, int]:
        span = self._find(NFULA.PACKET_HDR)
        if span is None:
            raise DecodeError("log message without NFULA_PACKET_HDR", len(self.raw))
        header: tuple[int, int] = _read_header(self.raw, span.start)
        return header

    @property
    def hwtype(self) -> int | None:
        """Link-layer type of the incoming interface (HWTYPE, ``ARPHRD_*``): 1 Ethernet, 772 loopback, 65534 none."""
        span = self._find(NFULA.HWTYPE)
        return None if span is None else int(_read_u16(self.raw, span.start)[0])

    @property
    def hwheader(self) -> bytes | None:
        """Link-layer header of an incoming packet (HWHEADER), without VLAN tag; can be empty; None on the way out."""
        return self._bytes(NFULA.HWHEADER)

    @property
    def metadata(self) -> bytes:
        """The family, and all attributes but TIMESTAMP, SEQ, SEQ_GLOBAL and PAYLOAD, as the kernel sent them.

        It is equal for messages that differ only in those four, so a program can use it as the key of a cache.
        """
        raw = self.raw
        layout = self._layout
        spans = (self._layouts.find(raw) if layout is None else layout).spans
        place, pieces = FAMILY, b""
        for number in _OF_ONE_PACKET:
            span = spans.get(number)
            if span is not None:
                if span.start < place:  # this kernel uses another order
                    return raw
                pieces += raw[place : span.start - netlink.ATTRIBUTE_HEADER_SIZE]
                place = span.stop or len(raw)
                if place < 0:  # the last one
                    return pieces
        return pieces + raw[place:]

    @property
    def seq(self) -> int | None:
        """Number in the group (SEQ), from 0, 32 bits; needs ``Log(sequence=True)``. A gap means lost messages."""
        return self._number(NFULA.SEQ)

    @property
    def seq_global(self) -> int | None:
        """Number among all groups of the namespace (SEQ_GLOBAL), from 1; needs ``Log(global_sequence=True)``."""
        return self._number(NFULA.SEQ_GLOBAL)


Handler = Callable[[LogMessage], None]
"""A plain function that returns None, so that type checkers reject async functions, which return a coroutine."""


class LogOptions(TypedDict, total=False):
    """All options of `Log`, for functions that pass them on: ``**options: Unpack[nfnet.LogOptions]``."""

    copy_range: int
    copy_mode: CopyMode | int
    timeout: float | None
    threshold: int | None
    buffer_size: int | None
    rcvbuf: int | None
    sequence: bool
    global_sequence: bool
    conntrack: bool
    on_overrun: Literal["count", "raise", "ignore"]
    netns: Netns | None
    transport: Transport | None
    record: str | os.PathLike[str] | None


class LogBinding(Binding[LogMessage, LogStatus]):
    """The state of a log group from `open` to `close`. With each new binding sequence numbers begin at 0 again."""

    drain = 16  # of up to 256 KiB each
    what = "messages"

    def __init__(
        self,
        group: int,
        transport: Transport,
        on_overrun: str,
        find_status: Callable[[], LogStatus | None],
        *,
        sequence: bool,
    ) -> None:
        super().__init__(f"log group {group}", transport, on_overrun, find_status)
        self._sequence = sequence
        self._count = 0
        # The kernel's sequence numbers begin at 0; a recording can begin with any number.
        self._next_seq: int | None = 0 if transport.trusted else None

    def make_ready(self) -> None:
        new = list(copy(self.ready))  # a copy: `ready` must not change before the statement at the end
        before = len(new)
        problem: DecodeError | None = None
        for datagram in self.received:
            start = len(new)
            try:
                self._split(datagram, new)
            except DecodeError as error:  # messages before it in the datagram, and later datagrams, are good
                self.malformed += 1
                problem = problem or error
            if isinstance(datagram, Annotated):
                for message in new[start:]:
                    message.raw = datagram.part(message.raw)
            if self._sequence and len(new) > start:
                try:
                    self._check_sequence(new, start)
                except DecodeError as error:
                    self.malformed += 1
                    problem = problem or error
        received: list[bytes] = []
        iterator, count = iter(new), self._count + len(new) - before
        self.received, self.ready, self._count = received, iterator, count  # one statement
        if problem is not None:
            raise problem

    def _split(self, datagram: bytes, into: list[LogMessage]) -> None:
        """Append the log messages in a datagram to ``into``, and skip other messages of netlink itself."""
        offset, end, origin = 0, len(datagram), self.origin
        while offset < end:
            if end - offset < netlink.HEADER_SIZE:
                raise DecodeError(f"{end - offset} bytes are too few for a netlink header", offset)
            length, kind = _read_length_and_type(datagram, offset)
            if not netlink.HEADER_SIZE <= length <= end - offset:
                raise DecodeError(f"message of {length} bytes where {end - offset} are left", offset)
            # Several messages end with NLMSG_DONE, a single one does not; late acknowledgements can arrive, too.
            if kind == MSG_PACKET:
                if length < BODY:
                    raise DecodeError(f"log message of {length} bytes has no room for its header", offset)
                message = LogMessage()  # the same as `from_bytes`, without the call
                message.raw = datagram[offset : offset + length]
                message._layout = None
                message._origin = origin
                into.append(message)
            elif kind >= netlink.NLMSG_MIN_TYPE:
                raise DecodeError(f"message of type {kind:#x} where a log message was expected", offset)
            offset += (length + 3) & ~3

    def _check_sequence(self, messages: list[LogMessage], start: int) -> None:
        """Count gaps before and in the messages of one datagram."""
        first, last, count = messages[start].seq, messages[-1].seq, len(messages) - start
        if first is None or last is None:
            return
        expected = first if self._next_seq is None else self._next_seq
        lost = (last + 1 - expected - count) & 0xFFFFFFFF
        self._next_seq = (last + 1) & 0xFFFFFFFF
        # The kernel's numbers only grow. In a file with several consecutive recordings they can decrease.
        if lost > 0 and (lost < 0x80000000 or self.transport.trusted):
            self.count_lost(lost)

    def taken(self) -> int:
        return self._count - length_hint(self.ready)

    def counters(self) -> LogCounters:
        """Return the counts so far."""
        return LogCounters(
            received=self._count,
            lost=self.loss.total if self._sequence else None,
            overruns=self.overruns,
            malformed=self.malformed,
        )


class Log(Reader[LogBinding, LogMessage]):
    """Receives the packets that rules log to group ``group``, one message at a time.

    A rule logs packets to the group; see `nfnet.rules.log`. Entering the context, or `open`, binds the group; leaving
    it, or `close`, unbinds it. Logging never affects the packet itself.

    group: number of the group, 0 to 65535.
    copy_range: how many bytes of each packet to copy, 1 to 65,535 (the default); the kernel copies at most 65,531.
    copy_mode: PACKET (the default), or META for no payload at all.
    timeout: how long the kernel collects messages before it sends them, in seconds, in steps of 0.01 up to
        42,949.67; the kernel's default is 1. With 0 it waits for its next clock tick.
    threshold: how many messages the kernel collects before it sends them, 1 to 2^32-1; the kernel's default is 100.
        With 1 it sends every message at once. A rule can lower the threshold.
    buffer_size: how many bytes the kernel collects, 4,096 to 131,072; the kernel's default is a little less than 4,096.
        The kernel rounds the size up, so datagrams can be twice as large; they are read completely.
    rcvbuf: size of the socket's receive buffer in bytes, as the kernel counts (default: 8 MiB). Outside the
        initial user namespace net.core.rmem_max limits the size, and nfnet logs a warning. The attribute ``rcvbuf``
        contains the size that the kernel granted.
    sequence, global_sequence: request sequence numbers, within the group and among all groups of the namespace. With
        ``sequence`` lost messages are counted.
    conntrack: request connection tracking entries.
    on_overrun: what to do when messages were lost: "count" them (needs ``sequence``) and log warnings at intervals;
        "raise" OverrunError from the loop; or "ignore": count them without a warning.
    netns: the network namespace to work in: a name in /run/netns, a path, an open file, or a file descriptor (an
        int). A file must stay open as long as the log is used.
    transport: the source of messages, instead of the kernel; see `nfnet.replay`.
    record: the file to which nfnet writes all datagrams between the kernel and this program; see `nfnet.record`.

    Raises ArgumentError for invalid arguments, and for values that the kernel would silently change. One thread at a
    time may read the log. A forked child cannot use the log.
    """

    def __init__(
        self,
        group: int,
        *,
        copy_range: int = 0xFFFF,
        copy_mode: CopyMode | int = CopyMode.PACKET,
        timeout: float | None = None,
        threshold: int | None = None,
        buffer_size: int | None = None,
        rcvbuf: int | None = None,
        sequence: bool = False,
        global_sequence: bool = False,
        conntrack: bool = False,
        on_overrun: Literal["count", "raise", "ignore"] = "count",
        netns: Netns | None = None,
        transport: Transport | None = None,
        record: str | os.PathLike[str] | None = None,
    ) -> None:
        self.group: int = check("log group", group, 0, 0xFFFF)
        self._copy_range = check("copy_range", copy_range, 1, 0xFFFF)
        self._copy_mode = CopyMode(check("copy_mode", copy_mode, CopyMode.NONE, CopyMode.PACKET))
        self._timeout = None if timeout is None else _centiseconds(timeout)
        self._threshold = None if threshold is None else check("threshold", threshold, 1, 0xFFFFFFFF)
        self._buffer_size = (
            None if buffer_size is None else check("buffer_size", buffer_size, MIN_BUFFER_SIZE, MAX_BUFFER_SIZE)
        )
        check_choice("on_overrun", on_overrun, ("count", "raise", "ignore"))
        self._on_overrun = on_overrun
        wanted = {"sequence": sequence, "global_sequence": global_sequence, "conntrack": conntrack}
        self._flags = LogFlag(flags_of(nfulnl.FLAG_OPTIONS, wanted))
        super().__init__(
            "log group",
            self.group,
            rcvbuf=None if rcvbuf is None else check("rcvbuf", rcvbuf, 1, 0x7FFFFFFF),
            overruns=on_overrun == "raise",
            datagram=MAX_DATAGRAM,
            netns=netns,
            transport=transport,
            record=record,
        )

    _module = "nfnetlink_log"
    _remedy = "use AsyncLog, whose run awaits it"

    def _make_binding(self, transport: Transport) -> LogBinding:
        find_status = partial(find_log, self.group, self._netns)
        return LogBinding(self.group, transport, self._on_overrun, find_status, sequence=LogFlag.SEQ in self._flags)

    def _bind_request(self, seq: int) -> bytes:
        return nfulnl.config(
            self.group,
            command=Command.BIND,
            copy_range=self._copy_range,
            copy_mode=self._copy_mode,
            buffer_size=self._buffer_size,
            timeout=self._timeout,
            threshold=self._threshold,
            flags=self._flags,
            seq=seq,
            ack=True,
        )

    def _unbind_request(self) -> bytes:
        return nfulnl.config(self.group, command=Command.UNBIND)

    def _flag_requests(self) -> Iterator[tuple[str, Request]]:
        return optional_requests(nfulnl.FLAG_OPTIONS, self._flags, partial(nfulnl.config, self.group))

    def _status(self) -> LogStatus | None:
        return find_log(self.group, self._netns)

    def run(self, handler: Handler) -> None:
        """Call ``handler(message)`` for each message until `stop` or `close`, or until the handler raises.

        After an exception `run` can be called again and continues with the next message. The handler is a plain
        function that returns nothing; for async functions use `AsyncLog`.

        Raises TypeError for an async handler, OverrunError (``on_overrun="raise"``), DecodeError for a datagram that is
        not a log message (those after it are still delivered), BusyReadingError, ClosedError, KernelError.
        """
        self._run(handler)

    def process(self, handler: Handler) -> int:
        """Call the handler for each message that waits, without blocking, and return the number of these messages.

        For any event loop: call it when `fileno` is readable, and once after opening. Raises the errors of `run`.
        """
        return self._process(handler)

    def _hand_out(
        self, binding: LogBinding, portion: Iterable[LogMessage], handler: Callable[[LogMessage], object]
    ) -> None:
        result: object = None
        for message in portion:
            result = handler(message)
            if self._stopping:
                break
        check_result(result, self._remedy)  # once for each portion, which costs nothing; the first is one message

    @property
    def counters(self) -> LogCounters:
        """The counts since the log was opened; after `close`, those of the last time it was open."""
        return self._bound_or_last().counters()

    def stats(self) -> LogStats:
        """Return the counters, and the kernel's status of this group and its socket; see `Queue.stats`."""
        return LogStats(self.counters, *self._kernel_stats())


def _centiseconds(timeout: float) -> int:
    """Return a timeout in the kernel's unit, 0.01 s. Raises ArgumentError if the kernel could not hold it."""
    if not 0 <= timeout <= MAX_TIMEOUT / 100:  # also False for NaN
        raise ArgumentError(f"timeout is {shown(timeout)} and must be in 0..{MAX_TIMEOUT / 100} seconds")
    return round(timeout * 100)
