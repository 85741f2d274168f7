"""Names of network interfaces, by index."""

from __future__ import annotations

import _socket
import os
import struct
import time

from ..errors import check_system
from ..protocol.netlink import PREFIX
from .system import fcntl

_KEEP = 1.0  # seconds; interfaces are renamed and their indexes reused, but not often
_SIOCGIFNAME = 0x8910
_IFNAMSIZ = 16
_ifreq = struct.Struct(f"{PREFIX}{_IFNAMSIZ}si20x")  # struct ifreq with an index; shorter on 32-bit machines


class InterfaceNames:
    """The names of the interfaces in the network namespace of a socket.

    They are cached for a second. After the socket has been closed, cached names do not expire.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self._socket = sock
        self._names: dict[int, tuple[str | None, float]] = {}

    def get(self, index: int) -> str | None:
        """Return the name of the interface with that index, or None if no interface has it."""
        name, until = self._names.get(index, (None, 0.0))
        now = time.monotonic()
        if now >= until and self._socket.fileno() >= 0:
            try:
                request = fcntl.ioctl(self._socket.fileno(), _SIOCGIFNAME, _ifreq.pack(b"", index))
                name = os.fsdecode(request[:_IFNAMSIZ].split(b"\0", 1)[0])
            except OSError as error:
                check_system(error)
                name = None
            except struct.error:
                name = None
            self._names[index] = (name, now + _KEEP)
        return name
