"""How much was lost, and when to warn of it."""

from __future__ import annotations

from time import monotonic

# Seconds. While packets are lost there is a warning every so often, and one more when none was lost for a while. Loss
# that comes in bursts does not get two for each of them, but at most two in ten seconds.
_EVERY = 10.0
QUIET = 1.0


class Loss:
    """Counts what never came.

    There should be a warning at once, now and then while it goes on, when it is over, and at the end. Each says how
    many there were since the one before, so that these add up to the ``total``; ``untold`` is what none has said yet.
    """

    def __init__(self, *, warn: bool) -> None:
        self.total = 0
        self.untold = 0
        self._warn = warn
        self._last = self._warned = 0.0
        self._was_over = False  # at the last warning

    def add(self, count: int) -> None:
        """So many more were lost."""
        self.total += count
        if self._warn:
            self.untold += count
            self._last = monotonic()

    def due(self, *, end: bool = False) -> int:
        """What a warning should say now; 0 if it is not time for one, which at the ``end`` it is."""
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
