"""Descriptions of rules: the commands of nft and iptables that install the same rules."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from ._actions import RejectAction
from ._connections import Before, branch_name, iptables_lines
from ._plan import Plan
from ._statement import Statement
from ._values import HOOKS, NoWordsError, nft_interface

# The tables of iptables by the hook and the priority of their chains. The table security is not among them, because its
# priority is 50 with iptables-legacy, and 150 with iptables-nft.
_TABLES = {
    **dict.fromkeys([(hook, -150) for hook in HOOKS], "mangle"),
    **dict.fromkeys([("prerouting", -300), ("output", -300)], "raw"),
    **dict.fromkeys([("input", 0), ("forward", 0), ("output", 0)], "filter"),
}
_PROGRAMS = {4: "iptables", 6: "ip6tables"}


def describe(plan: Plan) -> str:
    """Return the commands, one in each line. If nft or iptables cannot express a rule, a comment takes their place."""
    of_iptables = [line for statement, before in plan.before() for line in _iptables(statement, before)]
    # If one rule is missing the others have another effect, so all of them are left out.
    excuses = list(dict.fromkeys(line for line in of_iptables if line.startswith("#")))
    return "\n".join([*nft_commands(plan), *(excuses or of_iptables)])


def nft_rules(plan: Plan) -> list[str]:
    """Return the commands of nft that add the rules, or a comment if nft has no words for a rule."""
    try:
        return list(_nft_rules(plan))
    except NoWordsError as error:
        return [f"# nft has no words for {error}"]


def nft_commands(plan: Plan) -> list[str]:
    """Return the commands of nft, or a comment if nft has no words for a rule."""
    try:
        return [*_nft_chains(plan), *_nft_sets(plan), *_nft_rules(plan)]
    except NoWordsError as error:
        return [f"# nft has no words for {error}"]


def _nft_chains(plan: Plan) -> Iterator[str]:
    chains = plan.chains()
    for family in dict.fromkeys(chain.family for chain in chains):
        yield f"nft add table {family} nfnet"
    for chain, name in chains.items():
        device = "" if chain.device is None else f" device {nft_interface(chain.device)}"
        hook = f"{{ type {chain.kind} hook {chain.hook}{device} priority {chain.priority}; }}"
        yield f"nft add chain {chain.family} nfnet {name} {shlex.quote(hook)}"


def _nft_sets(plan: Plan) -> Iterator[str]:
    used = dict.fromkeys((statement.family, one) for statement in plan.statements for one in statement.match.sets())
    for family, one in used:
        yield from one.nft(family, "nfnet")


def _nft_rules(plan: Plan) -> Iterator[str]:
    chains = plan.chains()
    for statement, before in zip(plan.statements, plan.lines(), strict=True):
        family, name = statement.family, chains[plan.chain(statement)]
        for branch in dict.fromkeys(line.branch for line in before if line.branch):
            yield f"nft add chain {family} nfnet {branch_name(name, branch)}"
        for line in before:
            place = branch_name(name, line.branch) if line.branch else name
            comment = f' comment "{line.comment}"' if line.comment else ""
            yield f"nft add rule {family} nfnet {place} {shlex.quote(line.words + comment)}"
        for version, match, part in statement.parts():
            for case in part.cases():
                words = [*match.nft(version), *filter(None, [case.nft]), "counter", part.nft(family)]
                yield f"nft add rule {family} nfnet {name} {shlex.quote(' '.join(words))}"


def _iptables(statement: Statement, before: Sequence[Before]) -> list[str]:
    """Return the commands of iptables and ip6tables for a rule and for the rules before it, or a comment."""
    try:
        return list(_iptables_commands(statement, before))
    except NoWordsError as error:
        return [f"# iptables has no words for {error}"]


def _iptables_commands(statement: Statement, before: Sequence[Before]) -> Iterator[str]:
    if statement.family in ("bridge", "netdev"):
        raise NoWordsError(f"the family {statement.family}")
    table, hook, match = _iptables_table(statement), statement.chain.hook, statement.match
    for version in match.versions:
        program = " ".join([_PROGRAMS[version], *table])
        for what in before:
            for line in iptables_lines(what, hook, version, not table):
                yield f"{program} {line}"
        own = [
            " ".join([program, "-A", hook.upper(), *words, *filter(None, [case.iptables]), part.iptables(version)])
            for narrowed, part in statement.parts_of(version)
            for words in narrowed.iptables(version)
            for case in part.cases()
        ]
        if match.has("limit") and len(own) * len(match.versions) > 1:
            raise NoWordsError("one limit for several of its rules")
        yield from own


def _iptables_table(statement: Statement) -> list[str]:
    """Return the options for the table that has a chain at the hook and priority of a rule. Raises NoWordsError."""
    hook, priority = statement.chain.hook, statement.chain.priority
    if hook == "ingress":
        raise NoWordsError("the hook ingress")
    table = _TABLES.get((hook, priority))
    if table is None:
        others = [f"{name} is at {at}" for (place, at), name in _TABLES.items() if place == hook]
        raise NoWordsError(f"priority {priority} at {hook}" + "".join(f"; {text}" for text in others))
    if hook == "postrouting" and statement.match.has("in_interface"):
        raise NoWordsError("in_interface at postrouting")
    if isinstance(statement.action, RejectAction) and table != "filter":
        raise NoWordsError("reject outside of the table filter, which is at priority 0")
    if statement.action.reroutes and hook == "output" and table != "mangle":
        raise NoWordsError("marks at output outside of the table mangle, which is at priority -150")
    return [] if table == "filter" else ["-t", table]
