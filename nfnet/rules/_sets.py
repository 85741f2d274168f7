"""Sets of elements in which rules look packets up, and which can be changed while the rules are installed.

nf_tables does not share sets among tables, so each table with a rule that uses a set has a copy of it; see `_copies`.
The elements are also stored here. So a change does not read them from the kernel first, and a set keeps its elements
while no rule uses it.

The kernel removes elements that expire. Here expired elements are ignored, by the same clock, and removed later.
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

_FIRST_NUMBER = 0x40000000  # far from the numbers of the anonymous sets of rules
_MOST_SHOWN, _A_COMMAND = 1000, 100  # elements
_MAX_TIMEOUT = 1e9  # seconds; the kernel counts milliseconds


class Count(NamedTuple):
    """The number of packets that matched an element of a set, and the number of their bytes."""

    packets: int
    bytes: int


_numbers = itertools.count(1)


class Set(at_fork.AtFork):
    """A set of elements in which rules look packets up: ``nfnet.rules.drop(hook="input", source=blocked)``.

    Any thread can change it at any time. Each change takes effect as a whole, immediately, in all installed rules that
    use the set. While no rule that uses it is installed, the set keeps its elements, and their timeouts continue. A
    forked child has its own set with the same elements, which no rule uses.

    kind: "address", of IPv4 and IPv6; "network", which can also be a range of addresses ("192.0.2.1-192.0.2.9"), and
        can overlap others; "port", or a range of ports ("1024-2047"); "mark"; or "interface", its name, or the
        beginning of names ("eth*").
    elements: the initial elements, as for `update`.
    timeout: seconds after which an element expires, if it is added without a timeout. Default: never.
    size: the maximum number of elements. Default: limited by the kernel's memory. Give a size if other hosts can make
        the set grow.
    counters: count the packets that match each element; see `counters`. This takes memory in the kernel.

    An element is text; ports and marks are numbers. Objects of the module ipaddress are accepted, too. IPv4 addresses
    in IPv6 notation ("::ffff:192.0.2.1") are stored as IPv4 addresses, which packets contain.

    Raises ArgumentError for wrong arguments. All methods raise it for an element of another kind, and change nothing.
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
        """The kernel's sets: one for each IP version if elements have an IP version, otherwise one."""
        self._copies = Copies(kind, self.kernel_sets, self._contents)
        at_fork.register(self)
        self.update(elements)

    def __repr__(self) -> str:
        return f"<Set of {len(self)} elements of the kind {self.kind!r}, in {len(self._copies.tables)} tables>"

    # --- changes

    def add(self, element: Any, timeout: float | None = None) -> None:
        """Add an element. If the set has it already, its timeout and counter are reset, unless it never expires.

        timeout: seconds after which it expires; ``math.inf`` for never. Default: the timeout of the set.

        Raises KernelError, or NotPermittedError without CAP_NET_ADMIN; then nothing is changed.
        """
        data = self._kind.read(element)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._change, (), (data,), timeout))

    def update(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Add many elements, in one transaction; otherwise like `add`.

        elements: an iterable; or a file that is open for reading text, or its path (a ``pathlib.Path``). The file has
            an element in each line, and comments after # or ;.

        Also raises OSError if the file cannot be read.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._change, (), found, timeout))

    def replace(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Replace all elements by these, in one transaction; otherwise like `update`.

        Elements that never expire, before and after the change, keep their counters.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        exclusively(partial(self._replace, found, timeout))

    def discard(self, element: Any) -> None:
        """Remove an element if it is in the set. Raises KernelError; then nothing is changed."""
        data = self._kind.read(element)
        exclusively(partial(self._change, (data,), (), NEVER))

    def remove(self, element: Any) -> None:
        """Remove an element. Raises NoElementError, which is a KeyError, if it is not in the set, and KernelError."""
        data = self._kind.read(element)
        exclusively(partial(self._remove, data))

    def difference_update(self, elements: Iterable[Any] | os.PathLike[str]) -> None:
        """Remove those of the elements that are in the set, in one transaction; see `update`."""
        found = self._read(elements)
        exclusively(partial(self._change, found, (), NEVER))

    def clear(self) -> None:
        """Remove all elements. Raises KernelError; then nothing is changed."""
        exclusively(partial(self._replace, (), NEVER))

    # --- questions

    def __contains__(self, element: Any) -> bool:
        """Return True if a packet with this value matches the set.

        A network or a range is in the set if all of its values are, in one element or in several. Raises ArgumentError
        for an element of another kind.
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
        """Return the seconds until an element expires, or ``math.inf`` for never.

        Raises NoElementError if the element is not in the set.
        """
        data = self._kind.read(element)
        with lock():
            return self._find(data)

    def counters(self) -> dict[Element, Count]:
        """Return how many packets matched, by element, in all installed rules that use the set.

        If elements overlap, a packet counts for the one that expires last. The counters of a rule start at 0 when it is
        installed. Raises ArgumentError if the set was made without ``counters=True``, and KernelError.
        """
        if not self._counters:
            raise ArgumentError("the set counts no packets: make it with counters=True")
        with lock():
            now = time.monotonic()
            counts = dict.fromkeys(self._all(now), Count(0, 0))
            listed = list(self._copies.listed(now))
        for elements_of, data in listed:  # without the lock: this takes long, and the set can change meanwhile
            for key, packets, octets in read_counts(data):
                element = elements_of.get(key)
                if element is not None:
                    count = counts[element]
                    counts[element] = Count(count.packets + packets, count.bytes + octets)
        return {self._kind.show(element): count for element, count in counts.items()}

    # --- for rules

    def creation(self, family: int, table: str) -> list[Message]:
        """Return the messages that create a copy in a table. Call this, then `attach`, in one call of `exclusively`."""
        return list(self._copies.creation(family, table, time.monotonic()))

    def nft(self, family: str, table: str) -> Iterator[str]:
        """Yield the commands of nft that create the set in a table, for a shell, with its first thousand elements.

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
            text += " itself, but is part of other elements: remove those"
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
            if deadline == NEVER:  # elements that never expire do not change
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
    """Return a timeout in seconds. Raises ArgumentError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise wrong_type("timeout", timeout, "a number of seconds")
    if not (0 < timeout <= _MAX_TIMEOUT or timeout == NEVER):
        raise ArgumentError(f"timeout is {timeout} and must be above 0 s, and at most {_MAX_TIMEOUT:.0f} s or math.inf")
    return float(timeout)
