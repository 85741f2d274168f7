"""`NetlinkSocket`: the transport to the kernel, a raw AF_NETLINK socket."""

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from typing import BinaryIO

from .. import netns
from ..errors import AckTimeoutError, ClosedError, KernelError, check_system, kernel_error, system_error
from ..protocol import netlink
from ..protocol.nfnetlink import NETLINK_NETFILTER
from . import at_fork
from .interface_names import InterfaceNames
from .locks import RLock
from .moves import move
from .native import among_greenlets, new_socket, select
from .raw_socket import INJECTED_MARK, RawSocket
from .system import MACHINE, check_linux, fcntl
from .transport import SocketStatus, Transport

# Python has names for none of these.
SOL_NETLINK = 270
NETLINK_NO_ENOBUFS = 5
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
SIOCGSKNS = 0x894C  # the same on all machines


def socket_options(machine: str) -> tuple[int, int, int, int]:
    """Return SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMP and SO_MEMINFO for a machine (``uname -m``).

    They differ between machines, and a wrong number may be that of another option.
    """
    for architecture, numbers in _SOCKET_OPTIONS.items():
        if machine.startswith(architecture):
            return numbers
    return 32, 33, 29, 55  # include/uapi/asm-generic/socket.h


_SOCKET_OPTIONS = {  # arch/*/include/uapi/asm/socket.h
    "mips": (31, 33, 29, 55),
    "alpha": (0x100A, 0x100B, 29, 55),
    "sparc": (0x100A, 0x100B, 29, 0x39),
    "parisc": (0x100A, 0x100B, 0x4012, 0x4030),
}
SO_SNDBUFFORCE, SO_RCVBUFFORCE, SO_TIMESTAMP, SO_MEMINFO = socket_options(MACHINE)

_meminfo = struct.Struct("=II24xI")  # SK_MEMINFO_RMEM_ALLOC, RCVBUF, ..., DROPS

KERNEL = (0, 0)  # the kernel's port id, and no multicast groups

# Bytes. The largest datagram has 256 KiB of log messages: the kernel rounds the 128 KiB that may be requested up to the
# size of its allocation. A packet has at most 65,531 bytes and some hundred bytes of metadata. Python shrinks the
# buffer in place, so a size like this costs a packet of 100 bytes nothing measurable.
MAX_QUEUE_DATAGRAM = 0x10000 + 0x2000
MAX_DATAGRAM = 0x40000

DEFAULT_RCVBUF = 8 << 20  # the kernel's default, 208 KiB, holds 92 full-size packets
_SNDBUF = 1 << 18  # room for a datagram of verdicts with a 64 KiB packet in it
_SNDBUF_OVERHEAD = 32  # bytes that netlink_sendmsg keeps for itself
# A signal that arrives between Python's last check for signals and the system call does not end ``recv``: its handler
# would have to wait for the next packet. So no wait is longer than a second.
_RECEIVE_TIMEOUT = struct.pack("@ll", 1, 0)  # struct timeval: one second
_ACK_TIMEOUT = 5.0  # seconds; the kernel answers at once, unless the receive buffer had no room for the answer


def _duplicate(fd: int) -> _socket.socket:
    """Return the socket under another descriptor. Raises OSError, also if it is not a netfilter netlink socket."""
    number = os.dup(fd)
    try:
        # Both descriptors share the blocking mode, and the caller decides about it. If there is a default timeout
        # Python makes the socket non-blocking here, and blocking when the timeout is removed.
        blocking = os.get_blocking(number)
        copy = _socket.socket(fileno=number)  # reads family, type and protocol from the kernel
    except OSError:
        os.close(number)
        raise
    if copy.gettimeout() is not None:
        copy.settimeout(None)
        os.set_blocking(number, blocking)
    if (copy.family, copy.proto) != (socket.AF_NETLINK, NETLINK_NETFILTER):
        copy.close()
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))
    return copy


def _netns_of(sock: _socket.socket) -> BinaryIO:
    try:
        return open(fcntl.ioctl(sock.fileno(), SIOCGSKNS), "rb")
    except OSError as error:
        raise system_error("asking for the network namespace of a socket", error) from None


def _call_beside(sock: _socket.socket, make: Callable[[], _socket.socket]) -> _socket.socket:
    """Return the socket that ``make`` returns in the network namespace of another socket."""
    with _netns_of(sock) as place:
        return netns.call_in_open(place, make)


