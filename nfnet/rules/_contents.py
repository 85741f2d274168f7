"""The elements of a set, and the segments that are sent to the kernel for networks and ports that overlap."""

from __future__ import annotations

import heapq
import operator
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from ._elements import NEVER


class Change(NamedTuple):
    """A change of elements, as it is sent to the kernel. Calling ``make`` applies it here."""

    gone: list[bytes]
    come: list[tuple[bytes, float]]
    """Segments, with the time of `time.monotonic` at which they expire."""
    make: Callable[[], object]


class Content(ABC):
    """The elements of a part of a set, and their deadlines. Methods ignore elements that have expired at ``now``."""

    def __init__(self) -> None:
        self.deadlines: dict[bytes, float] = {}
        self._crowded = 64

    @abstractmethod
    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        """Return the change that removes some elements, and adds others or gives them a new deadline."""

    @abstractmethod
    def segments(self, now: float) -> dict[bytes, bytes]:
        """Return the segments in the kernel, each with the element to which it belongs."""

    @abstractmethod
    def covers(self, data: bytes, now: float) -> bool:
        """Return True if all values of an element are in the set, in one element or in several."""

    def alive(self, now: float) -> list[bytes]:
        """Return the elements."""
        return [data for data, deadline in self.deadlines.items() if deadline > now]

    def has(self, data: bytes, now: float) -> bool:
        """Return True if this very element is in the set."""
        return self.deadlines.get(data, -NEVER) > now

    def tidy(self, now: float) -> None:
        """Remove expired elements, each time that the number of elements has doubled since the last time."""
        if len(self.deadlines) >= self._crowded:
            left = {data: deadline for data, deadline in self.deadlines.items() if deadline > now}
            self._crowded = max(64, len(left) * 2)
            if len(left) < len(self.deadlines):
                self._replace(left)

    def _replace(self, deadlines: dict[bytes, float]) -> None:
        self.deadlines = deadlines

    def _changed(self, drop: Iterable[bytes], add: Mapping[bytes, float]) -> dict[bytes, float]:
        """Return all elements after a change."""
        dropped = set(drop)
        return {**{data: at for data, at in self.deadlines.items() if data not in dropped}, **add}


class Points(Content):
    """Elements that are single addresses or marks."""

    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        drop = [data for data in drop if data in self.deadlines]
        gone = [data for data in dict.fromkeys([*drop, *add]) if self.has(data, now)]
        if not drop:
            make = partial(self.deadlines.update, add)
        elif len(drop) == 1 and not add:
            make = partial(self.deadlines.__delitem__, drop[0])
        else:
            make = partial(self._replace, self._changed(drop, add))
        return Change(gone, list(add.items()), make)

    def segments(self, now: float) -> dict[bytes, bytes]:
        alive = self.alive(now)
        return dict(zip(alive, alive))

    def covers(self, data: bytes, now: float) -> bool:
        return self.has(data, now)


