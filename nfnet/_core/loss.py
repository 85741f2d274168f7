"""Count lost packets and messages, and decide when to warn."""

from __future__ import annotations

from time import monotonic

# Seconds. While packets are being lost, there is a warning every `_EVERY` seconds, and one more after `QUIET` seconds
# without loss. Several bursts within ten seconds cause at most two warnings, not two for each burst.
_EVERY = 10.0
QUIET = 1.0


class Loss:
    """Counts lost packets or messages.

    A warning is due at the first loss, at intervals while losses continue, when they are over, and at the end. Each
    warning contains the number since the last one, so these add up to ``total``; ``untold`` is not yet reported.
    """

    def __init__(self, *, warn: bool) -> None:
        self.total = 0
        self.untold = 0
        self._warn = warn
        self._last = self._warned = 0.0
        self._was_over = False  # whether the loss was over at the last warning

    def add(self, count: int) -> None:
        """Add ``count`` lost items."""
        self.total += count
        if self._warn:
            self.untold += count
            self._last = monotonic()

    def due(self, *, end: bool = False) -> int:
        """Return the number for a warning that is due now, else 0. At the ``end`` a warning is always due."""
        if not self.untold:
            return 0
        now = monotonic()
        first = self.untold == self.total
        over = end or now - self._last >= QUIET
        if not (first or end or now - self._warned >= _EVERY or (over and not self._was_over)):
            return 0
        new, self.untold = self.untold, 0
        self._warned, self._was_over = now, over
        return new
