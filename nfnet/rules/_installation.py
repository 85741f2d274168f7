"""Installation of this process's rules in the kernel, in tables of their own, and their removal."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from .._io.netlink_socket import NetlinkSocket
from .._io.system import at_forks
from ..errors import KernelError, NfnetError, NotSupportedError
from . import _nftables
from ._connections import branch_name
from ._expressions import Step, be32
from ._set_lock import exclusively, lock
from ._sets import Set
from ._values import HOOKS

FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*
INGRESS = {"inet": 5, "netdev": 0}  # NF_INET_INGRESS, NF_NETDEV_INGRESS
_OWNER = 0x2  # NFT_TABLE_F_OWNER: the kernel removes the table when the socket is closed
_POLICY_ACCEPT = 1  # NF_ACCEPT
TABLE_PREFIX = "nfnet-"
"""The beginning of the names of all tables of this library."""
_NO_TRACKING = "Connection tracking does not support the family: bridges need CONFIG_NF_CONNTRACK_BRIDGE"


class Chain(NamedTuple):
    """A chain of the kernel."""

    family: str
    hook: str
    priority: int
    device: str | None
    kind: str
    """"filter"; or "route", with which the kernel routes a packet again if a rule has changed its mark."""
    branch: str = ""
    """"" for the chain of a hook; the end of the name for a chain to which rules of that chain jump."""

    def attributes(self, table: str, name: str) -> _nftables.Attributes:
        """Return the attributes of the message that creates the chain."""
        attributes: list[tuple[int, bytes | _nftables.Attributes]] = [
            (_nftables.CHAIN_TABLE, _nftables.text(table)),
            (_nftables.CHAIN_NAME, _nftables.text(name)),
        ]
        if self.branch:
            return attributes
        number = INGRESS[self.family] if self.hook == "ingress" else HOOKS.index(self.hook)
        hook = [
            (_nftables.HOOK_NUMBER, be32(number)),
            (_nftables.HOOK_PRIORITY, be32(self.priority & 0xFFFFFFFF)),
        ]
        if self.device is not None:
            hook.append((_nftables.HOOK_DEVICE, _nftables.text(self.device)))
        return [
            *attributes,
            (_nftables.CHAIN_TYPE, _nftables.text(self.kind)),
            (_nftables.CHAIN_POLICY, be32(_POLICY_ACCEPT)),
            (_nftables.CHAIN_HOOK, hook),
        ]


class KernelRule(NamedTuple):
    """One of the kernel's rules of which a `Rule` consists."""

    chain: Chain
    match: list[Step]
    choices: list[list[Any]]
    """Alternative expressions for the action; the first alternative that the kernel knows is used."""
    userdata: bytes
    """Data that the kernel stores with the rule; see `_userdata`."""
    sets: Sequence[Set] = ()
    """The sets in which the rule looks packets up."""


def names(chains: Iterable[Chain]) -> dict[Chain, str]:
    """Name each chain by its hook, with a number if a family has several chains at the hook."""
    found: dict[Chain, str] = {}
    for chain in chains:
        if chain.branch:
            found[chain] = branch_name(found[chain._replace(branch="")], chain.branch)
        elif chain not in found:
            same = sum((chain.family, chain.hook) == (other.family, other.hook) for other in found if not other.branch)
            found[chain] = f"{chain.hook}{same + 1}" if same else chain.hook
    return found


