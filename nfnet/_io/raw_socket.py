"""The raw socket for injecting packets."""

from __future__ import annotations

import _socket
import errno
import socket
import struct
from collections.abc import Callable

from ..errors import (
    ArgumentError,
    ClosedError,
    KernelError,
    NotPermittedError,
    check_system,
    raised_by_program,
    system_error,
)
from ..inet._answers import fragments
from .locks import RLock
from .native import new_socket
from .system import check_linux

INJECTED_MARK = 0x10000000
"""The default mark of packets that nfnet injects. Rules of `nfnet.rules.queue` skip packets with this mark.

Injected packets traverse the hooks like all packets that this machine sends, output first. Without the mark, a rule
that matches them would queue them again.
"""

_IP_MTU, _IPV6_MTU = 14, 24
# Injected packets count against the send buffer until they have left, also while they wait in a queue.
# net.core.wmem_max limits it. The kernel's default, 208 KiB, holds 256 small packets.
_SNDBUF = 1 << 20

_Open = Callable[[Callable[[], _socket.socket]], _socket.socket]


class RawSocket:
    """Sends IPv4 and IPv6 packets unchanged in one network namespace.

    mark: the mark of the packets (SO_MARK).
    broadcast: whether packets may be sent to broadcast addresses (SO_BROADCAST).
    open_in: calls a function in the network namespace.

    The sockets are opened when they are first needed: one for each family, and one that never sends, on which
    `is_broadcast` calls ``connect`` to learn whether the kernel takes an address for a broadcast address.
    """

    def __init__(self, mark: int, open_in: _Open, *, broadcast: bool = False) -> None:
        self._mark = mark
        self._broadcast = broadcast
        self._open_in = open_in
        self._sockets: dict[int, _socket.socket] = {}
        self._asking: _socket.socket | None = None
        self._closed = False
        self._lock = RLock()  # another thread, or a signal handler, can call `close`

    def send(self, packet: bytes, interface: int | None = None) -> None:
        """Send a packet whose lengths and checksums are right, in fragments if it exceeds the MTU of the path.

        interface: index of the interface to whose link an IPv6 destination of link scope belongs.

        Never waits. Raises NotPermittedError without CAP_NET_RAW, KernelError if it cannot be sent, and ArgumentError
        if it is too large and must not be fragmented.
        """
        check_linux("injecting a packet")
        family, destination = _where_to(packet, interface)
        with self._lock:
            self._check_open()
            sock = self._sockets.get(family)
            if sock is None:
                sock = self._sockets[family] = self._open_in(lambda: _open(family, self._mark, self._broadcast))
            try:
                sock.sendto(packet, socket.MSG_DONTWAIT, destination)
                return
            except OSError as error:
                if error.errno != errno.EMSGSIZE:
                    raise _explained(error, packet, destination[0]) from None
            for piece in self._cut(family, packet, destination):
                try:
                    sock.sendto(piece, socket.MSG_DONTWAIT, destination)
                except OSError as error:
                    raise _explained(error, piece, destination[0]) from None

    def _cut(self, family: int, packet: bytes, destination: tuple[object, ...]) -> list[bytes]:
        mtu = self._open_in(lambda: _connected(family, self._mark, destination))
        try:
            option = (socket.IPPROTO_IP, _IP_MTU) if family == socket.AF_INET else (socket.IPPROTO_IPV6, _IPV6_MTU)
            size = mtu.getsockopt(*option)
        finally:
            mtu.close()
        try:
            return fragments(packet, size)
        except ArgumentError as error:
            text = f"the packet has {len(packet)} bytes, and {size} is the most on the way to {destination[0]}"
            raise ArgumentError(f"{text}: {error}") from None

    def is_broadcast(self, address: str) -> bool:
        """Return whether an IPv4 address is the broadcast address of a network to which the machine is connected."""
        with self._lock:
            self._check_open()
            sock = self._asking
            if sock is None:
                sock = self._asking = self._open_in(_open_asking)
            # A route can also prohibit the address (EACCES), but then it does so with SO_BROADCAST, too.
            return _refused(sock, address, broadcast=False) and not _refused(sock, address, broadcast=True)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("the queue is closed: nothing can be sent from it")

    def close(self) -> None:
        """Close the sockets. Can be called twice."""
        with self._lock:
            self._closed = True
            self._close_all()

    def _close_all(self) -> None:
        for sock in self._sockets.values():
            sock.close()
        if self._asking is not None:
            self._asking.close()

    def after_fork(self) -> None:
        """Close the sockets in a forked child, which opens its own and lacks the thread that may have held the lock."""
        self._lock = RLock()
        self._close_all()
        self._sockets, self._asking = {}, None


