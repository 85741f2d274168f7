"""The interface of a criterion, which every row of `_criteria.CRITERIA` implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ._expressions import Step
from ._values import HOOKS, Span, Spans, of_version

IP_FAMILIES = ("inet", "ip", "ip6")
_FAMILIES = (*IP_FAMILIES, "bridge", "netdev")


class Condition(NamedTuple):
    """The condition that one argument sets: a value of the packet is, or is not, among some values."""

    spans: Spans
    mask: int | None = None
    """The bits of the value that are compared; None: all bits."""
    negated: bool = False

    def of(self, version: int | None) -> list[Span]:
        """Return the spans that packets of an IP version can have; with None, those of both versions."""
        return of_version(self.spans, version)

    @property
    def versions(self) -> set[int]:
        """The IP versions of the packets that can match."""
        return {4, 6} if self.negated or any(span.version is None for span in self.spans) else self.named

    @property
    def named(self) -> set[int]:
        """The IP versions that have spans of their own."""
        return {span.version for span in self.spans if span.version is not None}


class Hooks(NamedTuple):
    """The hooks at which a criterion can match. Hooks at which the kernel was seen to match nothing are left out."""

    names: tuple[str, ...]
    missing: str
    """The property that packets lack at the other hooks, for error messages: "incoming interface"."""
    note: str = ""
    """A sentence for the documentation."""


EVERYWHERE = Hooks((*HOOKS, "ingress"), "")


class Criterion(ABC):
    """A property of packets that a rule can require, and its negation.

    `read` converts an argument into the ``condition`` that the other methods take.
    """

    description: str
    """The property, for the documentation."""
    syntax: str
    """The values that the argument accepts, for the documentation."""
    hooks: Hooks = EVERYWHERE
    families: tuple[str, ...] = _FAMILIES
    """The families of tables in which the criterion can match."""
    protocols: tuple[str, ...] = ()
    """The protocols that have the property. The rule must require one or several of them."""
    is_tracked = False
    """Whether the property comes from connection tracking."""
    is_last = False
    """Whether the criterion must be evaluated last, because it counts the packets that reach it."""
    names_version = False
    """Whether the words of nft imply the IP version."""
    needs = ""
    """The kernel option or version that the criterion needs, if not every kernel has it."""

    @abstractmethod
    def read(self, name: str, value: Any, negated: bool) -> Any:
        """Check the value of the argument ``name`` and return the condition. Raises ArgumentError."""

    def versions(self, condition: Any) -> set[int]:
        """Return the IP versions of the packets that can match."""
        return {4, 6}

    def differs_by_version(self, condition: Any) -> bool:
        """Return True if IPv4 and IPv6 need different expressions."""
        return False

    def check_protocols(self, name: str, condition: Any, protocols: Sequence[str]) -> None:
        """Raise ArgumentError if packets of the protocols that the rule requires lack the property.

        Without protocols the rule is for packets of any protocol.
        """
        needed = self.protocols
        if needed and not (protocols and set(protocols) <= set(needed)):
            choices = ", ".join(map(repr, needed[:-1])) + (" or " if needed[1:] else "") + repr(needed[-1])
            several = ", or several of these" if needed[1:] else ""
            raise ArgumentError(f"{name} needs protocol to be {choices}{several}")

    def interfaces(self, condition: Any) -> list[str]:
        """Return the names of interfaces that must exist when the rule is installed."""
        return []

    @abstractmethod
    def steps(self, condition: Any, version: int | None) -> Iterator[Step]:
        """Yield the expressions that packets of an IP version must satisfy; with None, packets of either version."""

    @abstractmethod
    def nft(self, condition: Any, version: int | None, protocol: str) -> str:
        """Return the words of nft for packets of a protocol, or of several protocols (""). Raises NoWordsError."""

    @abstractmethod
    def iptables(self, condition: Any, version: int, protocol: str) -> list[str]:
        """Return alternatives in words of iptables, quoted for the shell. Raises NoWordsError."""

    @abstractmethod
    def command_values(self, condition: Any) -> list[str]:
        """Return the values in the syntax of the command line."""

    def parse(self, text: str) -> Any:
        """Return the argument for a word of the command line. Raises ArgumentError."""
        values = [self.parse_value(part) for part in text.split(",")]
        return values[0] if len(values) == 1 else values

    def parse_value(self, text: str) -> Any:
        """Return one of several values of an argument. Raises ArgumentError."""
        return text
