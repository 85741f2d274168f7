"""Counting what was lost, and warning of it."""

from __future__ import annotations

import logging
from time import monotonic

from .._io.transport import Transport

# Warnings about loss, at most one in so many seconds.
_WARN_EVERY = 10.0

_log = logging.getLogger("nfnet")


class Loss:
    """What one binding lost."""

    def __init__(self, name: str, what: str, on_overrun: str, transport: Transport) -> None:
        self.lost = 0
        self.overruns = 0
        self._name = name
        self._what = what
        self._on_overrun = on_overrun
        self._transport = transport
        self._warned = -_WARN_EVERY

    def overrun(self) -> None:
        """The kernel has reported it."""
        self.overruns += 1

    def report(self, total: int) -> None:
        """So many were lost, of which some may be known already."""
        new = total - self.lost
        if new <= 0:
            return
        self.lost = total
        self.overruns += self._on_overrun != "raise"  # there it was counted as it was raised
        if self._on_overrun == "count" and monotonic() > self._warned + _WARN_EVERY:
            self._warned = monotonic()
            _log.warning(
                "%s: %d %s were lost, %d so far, because the receive buffer of %s bytes was full",
                self._name,
                new,
                self._what,
                self.lost,
                self._transport.rcvbuf,
            )
