"""Rules that feed queues and logs, or decide by themselves, installed without any program: nf_tables through netlink.

    with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=53), nfnet.Queue(1) as queue:
        ...

or, where no block fits, `install` and `remove`. Several rules are installed in an order: ``install(first, second)``.

Rules live in tables of their own, so nothing of anybody else's is touched. The tables belong to a socket that this
module keeps open until the rules are removed, so the kernel removes them however the process ends (since Linux 5.12;
see `clean` for what is left before that). Mind that the kernel, when a base chain goes away, drops what waits in
*every* queue of the network namespace: leave the block of the rule after that of the queue, as above.

A `Set` may stand for addresses, networks, ports, marks or interfaces in rules, and changes while they are installed.
"""

from ._actions import Balance, Refusal
from ._criteria import Where
from ._elements import Element
from ._listing import InstalledRule, clean, installed
from ._rule import Rule, RuleSet, accept, describe, drop, install, log, mark, queue, reject, remove
from ._sets import Count, Set

__all__ = [
    "Balance",
    "Count",
    "Element",
    "InstalledRule",
    "Refusal",
    "Rule",
    "RuleSet",
    "Set",
    "Where",
    "accept",
    "clean",
    "describe",
    "drop",
    "install",
    "installed",
    "log",
    "mark",
    "queue",
    "reject",
    "remove",
]
