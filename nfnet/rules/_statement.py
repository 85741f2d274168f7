"""One rule: its place, its conditions and its action."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .._arguments import check, check_choice
from .._io.raw_socket import INJECTED_MARK
from ..errors import ArgumentError
from ..netns import check_netns
from ..protocol.nfnetlink import Hook
from ._actions import Action, KernelAction, QueueAction
from ._criteria import CRITERIA
from ._installation import FAMILIES, INGRESS, Chain
from ._match import NOT, TRACKED_AT, Match
from ._values import HOOKS


class Statement:
    """A rule: its chain, its conditions and its action.

    where: the arguments of `_criteria.Where`.

    Raises ArgumentError if an argument is wrong, or if no packet can match.
    """

    def __init__(self, action: Action, where: Any) -> None:
        given = dict(where)
        hook, family = given.pop("hook", None), given.pop("family", "inet")
        priority, self.netns = given.pop("priority", 0), given.pop("netns", None)
        for name in given:
            if name.removeprefix(NOT) not in CRITERIA:
                known = ", ".join(sorted(["hook", "family", "priority", "netns", *CRITERIA]))
                raise TypeError(f"a rule has no argument {name!r}; there are {known}, and not_ for their negations")
        if isinstance(hook, Hook):
            hook = hook.name.lower()
        check_choice("family", family, tuple(FAMILIES))
        hooks = [at for at in action.hooks(family) if (at == "ingress") == (family == "netdev") or family == "inet"]
        if hook is None:
            raise ArgumentError(
                f"hook must be given: where packets meet the rule, one of {', '.join(map(repr, hooks))}"
            )
        check_choice("hook", hook, ("ingress",) if family == "netdev" else (*HOOKS, "ingress"))
        if hook == "ingress":
            if family not in INGRESS:
                raise ArgumentError(f"hook 'ingress' exists in the families netdev and inet, not in {family!r}")
            if isinstance(action, QueueAction):
                raise ArgumentError("packets cannot be queued at ingress, only logged: use hook='prerouting'")
        if hook not in action.hooks(family):
            raise ArgumentError(
                f"{action} is not possible at the hook {hook!r}: it is for {', '.join(action.hooks(family))}"
            )
        if isinstance(action, QueueAction) and hook != "forward" and "mark" not in given:
            # Injected packets traverse these hooks. A rule with a condition on the mark is left as it is.
            action = replace(action, passes_over=INJECTED_MARK)
        self.action, self.family = action, family
        self.remembers = action.bits if isinstance(action, QueueAction) else None
        priority = check("priority", priority, -0x80000000, 0x7FFFFFFF)
        if isinstance(action, QueueAction) and action.is_tracked:
            _check_tracked(family, hook, priority)
        check_netns(self.netns)
        self.match = Match(family, given)
        self.match.check_place(hook, priority)
        devices = list(self.match.interfaces()) if hook == "ingress" else [None]
        if len(devices) != 1:
            raise ArgumentError("hook 'ingress' needs in_interface, the name of one interface")
        self.chain = Chain(family, hook, priority, devices[0], "filter")
        if self.match.has("limit") and len(list(self.parts())) > 1:
            raise ArgumentError(
                "limit would count IPv4 and IPv6, or TCP and others, separately: make a rule for each, by family or"
                " protocol"
            )
        if self.match.has("limit") and any(len(part.cases()) > 1 for part in action.parts()):
            raise ArgumentError(
                "limit would count both directions of connections separately: it cannot be combined with first"
            )

    def parts(self) -> Iterator[tuple[int | None, Match, KernelAction]]:
        """Yield the conditions and the action of each of the kernel's rules, with the IP version (None: either)."""
        for version in self.match.branches():
            for match, part in self.parts_of(version):
                yield version, match, part

    def parts_of(self, version: int | None) -> Iterator[tuple[Match, KernelAction]]:
        """Yield the conditions and the action of each of the kernel's rules for an IP version."""
        only_tcp = self.match.only_tcp(version)
        for part in self.action.parts():
            if not part.only_tcp:
                yield self.match, part
            elif only_tcp is not False:
                yield self.match.of_tcp(), part
                if only_tcp:
                    return

    def words(self) -> list[str]:
        """Return the rule in words of the command line: the action and the arguments."""
        chain = self.chain
        words = [*self.action.words(), f"hook={chain.hook}"]
        words += [f"family={chain.family}"] * (chain.family != "inet")
        words += [f"priority={chain.priority}"] * bool(chain.priority)
        return [*words, *map(shlex.quote, self.match.command_words())]


def _check_tracked(family: str, hook: str, priority: int) -> None:
    """Raise ArgumentError if connection tracking does not process packets before the rule."""
    if family not in ("inet", "ip", "ip6"):
        raise ArgumentError(f"remember and first are for the families inet, ip and ip6, not for {family!r}")
    if hook in ("prerouting", "output") and priority <= TRACKED_AT:
        raise ArgumentError(
            f"priority is {priority} and must be above {TRACKED_AT} for remember and first: that is where, at the hook"
            f" {hook!r}, connection tracking looks at packets"
        )
