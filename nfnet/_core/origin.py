"""The machine on which messages originate, and the process on it that sends or receives a packet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .. import inet
from .._io.locks import RLock
from .._io.transport import Transport
from .._processes import Process, Processes
from ..protocol.conntrack import Conntrack, CtInfo
from ..protocol.nfnetlink import ETHERTYPES, ArpHook, Family, Hook, NetdevHook
from .connections import Connections

# True if the sender of a packet in these hooks is on this machine; False if the receiver is.
_SENT: dict[int, bool] = {
    Hook.PREROUTING: False,
    Hook.INPUT: False,
    Hook.INGRESS: False,
    Hook.OUTPUT: True,
    Hook.POSTROUTING: True,
}
_NETDEV_SENT: dict[int, bool] = {NetdevHook.INGRESS: False, NetdevHook.EGRESS: True}
_NOBODYS_LOCK = RLock()  # of packets that no queue holds
_ECHO_SENT = {8: True, 0: False, 128: True, 129: False}  # requests and replies of ICMP and ICMPv6, by their type


class Located(Protocol):
    """The attributes of a message that are needed to find its process."""

    @property
    def family(self) -> Family: ...
    @property
    def hook(self) -> Hook | ArpHook | NetdevHook: ...
    @property
    def flow(self) -> inet.Flow | None: ...
    @property
    def icmp(self) -> inet.Icmp | None: ...
    @property
    def indev(self) -> int | None: ...
    @property
    def outdev(self) -> int | None: ...
    @property
    def conntrack(self) -> Conntrack | None: ...
    @property
    def ctinfo(self) -> CtInfo | None: ...


class Origin:
    """The machine on which messages originate, as far as it is known.

    It has the names of the interfaces, the processes, the transport for injecting packets, and, for a queue, the
    state of verdicts on connections and the ledger's lock.
    """

    __slots__ = ("connections", "interface_name", "lock", "processes", "transport")

    def __init__(
        self,
        interface_name: Callable[[int], str | None],
        processes: Processes | None = None,
        transport: Transport | None = None,
    ) -> None:
        self.interface_name = interface_name
        self.processes = processes
        self.transport = transport
        self.connections: Connections | None = None
        self.lock = _NOBODYS_LOCK
        """Held while a verdict is given, in free-threaded builds of CPython and in PyPy: see `Packet`."""

    def process(self, packet: Located) -> Process | None:
        """Return the process that sends the packet, or receives it if it came in; None if it cannot be found."""
        processes, flow = self.processes, packet.flow
        sent = _NETDEV_SENT.get(packet.hook) if packet.family == Family.NETDEV else _SENT.get(packet.hook)
        if processes is None or flow is None or sent is None:
            return None
        echo = None
        if flow.source_port is None:
            icmp = packet.icmp
            if icmp is None or _ECHO_SENT.get(icmp.type) is not sent:
                return None
            echo = int.from_bytes(icmp.rest[:2], "big")
        interface = (packet.outdev if sent else packet.indev) or 0
        # In the other hooks, and in bridges, a packet can be a forwarded one.
        certain = packet.family in ETHERTYPES and packet.hook in (Hook.INPUT, Hook.OUTPUT)
        found = processes.find(flow, sends=sent, interface=interface, certain=certain, echo=echo)
        if found is None and echo is None and (flow := _untranslated(packet, sent)) is not None:
            found = processes.find(flow, sends=True, interface=interface, certain=certain)
        return found


def _untranslated(packet: Located, sent: bool) -> inet.Flow | None:
    """Return the flow from the socket on this machine to the other end, as it was before NAT.

    None if the message does not contain the connection.
    """
    entry, info = packet.conntrack, packet.ctinfo
    if entry is None or info is None:
        return None
    began_here = sent == (info < CtInfo.ESTABLISHED_REPLY)
    ends = entry.original if began_here else entry.reply
    if ends is None or ends.source is None or ends.destination is None or ends.protocol is None:
        return None
    return inet.Flow(ends.protocol, ends.source, ends.source_port, ends.destination, ends.destination_port)
