"""The conditions of a rule: all its arguments together, by the rows of `_criteria.CRITERIA`."""

from __future__ import annotations

import copy
import itertools
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ._criteria import CRITERIA, NEVER
from ._criterion import Condition, Criterion
from ._expressions import META_NFPROTO, META_PROTOCOL, Step, compare, meta
from ._in_set import InSet
from ._sets import Set
from ._values import NoWordsError, are_covered

NOT = "not_"
TRACKED_AT = -200  # NF_IP_PRI_CONNTRACK
_MAX_IPTABLES_RULES = 64  # a description with more rules would be too long to read


class _Argument(NamedTuple):
    """An argument of a rule, with its row."""

    name: str
    criterion: str
    """The name without not_."""
    row: Criterion
    condition: Any
    negated: bool


class Match:
    """The conditions of a rule; a packet must satisfy all of them.

    family: the family of the rule's table.
    given: the arguments by name. ``not_`` before the name of a criterion negates it; packets of the other IP version
        satisfy the negation, too.

    Raises ArgumentError, also if no packet can match.
    """

    def __init__(self, family: str, given: dict[str, Any]) -> None:
        self._family = family
        self._arguments: list[_Argument] = []
        for criterion, row in CRITERIA.items():
            for name, negated in ((criterion, False), (NOT + criterion, True)):
                if given.get(name) is not None:
                    self._arguments.append(_read(name, criterion, row, given[name], negated))
        # Sets come after the other conditions, so that the counters of a set count only packets that match those. A
        # limit comes last, so that packets that do not match do not use it up.
        self._arguments.sort(key=lambda one: (one.row.is_last, isinstance(one.condition, Set)))
        self._check_contradictions()
        protocols = self._protocols(None)
        for one in self._arguments:
            one.row.check_protocols(one.name, one.condition, protocols)
        self.versions = self._check_versions()
        """The IP versions of the packets that can match."""

    def sets(self) -> list[Set]:
        """Return the sets that are used, each once."""
        return list(dict.fromkeys(one.condition for one in self._arguments if isinstance(one.condition, Set)))

    def has(self, criterion: str) -> bool:
        """Return True if there is a condition on a criterion, negated or not."""
        return any(one.criterion == criterion for one in self._arguments)

    def _condition(self, name: str) -> Any:
        return next((one.condition for one in self._arguments if one.name == name), None)

    def _check_contradictions(self) -> None:
        for one in self._arguments:
            condition, denied = one.condition, self._condition(NOT + one.name)
            if isinstance(condition, Set) and condition is denied:
                raise ArgumentError(f"{one.name} and not_{one.name} are the same set: no packet matches")
            if not isinstance(condition, Condition) or not isinstance(denied, Condition):
                continue
            if denied.mask == condition.mask and are_covered(condition.spans, denied.spans):
                values = ", ".join(one.row.command_values(condition))
                raise ArgumentError(f"{one.name} is {values}, which not_{one.name} leaves out: no packet matches")

    def _protocols(self, version: int | None) -> list[str]:
        """Return the names of the protocols that the rule requires of packets of an IP version (None: of either)."""
        condition = self._condition("protocol")
        if condition is None:
            return []
        spans = tuple(span for span in condition.spans if version is None or span.version in (None, version))
        return list(dict.fromkeys(CRITERIA["protocol"].command_values(Condition(spans))))

    def _check_versions(self) -> tuple[int, ...]:
        """Return the IP versions of the packets that can match. Raises ArgumentError if no packet can match."""
        limits: list[tuple[str, set[int]]] = []
        if self._family in ("ip", "ip6"):
            limits.append((f"family {self._family!r}", {4} if self._family == "ip" else {6}))
        for one in self._arguments:
            versions = one.row.versions(one.condition)
            if not versions:
                raise ArgumentError(f"{one.name} leaves out everything: no packet matches")
            limits.append((one.name, versions))
        left = {4, 6}.intersection(*(versions for _, versions in limits))
        if not left:
            reasons = [f"{what} is for IPv{min(versions)} only" for what, versions in limits if len(versions) == 1]
            raise ArgumentError(f"{', and '.join(dict.fromkeys(reasons))}: no packet matches")
        return tuple(sorted(left))

    def check_place(self, hook: str, priority: int) -> None:
        """Raise ArgumentError if no packet can match in a chain with this hook and priority."""
        for one in self._arguments:
            name, row = one.name, one.row
            if self._family not in row.families:
                raise ArgumentError(f"{name} is for the families {', '.join(row.families)}, not for {self._family!r}")
            hooks = [at for at in row.hooks.names if (self._family, at, one.criterion) not in NEVER]
            if hook not in hooks:
                place = f"the hook {hook!r}" + (" of a bridge" if self._family == "bridge" else "")
                others = ", ".join(at for at in hooks if at != "ingress" or self._family == "inet")
                raise ArgumentError(
                    f"{name} has no meaning at {place}, where no {row.hooks.missing} is known: it is for the hooks"
                    f" {others}"
                )
            # At output a bridge sees packets that the IP layer has tracked.
            tracked = ("prerouting",) if self._family == "bridge" else ("prerouting", "output")
            if row.is_tracked and hook in tracked and priority <= TRACKED_AT:
                raise ArgumentError(
                    f"priority is {priority} and must be above {TRACKED_AT} for {name}: that is where, at the hook"
                    f" {hook!r}, connection tracking looks at packets"
                )

    def needs(self) -> Iterator[str]:
        """Yield the requirements of the criteria that not every kernel supports."""
        for one in self._arguments:
            if one.row.needs:
                yield f"{one.name} needs {one.row.needs}"

    def interfaces(self) -> Iterator[str]:
        """Yield the names of interfaces that must exist when the rule is installed."""
        for one in self._arguments:
            yield from one.row.interfaces(one.condition)

    def branches(self) -> tuple[int | None, ...]:
        """Return the IP versions for which the kernel needs rules of their own; None: one rule for both."""
        if self._family in ("ip", "ip6"):
            return self.versions
        differs = any(one.row.differs_by_version(one.condition) for one in self._arguments)
        return self.versions if differs else (None,)

    def only_tcp(self, version: int | None) -> bool | None:
        """Return True if all packets that can match are TCP segments, False if none of them is, otherwise None."""
        protocols = self._protocols(version)
        if protocols:
            return protocols == ["tcp"] if "tcp" not in protocols or len(protocols) == 1 else None
        denied = self._condition("not_protocol")
        return False if denied is not None and "tcp" in CRITERIA["protocol"].command_values(denied) else None

    def of_tcp(self) -> Match:
        """Return a copy that only TCP segments match."""
        narrowed = copy.copy(self)
        tcp = _read("protocol", "protocol", CRITERIA["protocol"], "tcp", False)
        narrowed._arguments = [tcp, *(one for one in self._arguments if one.criterion != "protocol")]
        return narrowed

    def steps(self, version: int | None) -> Iterator[Step]:
        """Yield the expressions that packets of a branch must satisfy."""
        if version is not None and self._family == "inet":
            yield meta(META_NFPROTO)
            yield compare(bytes([socket.AF_INET if version == 4 else socket.AF_INET6]))
        elif version is not None and self._family in ("bridge", "netdev"):
            yield meta(META_PROTOCOL)
            yield compare(bytes.fromhex("0800" if version == 4 else "86dd"))
        for one in self._arguments:
            yield from one.row.steps(one.condition, version)

    def nft(self, version: int | None) -> list[str]:
        """Return the conditions of a branch in words of nft. Raises NoWordsError."""
        protocols = self._protocols(version)
        protocol = protocols[0] if len(protocols) == 1 else ""
        all_words = [(one, one.row.nft(one.condition, version, protocol)) for one in self._arguments]
        said = [(one, words) for one, words in all_words if words]
        if protocol and any(one.row.protocols for one, _ in said):  # "tcp dport 80" implies the protocol
            said = [(one, words) for one, words in said if one.name != "protocol"]
        found = [words for _, words in said]
        if version is not None and not any(one.row.names_version for one, _ in said):
            if self._family == "inet":
                return [f"meta nfproto ipv{version}", *found]
            if self._family in ("bridge", "netdev"):
                return [f"meta protocol {'ip' if version == 4 else 'ip6'}", *found]
        return found

    def iptables(self, version: int) -> list[list[str]]:
        """Return alternatives in words of iptables or ip6tables, quoted for the shell. Raises NoWordsError."""
        protocols = self._protocols(version)
        protocol = protocols[0] if len(protocols) == 1 else ""
        if not protocol and any(one.row.protocols for one in self._arguments):
            # iptables accepts options for ports only together with one protocol.
            return [words for each in protocols for words in self._iptables(version, each)]
        return self._iptables(version, protocol)

    def _iptables(self, version: int, protocol: str) -> list[list[str]]:
        choices = []
        for one in self._arguments:
            found = one.row.iptables(one.condition, version, protocol)
            if one.name == "protocol" and protocol:
                found = [f"-p {protocol}"]
            choices.append(found)
        count = 1
        for found in choices:
            count *= len(found)
        if count > _MAX_IPTABLES_RULES:
            raise NoWordsError(f"so many values: it would be {count} rules")
        lines = [[word for word in words if word] for words in itertools.product(*choices)]
        for words in lines:  # after -m multiport, iptables takes --dport for an option of multiport
            words.sort(key=lambda word: word.startswith("-m "))
        if any(sum(word.startswith("-m multiport") for word in words) > 1 for words in lines):
            raise NoWordsError("several ports of both senders and receivers")
        return lines

    def command_words(self) -> list[str]:
        """Return the arguments in the syntax of the command line, not quoted."""
        return [f"{one.name}={','.join(one.row.command_values(one.condition))}" for one in self._arguments]


def _read(name: str, criterion: str, row: Criterion, value: Any, negated: bool) -> _Argument:
    if isinstance(value, Set):
        row = InSet(row, negated)
    return _Argument(name, criterion, row, row.read(name, value, negated), negated)
