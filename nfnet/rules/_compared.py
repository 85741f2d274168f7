"""Criteria that load a value of the packet into a register and compare it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..protocol import netlink
from ._criterion import Condition, Criterion
from ._expressions import (
    EQUAL,
    GREATER_OR_EQUAL,
    LESS_OR_EQUAL,
    NOT_EQUAL,
    Datatype,
    Expression,
    Lookup,
    Step,
    compare,
    masked,
    network_order,
    outside,
)
from ._values import NoWordsError, Span, Spans, are_covered, joined, read_list, span_text


class Field(NamedTuple):
    """A value of the packet: the expression that loads it, and its form in the register."""

    load: Expression
    size: int
    """Its size in the register, in bytes."""
    datatype: Datatype
    host_order: bool = False
    """Whether the value is a number in the host's byte order."""
    mask: int | None = None
    """The bits that belong to the value; None: all bits."""
    shift: int = 0
    """The number of bits below the value."""

    @property
    def greatest(self) -> int:
        """The greatest value."""
        return ((1 << 8 * self.size) - 1 if self.mask is None else self.mask) >> self.shift

    @property
    def is_host_ordered(self) -> bool:
        """Whether nft shows the values in a set as numbers in the host's byte order, as it does with text."""
        return self.host_order or self.datatype == Datatype.IFNAME

    def pack(self, value: int, swapped: bool = False) -> bytes:
        """Return a value in the form of the register; ``swapped``: after the expression `network_order`."""
        order = netlink.HOST if self.host_order and not swapped else "big"
        return (value << self.shift).to_bytes(self.size, order)


class Compared(Criterion):
    """A criterion that compares one field."""

    merge_adjacent = True
    """Whether adjacent values are merged into one range."""
    set_kinds: tuple[str, ...] = ()
    """The kinds of `Set` that the argument accepts; see `_in_set`."""

    @abstractmethod
    def field(self, version: int | None) -> Field:
        """Return the field of packets of an IP version."""

    @abstractmethod
    def nft_name(self, version: int | None, protocol: str) -> str:
        """Return nft's name of the field."""

    def nft_value(self, span: Span, version: int | None) -> str:
        """Return nft's words for a value or a range. Raises NoWordsError."""
        return span_text(span.first, span.last)

    def versions(self, condition: Condition) -> set[int]:
        if not condition.negated:
            return condition.versions
        whole = {version: Span(0, self.field(version).greatest) for version in (4, 6)}
        return {
            version for version, span in whole.items() if not are_covered([span], joined(condition.of(version), True))
        }

    def differs_by_version(self, condition: Condition) -> bool:
        return bool(condition.named)

    def spans(self, condition: Condition, version: int | None) -> Spans:
        """Return the spans for packets of an IP version, without overlaps."""
        return joined(condition.of(version), self.merge_adjacent)

    def steps(self, condition: Condition, version: int | None) -> Iterator[Step]:
        spans = self.spans(condition, version)
        if not spans:
            return
        field = self.field(version)
        yield field.load
        if condition.mask is not None:
            yield masked(field.pack(condition.mask))
        elif field.mask is not None:
            yield masked(field.pack(field.greatest))
        swapped = field.host_order and any(span.first != span.last for span in spans)
        if swapped:
            yield network_order(field.size)
        values = [(field.pack(first, swapped), field.pack(last, swapped)) for first, last, _ in spans]
        if len(values) > 1:
            yield Lookup(tuple(values), field.datatype, field.is_host_ordered, condition.negated)
            return
        ((first, last),) = values
        if first == last:
            yield compare(first, NOT_EQUAL if condition.negated else EQUAL)
        elif condition.negated:
            yield outside(first, last)
        else:
            yield compare(first, GREATER_OR_EQUAL)
            yield compare(last, LESS_OR_EQUAL)

    def nft(self, condition: Condition, version: int | None, protocol: str) -> str:
        spans = self.spans(condition, version)
        if not spans:
            return ""
        words = [self.nft_name(version, protocol)]
        if condition.mask is not None:
            words.append(f"& {condition.mask:#x}")
        if condition.negated or condition.mask is not None:
            words.append("!=" if condition.negated else "==")
        values = [self.nft_value(span, version) for span in spans]
        words.append(values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}")
        return " ".join(words)

    def command_values(self, condition: Condition) -> list[str]:
        return [self.nft_value(span, span.version) for span in condition.spans]


class Listed(Compared):
    """A compared criterion whose argument is a value or a list of values, which iptables matches one by one."""

    iptables_repeats = False
    """Whether iptables accepts the option more than once in a rule."""

    @abstractmethod
    def read_value(self, name: str, value: Any) -> Iterable[Span]:
        """Check one of the values of the argument ``name`` and yield its spans. Raises ArgumentError."""

    @abstractmethod
    def iptables_value(self, span: Span, version: int, negation: str) -> str:
        """Return the option of iptables for a value or a range, after ``negation``: "! " or "". Raises NoWordsError."""

    def read(self, name: str, value: Any, negated: bool) -> Condition:
        return Condition(joined(read_list(name, value, self.read_value), self.merge_adjacent), None, negated)

    def iptables(self, condition: Condition, version: int, protocol: str) -> list[str]:
        spans = self.spans(condition, version)
        if not condition.negated:
            return [self.iptables_value(span, version, "") for span in spans] or [""]
        if len(spans) > 1 and not self.iptables_repeats:
            raise NoWordsError(f"several values that {self.description} must not be")
        return [" ".join(self.iptables_value(span, version, "! ") for span in spans)]
