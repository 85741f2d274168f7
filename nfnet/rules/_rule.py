"""Rules: which packets, where, and what happens to them; installed alone or several in an order."""

from __future__ import annotations

import shlex
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

from .._arguments import check, check_choice, wrong_type
from .._io.netlink_socket import NetlinkSocket
from .._io.raw_socket import INJECTED_MARK
from .._printable import printable
from .._typing import Unpack
from ..errors import ArgumentError
from ..netns import call_in, check_netns
from ..protocol.markbits import MarkBits
from ..protocol.nfnetlink import Hook
from . import _installed
from ._actions import (
    AcceptAction,
    Action,
    Balance,
    DropAction,
    LogAction,
    MarkAction,
    QueueAction,
    Refusal,
    RejectAction,
)
from ._connections import DECIDED, REMEMBERED, Before, Line, branch_name, iptables_lines, kernel_lines
from ._criteria import CRITERIA, Where
from ._expressions import counter
from ._match import NOT, TRACKED_AT, Match
from ._values import HOOKS, NoWordsError, nft_interface

# The tables of iptables that have a chain at a hook with a priority. Not that called security: it is at 50 with
# iptables-legacy, and at 150 with iptables-nft.
_TABLES = {
    **dict.fromkeys([(hook, -150) for hook in HOOKS], "mangle"),
    **dict.fromkeys([("prerouting", -300), ("output", -300)], "raw"),
    **dict.fromkeys([("input", 0), ("forward", 0), ("output", 0)], "filter"),
}
_PROGRAMS = {4: "iptables", 6: "ip6tables"}


def queue(
    num: int | range,
    *,
    bypass: bool = True,
    balance: Balance = "addresses",
    remember: bool = False,
    first: int | None = None,
    bits: int | None = None,
    **where: Unpack[Where],
) -> Rule:
    """A rule that puts packets that match into queue ``num``, while its block runs, or from `install` to `remove`.

    num: number of the queue, 0 to 65535; or a range of at most 65535 of them, to share the load.
    bypass: let packets pass while nobody listens to the queue, instead of dropping them.
    balance: how packets are shared among several queues: by their pair of "addresses", both directions of a connection
        to the same queue (the kernel's own hash, which leaves it to chance whether all queues get some); by the "cpu"
        that they arrived on; or by "flow", a hash of the five-tuple, the same for both directions (which needs nft's
        own queue and hash expressions: CONFIG_NFT_QUEUE, CONFIG_NFT_HASH).
    remember: install, with it, the rules by which the kernel carries out ``packet.accept(connection=True)`` and the
        like, and `Packet.reject`. Once a connection is decided no more packets of it match, in either direction.
    first: queue only the first so many packets of each direction of a connection, as conntrack counts them, and those
        that belong to none (invalid, untracked). Installing that sets net.netfilter.nf_conntrack_acct to 1; connections
        that began before are not counted, and all their packets are queued.
    bits: three bits of marks, those of packets and of connections, in which the rules of ``remember`` keep what was
        decided; 0x0e000000 if not given. The marks' other bits are left as they are. Rules that have the same bits
        share what they remember.

    hook: where, must be given: "prerouting", "input", "forward", "output", "postrouting", or "ingress", where packets
        come in by ``in_interface`` and cannot be queued.
    family: whose packets: "inet" (IPv4 and IPv6, if not given), "ip", "ip6", "bridge", or "netdev" for ingress.
    priority: among the chains of the hook, lower ones first; 0, that of "filter", if not given.
    netns: the network namespace to install it in; see `nfnet.Queue`.
    Packets match if all of the following is true of them. Each may be a list of values, of which one must be true. With
    ``not_`` before its name it must not be true; of what a packet does not have, neither is.

    {criteria}

    Raises ArgumentError at once, also for what no packet could match. Installing it raises ArgumentError for an
    interface that does not exist, NotPermittedError without CAP_NET_ADMIN, NotSupportedError where the kernel has no
    nf_tables or cannot do what the rule says, KernelError.
    """
    return Rule(QueueAction.of(num, bypass, balance, first, remember, bits), where)


