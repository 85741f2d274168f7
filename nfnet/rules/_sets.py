"""Sets of elements that rules look packets up in, and that change while the rules are installed.

nf_tables shares no sets among tables, so each table with a rule that uses a set has a copy of it; see `_copies`. The
elements are stored here, too. So a change need not ask the kernel first, and a set has its elements also while no rule
uses it.

The kernel removes elements that expire. Here they are passed over, by the same clock, and forgotten later.
"""

from __future__ import annotations

import heapq
import itertools
import os
import shlex
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from .._arguments import check, check_choice, check_flag, wrong_type
from .._io import at_fork
from .._io.netlink_socket import NetlinkSocket
from ..errors import (
    ArgumentError,
    ArgumentTypeError,
    NoElementError,
)
from ._contents import Content, Intervals, Points
from ._copies import Copies, Table
from ._elements import KINDS, NEVER, Element
from ._nftables import Message
from ._set_lock import exclusively, lock
from ._set_messages import KernelSet, read_counts

SetKind = Literal["address", "network", "port", "mark", "interface"]

_FIRST_NUMBER = 0x40000000  # far from those of the sets that rules have themselves
_MOST_SHOWN, _A_COMMAND = 1000, 100  # elements
_MAX_TIMEOUT = 1e9  # seconds; the kernel counts milliseconds


class Count(NamedTuple):
    """The packets that were found in a set, and their bytes."""

    packets: int
    bytes: int


_numbers = itertools.count(1)


