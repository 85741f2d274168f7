"""The API of NetfilterQueue: version 1.1, and version 0.2, in which programs subclass `QueueHandler`.

    from nfnet.compat.netfilterqueue import NetfilterQueue

Scripts with ``from netfilterqueue import ...`` run unchanged with ``python -m nfnet.compat script.py``. Names, defaults
and messages are those of the original. docs/netfilterqueue.md describes the differences.
"""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NamedTuple, Protocol

from .. import inet
from .. import packet as nfnet_packet
from .._arguments import check_handler
from .._io.netlink_socket import MAX_QUEUE_DATAGRAM, NetlinkSocket
from .._io.transport import Transport
from .._queue_binding import QueueBinding
from ..errors import AlreadyDecidedError, ClosedError, NfnetError
from ..protocol import nfqnl
from ..queue import Queue
from ._assigned_numbers import PROTOCOLS
from ._borrowed import BorrowedTransport
from ._c_numbers import INT, U8, U16, U32, truncated

__all__ = [
    "COPY_META",
    "COPY_NONE",
    "COPY_PACKET",
    "PROTOCOLS",
    "VERSION",
    "NetfilterQueue",
    "Packet",
    "QueueHandler",
    "__version__",
]

VERSION = (1, 1, 0)
__version__ = "1.1.0"

COPY_NONE = 0
COPY_META = 1
COPY_PACKET = 2

_MAX_COPY = 0xFFFF
_SOCK_LEN = 1024 * (4096 - 80 + 780) // 2  # the default of the original, for 1024 packets
_MAX_SOCK_LEN = 0x3FFFFFFF  # setsockopt(2) accepts no larger size, because it doubles it
# Calling these directly is faster than super().
_accept, _drop, _repeat = nfnet_packet.Packet.accept, nfnet_packet.Packet.drop, nfnet_packet.Packet.repeat

# The original calls an async callback and does not await it, so that it never decides a packet.
_REMEDY = "for those there is nfnet.AsyncQueue"

_HW_SIZE = 8  # bytes of the field in the kernel's struct; those after the address are zero


