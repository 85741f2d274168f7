"""Queued packets, and the verdicts on them."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypedDict, TypeVar, cast

from . import inet
from ._arguments import check, check_flag, wrong_type
from ._core.batching import ACCEPT, DROP, Decision, changing_decision, decision
from ._core.message import FAMILY, IP_VERSION_OF, Message, Vlan
from ._io.raw_socket import INJECTED_MARK
from ._io.system import KERNEL, SWITCHES_ANYWHERE
from ._typing import Unpack
from .errors import AlreadyDecidedError, ArgumentError, ClosedError
from .inet import _answers, _scapy
from .protocol import nfqnl
from .protocol.conntrack import CTA
from .protocol.layout import compile_struct
from .protocol.markbits import Fate, Support
from .protocol.nfnetlink import Family, Hook, resource
from .protocol.nfqnl import (
    MAX_PAYLOAD,
    MIN_PAYLOAD,
    NFQA,
    NFQA_TABLE,
    NFQA_VLAN,
    PACKET_ID,
    QUEUE_BYPASS,
    VERDICTS,
    SkbInfo,
    Verdict,
)

_CAP_LEN, _PAYLOAD, _SKB_INFO = int(NFQA.CAP_LEN), int(NFQA.PAYLOAD), int(NFQA.SKB_INFO)
_GSO = int(SkbInfo.GSO)
_LABELS_SIZE = 16
_MARK_SIZE = 8  # NFQA_MARK, with its header
_OUTGOING = (Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING)  # after these the kernel segments super-packets
# The first Linux known to segment UDP super-packets whose payload was replaced: 6.1 loses them, 5.10 crashes.
_SEGMENTS_UDP = (6, 12)
_MIN_IPV6_PAYLOAD = 40  # the kernel requires the bytes up to the transport header

_read_header = compile_struct(nfqnl.packet_hdr).unpack_from


def _kernel_version() -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)", KERNEL)
    return tuple(map(int, found.groups())) if found else _SEGMENTS_UDP


_kernel = _kernel_version()
_Packet = TypeVar("_Packet", bound="Packet")

Payload = bytes | bytearray | memoryview | _scapy.ScapyPacket
"""The new bytes of a packet: a bytes-like object, or a scapy packet."""


class AcceptOptions(TypedDict, total=False):
    """The arguments of `Packet.accept`, for functions that pass them on: ``**options: Unpack[nfnet.AcceptOptions]``."""

    mark: int | None
    payload: Payload | None
    priority: int | None
    vlan: Vlan | None
    l2header: bytes | None
    ct_mark: int | None
    ct_labels: bytes | None
    connection: bool


def _refuse_to_decide(packet: Packet) -> None:
    raise ClosedError(f"packet {packet.id} was read from bytes: there is no queue that could decide it")


_Method = TypeVar("_Method", bound=Callable[..., None])


def _exclusive(method: _Method) -> _Method:
    """Let one thread at a time give a verdict on a packet of the same queue, if the interpreter `SWITCHES_ANYWHERE`.

    Otherwise the method stays as it is, and costs no more.
    """
    if not SWITCHES_ANYWHERE:
        return method

    @wraps(method)
    def alone(self: Packet, /, *arguments: Any, **keywords: Any) -> None:
        with self._origin.lock:
            method(self, *arguments, **keywords)

    return cast("_Method", alone)


class Packet(Message, kind=NFQA, layouts=nfqnl.layouts, table=NFQA_TABLE):
    """A packet that waits for a verdict.

    Creating one is cheap: an attribute is decoded from the message when it is read. The object has its own copy of the
    packet's bytes, which never changes, so a program can keep it for any time and decide it later, in any order and
    from any thread. Until then the kernel keeps the packet. Numbers are in host byte order. Reading an attribute raises
    DecodeError if the message is malformed, for instance in a damaged recording.
    """

    __slots__ = ("_decision", "_on_decided")

    # The first verdict counts, whichever thread gives it. Each method below checks that `_decision` is None and then
    # sets it, without a lock: CPython lets another thread run, and calls signal handlers, only at the beginning of a
    # function, after a call and at a jump (3.11 and later: at a jump backwards), and none of these is between the last
    # check and the assignment. Keep it so: the assignment comes first in the body of the ``if``, since the way around
    # that body is the jump. Free-threaded builds and PyPy give no such guarantee: there these methods are `_exclusive`.
    _decision: Decision | None
    _on_decided: Callable[[Packet], None]
    """Called with the packet once it has a `_decision`: see the docstring of `ledger`."""

    @classmethod
    def from_bytes(cls: type[_Packet], raw: bytes, name_of: Callable[[int], str | None] = lambda _: None) -> _Packet:
        """Return a packet made from a netlink message of the kernel; see `LogMessage.from_bytes`.

        The packet belongs to no queue: giving a verdict raises ClosedError.
        """
        self = super().from_bytes(raw, name_of)
        self._decision, self._on_decided = None, _refuse_to_decide
        return self

    def _label(self) -> str:
        return f"{self.id} {self.hook.name}"

    def _line(self) -> str:
        return f"{self.summary()} {'undecided' if self.decided is None else self.decided.name.lower()}"

    def __reduce__(self) -> NoReturn:
        """Raise TypeError for `copy` and `pickle`: only this object can decide the packet, a copy could not."""
        text = "a packet cannot be copied or pickled, because a copy could not decide it"
        raise TypeError(f"{text}: keep the packet itself, or its attributes, such as packet.payload (bytes)")

    # --- verdicts

    @_exclusive
    def accept(self, **changes: Unpack[AcceptOptions]) -> None:
        """Accept the packet (NF_ACCEPT): it continues after the chain that queued it.

        All arguments are optional, and None means unchanged: ``mark``, ``payload``, ``priority``, ``vlan``,
        ``l2header``, ``ct_mark``, ``ct_labels`` and ``connection``.

        ``mark`` replaces the packet's mark (0 clears it) and ``priority`` its queueing priority, both 32 bits. Before
        Linux 5.18 the kernel ignores ``priority`` without an error.
        ``payload`` replaces the whole packet from its network header on, 20 to 65,531 bytes (at least 40 for IPv6);
        it must have the same IP version, and correct lengths and checksums, see `rewrite`. For a scapy packet (without
        a link layer) nfnet computes them. Bytes equal to the payload change nothing, even if the kernel sent only the
        beginning of the packet. For packets in the bridge family, ``vlan`` sets the VLAN tag and ``l2header`` replaces
        the link-layer header by one of the same length.

        ``ct_mark`` (32 bits) and ``ct_labels`` (16 bytes) replace those of the packet's connection. The queue
        must have been opened with ``conntrack=True``. The kernel stores labels only while some rule sets labels.

        ``connection`` accepts the rest of the packet's connection, too, in both directions: the kernel accepts its
        packets without queueing them. This needs ``nfnet.rules.queue(..., remember=True)``; see `Queue.forget`.

        Raises ArgumentError, AlreadyDecidedError, ClosedError, or KernelError if sending fails. If the
        kernel refuses a verdict, its error arrives later and is counted: see `Queue.counters`.
        """
        # No parameter for each change: filling in their defaults would take longer than the rest of this method.
        if not changes and self._decision is None:
            self._decision = ACCEPT
            on_decided = self._on_decided  # Python 3.11 reads a slot faster if the value is not called at once
            on_decided(self)
        else:
            self._change(Verdict.ACCEPT, Fate.ACCEPT, **changes)

    @_exclusive
    def drop(self, *, connection: bool = False) -> None:
        """Drop the packet (NF_DROP) without a notice to its sender.

        ``connection`` drops the rest of the packet's connection, too; it has the same requirement as for `accept`. At
        the first packet the kernel has no entry for the connection yet. For TCP and UDP without NAT of the
        destination nfnet creates the entry; with other protocols the next packet is queued as well.

        Raises the same errors as `accept`.
        """
        if connection is False and self._decision is None:
            self._decision = DROP
            on_decided = self._on_decided
            on_decided(self)
        else:
            self._change(Verdict.DROP, Fate.DROP, connection=connection)

    def repeat(self, *, mark: int | None = None, payload: Payload | None = None, priority: int | None = None) -> None:
        """Send the packet through its chain again, from the first rule (NF_REPEAT). Arguments are those of `accept`.

        The rule that queued the packet queues it again, with a new id, unless the rule tests the mark, for instance.
        """
        self._change(Verdict.REPEAT, None, mark, payload, priority)

    def requeue(
        self,
        num: int,
        *,
        mark: int | None = None,
        payload: Payload | None = None,
        priority: int | None = None,
        bypass: bool = False,
    ) -> None:
        """Pass the packet to queue ``num`` (NF_QUEUE), where it gets a new id. Other arguments are those of `accept`.

        If no program reads that queue, the kernel drops the packet, or accepts it with ``bypass``.
        """
        num = check("queue number", num, 0, 0xFFFF)
        flags = QUEUE_BYPASS if check_flag("bypass", bypass) else 0
        self._change(num << 16 | flags | Verdict.QUEUE, None, mark, payload, priority)

    def verdict(
        self,
        code: int,
        *,
        mark: int | None = None,
        payload: Payload | None = None,
        priority: int | None = None,
        vlan: Vlan | None = None,
        l2header: bytes | None = None,
        ct_mark: int | None = None,
        ct_labels: bytes | None = None,
    ) -> None:
        """Give any verdict word that the kernel knows; see `Verdict`. Other arguments are those of `accept`.

        Only Verdict.QUEUE may have upper 16 bits: the kernel would treat ACCEPT with other bits as STOP.
        """
        word = check("verdict", code, 0, 0xFFFFFFFF)
        kind = word & 0xFF
        if kind not in VERDICTS:
            raise ArgumentError(f"verdict {word:#x}: the low byte must be 0, 1, 3, 4 or 5")
        if word != kind and (kind != Verdict.QUEUE or word & 0x7F00):
            raise ArgumentError(f"verdict {word:#x}: only QUEUE (3) may have bits above the lowest 8 (queue, bypass)")
        self._change(word, None, mark, payload, priority, vlan, l2header, ct_mark, ct_labels)

    @property
    def decided(self) -> Verdict | None:
        """The verdict on the packet; None if it has none yet."""
        return None if self._decision is None else Verdict(self._decision.kind)

    @property
    def changed(self) -> bool:
        """True if the verdict changes the packet: its bytes, mark, priority or link-layer header."""
        what = self._decision
        if what is None or what.kind == what.word & 0xFF:
            return what is not None and bool(what.changes)
        # A verdict that rules carry out: some bits of the mark, the first of its changes, contain the verdict.
        support = self._support()
        ours = 0 if support is None else support.bits.mask
        return len(what.changes) > _MARK_SIZE or int.from_bytes(what.changes[4:8], "big") & ~ours != self.mark

    # --- answers

    def answer(self, data: bytes) -> None:
        """Send ``data`` to the packet's sender as if its peer had sent it, and drop the packet.

        UDP: a datagram of at most 65,507 bytes (IPv6: 65,527), in fragments if it is larger than the path allows.
        ICMP and ICMPv6: the reply to an echo request.
        TCP: the packet must carry data. Its sender gets ``data``, at most 12,200 bytes, and the end of the stream
        (FIN), and its receiver a reset. This ends the connection, because its ends would disagree about sequence
        numbers from now on: the receiver did not send ``data``. Segments lost on the way are not sent again.

        The answer traverses the hook output of this machine, with the mark `nfnet.INJECTED_MARK`. Rules made by
        `nfnet.rules.queue` do not queue packets with that mark.

        Raises ArgumentError, before anything is sent, for packets that have no answer: another protocol, TCP without
        data or with RST, fragments, packets to a multicast or broadcast address, packets injected by nfnet, and the
        family bridge. Raises NotPermittedError without CAP_NET_RAW, KernelError if the answer cannot be sent (no
        route, a firewall that drops it), AlreadyDecidedError and ClosedError. After an error the packet is undecided.
        """
        try:
            answer = bytes(memoryview(data))
        except TypeError:
            raise wrong_type("data", data, "bytes") from None
        self._inject_and_drop(lambda packet, *about: _answers.answer(packet, answer, *about))

    def reset(self) -> None:
        """Send a TCP reset to both ends of the packet's connection, with correct sequence numbers, and drop the
        packet.

        Neither end waits for a time-out: both report "connection reset", and a connection that is being opened is
        refused. The packet can be any segment, also a super-packet, or one of which only the beginning was copied. If
        it is a reset itself, only its receiver gets a reset. (The ends of a connection with TCP-MD5 or TCP-AO
        signatures ignore the resets.)

        Raises ArgumentError if `tcp` is None, and the same errors as `answer`. The packet stays
        undecided also if the first reset was sent and the second cannot be sent.
        """
        self._inject_and_drop(_answers.resets)

    def reject(self, *, connection: bool = False) -> None:
        """Tell the sender that the packet was refused, and drop the packet.

        TCP: a reset to the sender (``connect`` fails with ECONNREFUSED). Protocols with ports, such as UDP: an error of
        ICMP or ICMPv6, "port unreachable"; other protocols: "administratively prohibited". The source of the answer is
        the packet's destination. Packets that must not be answered (RFC 1122, RFC 4443) are just dropped: a TCP
        reset, an ICMP error, a fragment other than the first, a packet to or from a multicast address.

        If the rule that queued the packet has ``remember=True``, the kernel sends the answer, except at the hook
        postrouting, where it cannot. Otherwise nfnet injects the answer.

        connection: whether the kernel shall reject the rest of the connection, too, each packet in the same way. This
            needs a rule with ``remember=True``.

        Raises ArgumentError for ``connection`` without such a rule, and for packets that are not IP, belong to the
        bridge family or were injected by nfnet; and the same errors as `answer`.
        """
        if self._decision is not None:
            self._refuse()
        fate = Fate.REJECT if check_flag("connection", connection) else Fate.REJECT_PACKET
        if fate == Fate.REJECT or self._carries_out(fate):
            self._change(Verdict.DROP, fate, connection=True)
        else:
            self._inject_and_drop(_answers.refusals)

    def _inject_and_drop(self, build: Callable[[bytes, int, bool], list[bytes]]) -> None:
        """Send the packets that ``build`` returns, and then drop this one. If sending fails, it stays undecided.

        ``build`` is called with the packet, its length and whether its destination is a broadcast address.
        """
        if self._decision is not None:
            self._refuse()
        if self.family not in IP_VERSION_OF:
            raise ArgumentError(f"a packet of the family {self.family!r} cannot be answered, only of IPv4 and IPv6")
        if self.mark == INJECTED_MARK:
            text = f"the packet is one that nfnet has injected (mark {INJECTED_MARK:#x})"
            raise ArgumentError(f"{text}: accept it, or make the rule that queues packets skip that mark")
        if not (packet := self._ip_packet()):
            raise ArgumentError(f"not an IP packet ({len(self.payload)} bytes were copied)")
        transport = self._origin.transport
        if transport is None:
            raise ClosedError(f"packet {self.id} was read from bytes: there is no queue to answer from")
        interface = self.outdev if self.indev is None else self.indev
        ip = inet.ip(packet)
        broadcast = ip is not None and ip.version == 4 and transport.is_broadcast(ip.destination)
        for answer in build(packet, self.cap_len, broadcast):
            transport.inject(answer, interface)
        self.drop()

    def _refuse(self) -> None:
        raise AlreadyDecidedError(f"packet {self.id} has its verdict already; the first one stands")

    @_exclusive
    def _change(
        self,
        word: int,
        fate: Fate | None,
        /,
        mark: int | None = None,
        payload: Payload | None = None,
        priority: int | None = None,
        vlan: Vlan | None = None,
        l2header: bytes | None = None,
        ct_mark: int | None = None,
        ct_labels: bytes | None = None,
        connection: bool = False,
    ) -> None:
        """Give a verdict. With ``connection``, ``fate`` is what happens to the rest of the packet's connection."""
        if self._decision is not None:
            self._refuse()
        if mark is not None:
            mark = check("mark", mark, 0, 0xFFFFFFFF)
        kind = None
        if connection is not False and check_flag("connection", connection) and fate is not None:
            word, mark, kind = Verdict.REPEAT, self._marked(fate, mark), word
        if priority is not None:
            priority = check("priority", priority, 0, 0xFFFFFFFF)
        attributes: list[tuple[int, bytes]] = []
        if payload is not None and (_scapy.is_scapy(payload) or payload != self.payload):
            attributes.append((_PAYLOAD, self._check_payload(payload)))
        if vlan is not None or l2header is not None:
            attributes += self._link_layer(vlan, l2header)
        if ct_mark is not None or ct_labels is not None:
            attributes.append((NFQA.CT, self._connection(ct_mark, ct_labels)))
        if attributes:
            what = changing_decision(word, mark, priority, *attributes, kind=kind)
        else:
            what = decision(word, mark, priority, kind)
        if self._decision is None:
            self._decision = what
            self._on_decided(self)
        else:  # decided after the first check, by a signal handler or another thread
            self._refuse()

    def _support(self) -> Support | None:
        """Return which verdicts the rules that queued the packet can carry out."""
        connections = self._origin.connections
        return None if connections is None else connections.support(self.raw[FAMILY], self._header()[2])

    def _carries_out(self, fate: Fate) -> bool:
        """Return whether rules can carry out this verdict on the packet."""
        support = self._support()
        return support is not None and fate in support.fates

    def _marked(self, fate: Fate, mark: int | None) -> int:
        """Return ``mark``, or that of the packet, with the verdict in the bits that the rules test.

        Raises ArgumentError if no rules carry out the verdict.
        """
        connections = self._origin.connections
        if connections is None:
            raise ClosedError(f"packet {self.id} was read from bytes: there is no queue that could decide it")
        support = connections.support(self.raw[FAMILY], self._header()[2])
        if support is None or fate not in support.fates:
            raise ArgumentError(self._nobody_carries_out(fate, support))
        bits = support.bits.mask
        if self.mark & bits:
            connections.distrust()
            text = f"the packet's mark {self.mark:#x} has some of the bits {bits:#x}, which nfnet uses for connections"
            raise ArgumentError(f"{text}: it came back because its chain does not test them, or they are in use")
        if mark is not None and mark & bits:
            text = f"mark {mark:#x} has some of the bits {bits:#x}, which nfnet uses for connections"
            raise ArgumentError(f"{text}: clear them, or let the rule use other bits, nfnet.rules.queue(bits=...)")
        if fate in (Fate.DROP, Fate.REJECT):
            connections.remember(self._ip_packet(), support.bits.spread(fate))
        return (self.mark if mark is None else mark) | support.bits.spread(fate)

    def _nobody_carries_out(self, fate: Fate, support: Support | None) -> str:
        hook, number = getattr(self.hook, "name", str(self.hook)).lower(), resource(self.raw)
        what = "rejects" if fate == Fate.REJECT else f"{fate.name.lower()}s"
        if support is not None:
            return f"no rule {what} whole connections at the hook {hook}, where the kernel can reject nothing"
        text = f"no rule {what} whole connections at the hook {hook} for queue {number}: use nfnet.rules.queue"
        return f"{text}({number}, hook={hook!r}, ..., remember=True), or install what its describe() says"

    def rewrite(
        self,
        *,
        data: bytes | None = None,
        source: inet.Address | None = None,
        destination: inet.Address | None = None,
        source_port: int | None = None,
        destination_port: int | None = None,
        ttl: int | None = None,
        tos: int | None = None,
        seq: int | None = None,
        ack: int | None = None,
        flags: int | None = None,
        window: int | None = None,
    ) -> bytes:
        """Return the payload with changed fields, and with correct lengths and checksums; see `nfnet.inet.rewrite`.

            packet.accept(payload=packet.rewrite(data=b"other", destination="192.0.2.7"))

        The checksums are correct also if the kernel has not finished them yet (``Queue(gso=True)``). In the bridge
        family, bytes before and after the IP packet (a second VLAN tag, Ethernet padding) are kept.

        Raises ArgumentError for wrong values, if only the beginning of the packet was copied, and for super-packets of
        other protocols than TCP on their way in (prerouting, input), or of UDP before Linux 6.12.
        """
        if self.truncated:
            text = f"only {len(self.payload)} of the packet's {self.cap_len} bytes were copied"
            raise ArgumentError(f"{text}: the rest would be cut off")
        payload = self.payload
        packet = self._ip_packet(payload)
        if not packet:
            raise ArgumentError(f"not an IP packet (EtherType {self.hw_protocol:#06x}, {len(payload)} bytes)")
        if skbinfo := self._number(_SKB_INFO) or 0:
            self._check_segments()
        new = inet.rewrite(
            packet,
            data=data,
            source=source,
            destination=destination,
            source_port=source_port,
            destination_port=destination_port,
            ttl=ttl,
            tos=tos,
            seq=seq,
            ack=ack,
            flags=flags,
            window=window,
            skbinfo=skbinfo,
        )
        if self.raw[FAMILY] != Family.BRIDGE:
            return new
        # Keep the Ethernet padding: if VLAN tags made the kernel assume a wrong position of the transport header, it
        # drops a shorter payload without an error.
        ip = inet.ip(packet)
        return payload[: len(payload) - len(packet)] + new + (packet[ip.length :] if ip else b"")

    def _check_segments(self) -> None:
        """Raise ArgumentError if the packet is a super-packet whose segments would be lost with another payload.

        After the outgoing hooks the kernel segments it, and computes the segments' checksums from the one in the
        packet. On the way in a UDP socket with UDP_GRO gets the whole packet and other sockets its segments: no
        checksum is correct for both. The checksum of a packet in a tunnel cannot be found.
        """
        if not (self._number(_SKB_INFO) or 0) & _GSO:
            return
        protocol = inet.protocol(self._ip_packet())
        outgoing, perhaps_udp = self.hook in _OUTGOING, protocol in (socket.IPPROTO_UDP, None)
        if protocol == socket.IPPROTO_TCP or (outgoing and (not perhaps_udp or _kernel >= _SEGMENTS_UDP)):
            return
        where = "by Linux before {}.{}".format(*_SEGMENTS_UDP) if outgoing else "on its way in"
        raise ArgumentError(f"a super-packet that is not TCP's cannot be changed {where}: open the queue without gso")

    def _check_payload(self, payload: Any) -> bytes:
        self._check_segments()
        data = payload if type(payload) is bytes else self._bytes_of(payload)
        version = IP_VERSION_OF.get(self.raw[FAMILY])
        size = len(data)
        least = _MIN_IPV6_PAYLOAD if version == 6 else MIN_PAYLOAD
        if not least <= size <= MAX_PAYLOAD:
            raise ArgumentError(
                f"payload has {size} bytes and must have {least} to {MAX_PAYLOAD:,}, from the network header on"
            )
        if version is None:
            return data
        # The kernel would just drop what is not an IP packet of the family.
        if data[0] >> 4 != version:
            text = f"payload begins with {data[:4].hex(' ')}, and must be an IPv{version} packet"
            raise ArgumentError(f"{text}, from the network header on, without a link-layer header")
        if version == 4 and not 20 <= (data[0] & 15) * 4 <= size:
            raise ArgumentError(
                f"the IP header of the payload claims {(data[0] & 15) * 4} bytes; the payload has {size}"
            )
        return data

    def _bytes_of(self, payload: Any) -> bytes:
        if _scapy.is_scapy(payload):
            if not _scapy.may_begin(payload, ip=self.family in (Family.IPV4, Family.IPV6)):
                text = f"payload begins with {payload.name}, and must begin with the network header"
                raise ArgumentError(f"{text}: of a scapy frame, pass frame.payload")
            return self._build(payload)
        try:
            return bytes(memoryview(payload))
        except TypeError:
            raise TypeError(f"payload must be bytes, not {type(payload).__name__}") from None

    def _build(self, theirs: Any) -> bytes:
        """Return the bytes of a scapy packet, with the lengths and checksums that the kernel expects."""
        payload = _scapy.build(theirs)
        packet = self._ip_packet(payload)
        if not packet or not (self._number(_SKB_INFO) or 0) & _GSO:
            return payload
        if len(payload) < len(self.payload):
            raise ArgumentError("a super-packet cannot become shorter")
        return payload[: len(payload) - len(packet)] + inet.rewrite(packet, skbinfo=self.skbinfo)

    def _link_layer(self, vlan: Vlan | None, l2header: bytes | None) -> list[tuple[int, bytes]]:
        if self.family != Family.BRIDGE:
            raise ArgumentError(
                "vlan and l2header can be changed only in the bridge family; in others the kernel ignores them"
            )
        changes: list[tuple[int, bytes]] = []
        if vlan is not None:
            try:
                protocol, tci = vlan
            except ValueError:
                raise ArgumentError("vlan must be a Vlan, or a protocol and a tci") from None
            values = {
                NFQA_VLAN.PROTO: check("vlan protocol", protocol, 0, 0xFFFF),
                NFQA_VLAN.TCI: check("vlan tci", tci, 0, 0xFFFF),
            }
            changes.append((NFQA.VLAN, NFQA_TABLE[NFQA.VLAN].build(values)))
        if l2header is not None:
            there, l2header = self.l2header or b"", bytes(memoryview(l2header))
            if len(l2header) != len(there):
                raise ArgumentError(f"l2header has {len(l2header)} bytes and must have {len(there)}, as it has now")
            changes.append((NFQA.L2HDR, l2header))
        return changes

    def _connection(self, mark: int | None, labels: bytes | None) -> bytes:
        # The kernel reports no error if it cannot change the connection, so check here what can be checked.
        if self._find(NFQA.CT) is None:
            raise ArgumentError("ct_mark and ct_labels are for packets with a connection: see Queue(conntrack=True)")
        values: dict[int, Any] = {}
        if mark is not None:
            values[CTA.MARK] = check("ct_mark", mark, 0, 0xFFFFFFFF)
        if labels is not None:
            values[CTA.LABELS] = bytes(memoryview(labels))
            if len(values[CTA.LABELS]) != _LABELS_SIZE:
                raise ArgumentError(f"ct_labels has {len(labels)} bytes and must have {_LABELS_SIZE}")
        return NFQA_TABLE[NFQA.CT].build(values)

    # --- attributes

    def _header(self) -> tuple[int, int, int]:
        header: tuple[int, int, int] = _read_header(self.raw, PACKET_ID.start)
        return header

    @property
    def id(self) -> int:
        """The packet's number since the queue was opened: 1, 2, ... (32 bits, wraps). A gap means lost packets."""
        return int.from_bytes(self.raw[PACKET_ID], "big")

    @property
    def cap_len(self) -> int:
        """The length of the packet in bytes, also if the payload is shorter (NFQA_CAP_LEN); 0 for META."""
        length = self._number(NFQA.CAP_LEN)
        return len(self.payload) if length is None else length

    def _missing(self) -> int:
        length = self._number(NFQA.CAP_LEN)
        return 0 if length is None else max(length - len(self.payload), 0)

    @property
    def truncated(self) -> bool:
        """True if the payload is only the beginning of the packet, or missing (META)."""
        return self._find(_CAP_LEN) is not None or self._find(_PAYLOAD) is None

    @property
    def hook(self) -> Hook:
        """The hook that queued the packet (``NF_INET_*``)."""
        return Hook(self._header()[2])

    @property
    def hw_protocol(self) -> int:
        """EtherType: 0x0800 for IPv4, 0x86DD for IPv6."""
        return self._header()[1]

    @property
    def priority(self) -> int:
        """The queueing priority (NFQA_PRIORITY, ``skb->priority``), 32 bits; always 0 before Linux 5.18."""
        return self._number(NFQA.PRIORITY) or 0

    @property
    def skbinfo(self) -> SkbInfo:
        """The state of checksum and segmentation (NFQA_SKB_INFO)."""
        return SkbInfo(self._number(NFQA.SKB_INFO) or 0)

    @property
    def secctx(self) -> str | None:
        """Security context of the packet (NFQA_SECCTX); needs ``Queue(secctx=True)``."""
        data = self._bytes(NFQA.SECCTX)
        return None if data is None else data.rstrip(b"\0").decode("utf-8", "surrogateescape")

    @property
    def cgroup(self) -> int | None:
        """net_cls class id of the sender's cgroup (NFQA_CGROUP_CLASSID); always None in Linux 6.1 and before."""
        return self._number(NFQA.CGROUP_CLASSID)
