"""The bits of a packet's mark that pass a verdict on a whole connection to the rules that carry it out.

Such a verdict is NF_REPEAT with a mark: the packet passes its chain again from the first rule, and rules at the head of
the chain carry out the verdict in the bits. The same bits of the connection's mark store it for later packets. Three
bits contain a `Fate`; the other bits of both marks are free for other programs.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from .._arguments import check
from ..errors import ArgumentError


class Fate(IntEnum):
    """The verdict for the rules: two bits for the packet; the third bit extends it to the rest of the connection."""

    REJECT_PACKET = 0b011
    ACCEPT = 0b101
    DROP = 0b110
    REJECT = 0b111


REST = 0b100
"""The bit that is set in verdicts for the rest of the connection."""
REJECTS = 0b011
"""The bits that are both set if, and only if, the rules reject the packet."""

DEFAULT_BITS = 0x0E000000
_COUNT = 3


class MarkBits:
    """Three bits of the 32 of a mark; ``mask`` has them set. Raises ArgumentError for any other number of bits."""

    __slots__ = ("_places", "mask")

    def __init__(self, mask: int = DEFAULT_BITS) -> None:
        self.mask = check("bits", mask, 0, 0xFFFFFFFF)
        self._places = [1 << place for place in range(32) if mask >> place & 1]
        if len(self._places) != _COUNT:
            raise ArgumentError(f"bits is {mask:#x}, with {len(self._places)} bits set, and must have {_COUNT}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MarkBits) and self.mask == other.mask

    def __hash__(self) -> int:
        return hash(self.mask)

    def __repr__(self) -> str:
        return f"MarkBits({self.mask:#x})"

    def spread(self, number: int) -> int:
        """Return a three-bit number, moved to these bits of a mark."""
        return sum(place for index, place in enumerate(self._places) if number >> index & 1)

    def fate(self, mark: int) -> Fate | None:
        """Return the fate in a mark; None if it contains none."""
        number = sum(1 << index for index, place in enumerate(self._places) if mark & place)
        return Fate(number) if number in Fate.__members__.values() else None


class Support(NamedTuple):
    """The capabilities of rules: the bits that they test, and the fates that they carry out."""

    bits: MarkBits
    fates: frozenset[Fate]


ALL_FATES = frozenset(Fate)
