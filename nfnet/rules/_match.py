"""Which packets a rule is for: what its arguments ask for together, by rows of `_criteria.CRITERIA`."""

from __future__ import annotations

import copy
import itertools
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ._criteria import CRITERIA, NEVER
from ._criterion import Asked, Criterion
from ._expressions import META_NFPROTO, META_PROTOCOL, Step, compare, meta
from ._in_set import InSet
from ._sets import Set
from ._values import NoWordsError, are_covered

NOT = "not_"
TRACKED_AT = -200  # NF_IP_PRI_CONNTRACK
_MAX_IPTABLES_RULES = 64  # beyond which nobody wants to read them


class _Condition(NamedTuple):
    """What one argument asks for."""

    name: str
    row: Criterion
    asked: Any
    negated: bool

    @property
    def criterion(self) -> str:
        """The name without not_."""
        return self.name.removeprefix(NOT) if self.negated else self.name


class Match:
    """Packets of which all that is given is true. Raises ArgumentError, also if there can be none.

    An argument whose name begins with not_ asks for packets of which the other is not true: those of the other IP
    version, too, if there is one.
    """

    def __init__(self, family: str, given: dict[str, Any]) -> None:
        self._family = family
        self._conditions: list[_Condition] = []
        for name, row in CRITERIA.items():
            for argument, negated in ((name, False), (NOT + name, True)):
                if given.get(argument) is not None:
                    self._conditions.append(self._condition(argument, row, given[argument], negated))
        # Sets behind the others: what is found in one may be counted there, and shall be what the rule is for. Behind
        # a limit there is nothing: it would be used up by packets that do not match.
        self._conditions.sort(key=lambda condition: (condition.criterion == "limit", isinstance(condition.asked, Set)))
        self._check_contradictions()
        self._check_protocols()
        self.versions = self._check_versions()

    def _condition(self, name: str, row: Criterion, value: Any, negated: bool) -> _Condition:
        if isinstance(value, Set):
            return _Condition(name, InSet(name, row, value, negated), value, negated)
        return _Condition(name, row, row.read(name, value, negated), negated)

    def sets(self) -> list[Set]:
        """The sets that are used, each once."""
        return list(dict.fromkeys(c.asked for c in self._conditions if isinstance(c.asked, Set)))

    def _asked(self, name: str) -> Any:
        return next((condition.asked for condition in self._conditions if condition.name == name), None)

    def has(self, name: str) -> bool:
        """Whether packets are asked for that, or for the contrary."""
        return any(condition.criterion == name for condition in self._conditions)

    def _check_contradictions(self) -> None:
        for condition in self._conditions:
            denied = self._asked(NOT + condition.name)
            asked = condition.asked
            if isinstance(asked, Set) and asked is denied:
                raise ArgumentError(f"{condition.name} and not_{condition.name} are the same set: no packet matches")
            if not isinstance(asked, Asked) or not isinstance(denied, Asked) or denied.mask != asked.mask:
                continue
            if are_covered(asked.spans, denied.spans):
                values = ", ".join(condition.row.text(asked))
                raise ArgumentError(
                    f"{condition.name} is {values}, which not_{condition.name} leaves out: no packet matches"
                )

    def _check_protocols(self) -> None:
        protocols = self._protocols(None)
        for condition in self._conditions:
            needed = condition.row.protocols
            if needed and not (protocols and set(protocols) <= set(needed)):
                choices = ", ".join(map(repr, needed[:-1])) + (" or " if needed[1:] else "") + repr(needed[-1])
                several = ", or several of these" if needed[1:] else ""
                raise ArgumentError(f"{condition.name} needs protocol to be {choices}{several}")
            of_both = condition.criterion == "icmp_type" and len(protocols) > 1
            if of_both and any(span.version is None for span in condition.asked.spans):
                raise ArgumentError(f"{condition.name} has a number, which is another type in ICMPv6: give the name")

    def _protocols(self, version: int | None) -> list[str]:
        """The names of the protocols that are asked for, of packets of a version."""
        asked = self._asked("protocol")
        if asked is None:
            return []
        if version is None:
            return list(dict.fromkeys(CRITERIA["protocol"].text(asked)))
        return list(
            dict.fromkeys(
                CRITERIA["protocol"].text(Asked(tuple(span for span in asked.spans if span.version in (None, version))))
            )
        )

    def _check_versions(self) -> tuple[int, ...]:
        """The IP versions of which packets match."""
        limits = (
            [(f"family {self._family!r}", {"ip": {4}, "ip6": {6}}[self._family])]
            if self._family in ("ip", "ip6")
            else []
        )
        for condition in self._conditions:
            versions = condition.row.versions(condition.asked)
            if not versions:
                raise ArgumentError(f"{condition.name} leaves out everything: no packet matches")
            limits.append((condition.name, versions))
        left = {4, 6}.intersection(*(versions for _, versions in limits))
        if not left:
            reasons = [f"{what} is for IPv{min(versions)} only" for what, versions in limits if len(versions) == 1]
            raise ArgumentError(f"{', and '.join(dict.fromkeys(reasons))}: no packet matches")
        return tuple(sorted(left))

    def check_place(self, hook: str, priority: int) -> None:
        """Raises ArgumentError if no packet matches there."""
        for name, row, _, _ in self._conditions:
            if self._family not in row.families:
                raise ArgumentError(f"{name} is for the families {', '.join(row.families)}, not for {self._family!r}")
            plain = name.removeprefix(NOT)
            hooks = [at for at in row.hooks if (self._family, at, plain) not in NEVER]
            if hook not in hooks:
                place = f"the hook {hook!r}" + (" of a bridge" if self._family == "bridge" else "")
                others = ", ".join(at for at in hooks if at != "ingress" or self._family == "inet")
                raise ArgumentError(
                    f"{name} has no meaning at {place}, where no {row.lacks} is known: it is for the hooks {others}"
                )
            # At output a bridge sees packets that the IP layer has tracked.
            tracked = ("prerouting",) if self._family == "bridge" else ("prerouting", "output")
            if row.is_tracked and hook in tracked and priority <= TRACKED_AT:
                raise ArgumentError(
                    f"priority is {priority} and must be above {TRACKED_AT} for {name}: that is where, at the hook"
                    f" {hook!r}, connection tracking looks at packets"
                )

    def interfaces(self) -> Iterator[str]:
        """Names of interfaces that must exist."""
        for condition in self._conditions:
            is_interface = condition.criterion in ("in_interface", "out_interface")
            if is_interface and not condition.negated and not isinstance(condition.asked, Set):
                yield from (name for name in condition.row.text(condition.asked) if not name.endswith("*"))

    def branches(self) -> tuple[int | None, ...]:
        """The IP versions of which packets are asked for different things; None for both at once.

        There is a rule of the kernel for each.
        """
        if self._family in ("ip", "ip6"):
            return self.versions
        apart = any(condition.row.tells_versions_apart(condition.asked) for condition in self._conditions)
        return self.versions if apart else (None,)

    def only_tcp(self, version: int | None) -> bool | None:
        """Whether all packets that match are TCP segments, or, if False, none is."""
        protocols = self._protocols(version)
        if protocols:
            return protocols == ["tcp"] if "tcp" not in protocols or len(protocols) == 1 else None
        denied = self._asked("not_protocol")
        return False if denied is not None and "tcp" in CRITERIA["protocol"].text(denied) else None

    def of_tcp(self) -> Match:
        """The same, for those of the packets that are TCP segments."""
        narrowed = copy.copy(self)
        row = CRITERIA["protocol"]
        tcp = _Condition("protocol", row, row.read("protocol", "tcp", False), False)
        narrowed._conditions = [tcp, *(c for c in self._conditions if c.criterion != "protocol")]
        return narrowed

    def steps(self, version: int | None) -> Iterator[Step]:
        """What lets packets of a branch through to the end of the rule."""
        if version is not None and self._family == "inet":
            yield meta(META_NFPROTO)
            yield compare(bytes([socket.AF_INET if version == 4 else socket.AF_INET6]))
        elif version is not None and self._family in ("bridge", "netdev"):
            yield meta(META_PROTOCOL)
            yield compare(bytes.fromhex("0800" if version == 4 else "86dd"))
        for condition in self._conditions:
            yield from condition.row.steps(condition.asked, version)

    def nft(self, version: int | None) -> list[str]:
        """The same in nft's words. Raises NoWordsError."""
        protocols = self._protocols(version)
        protocol = protocols[0] if len(protocols) == 1 else ""
        words = {c.name: c.row.nft(c.asked, version, protocol) for c in self._conditions}
        words = {name: text for name, text in words.items() if text}
        if protocol and any(c.row.protocols and c.name in words for c in self._conditions):
            words.pop("protocol", None)  # "tcp dport 80" says it
        if version is not None and not any(self._says_version(name) for name in words):
            if self._family == "inet":
                words = {"version": f"meta nfproto ipv{version}", **words}
            elif self._family in ("bridge", "netdev"):
                words = {"version": f"meta protocol {'ip' if version == 4 else 'ip6'}", **words}
        return list(words.values())

    @staticmethod
    def _says_version(name: str) -> bool:
        return name.removeprefix(NOT) in ("source", "destination")

    def iptables(self, version: int) -> list[list[str]]:
        """Words of iptables or ip6tables, quoted for the shell; a packet must match any. Raises NoWordsError."""
        protocols = self._protocols(version)
        protocol = protocols[0] if len(protocols) == 1 else ""
        if not protocol and any(condition.row.protocols for condition in self._conditions):
            # Words for ports are there for one protocol at a time.
            return [words for one in protocols for words in self._iptables(version, one)]
        return self._iptables(version, protocol)

    def _iptables(self, version: int, protocol: str) -> list[list[str]]:
        choices = []
        for condition in self._conditions:
            found = condition.row.iptables(condition.asked, version, protocol)
            if condition.name == "protocol" and protocol:
                found = [f"-p {protocol}"]
            choices.append(found)
        count = 1
        for found in choices:
            count *= len(found)
        if count > _MAX_IPTABLES_RULES:
            raise NoWordsError(f"so many values: it would be {count} rules")
        lines = [[word for word in words if word] for words in itertools.product(*choices)]
        for words in lines:  # behind -m multiport, --dport would be taken for one of its options
            words.sort(key=lambda word: word.startswith("-m "))
        if any(sum(word.startswith("-m multiport") for word in words) > 1 for words in lines):
            raise NoWordsError("several ports of both senders and receivers")
        return lines

    def words(self) -> list[str]:
        """The same in words of the command line, not quoted."""
        return [f"{c.name}={','.join(c.row.text(c.asked))}" for c in self._conditions]
