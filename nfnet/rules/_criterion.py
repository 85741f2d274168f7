"""What every row of `_criteria.CRITERIA` can say of itself; and rows whose values are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from ..protocol import netlink
from ._expressions import (
    EQUAL,
    GREATER_OR_EQUAL,
    LESS_OR_EQUAL,
    NOT_EQUAL,
    Expression,
    Lookup,
    Step,
    compare,
    masked,
    network_order,
    outside,
)
from ._values import HOOKS, NoWordsError, Span, Spans, are_covered, joined, of_version, read_list, span_text

IP_FAMILIES = ("inet", "ip", "ip6")
_FAMILIES = (*IP_FAMILIES, "bridge", "netdev")


class Asked(NamedTuple):
    """What one argument asks of packets: that a value is among some, or is not."""

    spans: Spans
    mask: int | None = None
    """What of the value is compared; None for all of it."""
    negated: bool = False

    def of(self, version: int | None) -> list[Span]:
        """The values that packets of a version can have; of both, if that is None."""
        return of_version(self.spans, version)

    @property
    def versions(self) -> set[int]:
        """The versions of packets that can match."""
        return {4, 6} if self.negated or any(span.version is None for span in self.spans) else self.named

    @property
    def named(self) -> set[int]:
        """The versions of which there are values that the other has not."""
        return {span.version for span in self.spans if span.version is not None}


class Criterion(ABC):
    """One thing that may be asked of packets, and its negation.

    about, takes: what it is, and how it is said, for the documentation.
    """

    about: str
    takes: str
    hooks: tuple[str, ...] = (*HOOKS, "ingress")
    """Those at which it can match. Where one is left out the kernel was seen to match nothing there."""
    families: tuple[str, ...] = _FAMILIES
    lacks = ""
    """What packets do not have at the other hooks."""
    protocols: tuple[str, ...] = ()
    """Those of which one must be asked for, too."""
    is_tracked = False
    """Whether connection tracking says it."""

    @abstractmethod
    def read(self, name: str, value: Any, negated: bool) -> Any:
        """What the methods below get, made of an argument, whose name it gets too. Raises ArgumentError."""

    def versions(self, asked: Any) -> set[int]:
        """The versions of packets that can match."""
        return {4, 6}

    def tells_versions_apart(self, asked: Any) -> bool:
        """Whether it asks something else of packets of the other IP version."""
        return False

    @abstractmethod
    def steps(self, asked: Any, version: int | None) -> Iterator[Step]:
        """Expressions that let packets of the version through that match."""

    @abstractmethod
    def nft(self, asked: Any, version: int | None, protocol: str) -> str:
        """The same in nft's words, for packets of one protocol, or of several if that is empty. Raises NoWordsError."""

    @abstractmethod
    def iptables(self, asked: Any, version: int, protocol: str) -> list[str]:
        """The same in iptables' words, quoted for the shell; any of them must match. Raises NoWordsError."""

    @abstractmethod
    def text(self, asked: Any) -> list[str]:
        """The values in words of the command line."""

    def parse(self, text: str) -> Any:
        """An argument, made of a word of the command line. Raises ArgumentError."""
        values = [self.parse_one(one) for one in text.split(",")]
        return values[0] if len(values) == 1 else values

    def parse_one(self, text: str) -> Any:
        """One of several values."""
        return text


