"""For tests of programs that decide or read packets: no kernel, no privileges.

    import nfnet.testing

    def test_secrets_are_dropped(nfnet_queue):
        packet_id = nfnet_queue.feed(nfnet.testing.udp(b"a secret"))
        nfnet_queue.run(handle)
        assert nfnet_queue.verdicts[packet_id].verdict == nfnet.Verdict.DROP

The fixtures come with the package, as a plugin of pytest that loads nothing until a test asks for one: `nfnet_queue` is
a `FedQueue`, and `nfnet_replay` opens a recording or another capture, see `open_replay`. `from_pcap` has the packets of
a capture, to be fed.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, Protocol, overload

from . import inet
from ._annotated import Annotated
from ._arguments import wrong_type
from ._injection import divert, restore
from ._io.locks import RLock
from ._io.system import Event
from ._io.transport import Transport
from ._processes import Process
from ._typing import Unpack
from .captures._replay import GivenVerdict, Replay, ReplayOptions
from .errors import ArgumentError, CaptureError, ClosedError, kernel_error
from .log import Log, LogMessage
from .packet import Packet
from .protocol import netlink, nfnetlink, nfqnl, nfulnl
from .protocol.layout import build_attribute
from .protocol.nfnetlink import ETHERTYPES, Hook, family_of
from .protocol.nfqnl import NFQA, NFQA_CFG, VERDICTS, Command
from .queue import Handler, Queue, WorkerOptions

# --- packets from plain bytes


def udp(
    data: bytes = b"",
    *,
    source: str = "192.0.2.1",
    destination: str = "192.0.2.2",
    source_port: int = 40000,
    destination_port: int = 9,
) -> bytes:
    """A UDP packet, IPv4 or IPv6 as the addresses say, with right lengths and checksums."""
    return inet.rewrite(
        _blank(source, socket.IPPROTO_UDP, bytes(8)),
        data=data,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
    )


def tcp(
    data: bytes = b"",
    *,
    source: str = "192.0.2.1",
    destination: str = "192.0.2.2",
    source_port: int = 40000,
    destination_port: int = 80,
    flags: int = 0x18,
    seq: int = 1,
    ack: int = 1,
) -> bytes:
    """A TCP packet, IPv4 or IPv6 as the addresses say, with right lengths and checksums; ``flags`` are PSH and ACK."""
    return inet.rewrite(
        _blank(source, socket.IPPROTO_TCP, bytes(12) + b"\x50" + bytes(7)),
        data=data,
        source=source,
        destination=destination,
        source_port=source_port,
        destination_port=destination_port,
        flags=flags,
        seq=seq,
        ack=ack,
        window=0xFFFF,
    )


def _blank(source: str, protocol: int, header: bytes) -> bytes:
    """Return a packet of the family of an address, to be filled in."""
    if ":" in str(source):
        return struct.pack("!IHBB32x", 6 << 28, len(header), protocol, 64) + header
    return struct.pack("!BBHHHBBH8x", 0x45, 0, 20 + len(header), 1, 0, 64, protocol, 0) + header


# --- netlink messages as the kernel sends them, built by the schemas


def packet_message(
    packet_id: int,
    payload: bytes | None = b"E" + bytes(19),
    *,
    num: int = 1,
    family: int | None = None,
    hw_protocol: int | None = None,
    hook: int = Hook.OUTPUT,
    process: Process | None = None,
    time_ns: int | None = None,
    **attributes: Any,
) -> bytes:
    """A packet of queue ``num``; keywords are names of NFQA members (``MARK=7``), ``payload`` None is META.

    ``hw_protocol`` is the EtherType, by which a packet of the bridge family is IP or something else; if it is not given
    the first byte of the payload decides. ``process`` is what `Packet.process` will be, whatever runs on this machine.
    ``time_ns``, nanoseconds since 1970, is what `Packet.timestamp_ns` will be, unless there is a TIMESTAMP.
    """
    payload = None if payload is None else bytes(memoryview(payload))
    if family is None:
        family = family_of(payload or b"")
    protocol = _ethertype(family, payload) if hw_protocol is None else hw_protocol
    values = {"PACKET_HDR": {"packet_id": packet_id, "hw_protocol": protocol, "hook": hook}, **attributes}
    data = _attributes(nfqnl.NFQA_TABLE, values)
    if payload is not None:  # the kernel does not pad the last one
        data += build_attribute(NFQA.PAYLOAD, payload)[: 4 + len(payload)]
    return _fed(nfnetlink.build_message(nfqnl.MSG_PACKET, num, data, family=family), process, time_ns)


def _fed(message: bytes, process: Process | None, time_ns: int | None = None) -> bytes:
    if process is None and time_ns is None:
        return message
    if process is not None and not isinstance(process, Process):
        raise wrong_type("process", process, "an nfnet.Process")
    return Annotated(message, process=process, time_ns=time_ns)


def _ethertype(family: int, payload: bytes | None) -> int:
    if family not in ETHERTYPES and (not payload or payload[0] >> 4 not in (4, 6)):
        return 0
    return ETHERTYPES[family if family in ETHERTYPES else family_of(payload or b"")]


def _attributes(table: nfnetlink.Table, values: dict[str, Any]) -> bytes:
    rows = {row.name.partition("_")[2]: row for row in table.values()}
    for name in values:
        if name not in rows:
            raise ArgumentError(f"no attribute is called {name!r}; there are {', '.join(sorted(rows))}")
    return nfnetlink.build_attributes((rows[name], value) for name, value in values.items())


def log_message(
    payload: bytes | None = b"E" + bytes(19),
    *,
    group: int = 5,
    prefix: str = "test",
    family: int | None = None,
    hw_protocol: int | None = None,
    hook: int = Hook.INPUT,
    process: Process | None = None,
    **attributes: Any,
) -> bytes:
    """A logged packet of ``group``; keywords are names of NFULA members, ``payload`` None is META.

    ``process`` is what `LogMessage.process` will be.
    """
    if family is None:
        family = family_of(payload or b"")
    text = prefix.encode("utf-8", "surrogateescape") + b"\0"
    protocol = _ethertype(family, payload) if hw_protocol is None else hw_protocol
    values = {"PACKET_HDR": {"hw_protocol": protocol, "hook": hook}, "PREFIX": text, **attributes}
    if payload is not None:
        values["PAYLOAD"] = payload
    data = _attributes(nfulnl.NFULA_TABLE, values)
    return _fed(nfnetlink.build_message(nfulnl.MSG_PACKET, group, data, family=family), process)


def error_message(number: int, request: bytes) -> bytes:
    """The kernel's answer to a request: errno ``number``, 0 for success."""
    header = netlink.header.parse(request)
    body = netlink.nlmsgerr.build({"error": -number, "request": header})
    return netlink.build_message(netlink.NLMSG_ERROR, netlink.Flag.CAPPED, header.seq, body)