def log(
    group: int,
    *,
    prefix: str = "",
    snaplen: int | None = None,
    threshold: int | None = None,
    **where: Unpack[Where],
) -> Rule:
    """A rule that logs packets that match to group ``group`` (see `nfnet.Log`); they go on to the next rule.

    group: number of the group, 0 to 65535.
    prefix: what the messages shall say, at most 127 bytes in UTF-8.
    snaplen: how many bytes of each packet to log, 0 to 2^32-1; all if not given.
    threshold: how many messages the kernel may collect before it sends them, 1 to 65535; the log's if not given or
        higher than that.
    The others are those of `queue`, and so are errors.
    """
    return Rule(LogAction.of(group, prefix, snaplen, threshold), where)


def drop(**where: Unpack[Where]) -> Rule:
    """A rule that drops packets that match, in the kernel. Arguments and errors are those of `queue`."""
    return Rule(DropAction(), where)


def accept(**where: Unpack[Where]) -> Rule:
    """A rule that lets packets that match pass by the rules after it that are installed with it.

    Other programs' rules still see them. Arguments and errors are those of `queue`.
    """
    return Rule(AcceptAction(), where)


def reject(*, error: Refusal = "port-unreachable", **where: Unpack[Where]) -> Rule:
    """A rule that drops packets that match, and tells their senders, in the kernel.

    For TCP segments the sender gets a reset, for others an ICMP or ICMPv6 error. For the hooks prerouting (since Linux
    5.9), input, forward and output; in the family bridge for prerouting and input.

    error: which: "port-unreachable", "admin-prohibited", "host-unreachable" or "no-route".
    The others are those of `queue`, and so are errors.
    """
    return Rule(RejectAction.of(error), where)


def mark(value: int, *, mask: int = 0xFFFFFFFF, **where: Unpack[Where]) -> Rule:
    """A rule that marks packets that match, in the kernel; they go on to the next rule.

    At the hook output the packet is routed again if its mark has changed.

    value: the mark, 0 to 2^32-1.
    mask: which of its bits are set or cleared; the others stay as they are.
    The others are those of `queue`, and so are errors; the argument ``mark`` asks for packets that have one already.
    """
    return Rule(MarkAction.of(value, mask), where)


