"""Verdicts on whole connections: find the rules that carry them out, and withdraw such verdicts."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TypeVar

from .. import inet
from .._io.netlink_socket import NetlinkSocket
from .._io.transport import Transport
from ..errors import NotSupportedError
from ..inet import Flow, TcpFlag
from ..netns import call_in_open
from ..protocol import conntrack, ctnetlink
from ..protocol.conntrack import Endpoints
from ..protocol.markbits import ALL_FATES, REST, Fate, MarkBits, Support
from ..protocol.nfnetlink import BODY

_LOOK_AGAIN = 1.0  # seconds after a search that found no rules
_MOST_AT_ONCE = 1024  # requests in a datagram
_OPENING_TIMEOUT, _UDP_TIMEOUT = 120, 30  # seconds, the kernel's own for connections without an answer
_FORGETTING = "forgetting connections"
# Recordings and doubles of the kernel contain the packets that are injected to reject a packet.
_SIMULATED = ALL_FATES - {Fate.REJECT_PACKET}

T = TypeVar("T")


class Connections:
    """The verdicts on whole connections of one binding of a queue.

    given: the bits of the mark that the rules use; None to search for the rules.

    The first verdict on a connection searches nf_tables for the rules. The rules found are cached. If there are none
    for a family and hook, later verdicts search again, at most once a second. `distrust` clears the cache.
    """

    def __init__(self, number: int, transport: Transport, given: MarkBits | None) -> None:
        self._number = number
        self._transport = transport
        self._is_simulated = given is None and transport.simulated
        self.given: MarkBits | None = MarkBits() if self._is_simulated else given
        self._found: dict[tuple[int, int], Support | None] = {}
        self._looked: float | None = None

    def support(self, family: int, hook: int) -> Support | None:
        if self._is_simulated:
            return Support(MarkBits(), _SIMULATED)
        if self.given is not None:
            return Support(self.given, ALL_FATES)
        if self._transport.port_id is None:
            return None
        found = self._found.get((family, hook))
        if found is None and (self._looked is None or monotonic() - self._looked >= _LOOK_AGAIN):
            self._look()
            found = self._found.get((family, hook))
        return found

    def distrust(self) -> None:
        """Clear the cache, because a rule that was found does not work as expected."""
        self._found, self._looked = {}, None

    def _look(self) -> None:
        from ..rules._finding import find  # here: importing it takes as long as all the rest, and few programs need it

        self._found = self._beside(lambda sock: find(sock, self._number))
        self._looked = monotonic()

    def _beside(self, function: Callable[[NetlinkSocket], T]) -> T:
        """Call a function with a new socket in the network namespace of the queue."""
        place = self._transport.open_netns()
        if place is None:
            hint = f"A {type(self._transport).__name__} has no socket"
            raise NotSupportedError("looking for connections", errno.EOPNOTSUPP, hint=hint)
        with place:
            sock = call_in_open(place, NetlinkSocket)
        try:
            return function(sock)
        finally:
            sock.close()

    def remember(self, packet: bytes, mark: int) -> None:
        """Create the kernel's entry for the connection of a packet to be dropped, if it can be the first packet.

        Otherwise the kernel would delete the unconfirmed entry with the packet, and the verdict on later packets with
        it. If the entry exists already, the kernel answers with an error, which is not awaited here.

        Raises KernelError if the request cannot be sent.
        """
        flow, tcp = inet.flow(packet), inet.tcp(packet)
        begins = tcp is not None and tcp.flags & (TcpFlag.SYN | TcpFlag.ACK) == TcpFlag.SYN
        if flow is None or flow.source_port is None or self._transport.simulated:
            return
        if begins or flow.protocol == socket.IPPROTO_UDP:
            timeout = _OPENING_TIMEOUT if begins else _UDP_TIMEOUT
            there = Endpoints(flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port)
            self._transport.send(ctnetlink.create(there, mark, timeout))

    # --- withdrawing verdicts

    def forget(self, flow: Flow | None = None) -> int:
        """Withdraw the verdicts on the connections of a flow, or on all; return how many. Raises KernelError."""
        if self._transport.simulated:
            return 0
        return self._beside(lambda sock: sum(self._forget(sock, bits, flow) for bits in self._bits()))

    def _bits(self) -> set[MarkBits]:
        """Return all bits that the rules of this queue use."""
        if self.given is not None:
            return {self.given}
        self._look()
        return {support.bits for support in self._found.values() if support is not None}

    def _forget(self, sock: NetlinkSocket, bits: MarkBits, flow: Flow | None) -> int:
        rest = bits.spread(REST)
        entries: Iterable[bytes] = sock.dump(ctnetlink.dump_marked(rest, rest), _FORGETTING)
        found = list(entries if flow is None else _of_flow(entries, flow))
        for start in range(0, len(found), _MOST_AT_ONCE):
            sock.send(ctnetlink.set_marks(found[start : start + _MOST_AT_ONCE], 0, bits.mask))
        return len(found)


def _of_flow(entries: Iterable[bytes], flow: Flow) -> Iterator[bytes]:
    """Yield the entries to which packets of the flow can belong."""
    family = socket.AF_INET6 if ":" in flow.source else socket.AF_INET
    source, destination = socket.inet_pton(family, flow.source), socket.inet_pton(family, flow.destination)
    for entry in entries:
        # Decoding an entry takes fifty times as long as searching for the bytes, which most entries lack.
        if source in entry and destination in entry and flow in _flows(entry):
            yield entry


def _flows(entry: bytes) -> Iterator[Flow]:
    """Yield the flows of a connection's packets, in both directions, before and after NAT."""
    values = conntrack.parse(entry[BODY:], BODY)
    if values.original is None or values.reply is None:
        return
    for there, back in ((values.original, values.reply), (values.reply, values.original)):
        for destination, port in ((there.destination, there.destination_port), (back.source, back.source_port)):
            for source, source_port in ((there.source, there.source_port), (back.destination, back.destination_port)):
                if source is not None and destination is not None and there.protocol is not None:
                    yield Flow(there.protocol, source, source_port, destination, port)