# --- the kernel


class FakeKernel(Transport):
    """A transport whose other end is a model of the kernel's queue.

    num: the number of the queue.
    ends: whether the loop ends when all that was fed has been read. If not, it waits for more.

    It understands requests by the construct schemas alone, and applies them as net/netfilter/nfnetlink_queue.c does.
    ``queued`` are the ids of packets without a verdict, ``judged`` what was decided, in order: id, verdict word, and
    changes by NFQA number, and ``injected`` what was to be sent; there is room for any number.
    """

    trusted = True
    simulated = True

    def __init__(self, *, num: int = 1, ends: bool = False) -> None:
        self.queued: dict[int, None] = {}
        self.judged: list[tuple[int, int, dict[int, Any]]] = []  # id, verdict word, changes; in the kernel's order
        self.sent: list[bytes] = []
        self.config: list[dict[int, Any]] = []
        self.interfaces: dict[int, str] = {}
        self.closed = False
        self.refuse_config = 0
        self.refuse_send = 0
        self.refuse_inject = 0
        self.injected: list[bytes] = []
        self._num = num
        self._ends = ends
        self._waiting: list[bytes] = []
        self._next_id = 1
        self._seq = 0
        self._reading = RLock()
        self._readable = Event()

    def feed(self, count: int = 1, **attributes: Any) -> list[int]:
        """Queue packets; returns their ids. Keywords as for `packet_message`."""
        ids = [(self._next_id + index) & 0xFFFFFFFF for index in range(count)]
        for packet_id in ids:
            self.queued[packet_id] = None
            self.deliver(packet_message(packet_id, num=self._num, **attributes))
        self._next_id = (self._next_id + count) & 0xFFFFFFFF
        return ids

    def skip(self, count: int) -> None:
        """Skip ids, as for packets that did not fit into the receive buffer."""
        self._next_id = (self._next_id + count) & 0xFFFFFFFF

    def deliver(self, datagram: bytes) -> None:
        """Put a datagram into the receive buffer of the program."""
        self._waiting.append(datagram)
        self._readable.set()

    # --- the transport

    def receive(self, into: list[bytes], limit: int) -> bool:
        with self._reading:  # `close` in another thread waits
            if self.closed:
                raise ClosedError("the model of the kernel is closed")
            # Another thread may be delivering: what it appends in between must neither be lost nor go unnoticed.
            self._readable.clear()
            taken = self._waiting[:limit]
            del self._waiting[: len(taken)]
            into.extend(taken)
            if self._waiting:
                self._readable.set()
            return bool(self._waiting) or not self._ends

    def send(self, datagram: bytes) -> None:
        if self.refuse_send:
            raise kernel_error("sending", self.refuse_send)
        self.sent.append(datagram)
        for _, message in netlink.split_messages(datagram):
            header = netlink.header.parse(message)
            if header.type >= netlink.NLMSG_MIN_TYPE:
                self._execute(message)
            if header.flags & netlink.Flag.ACK and header.seq != self._seq:  # `request` takes its own answer
                self.deliver(error_message(0, message))

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._seq += 1
        message = build(self._seq)
        if self.refuse_config:
            raise kernel_error(operation, self.refuse_config)
        self.send(message)

    def fileno(self) -> int:
        return self._readable.fileno()

    def interface_name(self, index: int) -> str | None:
        return self.interfaces.get(index)

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        if self.closed:
            raise ClosedError("the model of the kernel is closed")
        if self.refuse_inject:
            raise kernel_error("injecting a packet", self.refuse_inject)
        self.injected.append(packet)

    def close(self) -> None:
        with self._reading:
            closed, self.closed = self.closed, True
            if not closed:
                self._readable.close()

    # --- the kernel

    def _execute(self, message: bytes) -> None:
        header = netlink.header.parse(message)
        assert header.flags & netlink.Flag.REQUEST
        values = nfnetlink.parse_attributes(message[20:], nfqnl.TABLES[header.type])
        if header.type == nfqnl.MSG_CONFIG:
            command = values.get(NFQA_CFG.CMD)
            if command is not None and command.command in (Command.PF_BIND, Command.PF_UNBIND):
                return  # without effect, for whatever queue
        assert nfnetlink.nfgenmsg.parse(message[16:20]).resource == self._num
        if header.type == nfqnl.MSG_CONFIG:
            self.config.append(values)
            return
        assert header.seq == 0
        verdict = values.pop(NFQA.VERDICT_HDR)
        word = verdict.verdict
        if word & 0xFF not in VERDICTS:
            self.deliver(error_message(errno.EINVAL, message))
            return
        if header.type == nfqnl.MSG_VERDICT_BATCH:
            covered = nfqnl.covered_by_batch(self.queued, verdict.packet_id)
        else:
            covered = [verdict.packet_id] if verdict.packet_id in self.queued else []
        if not covered:
            self.deliver(error_message(errno.ENOENT, message))
        for packet_id in covered:  # nothing that a signal could interrupt between these two
            del self.queued[packet_id]
            self.judged.append((packet_id, word, values))


