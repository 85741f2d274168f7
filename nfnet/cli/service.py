"""Notify systemd that a service is ready, what it does, and that it is alive (the protocol of sd_notify(3))."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable

_STATUS_EVERY = 5.0  # seconds


class Service:
    """Notifies systemd of the state of this process; does nothing if NOTIFY_SOCKET is not set.

    status: returns a line that describes what the service is doing.
    is_well: returns whether the service makes progress. It is called before each message to the watchdog, with the
        watchdog's time in seconds; no message is sent if it returns False.
    """

    def __init__(self, status: Callable[[], str], is_well: Callable[[float], bool]) -> None:
        address = os.environ.get("NOTIFY_SOCKET", "")
        # A name that begins with @ is in the abstract namespace.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self._status, self._is_well = status, is_well
        self.watchdog = _watchdog()
        """Seconds without a message after which systemd restarts the service; 0: never."""
        self._ready = self._reloading = False
        self._said = ""
        self._say_again = self._alive_again = 0.0

    def turn(self, *, reloading: bool = False) -> None:
        """Send what is due; call this at least once a second. The first call reports that the service is ready.

        reloading: whether the reload that `reload` announced is not yet complete.
        """
        if not self._address:
            return
        now = time.monotonic()
        if self._reloading and not reloading:
            self._reloading = self._ready = False
        if now >= self._say_again or not self._ready:
            self._say_again = now + _STATUS_EVERY
            status = self._status()
            if status != self._said:
                self._said = status
                self._tell(f"STATUS={status}")
        if not self._ready and not self._reloading:
            self._ready = True
            self._tell("READY=1")
        if self.watchdog and now >= self._alive_again and self._is_well(self.watchdog):
            self._alive_again = now + self.watchdog / 4
            self._tell("WATCHDOG=1")

    def reload(self) -> None:
        """Report the begin of a reload, which lasts until `turn` is called without ``reloading``."""
        self._reloading = True
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Report that the service begins to stop."""
        self._tell("STOPPING=1")

    def _tell(self, *lines: str) -> None:
        if self._address:
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                    sock.setblocking(False)
                    sock.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
            except OSError:  # closed, or its buffer is full: READY=1 is sent again, and so is the next status
                self._ready = self._ready and "READY=1" not in lines


def _watchdog() -> float:
    number, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", "")
    if not number.isdecimal() or (pid and pid != str(os.getpid())):
        return 0.0
    return int(number) / 1e6
