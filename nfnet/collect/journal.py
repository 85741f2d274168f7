"""Log messages as entries of the systemd journal, in its native protocol."""

from __future__ import annotations

import errno
import os
import re
import socket
from array import array
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from .._caching import lru_cache
from .._io.system import fcntl
from ..errors import ArgumentError
from . import _rfc5424
from ._batch import Batch
from ._flat import Flat, Record
from ._json import LOST
from ._sending import UnixSender

_INFO, _WARNING = _rfc5424.SEVERITIES["info"], _rfc5424.SEVERITIES["warning"]
_LONGEST_NAME = 64
# journald only accepts a file that is sealed against changes.
_SEALS = 0xF  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW and F_SEAL_WRITE


class Journal(UnixSender):
    """Entries of the systemd journal, with the fields of the JSON lines under names like ``NFNET_SOURCE_IP``.

    severity: by name; default: info.
    identifier: SYSLOG_IDENTIFIER of the entries; default: nfnet.
    """

    scheme = "journal"
    usual_target = "/run/systemd/journal/socket"
    help = "entries of the systemd journal; journal:PATH to another socket"
    settings: ClassVar[Mapping[str, Callable[[Any], Any]]] = {
        "severity": _rfc5424.severity,
        "identifier": _rfc5424.app_name,
    }

    def __init__(self, target: str = usual_target, *, severity: int = _INFO, identifier: str = "nfnet") -> None:
        self.check(target)
        super().__init__(target)
        self._severity = severity
        self._identifier = identifier
        self._records = Flat()

    @classmethod
    def check(cls, target: str) -> None:
        if not target.startswith("/"):
            raise ArgumentError(f"{cls.scheme}: takes the path of a socket, {cls.usual_target} if none is given")

    def encode(self, batch: Batch) -> list[bytes]:
        return [self._entry(record) for record in self._records(batch)]

    def _entry(self, record: Record) -> bytes:
        severity = min(self._severity, _WARNING) if record.kind == LOST else self._severity
        fields = {
            "MESSAGE": record.text,
            "PRIORITY": str(severity),
            "SYSLOG_IDENTIFIER": self._identifier,
            **{field_name(name): value for name, value in record.values.items()},
        }
        return b"".join(_field(name, value.encode()) for name, value in fields.items())

    def send_one(self, sock: socket.socket, record: bytes) -> None:
        try:
            super().send_one(sock, record)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            _send_as_file(sock, record)


@lru_cache(1024)
def field_name(name: str) -> str:
    """Return the name of a field of the journal: ``source.ip`` is NFNET_SOURCE_IP, ``nfnet.prefix`` NFNET_PREFIX."""
    word = re.sub(r"[^A-Za-z0-9]+", "_", name.removeprefix("nfnet.")).strip("_").upper()
    return f"NFNET_{word}"[:_LONGEST_NAME]


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return b"%s\n%s%s\n" % (name.encode(), len(value).to_bytes(8, "little"), value)
    return b"%s=%s\n" % (name.encode(), value)


def _send_as_file(sock: socket.socket, record: bytes) -> None:
    """Send an entry that is too large for a datagram, because of long labels, as a file in memory."""
    fd = os.memfd_create("nfnet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        _write_all(fd, record)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        sock.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))])
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(fd, left) :]