class _Installation:
    """The tables that one transaction creates: one for each family."""

    def __init__(self, sock: NetlinkSocket, families: Sequence[str]) -> None:
        self.sock, self.families = sock, families
        # Not only the process id, because containers can share the network namespace, and each has a process 1.
        self.name = f"{TABLE_PREFIX}{os.getpid()}-{os.urandom(4).hex()}"
        self.is_owned = True
        self.used: list[Set] = []
        self._free = [True]  # the first block pops this

    def enter(self) -> bool:
        """Return True only for the first block, even if several threads begin one at the same time."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def messages(self, flags: int, rules: Sequence[KernelRule], attempt: int) -> list[_nftables.Message]:
        """Return the messages that create the tables, with the alternative number ``attempt`` of each rule."""
        table = _nftables.text(self.name)
        messages = [
            _nftables.Message(
                _nftables.NEWTABLE,
                FAMILIES[family],
                [(_nftables.TABLE_NAME, table), (_nftables.TABLE_FLAGS, be32(flags))],
            )
            for family in self.families
        ]
        chains = names(rule.chain for rule in rules)
        for chain, name in chains.items():
            attributes = chain.attributes(self.name, name)
            messages.append(_nftables.Message(_nftables.NEWCHAIN, FAMILIES[chain.family], attributes))
        for family, used in self.sets(rules).items():
            for one in used:
                messages += one.creation(FAMILIES[family], self.name)
        sets = itertools.count(1)
        for rule in rules:
            end = rule.choices[min(attempt, len(rule.choices) - 1)]
            messages += _nftables.rule(
                FAMILIES[rule.chain.family],
                self.name,
                chains[rule.chain],
                [*rule.match, *end],
                rule.userdata,
                sets,
            )
        return messages

    @staticmethod
    def sets(rules: Sequence[KernelRule]) -> dict[str, list[Set]]:
        """Return the sets that the rules of each family use, each once."""
        found: dict[str, list[Set]] = {}
        for rule in rules:
            here = found.setdefault(rule.chain.family, [])
            here += [one for one in dict.fromkeys(rule.sets) if one not in here]
        return found

    def attach(self, rules: Sequence[KernelRule]) -> None:
        """Register the tables with the sets that their rules use."""
        for family, used in self.sets(rules).items():
            for one in used:
                one.attach(self.sock, FAMILIES[family], self.name)
                self.used.append(one)

    def detach(self) -> None:
        """Undo `attach`."""
        for one in self.used:
            one.detach(self.sock)

    def deletions(self) -> list[_nftables.Message]:
        """Return the messages that remove the tables."""
        table = [(_nftables.TABLE_NAME, _nftables.text(self.name))]
        return [_nftables.Message(_nftables.DELTABLE, FAMILIES[family], table) for family in self.families]


# Installations by rule set. Each keeps the socket open to which its tables belong.
_installations: dict[object, _Installation] = {}

# The rules stay with the parent: a forked child has closed the sockets.
at_forks(after_in_child=_installations.clear)


def is_installed(what: object) -> bool:
    """Return True if this process has installed a rule set and has not removed it."""
    return what in _installations


def table(what: object) -> str | None:
    """Return the name of an installed rule set's tables, one in each family; None if it is not installed."""
    installation = _installations.get(what)
    return None if installation is None else installation.name


def enter(what: object) -> bool:
    """Begin the block of an installed rule set. Return False if it is not installed, or if a block has begun."""
    installation = _installations.get(what)
    return installation is not None and installation.enter()


def install(
    what: object, sock: NetlinkSocket, rules: Sequence[KernelRule], operation: str, unknown: str, *, block: bool
) -> None:
    """Install the kernel's rules of the rule set ``what`` in the socket's namespace, as one transaction.

    operation: the operation, for errors.
    unknown: the commands of nft for the rules, for the error if the kernel lacks an expression.
    block: whether a block has begun, so that no other can begin.

    Raises KernelError, and NfnetError if the rule set is installed already; the socket is closed then.
    """
    installation = _Installation(sock, list(dict.fromkeys(rule.chain.family for rule in rules)))
    if block:
        installation.enter()
    try:
        if _installations.setdefault(what, installation) is not installation:
            raise NfnetError("the rule is installed already")
        exclusively(partial(_make, installation, rules, operation, unknown))
    except BaseException:
        if _installations.get(what) is installation:
            del _installations[what]
        installation.detach()
        sock.close()
        raise


def _make(installation: _Installation, rules: Sequence[KernelRule], operation: str, unknown: str) -> None:
    _try_all(installation, rules, operation, unknown)
    installation.attach(rules)  # under the same lock, so no set has changed since its elements were sent


def _try_all(installation: _Installation, rules: Sequence[KernelRule], operation: str, unknown: str) -> None:
    """Send the transaction until the kernel accepts it: with and without an owner, with each alternative."""
    attempts = list(itertools.product((_OWNER, 0), range(max(len(rule.choices) for rule in rules))))
    for flags, attempt in attempts:
        try:
            _nftables.commit(installation.sock, installation.messages(flags, rules, attempt), operation)
            installation.is_owned = bool(flags)
            return
        except KernelError as error:
            if error.errno == errno.EPROTO:  # connection tracking does not support the family
                raise NotSupportedError(operation, errno.EPROTO, hint=_NO_TRACKING) from None
            # ENOENT: the kernel lacks the expression or target. EOPNOTSUPP: the expression lacks a requested feature;
            # or, before Linux 5.12, tables have no owners.
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if (flags, attempt) == attempts[-1]:
                if error.errno == errno.EINVAL:
                    raise
                text = f"This kernel knows no expression for {unknown}"
                raise NotSupportedError(operation, error.errno, message=error.message, hint=text) from None


def uninstall(what: object, operation: str) -> None:
    """Remove a rule set if it is installed. Raises KernelError if it stays, which happens only before Linux 5.12."""
    installation = _installations.pop(what, None)
    if installation is None:
        return
    try:
        with lock():
            installation.detach()
            _nftables.commit(installation.sock, installation.deletions(), operation)
    except KernelError as error:
        # ENOENT: another program has flushed the ruleset. The kernel removes a table with an owner when the socket is
        # closed.
        if not installation.is_owned and error.errno != errno.ENOENT:
            raise
    finally:
        installation.sock.close()
