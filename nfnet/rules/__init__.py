"""The rule that feeds a queue or a log, installed without any program: nf_tables through netlink.

    with nfnet.rules.queue(1, hook="output", protocol="udp", destination_port=53), nfnet.Queue(1) as queue:
        ...

or, where no block fits, `install` and `remove`. Each rule lives in a table of its own, so nothing of anybody else's is
touched. The table belongs to a socket that this module keeps open until the rule is removed, so the kernel removes it
however the process ends (since Linux 5.12; see `clean` for what is left before that). Mind that the kernel, when a base
chain goes away, drops what waits in *every* queue of the network namespace: leave the block of the rule after that of
the queue, as above.
"""

from ._criteria import Match
from ._rule import (
    Balance,
    LeftRule,
    Rule,
    Where,
    clean,
    describe,
    install,
    installed,
    log,
    queue,
    remove,
)

__all__ = [
    "Balance",
    "LeftRule",
    "Match",
    "Rule",
    "Where",
    "clean",
    "describe",
    "install",
    "installed",
    "log",
    "queue",
    "remove",
]
