"""Sets: addresses, networks, ports or marks that rules look packets up in, and that change while these are installed.

A set lives in the table of each rule that uses it, for nf_tables shares none among tables; and what it holds is known
here, too. So nothing is asked of the kernel before a change, elements are there before a rule is installed and after
it was removed, and a change that fails half-way is undone: the kernel's set is then written anew (`_Table.stale`), in
one transaction like any other change.

The kernel removes elements whose time is over. Here they are passed over, by the same clock, and forgotten later.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

from .._arguments import check, check_choice, check_flag, wrong_type
from .._io import at_fork
from .._io.locks import RLock
from .._io.netlink_socket import NetlinkSocket
from ..errors import AckTimeoutError, ArgumentError, ArgumentTypeError, KernelError, NfnetError, NoElementError
from ..protocol import netlink
from ..protocol.layout import build_attribute, walk
from . import _nftables
from ._elements import KINDS, NEVER, Change, Content, Element, Intervals, Part, Points
from ._expressions import be32, be64
from ._nftables import DELSETELEM, NEWSET, NEWSETELEM, Message

SetKind = Literal["address", "network", "port", "mark"]

# linux/netfilter/nf_tables.h
_INTERVAL, _TIMEOUT = 0x4, 0x10  # NFT_SET_*
_FIRST_NUMBER = 0x40000000
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_LIST_ELEM = 1
_KEY, _FLAGS, _ELEMENT_TIMEOUT, _EXPRESSION = 1, 3, 4, 7  # NFTA_SET_ELEM_*
_VALUE = 1
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_BYTE_ORDER = 0  # NFTNL_UDATA_SET_KEYBYTEORDER, which is for nft alone
_NESTED = 0x8000  # NLA_F_NESTED
_MOST_BYTES = 65_000  # of elements in a message: the length of an attribute has 16 bits
_BEFORE_KEY = 12  # bytes: the headers of the element, its key and the value
_MAX_TIMEOUT = 1e9  # seconds; the kernel counts milliseconds
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
    """What to hold while the tables of sets are made, changed or removed."""
    return _shared.lock


class _Table:
    """A table in which a set is."""

    def __init__(self, sock: NetlinkSocket, family: int, name: str) -> None:
        self.sock, self.family, self.name = sock, family, name
        self.stale = False
        """Whether what is in the kernel may not be what is known here: a change was interrupted."""


class Set(at_fork.AtFork):
    """Elements for rules to look packets up in: ``nfnet.rules.drop(hook="input", source=blocked)``.

    It can be changed at any time, by any thread; rules that use it and are installed see each change at once, as a
    whole. While no rule that uses it is installed it keeps its elements, and their time runs. A forked child has a set
    of its own with the same elements, which no rule uses.

    kind: "address", of IPv4 and IPv6; "network", which may be a range of addresses too ("192.0.2.1-192.0.2.9"), and
        may overlap others; "port", or a range of them ("1024-2047"); or "mark".
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
        self._number = next(_numbers)
        self._tables: list[_Table] = []
        self._contents: list[Content] = [Intervals() if self._kind.intervals else Points() for _ in self._kind.parts]
        at_fork.register(self)
        self.update(elements)

    def __repr__(self) -> str:
        return f"<Set of {len(self)} elements of the kind {self.kind!r}, in {len(self._tables)} tables>"

    # --- changes

    def add(self, element: Any, timeout: float | None = None) -> None:
        """Add an element. If it is there already, its time begins anew, and so does its counter.

        timeout: seconds after which it goes; if not given, that of the set. ``math.inf``: it stays.

        Raises KernelError, NotPermittedError without CAP_NET_ADMIN; then nothing is changed.
        """
        data = self._kind.read(element)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        with _shared.lock:
            self._change((), (data,), timeout)

    def update(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Add many elements, in one transaction; otherwise like `add`.

        elements: an iterable; or a file that is open for reading text, or the path of one (a `pathlib.Path`), which
            has an element in each line, and comments behind # or ;.

        Raises OSError, too, if the file cannot be read.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        with _shared.lock:
            self._change((), found, timeout)

    def replace(self, elements: Iterable[Any] | os.PathLike[str], timeout: float | None = None) -> None:
        """Have these elements and no others, in one transaction; otherwise like `update`.

        Those that were there before, with the same time left, keep their counters.
        """
        found = self._read(elements)
        timeout = self._timeout if timeout is None else _check_timeout(timeout)
        with _shared.lock:
            self._replace(found, timeout)

    def discard(self, element: Any) -> None:
        """Remove an element if it is there. Raises KernelError; then nothing is changed."""
        data = self._kind.read(element)
        with _shared.lock:
            self._change((data,), (), NEVER)

    def remove(self, element: Any) -> None:
        """Remove an element. Raises NoElementError, which is a KeyError, if it is not there; KernelError."""
        data = self._kind.read(element)
        with _shared.lock:
            self._find(data)
            self._change((data,), (), NEVER)

    def difference_update(self, elements: Iterable[Any] | os.PathLike[str]) -> None:
        """Remove many elements, in one transaction, if they are there; see `update`."""
        found = self._read(elements)
        with _shared.lock:
            self._change(found, (), NEVER)

    def clear(self) -> None:
        """Remove all elements. Raises KernelError; then nothing is changed."""
        with _shared.lock:
            self._replace((), NEVER)

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
            return self._counted()

    # --- for rules

    @property
    def parts(self) -> Sequence[Part]:
        """What it has a set in the kernel for, each."""
        return self._kind.parts

    @property
    def title(self) -> str:
        """What it is called in lists of rules."""
        return f"{self.kind}{self._number}"

    def name(self, part: int) -> str:
        """What the set of a part is called in tables."""
        version = self._kind.parts[part].version
        return self.title + (f"-ipv{version}" if version else "")

    def number(self, part: int) -> int:
        """What it is known by in the transaction that makes it: far from those of the sets of rules themselves."""
        return _FIRST_NUMBER + self._number * 2 + part

    def creation(self, family: int, table: str) -> list[Message]:
        """What makes the set in a table, with what it holds. Hold `lock` from here until `attach`."""
        now = time.monotonic()
        flags = _TIMEOUT | (_INTERVAL if self._kind.intervals else 0)
        messages = []
        for number, part in enumerate(self._kind.parts):
            attributes = [
                *((1, _text(table)), (2, _text(self.name(number))), (3, be32(flags))),
                *((4, be32(part.type)), (5, be32(part.size)), (10, be32(self.number(number)))),
                (13, bytes([_BYTE_ORDER, 4]) + part.order.to_bytes(4, netlink.HOST)),
            ]
            messages.append(Message(NEWSET, family, attributes))
        return [*messages, *self._additions(family, table, self._whole(now), now)]

    def attach(self, sock: NetlinkSocket, family: int, table: str) -> None:
        """It is in a table now, which belongs to a socket."""
        self._tables = [*self._tables, _Table(sock, family, table)]

    def detach(self, sock: NetlinkSocket) -> None:
        """It no longer is in the table of a socket."""
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

    def _replace(self, found: Sequence[bytes], timeout: float) -> None:
        now = time.monotonic()
        if timeout == NEVER:  # those that are there to stay need not go and come
            stays = {data for data in found if self._contents[self._kind.part(data)].deadlines.get(data) == NEVER}
        else:
            stays = set()
        wanted = {*found}
        gone = [data for data in self._all(now) if data not in wanted]
        self._change(gone, [data for data in found if data not in stays], timeout)

    def _change(self, drop: Sequence[bytes], add: Sequence[bytes], timeout: float) -> None:
        if _shared.busy:
            raise NfnetError("a signal handler cannot change a set while the code that it interrupted changes one")
        _shared.busy = True
        try:
            self._change_now(drop, add, timeout)
        finally:
            _shared.busy = False

    def _change_now(self, drop: Sequence[bytes], add: Sequence[bytes], timeout: float) -> None:
        now = time.monotonic()
        deadline = now + timeout
        self._check_size(drop, add, now)
        plans = []
        for part, content in zip(self._kind.parts, self._contents):
            length = part.size << self._kind.intervals
            fewer = [data for data in drop if len(data) == length]
            more = dict.fromkeys([data for data in add if len(data) == length], deadline)
            plans.append(content.plan(fewer, more, now))
        self._send(plans, now)
        for plan in plans:
            plan.make()
        for table in self._tables:
            table.stale = False
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

    def _send(self, plans: list[Change], now: float) -> None:
        changed: list[_Table] = []
        try:
            self._send_to_all(plans, now, changed)
        except BaseException as error:
            # A transaction that is refused has changed nothing. Of others nobody knows, and those before are done.
            if isinstance(error, KernelError) and not isinstance(error, AckTimeoutError) and changed:
                changed.pop().stale = False
            self._restore(changed, now)
            raise

    def _send_to_all(self, plans: list[Change], now: float, changed: list[_Table]) -> None:
        for table in self._tables:
            was_stale, table.stale = table.stale, True
            changed.append(table)
            if not was_stale:
                try:
                    self._commit(
                        table, [*self._removals(table, plans), *self._additions(table.family, table.name, plans, now)]
                    )
                    continue
                except KernelError as error:
                    # Elements whose time was just over were there still, or no longer.
                    if error.errno not in (errno.EEXIST, errno.ENOENT):
                        raise
            self._rewrite(table, self._whole(now, plans), now)

    def _restore(self, tables: list[_Table], now: float) -> None:
        """Bring back what was there before a change that failed."""
        for table in tables:
            try:
                self._rewrite(table, self._whole(now), now)
            except KernelError:
                continue  # the next change will
            table.stale = False

    def _rewrite(self, table: _Table, whole: list[Change], now: float) -> None:
        empty = [
            Message(DELSETELEM, table.family, [(1, _text(table.name)), (2, _text(self.name(number)))])
            for number in range(len(self._contents))
        ]
        self._commit(table, [*empty, *self._additions(table.family, table.name, whole, now)])

    def _whole(self, now: float, plans: Sequence[Change] = ()) -> list[Change]:
        """What is there, or will be after a change, as something that comes."""
        whole = []
        for number, content in enumerate(self._contents):
            there = {segment: content.deadlines[element] for segment, element in content.segments(now).items()}
            if plans:
                for segment in plans[number].gone:
                    there.pop(segment, None)
                there.update(plans[number].come)
            whole.append(Change([], list(there.items()), _nothing))
        return whole

    def _commit(self, table: _Table, messages: list[Message]) -> None:
        if not messages:
            return
        operation = f"changing a set of {self.kind} elements"
        try:
            _nftables.commit(table.sock, messages, operation)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                raise KernelError(operation, errno.ENOENT, message=error.message, hint=_GONE) from None
            raise

    def _removals(self, table: _Table, plans: list[Change]) -> Iterator[Message]:
        for number, plan in enumerate(plans):
            elements = self._encode(number, [(segment, NEVER) for segment in plan.gone], 0.0, False)
            yield from self._messages(DELSETELEM, table.family, table.name, number, elements)

    def _additions(self, family: int, table: str, plans: list[Change], now: float) -> Iterator[Message]:
        for number, plan in enumerate(plans):
            elements = self._encode(number, plan.come, now, self._counters)
            yield from self._messages(NEWSETELEM, family, table, number, elements)

    def _messages(
        self, operation: int, family: int, table: str, number: int, elements: list[bytes]
    ) -> Iterator[Message]:
        if not elements:
            return
        count = _MOST_BYTES // max(map(len, elements))
        where = [(1, _text(table)), (2, _text(self.name(number)))]
        for start in range(0, len(elements), count):
            together = (3 | _NESTED, b"".join(elements[start : start + count]))
            yield Message(operation, family, [*where, together])

    def _encode(self, number: int, come: Sequence[tuple[bytes, float]], now: float, counters: bool) -> list[bytes]:
        """Elements as attributes; those of intervals two each, for what is first in it, and first behind it."""
        size = self._kind.parts[number].size
        around: dict[float, tuple[bytes, bytes]] = {}
        for deadline in {deadline for _, deadline in come}:
            around[deadline] = _around_key(size, _milliseconds(deadline - now), counters)
        if not self._kind.intervals:
            return [around[at][0] + data + around[at][1] for data, at in come]
        before_end, behind_end = _around_key(size, None, False, end=True)
        beyond = 1 << size * 8
        encoded = []
        for segment, deadline in come:
            before, behind = around[deadline]
            element = before + segment[:size] + behind
            end = int.from_bytes(segment[size:], "big") + 1
            if end < beyond:
                element += before_end + end.to_bytes(size, "big") + behind_end
            encoded.append(element)
        return encoded

    def _counted(self) -> dict[Element, Count]:
        now = time.monotonic()
        show = self._kind.show
        counts = {show(data): [0, 0] for data in self._all(now)}
        for number, content in enumerate(self._contents):
            begins = {
                segment[: self._kind.parts[number].size]: element for segment, element in content.segments(now).items()
            }
            for table in self._tables:
                for key, packets, octets in _elements_of(table, self.name(number)):
                    if key in begins:
                        count = counts[show(begins[key])]
                        count[0] += packets
                        count[1] += octets
        return {element: Count(*count) for element, count in counts.items()}

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


def _nothing() -> None:
    pass


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _check_timeout(timeout: float) -> float:
    """Seconds. Raises ArgumentError."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise wrong_type("timeout", timeout, "a number of seconds")
    if not (0 < timeout <= _MAX_TIMEOUT or timeout == NEVER):
        raise ArgumentError(f"timeout is {timeout} and must be above 0 s, and at most {_MAX_TIMEOUT:.0f} s or math.inf")
    return float(timeout)


def _milliseconds(seconds: float) -> int | None:
    return None if seconds == NEVER else max(1, round(seconds * 1000))


def _around_key(size: int, timeout: int | None, counters: bool, end: bool = False) -> tuple[bytes, bytes]:
    """What stands before and behind the key in an element."""
    parts = [build_attribute(_KEY | _NESTED, build_attribute(_VALUE, bytes(size)))]
    if end:
        parts.append(build_attribute(_FLAGS, be32(_INTERVAL_END)))
    if timeout is not None:
        parts.append(build_attribute(_ELEMENT_TIMEOUT, be64(timeout)))
    if counters:
        counter = build_attribute(_EXPR_NAME, b"counter\0") + build_attribute(_EXPR_DATA | _NESTED, b"")
        parts.append(build_attribute(_EXPRESSION | _NESTED, counter))
    element = build_attribute(_LIST_ELEM | _NESTED, b"".join(parts))
    return element[:_BEFORE_KEY], element[_BEFORE_KEY + size :]


def _elements_of(table: _Table, name: str) -> Iterator[tuple[bytes, int, int]]:
    """The key, packets and bytes of each element of a set in the kernel that counts them."""
    where = [(1, _text(table.name)), (2, _text(name))]
    for _, values in _nftables.dump(table.sock, _nftables.GETSETELEM, table.family, where):
        data = values.get(3, b"")
        for _, start, end in walk(data, 0, len(data)):
            parts = {number: data[first:last] for number, first, last in walk(data, start, end)}
            if _EXPRESSION in parts:
                expression = _attributes(parts[_EXPRESSION])
                counter = _attributes(expression.get(_EXPR_DATA, b""))
                packets, octets = (
                    int.from_bytes(counter.get(n, b""), "big") for n in (_COUNTER_PACKETS, _COUNTER_BYTES)
                )
                yield _attributes(parts[_KEY])[_VALUE], packets, octets


def _attributes(data: bytes) -> dict[int, bytes]:
    return {number: data[start:end] for number, start, end in walk(data, 0, len(data))}
