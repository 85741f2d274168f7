"""The fast readers, derived from the schemas when they are imported.

construct takes 64-79 µs for one packet message; a queue has about two. Three things make the readers fast enough:

- `compile_struct` converts a schema of fixed size into the `struct.Struct` of the same layout.
- `walk` steps over attributes without building objects for them.
- `Layouts` remembers the offsets of the attributes. The messages that one rule causes have the same attributes at the
  same offsets. If all attribute headers, read by one ``unpack``, are equal to those of the remembered message, a walk
  would find the same offsets. The comparison needs *all* headers, because the sender of the packet can choose the bytes
  at a remembered offset. If only the length of the payload is new, a walk from header to header finds the remembered
  `Shape` of such messages.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from .. import _construct as construct
from ..errors import DecodeError
from . import netlink

# The numbers of layouts and shapes that `Layouts` remembers before it discards all of them, and of layouts of messages
# of one length.
_MAX_LAYOUTS = 4096
_MAX_SHAPES = 1024
_MAX_OTHERS = 8


def compile_struct(schema: Any, *pick: str) -> struct.Struct:
    """Return the `struct.Struct` that reads the fields of ``schema``, as big-endian numbers.

    With names in ``pick`` (dotted for inner structures) it reads only these and skips the rest. It also reads fields in
    host order as big-endian; their values can only be compared with those that the same reader returns for another
    message. Raises TypeError for a schema without a fixed size.
    """
    return struct.Struct(">" + "".join(_format(schema, "", pick)))


def _format(schema: Any, name: str, pick: tuple[str, ...]) -> Iterator[str]:
    if isinstance(schema, construct.Renamed):
        name = f"{name}.{schema.name}" if name else schema.name
        yield from _format(schema.subcon, name, pick)
    elif isinstance(schema, construct.Struct):
        for field in schema.subcons:
            yield from _format(field, name, pick)
    elif isinstance(schema, (construct.Rebuild, construct.Default, construct.Const)):
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
    """Return the size of ``schema`` in bytes, or 0 if it depends on the data."""
    try:
        return compile_struct(schema).size
    except TypeError:
        return 0


attribute_header = struct.Struct(netlink.PREFIX + "HH")  # struct nlattr, the only layout here in host order
_pack_header = attribute_header.pack
_PADDING = tuple(bytes(-length % 4) for length in range(4))


def build_attribute(number: int, data: bytes) -> bytes:
    """Return one attribute, padded to a multiple of 4 bytes."""
    length = netlink.ATTRIBUTE_HEADER_SIZE + len(data)
    return _pack_header(length, number) + data + _PADDING[length % 4]


def walk(
    data: bytes | bytearray, start: int, end: int, base: int = 0, header: struct.Struct = attribute_header
) -> Iterator[tuple[int, int, int]]:
    """Yield the attributes of ``data[start:end]``: number without flags, start and end of the data.

    The padding of the last one can be missing. Raises DecodeError for an attribute that is too short or extends beyond
    ``end``, with an offset counted from ``base`` bytes before ``data``.

    If ``data`` is only the beginning of the message, ``end`` can be beyond its end. Then the end of the last attribute
    can be, too; an attribute without a complete header is left out.
    """
    while start < end:
        left = end - start
        if left < netlink.ATTRIBUTE_HEADER_SIZE:
            raise DecodeError(f"{left} bytes are too few for an attribute", base + start)
        try:
            length, number = header.unpack_from(data, start)
        except struct.error:  # the end of `data`
            return
        number &= netlink.TYPE_MASK
        if length < netlink.ATTRIBUTE_HEADER_SIZE:
            raise DecodeError(f"attribute {number} of impossible length {length}", base + start)
        if length > left:
            raise DecodeError(f"attribute {number} of {length} bytes where only {left} are left", base + start)
        yield number, start + netlink.ATTRIBUTE_HEADER_SIZE, start + length
        start += (length + 3) & ~3


class Layout:
    """The offsets of the attributes in a message, and the headers by which other messages with them are recognized."""

    __slots__ = ("expected", "headers", "number", "other", "payload", "spans")

    def __init__(self, shape: Shape, spans: dict[int, slice], expected: tuple[int, ...], other: Layout | None) -> None:
        self.headers: Callable[[bytes], tuple[int, ...]] = shape.headers
        """Reads nlmsg_len and the headers of all attributes."""
        self.expected = expected
        """The numbers that ``headers`` reads in each message that has this layout."""
        self.spans = spans
        """Attribute number to the slice of the message with its data. The end of the last one can be negative."""
        self.payload: slice = spans.get(shape.payload, _NOTHING)
        """The slice with the payload; an empty one if there is no payload."""
        self.other = other
        """Another layout of messages of the same length."""
        self.number: int = 1 if other is None else other.number + 1
        """The number of layouts in the chain from this one on."""


_NOTHING = slice(0, 0)


class Shape:
    """The common part of messages that differ only in the length of their last attribute, usually the payload."""

    __slots__ = ("_least", "_padded", "_spans", "headers", "last", "payload", "start")

    def __init__(self, spans: dict[int, slice], payload: int, least: int) -> None:
        """``payload`` is the number of the attribute read most often, ``least`` the minimum size of the last one."""
        # nlmsg_len and every attribute header, as one number each; the data between them is skipped. The numbers are
        # only compared, so their byte order does not matter.
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
        """Return whether the last attribute can have ``length`` bytes of data, followed by ``padding`` bytes."""
        return length >= self._least and 0 <= padding <= -length % 4

    def spans(self, padding: int) -> dict[int, slice]:
        """Return the slices of the attributes if ``padding`` bytes follow the data of the last one."""
        spans = self._padded.get(padding)
        if spans is None:
            spans = {**self._spans, self.last: slice(self.start, -padding or None)}
            self._padded[padding] = spans
        return spans


class _Branch:
    """The state of a walk after certain attributes: a node of the tree of all shapes."""

    __slots__ = ("ends", "place", "then")

    def __init__(self, place: int) -> None:
        self.place = place
        """The offset of the next attribute."""
        self.then: dict[int, _Branch] = {}
        """The next branch by the header of the next attribute, if that is not the last one."""
        self.ends: dict[int, Shape] = {}
        """The shape by the number, flags included, of the next attribute, if that is the last one."""


_read_header = struct.Struct("=I").unpack_from
_read_length = struct.Struct(netlink.PREFIX + "I").unpack_from


class Layouts:
    """Finds the attributes of messages of one kind.

    ``sizes`` are the minimum sizes of the attributes' data: shorter ones are refused, so that readers can rely on them.
    ``start`` is the offset of the first attribute, and ``payload`` the number of the attribute read most often.

    `find` tries three ways, the quickest first: the layouts of the message's length; the tree of shapes, which takes a
    walk over the headers but compiles nothing; and a complete check of all attributes.
    """

    def __init__(self, sizes: Mapping[int, int], start: int, payload: int) -> None:
        self._sizes = sizes
        self._start = start
        self._payload = payload
        self._known: dict[int, Layout] = {}
        self._tree = _Branch(start)
        # The numbers of layouts and shapes, or slightly less, because threads can increment them at the same time.
        self._layouts = self._shapes = 0
        self.known: Callable[[int], Layout | None] = self._known.get

    def find(self, data: bytes) -> Layout:
        """Return the layout of ``data``, which must be one message. Raises DecodeError."""
        # Layouts are found by length, so that the header of the payload is also one that was checked before.
        first = layout = self._known.get(len(data))
        while layout is not None:
            if layout.headers(data) == layout.expected:
                return layout
            layout = layout.other
        return self._descend(data, first) or self._learn(data, first)

    def _descend(self, data: bytes, other: Layout | None) -> Layout | None:
        """Return the layout of a message, or None if its shape is not known."""
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
        if spans and not repeated:  # with a repeated attribute `spans` lacks a header
            self._plant(data, shape, spans)
            if layout := self._descend(data, other):  # None if padding follows the message itself
                return layout
        return Layout(shape, spans, (), None)

    def _plant(self, data: bytes, shape: Shape, spans: dict[int, slice]) -> None:
        """Insert a shape into the tree."""
        if self._shapes >= _MAX_SHAPES:
            self._tree = _Branch(self._start)
            self._shapes = 0
        self._shapes += 1
        branch = self._tree
        places = [span.start - netlink.ATTRIBUTE_HEADER_SIZE for span in spans.values()]
        for place, following in pairwise(places):
            branch = branch.then.setdefault(_read_header(data, place)[0], _Branch(following))
        branch.ends[attribute_header.unpack_from(data, places[-1])[1]] = shape