class Intervals(Content):
    """Elements with a first and a last value, which can overlap.

    The kernel's intervals must not overlap. For overlapping elements the kernel gets segments instead. Each segment
    belongs to the element that expires last (of several, the one that begins first), and expires with it. So nothing
    changes in the kernel when another of the elements expires.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sorted: list[bytes] | None = None  # the segments; None if that has to be worked out
        self._cut: dict[bytes, bytes] | None = None  # with their elements; None if each element is one segment

    def _replace(self, deadlines: dict[bytes, float]) -> None:
        self._sorted = None
        self.deadlines = deadlines

    def _known(self, now: float) -> list[bytes]:
        """Return the segments in order, some of expired elements among them."""
        if self._sorted is None:
            self.deadlines = {data: deadline for data, deadline in self.deadlines.items() if deadline > now}
            self._sorted, self._cut = _cut(self.deadlines)
        return self._sorted

    def plan(self, drop: Iterable[bytes], add: Mapping[bytes, float], now: float) -> Change:
        drop = [data for data in drop if data in self.deadlines]
        if 0 < len(drop) + len(add) <= _FEW:
            return self._plan_few(drop, add, now)
        known = self._known(now)
        if self._cut is None and not _overlap([*known, *(data for data in add if data not in self.deadlines)]):
            gone = [data for data in dict.fromkeys([*drop, *add]) if self.has(data, now)]
            return Change(gone, list(add.items()), partial(self._replace, self._changed(drop, add)))
        changed = {data: deadline for data, deadline in self._changed(drop, add).items() if deadline > now}
        _, cut = _cut(changed)
        after = dict(zip(changed, changed)) if cut is None else cut
        return self._change(self.segments(now), after, changed, partial(self._replace, changed))

    def _plan_few(self, drop: list[bytes], add: Mapping[bytes, float], now: float) -> Change:
        """Plan a small change: compute only the region in which segments can change."""
        known = self._known(now)
        changed = [*drop, *add]
        size = len(changed[0]) // 2
        first, last = min(data[:size] for data in changed), max(data[size:] for data in changed)
        # The segments that the changed elements overlap, and their neighbours, which can merge with the rest.
        begin, end = bisect_left(known, first), bisect_left(known, _behind(last))
        if begin and known[begin - 1][size:] >= first:
            begin -= 1
        first, last = (
            min([first, *known[begin:end][:1]])[:size],
            max([last, *[segment[size:] for segment in known[begin:end][-1:]]]),
        )
        if begin and _add(known[begin - 1][size:], 1) == first:
            begin -= 1
            first = known[begin][:size]
        if end < len(known) and known[end][:size] == _add(last, 1):
            last = known[end][size:]
            end += 1
        if self._cut is None:
            here = known[begin:end]
        else:
            here = [data for data in self.deadlines if data[:size] <= last and data[size:] >= first]
        deadlines = {**{data: self.deadlines[data] for data in here if data not in drop}, **add}
        alive = [data for data, deadline in deadlines.items() if deadline > now]
        after = dict(_segments(alive, deadlines, first, last))
        before = {segment: self._element(segment) for segment in known[begin:end]}
        before = {segment: element for segment, element in before.items() if self.has(element, now)}
        is_cut = self._cut is not None or after.keys() != set(alive)
        make = partial(self._splice, drop, add, slice(begin, end), after, is_cut)
        return self._change(before, after, deadlines, make)

    def _element(self, segment: bytes) -> bytes:
        return segment if self._cut is None else self._cut[segment]

    def _change(
        self,
        before: dict[bytes, bytes],
        after: dict[bytes, bytes],
        deadlines: Mapping[bytes, float],
        make: Callable[[], object],
    ) -> Change:
        stays = {
            segment
            for segment, element in after.items()
            if before.get(segment) == element and deadlines[element] == self.deadlines[element]
        }
        gone = [segment for segment in before if segment not in stays]
        come = [(segment, deadlines[element]) for segment, element in after.items() if segment not in stays]
        return Change(gone, come, make)

    def _splice(
        self, drop: list[bytes], add: Mapping[bytes, float], place: slice, after: dict[bytes, bytes], is_cut: bool
    ) -> None:
        known = self._sorted
        self._sorted = None  # until the update is complete
        self.deadlines.update(add)
        for data in drop:
            self.deadlines.pop(data, None)
        if known is None:
            return
        if is_cut:
            cut = self._cut if self._cut is not None else dict(zip(known, known))
            for segment in known[place]:
                del cut[segment]
            cut.update(after)
            self._cut = cut
        known[place] = after
        self._sorted = known

    def segments(self, now: float) -> dict[bytes, bytes]:
        self._known(now)
        pairs = dict(zip(self.deadlines, self.deadlines)) if self._cut is None else self._cut
        return {segment: element for segment, element in pairs.items() if self.deadlines[element] > now}

    def covers(self, data: bytes, now: float) -> bool:
        known = self._known(now)
        size = len(data) // 2
        first, last = data[:size], data[size:]
        while True:
            place = bisect_left(known, _behind(first)) - 1
            if place < 0:
                return False
            segment = known[place]
            if segment[size:] < first or not self.has(self._element(segment), now):
                return False
            if segment[size:] >= last:
                return True
            first = _add(segment[size:], 1)


_FEW = 16


def _behind(first: bytes) -> bytes:
    """Return a key that sorts after all elements that begin at ``first``."""
    return first + b"\xff" * (len(first) + 1)


def _add(data: bytes, number: int) -> bytes:
    """Return the value ``number`` after this one; b"" if there is none."""
    if data == b"\xff" * len(data) and number > 0:
        return b""
    return (int.from_bytes(data, "big") + number).to_bytes(len(data), "big")


def _overlap(elements: Iterable[bytes]) -> bool:
    together = sorted(elements)
    if not together:
        return False
    size = len(together[0]) // 2
    return any(map(operator.ge, [data[size:] for data in together], [data[:size] for data in together[1:]]))


def _cut(deadlines: Mapping[bytes, float]) -> tuple[list[bytes], dict[bytes, bytes] | None]:
    """Return segments without overlaps, in order, and their elements; None if each element is one segment."""
    if not _overlap(deadlines):
        return sorted(deadlines), None
    size = len(next(iter(deadlines))) // 2
    found = dict(_segments(deadlines, deadlines, bytes(size), b"\xff" * size))
    return list(found), found


def _segments(
    elements: Iterable[bytes], deadlines: Mapping[bytes, float], first: bytes, last: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the segments between two values, in order, each with its element."""
    size = len(first)
    # Among elements that begin together, the one that ends last comes first.
    elements = sorted(sorted(elements, key=lambda data: data[size:], reverse=True), key=lambda data: data[:size])
    here: list[tuple[float, int]] = []  # elements that began before this value; the one that expires last is first
    upcoming = 0
    while here or upcoming < len(elements):
        if not here:
            first = max(first, elements[upcoming][:size])
        while upcoming < len(elements) and elements[upcoming][:size] <= first:
            heapq.heappush(here, (-deadlines[elements[upcoming]], upcoming))
            upcoming += 1
        while here and elements[here[0][1]][size:] < first:
            heapq.heappop(here)
        if not here:
            continue
        longest = here[0][1]
        end = min(elements[longest][size:], last)
        while upcoming < len(elements) and elements[upcoming][:size] <= end:
            heapq.heappush(here, (-deadlines[elements[upcoming]], upcoming))
            upcoming += 1
            if here[0][1] != longest:
                end = _add(elements[upcoming - 1][:size], -1)
                break
        yield first + end, elements[longest]
        if end == last:
            return
        first = _add(end, 1)
