"""Sending packets of one's own."""

from __future__ import annotations

import weakref
from typing import Any

from ._arguments import check, wrong_type
from ._io.raw_socket import INJECTED_MARK, RawSocket
from ._io.system import collect_forgotten
from ._io.transport import Transport
from .inet import _scapy
from .inet._answers import mend
from .netns import Netns, call_in, check_netns


def inject(packet: bytes | Any, *, mark: int | None = None, netns: Netns | None = None) -> None:
    """Send an IP packet, IPv4 or IPv6: out to the network, or in to this machine if its destination is local.

        nfnet.inject(nfnet.testing.udp(b"hello", source="192.0.2.7", destination="192.0.2.1", destination_port=53))

    packet: the packet, bytes from the IP header on, or one of scapy's without a link layer. It ends where the bytes do:
        lengths and checksums (IPv4, TCP, UDP, ICMP) are mended, other things are left as they are, the source for one,
        which may be anybody's. A packet that is too large for the way leaves in fragments; with IPv4's "don't fragment"
        (DF), or with extension headers of IPv6, that is an error.
    mark: the packet's mark, 32 bits. If it is not given that is `nfnet.INJECTED_MARK`, over which `nfnet.rules.queue`
        passes; with any other one, 0 for instance, rules queue the packet as they queue those of other programs.
    netns: the network namespace to send in; see `nfnet.Queue`.

    The packet passes the hooks of what this machine sends: output and postrouting, or, if its destination is local,
    output, postrouting, prerouting and input, as if it had come in by the interface lo.

    In tests, while a fed queue or a replay is open, nothing is sent: see `nfnet.testing.FedQueue.injected`.

    Raises ArgumentError for what is no IP packet or cannot be sent whole, NotPermittedError without CAP_NET_RAW, or
    without CAP_NET_ADMIN for the mark, and KernelError if the packet cannot be sent: no route, or a firewall drops it.
    """
    number = INJECTED_MARK if mark is None else check("mark", mark, 0, 0xFFFFFFFF)
    check_netns(netns)
    if _scapy.is_scapy(packet):
        packet = _scapy.build(packet)
    try:
        data = bytes(memoryview(packet))
    except TypeError:
        raise wrong_type("packet", packet, "bytes, from the IP header on") from None
    data = mend(data)
    if (double := _double()) is not None:
        double.inject(data)
        return
    sock = RawSocket(number, lambda make: call_in(netns, make), broadcast=True)
    try:
        sock.send(data)
    finally:
        sock.close()


# Doubles that are open, the newest last, by weak references: a test may forget to close one.
_doubles: list[weakref.ref[Transport]] = []


def divert(double: Transport) -> None:
    """Until `restore`, `inject` hands packets to this double instead of sending them."""
    _doubles.append(weakref.ref(double))


def restore(double: Transport) -> None:
    """The double is closed; may be called twice."""
    _doubles[:] = [each for each in _doubles if each() not in (double, None)]


def _double() -> Transport | None:
    if _doubles:
        collect_forgotten()
    return next((double for each in reversed(_doubles) if (double := each()) is not None), None)