class Compared(Criterion):
    """A value that is loaded into a register, and compared."""

    kind: int
    """What nft calls its type: a number of its own, with which it shows sets."""
    size = 4
    """Bytes."""
    host_order = False
    """Whether it is a number in the host's byte order."""

    @property
    def is_host_ordered(self) -> bool:
        """Whether nft takes the values of a set for such numbers."""
        return self.host_order

    touching = True
    """Whether values in a row are a range."""
    set_kinds: tuple[str, ...] = ()
    """The kinds of `Set` that may stand for values; see `_in_set`."""

    @abstractmethod
    def read_one(self, name: str, value: Any) -> Iterable[Span]:
        """The spans of one of several values. Raises ArgumentError."""

    @abstractmethod
    def load(self, version: int | None) -> Expression:
        """Load the value of a packet."""

    @abstractmethod
    def key(self, version: int | None, protocol: str) -> str:
        """What nft calls it."""

    def show(self, span: Span, version: int | None) -> str:
        """A value in words of nft, and of the command line."""
        return span_text(span.first, span.last)

    @abstractmethod
    def iptables_match(self, span: Span, version: int, negation: str) -> str:
        """A value in words of iptables, with the negation, "! " or nothing, before its option. Raises NoWordsError."""

    iptables_repeats = False
    """Whether iptables takes the words more than once in a rule."""

    def read(self, name: str, value: Any, negated: bool) -> Asked:
        return Asked(joined(read_list(name, value, self.read_one), self.touching), None, negated)

    def versions(self, asked: Asked) -> set[int]:
        if not asked.negated:
            return asked.versions
        return {version for version in (4, 6) if not are_covered([self._all(version)], asked.of(version))}

    def _all(self, version: int) -> Span:
        return Span(0, (1 << 8 * self.bytes_of(version)) - 1)

    def bytes_of(self, version: int | None) -> int:
        """How long the value is in packets of the version."""
        return self.size

    def tells_versions_apart(self, asked: Asked) -> bool:
        return bool(asked.named)

    def _joined(self, asked: Asked, version: int | None) -> Spans:
        return joined(asked.of(version), self.touching)

    def _pack(self, value: int, version: int | None, swapped: bool = False) -> bytes:
        return value.to_bytes(self.bytes_of(version), netlink.HOST if self.host_order and not swapped else "big")

    def steps(self, asked: Asked, version: int | None) -> Iterator[Step]:
        spans = self._joined(asked, version)
        if not spans:
            return
        yield self.load(version)
        if asked.mask is not None:
            yield masked(self._pack(asked.mask, version))
        swapped = self.host_order and any(span.first != span.last for span in spans)
        if swapped:
            yield network_order(self.bytes_of(version))
        values = [(self._pack(first, version, swapped), self._pack(last, version, swapped)) for first, last, _ in spans]
        if len(values) > 1:
            yield Lookup(tuple(values), self.set_kind(version), self.is_host_ordered, asked.negated)
            return
        ((first, last),) = values
        if first == last:
            yield compare(first, NOT_EQUAL if asked.negated else EQUAL)
        elif asked.negated:
            yield outside(first, last)
        else:
            yield compare(first, GREATER_OR_EQUAL)
            yield compare(last, LESS_OR_EQUAL)

    def set_kind(self, version: int | None) -> int:
        """The kind of a set of such values."""
        return self.kind

    def nft(self, asked: Asked, version: int | None, protocol: str) -> str:
        spans = self._joined(asked, version)
        if not spans:
            return ""
        words = [self.key(version, protocol)]
        if asked.mask is not None:
            words.append(f"& {asked.mask:#x}")
        if asked.negated or asked.mask is not None:
            words.append("!=" if asked.negated else "==")
        values = [self.show(span, version) for span in spans]
        words.append(values[0] if len(values) == 1 else f"{{ {', '.join(values)} }}")
        return " ".join(words)

    def iptables(self, asked: Asked, version: int, protocol: str) -> list[str]:
        spans = self._joined(asked, version)
        if not asked.negated:
            return [self.iptables_match(span, version, "") for span in spans] or [""]
        if len(spans) > 1 and not self.iptables_repeats:
            raise NoWordsError(f"several values that {self.about} must not be")
        return [" ".join(self.iptables_match(span, version, "! ") for span in spans)]

    def text(self, asked: Asked) -> list[str]:
        return [self.show(span, span.version) for span in asked.spans]
