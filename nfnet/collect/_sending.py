"""Outputs that send records over a socket to a server that sends no acknowledgements."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .._io.system import fcntl
from ..errors import NfnetError, strerror
from ._batch import Batch
from ._output import Output, OutputError

CONNECT_PATIENCE = 10.0
"""Seconds to wait for a server's answer."""
_PATIENCE = 30.0  # seconds without progress until sending fails
_PIECE = 1 << 20  # bytes that are sent before waiting for the acknowledgement of the server's kernel
_CHUNK = 1 << 16
_KEEPALIVE = {"TCP_KEEPIDLE": 20, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # by name: macOS has not all of them


class _Place(NamedTuple):
    """Identifies a batch that is written again after an error."""

    session: Any
    seq: int | None
    messages: int
    lost: int


class Sender(Output):
    """Sends the records of a batch one after the other, and continues behind the last one that arrived after an error.

    It connects when there are records to send, and tries once a second if it is not connected. `begin` raises no error
    if the server does not answer: messages are kept until it does.
    """

    def __init__(self, target: str, **settings: Any) -> None:
        super().__init__(target, **settings)
        self._socket: socket.socket | None = None
        self._place: _Place | None = None
        self._done = 0  # the number of records of that batch that have arrived

    @abstractmethod
    def encode(self, batch: Batch) -> list[bytes]:
        """Return the records of a batch, including a record of the loss before it."""

    @abstractmethod
    def connect(self) -> socket.socket:
        """Return a socket that is connected to the server. Raises OSError."""

    @abstractmethod
    def send(self, sock: socket.socket, records: Sequence[bytes]) -> None:
        """Send records, and confirm those that arrived. Raises OSError."""

    def check_alive(self, sock: socket.socket) -> None:
        """Raise OSError if the server has closed the connection, if the protocol shows it."""

    def begin(self) -> None:
        """Do nothing: if the server does not answer, `idle` reports it soon after this."""

    def write(self, batch: Batch) -> None:
        records = self.encode(batch)
        place = _Place(batch.session, batch.messages[0].seq, len(batch), batch.lost)
        if place != self._place:
            self._place, self._done = place, 0
        with self._errors():
            self.send(self._open(), records[self._done :])
        self._place = None

    def confirm(self, count: int) -> None:
        """Note that ``count`` more records have arrived, which are not sent again."""
        self._done += count

    def forget(self) -> None:
        """Note that records of this batch were possibly lost: all of it is sent again."""
        self._done = 0

    def idle(self) -> None:
        with self._errors():
            self._open()

    def reopen(self) -> None:
        self.close()
        self.idle()

    def close(self) -> None:
        self._drop()

    def _open(self) -> socket.socket:
        if self._socket is not None:
            try:
                self.check_alive(self._socket)
            except OSError:  # the server was restarted, for instance
                self._drop()
        if self._socket is None:
            self._socket = self.connect()
        return self._socket

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, NfnetError) as error:
            self._drop()
            raise OutputError(explain(error)) from error

    def _drop(self) -> None:
        """Close the socket at once."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def explain(error: Exception) -> str:
    """Return a short text for an error of a socket."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate of the server is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or str(error)).lower().replace('_', ' ')}"
    text = ""
    if isinstance(error, OSError):
        text = error.strerror or (strerror(error.errno) if error.errno else "")  # PyPy's ssl gives no text
    return text or str(error) or type(error).__name__


class DatagramSender(Sender):
    """A datagram for each record."""

    def send(self, sock: socket.socket, records: Sequence[bytes]) -> None:
        for record in records:
            self.send_one(sock, record)
            self.confirm(1)

    def send_one(self, sock: socket.socket, record: bytes) -> None:
        """Send a record. Raises OSError."""
        sock.send(record)


