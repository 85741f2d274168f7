"""What a bad line does to packets: how fast they leave, how late, in which order, and which of them never.

It knows neither packets nor sockets nor clocks: a `Line` is told what arrives when, and says what leaves when.
In this order, for each packet:

1. It is lost by chance, or damaged, or comes twice. The copy takes the same way, right behind it.
2. It waits for its turn in a queue in front of the line, which has a rate, or finds no room there.
3. It is under way for a time: the delay, and more or less of it by chance. Nothing overtakes anything.
4. A packet that is to be late waits until one behind it has left.
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
"""How long a packet that is to be late waits for another one to overtake it, in seconds."""

_OLDEST = 5.0  # seconds; what seems to have come before that came before the clock was set
_TOGETHER = 2e-5  # seconds, between two looks at clocks

_UNITS = {
    **{f"{prefix}bit": (power / 8, True) for prefix, power in (("", 1), ("k", 1e3), ("m", 1e6), ("g", 1e9))},
    **{f"{prefix}B": (power, True) for prefix, power in (("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9))},
    "pps": (1.0, False),
    "kpps": (1e3, False),
}
_RATE = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,6})?) ?([A-Za-z]+)(?:/s)?")


class Rate(NamedTuple):
    """How fast packets leave."""

    amount: float
    """Bytes, or packets, a second."""
    of_bytes: bool

    @classmethod
    def read(cls, text: str) -> Rate:
        """``1mbit``, ``500kB``, ``200pps``. Raises ValueError."""
        found = _RATE.fullmatch(text.strip())
        unit = "" if found is None else found[2]
        known = _UNITS.get(unit) or _UNITS.get(unit.lower() if unit[-3:].lower() in ("bit", "pps") else "")
        if found is None or known is None:
            text = f"{text!r} is no rate, which is a number with a unit, a second: 1mbit (of bits), 500kB (of bytes)"
            raise ValueError(f"{text} or 200pps (packets); units are {', '.join(_UNITS)}")
        factor, of_bytes = known
        amount = float(found[1]) * factor
        if not amount:
            raise ValueError(f"{text!r} lets nothing pass: a rate must be above 0")
        return cls(amount, of_bytes)

    def seconds(self, size: int) -> float:
        """How long after a packet of so many bytes the next one may leave."""
        return (size if self.of_bytes else 1) / self.amount


@dataclass(frozen=True)
class Conditions:
    """How bad a line is. Chances are in 0..1, times in seconds."""

    loss: float = 0.0
    corrupt: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    """What part of the packets is to be late: below 1, for something has to be in time."""
    rate: Rate | None = None
    delay: float = 0.0
    jitter: float = 0.0
    """By how much the delay may differ, either way."""
    limit: int | None = None
    """How many packets may wait: for their turn, if there is a rate, else for the end of the delay."""
    seed: int | None = None
    """What is left to chance is the same each time, for the same packets in the same order."""

    @property
    def keeps(self) -> bool:
        """Whether packets wait."""
        return self.rate is not None or bool(self.delay or self.jitter)


@dataclass(slots=True)
class Passage(Generic[T]):
    """What travels along the line: a packet, or the copy of one."""

    item: T
    due: float
    """When it leaves; or, if it is late, when it has waited long enough."""
    is_copy: bool
    damage: float | None
    """If it is damaged: where, in 0..1 of its length; see `flip`."""
    is_late: bool
    """Whether it waits for something to overtake it."""
    overtaken: bool = False
    """Whether something that came behind it left before it."""


class Line(Generic[T]):
    """Packets on their way. Times are those of any clock, in seconds."""

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions
        self._chances = {
            # Each has numbers of its own, so that another option does not change what is lost, for instance.
            name: random.Random(None if conditions.seed is None else f"{name} {conditions.seed}")
            for name in ("loss", "corrupt", "duplicate", "reorder", "jitter")
        }
        self._turns: deque[float] = deque()  # of those that wait for theirs
        # When the next one may leave the queue; when the last one is due, which no other one is before.
        self._free = self._last = float("-inf")
        self._under_way: deque[Passage[T]] = deque()
        self._late: deque[Passage[T]] = deque()
        self.delayed = 0
        """How many packets have had to wait, without copies."""

    def arrive(self, item: T, size: int, now: float) -> Literal["lost", "full"] | None:
        """A packet of ``size`` bytes came. It is lost by chance, or finds the queue full, or will leave."""
        conditions = self.conditions
        # All chances are taken for each packet, so that what becomes of it depends on no clock.
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
            damage_here = None if is_copy else damage  # checksums of what is injected are mended
            self._under_way.append(Passage(item, self._last, bool(is_copy), damage_here, is_late))
            self.delayed += self._last > now and not is_copy
        return None

    def _happens(self, name: str, chance: float) -> bool:
        return bool(chance) and self._chances[name].random() < chance

    def _under_way_for(self) -> float:
        delay, jitter = self.conditions.delay, self.conditions.jitter
        return max(0.0, delay + self._chances["jitter"].uniform(-jitter, jitter)) if jitter else delay

    def _turn(self, size: int, now: float) -> float | None:
        """When a packet leaves the queue; None if it finds no room there.

        A token bucket that holds one packet: they leave one by one, as from a wire, and not in bursts.
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
        """What has left until now, in its order; with infinity, all there is."""
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
        """When there is something to do next; None if nothing waits."""
        return min((queue[0].due for queue in (self._late, self._under_way) if queue), default=None)


class Stamps:
    """When packets arrived, by the clock of a `Line`, from the kernel's stamps, which are times of another clock.

    A delay begins when a packet arrives: it may have waited for this program to read it. The kernel's clock may be set.
    """

    def __init__(self) -> None:
        self._ahead: float | None = None

    def compare(self, before: float, stamp: float, after: float) -> None:
        """What the kernel's clock said between two looks at ours."""
        if after - before < _TOGETHER:  # else this program was stopped in between
            self._ahead = stamp - after

    def arrival(self, stamp: float | None, now: float) -> float:
        """When a packet came: ``now`` if it has no stamp, as those that this machine sends, or one that cannot be."""
        if stamp is None or self._ahead is None:
            return now
        came = stamp - self._ahead
        return came if now - _OLDEST < came < now else now


def flip(data: bytes, begin: int, where: float) -> bytes | None:
    """The data with one bit behind ``begin`` flipped, ``where`` (0..1) of the way; None if there is nothing."""
    bits = (len(data) - begin) * 8
    if bits <= 0:
        return None
    byte, bit = divmod(min(int(where * bits), bits - 1), 8)
    damaged = bytearray(data)
    damaged[begin + byte] ^= 1 << bit
    return bytes(damaged)
