"""What a queue or a log needs of the other side: the kernel, a recording, or the double of a test."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import BinaryIO, NamedTuple

from ..errors import NfnetError, NotSupportedError
from ..protocol import netlink
from ..protocol.markbits import MarkBits

_NOOP = netlink.build_message(netlink.NLMSG_NOOP, netlink.Flag.REQUEST | netlink.Flag.ACK, 0, b"")

Tap = Callable[[bool, bytes], None]
"""Is told of a datagram: whether it went to the kernel, and its bytes."""


class Recorded(bytes):
    """A datagram, or a message in it, from a recording, and the time of its record.

    `Message.timestamp` is that time where the kernel's own is not in the message.
    """

    time_ns: int
    """In nanoseconds since 1970, UTC."""

    def __new__(cls, data: bytes, time_ns: int = 0) -> Recorded:
        self = super().__new__(cls, data)
        self.time_ns = time_ns
        return self


class SocketStatus(NamedTuple):
    """What the kernel says of the socket of a queue or log, to whoever has it, also without privileges.

    ``rcvbuf`` is the size of the receive buffer in bytes, as the kernel counts; ``unread`` is how many of these are
    taken by what was not read yet; ``dropped`` is how many datagrams did not fit since the socket was opened: packets
    or log messages, and what the kernel answers to verdicts that it refuses.
    """

    rcvbuf: int
    unread: int
    dropped: int


class Transport(ABC):
    """The way to the kernel and back, or to what behaves like the kernel.

    Datagrams are `bytes`, and each holds whole netlink messages. Implementations raise `KernelError` for failures of
    the system and `ClosedError` after `close`, and nothing else. This class has every member that queues and logs use;
    those that are not abstract have a default that is right for a transport without a socket.
    """

    trusted: bool = False
    """Whether datagrams come from the kernel itself. Those of anybody else are checked in every respect."""

    inherit: bool = False
    """Whether children that are forked have the transport too. They share it: one process at a time may read."""

    port_id: int | None = None
    """The netlink port by which the kernel knows the socket; None without a socket."""

    waiting: bool = False
    """Whether a loop takes from `incoming`: then `wake` has somebody to wake."""

    recordable: bool = False
    """Whether it tells ``tap`` of every datagram."""

    simulated: bool = False
    """Whether a recording or a double is behind it, and no kernel: verdicts on connections need no rules there."""

    bits: MarkBits | None = None
    """Set by a queue: in which bits of marks verdicts on connections are sent, as far as that is known."""

    tap: Tap | None = None
    """Set by a recorder, for a `recordable` transport."""

    @abstractmethod
    def send(self, datagram: bytes) -> None:
        """Hand one datagram, of one or more messages, to the kernel; it is executed when this returns."""

    @abstractmethod
    def receive(self, into: list[bytes], limit: int) -> bool:
        """Append up to ``limit`` waiting datagrams without blocking; return False when no more will ever come.

        What was appended before an exception stays there.
        """

    @property
    def incoming(self) -> Iterator[bytes] | None:
        """Gives one datagram after the other, and waits for each: C code, in which none is lost.

        None if the transport cannot wait: then queues and logs wait until `fileno` is readable, and call `receive`. Its
        OSErrors are for `explain`. Who waits sets `waiting` before, and calls `stop_waiting` in the end.
        """
        return None

    @property
    def arrived(self) -> Iterator[bytes] | None:
        """As `incoming`, but does not wait: BlockingIOError means that nothing is there. For event loops."""
        return None

    def nudge(self) -> None:
        """Send a message that does nothing but cause an answer, so that there is something to receive."""
        with suppress(NfnetError):  # the kernel refuses it if the process has lost its privilege: an answer, too
            self.send(_NOOP)

    def wake(self) -> None:
        """End the wait for `incoming`, in another thread or below this signal handler, if there is one."""
        if self.waiting:
            self.nudge()

    def stop_waiting(self) -> None:
        """The loop takes no more from `incoming`."""
        self.waiting = False

    def explain(self, error: OSError) -> None:
        """Raise the `NfnetError` for an error of `incoming` or `arrived`; return if there was only nothing to take."""
        raise error

    @abstractmethod
    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        """Send the request that ``build`` makes for a sequence number, and wait for the kernel to acknowledge it.

        Packets that arrive in between are kept for `receive`. Raises the `KernelError` that fits the kernel's refusal,
        `AckTimeoutError` if no answer came.
        """

    @property
    def kept(self) -> bool:
        """Whether `receive` has something to give of which `fileno` does not tell, because `request` kept it."""
        return False

    @property
    def rcvbuf(self) -> int | None:
        """The size of the socket's receive buffer in bytes, as the kernel counts; None without a socket."""
        return None

    def socket_status(self) -> SocketStatus | None:
        """How full the receive buffer is; None without a socket, and where the kernel does not say."""
        return None

    @property
    def patience(self) -> float | None:
        """How long a plain ``recv`` would wait, in seconds; None for as long as it takes."""
        return None

    def interface_name(self, index: int) -> str | None:
        """The name of the interface with that index, None if it is gone or not known here."""
        return None

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        """Send an IP packet, from its header on, in the network that the packets come from; doubles of it keep it.

        ``interface`` is the index of the one whose link an address of link scope (fe80::/10) is on. Raises the
        `KernelError` that fits; and NotSupportedError if the transport can send none.
        """
        hint = f"A {type(self).__name__} has no network to send to"
        raise NotSupportedError("injecting a packet", errno.EOPNOTSUPP, hint=hint)

    def is_broadcast(self, address: str) -> bool:
        """Whether an IPv4 address is the broadcast address of a network that the machine is in."""
        return False

    def open_netns(self) -> BinaryIO | None:
        """The network namespace that packets come from, as an open file.

        None without a kernel. Raises ClosedError, and KernelError, for CAP_NET_ADMIN is needed.
        """
        return None

    @abstractmethod
    def fileno(self) -> int:
        """The file descriptor that polls readable when `receive` has something to give."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the socket; may be called twice."""
