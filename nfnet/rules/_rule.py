"""The public functions that create, install, remove and describe rules, and the classes `Rule` and `RuleSet`."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from .._arguments import wrong_type
from .._io.netlink_socket import NetlinkSocket
from .._io.system import check_linux
from .._printable import printable
from .._typing import Unpack
from ..errors import ArgumentError
from ..netns import call_in
from . import _description, _installation
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
from ._criteria import CRITERIA, Where
from ._plan import Plan
from ._statement import Statement


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
    """Return a rule that puts matching packets into queue ``num``, during its block, or from `install` to `remove`.

    num: number of the queue, 0 to 65535; or a range of at most 65535 queues, which share the packets.
    bypass: accept packets while no program has bound the queue, instead of dropping them.
    balance: how several queues share the packets. "addresses": by a hash of both addresses, the same for both
        directions of a connection (the kernel's own hash, with which some queues can get no packets). "cpu": by the CPU
        on which packets arrive. "flow": by a hash of the five-tuple, the same for both directions (this needs nft's own
        queue and hash expressions: CONFIG_NFT_QUEUE, CONFIG_NFT_HASH).
    remember: also install the rules by which the kernel carries out verdicts on connections, such as
        ``packet.accept(connection=True)``, and `Packet.reject`. After such a verdict on a connection, no more packets
        of it match, in either direction.
    first: queue only the first ``first`` packets of each direction of a connection, as connection tracking counts them,
        and packets without a connection (invalid, untracked). Installing such a rule sets the sysctl
        net.netfilter.nf_conntrack_acct to 1. Connections that began before are not counted; all their packets are
        queued.
    bits: three bits of the marks of packets and of connections, in which the rules of ``remember`` store verdicts.
        Default: 0x0e000000. The other bits of the marks are not changed. Rules with the same bits share the verdicts.

    hook: the place where packets meet the rule: "prerouting", "input", "forward", "output", "postrouting", or
        "ingress", for packets that arrive by ``in_interface``, which cannot be queued there. Must be given.
    family: the family of the table: "inet" (IPv4 and IPv6; default), "ip", "ip6", "bridge", or "netdev" for ingress.
    priority: the priority of the chain; the kernel runs chains with lower priorities first. Default: 0, as "filter".
    netns: the network namespace in which to install the rule; see `nfnet.Queue`.
    A packet matches if it satisfies all of the following conditions. For a list of values, one of them must match.
    ``not_`` before a name negates the condition. A packet without the property satisfies neither.

    {criteria}

    Raises ArgumentError at once, also if no packet can match. Installing the rule raises ArgumentError for an interface
    that does not exist, NotPermittedError without CAP_NET_ADMIN, NotSupportedError if the kernel lacks nf_tables or an
    expression of the rule, and KernelError.
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
    """Return a rule that logs matching packets to group ``group`` (see `nfnet.Log`). They continue with the next rule.

    group: number of the group, 0 to 65535.
    prefix: prefix of the messages, at most 127 bytes in UTF-8.
    snaplen: how many bytes of each packet to log, 0 to 2^32-1. Default: all.
    threshold: how many messages the kernel collects before it sends them, 1 to 65535, at most the threshold of the log.
        Default: the threshold of the log.
    The other arguments, and the errors, are those of `queue`.
    """
    return Rule(LogAction.of(group, prefix, snaplen, threshold), where)


def drop(**where: Unpack[Where]) -> Rule:
    """Return a rule by which the kernel drops matching packets. Arguments and errors are those of `queue`."""
    return Rule(DropAction(), where)


def accept(**where: Unpack[Where]) -> Rule:
    """Return a rule with which matching packets skip the later rules that are installed with it.

    They still traverse the rules of other programs. Arguments and errors are those of `queue`.
    """
    return Rule(AcceptAction(), where)


def reject(*, error: Refusal = "port-unreachable", **where: Unpack[Where]) -> Rule:
    """Return a rule by which the kernel drops matching packets, and sends a reset or an ICMP error to their senders.

    The sender of a TCP segment gets a reset; other senders get an ICMP or ICMPv6 error. The rule can be at the hooks
    prerouting (since Linux 5.9), input, forward and output; in the family bridge, at prerouting and input.

    error: the ICMP error: "port-unreachable", "admin-prohibited", "host-unreachable" or "no-route".
    The other arguments, and the errors, are those of `queue`.
    """
    return Rule(RejectAction.of(error), where)


def mark(value: int, *, mask: int = 0xFFFFFFFF, **where: Unpack[Where]) -> Rule:
    """Return a rule by which the kernel marks matching packets. They continue with the next rule.

    At the hook output the kernel routes a packet again if its mark has changed.

    value: the mark, 0 to 2^32-1.
    mask: the bits of the mark that are set or cleared; the others stay unchanged.
    The other arguments, and the errors, are those of `queue`. The argument ``mark`` is a condition on the mark that
    packets already have.
    """
    return Rule(MarkAction.of(value, mask), where)


class RuleSet:
    """An ordered list of rules, which are installed and removed together, as one transaction.

    At each hook and priority packets traverse these rules in their order. A packet that is queued, dropped, rejected or
    accepted skips the later rules; one that is logged or marked continues with the next rule.

    rules: results of `queue`, `log` and the other functions; at least one, all with the same ``netns``.

    Raises ArgumentError without rules, for other objects (then it is also a TypeError), and if the rules cannot be
    installed together: they are for several network namespaces, or remember connections in different bits at one hook
    and priority.
    """

    def __init__(self, *rules: Rule) -> None:
        if not rules:
            raise ArgumentError("there must be at least one rule")
        for rule in rules:
            if not isinstance(rule, Rule):
                raise wrong_type("a rule", rule, "a result of a function of nfnet.rules")
        if any(rule.netns != rules[0].netns for rule in rules):
            raise ArgumentError("rules of one set must be in one network namespace: netns differs")
        self.rules = rules
        self._plan = Plan(rules)

    def __repr__(self) -> str:
        state = "installed" if _installation.is_installed(self) else "not installed"
        return f"<RuleSet of {len(self.rules)} rules: {state}>"

    def install(self) -> None:
        """Install the rules. Raises the errors of `queue`, and NfnetError if they are installed already."""
        self._install(block=False)

    def _install(self, *, block: bool) -> None:
        check_linux(self._operation())
        sock = call_in(self.rules[0].netns, self._connect)
        # The kernel does not report which expression it lacks.
        lines = [line for line in _description.nft_rules(self._plan) if line.startswith(("nft add rule", "#"))]
        needs = dict.fromkeys(text for rule in self.rules for text in rule.match.needs())
        unknown = "; ".join([" or ".join(map(repr, lines)), *needs])
        _installation.install(self, sock, list(self.kernel_rules()), self._operation(), unknown, block=block)

    def _operation(self) -> str:
        return ", ".join(dict.fromkeys(str(rule.action) for rule in self.rules))

    def _connect(self) -> NetlinkSocket:
        """Return a socket in the namespace of the calling thread. Raises ArgumentError if an interface is missing."""
        for rule in self.rules:
            for name in rule.match.interfaces():
                try:
                    real = socket.if_indextoname(socket.if_nametoindex(name))
                except OSError:
                    known = ", ".join(printable(name) for _, name in socket.if_nameindex())
                    text = f"there is no interface {name!r} in this network namespace, but {known}"
                    raise ArgumentError(text) from None
                if real != name:  # an alternative name, which rules do not match
                    raise ArgumentError(f"{name!r} is another name of the interface {printable(real)}: use that")
        return NetlinkSocket()

    def kernel_rules(self) -> Iterator[_installation.KernelRule]:
        """Yield the kernel's rules, in their order."""
        return self._plan.kernel_rules()

    def remove(self) -> None:
        """Remove the rules. Can be called twice. Raises KernelError if they stay (only before Linux 5.12)."""
        _installation.uninstall(self, f"removing the rule for {self._operation()}")

    def __enter__(self) -> RuleSet:
        if not _installation.enter(self):
            self._install(block=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def describe(self) -> str:
        """Return the commands of nft and iptables that install the same rules; see `nfnet.rules.describe`."""
        return _description.describe(self._plan)


class Rule(RuleSet, Statement):
    """A rule, installed during its block, or until it is removed.

    Programs create it by `queue`, `log` and the other functions, not by calling the class.
    """

    def __init__(self, action: Action, where: Any) -> None:
        Statement.__init__(self, action, where)
        RuleSet.__init__(self, self)

    def __repr__(self) -> str:
        return f"<Rule {self.action}: {'installed' if _installation.is_installed(self) else 'not installed'}>"


def install(*rules: Rule) -> RuleSet:
    """Install rules, in their order, until `remove` or the end of this process. Raises the errors of `queue`.

    The rules stay installed even if the program does not keep the object. They do not belong to forked children. The
    result can also be used in a with statement, which removes the rules at the end of its block:
    ``with nfnet.rules.install(first, second):``
    """
    what = rules[0] if len(rules) == 1 and isinstance(rules[0], Rule) else RuleSet(*rules)
    what.install()
    return what


def remove(rules: RuleSet) -> None:
    """Remove an installed rule, or a result of `install`. Can be called twice."""
    rules.remove()


def describe(*rules: RuleSet) -> str:
    """Return the commands of nft and iptables that install the same rules, for a shell, one in each line.

    If nft or iptables cannot express a rule, a line that begins with # names the part.
    """
    if len(rules) == 1:
        return rules[0].describe()
    return RuleSet(*(rule for group in rules for rule in group.rules)).describe()


def _documented(text: str | None) -> str | None:
    """Insert the rows of `CRITERIA` into a docstring."""
    if text is None:  # python -OO
        return None
    indent = re.search(r"^( *)\{criteria\}$", text, re.MULTILINE)  # none since Python 3.13
    assert indent is not None
    rows = "\n".join(f"{indent[1]}{name}: {row.description}: {row.syntax}." for name, row in CRITERIA.items())
    return text.replace(indent[0], rows)


queue.__doc__ = _documented(queue.__doc__)
