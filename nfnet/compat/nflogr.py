"""The API of nflogr 0.2.

    from nfnet.compat import nflogr

Scripts with ``import nflogr`` run unchanged with ``python -m nfnet.compat script.py``. Names, defaults and messages are
those of the original. docs/nflogr.md describes the differences.
"""

from __future__ import annotations

import operator
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .._arguments import check_handler
from .._io import at_fork
from .._io.locks import RLock, uninterrupted
from .._io.native import select
from .._io.netlink_socket import MAX_DATAGRAM, NetlinkSocket
from .._io.system import Event
from .._io.transport import Transport
from ..errors import BusyError, BusyReadingError, ClosedError, KernelError, OverrunError
from ..log import Log, LogMessage
from ..protocol.nfulnl import MAX_BUFFER_SIZE, MAX_TIMEOUT, MIN_BUFFER_SIZE
from ._assigned_numbers import ETHERTYPES, HWTYPES
from ._c_numbers import INT, LONG_LONG, UNSIGNED_CHAR, real, whole
from ._nflogdata import NflogData, wrap

COPY_NONE = 0
COPY_META = 1
COPY_PACKET = 2
ENOBUFS_RAISE = 0
ENOBUFS_HANDLE = 1
ENOBUFS_DISABLE = 2

globals().update({f"PROTO_{name}": number for name, number in ETHERTYPES.items()})
globals().update({f"HWTYPE_{name}": number for name, number in HWTYPES.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> int: ...


__title__ = "nflogr"
__version__ = "0.2.12"

__all__ = [
    "COPY_META",
    "COPY_NONE",
    "COPY_PACKET",
    "ENOBUFS_DISABLE",
    "ENOBUFS_HANDLE",
    "ENOBUFS_RAISE",
    "Nflog",
    "NflogClosedError",
    "NflogData",
    "NflogDroppedError",
    "NflogError",
    "NflogRetryError",
    "open",
    *(f"PROTO_{name}" for name in ETHERTYPES),
    *(f"HWTYPE_{name}" for name in HWTYPES),
]

_TIMEOUT_RANGE = 42949672.951  # the maximum of the original; beyond MAX_TIMEOUT the kernel's timer would wrap around
_MAX_RCVBUF = 0x3FFFFFFF


class NflogError(Exception):
    """The root of this module's errors."""


class NflogRetryError(NflogError):
    """A signal handler tried to read while the thread that it interrupted reads. Nothing was lost."""


class NflogDroppedError(NflogError):
    """The receive buffer was full and messages were lost (ENOBUFS); reading can continue."""


class NflogClosedError(NflogError):
    """The log is closed, and all messages have been read."""


class Nflog(at_fork.AtFork):
    """A log group, opened by `open`. Several threads can read it."""

    def __init__(self, log: Log | None, socket: NetlinkSocket | None, enobufs: int, batches: Iterator[Any]) -> None:
        self._log = log
        self._socket = socket
        self._group = None if log is None else log.group
        self._enobufs = enobufs
        self._batches = batches  # instead of a log, see `_from_iter`
        self._closed = False
        self._raw_wanted = False
        self._drops = 0
        self._buffer: deque[LogMessage | NflogData] = deque()
        self._filling = RLock()
        self._showing = RLock()
        self._process = os.getpid()
        self._open_poll()
        at_fork.register(self)

    def _open_poll(self) -> None:
        """Open the descriptor that is readable when the socket or the buffer has messages."""
        self._buffered = Event()
        self._shown = bool(self._buffer)
        if self._shown:
            self._buffered.set()
        self._poll = select.epoll()
        self._poll.register(self._buffered, select.EPOLLIN)
        if self._log is not None and not self._closed:
            self._poll.register(self._log.fileno(), select.EPOLLIN)

    def _close_poll(self) -> None:
        self._poll.close()
        self._buffered.close()

    def after_fork(self) -> None:
        self._showing, self._filling = RLock(), RLock()  # threads that held the others do not exist in the child
        self._close_poll()
        with suppress(ClosedError):  # the child does not have the socket
            self._open_poll()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter ends the modules are empty, and the end of the process unbinds the group.
        if _is_finalizing() or "_shown" not in self.__dict__:  # or __init__ failed
            return
        try:
            if self._process == os.getpid():  # a forked child must not unbind its parent's group
                self.close()
        finally:
            self._close_poll()

    # --- reading

    def queue(self, wait: bool = True) -> int:
        """Read messages into the buffer and return how many. Waits for a message only if the buffer is empty.

        Raises NflogDroppedError (ENOBUFS_RAISE).
        """
        added = self._fill(bool(wait))
        self._show_buffered()
        return added

    def next(self, wait: bool = True) -> NflogData | None:
        """Return the next message, or None if no message is available and ``wait`` is false.

        Raises NflogDroppedError (ENOBUFS_RAISE), and NflogClosedError if the log is closed and all messages were read.
        """
        try:
            while True:
                try:
                    message = self._buffer.popleft()
                except IndexError:
                    if self._closed and wait:
                        raise NflogClosedError(f"nflog group {self._group} is closed") from None
                    if not self._fill(bool(wait)) and not wait:
                        return None
                else:
                    return wrap(message) if isinstance(message, LogMessage) else message
        finally:
            self._show_buffered()

    def loop(self, fn: Callable[[NflogData], object], count: int = -1) -> None:
        """Call ``fn`` with each message until the log is closed, at most ``count`` times if that is not negative.

        Exceptions of ``fn`` are raised here.
        """
        if not callable(fn):
            raise TypeError("argument must be callable")
        check_handler(fn, "for those there is nfnet.AsyncLog")
        count = whole(count, INT)
        while count != 0:
            try:
                data = self.next()
            except NflogClosedError:
                return
            assert data is not None
            fn(data)
            count -= count > 0

    def __iter__(self) -> Nflog:
        return self

    def __next__(self) -> NflogData:
        try:
            data = self.next()
        except NflogClosedError:
            raise StopIteration from None
        assert data is not None
        return data

    def _fill(self, wait: bool) -> int:
        for acquired in uninterrupted(self._filling.acquire, wait):
            if not acquired:
                break  # another thread is already waiting for messages
            try:
                return self._fill_alone(wait)
            finally:
                self._filling.release()
        return 0

    def _fill_alone(self, wait: bool) -> int:
        before = len(self._buffer)
        if self._log is None:
            return self._fill_from_batches()
        while not self._closed:
            try:
                self._take(self._log, wait and not self._buffer)
            except OverrunError as error:
                if self._enobufs == ENOBUFS_RAISE:
                    raise NflogDroppedError("packets were dropped (ENOBUFS)") from error
                self._drops += 1
                continue
            except ClosedError:
                if not self._closed:
                    raise
            except BusyReadingError:  # in a signal handler
                raise NflogRetryError("this thread is reading already") from None
            return len(self._buffer) - before
        return 0

    def _take(self, log: Log, wait: bool) -> None:
        append = self._buffer.append
        if log.process(append) or not wait:
            return

        def take_first(message: LogMessage) -> None:
            append(message)
            log.stop()

        log.run(take_first)

    def _fill_from_batches(self) -> int:
        for batch in self._batches:
            self._buffer.extend(NflogData(*item) for item in batch)
            return len(batch)
        self.close()
        return 0

    def _show_buffered(self) -> None:
        with self._showing:
            if self._shown == bool(self._buffer):
                return
            # The flag comes last: an exception before it lets this happen again, which does no harm.
            if self._buffer:
                self._buffered.set()
            else:
                self._buffered.clear()
            self._shown = bool(self._buffer)

    # --- the rest

    def close(self) -> None:
        """Unbind the group. Buffered messages can still be read."""
        self._closed = True
        if self._log is not None:
            self._log.close()

    def __enter__(self) -> Nflog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return how many messages are buffered."""
        return len(self._buffer)

    def __bool__(self) -> bool:
        return True

    @property
    def queued(self) -> int:
        """How many messages are buffered."""
        return len(self._buffer)

    def getfd(self) -> int | None:
        """Return a file descriptor that is readable when messages are available, or None if the log is closed."""
        return None if self._closed or self._log is None else self._poll.fileno()

    def fileno(self) -> int:
        """Return what `getfd` returns. Raises ValueError if the log is closed."""
        fd = self.getfd()
        if fd is None:
            raise ValueError("I/O operation on closed handle")
        return fd

    def getgroup(self) -> int | None:
        """Return the number of the group."""
        return self._group

    @property
    def rcvbuf(self) -> int | None:
        """Size of the receive buffer in bytes, half of the kernel's number (SO_RCVBUF); None if the log is closed."""
        return None if self._closed or self._socket is None else self._socket.rcvbuf // 2

    @rcvbuf.setter
    def rcvbuf(self, size: int) -> None:
        size = _in_range("rcvbuf", whole(size, LONG_LONG), _MAX_RCVBUF)
        if self._closed or self._socket is None:
            raise NflogClosedError("the receive buffer of a closed handle cannot be set")
        if size:
            _set_rcvbuf(self._socket, size)

    @property
    def drops(self) -> int:
        """How often messages were lost (ENOBUFS_HANDLE); can be set to 0."""
        return self._drops

    @drops.setter
    def drops(self, value: int) -> None:
        if not hasattr(type(value), "__index__") or operator.index(value) != 0:
            raise TypeError("drops can only be set to 0")
        self._drops = 0

    def _raw(self, value: bool | None = None) -> bool:
        if value is not None:
            if not isinstance(value, bool):
                raise ValueError("value must be `True`, `False` or `None`")
            self._raw_wanted = value
        return self._raw_wanted

    def _recv_raw(self) -> list[tuple[dict[int, str], tuple[bytes | None, ...]]]:
        self._buffer.clear()
        self.queue()
        return [data._get_raw() for data in iter(lambda: self.next(False) if self._buffer else None, None)]


def open(  # noqa: A001 (the name is the original's)
    group: int,
    *,
    timeout: float = 0.0,
    qthresh: int = 1,
    rcvbuf: int = 0,
    nlbuf: int = 0,
    enobufs: int = ENOBUFS_RAISE,
    copymode: int = COPY_PACKET,
    transport: Transport | None = None,
) -> Nflog:
    """Bind to a log group.

    timeout: how long the kernel collects messages before it sends them, in seconds, with a resolution of 0.01.
    qthresh: how many messages it collects.
    rcvbuf: the size of the receive buffer, in bytes; 0 for the system's default.
    nlbuf: the size of the kernel's buffer for collected messages, in bytes. A value that the kernel refuses is replaced
        by the nearest valid one.
    enobufs: the reaction to lost messages: raise NflogDroppedError, count them, or disable the kernel's report.
    copymode: COPY_NONE, COPY_META (without the payload) or COPY_PACKET.
    transport: a source of messages in place of the kernel, see `nfnet.replay`; the original has no such argument.

    Raises ValueError, OverflowError for numbers that do not fit into C's integers, PermissionError if another process
    has bound the group or without CAP_NET_ADMIN, other OSErrors.
    """
    group, timeout = whole(group, INT), real(timeout)
    qthresh, rcvbuf, nlbuf = whole(qthresh, LONG_LONG), whole(rcvbuf, LONG_LONG), whole(nlbuf, LONG_LONG)
    enobufs, copymode = whole(enobufs, UNSIGNED_CHAR), whole(copymode, UNSIGNED_CHAR)
    _in_range("group", group, 0xFFFF)
    if not 0 <= timeout <= _TIMEOUT_RANGE:  # also for NaN
        raise ValueError(f"timeout must be in range [0.00,{_TIMEOUT_RANGE:.2f}]")
    _in_range("qthresh", qthresh, 0xFFFFFFFF)
    _in_range("rcvbuf", rcvbuf, _MAX_RCVBUF)
    _in_range("nlbuf", nlbuf, 0xFFFFFFFF)
    if enobufs not in (ENOBUFS_RAISE, ENOBUFS_HANDLE, ENOBUFS_DISABLE):
        raise ValueError("enobufs must be ENOBUFS_RAISE, ENOBUFS_HANDLE, or ENOBUFS_DISABLE")
    if copymode not in (COPY_NONE, COPY_META, COPY_PACKET):
        raise ValueError("copymode must be COPY_NONE, COPY_META, or COPY_PACKET")
    sock = None
    try:
        if transport is None:
            sock = NetlinkSocket(rcvbuf=0, overruns=enobufs != ENOBUFS_DISABLE, datagram=MAX_DATAGRAM, inherit=True)
            if rcvbuf:
                _set_rcvbuf(sock, rcvbuf)
        log = Log(
            group,
            copy_mode=copymode,
            timeout=min(timeout, MAX_TIMEOUT / 100),
            threshold=max(qthresh, 1),
            buffer_size=min(max(nlbuf, MIN_BUFFER_SIZE), MAX_BUFFER_SIZE) if nlbuf else None,
            on_overrun="ignore" if enobufs == ENOBUFS_DISABLE else "raise",
            transport=transport or sock,
        )
        log.open()
    except BaseException as error:
        if sock is not None:
            sock.close()
        if isinstance(error, KernelError):
            raise _os_error(group, error) from error
        raise
    return Nflog(log, sock, enobufs, iter(()))


def _from_iter(iterable: Iterable[Sequence[Any]]) -> Nflog:
    """Return an object that reads batches of arguments of `NflogData` instead of a log, for tests."""
    return Nflog(None, None, ENOBUFS_RAISE, iter(iterable))


def _set_rcvbuf(sock: NetlinkSocket, size: int) -> None:
    sock.rcvbuf = 2 * size
    if sock.rcvbuf < 2 * size:
        raise PermissionError(f"could not set rcvbuf (ENOPERM, {sock.rcvbuf} != {2 * size})")


def _in_range(name: str, value: int, most: int) -> int:
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be in range [0,{most}]")
    return value


def _os_error(group: int, cause: KernelError) -> OSError:
    """Return the error that the original would raise, with the errno."""
    error: OSError
    if isinstance(cause, BusyError):
        text = f"could not bind nflog group {group}, it may be in use, see /proc/net/netfilter/nfnetlink_log"
        error = PermissionError(text)
    elif isinstance(cause, PermissionError):
        error = PermissionError("could not bind protocol family (are you root?)")
    else:
        error = OSError(f"could not bind nflog group {group}: {cause.strerror} ({cause.errno})")
    error.errno = cause.errno
    return error
