"""The kernel's rules and chains for an ordered list of rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..errors import ArgumentError
from ..protocol.markbits import MarkBits
from . import _installation, _userdata
from ._connections import DECIDED, REMEMBERED, Before, Line, kernel_lines
from ._expressions import counter
from ._installation import Chain, KernelRule
from ._statement import Statement


class Plan:
    """The chains and the kernel's rules for an ordered list of rules.

    Raises ArgumentError if rules of one chain remember connections in different bits.
    """

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = statements
        for one in statements:
            if len(self._bits(self.chain(one))) > 1:
                text = f"rules at the hook {one.chain.hook} that remember connections must have the same bits"
                raise ArgumentError(f"{text}: install them apart, with different priorities")

    def chain(self, statement: Statement) -> Chain:
        """Return the chain of a rule. Rules with the same hook and priority share a chain, in their order."""
        plain = statement.chain
        reroutes = any(other.action.reroutes for other in self.statements if other.chain == plain)
        can_reroute = plain.hook == "output" and plain.family in ("inet", "ip", "ip6")
        return plain._replace(kind="route") if reroutes and can_reroute else plain

    def chains(self) -> dict[Chain, str]:
        """Return the names of the chains of the hooks."""
        return _installation.names(map(self.chain, self.statements))

    def _bits(self, chain: Chain) -> set[MarkBits]:
        """Return the bits in which rules of a chain remember connections."""
        return {bits for one in self.statements if (bits := one.remembers) is not None and self.chain(one) == chain}

    def before(self) -> Iterator[tuple[Statement, list[Before]]]:
        """Yield each rule with the rules that must come before it, if a rule of its chain remembers connections."""
        done: set[tuple[Chain, str]] = set()
        for one in self.statements:
            chain, before = self.chain(one), list[Before]()
            for bits in self._bits(chain):
                for part in (DECIDED,) if one.remembers is None else (DECIDED, REMEMBERED):
                    if (chain, part) not in done:
                        done.add((chain, part))
                        before.append(Before(part, bits))
            yield one, before

    def lines(self) -> list[list[Line]]:
        """Return, for each rule, the kernel's rules that must come before it."""
        names = self.chains()
        found = []
        for one, before in self.before():
            chain = self.chain(one)
            place = chain.hook, chain.family, names[chain]
            found.append([line for part in before for line in kernel_lines(part, *place)])
        return found

    def kernel_rules(self) -> Iterator[KernelRule]:
        """Yield the kernel's rules, in their order."""
        for number, (one, before) in enumerate(zip(self.statements, self.lines(), strict=True)):
            chain, userdata = self.chain(one), _userdata.pack(number, _userdata.fitted(one.words()))
            for line in before:
                comment = _userdata.comment(line.comment) if line.comment else b""
                yield KernelRule(chain._replace(branch=line.branch), list(line.expressions), [[]], comment)
            sets = one.match.sets()
            for version, match, part in one.parts():
                for case in part.cases():
                    steps = [*match.steps(version), *case.steps, counter()]
                    yield KernelRule(chain, steps, part.choices(one.family), userdata, sets)
