"""Rules in the kernel: put in by this process, and those of all processes."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from .._io.netlink_socket import NetlinkSocket
from ..errors import KernelError, NfnetError, NotSupportedError
from ..netns import Netns, call_in
from . import _nftables, _sets
from ._connections import branch_name
from ._expressions import Step, be32
from ._sets import Set
from ._values import HOOKS

FAMILIES = {"inet": 1, "ip": 2, "netdev": 5, "bridge": 7, "ip6": 10}  # NFPROTO_*
INGRESS = {"inet": 5, "netdev": 0}  # the number of the hook
_OWNER = 0x2  # NFT_TABLE_F_OWNER: the table goes when the socket does
_POLICY_ACCEPT = 1
_NAME = "nfnet-"
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_USERDATA = 0xF0  # a type that nft does not know, so that it shows nothing of it
_MAX_USERDATA = 254
_NO_TRACKING = "Connection tracking does not know the family: CONFIG_NF_CONNTRACK_BRIDGE is needed for bridges"


class Chain(NamedTuple):
    """Where packets meet rules."""

    family: str
    hook: str
    priority: int
    device: str | None
    kind: str
    """"filter", or "route", after which a packet that leaves may need another route."""
    branch: str = ""
    """If it is one to which rules of the others jump: what its name ends with."""

    def attributes(self, table: str, name: str) -> _nftables.Attributes:
        """What the kernel is told of it."""
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
    """One of those that a `Rule` is in the kernel."""

    chain: Chain
    match: list[Step]
    choices: list[list[Any]]
    """Expressions that do what is to be done; those of the first choice that the kernel knows are used."""
    userdata: bytes
    """What is kept with it: of `said` or `comment`."""
    sets: Sequence[Set] = ()
    """Those that it looks packets up in."""


def names(chains: Iterable[Chain]) -> dict[Chain, str]:
    """A name for each chain: that of the hook, and a number if there are several in a family."""
    found: dict[Chain, str] = {}
    for chain in chains:
        if chain.branch:
            found[chain] = branch_name(found[chain._replace(branch="")], chain.branch)
        elif chain not in found:
            same = sum((chain.family, chain.hook) == (other.family, other.hook) for other in found if not other.branch)
            found[chain] = f"{chain.hook}{same + 1}" if same else chain.hook
    return found


class _Installation:
    """Tables of one transaction: one for each family."""

    def __init__(self, sock: NetlinkSocket, families: Sequence[str]) -> None:
        self.sock, self.families = sock, families
        # Not the process id alone: containers may share the namespace, and each has a process 1.
        self.name = f"{_NAME}{os.getpid()}-{os.urandom(4).hex()}"
        self.is_owned = True
        self.used: list[Set] = []
        self._free = [True]  # until a block begins, which pops that: only one can

    def enter(self) -> bool:
        """Whether its block may begin: once, also if several threads want it."""
        try:
            self._free.pop()
        except IndexError:
            return False
        return True

    def messages(self, flags: int, rules: Sequence[KernelRule], attempt: int) -> list[_nftables.Message]:
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
        """The sets that are used, each once, by family."""
        found: dict[str, list[Set]] = {}
        for rule in rules:
            here = found.setdefault(rule.chain.family, [])
            here += [one for one in dict.fromkeys(rule.sets) if one not in here]
        return found

    def attach(self, rules: Sequence[KernelRule]) -> None:
        """Tell the sets where they are."""
        for family, used in self.sets(rules).items():
            for one in used:
                one.attach(self.sock, FAMILIES[family], self.name)
                self.used.append(one)

    def detach(self) -> None:
        """Tell them that they are there no longer."""
        for one in self.used:
            one.detach(self.sock)

    def deletions(self) -> list[_nftables.Message]:
        table = [(_nftables.TABLE_NAME, _nftables.text(self.name))]
        return [_nftables.Message(_nftables.DELTABLE, FAMILIES[family], table) for family in self.families]


# What is installed, each with the socket to which its tables belong: rules go when that is closed.
_installed: dict[object, _Installation] = {}

# In a forked child the sockets are closed: the rules are its parent's.
os.register_at_fork(after_in_child=_installed.clear)


def is_installed(what: object) -> bool:
    """Whether this process has put that in, and not removed it."""
    return what in _installed


def table(what: object) -> str | None:
    """The name of its tables, of which there is one in each family, while it is installed."""
    installation = _installed.get(what)
    return None if installation is None else installation.name


def enter(what: object) -> bool:
    """Begin the block of something that is installed already; False if it is not, or has begun one."""
    installation = _installed.get(what)
    return installation is not None and installation.enter()


def put_in(
    what: object, sock: NetlinkSocket, rules: Sequence[KernelRule], operation: str, unknown: str, *, block: bool
) -> None:
    """Install the rules in the socket's namespace, as one transaction; ``unknown`` is what a kernel may not know.

    block: whether a block has begun, so that no other may.
    Raises KernelError, and NfnetError if it is installed already. The socket is closed then.
    """
    installation = _Installation(sock, list(dict.fromkeys(rule.chain.family for rule in rules)))
    if block:
        installation.enter()
    try:
        if _installed.setdefault(what, installation) is not installation:
            raise NfnetError("the rule is installed already")
        _sets.exclusively(partial(_install, installation, rules, operation, unknown))
    except BaseException:
        if _installed.get(what) is installation:
            del _installed[what]
        installation.detach()
        sock.close()
        raise


def _install(installation: _Installation, rules: Sequence[KernelRule], operation: str, unknown: str) -> None:
    _try_all(installation, rules, operation, unknown)
    installation.attach(rules)  # no set has changed since the kernel was told what it has


def _try_all(installation: _Installation, rules: Sequence[KernelRule], operation: str, unknown: str) -> None:
    attempts = list(itertools.product((_OWNER, 0), range(max(len(rule.choices) for rule in rules))))
    for flags, attempt in attempts:
        try:
            _nftables.commit(installation.sock, installation.messages(flags, rules, attempt), operation)
            installation.is_owned = bool(flags)
            return
        except KernelError as error:
            if error.errno == errno.EPROTO:  # what connection tracking answers for a family that it does not know
                raise NotSupportedError(operation, errno.EPROTO, hint=_NO_TRACKING) from None
            # ENOENT: no such expression or target. EOPNOTSUPP, before Linux 5.12: no table can have an owner.
            if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                raise
            if (flags, attempt) == attempts[-1]:
                if error.errno != errno.ENOENT:
                    raise
                text = f"This kernel knows no expression for {unknown}"
                raise NotSupportedError(operation, errno.ENOENT, message=error.message, hint=text) from None


def take_out(what: object, operation: str) -> None:
    """Remove what is installed, if it is. Raises KernelError if it stays, as it may before Linux 5.12 only."""
    installation = _installed.pop(what, None)
    if installation is None:
        return
    try:
        with _sets.lock():
            installation.detach()
            _nftables.commit(installation.sock, installation.deletions(), operation)
    except KernelError as error:
        # ENOENT if somebody flushed the ruleset. A table with an owner goes with the socket in any case.
        if not installation.is_owned and error.errno != errno.ENOENT:
            raise
    finally:
        installation.sock.close()


# --- rules of all processes


class LeftRule(NamedTuple):
    """A rule that is installed."""

    family: str
    name: str
    """That of its table."""
    process: int
    """The process that installed it."""
    orphaned: bool
    """Whether that has ended; then `clean` removes it."""
    words: str = ""
    """What it says, in words of the command line; a long list of values is cut, and ends in how many more there are."""
    packets: int = 0
    """How many packets it was for, since it was installed."""
    bytes: int = 0
    """How many bytes these had."""


def installed(netns: Netns | None = None) -> list[LeftRule]:
    """The rules of this library in a network namespace, whoever installed them. Raises KernelError."""
    sock = call_in(netns, NetlinkSocket)
    try:
        return listed(sock)
    finally:
        sock.close()


def listed(sock: NetlinkSocket) -> list[LeftRule]:
    """The same, in the namespace of a socket."""
    counted: dict[tuple[int, str], dict[int, tuple[str, int, int]]] = {}
    for found in _nftables.rules(sock):
        if (known := _read_userdata(found.userdata)) is not None:
            number, words = known
            rules = counted.setdefault((found.family, found.table), {})
            packets, size = _counts(found)
            before = rules.get(number, ("", 0, 0))
            rules[number] = (words, before[1] + packets, before[2] + size)
    rows: list[LeftRule] = []
    for family, name, owner in _nftables.tables(sock):
        table = _left(family, name, owner)
        if table is not None:
            rules = counted.get((family, name), {})
            rows += [table._replace(words=w, packets=p, bytes=b) for _, (w, p, b) in sorted(rules.items())] or [table]
    return rows


def _counts(found: _nftables.Found) -> tuple[int, int]:
    for name, values in found.expressions:
        if name == "counter":
            return int.from_bytes(values.get(2, b""), "big"), int.from_bytes(values.get(1, b""), "big")
    return 0, 0


def _left(family: int, name: str, owner: int | None) -> LeftRule | None:
    if not name.startswith(_NAME):
        return None
    process = name[len(_NAME) :].partition("-")[0]
    if not process.isdecimal():
        return None
    known = {number: text for text, number in FAMILIES.items()}
    # What has an owner is removed by the kernel, if its process ended.
    orphaned = owner is None and not os.path.exists(f"/proc/{process}")
    return LeftRule(known.get(family, str(family)), name, int(process), orphaned)


def clean(netns: Netns | None = None) -> list[LeftRule]:
    """Remove the rules of processes that were killed, and return them; since Linux 5.12 there are none.

    A process in another pid namespace, a container, looks like one that has ended. Raises KernelError.
    """
    sock = call_in(netns, NetlinkSocket)
    try:
        left = [row for row in listed(sock) if row.orphaned]
        for family, name in dict.fromkeys((row.family, row.name) for row in left):
            number = FAMILIES[family] if family in FAMILIES else int(family)
            delete = _nftables.Message(_nftables.DELTABLE, number, [(_nftables.TABLE_NAME, _nftables.text(name))])
            _nftables.commit(sock, [delete], f"removing table {name}")
        return left
    finally:
        sock.close()


# --- what a rule says, kept in the kernel beside it


def comment(text: str) -> bytes:
    """Userdata that nft shows as a comment."""
    data = text.encode() + b"\0"
    return bytes([_COMMENT, len(data)]) + data


def said(number: int, words: str) -> bytes:
    """Userdata of a rule: which one of the set it belongs to, from 0 on, and what that says."""
    data = f"{number} {words}".encode("utf-8", "surrogateescape")
    return bytes([_USERDATA, len(data)]) + data


def _read_userdata(data: bytes) -> tuple[int, str] | None:
    """The number of a rule, and what it says, if it is one of ours."""
    if len(data) < 2 or data[0] != _USERDATA or data[1] != len(data) - 2:
        return None
    number, _, words = data[2:].decode("utf-8", "surrogateescape").partition(" ")
    return (int(number), words) if number.isdecimal() and number.isascii() else None


def fitted(words: Sequence[str]) -> str:
    """Words that fit into what the kernel keeps: of the longest lists only the first values, if need be."""
    most = _MAX_USERDATA - 5  # behind the number of the rule
    every = [word.split(",") for word in words]
    kept = [values[:most] for values in every]  # more cannot fit

    def text() -> bytes:
        parts = []
        for values, shown in zip(every, kept, strict=True):
            more = [f"({len(values) - len(shown)} more)"] if len(shown) < len(values) else []
            parts.append(",".join([*shown, *more]))
        return " ".join(parts).encode("utf-8", "surrogateescape")

    while len(text()) > most:
        longest = max(kept, key=len)
        if len(longest) == 1:
            return text()[: most - 4].decode("utf-8", "ignore") + " ..."
        longest.pop()
    return text().decode("utf-8", "surrogateescape")
