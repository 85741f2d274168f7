"""What a queue knows of the rules that carry out verdicts on whole connections, and how it takes those back."""

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

_LOOK_AGAIN = 1.0  # seconds after a look that found no rules
_MOST_AT_ONCE = 1024  # requests in a datagram
_OPENING_TIMEOUT, _UDP_TIMEOUT = 120, 30  # seconds, the kernel's own for connections without an answer
_FORGETTING = "forgetting connections"
# Recordings and doubles show what is injected to reject a packet.
_SIMULATED = ALL_FATES - {Fate.REJECT_PACKET}

T = TypeVar("T")


class Connections:
    """Of one binding of a queue.

    given: the bits that rules use which need not be looked for.

    The rules are looked for in nf_tables when a verdict first needs them. What was found is remembered; what was not is
    looked for again, at most once a second, and so is everything after `distrust`.
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
        """What was found is not so: look again."""
        self._found, self._looked = {}, None

    def _look(self) -> None:
        from ..rules._finding import find  # now: the package takes as long to load as all the rest, and few need it

        self._found = self._beside(lambda sock: find(sock, self._number))
        self._looked = monotonic()

    def _beside(self, function: Callable[[NetlinkSocket], T]) -> T:
        """Call a function with a socket of its own in the network namespace of the queue."""
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
        """Have the kernel know the connection of a packet that will not get through, if it may be the first one.

        Else its entry would vanish with the packet, and what is to become of the rest would not be remembered. The
        kernel refuses that if it knows the connection already, which is left to whoever reads its answers.

        Raises KernelError if it cannot be sent.
        """
        flow, tcp = inet.flow(packet), inet.tcp(packet)
        begins = tcp is not None and tcp.flags & (TcpFlag.SYN | TcpFlag.ACK) == TcpFlag.SYN
        if flow is None or flow.source_port is None or self._transport.simulated:
            return
        if begins or flow.protocol == socket.IPPROTO_UDP:
            timeout = _OPENING_TIMEOUT if begins else _UDP_TIMEOUT
            there = Endpoints(flow.source, flow.destination, flow.protocol, flow.source_port, flow.destination_port)
            self._transport.send(ctnetlink.create(there, mark, timeout))

    # --- taking verdicts back

    def forget(self, flow: Flow | None = None) -> int:
        """Bring the connection of a flow, or all, back to the queue; how many there were. Raises KernelError."""
        if self._transport.simulated:
            return 0
        return self._beside(lambda sock: sum(self._forget(sock, bits, flow) for bits in self._bits()))

    def _bits(self) -> set[MarkBits]:
        """All that the rules of this queue use."""
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
    """The entries that packets of the flow may belong to."""
    family = socket.AF_INET6 if ":" in flow.source else socket.AF_INET
    source, destination = socket.inet_pton(family, flow.source), socket.inet_pton(family, flow.destination)
    for entry in entries:
        # Reading an entry takes fifty times as long as looking for the bytes, which most do not have.
        if source in entry and destination in entry and flow in _flows(entry):
            yield entry


def _flows(entry: bytes) -> Iterator[Flow]:
    """What packets of a connection look like, both directions, before and after their addresses were translated."""
    values = conntrack.parse(entry[BODY:], BODY)
    if values.original is None or values.reply is None:
        return
    for there, back in ((values.original, values.reply), (values.reply, values.original)):
        for destination, port in ((there.destination, there.destination_port), (back.source, back.source_port)):
            for source, source_port in ((there.source, there.source_port), (back.destination, back.destination_port)):
                if source is not None and destination is not None and there.protocol is not None:
                    yield Flow(there.protocol, source, source_port, destination, port)