class UdpSender(DatagramSender):
    """Over UDP. An error only occurs if the other host reports a closed port by ICMP.

    The report is about an earlier datagram; then the whole current batch is sent again.
    """

    _errors_seen = 0

    @property
    @abstractmethod
    def endpoint(self) -> tuple[str, int]:
        """Return host and port."""

    def connect(self) -> socket.socket:
        host, port = self.endpoint
        problem = OSError(f"{host} has no address")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        first = self._errors_seen % len(found)  # connecting proves nothing: an error selects the next address
        for family, kind, protocol, _, address in found[first:] + found[:first]:
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(CONNECT_PATIENCE)
                sock.connect(address)
                return sock
            except OSError as error:
                sock.close()
                problem = error
        raise problem

    def send(self, sock: socket.socket, records: Sequence[bytes]) -> None:
        try:
            super().send(sock, records)
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
        except OSError:
            self._errors_seen += 1
            self.forget()
            raise


class UnixSender(DatagramSender):
    """To a Unix socket, whose path is the target. A datagram is put into the server's queue, or an error occurs."""

    def connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.settimeout(CONNECT_PATIENCE)  # a full queue blocks
            sock.connect(self.target)
        except BaseException:
            sock.close()
            raise
        return sock

    def send_one(self, sock: socket.socket, record: bytes) -> None:
        try:
            sock.send(record)
        except TimeoutError:
            raise TimeoutError(f"its queue has been full for {CONNECT_PATIENCE:.0f} s") from None


class StreamSender(Sender):
    """Over TCP. Records count as arrived when the server's kernel has acknowledged them.

    A syslog server sends no acknowledgements itself. If it is killed, it loses the data that its kernel received and it
    has not read.
    """

    def send(self, sock: socket.socket, records: Sequence[bytes]) -> None:
        start = 0
        while start < len(records):
            end, size = start, 0
            while end < len(records) and (end == start or size + len(records[end]) <= _PIECE):
                size += len(records[end])
                end += 1
            self._send_piece(sock, b"".join(records[start:end]))
            self.confirm(end - start)
            start = end

    def _send_piece(self, sock: socket.socket, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[sock.send(left[:_CHUNK]) :]  # with the timeout of a single step, as any progress counts
        self._wait_until_acknowledged(sock)
        self.check_alive(sock)

    def _wait_until_acknowledged(self, sock: socket.socket) -> None:
        """Wait until the kernel's send queue is empty (SIOCOUTQ): it has all data that were not acknowledged yet."""
        from termios import TIOCOUTQ  # here: Windows has no such module

        poll = select.poll()
        poll.register(sock.fileno(), 0)  # only errors
        before, deadline, pause = -1, 0.0, 0.25
        while left := struct.unpack("i", fcntl.ioctl(sock.fileno(), TIOCOUTQ, bytes(4)))[0]:
            if left != before:
                before, deadline = left, time.monotonic() + _PATIENCE
            if time.monotonic() > deadline:
                raise TimeoutError(f"the server has acknowledged nothing for {_PATIENCE:.0f} s")
            if poll.poll(pause):
                break  # `check_alive` raises the error
            pause = min(pause * 1.5, 20.0)  # milliseconds

    def check_alive(self, sock: socket.socket) -> None:
        # Servers only send messages of TLS, which are read here. With unread data, `close` would send a reset, and the
        # data that is still being sent would be lost.
        timeout = sock.gettimeout()
        sock.settimeout(0)
        try:
            _drain(sock)
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        finally:
            sock.settimeout(timeout)
        raise ConnectionResetError("the server has closed the connection")


def connect_tcp(host: str, port: int) -> socket.socket:
    """Return a TCP connection with keepalive, so that its end is noticed without sending. Raises OSError."""
    sock = socket.create_connection((host, port), CONNECT_PATIENCE)
    try:
        sock.settimeout(_PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        _set_keepalive_times(sock)
    except BaseException:
        sock.close()
        raise
    return sock


def _set_keepalive_times(sock: socket.socket) -> None:
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _drain(sock: socket.socket) -> None:
    """Read until the server has closed the connection, or until the socket's error says that nothing is left."""
    while sock.recv(_CHUNK):
        pass