class Set(at_fork.AtFork):
    """Elements for rules to look packets up in: ``nfnet.rules.drop(hook="input", source=blocked)``.

    It can be changed at any time, by any thread; rules that use it and are installed see each change at once, as a
    whole. While no rule that uses it is installed it keeps its elements, and their time runs. A forked child has a set
    of its own with the same elements, which no rule uses.

    kind: "address", of IPv4 and IPv6; "network", which may be a range of addresses too ("192.0.2.1-192.0.2.9"), and
        may overlap others; "port", or a range of them ("1024-2047"); "mark"; or "interface", its name, or how that
        begins ("eth*").
    elements: the first elements, as for `update`.
    timeout: seconds after which an element expires that is added without a time-out. Default: never.
    size: the largest number of elements. Default: limited by the kernel's memory. Give a size if other hosts can make
        the set grow.
    counters: count the packets that are found, for each element; see `counters`. Takes memory in the kernel.

    An element is text; ports and marks are numbers. Objects of the module ipaddress are taken, too. IPv4 addresses in
    IPv6 ("::ffff:192.0.2.1") are taken for what they are in packets, IPv4.

    Raises ArgumentError, as all methods do if an element is not of the kind; then nothing is changed.
    """

    def __init__(
        self,
        kind: SetKind,
        elements: Iterable[Any] | os.PathLike[str] = (),
        *,
        timeout: float | None = None,
        size: int | None = None,
        counters: bool = False,
    ) -> None:
        check_choice("kind", kind, tuple(KINDS))
        self.kind = kind
        self._kind = KINDS[kind]
        self._timeout = NEVER if timeout is None else _check_timeout(timeout)
        self._size = None if size is None else check("size", size, 1, 0xFFFFFFFF)
        self._counters = check_flag("counters", counters)
        self._contents: list[Content] = [Intervals() if self._kind.intervals else Points() for _ in self._kind.parts]
        number = next(_numbers)
        self.title = f"{kind}{number}"
        """The name of the set in lists of rules."""
        self.kernel_sets = [
            KernelSet(
                self.title + (f"-ipv{part.version}" if part.version else ""),
                _FIRST_NUMBER + 2 * number + place,
                part,
                self._kind.intervals,
                self._counters,
            )
            for place, part in enumerate(self._kind.parts)
        ]
        """The kernel's sets: one for each IP version if the elements are of one."""
        self._copies = Copies(kind, self.kernel_sets, self._contents)
        at_fork.register(self)
        self.update(elements)

    def __repr__(self) -> str:
        return f"<Set of {len(self)} elements of the kind {self.kind!r}, in {len(self._copies.tables)} tables>"

    # --- changes

    def add(self, element: Any, timeout: float | None = None) -> None:
        """Add an element. If the set has it already, its time and counter are reset, unless it never expires.

        timeout: seconds after which it expires; ``math.inf``: never. Default: that of the set.

        Raises KernelError, NotPermittedError without CAP_NET_ADMIN; then nothing is changed.
        """
        data = self._kind.read(element)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._change, (), (data,), timeout))

    def update(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Add many elements, in one transaction; otherwise like `add`.

        elements: an iterable; or a file that is open for reading text, or the path of one (a ``pathlib.Path``), which
            has an element in each line, and comments behind # or ;.

        Raises OSError, too, if the file cannot be read.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._change, (), found, timeout))

    def replace(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Have these elements and no others, in one transaction; otherwise like `update`.

        Those that were there to stay, and are to stay, keep their counters.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._replace, found, timeout))

    def discard(self, element: Any) -> None:
        """Remove an element if it is there. Raises KernelError; then nothing is changed."""
        data = self._kind.read(element)
        exclusively(partial(self._change, (data,), (), NEVER))

    def remove(self, element: Any) -> None:
        """Remove an element. Raises NoElementError, which is a KeyError, if it is not there; KernelError."""
        data = self._kind.read(element)
        exclusively(partial(self._remove, data))

    def difference_update(self, elements: Iterable[Any] | os.PathLike[str]) -> None:
        """Remove many elements, in one transaction, if they are there; see `update`."""
        found = self._read(elements)
        exclusively(partial(self._change, found, (), NEVER))

    def clear(self) -> None:
        """Remove all elements. Raises KernelError; then nothing is changed."""
        exclusively(partial(self._replace, (), NEVER))

    # --- questions

    def __contains__(self, element: Any) -> bool:
        """Return True if a packet with this value is found in the set.

        A network or a range is there if all of it is, in one element or several. Raises ArgumentError if the element
        is not of the kind.
        """
        data = self._kind.read(element)
        with lock():
            return self._contents[self._kind.part(data)].covers(data, time.monotonic())

    def __iter__(self) -> Iterator[Element]:
        """Iterate over the elements as they are now: text; ports and marks as numbers."""
        return map(self._kind.show, self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    def expires_in(self, element: Any) -> float:
        """Return the seconds until an element expires; ``math.inf``: never. Raises NoElementError without it."""
        data = self._kind.read(element)
        with lock():
            return self._find(data)

    def counters(self) -> dict[Element, Count]:
        """Return how many packets were found, by element, in all rules that are installed and use the set.

        Where elements overlap, a packet counts for the one that expires last. Counters begin anew when a rule is
        installed. Raises ArgumentError if the set was made without ``counters=True``, KernelError.
        """
        if not self._counters:
            raise ArgumentError("the set counts no packets: make it with counters=True")
        with lock():
            now = time.monotonic()
            counts = dict.fromkeys(self._all(now), Count(0, 0))
            listed = list(self._copies.listed(now))
        for elements_of, data in listed:  # which takes long, and others may change the set meanwhile
            for key, packets, octets in read_counts(data):
                element = elements_of.get(key)
                if element is not None:
                    count = counts[element]
                    counts[element] = Count(count.packets + packets, count.bytes + octets)
        return {self._kind.show(element): count for element, count in counts.items()}

    # --- for rules

    def creation(self, family: int, table: str) -> list[Message]:
        """Return the messages that make a copy in a table. Call it and then `attach` under one `exclusively`."""
        return list(self._copies.creation(family, table, time.monotonic()))

    def nft(self, family: str, table: str) -> Iterator[str]:
        """Yield the commands of nft that make the set in a table, for a shell, with its first thousand elements.

        Raises NoWordsError.
        """
        now = time.monotonic()
        options = f"flags {'interval,' * self._kind.intervals}timeout;" + " counter;" * self._counters
        with lock():
            contents = list(self._copies.segments(now))
        for kernel_set, segments in zip(self.kernel_sets, contents):
            name = f"{family} {table} {kernel_set.name}"
            yield f"nft add set {name} {shlex.quote(f'{{ type {kernel_set.part.name}; {options} }}')}"
            words = [
                self._kind.nft(segment) + (f" timeout {round((at - now) * 1000)}ms" if at != NEVER else "")
                for segment, at in heapq.nsmallest(_MOST_SHOWN, segments.items())
            ]
            for start in range(0, len(words), _A_COMMAND):
                text = ", ".join(words[start : start + _A_COMMAND])
                yield f"nft add element {name} {shlex.quote(f'{{ {text} }}')}"
            if len(segments) > len(words):
                yield f"# and {len(segments) - len(words)} more elements of {kernel_set.name}"

    def attach(self, sock: NetlinkSocket, family: int, name: str) -> None:
        """Register the copy in a table that belongs to a socket."""
        self._copies.attach(sock, family, name)

    def detach(self, sock: NetlinkSocket) -> None:
        """Forget the copies in the tables of a socket."""
        self._copies.detach(sock)

    # --- with the lock

    def after_fork(self) -> None:
        self._copies.forget()

    def _alive(self) -> list[bytes]:
        with lock():
            return self._all(time.monotonic())

    def _all(self, now: float) -> list[bytes]:
        return [data for content in self._contents for data in content.alive(now)]

    def _find(self, data: bytes) -> float:
        """Return the seconds until an element expires. Raises NoElementError."""
        content, now = self._contents[self._kind.part(data)], time.monotonic()
        if content.has(data, now):
            return content.deadlines[data] - now
        element = self._kind.show(data)
        text = f"{element} is not in the set"
        if content.covers(data, now):
            text += " itself, but is part of what is: that must be removed"
        raise NoElementError(text)

    def _remove(self, data: bytes) -> None:
        self._find(data)
        self._change((data,), (), NEVER)

    def _replace(self, found: Sequence[bytes], timeout: float) -> None:
        wanted = {*found}
        gone = [data for data in self._all(time.monotonic()) if data not in wanted]
        self._change(gone, found, timeout)

    def _change(self, drop: Sequence[bytes], add: Sequence[bytes], timeout: float) -> None:
        now = time.monotonic()
        deadline = now + timeout
        self._check_size(drop, add, now)
        plans = []
        for part, content in zip(self._kind.parts, self._contents):
            length = part.size << self._kind.intervals
            fewer = [data for data in drop if len(data) == length]
            more = [data for data in add if len(data) == length]
            if deadline == NEVER:  # those that are there to stay need not go and come
                more = [data for data in more if content.deadlines.get(data) != NEVER]
            plans.append(content.plan(fewer, dict.fromkeys(more, deadline), now))
        begun: list[Table] = []
        try:
            self._copies.send(plans, now, begun)
            for plan in plans:
                plan.make()
        except BaseException:
            self._copies.restore(begun, now)
            raise
        for table in self._copies.tables:
            table.is_stale = False
        for content in self._contents:
            content.tidy(now)

    def _check_size(self, drop: Sequence[bytes], add: Sequence[bytes], now: float) -> None:
        size = self._size
        if size is None or sum(len(content.deadlines) for content in self._contents) + len(add) <= size:
            return
        there = {*self._all(now)}.difference(drop)
        count = len(there.union(add))
        if count > size and count > len(there):
            raise ArgumentError(f"the set would have {count} elements, and its size is {size}")

    # --- without the lock

    def _read(self, elements: Iterable[Any] | os.PathLike[str]) -> list[bytes]:
        """Return the elements of an iterable or a file, each once, in order."""
        if isinstance(elements, os.PathLike):
            with open(elements, encoding="utf-8", errors="surrogateescape") as file:
                return self._read_lines(file, os.fspath(elements))
        if isinstance(elements, Iterable) and hasattr(elements, "read"):
            return self._read_lines(elements, str(getattr(elements, "name", "file")))
        if isinstance(elements, (str, bytes)) or not isinstance(elements, Iterable):
            what = "an iterable of elements, or a file: an open one, or a pathlib.Path (`add` is for a single element)"
            raise wrong_type("elements", elements, what)
        return list(dict.fromkeys(map(self._kind.read, elements)))

    def _read_lines(self, lines: Iterable[Any], name: str) -> list[bytes]:
        found: dict[bytes, None] = {}
        for number, line in enumerate(lines, 1):
            if not isinstance(line, str):
                raise ArgumentTypeError(f"{name} must be open for reading text, not bytes")
            text = line.partition("#")[0].partition(";")[0].strip()
            if text:
                try:
                    found[self._kind.read(text)] = None
                except ArgumentError as error:
                    raise ArgumentError(f"{name}, line {number}: {error}") from None
        return list(found)


def _check_timeout(timeout: float) -> float:
    """Return a time-out in seconds. Raises ArgumentError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise wrong_type("timeout", timeout, "a number of seconds")
    if not (0 < timeout <= _MAX_TIMEOUT or timeout == NEVER):
        raise ArgumentError(f"timeout is {timeout} and must be above 0 s, and at most {_MAX_TIMEOUT:.0f} s or math.inf")
    return float(timeout)
