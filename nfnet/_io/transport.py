"""`Transport`: the interface of queues and logs to the kernel, or to a recording or a test double in its place."""

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
"""Called with each datagram: whether it was sent to the kernel, and its bytes."""


class SocketStatus(NamedTuple):
    """The kernel's status of the socket of a queue or log. No privilege is needed to read it.

    ``rcvbuf`` is the size of the receive buffer in bytes, as the kernel counts; ``unread`` is how many of these bytes
    unread datagrams use; ``dropped`` is how many datagrams did not fit since the socket was opened: packets or log
    messages, and the kernel's answers to verdicts that it refuses.
    """

    rcvbuf: int
    unread: int
    dropped: int


class Transport(ABC):
    """Sends datagrams to the kernel and receives them, or simulates that.

    Datagrams are `bytes`, and each contains complete netlink messages. Implementations raise `KernelError` if a system
    call fails and `ClosedError` after `close`, and nothing else. This class has every member that queues and logs use.
    Those that are not abstract have a default for a transport without a socket.
    """

    trusted: bool = False
    """Whether datagrams come from the kernel itself. Other datagrams are checked completely."""

    inherit: bool = False
    """Whether forked children also have the transport. They share it: only one process at a time may read."""

    port_id: int | None = None
    """The netlink port of the socket; None without a socket."""

    blocked: bool = False
    """Whether a loop waits for `incoming`, so that `wake` must end its wait."""

    recordable: bool = False
    """Whether the transport calls ``tap`` with every datagram."""

    simulated: bool = False
    """Whether the other side is a recording or a test double: verdicts on connections need no rules there."""

    bits: MarkBits | None = None
    """Set by a queue: the bits of marks in which verdicts on connections are sent, None if these are not known."""

    tap: Tap | None = None
    """Set by a recorder, for a `recordable` transport."""

    @abstractmethod
    def send(self, datagram: bytes) -> None:
        """Send one datagram, of one or more messages, to the kernel. When `send` returns the kernel has executed it."""

    @property
    def outgoing(self) -> Callable[[bytes], object]:
        """The quickest function that sends a datagram while no ``tap`` is set.

        It may be C code, which raises OSError if the datagram was not sent. Then call `send`, which sends the datagram
        or raises the error.
        """
        return self.send

    def send_untapped(self, datagram: bytes) -> None:
        """Send a datagram without calling ``tap``, for messages that recordings must not contain."""
        self.send(datagram)

    @abstractmethod
    def receive(self, into: list[bytes], limit: int) -> bool:
        """Append up to ``limit`` waiting datagrams without blocking; return False when no more will arrive.

        Datagrams appended before an exception stay there.
        """

    @property
    def incoming(self) -> Iterator[bytes] | None:
        """An iterator that waits for each datagram and returns it. It is C code, in which no datagram is lost.

        None if the transport cannot wait: then queues and logs wait until `fileno` is readable, and call `receive`. Set
        `blocked` before waiting, and call `stop_waiting` afterwards. Pass an OSError that it raises to `explain`.
        """
        return None

    @property
    def arrived(self) -> Iterator[bytes] | None:
        """An iterator like `incoming`, for event loops: it raises BlockingIOError instead of waiting."""
        return None

    def nudge(self) -> None:
        """Send a message without effect, so that its answer can be received."""
        with suppress(NfnetError):  # if the process gave up its privilege: the kernel's refusal is also an answer
            self.send(_NOOP)

    def wake(self) -> None:
        """End a wait for `incoming` in another thread, or in the code that this signal handler interrupted."""
        if self.blocked:
            self.nudge()

    def stop_waiting(self) -> None:
        """Note that the loop takes no more from `incoming`."""
        self.blocked = False

    def explain(self, error: OSError) -> None:
        """Raise the `NfnetError` for an OSError of `incoming` or `arrived`; return if nothing was available."""
        raise error

    @abstractmethod
    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        """Send the request that ``build`` returns for a sequence number, and wait for the kernel's acknowledgement.

        Packets that arrive in between are kept for `receive`. Raises the `KernelError` for the errno of a refusal,
        `AckTimeoutError` if no answer arrives.
        """

    @property
    def kept(self) -> bool:
        """Whether `receive` has datagrams for which `fileno` is not readable, because `request` kept them."""
        return False

    @property
    def rcvbuf(self) -> int | None:
        """The size of the socket's receive buffer in bytes, as the kernel counts; None without a socket."""
        return None

    def socket_status(self) -> SocketStatus | None:
        """Return the status of the receive buffer; None without a socket, and before Linux 4.12."""
        return None

    @property
    def patience(self) -> float | None:
        """How long a plain ``recv`` would wait, in seconds; None for no limit."""
        return None

    def interface_name(self, index: int) -> str | None:
        """Return the name of the interface with that index, or None if it no longer exists or is not known."""
        return None

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        """Send an IP packet, header included, in the network namespace of the packets. Test doubles only store it.

        ``interface`` is the index of the interface for addresses of link scope (fe80::/10). Raises KernelError if
        sending fails, NotSupportedError if the transport cannot send packets.
        """
        hint = f"A {type(self).__name__} has no network to send to"
        raise NotSupportedError("injecting a packet", errno.EOPNOTSUPP, hint=hint)

    def is_broadcast(self, address: str) -> bool:
        """Return whether an IPv4 address is the broadcast address of a network to which the machine is connected."""
        return False

    def open_netns(self) -> BinaryIO | None:
        """Return the network namespace of the packets as an open file; None without a kernel.

        Raises ClosedError, and KernelError without CAP_NET_ADMIN.
        """
        return None

    @abstractmethod
    def fileno(self) -> int:
        """Return a file descriptor that polls readable when `receive` has something to return."""

    @abstractmethod
    def close(self) -> None:
        """Close the socket. Can be called twice."""
