"""Messages that create, change and list named sets (linux/netfilter/nf_tables.h).

A transaction can have a hundred thousand elements. So their attributes are joined from few pieces, and a message
contains as many elements as fit into an attribute.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .._io.netlink_socket import NetlinkSocket
from ..protocol import netlink
from ..protocol.layout import build_attribute, walk
from ..protocol.netlink import NESTED
from . import _nftables
from ._elements import NEVER, Part
from ._expressions import be32, be64
from ._nftables import DELSETELEM, GETSETELEM, NEWSET, NEWSETELEM, Message

_TABLE, _NAME, _SET_FLAGS, _KEY_TYPE, _KEY_LENGTH, _ID, _USERDATA = 1, 2, 3, 4, 5, 10, 13  # NFTA_SET_*
_INTERVAL, _TIMEOUT = 0x4, 0x10  # NFT_SET_*
_KEY_BYTE_ORDER = 0  # NFTNL_UDATA_SET_KEYBYTEORDER: nft needs it to show elements
_ELEMENTS = 3  # NFTA_SET_ELEM_LIST_ELEMENTS; before it are the names of the table and the set, as above
_KEY, _FLAGS, _ELEMENT_TIMEOUT, _EXPRESSION = 1, 3, 4, 7  # NFTA_SET_ELEM_*
_INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END
_LIST_ELEM = _VALUE = 1  # NFTA_LIST_ELEM, NFTA_DATA_VALUE
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER_BYTES, _COUNTER_PACKETS = 1, 2
_MOST_BYTES = 65_000  # of elements in a message, because the length of an attribute has 16 bits
_BEFORE_KEY = 12  # bytes: the headers of the element, of its key and of the key's value

Segments = Iterable[tuple[bytes, float]]
"""The kernel's elements, and the times of `time.monotonic` at which they expire; `NEVER` if they do not expire."""


class KernelSet(NamedTuple):
    """A set of the kernel, in any table."""

    name: str
    number: int
    """The number by which rules refer to the set in the transaction that creates both."""
    part: Part
    intervals: bool
    counters: bool

    def creation(self, family: int, table: str) -> Message:
        """Return the message that creates the set, without elements."""
        # This flag allows elements with a timeout; those without one are still allowed.
        flags = _TIMEOUT | (_INTERVAL if self.intervals else 0)
        order = self.part.order.to_bytes(4, netlink.HOST)
        attributes = [
            *self._place(table),
            (_SET_FLAGS, be32(flags)),
            (_KEY_TYPE, be32(self.part.datatype)),
            (_KEY_LENGTH, be32(self.part.size)),
            (_ID, be32(self.number)),
            (_USERDATA, bytes([_KEY_BYTE_ORDER, len(order)]) + order),
        ]
        return Message(NEWSET, family, attributes)

    def addition(self, family: int, table: str, segments: Segments, now: float) -> Iterator[Message]:
        """Yield messages that add elements. The kernel refuses all (EEXIST) if one exists or overlaps an element."""
        return self._messages(NEWSETELEM, family, table, self._encode(segments, now, self.counters))

    def removal(self, family: int, table: str, segments: Iterable[bytes]) -> Iterator[Message]:
        """Yield messages that remove elements. The kernel refuses all (ENOENT) if one does not exist."""
        elements = self._encode([(segment, NEVER) for segment in segments], 0.0, False)
        return self._messages(DELSETELEM, family, table, elements)

    def clearing(self, family: int, table: str) -> Message:
        """Return the message that removes all elements."""
        return Message(DELSETELEM, family, self._place(table))

    def listing(self, sock: NetlinkSocket, family: int, table: str) -> Iterator[bytes]:
        """Yield lists of the elements, for `read_counts`. Raises KernelError."""
        for _, values in _nftables.dump(sock, GETSETELEM, family, self._place(table)):
            yield values.get(_ELEMENTS, b"")

    def _place(self, table: str) -> list[tuple[int, bytes]]:
        return [(_TABLE, _nftables.text(table)), (_NAME, _nftables.text(self.name))]

    def _messages(self, operation: int, family: int, table: str, elements: list[bytes]) -> Iterator[Message]:
        if not elements:
            return
        count = _MOST_BYTES // max(map(len, elements))
        for start in range(0, len(elements), count):
            together = (_ELEMENTS | NESTED, b"".join(elements[start : start + count]))
            yield Message(operation, family, [*self._place(table), together])

    def _encode(self, segments: Segments, now: float, counters: bool) -> list[bytes]:
        """Encode elements. An interval has two elements: its start, and the value after its end, with a flag."""
        size = self.part.size
        segments = list(segments)
        around = {deadline: _around_key(size, deadline - now, counters) for deadline in {at for _, at in segments}}
        if not self.intervals:
            return [around[deadline][0] + data + around[deadline][1] for data, deadline in segments]
        before_end, behind_end = _around_key(size, NEVER, False, is_end=True)
        beyond = 1 << size * 8
        encoded = []
        for segment, deadline in segments:
            before, behind = around[deadline]
            element = before + segment[:size] + behind
            end = int.from_bytes(segment[size:], "big") + 1
            if end < beyond:
                element += before_end + end.to_bytes(size, "big") + behind_end
            encoded.append(element)
        return encoded


def read_counts(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield the key, packets and bytes of each element with a counter. The key of an interval is its start."""
    for _, start, end in walk(data, 0, len(data)):
        element = _attributes(data[start:end])
        if _EXPRESSION in element:  # the end of an interval has no counter
            counter = _attributes(_attributes(element[_EXPRESSION])[_EXPR_DATA])
            packets, size = (int.from_bytes(counter[n], "big") for n in (_COUNTER_PACKETS, _COUNTER_BYTES))
            yield _attributes(element[_KEY])[_VALUE], packets, size


def _around_key(size: int, seconds: float, counters: bool, is_end: bool = False) -> tuple[bytes, bytes]:
    """Return the bytes before and after the key in an encoded element."""
    parts = [build_attribute(_KEY | NESTED, build_attribute(_VALUE, bytes(size)))]
    if is_end:
        parts.append(build_attribute(_FLAGS, be32(_INTERVAL_END)))
    if seconds != NEVER:
        milliseconds = max(1, round(seconds * 1000))  # 0 means no timeout
        parts.append(build_attribute(_ELEMENT_TIMEOUT, be64(milliseconds)))
    if counters:
        counter = build_attribute(_EXPR_NAME, b"counter\0") + build_attribute(_EXPR_DATA | NESTED, b"")
        parts.append(build_attribute(_EXPRESSION | NESTED, counter))
    element = build_attribute(_LIST_ELEM | NESTED, b"".join(parts))
    return element[:_BEFORE_KEY], element[_BEFORE_KEY + size :]


def _attributes(data: bytes) -> dict[int, bytes]:
    return {number: data[start:end] for number, start, end in walk(data, 0, len(data))}
