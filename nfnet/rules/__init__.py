"""Rules that queue, log or decide packets, installed through netlink (nf_tables), without nft or iptables.

    with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=53), nfnet.Queue(1) as queue:
        ...

or `install` and `remove` without a block. Several rules are installed in an order: ``install(first, second)``.

Rules are in tables of their own; other programs' tables are not changed. The tables belong to a socket that this module
keeps open until the rules are removed, so the kernel also removes them if the process is killed (since Linux 5.12; for
older kernels see `clean`). When the kernel removes a base chain, it drops the packets that wait in *every* queue of the
network namespace: end the block of the rule after that of the queue, as above.

Rules can use a `Set` of addresses, networks, ports, marks or interfaces, which can be changed while they are installed.
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
