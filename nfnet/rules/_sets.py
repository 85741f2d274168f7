"""Sets: what rules look packets up in, and what changes while these are installed.

A set lives in the table of each rule that uses it, for nf_tables shares none among tables; and what it holds is known
here, too. So nothing is asked of the kernel before a change, and elements are there before a rule is installed and
after it was removed. A change that fails half-way is undone: what the kernel has is then written anew
(`_Table.is_stale`), in one transaction like any other change.

The kernel removes elements whose time is over. Here they are passed over, by the same clock, and forgotten later.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from .._arguments import check, check_choice, check_flag, wrong_type
from .._io import at_fork
from .._io.locks import RLock
from .._io.netlink_socket import NetlinkSocket
from ..errors import (
    AckTimeoutError,
    ArgumentError,
    ArgumentTypeError,
    ClosedError,
    KernelError,
    NfnetError,
    NoElementError,
)
from . import _nftables
from ._elements import KINDS, NEVER, Change, Content, Element, Intervals, Points
from ._nftables import Message
from ._set_messages import KernelSet, read_counts

SetKind = Literal["address", "network", "port", "mark", "interface"]

_FIRST_NUMBER = 0x40000000  # far from those of the sets that rules have themselves
_MOST_SHOWN, _A_COMMAND = 1000, 100  # elements
_MAX_TIMEOUT = 1e9  # seconds; the kernel counts milliseconds
# What the kernel says if elements whose time was just over are there still, or no longer: two clocks read the time.
_OTHER_MOMENT = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOENT)
_GONE = "Somebody else removed the table of the rule: remove the rule, and install it again"


class Count(NamedTuple):
    """Packets that were looked up and found, and their bytes."""

    packets: int
    bytes: int


class _Shared(at_fork.AtFork):
    """One lock for all sets: a rule may use several, and what changes them has one socket with its table."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.busy = False
        at_fork.register(self)

    def after_fork(self) -> None:
        self.lock = RLock()
        self.busy = False


_shared = _Shared()
_numbers = itertools.count(1)


def lock() -> RLock:
    """What to hold while the tables of sets are removed."""
    return _shared.lock


def exclusively(function: Callable[[], None]) -> None:
    """Call what makes or changes tables that have sets, with the lock. Raises NfnetError in some signal handlers."""
    with _shared.lock:
        if _shared.busy:  # the lock is reentrant
            raise NfnetError(
                "a signal handler cannot change a set or install a rule while the code that it interrupted does so"
            )
        _shared.busy = True
        try:
            function()
        finally:
            _shared.busy = False


class _Table:
    """Tables of one name in which a set is, one for each family, which belong to a socket."""

    def __init__(self, sock: NetlinkSocket, name: str) -> None:
        self.sock, self.name = sock, name
        self.families: list[int] = []
        self.is_stale = False
        """Whether what is in the kernel may not be what is known here: a change was interrupted."""


