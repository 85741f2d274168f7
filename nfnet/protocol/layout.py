"""The fast readers, derived from the schemas when they are imported.

construct takes 64-79 µs for one packet message; a queue has about two. Three things make up the difference:

- `compile_struct` turns a schema of fixed size into the `struct.Struct` of the same layout.
- `walk` steps over attributes without building objects for them.
- `Layouts` remembers where the attributes stood. The messages that one rule causes have the same attributes at the
  same places, so one ``unpack`` of all attribute headers, compared with those of the remembered message, proves that
  a walk would end up in the same places. Nothing less than *all* headers is proof: what lies at a remembered offset
  may be chosen by whoever sent the packet. Where only the length of the payload is new, a walk from header to header
  finds what else was learned of such messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

import construct

from ..errors import DecodeError
from . import netlink

# So many layouts and shapes `Layouts` remembers before it starts afresh, and of one length so many.
_MAX_LAYOUTS = 4096
_MAX_SHAPES = 1024
_MAX_OTHERS = 8


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
_pack_header = attribute_header.pack
_PADDING = tuple(bytes(-length % 4) for length in range(4))


def build_attribute(number: int, data: bytes) -> bytes:
    """One attribute, padded to a multiple of 4 bytes."""
    length = netlink.ATTRIBUTE_HEADER_SIZE + len(data)
    return _pack_header(length, number) + data + _PADDING[length % 4]


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

    __slots__ = ("expected", "headers", "number", "other", "payload", "spans")

    def __init__(self, shape: Shape, spans: dict[int, slice], expected: tuple[int, ...], other: Layout | None) -> None:
        self.headers: Callable[[bytes], tuple[int, ...]] = shape.headers
        """Reads nlmsg_len and the headers of all attributes."""
        self.expected = expected
        """What it reads in each message that has this layout."""
        self.spans = spans
        """Attribute number to the slice of the message that is its data. The last one may count from the end."""
        self.payload: slice = spans.get(shape.payload, _NOTHING)
        """The slice that is the payload, an empty one where there is none."""
        self.other = other
        """Another layout of messages of the same length."""
        self.number: int = 1 if other is None else other.number + 1
        """How many of that length there are with it."""


_NOTHING = slice(0, 0)


class Shape:
    """What messages have in common that differ in the length of their last attribute alone, which is the payload."""

    __slots__ = ("_least", "_padded", "_spans", "headers", "last", "payload", "start")

    def __init__(self, spans: dict[int, slice], payload: int, least: int) -> None:
        """``payload`` is the number of the attribute that is asked for most, ``least`` the least size of the last."""
        # nlmsg_len and every attribute header, as one number each; the data between them are skipped. They are compared
        # and nothing else, so that any byte order would do.
        places = [0, *(span.start - netlink.ATTRIBUTE_HEADER_SIZE for span in spans.values())]
        gaps = (f"{later - earlier - 4}xI" for earlier, later in pairwise(places))
        self.headers: Callable[[bytes], tuple[int, ...]] = struct.Struct("=I" + "".join(gaps)).unpack_from
        self.payload = payload
        self.last: int = next(reversed(spans), 0)
        self.start: int = spans.get(self.last, _NOTHING).start
        self._least = least
        self._spans = spans
        self._padded: dict[int, dict[int, slice]] = {}

    def fits(self, length: int, padding: int) -> bool:
        """Whether the last attribute may have so much data, and so many bytes behind them."""
        return length >= self._least and 0 <= padding <= -length % 4

    def spans(self, padding: int) -> dict[int, slice]:
        """The attributes of a message that has so many bytes behind the data of the last one."""
        spans = self._padded.get(padding)
        if spans is None:
            spans = {**self._spans, self.last: slice(self.start, -padding or None)}
            self._padded[padding] = spans
        return spans


class _Branch:
    """Where a walk is after certain attributes, and how it goes on: a node of the tree of all shapes."""

    __slots__ = ("ends", "place", "then")

    def __init__(self, place: int) -> None:
        self.place = place
        """Where the next attribute begins."""
        self.then: dict[int, _Branch] = {}
        """By its header, if it is not the last one."""
        self.ends: dict[int, Shape] = {}
        """By its number with flags, if it is."""


_read_header = struct.Struct("=I").unpack_from
_read_length = struct.Struct(netlink.PREFIX + "I").unpack_from


class Layouts:
    """Finds the attributes of messages of one kind.

    ``sizes`` are the least sizes of the attributes' data: shorter ones are refused, so that a reader may rely on
    them. ``start`` is where the attributes begin, and ``payload`` the number of the one that is asked for most.

    A message is looked for in three steps, from the quickest to the slowest: among the layouts of its length; in the
    tree of shapes, which takes a walk over the headers but compiles nothing; and by taking it apart.
    """

    def __init__(self, sizes: Mapping[int, int], start: int, payload: int) -> None:
        self._sizes = sizes
        self._start = start
        self._payload = payload
        self._known: dict[int, Layout] = {}
        self._tree = _Branch(start)
        # How many there are, or some fewer: threads may count at the same time.
        self._layouts = self._shapes = 0
        self.known: Callable[[int], Layout | None] = self._known.get

    def find(self, data: bytes) -> Layout:
        """The layout of the one message that ``data`` is. Raises DecodeError."""
        # By length, so that the header of the payload, too, is one that was seen before.
        first = layout = self._known.get(len(data))
        while layout is not None:
            if layout.headers(data) == layout.expected:
                return layout
            layout = layout.other
        return self._descend(data, first) or self._learn(data, first)

    def _descend(self, data: bytes, other: Layout | None) -> Layout | None:
        """The layout of a message whose shape is known, None if it is not."""
        size = len(data)
        if size < self._start or _read_length(data)[0] != size:
            return None
        branch: _Branch | None = self._tree
        while branch is not None:
            place = branch.place
            if size - place < netlink.ATTRIBUTE_HEADER_SIZE:
                return None
            ends = branch.ends
            branch = branch.then.get(_read_header(data, place)[0])
        length, number = attribute_header.unpack_from(data, place)
        shape = ends.get(number)
        if shape is None:
            return None
        length -= netlink.ATTRIBUTE_HEADER_SIZE
        padding = size - place - netlink.ATTRIBUTE_HEADER_SIZE - length
        if not shape.fits(length, padding):
            return None
        if other is not None and other.number >= _MAX_OTHERS:
            other = None
        if self._layouts >= _MAX_LAYOUTS:
            self._known.clear()
            self._layouts = 0
            other = None
        layout = Layout(shape, shape.spans(padding), shape.headers(data), other)
        self._known[size] = layout
        self._layouts += 1
        return layout

    def _learn(self, data: bytes, other: Layout | None) -> Layout:
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
        shape = Shape(spans, self._payload, self._sizes.get(next(reversed(spans), 0), 0))
        if spans and not repeated:  # else `spans` has not every header, and proves nothing
            self._plant(data, shape, spans)
            if layout := self._descend(data, other):  # None if there is padding behind the message itself
                return layout
        return Layout(shape, spans, (), None)

    def _plant(self, data: bytes, shape: Shape, spans: dict[int, slice]) -> None:
        """Put a shape into the tree."""
        if self._shapes >= _MAX_SHAPES:
            self._tree = _Branch(self._start)
            self._shapes = 0
        self._shapes += 1
        branch = self._tree
        places = [span.start - netlink.ATTRIBUTE_HEADER_SIZE for span in spans.values()]
        for place, following in pairwise(places):
            branch = branch.then.setdefault(_read_header(data, place)[0], _Branch(following))
        branch.ends[attribute_header.unpack_from(data, places[-1])[1]] = shape
