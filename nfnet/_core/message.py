"""`Message`: the base class of queued and logged packets. Attributes are read from a netlink message on access."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, TypeVar

from .. import inet
from .._annotated import Annotated
from .._construct import Int32ub
from .._printable import printable
from .._processes import Process
from ..errors import DecodeError
from ..inet import _scapy
from ..inet._headers import IP_VERSIONS, ip_in
from ..protocol import netlink, nfqnl
from ..protocol.conntrack import Conntrack, CtInfo
from ..protocol.conntrack import parse as parse_conntrack
from ..protocol.layout import Layout, Layouts, compile_struct
from ..protocol.nfnetlink import BODY, ETHERTYPES, ArpHook, Family, Hook, NetdevHook, Table, parse_attributes
from ..protocol.nfqnl import NFQA_VLAN
from .origin import Origin
from .text import clock, or_unreadable

_Message = TypeVar("_Message", bound="Message")

_read_u32 = compile_struct(Int32ub).unpack_from
_read_hwaddr = compile_struct(nfqnl.hwaddr).unpack_from
_read_timestamp = compile_struct(nfqnl.timestamp).unpack_from

FAMILY = netlink.HEADER_SIZE
"""Where nfgen_family is, the first byte of struct nfgenmsg."""
IP_VERSION_OF = {family: IP_VERSIONS[ethertype] for family, ethertype in ETHERTYPES.items()}
"""The IP version of all packets in the hooks of a family; needed because older kernels can leave hw_protocol 0."""


class Vlan(NamedTuple):
    """A VLAN tag: ``protocol`` is its EtherType (0x8100 or 0x88A8), ``tci`` priority, drop eligibility and id."""

    protocol: int
    tci: int


class Message(ABC):
    """A packet in a netlink message. The object has its own copy of the message, which never changes.

    Numbers are in host byte order. Names in capitals are the kernel's, without the prefix ``NFQA_`` (queues) or
    ``NFULA_`` (logs). Reading an attribute raises DecodeError if the message is malformed, for instance in a damaged
    recording.
    """

    __slots__ = ("_layout", "_origin", "raw")

    # `Queue` and `Log` fill in bare instances: a call to __init__ would take a tenth of the time spent on a packet.
    raw: bytes
    """The netlink message as the kernel sent it."""
    _layout: Layout | None
    _origin: Origin

    # These differ between the subclasses: how to find attributes, and their numbers.
    _layouts: ClassVar[Layouts]
    _table: ClassVar[Table]
    _kind: ClassVar[type[IntEnum]]
    _MARK: ClassVar[int]
    _TIMESTAMP: ClassVar[int]
    _IFINDEX_INDEV: ClassVar[int]
    _IFINDEX_OUTDEV: ClassVar[int]
    _IFINDEX_PHYSINDEV: ClassVar[int]
    _IFINDEX_PHYSOUTDEV: ClassVar[int]
    _HWADDR: ClassVar[int]
    _UID: ClassVar[int]
    _GID: ClassVar[int]
    _CT: ClassVar[int]
    _CT_INFO: ClassVar[int]
    _VLAN: ClassVar[int]
    _L2HDR: ClassVar[int]

    def __init_subclass__(
        cls, kind: type[IntEnum] | None = None, layouts: Layouts | None = None, table: Table | None = None
    ) -> None:
        if kind is None or layouts is None or table is None:
            return  # a subclass of `Packet` or `LogMessage`
        cls._kind, cls._layouts, cls._table = kind, layouts, table
        for name in Message.__annotations__:
            if name.isupper():
                setattr(cls, name, int(kind[name[1:]]))

    @classmethod
    def from_bytes(cls: type[_Message], raw: bytes, name_of: Callable[[int], str | None] = lambda _: None) -> _Message:
        """Return an object made from a netlink message of the kernel; ``name_of`` returns the names of interfaces.

        Raises DecodeError if the message is too short.
        """
        if len(raw) < BODY:
            raise DecodeError(f"message of {len(raw)} bytes has no room for its header", 0)
        self = cls()
        self.raw, self._origin, self._layout = raw, Origin(name_of), None
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {or_unreadable(lambda: f'{self._label()}: {self._line()}')}>"

    def __str__(self) -> str:
        return or_unreadable(self._line)

    def _label(self) -> str:
        """Return the beginning of `repr`."""
        return self.hook.name

    def _line(self) -> str:
        """Return what `str` and `repr` have in common."""
        return self.summary()

    def summary(self, moment: float | None = None) -> str:
        """Return one line of text, as the commands print it: time, interfaces, source, destination, length, mark, user.

            12:30:01.250000 eth0 > - UDP 192.0.2.1.40000 > 192.0.2.2.53 29 bytes mark 0x7

        The time is local; ``moment``, in seconds since 1970, is used if the message has no `timestamp`. ``str(packet)``
        is this line with the verdict.
        """
        timestamp = self.timestamp
        return " ".join([clock(moment if timestamp is None else timestamp), *self._words()])

    def _words(self) -> Iterator[str]:
        """Yield the parts of `summary` after the time."""
        yield printable(f"{self.indev_name or self.indev or '-'} > {self.outdev_name or self.outdev or '-'}")
        yield self.contents()
        if self.mark:
            yield f"mark {self.mark:#x}"
        if self.uid is not None:
            yield f"uid {self.uid}"

    def contents(self) -> str:
        """Return a description of the packet: ``UDP 192.0.2.1.40000 > 192.0.2.2.53 29 bytes``."""
        packet, missing = self._ip_packet(), self._missing()
        text = inet.describe(packet, len(packet) + missing if missing else None)
        if text is not None:
            return text
        behind = "" if self.raw[FAMILY] in IP_VERSION_OF else f" (EtherType {self.hw_protocol:#06x})"
        return f"{len(self.payload)} bytes that are not an IP packet{behind}"

    def _find(self, number: int) -> slice | None:
        layout = self._layout
        if layout is None:
            layout = self._layout = self._layouts.find(self.raw)
        return layout.spans.get(number)

    def _number(self, number: int) -> int | None:
        span = self._find(number)
        if span is None:
            return None
        value: int = _read_u32(self.raw, span.start)[0]
        return value

    def _bytes(self, number: int) -> bytes | None:
        span = self._find(number)
        return None if span is None else self.raw[span]

    def _name(self, index: int | None) -> str | None:
        if index is None:
            return None
        raw = self.raw
        if isinstance(raw, Annotated) and raw.interface_name is not None:
            return raw.interface_name
        return self._origin.interface_name(index)

    @property
    def payload(self) -> bytes:
        """The packet (PAYLOAD), from its network header on, up to the copy range; b"" for META.

        For logs in the families netdev (hook egress) and ARP (output) it begins with the link-layer header.

        Each access makes a new copy: keep it in a variable.
        """
        raw = self.raw
        layout = self._layout
        if layout is None:
            # The same as `Layouts.find`, without the call: most handlers read the payload, and only once.
            layout = self._layouts.known(len(raw))
            if layout is None or layout.headers(raw) != layout.expected:
                layout = self._layouts.find(raw)
            self._layout = layout
        return raw[layout.payload]

    def _ip_packet(self, payload: bytes | None = None) -> bytes:
        """Return the payload, or the given one, from its IP header on; b"" if it is not an IP packet."""
        packet = self.payload if payload is None else payload
        version = IP_VERSION_OF.get(self.raw[FAMILY])
        if packet and packet[0] >> 4 == version:
            return packet
        return b"" if version else ip_in(packet, self.hw_protocol, self._link_layer_size())

    def _missing(self) -> int:
        """Return how many bytes of the packet were not copied; 0 if that is not known."""
        return 0

    def _link_layer_size(self) -> int:
        """Return the size of the link-layer header that the payload begins with."""
        return 0

    @property
    @abstractmethod
    def hook(self) -> Hook | ArpHook | NetdevHook:
        """The hook of the rule that queued or logged the packet (``NF_INET_*``)."""

    @property
    @abstractmethod
    def hw_protocol(self) -> int:
        """EtherType: 0x0800 for IPv4, 0x86DD for IPv6; for a VLAN-tagged packet, that of the inner packet."""

    @property
    def ip(self) -> inet.Ip | None:
        """The IP header of the payload: version, source, destination, protocol, ttl, ...; None if there is none.

        In the bridge family, and for logs in the families ARP and netdev, `hw_protocol` determines whether there is
        one, also after VLAN tags; other bytes are not decoded, even if they look like an IP header.

        This property and the following ones decode the packet at each access: keep the values in variables.
        """
        packet, missing = self._ip_packet(), self._missing()
        return inet.ip(packet, len(packet) + missing if missing else None)

    @property
    def tcp(self) -> inet.Tcp | None:
        """The TCP header and its payload: source_port, destination_port, flags, data, ..."""
        return inet.tcp(self._ip_packet())

    @property
    def udp(self) -> inet.Udp | None:
        """The UDP header and its payload: source_port, destination_port, data."""
        return inet.udp(self._ip_packet())

    @property
    def icmp(self) -> inet.Icmp | None:
        """The ICMP or ICMPv6 header and its payload: type, code, rest, data."""
        return inet.icmp(self._ip_packet())

    @property
    def flow(self) -> inet.Flow | None:
        """The five-tuple: protocol, source, source_port, destination, destination_port."""
        return inet.flow(self._ip_packet())

    def scapy(self) -> Any:
        """Return the payload as a scapy packet. scapy must be installed (``pip install 'nfnet[scapy]'``).

        Its class is ``IP`` or ``IPv6``. In other families `hw_protocol` determines the class, ``ARP`` or ``Dot1Q`` for
        instance. It is ``Ether`` if the payload begins with the link-layer header, and ``Raw`` otherwise.
        """
        ethertype = ETHERTYPES.get(self.raw[FAMILY])
        if ethertype is None:
            ethertype = _scapy.FRAME if self._link_layer_size() else self.hw_protocol
        return _scapy.parse(self.payload, ethertype)

    @property
    def family(self) -> Family:
        """The family of the hook (``nfgen_family``): IPV4, IPV6, BRIDGE; for logs also ARP and NETDEV."""
        return Family(self.raw[FAMILY])

    @property
    def mark(self) -> int:
        """The packet's mark (MARK), 32 bits; 0 if it has none."""
        return self._number(self._MARK) or 0

    @property
    def timestamp(self) -> float | None:
        """When the packet arrived (TIMESTAMP), in seconds since 1970 (UTC), to the microsecond.

        None for outgoing packets, and if no program on the machine has requested timestamps from the kernel: see
        ``Queue(timestamps=True)``. Newer kernels (not Linux 6.1) timestamp all incoming packets that are logged. In a
        replay, a message without TIMESTAMP has the time of its record instead.
        """
        span = self._find(self._TIMESTAMP)
        if span is None:
            return None if (time_ns := self._annotated_time()) is None else time_ns / 1e9
        seconds, microseconds = _read_timestamp(self.raw, span.start)
        return float(seconds + microseconds / 1e6)

    @property
    def timestamp_ns(self) -> int | None:
        """When the packet arrived, in nanoseconds since 1970; see `timestamp`. TIMESTAMP is a multiple of 1000."""
        span = self._find(self._TIMESTAMP)
        if span is None:
            return self._annotated_time()
        seconds, microseconds = _read_timestamp(self.raw, span.start)
        return int(seconds * 1_000_000_000 + microseconds * 1000)

    def _annotated_time(self) -> int | None:
        raw = self.raw
        return raw.time_ns if isinstance(raw, Annotated) else None

    @property
    def indev(self) -> int | None:
        """Index of the incoming interface (IFINDEX_INDEV); None for packets that this machine sends."""
        return self._number(self._IFINDEX_INDEV)

    @property
    def outdev(self) -> int | None:
        """Index of the outgoing interface (IFINDEX_OUTDEV); None before routing and for input."""
        return self._number(self._IFINDEX_OUTDEV)

    @property
    def physindev(self) -> int | None:
        """Index of the incoming bridge port (IFINDEX_PHYSINDEV)."""
        return self._number(self._IFINDEX_PHYSINDEV)

    @property
    def physoutdev(self) -> int | None:
        """Index of the outgoing bridge port (IFINDEX_PHYSOUTDEV)."""
        return self._number(self._IFINDEX_PHYSOUTDEV)

    @property
    def indev_name(self) -> str | None:
        """Name of the interface `indev` in the namespace of the queue or log; None if there is none, or it was removed.

        Names are cached for a second. Read them while the queue or log is open: later only cached names are available.
        """
        return self._name(self.indev)

    @property
    def outdev_name(self) -> str | None:
        """Name of the interface `outdev`; see `indev_name`."""
        return self._name(self.outdev)

    @property
    def physindev_name(self) -> str | None:
        """Name of the bridge port `physindev`; see `indev_name`."""
        return self._name(self.physindev)

    @property
    def physoutdev_name(self) -> str | None:
        """Name of the bridge port `physoutdev`; see `indev_name`."""
        return self._name(self.physoutdev)

    @property
    def hwaddr(self) -> bytes | None:
        """Link-layer source address (HWADDR), 6 bytes for Ethernet; None for packets that this machine sends."""
        span = self._find(self._HWADDR)
        if span is None:
            return None
        length, address = _read_hwaddr(self.raw, span.start)
        return bytes(address[:length])

    @property
    def vlan(self) -> Vlan | None:
        """The VLAN tag (VLAN); bridge family only, for logs also netdev."""
        span = self._find(self._VLAN)
        if span is None:
            return None
        values = parse_attributes(self.raw[span], nfqnl.VLAN_TABLE, span.start)
        return Vlan(values.get(NFQA_VLAN.PROTO, 0), values.get(NFQA_VLAN.TCI, 0))

    @property
    def l2header(self) -> bytes | None:
        """The link-layer header (L2HDR); bridge family only, for logs also netdev."""
        return self._bytes(self._L2HDR)

    @property
    def uid(self) -> int | None:
        """User id of the local sender (UID); None for incoming packets.

        A queue needs ``uid_gid=True``, and reports the id in the initial user namespace. A log reports the id in the
        user namespace of this program.
        """
        return self._number(self._UID)

    @property
    def gid(self) -> int | None:
        """Group id of the local sender (GID); see `uid`."""
        return self._number(self._GID)

    @property
    def process(self) -> Process | None:
        """The process on this machine that sends the packet (output, postrouting) or receives it (input, prerouting).

        Each access looks the process up. This takes tens of microseconds if its socket was seen before; otherwise two
        more microseconds for each open file of each process until it is found. The process is

        - for TCP, the owner of the connection; until the connection is accepted, the owner of the listening socket.
          After the program has closed the connection, or ended, the kernel can continue to send: then it is the process
          that an earlier access found, even if it has ended, and None if there was no earlier access;
        - for UDP, UDP-Lite and SCTP, the owner of the socket that receives packets of this flow: the connected socket,
          else the one bound to the address, else the one bound to all addresses. Of several with SO_REUSEPORT it is the
          one that the kernel chooses for this packet; if this machine sends the packet, the one that it chooses for the
          answer, although another one may have sent the packet;
        - for ICMP echo requests and replies, the owner of the ping socket;
        - if several processes share the socket, their common ancestor, from which the others inherited it. If no such
          ancestor has the socket, it is the process that is found first, and the same one as long as it has the socket:
          processes with recently found sockets are searched first, then the others from the highest pid down, those
          with at most three open files last.

        It is None if the process cannot be found: for forwarded packets and fragments; if the sender has closed its
        socket, or ended, before the access; for packets sent by the kernel itself or by raw sockets; for processes in
        pid namespaces that are invisible from here, and, without CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, for those of
        other users; if another rule has changed addresses before (DNAT in the output hook, for instance), unless the
        message contains the connection (``conntrack=True``). It is also None in a replay, and when the queue or log is
        closed. A test can set the process: see `nfnet.testing.packet_message`.
        """
        raw = self.raw
        if isinstance(raw, Annotated) and raw.process is not None:
            return raw.process
        return self._origin.process(self)

    @property
    def conntrack(self) -> Conntrack | None:
        """The packet's connection (CT); None if it is not tracked. Needs ``conntrack=True``."""
        span = self._find(self._CT)
        return None if span is None else parse_conntrack(self.raw[span], span.start)

    @property
    def ctinfo(self) -> CtInfo | None:
        """The relation of the packet to its connection (CT_INFO). Needs ``conntrack=True``."""
        number = self._number(self._CT_INFO)
        return None if number is None else CtInfo(number)

    @property
    def attributes(self) -> dict[IntEnum, Any]:
        """All attributes of the message, decoded by the schemas; keys are members of the kernel's enumeration.

        This is slow: it takes hundreds of microseconds. The values of unknown attributes are bytes.
        """
        values = parse_attributes(self.raw[BODY:], self._table, BODY)
        return {self._kind(number): value for number, value in values.items()}
