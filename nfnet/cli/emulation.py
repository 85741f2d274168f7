"""An emulated bad line: it loses, damages, duplicates, delays and reorders packets, and limits their rate.

This module uses no packets, sockets or clocks: the caller tells a `Line` what arrives when, and the line returns
what leaves when. For each packet, in this order:

1. It is lost, damaged or duplicated at random. The copy follows directly behind it.
2. It waits in a queue in front of the line for its turn, as the rate allows, or is dropped if the queue is full.
3. It is delayed by the delay plus a random jitter. No packet overtakes another here.
4. A packet that is chosen to be late waits until a packet behind it has left.
"""

from __future__ import annotations

import random
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

T = TypeVar("T")

PATIENCE = 0.1
"""The longest time, in seconds, that a late packet waits for another one to overtake it."""

_OLDEST = 5.0  # seconds; an older stamp was made before the clock was set
_TOGETHER = 2e-5  # seconds, between two looks at clocks

_UNITS = {
    **{f"{prefix}bit": (power / 8, True) for prefix, power in (("", 1), ("k", 1e3), ("m", 1e6), ("g", 1e9))},
    **{f"{prefix}B": (power, True) for prefix, power in (("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9))},
    "pps": (1.0, False),
    "kpps": (1e3, False),
}
_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)(?:/s)?")


class Rate(NamedTuple):
    """A rate at which packets leave."""

    amount: float
    """Bytes or packets per second."""
    of_bytes: bool

    @classmethod
    def read(cls, text: str) -> Rate:
        """Parse ``1mbit``, ``500kB`` or ``200pps``. Raises ValueError."""
        found = _RATE.fullmatch(text.strip())
        unit = "" if found is None else found[2]
        known = _UNITS.get(unit) or _UNITS.get(unit.lower() if unit[-3:].lower() in ("bit", "pps") else "")
        if found is None or known is None:
            raise ValueError(f"{text!r} is no rate, such as 1mbit, 500kB or 200pps; units are {', '.join(_UNITS)}")
        factor, of_bytes = known
        amount = float(found[1]) * factor
        if not amount:
            raise ValueError(f"{text!r} lets nothing pass: a rate must be above 0")
        return cls(amount, of_bytes)

    def seconds(self, size: int) -> float:
        """Return the seconds between a packet of ``size`` bytes and the next one."""
        return (size if self.of_bytes else 1) / self.amount


@dataclass(frozen=True)
class Conditions:
    """The properties of an emulated line. Chances are in 0..1, times in seconds."""

    loss: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """Chance of a packet to be late: below 1, since a packet is only late behind one that is not."""
    rate: Rate | None = None
    delay: float = 0.0
    jitter: float = 0.0
    """The largest random difference from the delay, in both directions."""
    limit: int | None = None
    """The largest number of packets that wait: for their turn if there is a rate, else for the end of the delay."""
    seed: int | None = None
    """Seed of the random choices, which are then the same for the same packets in the same order."""

    @property
    def keeps(self) -> bool:
        """Whether packets wait in the line."""
        return self.rate is not None or bool(self.delay or self.jitter)


@dataclass(slots=True)
class Passage(Generic[T]):
    """A packet on the line, or a copy of one."""

    item: T
    due: float
    """When it leaves, or, if it is late, when it stops waiting for a packet that overtakes it."""
    is_copy: bool
    damage: float | None
    """Where it is damaged, in 0..1 of its length; None if it is not. See `flip`."""
    is_late: bool
    """Whether it waits for a packet that overtakes it."""
    overtaken: bool = False
    """Whether a packet that arrived after it left before it."""


class Line(Generic[T]):
    """The line with the packets on it. Times are in seconds, of any monotonic clock."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._chances = {
            # Each option has its own random numbers, so that --duplicate, for instance, does not change which are lost.
            name: random.Random(None if conditions.seed is None else f"{name} {conditions.seed}")
            for name in ("loss", "corrupt", "duplicate", "reorder", "jitter")
        }
        self._turns: deque[float] = deque()  # when the packets in the queue leave it
        # When the next packet can leave the queue; when the last one is due, before which no other one is due.
        self._free = self._last = float("-inf")
        self._under_way: deque[Passage[T]] = deque()
        self._late: deque[Passage[T]] = deque()
        self.delayed = 0
        """The number of packets that had to wait, copies not included."""

    def arrive(self, item: T, size: int, now: float) -> Literal["lost", "full"] | None:
        """Take a packet of ``size`` bytes. Return why it is dropped: lost at random, or queue full; else None."""
        conditions = self.conditions
        # All random numbers are drawn for each packet, so that the outcome does not depend on a clock.
        lost = self._happens("loss", conditions.loss)
        damage = self._chances["corrupt"].random() if self._happens("corrupt", conditions.corrupt) else None
        is_double = self._happens("duplicate", conditions.duplicate)
        is_late = self._happens("reorder", conditions.reorder)
        times = [self._under_way_for()]
        if is_double:
            times.append(self._under_way_for())
        if lost:
            return "lost"
        for is_copy, time in enumerate(times):
            turn = self._turn(size, now)
            if turn is None:
                return None if is_copy else "full"
            self._last = max(turn + time, self._last)
            damage_here = None if is_copy else damage  # a copy is injected, which corrects its checksums
            self._under_way.append(Passage(item, self._last, bool(is_copy), damage_here, is_late))
            self.delayed += self._last > now and not is_copy
        return None

    def _happens(self, name: str, chance: float) -> bool:
        return bool(chance) and self._chances[name].random() < chance

    def _under_way_for(self) -> float:
        delay, jitter = self.conditions.delay, self.conditions.jitter
        return max(0.0, delay + self._chances["jitter"].uniform(-jitter, jitter)) if jitter else delay

    def _turn(self, size: int, now: float) -> float | None:
        """Return when a packet leaves the queue; None if the queue is full.

        This is a token bucket that holds one packet: packets leave one by one, as on a wire, not in bursts.
        """
        rate, limit = self.conditions.rate, self.conditions.limit
        if rate is None:
            return now if limit is None or len(self._under_way) + len(self._late) < limit else None
        turns = self._turns
        while turns and turns[0] <= now:
            turns.popleft()
        turn = max(now, self._free)
        if turn > now:
            if limit is not None and len(turns) >= limit:
                return None
            turns.append(turn)
        self._free = turn + rate.seconds(size)
        return turn

    def leave(self, now: float) -> Iterator[Passage[T]]:
        """Return what has left until ``now``, in the order of leaving; with infinity, everything."""
        under_way, late = self._under_way, self._late
        while True:
            due = self.due
            if due is None or due > now:
                return
            if late and late[0].due == due:  # nothing has come
                yield late.popleft()
                continue
            passage = under_way.popleft()
            if passage.is_late:
                passage.due += PATIENCE
                late.append(passage)
                continue
            yield passage
            while late:
                late[0].overtaken = True
                yield late.popleft()

    @property
    def due(self) -> float | None:
        """Return when the next packet leaves; None if none waits."""
        return min((queue[0].due for queue in (self._late, self._under_way) if queue), default=None)


class Stamps:
    """Converts the kernel's timestamps of packets to the clock of a `Line`.

    A delay begins when a packet arrives, which can be long before this program reads it. The kernel's clock can be set
    meanwhile.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None

    def compare(self, before: float, stamp: float, after: float) -> None:
        """Compare the kernel's clock, read as ``stamp``, with ours, read before and after it."""
        if after - before < _TOGETHER:  # otherwise this program was interrupted in between
            self._ahead = stamp - after

    def arrival(self, stamp: float | None, now: float) -> float:
        """Return when a packet arrived: ``now`` if it has no stamp (sent by this machine) or an impossible one."""
        if stamp is None or self._ahead is None:
            return now
        came = stamp - self._ahead
        return came if now - _OLDEST < came < now else now


def flip(data: bytes, begin: int, where: float) -> bytes | None:
    """Return the data with one bit behind ``begin`` flipped, at ``where`` in 0..1; None if there is nothing to flip."""
    bits = (len(data) - begin) * 8
    if bits <= 0:
        return None
    byte, bit = divmod(min(int(where * bits), bits - 1), 8)
    damaged = bytearray(data)
    damaged[begin + byte] ^= 1 << bit
    return bytes(damaged)