class FedQueue:
    """A queue that a test feeds. It is open until `close`.

    num: the number of the queue.
    options: as for `nfnet.Queue`.
    """

    def __init__(self, num: int = 1, **options: Unpack[WorkerOptions]) -> None:
        self.kernel = FakeKernel(num=num, ends=True)
        self.queue = Queue(num, transport=self.kernel, **options)
        self.queue.open()
        divert(self.kernel)

    def feed(self, payload: bytes | Packet | LogMessage = b"E" + bytes(19), **attributes: Any) -> int:
        """Queue a packet, and return its id.

        payload: its bytes, from the network header on; or a packet or log message, of `from_pcap` for instance, which
            is queued with all that is known of it.

        Keywords are ``mark``, ``indev``, ``outdev``, ``physindev``, ``physoutdev`` (interface indexes, or names that
        are given one), ``uid``, ``gid``, ``priority``, ``hook``, ``family``, ``process`` (an `nfnet.Process`, which
        `Packet.process` will be), ``time_ns``; or names of NFQA members. They go before what a packet says of itself.
        """
        values: dict[str, Any] = {}
        if isinstance(payload, (Packet, LogMessage)):
            values, payload = _described(payload), payload.payload
        values.update((_NAMES.get(name, name), value) for name, value in attributes.items())
        values = {name: self._value(value) for name, value in values.items()}
        return self.kernel.feed(1, payload=payload, **values)[0]

    def _value(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        known = {name: index for index, name in self.kernel.interfaces.items()}
        index = known.get(value, len(known) + 1)
        self.kernel.interfaces[index] = value
        return index

    def run(self, handler: Handler) -> None:
        """Let the handler decide everything that was fed."""
        self.queue.run(handler)

    @property
    def verdicts(self) -> dict[int, GivenVerdict]:
        """What was decided, by packet id."""
        self.queue.flush()
        bits = self.kernel.bits
        return {
            packet_id: GivenVerdict.from_word(word, changes, bits) for packet_id, word, changes in self.kernel.judged
        }

    @property
    def injected(self) -> list[bytes]:
        """The packets of `Packet.answer`, `Packet.reset`, `Packet.reject` and `nfnet.inject`, from the IP header on.

        None is sent: from opening to closing, `nfnet.inject` of the whole process ends here.
        """
        return self.kernel.injected

    def close(self) -> None:
        """Close the queue."""
        restore(self.kernel)
        self.queue.close()


_NAMES = {
    "mark": "MARK",
    "priority": "PRIORITY",
    "indev": "IFINDEX_INDEV",
    "outdev": "IFINDEX_OUTDEV",
    "physindev": "IFINDEX_PHYSINDEV",
    "physoutdev": "IFINDEX_PHYSOUTDEV",
    "uid": "UID",
    "gid": "GID",
}


def _described(message: Packet | LogMessage) -> dict[str, Any]:
    """What a message says of its packet, as keywords of `FakeKernel.feed`."""
    values = {kind.name: value for kind, value in message.attributes.items() if kind.name in NFQA.__members__}
    for name in ("PACKET_HDR", "PAYLOAD"):
        values.pop(name, None)
    for name, attribute in _NAMES.items():
        if attribute in values and name.endswith("dev") and (known := getattr(message, f"{name}_name")) is not None:
            values[attribute] = known
    values |= {"hook": message.hook, "family": message.family, "hw_protocol": message.hw_protocol}
    return {**values, "time_ns": message.timestamp_ns}


class OpenReplay(Protocol):
    """The signature of `open_replay`, which is also that of what the fixture `nfnet_replay` gives."""

    @overload
    def __call__(self, path: str | os.PathLike[str], *, num: int, **options: Unpack[ReplayOptions]) -> Queue: ...

    @overload
    def __call__(self, path: str | os.PathLike[str], *, group: int, **options: Unpack[ReplayOptions]) -> Log: ...

    @overload
    def __call__(self, path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> Queue | Log: ...


@overload
def open_replay(path: str | os.PathLike[str], *, num: int, **options: Unpack[ReplayOptions]) -> Queue: ...


@overload
def open_replay(path: str | os.PathLike[str], *, group: int, **options: Unpack[ReplayOptions]) -> Log: ...


@overload
def open_replay(path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> Queue | Log: ...


def open_replay(
    path: str | os.PathLike[str],
    *,
    num: int | None = None,
    group: int | None = None,
    **options: Unpack[ReplayOptions],
) -> Queue | Log:
    """Queue ``num`` or log group ``group`` of a capture, open; the first of the file if neither is given.

    Its transport is a `Replay`, whose ``options`` are ``hook``, ``local`` and ``family``. The first of a file without
    the kernel's messages, of Ethernet for instance, is queue 0.

    Raises CaptureError if there is none, or a damaged record before it.
    """
    replay = Replay(path, **options)
    try:
        if num is None and group is None:
            num, group = replay.first()
        if num is None and group is None:
            raise _nothing_in(replay)
        reader: Queue | Log = Log(group, transport=replay) if group is not None else Queue(num or 0, transport=replay)
        reader.open()
    except BaseException:
        replay.close()
        raise
    return reader


def from_pcap(path: str | os.PathLike[str], **options: Unpack[ReplayOptions]) -> list[Packet]:
    """The packets in a capture, to be looked at, and to be fed:

        for packet in from_pcap("web.pcap", local="192.0.2.0/24"):
            nfnet_queue.feed(packet)

    path: any file that `nfnet.replay` takes. Of a recording of several queues or logs it is the first one. What a log
        recorded becomes packets with the same attributes, as far as those of a queue have them.
    options: ``hook``, ``local`` and ``family``, as for `nfnet.replay`.

    All of the file is read at once; for a large one use `nfnet.replay`, or its fixture. Nobody waits for verdicts on
    these packets. Raises OSError, and CaptureError if there are no packets in the file, or anything in it is damaged.
    """
    replay = Replay(path, keep_verdicts=False, **options)
    found: list[Packet] = []

    def keep(packet: Packet) -> None:
        found.append(Packet.from_bytes(packet.raw))
        packet.accept()

    def convert(message: LogMessage) -> None:
        found.append(Packet.from_bytes(packet_message(len(found) + 1, message.payload, **_described(message))))

    try:
        num, group = replay.first()
        if num is None and group is None:
            raise _nothing_in(replay)
        if group is not None:
            with Log(group, transport=replay) as log:
                log.run(convert)
        else:
            with Queue(num or 0, transport=replay) as queue:
                queue.run(keep)
    finally:
        replay.close()
    return found


def _nothing_in(replay: Replay) -> CaptureError:
    left_out = replay.left_out()
    return CaptureError("no packets of a queue and no messages of a log in it" + (left_out and f": {left_out}"), 0)
