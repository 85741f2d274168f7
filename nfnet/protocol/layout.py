"""The fast readers, derived from the schemas when they are imported.

construct takes 64-79 µs for one packet message; a queue has about two. Three things make up the difference:

- `compile_struct` turns a schema of fixed size into the `struct.Struct` of the same layout.
- `walk` steps over attributes without building objects for them.
- `Layouts` remembers where the attributes stood. The messages that one rule causes have the same attributes at the
  same places, so one ``unpack`` of all attribute headers, compared with those of the remembered message, proves that
  a walk would end up in the same places. Nothing less than *all* headers is proof: what lies at a remembered offset
  may be chosen by whoever sent the packet.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import construct

from ..errors import DecodeError
from . import netlink

# For as many lengths of datagram `Layouts` remembers one layout each, before it starts afresh.
_MAX_LAYOUTS = 4096


def compile_struct(schema: Any, *pick: str) -> struct.Struct:
    """The `struct.Struct` that reads what ``schema`` does, big-endian.

    With names in ``pick`` (dotted for inner structures) only these are read and the rest is skipped. Fields in host
    order are read big-endian too: good for comparing with what the same reader makes of another message, no more.
    Raises TypeError for a schema without a fixed size.
    """
    return struct.Struct(">" + "".join(_format(schema, "", pick)))


def _format(schema: Any, name: str, pick: tuple[str, ...]) -> Iterator[str]:
    if isinstance(schema, construct.Renamed):
        name = f"{name}.{schema.name}" if name else schema.name
        yield from _format(schema.subcon, name, pick)
    elif isinstance(schema, construct.Struct):
        for field in schema.subcons:
            yield from _format(field, name, pick)
    elif isinstance(schema, (construct.Rebuild, construct.Default)):
        yield from _format(schema.subcon, name, pick)
    elif isinstance(schema, construct.Padded) and isinstance(schema.length, int):
        yield f"{schema.length}x"
    elif isinstance(schema, construct.FormatField):
        yield schema.fmtstr[1:] if not pick or name in pick else f"{schema.length}x"
    elif isinstance(schema, construct.Bytes) and isinstance(schema.length, int):
        yield f"{schema.length}{'s' if not pick or name in pick else 'x'}"
    else:
        raise TypeError(f"{schema!r} has no fixed size")


def fixed_size(schema: Any) -> int:
    """How many bytes ``schema`` takes, 0 if that depends on the data."""
    try:
        return compile_struct(schema).size
    except TypeError:
        return 0


attribute_header = struct.Struct(netlink.PREFIX + "HH")  # struct nlattr, the one thing here in host order


def build_attribute(number: int, data: bytes) -> bytes:
    """One attribute, padded to a multiple of 4 bytes."""
    length = netlink.ATTRIBUTE_HEADER_SIZE + len(data)
    return attribute_header.pack(length, number) + data + bytes(-length % 4)


def walk(
    data: bytes | bytearray, start: int, end: int, base: int = 0, header: struct.Struct = attribute_header
) -> Iterator[tuple[int, int, int]]:
    """The attributes of ``data[start:end]``: number without flags, and where the data of each begins and ends.

    The padding of the last one may be missing. Raises DecodeError for one that is too short or overlaps the end,
    with an offset counted from ``base`` bytes before ``data``.

    ``end`` may be beyond the end of ``data``, if that is only the beginning of what it was. Then the end of the last
    attribute may be, too; without a whole header it is left out.
    """
    while start < end:
        left = end - start
        if left < netlink.ATTRIBUTE_HEADER_SIZE:
            raise DecodeError(f"{left} bytes are too few for an attribute", base + start)
        try:
            length, number = header.unpack_from(data, start)
        except struct.error:  # where `data` end
            return
        number &= netlink.TYPE_MASK
        if length < netlink.ATTRIBUTE_HEADER_SIZE:
            raise DecodeError(f"attribute {number} of impossible length {length}", base + start)
        if length > left:
            raise DecodeError(f"attribute {number} of {length} bytes where only {left} are left", base + start)
        yield number, start + netlink.ATTRIBUTE_HEADER_SIZE, start + length
        start += (length + 3) & ~3


class Layout:
    """Where the attributes of a message stand, and what proves that those of another stand there too."""

    __slots__ = ("expected", "headers", "payload", "spans")

    def __init__(self, data: bytes, spans: dict[int, slice], payload: int) -> None:
        self.spans: dict[int, slice] = spans
        """Attribute number to the slice of the message that is its data."""
        self.payload: slice = spans.get(payload, slice(0, 0))
        """The slice that is the payload, an empty one where there is none."""
        # nlmsg_len and every attribute header, as one number each; the data between them are skipped. They are compared
        # and nothing else, so that any byte order would do.
        places = [0, *(span.start - netlink.ATTRIBUTE_HEADER_SIZE for span in spans.values())]
        gaps = (f"{later - earlier - 4}xI" for earlier, later in pairwise(places))
        self.headers: Callable[[bytes], tuple[int, ...]] = struct.Struct("=I" + "".join(gaps)).unpack_from
        self.expected: tuple[int, ...] = self.headers(data)


class Layouts:
    """Finds the attributes of messages of one kind.

    ``sizes`` are the least sizes of the attributes' data: shorter ones are refused, so that a reader may rely on
    them. ``start`` is where the attributes begin, and ``payload`` the number of the one that is asked for most.
    """

    def __init__(self, sizes: Mapping[int, int], start: int, payload: int) -> None:
        self._sizes = sizes
        self._start = start
        self._payload = payload
        self._known: dict[int, Layout] = {}
        self.known: Callable[[int], Layout | None] = self._known.get

    def find(self, data: bytes) -> Layout:
        """The layout of the one message that ``data`` is. Raises DecodeError."""
        # By length, so that the header of the payload, too, is one that was seen before.
        layout = self._known.get(len(data))
        if layout is not None and layout.headers(data) == layout.expected:
            return layout
        return self._learn(data)

    def _learn(self, data: bytes) -> Layout:
        messages = list(netlink.split_messages(data))
        if len(messages) != 1:
            raise DecodeError(f"{len(messages)} messages where one was expected", 0)
        end = len(messages[0][1])
        if end < self._start:
            raise DecodeError(f"message of {end} bytes has no room for its header", end)
        spans: dict[int, slice] = {}
        repeated = False
        for number, first, last in walk(data, self._start, end):
            if last - first < self._sizes.get(number, 0):
                raise DecodeError(f"attribute {number} of {last - first} bytes is too short", first)
            repeated |= spans.pop(number, None) is not None  # the last one counts, as in the kernel
            spans[number] = slice(first, last)
        layout = Layout(data, spans, self._payload)
        if not repeated:  # else `spans` has not every header, and proves nothing
            if len(self._known) >= _MAX_LAYOUTS:
                self._known.clear()
            self._known[len(data)] = layout
        return layout
