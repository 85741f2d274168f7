"""Limits how many messages of each prefix are stored, so that a port scan does not fill a disk."""

from __future__ import annotations

import time

from .._annotated import Annotated
from ..log import LogMessage
from ._batch import Batch
from ._units import Rate

_TELL_AFTER = 10.0  # seconds, if the rate is one per second
_TELL_AFTER_LONG = 60.0  # for longer periods
_MOST_PREFIXES = 4096  # messages of further prefixes share a limit


class _Prefix:
    """The state of one prefix."""

    __slots__ = ("end", "last", "left", "suppressed", "tell")

    def __init__(self) -> None:
        self.end = 0.0  # of the period
        self.left = 0  # how many messages still pass in it
        self.suppressed = 0  # messages left out that no record reports yet
        self.last: LogMessage | None = None  # the last of them
        self.tell = 0.0  # when a record has to report them


class Limiter:
    """Lets the first messages of each prefix pass in each period, for one session.

    The last message of those left out becomes a record with their number (`LogMessage.suppressed`), ten seconds after
    the first of them, or a minute if the period is longer than a second.
    """

    def __init__(self, rate: Rate) -> None:
        self.total = 0
        """The number of messages left out."""
        self._rate = rate
        self._tell_after = _TELL_AFTER if rate.seconds == 1 else _TELL_AFTER_LONG
        self._prefixes: dict[str, _Prefix] = {}
        self._lost = 0  # messages that the kernel lost before messages that were all left out

    def limit(self, batch: Batch) -> Batch | None:
        """Return the messages of a batch that pass, as a batch; None if none does.

        A loss before a batch of which nothing passes is reported with the next batch.
        """
        now = time.monotonic()
        passed = [message for message in batch.messages if self._passes(message, now)]
        if not passed:
            self._lost += batch.lost
            return None
        lost, self._lost = self._lost + batch.lost, 0
        return Batch(batch.session, passed, lost, batch.read_ns, batch.labels)

    def _passes(self, message: LogMessage, now: float) -> bool:
        name = message.prefix
        prefix = self._prefixes.get(name)
        if prefix is None:
            if len(self._prefixes) >= _MOST_PREFIXES:
                name = ""
            prefix = self._prefixes.setdefault(name, _Prefix())
        if now >= prefix.end:
            prefix.end, prefix.left = now + self._rate.seconds, self._rate.most
        if prefix.left:
            prefix.left -= 1
            return True
        if not prefix.suppressed:
            prefix.tell = now + self._tell_after
        prefix.suppressed += 1
        prefix.last = message
        self.total += 1
        return False

    def due(self, *, everything: bool = False) -> tuple[list[LogMessage], int]:
        """Return the records that are due, or all, and the number of lost messages that were not reported yet."""
        now = time.monotonic()
        found = []
        for prefix in self._prefixes.values():
            message = prefix.last
            if message is not None and (everything or now >= prefix.tell):
                message.raw = Annotated(message.raw, suppressed=prefix.suppressed)
                found.append(message)
                prefix.last, prefix.suppressed = None, 0
        if not found:
            return [], 0
        lost, self._lost = self._lost, 0
        return found, lost