class RuleSet:
    """Several rules in an order, which are installed and removed together, as one transaction.

    At each hook and priority packets meet these rules in their order. Those that are queued, dropped, rejected or
    accepted meet none of the others; those that are logged or marked go on to the next.
    """

    def __init__(self, *rules: Rule) -> None:
        if not rules:
            raise ArgumentError("there must be at least one rule")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise wrong_type("a rule", rule, "what a function of nfnet.rules returns")
        if any(rule.netns != rules[0].netns for rule in rules):
            raise ArgumentError("rules of one set must be in one network namespace: netns differs")
        self.rules = rules
        for rule in rules:
            if len(self._bits(self._chain(rule))) > 1:
                text = f"rules at the hook {rule.chain.hook} that remember connections must have the same bits"
                raise ArgumentError(f"{text}: install them apart, with different priorities")

    def __repr__(self) -> str:
        state = "installed" if _installed.is_installed(self) else "not installed"
        return f"<RuleSet of {len(self.rules)} rules: {state}>"

    def install(self) -> None:
        """Install them. Raises as `queue` says, and NfnetError if they are installed already."""
        self._install(block=False)

    def _install(self, *, block: bool) -> None:
        sock = call_in(self.rules[0].netns, self._connect)
        # The kernel does not say which expression it lacks.
        lines = [line for line in self._nft(sets=False) if line.startswith(("nft add rule", "#"))]
        _installed.put_in(
            self, sock, list(self.kernel_rules()), self._operation(), " or ".join(map(repr, lines)), block=block
        )

    def _operation(self) -> str:
        return ", ".join(dict.fromkeys(str(rule.action) for rule in self.rules))

    def _connect(self) -> NetlinkSocket:
        """A socket in the namespace of the calling thread, where the interfaces must be, too."""
        for rule in self.rules:
            for name in rule.match.interfaces():
                try:
                    real = socket.if_indextoname(socket.if_nametoindex(name))
                except OSError:
                    known = ", ".join(printable(name) for _, name in socket.if_nameindex())
                    text = f"there is no interface {name!r} in this network namespace, but {known}"
                    raise ArgumentError(text) from None
                if real != name:  # what the kernel compares is the name proper
                    raise ArgumentError(f"{name!r} is another name of the interface {printable(real)}: use that")
        return NetlinkSocket()

    def kernel_rules(self) -> Iterator[_installed.KernelRule]:
        """What the kernel is told."""
        before = self._lines()
        for number, rule in enumerate(self.rules):
            chain, said = self._chain(rule), _installed.said(number, _installed.fitted(rule.words()))
            for line in before[number]:
                comment = _installed.comment(line.comment) if line.comment else b""
                yield _installed.KernelRule(chain._replace(branch=line.branch), list(line.expressions), [[]], comment)
            sets = rule.match.sets()
            for version, match, part in rule.parts():
                for case in part.cases():
                    steps = [*match.steps(version), *case.steps, counter()]
                    yield _installed.KernelRule(chain, steps, part.choices(rule.family), said, sets)

    def _bits(self, chain: _installed.Chain) -> set[MarkBits]:
        """In which rules of a chain remember connections."""
        return {bits for rule in self.rules if (bits := rule.remembers) is not None and self._chain(rule) == chain}

    def _before(self) -> Iterator[tuple[Rule, list[Before]]]:
        """For each rule what has to come before it, where a rule of its chain remembers connections."""
        done: set[tuple[_installed.Chain, str]] = set()
        for rule in self.rules:
            chain, before = self._chain(rule), list[Before]()
            for bits in self._bits(chain):
                for part in (DECIDED,) if rule.remembers is None else (DECIDED, REMEMBERED):
                    if (chain, part) not in done:
                        done.add((chain, part))
                        before.append(Before(part, bits))
            yield rule, before

    def _lines(self) -> list[list[Line]]:
        """The same as rules of the kernel."""
        names = _installed.names(map(self._chain, self.rules))
        found = []
        for rule, before in self._before():
            chain = self._chain(rule)
            place = chain.hook, chain.family, names[chain]
            found.append([line for part in before for line in kernel_lines(part, *place)])
        return found

    def _chain(self, rule: Rule) -> _installed.Chain:
        """That of a rule; the same for all at a hook and a priority, so that they are in an order."""
        plain = rule.chain
        reroutes = any(other.action.reroutes for other in self.rules if other.chain == plain)
        can_reroute = plain.hook == "output" and plain.family in ("inet", "ip", "ip6")
        return plain._replace(kind="route") if reroutes and can_reroute else plain

    def remove(self) -> None:
        """Remove them; may be called twice. Raises KernelError if they stay, as they may before Linux 5.12 only."""
        _installed.take_out(self, f"removing the rule for {self._operation()}")

    def __enter__(self) -> RuleSet:
        if not _installed.enter(self):
            self._install(block=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def describe(self) -> str:
        """The commands of nft and iptables that install the same rules; see `nfnet.rules.describe`."""
        of_iptables = [line for rule, before in self._before() for line in rule.iptables(before)]
        # Without one of them the others would do something else.
        excuses = list(dict.fromkeys(line for line in of_iptables if line.startswith("#")))
        return "\n".join([*self._nft(), *(excuses or of_iptables)])

    def _nft(self, *, sets: bool = True) -> list[str]:
        chains = _installed.names(self._chain(rule) for rule in self.rules)
        try:
            commands = [f"nft add table {family} nfnet" for family in dict.fromkeys(chain.family for chain in chains)]
            for chain, name in chains.items():
                device = "" if chain.device is None else f" device {nft_interface(chain.device)}"
                hook = f"{{ type {chain.kind} hook {chain.hook}{device} priority {chain.priority}; }}"
                commands.append(f"nft add chain {chain.family} nfnet {name} {shlex.quote(hook)}")
            used = dict.fromkeys((rule.family, one) for rule in self.rules for one in rule.match.sets())
            if sets:
                commands += [line for family, one in used for line in one.nft(family, "nfnet")]
            for rule, before in zip(self.rules, self._lines(), strict=True):
                name = chains[self._chain(rule)]
                for branch in dict.fromkeys(line.branch for line in before if line.branch):
                    commands.append(f"nft add chain {rule.family} nfnet {branch_name(name, branch)}")
                for line in before:
                    place = branch_name(name, line.branch) if line.branch else name
                    comment = f' comment "{line.comment}"' if line.comment else ""
                    commands.append(f"nft add rule {rule.family} nfnet {place} {shlex.quote(line.words + comment)}")
                for words in rule.nft():
                    text = shlex.quote(" ".join(words))
                    commands.append(f"nft add rule {rule.family} nfnet {name} {text}")
        except NoWordsError as error:
            return [f"# nft has no words for {error}"]
        return commands


class Rule(RuleSet):
    """What `queue`, `log` and the others return: a rule, installed while its block runs, or until it is removed."""

    def __init__(self, action: Action, where: Any) -> None:
        given = dict(where)
        hook, family = given.pop("hook", None), given.pop("family", "inet")
        priority, self.netns = given.pop("priority", 0), given.pop("netns", None)
        for name in given:
            if name.removeprefix(NOT) not in CRITERIA:
                known = ", ".join(sorted(["hook", "family", "priority", "netns", *CRITERIA]))
                raise TypeError(
                    f"a rule knows no {name!r}; there are {known}, and not_ before what packets must not be"
                )
        if isinstance(hook, Hook):
            hook = hook.name.lower()
        check_choice("family", family, tuple(_installed.FAMILIES))
        hooks = [at for at in action.hooks(family) if (at == "ingress") == (family == "netdev") or family == "inet"]
        if hook is None:
            raise ArgumentError(
                f"hook must be given: where packets meet the rule, one of {', '.join(map(repr, hooks))}"
            )
        check_choice("hook", hook, ("ingress",) if family == "netdev" else (*HOOKS, "ingress"))
        if hook == "ingress":
            if family not in _installed.INGRESS:
                raise ArgumentError(f"hook 'ingress' is there in the families netdev and inet, not in {family!r}")
            if isinstance(action, QueueAction):
                raise ArgumentError("packets cannot be queued at ingress, only logged: use hook='prerouting'")
        if hook not in action.hooks(family):
            raise ArgumentError(
                f"{action} is not possible at the hook {hook!r}: it is for {', '.join(action.hooks(family))}"
            )
        if isinstance(action, QueueAction) and hook != "forward" and "mark" not in given:
            # Where what this machine sends comes by. A rule that asks for a mark says by itself what it is for.
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
        self.chain = _installed.Chain(family, hook, priority, devices[0], "filter")
        if self.match.has("limit") and len(list(self.parts())) > 1:
            raise ArgumentError(
                "limit would count IPv4 and IPv6, or TCP and others, apart: make a rule for each, by family or protocol"
            )
        if self.match.has("limit") and len(action.cases()) > 1:
            raise ArgumentError("limit would count both directions of connections apart: it does not go with first")
        super().__init__(self)

    def __repr__(self) -> str:
        return f"<Rule {self.action}: {'installed' if _installed.is_installed(self) else 'not installed'}>"

    def parts(self) -> Iterator[tuple[int | None, Match, Action]]:
        """The rules of the kernel that it is: IP version of the packets, if it matters, which, and what is done."""
        for version in self.match.branches():
            for match, part in self._parts_of(version):
                yield version, match, part

    def _parts_of(self, version: int | None) -> Iterator[tuple[Match, Action]]:
        only_tcp = self.match.only_tcp(version)
        for part in self.action.parts():
            if not part.only_tcp:
                yield self.match, part
            elif only_tcp is not False:
                yield self.match.of_tcp(), part
                if only_tcp:
                    return

    def words(self) -> list[str]:
        """The same in words of the command line: what is done, and the arguments."""
        chain = self.chain
        words = [*self.action.words(), f"hook={chain.hook}"]
        words += [f"family={chain.family}"] * (chain.family != "inet")
        words += [f"priority={chain.priority}"] * bool(chain.priority)
        return [*words, *map(shlex.quote, self.match.words())]

    def nft(self) -> Iterator[list[str]]:
        """Words of the rules that it is. Raises NoWordsError."""
        for version, match, part in self.parts():
            for case in part.cases():
                yield [*match.nft(version), *filter(None, [case.nft]), "counter", part.nft(self.family)]

    def iptables(self, before: Sequence[Before] = ()) -> list[str]:
        """Commands of iptables and ip6tables, those for what comes before the rule first.

        If they have no words for it, a line that says for what.
        """
        try:
            if self.family in ("bridge", "netdev"):
                raise NoWordsError(f"the family {self.family}")
            table, hook = self._iptables_table(), self.chain.hook
            commands: list[str] = []
            for version in self.match.versions:
                program = " ".join([_PROGRAMS[version], *table])
                for what in before:
                    commands += [f"{program} {line}" for line in iptables_lines(what, hook, version, not table)]
                own = [
                    " ".join(
                        [program, "-A", hook.upper(), *words, *filter(None, [case.iptables]), part.iptables(version)]
                    )
                    for match, part in self._parts_of(version)
                    for words in match.iptables(version)
                    for case in part.cases()
                ]
                if self.match.has("limit") and len(own) * len(self.match.versions) > 1:
                    raise NoWordsError("one limit for several of its rules")
                commands += own
        except NoWordsError as error:
            return [f"# iptables has no words for {error}"]
        return commands

    def _iptables_table(self) -> list[str]:
        """Options that choose the table with a chain at this hook and priority. Raises NoWordsError."""
        hook, priority = self.chain.hook, self.chain.priority
        if hook == "ingress":
            raise NoWordsError("the hook ingress")
        table = _TABLES.get((hook, priority))
        if table is None:
            others = [f"{name} is at {at}" for (place, at), name in _TABLES.items() if place == hook]
            raise NoWordsError(f"priority {priority} at {hook}" + "".join(f"; {text}" for text in others))
        if hook == "postrouting" and self.match.has("in_interface"):
            raise NoWordsError("in_interface at postrouting")
        if isinstance(self.action, RejectAction) and table != "filter":
            raise NoWordsError("reject outside of the table filter, which is at priority 0")
        if self.action.reroutes and hook == "output" and table != "mangle":
            raise NoWordsError("marks at output outside of the table mangle, which is at priority -150")
        return [] if table == "filter" else ["-t", table]


def _check_tracked(family: str, hook: str, priority: int) -> None:
    """Raises ArgumentError where a rule cannot know of connections."""
    if family not in ("inet", "ip", "ip6"):
        raise ArgumentError(f"remember and first are for the families inet, ip and ip6, not for {family!r}")
    if hook in ("prerouting", "output") and priority <= TRACKED_AT:
        raise ArgumentError(
            f"priority is {priority} and must be above {TRACKED_AT} for remember and first: that is where, at the hook"
            f" {hook!r}, connection tracking looks at packets"
        )


def install(*rules: Rule) -> RuleSet:
    """Install rules, in their order, for as long as this process lives, or until `remove`. Raises as `queue` says.

    They stay whether or not the program keeps the object. A forked child has no part in them. The result may also be
    used as a block, at whose end they are removed: ``with nfnet.rules.install(first, second):``
    """
    what = rules[0] if len(rules) == 1 and isinstance(rules[0], Rule) else RuleSet(*rules)
    what.install()
    return what


def remove(rules: RuleSet) -> None:
    """Remove an installed rule, or what `install` returned; may be called twice."""
    rules.remove()


def describe(*rules: RuleSet) -> str:
    """The commands of nft and iptables that install the same rules, for a shell, one a line.

    Where one of them has no words for a rule, there is a line that begins with # and says for what.
    """
    if len(rules) == 1:
        return rules[0].describe()
    return RuleSet(*(rule for group in rules for rule in group.rules)).describe()


def _documented(text: str | None) -> str | None:
    """With the rows of `CRITERIA`."""
    if text is None:  # python -OO
        return None
    rows = "\n".join(f"    {name}: {row.about}: {row.takes}." for name, row in CRITERIA.items())
    return text.replace("    {criteria}", rows)


queue.__doc__ = _documented(queue.__doc__)