class Packet(nfnet_packet.Packet):
    """A packet that waits for a verdict. Interfaces are indexes; 0 means none.

    It is also a `nfnet.Packet`, with all its attributes.
    """

    __slots__ = ("__weakref__", "_changes", "_kept", "_live", "_queue")

    # Set by `NetfilterQueue._calling`, because a call of __init__ for each packet would be too slow.
    _changes: dict[str, Any] | None  # arguments for the verdict
    _kept: bytes | None  # the payload after `retain`
    _live: bool  # whether the callback is being executed
    _queue: NetfilterQueue  # a reference that keeps the queue bound while one of its packets can be decided

    def __repr__(self) -> str:
        return f"<netfilterqueue.Packet object at {id(self):#x}>"

    def __str__(self) -> str:
        length = self.get_payload_len()
        payload = self._kept or (self.payload if self._live else b"")
        if not payload:
            return f"{length} byte packet, contents unretained"
        number = inet.protocol(payload)
        name = "Unknown protocol" if number is None else PROTOCOLS.get(number, "Unknown protocol")
        return f"{name} packet, {length} bytes"

    @property
    def hook(self) -> int:  # type: ignore[override]
        """The hook that queued it: 0 PREROUTING, 1 INPUT, 2 FORWARD, 3 OUTPUT, 4 POSTROUTING."""
        return int(super().hook)

    @property
    def indev(self) -> int:
        """The incoming interface."""
        return super().indev or 0

    @property
    def outdev(self) -> int:
        """The outgoing interface."""
        return super().outdev or 0

    @property
    def physindev(self) -> int:
        """The incoming bridge port."""
        return super().physindev or 0

    @property
    def physoutdev(self) -> int:
        """The outgoing bridge port."""
        return super().physoutdev or 0

    def get_hw(self) -> bytes | None:
        """Return the source MAC address and two zero bytes, or None for packets of this machine."""
        address = self.hwaddr
        return None if address is None else address.ljust(_HW_SIZE, b"\0")

    def get_payload(self) -> bytes:
        """Return the packet from its network header on, or the argument of `set_payload`.

        Raises RuntimeError if it was not copied (COPY_META), or after the callback without `retain`.
        """
        if self._live and self._changes is None:
            payload = self.payload
            if payload:
                return payload
        return self._any_payload()

    def _any_payload(self) -> bytes:
        given: bytes | None = (self._changes or {}).get("payload")
        payload = given or self._kept or self.payload
        if not payload:
            raise RuntimeError("Packet has no payload -- perhaps you're using COPY_META mode?")
        if not (self._live or given or self._kept):
            raise RuntimeError(
                "Payload data is no longer available. You must call retain() within the user_callback in order to copy"
                " the payload if you need to expect it after your callback has returned."
            )
        return payload

    def get_payload_len(self) -> int:
        """Return the length of the received payload in bytes."""
        return len(self.payload)

    def get_timestamp(self) -> float:
        """Return the arrival time in seconds since 1970; 0.0 for OUTPUT and POSTROUTING."""
        return self.timestamp or 0.0

    def get_mark(self) -> int:
        """Return the mark that was set, or the mark with which the packet was queued."""
        mark: int = (self._changes or {}).get("mark", self.mark)
        return mark

    def set_payload(self, payload: bytes) -> None:
        """Replace the packet's bytes, from the network header on. Checksums are not corrected."""
        if payload is not None and not isinstance(payload, bytes):
            raise TypeError(f"Argument 'payload' has incorrect type (expected bytes, got {type(payload).__name__})")
        self._changes = {**(self._changes or {}), "payload": payload or None}

    def set_mark(self, mark: int) -> None:
        """Set the packet's mark, 32 bits; a float is truncated. Raises OverflowError, TypeError."""
        self._changes = {**(self._changes or {}), "mark": truncated(mark, U32)}

    def _check_beginning(self, data: bytes) -> None:
        """Accept any payload, like the original, because some programs send malformed packets on purpose."""

    def retain(self) -> None:
        """Keep the payload after the callback has returned."""
        self._kept = self.get_payload()

    def accept(self) -> None:  # type: ignore[override]
        """Accept the packet.

        Raises RuntimeError for a second verdict or after `NetfilterQueue.unbind`; other errors are nfnet's.
        """
        try:
            if self._changes is None:
                _accept(self)
            else:
                _accept(self, **self._changes)
        except (AlreadyDecidedError, ClosedError) as error:
            raise _in_their_words(error) from None

    def drop(self) -> None:  # type: ignore[override]
        """Drop the packet. Raises the errors of `accept`."""
        try:
            _drop(self)
        except (AlreadyDecidedError, ClosedError) as error:
            raise _in_their_words(error) from None

    def repeat(self) -> None:  # type: ignore[override]
        """Let the packet traverse its hook again from the first rule. Raises the errors of `accept`."""
        try:
            _repeat(self, **(self._changes or {}))
        except (AlreadyDecidedError, ClosedError) as error:
            raise _in_their_words(error) from None


def _in_their_words(error: NfnetError) -> RuntimeError:
    if isinstance(error, ClosedError):
        return RuntimeError("Parent queue has already been unbound")
    return RuntimeError("Verdict already given for this packet")


Callback = Callable[[Packet], object]


class _Queue(Queue):
    packet_type = Packet

    def _wait(self, binding: QueueBinding) -> None:
        """Like the original, stop if nothing arrives and the script made the socket non-blocking, or set a timeout."""
        patience = binding.transport.patience
        if patience is None:
            super()._wait(binding)
            return
        poller, until = self._polling(binding), monotonic() + patience
        while (left := until - monotonic()) > 0:
            if poller.wait(left):
                return
        self.stop()


def _call(callback: Any, packet: Packet) -> Any:
    return callback(packet)


def _process_all(queue: Queue, handler: Callable[[Any], Any]) -> None:
    """Hand out the waiting packets. The loop is in a function of its own, as `locks` requires."""
    while queue.process(handler):
        pass


class _Receives(Protocol):
    def recv(self, size: int, /) -> bytes: ...


class _Bound(NamedTuple):
    queue: _Queue
    transport: BorrowedTransport
    callback: Callable[[Any], Any]