def _where_to(packet: bytes, interface: int | None) -> tuple[int, tuple[object, ...]]:
    """Return the address family of a packet, and its destination in the form that the socket takes."""
    if packet[0] >> 4 == 4:
        return socket.AF_INET, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0)
    address = packet[24:40]
    is_link_scope = address[:2] in (b"\xff\x02", b"\xff\x01") or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
    scope = interface or 0 if is_link_scope else 0
    return socket.AF_INET6, (socket.inet_ntop(socket.AF_INET6, address), 0, 0, scope)


def _open(family: int, mark: int, broadcast: bool) -> _socket.socket:
    """Open a raw socket in the network namespace of the calling thread."""
    try:
        # IPPROTO_RAW: the program supplies the IP header, too; and the socket never receives anything.
        sock = new_socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)
    except PermissionError as error:
        check_system(error)
        hint = "CAP_NET_RAW over this network namespace is needed: run as root, or give the process that capability"
        raise NotPermittedError("opening a raw socket", error.errno or errno.EPERM, hint=hint) from None
    except OSError as error:
        raise system_error("opening a raw socket", error) from None
    try:
        _set_mark(sock, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SNDBUF // 2)
    except PermissionError as error:
        sock.close()
        check_system(error)
        hint = "CAP_NET_ADMIN over this network namespace is needed: run as root, or give the process that capability"
        raise NotPermittedError("marking injected packets", error.errno or errno.EPERM, hint=hint) from None
    except OSError as error:
        sock.close()
        raise system_error("configuring a raw socket", error) from None
    return sock


def _set_mark(sock: _socket.socket, mark: int) -> None:
    if mark:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", mark))  # as an int it would be signed


def _connected(family: int, mark: int, destination: tuple[object, ...]) -> _socket.socket:
    """Return a connected socket that never sends; the kernel reports the MTU of the path to its destination."""
    sock: _socket.socket | None = None
    try:
        sock = new_socket(family, socket.SOCK_DGRAM)
        _set_mark(sock, mark)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.connect((destination[0], 9, *destination[2:]))
    except OSError as error:
        if sock is not None:
            sock.close()
        raise system_error(f"finding the MTU of the way to {destination[0]}", error) from None
    return sock


def _open_asking() -> _socket.socket:
    try:
        return new_socket(socket.AF_INET, socket.SOCK_DGRAM)
    except OSError as error:
        raise system_error("opening a socket", error) from None


def _refused(sock: _socket.socket, address: str, *, broadcast: bool) -> bool:
    """Return whether the kernel refuses to connect a socket to an address (EACCES)."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
        sock.connect((address, 9))
    except OSError as error:
        check_system(error)
        return error.errno == errno.EACCES
    return False


def _explained(error: OSError, packet: bytes, destination: object) -> OSError:
    number = error.errno
    if number is None or raised_by_program(error):
        return error
    operation = f"injecting a packet of {len(packet)} bytes for {destination}"
    hints = {
        errno.EPERM: "A rule of a firewall drops it, at the hook output or a later one",
        errno.EACCES: "It is a broadcast address, or a route of this machine prohibits it",
        errno.ENETUNREACH: "This machine has no route to there",
        errno.EHOSTUNREACH: "This machine has no route to there",
        errno.EAGAIN: "Too many injected packets wait to leave, in a queue, perhaps: try again later",
        errno.ENOBUFS: "Too many injected packets wait to leave: try again later",
    }
    if number == errno.EINVAL and str(destination).startswith("fe80"):
        hints[errno.EINVAL] = "The address is one of a link, and which link that is, is not known"
    return KernelError(operation, number, hint=hints.get(number))