class NetlinkSocket(Transport, at_fork.AtFork):
    """A NETLINK_NETFILTER socket in the network namespace of the calling thread.

    rcvbuf: size of the receive buffer in bytes, as the kernel will report it; default: 8 MiB; 0 for the system's
        default. The attribute of that name has the granted size.
    overruns: whether to report a full receive buffer (ENOBUFS from `receive`).
    datagram: size in bytes of the largest datagram that can be received.
    fd: descriptor of a socket to use instead of a new one, made in another network namespace, for instance. It is
        duplicated: the caller keeps its own.
    inherit: whether forked children also have the socket. They share it: only one process at a time may read.

    Raises NotSupportedError if the kernel has no nfnetlink or is not Linux, and KernelError for other failures.
    """

    trusted = True
    recordable = True

    def __init__(
        self,
        *,
        rcvbuf: int | None = None,
        overruns: bool = False,
        datagram: int = MAX_DATAGRAM,
        fd: int | None = None,
        inherit: bool = False,
    ) -> None:
        check_linux("opening a netfilter netlink socket")
        try:
            self._socket = (
                new_socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER) if fd is None else _duplicate(fd)
            )
        except OSError as error:
            raise system_error("opening a netfilter netlink socket", error) from None
        self._reading = RLock()  # reentrant, because a signal handler can call `close`
        self._raw = RawSocket(INJECTED_MARK, partial(_call_beside, self._socket))  # no method of self: see `Processes`
        self._names = InterfaceNames(self._socket)
        self.inherit = inherit
        at_fork.register(self)
        self._datagram = datagram
        self._sequence = 0
        self._kept: list[bytes] = []
        self._incoming = map(self._socket.recv, repeat(datagram))
        self._arrived = map(self._socket.recv, repeat(datagram), repeat(socket.MSG_DONTWAIT))
        self._closed = False
        self.tap = None  # in the instance, where Python finds it faster than in the class
        self._sendto = self._socket.sendto
        try:
            self._configure(DEFAULT_RCVBUF if rcvbuf is None else rcvbuf, overruns)
        except OSError as error:
            self._socket.close()
            raise system_error("configuring a netfilter netlink socket", error) from None

    def _configure(self, rcvbuf: int, overruns: bool) -> None:
        sock = self._socket
        # A netlink socket connected to the kernel refuses datagrams from other processes, and the kernel assigns its
        # port id. Earlier datagrams are discarded; only a process with privileges can have sent them.
        sock.connect(KERNEL)
        # This leaves the multicast groups that a socket made by other code may have joined.
        sock.bind(sock.getsockname()[:1] + KERNEL[1:])
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.recv(1, socket.MSG_DONTWAIT)
        # NO_ENOBUFS has an effect that its name does not tell. Without it, after one message that did not fit, the
        # kernel drops *all* further ones, acknowledgements included, until the program has read everything.
        sock.setsockopt(SOL_NETLINK, NETLINK_NO_ENOBUFS, not overruns)
        for option in (NETLINK_CAP_ACK, NETLINK_EXT_ACK):
            try:
                sock.setsockopt(SOL_NETLINK, option, 1)
            except OSError as error:  # before Linux 4.3 and 4.12: longer answers, and no error texts
                check_system(error)
        if not self.inherit:  # the timeout would apply to the other processes that share the socket, too
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _RECEIVE_TIMEOUT)
        self._set_buffer(_SNDBUF, SO_SNDBUFFORCE, socket.SO_SNDBUF)
        if rcvbuf:
            self._set_buffer(rcvbuf, SO_RCVBUFFORCE, socket.SO_RCVBUF)
        self._rcvbuf = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        self.port_id = sock.getsockname()[0]

    def _set_buffer(self, size: int, forced: int, option: int) -> None:
        # The kernel doubles the requested size, to allow for its own overhead.
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, forced, size // 2)
        except PermissionError as error:  # outside the initial user namespace: net.core.[rw]mem_max is the limit
            check_system(error)
            self._socket.setsockopt(socket.SOL_SOCKET, option, size // 2)

    @property
    def rcvbuf(self) -> int:
        """The size of the receive buffer, in bytes as the kernel counts: twice what SO_RCVBUF was set to.

        It can be changed; outside the initial user namespace net.core.rmem_max limits it. Raises KernelError.
        """
        return self._rcvbuf

    @rcvbuf.setter
    def rcvbuf(self, size: int) -> None:
        self._check_open()
        try:
            self._set_buffer(size, SO_RCVBUFFORCE, socket.SO_RCVBUF)
            self._rcvbuf = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        except OSError as error:
            raise system_error(f"setting the receive buffer to {size} bytes", error) from None

    def socket_status(self) -> SocketStatus | None:
        try:
            data = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, _meminfo.size)
        except OSError as error:  # before Linux 4.12, or the socket is closed
            check_system(error)
            return None
        if len(data) < _meminfo.size:
            return None
        unread, rcvbuf, dropped = _meminfo.unpack(data)
        return SocketStatus(rcvbuf, unread, dropped)

    @property
    def patience(self) -> float | None:
        """How long a plain ``recv`` on the socket would wait, in seconds; None for no limit.

        Other code that shares the socket may have made it non-blocking, or set SO_RCVTIMEO. Raises ClosedError.
        """
        if not os.get_blocking(self.fileno()):
            return 0.0
        time = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)  # struct timeval: two longs
        seconds, microseconds = struct.unpack("=ii" if len(time) == 8 else "=qq", time)
        return seconds + microseconds / 1e6 or None

    def send(self, datagram: bytes) -> None:
        try:
            # With an address the kernel checks only the privileges of this process; without one, also those of the
            # process that opened the socket, at that time.
            self._sendto(datagram, KERNEL)
        except OSError as error:
            check_system(error)
            self._check_open()
            if error.errno == errno.EMSGSIZE and self._make_room(len(datagram)):
                self.send(datagram)
                return
            raise system_error(f"sending {len(datagram)} bytes to the kernel", error) from None
        tap = self.tap  # read once: `close` in another thread can reset it
        if tap is not None:
            tap(True, datagram)

    @property
    def outgoing(self) -> Callable[[bytes], object]:
        # Without an address the kernel also checks the privileges that the process that opened the socket had then.
        # Usually that is this process; if the kernel refuses, the caller sends the datagram with `send`.
        return self._socket.send if self.tap is None else self.send

    def send_untapped(self, datagram: bytes) -> None:
        try:
            self._sendto(datagram, KERNEL)
        except OSError as error:
            check_system(error)
            self._check_open()
            raise system_error(f"sending {len(datagram)} bytes to the kernel", error) from None

    def _make_room(self, size: int) -> bool:
        """Enlarge the send buffer for a datagram of that size, and return whether that made it large enough."""
        before = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        self._set_buffer(size + _SNDBUF, SO_SNDBUFFORCE, socket.SO_SNDBUF)
        return before < size < self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) - _SNDBUF_OVERHEAD

    def receive(self, into: list[bytes], limit: int) -> bool:
        if self._kept:
            limit -= move(self._kept, into, limit)
        start = len(into)
        with self._reading:  # `close` in another thread waits; otherwise the number could be another file's by now
            self._check_open()
            try:
                # One loop in C: no signal handler can raise between taking a packet from the kernel and storing it.
                # MSG_DONTWAIT, because other code that shares the socket may have made it blocking.
                into.extend(map(self._socket.recv, repeat(self._datagram, limit), repeat(socket.MSG_DONTWAIT)))
            except BlockingIOError as error:
                check_system(error)
            except OSError as error:
                check_system(error)
                self._check_open()
                raise system_error("receiving from the kernel", error) from None
            finally:
                if self.tap is not None:
                    for datagram in into[start:]:
                        self.tap(False, datagram)
        return True

    @property
    def incoming(self) -> Iterator[bytes] | None:
        return None if among_greenlets() else self._incoming

    @property
    def arrived(self) -> Iterator[bytes]:
        return self._arrived

    def stop_waiting(self) -> None:
        self.blocked = False
        if self._closed:
            self._socket.close()

    def explain(self, error: OSError) -> None:
        check_system(error)
        if isinstance(error, BlockingIOError):  # the timeout of a second has passed, or nothing has arrived
            return
        self._check_open()
        raise system_error("receiving from the kernel", error) from None

    def request(self, build: Callable[[int], bytes], operation: str) -> None:
        self._sequence = self._sequence % 0xFFFFFFFF + 1  # never 0, the sequence number of verdicts
        seq = self._sequence
        try:
            self.send(build(seq))
        except KernelError as error:
            raise kernel_error(operation, error.errno or 0) from None
        deadline = time.monotonic() + _ACK_TIMEOUT
        while True:
            arrived: list[bytes] = []
            try:
                self._socket_receive(arrived)
            finally:
                answer = self._sift(arrived, seq)
            if answer is not None:
                if answer.errno:
                    raise kernel_error(operation, answer.errno, message=answer.message)
                return
            left = deadline - time.monotonic()
            if left <= 0:
                hint = "The receive buffer may have been full, and the answer lost: request a larger one (rcvbuf=)."
                raise AckTimeoutError(operation, errno.ETIMEDOUT, hint=hint)
            if not arrived:
                poll = select.poll()
                poll.register(self.fileno(), select.POLLIN)
                poll.poll(left * 1000)

    def dump(self, request: bytes, operation: str) -> Iterator[bytes]:
        """Send a request for a dump, and yield its messages. Other datagrams that arrive meanwhile are discarded.

        Raises KernelError, AckTimeoutError.
        """
        seq = netlink.read_length_type_and_seq(request)[2]
        self.send(request)
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        while True:
            datagrams: list[bytes] = []
            self.receive(datagrams, 16)
            for datagram in datagrams:
                for _, message in netlink.split_messages(datagram):
                    _, kind, number = netlink.read_length_type_and_seq(message)
                    if number != seq:
                        continue
                    if kind == netlink.NLMSG_DONE:
                        return
                    if kind == netlink.NLMSG_ERROR:
                        answer = netlink.parse_answer(message)
                        raise kernel_error(operation, answer.errno, message=answer.message)
                    yield message
            if not datagrams and not poll.poll(_ACK_TIMEOUT * 1000):
                raise AckTimeoutError(operation, errno.ETIMEDOUT)

    def _socket_receive(self, into: list[bytes]) -> None:
        try:
            into.append(self._socket.recv(self._datagram, socket.MSG_DONTWAIT))
            if self.tap is not None:
                self.tap(False, into[-1])
        except BlockingIOError as error:
            check_system(error)
        except OSError as error:
            check_system(error)
            self._check_open()
            if error.errno != errno.ENOBUFS:  # some packets were lost; the answer can still arrive
                raise system_error("receiving from the kernel", error) from None

    def _sift(self, arrived: list[bytes], seq: int) -> netlink.Answer | None:
        """Return the answer to request ``seq`` if it has arrived, and keep everything else for `receive`."""
        for datagram in arrived:
            if netlink.is_answer(datagram) and (answer := netlink.parse_answer(datagram)).seq == seq:
                return answer
            self._kept.append(datagram)
        return None

    @property
    def kept(self) -> bool:
        """Whether `receive` has datagrams that arrived before an answer, for which the socket is not readable."""
        return bool(self._kept)

    def fileno(self) -> int:
        self._check_open()
        return self._socket.fileno()

    def interface_name(self, index: int) -> str | None:
        return self._names.get(index)

    def inject(self, packet: bytes, interface: int | None = None) -> None:
        self._check_open()
        self._raw.send(packet, interface)

    def is_broadcast(self, address: str) -> bool:
        self._check_open()
        return self._raw.is_broadcast(address)

    def open_netns(self) -> BinaryIO:
        self._check_open()
        return _netns_of(self._socket)

    def close(self) -> None:
        self._closed = True
        self._raw.close()
        if not self.blocked:  # otherwise the loop closes it, so that no other file gets the descriptor before that
            with self._reading:
                self._socket.close()

    def after_fork(self) -> None:
        # A thread that held the lock does not exist in the child. The child closes its copy of the socket unless it is
        # inherited: a queue lives as long as any copy is open, so a child would keep it, full and unread, after its
        # parent has ended. With exec the kernel closes the socket (close-on-exec).
        self._reading = RLock()
        self._raw.after_fork()
        if not self.inherit:
            self._socket.close()

    def _check_open(self) -> None:
        if self._closed or self._socket.fileno() < 0:
            raise ClosedError("the netlink socket is closed")