class Set(at_fork.AtFork):
    """Elements for rules to look packets up in: ``nfnet.rules.drop(hook="input", source=blocked)``.

    It can be changed at any time, by any thread; rules that use it and are installed see each change at once, as a
    whole. While no rule that uses it is installed it keeps its elements, and their time runs. A forked child has a set
    of its own with the same elements, which no rule uses.

    kind: "address", of IPv4 and IPv6; "network", which may be a range of addresses too ("192.0.2.1-192.0.2.9"), and
        may overlap others; "port", or a range of them ("1024-2047"); "mark"; or "interface", its name, or how that
        begins ("eth*").
    elements: what it shall hold, as for `update`.
    timeout: seconds after which an element goes, for those that are added without a time-out; they stay if not given.
    size: how many elements there may be; as many as the kernel has memory for if not given. A set that strangers can
        make grow should have one.
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
        self._tables: list[_Table] = []
        self._contents: list[Content] = [Intervals() if self._kind.intervals else Points() for _ in self._kind.parts]
        number = next(_numbers)
        self.title = f"{kind}{number}"
        """What it is called in lists of rules."""
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
        """The sets of which it is made in tables: one for each IP version, if that matters."""
        at_fork.register(self)
        self.update(elements)

    def __repr__(self) -> str:
        return f"<Set of {len(self)} elements of the kind {self.kind!r}, in {len(self._tables)} tables>"

    # --- changes

    def add(self, element: Any, timeout: float | None = None) -> None:
        """Add an element. If it is there already, its time begins anew, and its counter too, unless it stays anyway.

        timeout: seconds after which it goes; if not given, that of the set. ``math.inf``: it stays.

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
        """Whether a packet with this is found in the set.

        A network or a range is there if all of it is, in one element or several. Raises ArgumentError if the element
        is not of the kind.
        """
        data = self._kind.read(element)
        with _shared.lock:
            return self._contents[self._kind.part(data)].covers(data, time.monotonic())

    def __iter__(self) -> Iterator[Element]:
        """The elements, as they were when the iteration began: text; ports and marks as numbers."""
        return map(self._kind.show, self._alive())

    def __len__(self) -> int:
        return len(self._alive())

    def expires_in(self, element: Any) -> float:
        """Seconds until an element goes; ``math.inf`` if it stays. Raises NoElementError if it is not there."""
        data = self._kind.read(element)
        with _shared.lock:
            return self._find(data)

    def counters(self) -> dict[Element, Count]:
        """How many packets were found, by element, in all rules that are installed and use the set.

        Where elements overlap, a packet counts for that which stays longest. Counters begin anew when a rule is
        installed. Raises ArgumentError if the set was made without ``counters=True``, KernelError.
        """
        if not self._counters:
            raise ArgumentError("the set counts no packets: make it with counters=True")
        with _shared.lock:
            now = time.monotonic()
            counts = dict.fromkeys(self._all(now), Count(0, 0))
            listed = list(self._listed(now))
        for elements_of, data in listed:  # which takes long, and others may change the set meanwhile
            for key, packets, octets in read_counts(data):
                element = elements_of.get(key)
                if element is not None:
                    count = counts[element]
                    counts[element] = Count(count.packets + packets, count.bytes + octets)
        return {self._kind.show(element): count for element, count in counts.items()}

    # --- for rules

    def creation(self, family: int, table: str) -> list[Message]:
        """What makes the set in a table, with what it holds. To be called `exclusively`, and `attach` with it."""
        now = time.monotonic()
        messages = [kernel_set.creation(family, table) for kernel_set in self.kernel_sets]
        for kernel_set, segments in zip(self.kernel_sets, self._whole(now)):
            messages += kernel_set.addition(family, table, segments.items(), now)
        return messages

    def nft(self, family: str, table: str) -> Iterator[str]:
        """Commands of nft that make the same set in a table, for a shell; of many elements, the first.

        Raises NoWordsError.
        """
        now = time.monotonic()
        options = f"flags {'interval,' * self._kind.intervals}timeout;" + " counter;" * self._counters
        with _shared.lock:
            contents = list(self._whole(now))
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
        """It is in a table now, which belongs to a socket."""
        table = next((table for table in self._tables if table.sock is sock), None)
        if table is None:
            table = _Table(sock, name)
            self._tables = [*self._tables, table]
        table.families.append(family)

    def detach(self, sock: NetlinkSocket) -> None:
        """It no longer is in the tables of a socket."""
        self._tables = [table for table in self._tables if table.sock is not sock]

    # --- with the lock

    def after_fork(self) -> None:
        self._tables = []

    def _alive(self) -> list[bytes]:
        with _shared.lock:
            return self._all(time.monotonic())

    def _all(self, now: float) -> list[bytes]:
        return [data for content in self._contents for data in content.alive(now)]

    def _find(self, data: bytes) -> float:
        """Seconds that an element has left. Raises NoElementError."""
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
        begun: list[_Table] = []
        try:
            self._send_to_all(plans, now, begun)
            for plan in plans:
                plan.make()
        except BaseException:
            self._restore(begun, now)
            raise
        for table in self._tables:
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

    def _send_to_all(self, plans: list[Change], now: float, begun: list[_Table]) -> None:
        for table in self._tables:
            was_stale, table.is_stale = table.is_stale, True
            begun.append(table)
            try:
                self._send_to(table, plans, now, was_stale)
            except ClosedError:  # of the socket, with which the table went
                self.detach(table.sock)
            except AckTimeoutError:
                raise
            except KernelError:  # which refused all of it
                table.is_stale = was_stale
                raise

    def _send_to(self, table: _Table, plans: list[Change], now: float, was_stale: bool) -> None:
        if not was_stale:
            try:
                self._commit(table, self._messages(table, plans, now))
                return
            except KernelError as error:
                if error.errno not in _OTHER_MOMENT:
                    raise
        self._rewrite(table, plans, now)

    def _restore(self, begun: list[_Table], now: float) -> None:
        """Bring into the kernel what is here, after a change that failed or was interrupted."""
        for table in begun:
            if table.is_stale:
                try:
                    self._rewrite(table, (), now)
                except (KernelError, ClosedError):
                    continue  # the next change will
                table.is_stale = False

    def _messages(self, table: _Table, plans: list[Change], now: float) -> Iterator[Message]:
        for family in table.families:
            for kernel_set, plan in zip(self.kernel_sets, plans):
                yield from kernel_set.removal(family, table.name, plan.gone)
                yield from kernel_set.addition(family, table.name, plan.come, now)

    def _rewrite(self, table: _Table, plans: Sequence[Change], now: float) -> None:
        """Have in a table what there is, or will be after some changes, whatever is there."""
        messages: list[Message] = []
        for family in table.families:
            for kernel_set, segments in zip(self.kernel_sets, self._whole(now, plans)):
                messages.append(kernel_set.clearing(family, table.name))
                messages += kernel_set.addition(family, table.name, segments.items(), now)
        try:
            self._commit(table, messages)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise KernelError(error.operation, errno.ENOENT, message=error.message, hint=_GONE) from None
            raise

    def _whole(self, now: float, plans: Sequence[Change] = ()) -> Iterator[dict[bytes, float]]:
        """All that the kernel's sets have, or will have after some changes, and when that expires."""
        for place, content in enumerate(self._contents):
            there = {segment: content.deadlines[element] for segment, element in content.segments(now).items()}
            for plan in plans[place : place + 1]:
                for segment in plan.gone:
                    there.pop(segment, None)
                there.update(plan.come)
            yield there

    def _commit(self, table: _Table, messages: Iterable[Message]) -> None:
        messages = list(messages)
        if messages:
            _nftables.commit(table.sock, messages, f"changing a set of the kind {self.kind!r}")

    def _listed(self, now: float) -> Iterator[tuple[dict[bytes, bytes], bytes]]:
        """What the kernel has, to be read; and the elements by what it calls them."""
        for kernel_set, content in zip(self.kernel_sets, self._contents):
            size = kernel_set.part.size
            elements = {segment[:size]: element for segment, element in content.segments(now).items()}
            for table in self._tables:
                for family in table.families:
                    for data in kernel_set.listing(table.sock, family, table.name):
                        yield elements, data

    # --- without the lock

    def _read(self, elements: Iterable[Any] | os.PathLike[str]) -> list[bytes]:
        """The elements of an iterable or a file, each once, in order."""
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
    """Seconds. Raises ArgumentError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise wrong_type("timeout", timeout, "a number of seconds")
    if not (0 < timeout <= _MAX_TIMEOUT or timeout == NEVER):
        raise ArgumentError(f"timeout is {timeout} and must be above 0 s, and at most {_MAX_TIMEOUT:.0f} s or math.inf")
    return float(timeout)