class NetfilterQueue:
    """A handle with which one queue at a time can be bound.

    af: the address family; without effect since Linux 3.8.
    sockfd: the descriptor of a NETLINK_NETFILTER socket, to use instead of a new one; for instance one made in another
        network namespace. It is duplicated; the caller keeps the original.
    transport: a source of packets in place of the kernel, see `nfnet.replay`; the original has no such argument.

    Floats are truncated to integers, here and in `bind`.

    Raises OSError: "Failed to bind family 2. Are you root?", "dup2 failed", "Failed to open NFQueue."; OverflowError.
    """

    _transport: Transport
    _bound: _Bound | None
    _process: int

    # Not __init__: as in the original, a subclass with its own __init__ does not need to call that of this class.
    def __new__(cls, *, af: int = 2, sockfd: int = -1, transport: Transport | None = None) -> NetfilterQueue:
        self = super().__new__(cls)
        self._bound = None
        self._process = os.getpid()
        af, sockfd = truncated(af, U16), truncated(sockfd, INT)
        self._transport = _open(sockfd) if transport is None else transport
        if transport is None:
            try:
                self._transport.request(_pf_bind, "asking for permission")
            except NfnetError as error:
                self._transport.close()
                raise _os_error(f"Failed to bind family {af}. Are you root?", error) from error
        return self

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter ends the modules are empty, and the end of the process unbinds the queue.
        if _is_finalizing() or getattr(self, "_transport", None) is None:
            return
        try:
            if self._process == os.getpid():  # a forked child must not unbind its parent's queue
                self.unbind()
        finally:
            self._transport.close()

    def bind(
        self,
        queue_num: int,
        user_callback: Callback,
        max_len: int = 1024,
        mode: int = COPY_PACKET,
        range: int = _MAX_COPY,
        sock_len: int = _SOCK_LEN,
    ) -> None:
        """Bind to a queue; `run` then calls ``user_callback`` with each packet.

        max_len: how many packets can wait.
        mode: COPY_NONE, COPY_META (without the payload) or COPY_PACKET.
        range: how many bytes of each packet to copy.
        sock_len: the size of the receive buffer, in bytes.

        Raises RuntimeError if a queue is bound, OSError "Failed to create queue N." or "Failed to set packet copy
        mode.", OverflowError for numbers that do not fit into 32 bits (mode: 8), ArgumentError for other queue
        numbers than 0 to 65535, TypeError for an async callback. Warns (RuntimeWarning) if the receive buffer is
        smaller than requested.
        """
        if callable(user_callback):
            check_handler(user_callback, _REMEDY)
        sock_len = truncated(sock_len, U32)
        self._bind(queue_num, user_callback, max_len, mode, range)
        try:
            self._ask_for_buffer(sock_len)
        except BaseException:  # a filter can turn the warning into an exception
            self.unbind()
            raise

    def _bind(self, queue_num: int, user_callback: Callback, max_len: int, mode: int, copy_range: int) -> None:
        queue_num, max_len = truncated(queue_num, INT), truncated(max_len, U32)
        mode, copy_range = truncated(mode, U8), truncated(copy_range, U32)
        if self._bound is not None:
            raise RuntimeError("A queue is already bound; use unbind() first")
        if mode not in (COPY_NONE, COPY_META, COPY_PACKET):
            raise OSError("Failed to set packet copy mode.")
        if not callable(user_callback):  # like the original, raise TypeError at the first packet
            user_callback = partial(_call, user_callback)
        lent = BorrowedTransport(self._transport)
        queue = _Queue(
            queue_num,
            copy_mode=mode,
            copy_range=min(copy_range, _MAX_COPY) or _MAX_COPY,
            max_len=max_len,
            timestamps=True,
            transport=lent,
        )
        try:
            queue.open()
        except NfnetError as error:
            raise _os_error(f"Failed to create queue {queue_num}.", error) from error
        if self._transport.kept:
            self._transport.nudge()
        self._bound = _Bound(queue, lent, user_callback)

    def _ask_for_buffer(self, size: int) -> None:
        sock = self._transport
        if not isinstance(sock, NetlinkSocket):
            return
        sock.rcvbuf = 2 * min(size, _MAX_SOCK_LEN)
        if sock.rcvbuf != 2 * size:
            text = f"Socket rcvbuf limit is now {sock.rcvbuf}, requested {size}."
            warnings.warn(text, RuntimeWarning, stacklevel=3)

    def unbind(self) -> None:
        """Unbind the queue; the kernel drops its packets. Can be called twice; a `run` in another thread returns."""
        bound, self._bound = self._bound, None
        if bound is not None:
            bound.queue.close()

    def get_fd(self) -> int:
        """Return the descriptor of the socket. When it is readable, call ``run(block=False)``."""
        return self._transport.fileno()

    def run(self, block: bool = True) -> None:
        """Call the callback for each packet, until `unbind`; without ``block``, until no packet waits.

        Exceptions of the callback are raised here; `run` can be called again, and continues with the next packet.
        Raises nfnet's errors if the kernel refuses a request.
        """
        while (bound := self._bound) is not None:
            bound.transport.read_from(None)
            bound.transport.on_would_block = bound.queue.stop
            with self._staying_readable(bound):
                if block:
                    bound.queue.run(self._calling(bound.callback))
                else:
                    _process_all(bound.queue, self._calling(bound.callback))
            if self._bound is bound:
                return
            # Otherwise the callback has bound another queue, or the same one again: continue with that.

    def _calling(self, callback: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return a handler that sets the attributes of `Packet` and calls the callback."""

        def handler(packet: Any) -> Any:
            packet._queue = self
            packet._changes = packet._kept = None
            packet._live = True
            try:
                return callback(packet)
            finally:
                packet._live = False

        return handler

    def run_socket(self, s: _Receives) -> None:
        """Call the callback for each packet that ``s.recv`` returns. ``s`` is usually a copy of the socket.

        Returns when ``s.recv`` would block, or returns no bytes. Continues when packets were lost (ENOBUFS). Other
        exceptions of ``s.recv`` are raised here, ``socket.timeout`` among them.
        """
        datagrams: list[bytes] = []
        while True:
            if (bound := self._bound) is not None:
                bound.transport.read_from(datagrams)
                with self._staying_readable(bound):
                    _process_all(bound.queue, self._calling(bound.callback))
            try:
                datagram = s.recv(MAX_QUEUE_DATAGRAM)
            except OSError as error:
                number = error.args[0] if error.args else None  # `errno` is None if there are no other arguments
                if number in (errno.EAGAIN, errno.EWOULDBLOCK):
                    return
                if number != errno.ENOBUFS:
                    raise
                continue
            if not datagram:
                return
            datagrams.append(datagram)

    @contextmanager
    def _staying_readable(self, bound: _Bound) -> Iterator[None]:
        """Keep the socket readable if an exception ends the loop, since received packets may not be handed out yet."""
        try:
            yield
        except BaseException as error:
            if self._bound is bound:
                self._transport.nudge()
            elif isinstance(error, ClosedError):
                return  # `unbind` in another thread has ended the loop
            raise


def _pf_bind(seq: int, number: int = 0) -> bytes:
    """Return a request that has no effect, but needs the privilege."""
    return nfqnl.config(number, command=nfqnl.Command.PF_BIND, seq=seq, ack=True)


def _open(sockfd: int) -> NetlinkSocket:
    try:
        return NetlinkSocket(datagram=MAX_QUEUE_DATAGRAM, fd=sockfd if sockfd >= 0 else None, inherit=True)
    except NfnetError as error:
        number = getattr(error, "errno", None)
        text = "dup2 failed" if number == errno.EBADF else "Failed to open NFQueue."
        raise OSError(number, text) from error


def _os_error(text: str, cause: NfnetError) -> OSError:
    """Return the error that the original would raise, with the errno."""
    error = OSError(text)
    error.errno = getattr(cause, "errno", None)
    return error


class QueueHandler:
    """The API of version 0.2. Subclass it, and override `handle`."""

    _queue: NetfilterQueue

    def __new__(cls, *arguments: object, **options: Any) -> QueueHandler:
        self = super().__new__(cls)
        self._queue = NetfilterQueue(af=options.get("af", 2))
        return self

    def bind(self, queue_num: int, max_len: int = 1024, mode: int = COPY_PACKET, range: int = _MAX_COPY) -> None:
        """Bind to a queue. Arguments and errors as for `NetfilterQueue.bind`."""
        check_handler(self.handle, _REMEDY)
        self._queue._bind(queue_num, lambda packet: self.handle(packet), max_len, mode, range)

    def unbind(self) -> None:
        """Unbind the queue; the kernel drops the packets that wait in it."""
        self._queue.unbind()

    def run(self) -> None:
        """Call `handle` for each packet."""
        self._queue.run()

    def handle(self, packet: Packet) -> None:
        """Decide one packet. This method accepts it."""
        packet.accept()
